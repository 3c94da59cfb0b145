r"""The group horseshoe, its half-Cauchy factors, and their KLs from log-normals.

Louizos et al. 2017 (1705.08665), section 3.2 and appendix.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.kl import register_kl

from ..errors import UsageError
from ..graph.layer_types import LayerType
from .base import GroupPrior, Prior, base_distribution, divide_, is_product_of, recognised_prior, scaled_roles, squares
from .standard_normal import STANDARD_NORMAL


def half_cauchy_factors(scale: float, shape: torch.Size | tuple[int, ...] = ()) -> tuple[Any, Any]:
    r"""Gamma and inverse-Gamma whose product is the square of a half-Cauchy variable.

    If :math:`a \sim \mathrm{Gamma}(\tfrac12, \text{scale}=k^2)` and
    :math:`b \sim \mathrm{InvGamma}(\tfrac12, 1)` then :math:`\sqrt{ab} \sim C^+(0, k)`
    (Louizos et al. 2017, section 3.2, where :math:`k = \tau_0` for the layer and 1 for a group).
    ``scale`` is the scale of the half-Cauchy itself: public reimplementations, and probably the paper's
    appendix, pass :math:`\tau_0` for :math:`\tau_0^2`, which makes :math:`10^{-5}` act as
    :math:`3.2\cdot10^{-3}`.

    :param scale: median of the half-Cauchy variable, > 0.
    :param shape: shape of both factors; all of it is event shape.
    :returns: pair of distributions with event shape ``shape``.
    :raises UsageError: where ``scale`` is not positive and finite.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise UsageError(f"a half-Cauchy needs a positive, finite scale, not {scale!r}")
    a = dist.Gamma(torch.full(shape, 0.5), torch.full(shape, scale**-2.0), validate_args=False)
    b = dist.InverseGamma(torch.full(shape, 0.5), torch.ones(shape), validate_args=False)
    return a.to_event(len(shape)), b.to_event(len(shape))


def _log_normal_entropy(q: dist.LogNormal) -> Tensor:
    """Entropy of a log-normal: that of its logarithm plus the mean logarithm."""
    return q.loc + q.scale.log() + 0.5 * math.log(2 * math.pi * math.e)


@register_kl(dist.LogNormal, dist.Gamma)
def _kl_log_normal_gamma(q: dist.LogNormal, p: dist.Gamma) -> Tensor:
    r"""The KL from :math:`\mathrm{Gamma}(\tfrac12, \text{scale}=\theta)`:
    :math:`e^{\mu+\sigma^2/2}/\theta - \tfrac12(\mu + \log\sigma^2 + 1 + \log 2 - \log\theta)`."""
    a, rate = p.concentration, p.rate
    mean = torch.exp(q.loc + 0.5 * q.scale.square())
    cross_entropy = torch.lgamma(a) - a * rate.log() - (a - 1) * q.loc + rate * mean
    return cross_entropy - _log_normal_entropy(q)


@register_kl(dist.LogNormal, dist.InverseGamma)
def _kl_log_normal_inverse_gamma(q: dist.LogNormal, p: dist.InverseGamma) -> Tensor:
    r"""The KL from :math:`\mathrm{InvGamma}(\tfrac12, 1)`:
    :math:`e^{-\mu+\sigma^2/2} - \tfrac12(-\mu + \log\sigma^2 + 1 + \log 2)`."""
    a, rate = p.concentration, p.rate
    mean_of_inverse = torch.exp(-q.loc + 0.5 * q.scale.square())
    cross_entropy = torch.lgamma(a) - a * rate.log() + (a + 1) * q.loc + rate * mean_of_inverse
    return cross_entropy - _log_normal_entropy(q)


@dataclass(frozen=True)
class GroupHorseshoe(GroupPrior):
    r"""BC-GHS: :math:`s \sim C^+(0, \tau_0)`, :math:`\tilde z_i \sim C^+(0, 1)`,
    :math:`w_{ij} = \tilde w_{ij} \tilde z_i s` (Louizos et al. 2017, section 3.2).

    Every half-Cauchy is the root of a Gamma times an inverse-Gamma variable
    (:func:`~pyro_bc.priors.horseshoe.half_cauchy_factors`): ``global_a`` and ``global_b`` (one each per layer),
    ``local_a`` and ``local_b`` (one each per group), with log-normal guides. Statistic: the negative log-mode
    :math:`\sigma_{z_i}^2 - \mu_{z_i}` of :math:`z_i = \tilde z_i s`, below which a group is kept.

    :param global_scale: :math:`\tau_0`, the scale (median) of :math:`s` itself; see
        :func:`~pyro_bc.priors.horseshoe.half_cauchy_factors` for how public code differs.
    :param weights: prior for :math:`\tilde w`. :class:`~pyro_bc.LogUniform` prunes weights as well as groups, and
        :class:`~pyro_bc.LearnedCode` stores them as codes.
    :raises UsageError: where ``global_scale`` is not positive and finite, or ``weights`` has groups of its own.
    """

    global_scale: float = 1e-5
    weights: Prior = STANDARD_NORMAL
    roles: ClassVar[tuple[str, ...]] = ("local_a", "local_b", "global_a", "global_b", "weight")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.global_scale) and self.global_scale > 0):
            raise UsageError(f"GroupHorseshoe needs a positive, finite global_scale, not {self.global_scale!r}")

    def scale_sites(self, groups: int) -> dict[str, Any]:
        local_a, local_b = half_cauchy_factors(1.0, (groups,))
        global_a, global_b = half_cauchy_factors(self.global_scale)
        return {"local_a": local_a, "local_b": local_b, "global_a": global_a, "global_b": global_b}

    @classmethod
    def recognise(cls, sites: Mapping[str, Any]) -> "GroupHorseshoe | None":
        if not {"local_a", "local_b", "global_a", "global_b"} <= sites.keys():
            return None
        global_a = base_distribution(sites["global_a"])
        weights = recognised_prior({"weight": sites["weight"]})
        if weights is None or not isinstance(global_a, dist.Gamma):
            return None
        return cls(float(global_a.rate) ** -0.5, weights)

    def scale(self, values: Mapping[str, Tensor]) -> Tensor:
        # The global factors are about 1e-10 and 1e10: multiplied with each other first, they stay in range.
        squared = (values["global_a"] * values["global_b"]) * (values["local_a"] * values["local_b"])
        return squared.sqrt()

    def initial_values(self, sites: Mapping[str, Any]) -> dict[str, Tensor]:
        groups = sites["local_a"].shape()
        squared = torch.tensor(self.global_scale**2)
        return super().initial_values(sites) | {
            "local_a": torch.exp(0.01 * torch.randn(groups)),
            "local_b": torch.exp(0.01 * torch.randn(groups)),
            "global_a": squared,
            "global_b": 1 / squared,
        }

    def group_scale(self, q: Mapping[str, Any]) -> Any:
        factors = [base_distribution(q[role]) for role in self.roles[:-1]]
        loc = 0.5 * sum(f.loc for f in factors)
        variance = 0.25 * sum(f.scale.square() for f in factors)
        # A scale must not be 0, however small.
        return dist.LogNormal(loc, variance.sqrt().clamp_min(torch.finfo(loc.dtype).tiny), validate_args=False)

    def statistic(self, q: Mapping[str, Any]) -> Tensor:
        scale = self.group_scale(q)
        return scale.scale.square() - scale.loc

    def balanced_roles(self, layer: LayerType) -> tuple[str, ...]:
        if self.weights != STANDARD_NORMAL or not is_product_of(GroupHorseshoe, self):
            return ()
        return scaled_roles(layer)

    def balance_(self, parameters: Mapping[str, tuple[Tensor, ...]], layer: LayerType) -> None:
        # One size for all: that of a single group has a prior of its own.
        size = squares(parameters["weight"]).mean().sqrt()
        parameters["global_b"][0].add_(2 * size.log())
        divide_(parameters["weight"], size)
        if layer.scales_outputs and "bias" in parameters:
            divide_(parameters["bias"], size)
