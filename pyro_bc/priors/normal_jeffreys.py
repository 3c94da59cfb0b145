r"""The normal-Jeffreys density, and the priors made of it: group normal-Jeffreys and Sparse VD.

Louizos et al. 2017 (1705.08665), section 3.1; its KL from a normal: Molchanov et al. 2017 (1701.05369), eq. 14.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl

from ..errors import ImproperPriorError
from ..graph.layer_types import LayerType
from .base import (
    GroupPrior,
    Prior,
    base_distribution,
    divide_,
    group_sizes,
    is_product_of,
    recognised_prior,
    scaled_roles,
)
from .mean_field_normal import MeanFieldNormal
from .standard_normal import STANDARD_NORMAL

# Molchanov et al. 2017, equation 14: fitted to the exact divergence, absolute error below 0.011 nats.
_K1, _K2, _K3 = 0.63576, 1.87320, 1.48695

# What the approximation adds to the divergence from 1/|z|, so that it tends to 0 with the dropout rate to infinity: the
# entropy of a standard normal less its mean log|z|. An improper density has no constant of its own, so it takes this.
_ENTROPY, _MEAN_LOG = 0.5 * (1 + math.log(2 * math.pi)), -0.5 * (0.5772156649015329 + math.log(2))
CONSTANT = _ENTROPY - _MEAN_LOG


class NormalJeffreys(TorchDistribution):
    r"""The improper scale prior :math:`p(z) \propto 1/|z|` on the real line (log-uniform in :math:`|z|`).

    It is what is left of :math:`\int N(w \mid 0, z^2)\, p(z)\, dz` as the Jeffreys prior of a normal's
    scale: Louizos et al. 2017, section 3.1. The density has no normaliser: it scores values and has a
    divergence from a normal guide, both with the constant with which that tends to 0 at infinite dropout rate,
    but it cannot be sampled.

    :param batch_shape: shape of independent copies.

    >>> NormalJeffreys().expand([3]).log_prob(torch.tensor([1.0, 2.0, 0.5]))
    tensor([-2.0541, -2.7473, -1.3610])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real
    has_rsample = False

    def __init__(self, batch_shape: torch.Size | None = None, validate_args: bool | None = None):
        self._one = torch.ones(())  # on the device, and of the type, that another density's parameters would have
        super().__init__(torch.Size(batch_shape or ()), torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "NormalJeffreys":
        new = self._get_checked_instance(NormalJeffreys, _instance)
        new._one = self._one
        super(NormalJeffreys, new).__init__(torch.Size(batch_shape), torch.Size(), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """:returns: :math:`-\\log|z| - 2.0541`, the constant that the KL has; shape of ``value`` and the batch."""
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        return (-value.abs().log() - CONSTANT).expand(shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Not a draw, which there is none of, but ones where Pyro only looks for the shapes of sites.

        Autoguides and ``Predictive`` run the model under ``InitMessenger`` first, to see what is in it, and
        ``AutoGuideList`` without it.

        :raises ImproperPriorError: anywhere else; the density is improper.
        """
        if any(isinstance(handler, InitMessenger) for handler in _PYRO_STACK) or _is_prototype():
            return self._one.expand(torch.Size(sample_shape) + self.batch_shape).clone()
        raise ImproperPriorError(
            "the normal-Jeffreys prior p(z) ∝ 1/|z| is improper and cannot be sampled; run the model "
            "under a guide, e.g. Predictive(model, guide=guide, num_samples=…), or use GroupHorseshoe, "
            "which is proper"
        )


def _is_prototype() -> bool:
    """Whether an autoguide runs the model to see what is in it."""
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code is not AutoGuide._setup_prototype.__code__:
        frame = frame.f_back
    return frame.f_code is AutoGuide._setup_prototype.__code__


def log_dropout_rate(loc: Tensor, log_variance: Tensor) -> Tensor:
    r""":math:`\log\alpha = \log\sigma^2 - \log\mu^2`, finite at :math:`\mu = 0` (shape of the inputs)."""
    # Below 1e-10 a mean is zero to float32 arithmetic; the floor keeps log(0) out of the gradient.
    return log_variance - torch.log(loc.square() + 1e-20)


@register_kl(dist.Normal, NormalJeffreys)
def _kl_normal_normal_jeffreys(q: dist.Normal, p: NormalJeffreys) -> Tensor:
    r"""Molchanov et al. 2017, eq. 14; Louizos et al. 2017, eq. 10. Tends to 0 as :math:`\alpha\to\infty`."""
    log_variance = q.log_variance if isinstance(q, MeanFieldNormal) else 2 * q.scale.log()
    log_alpha = log_dropout_rate(q.loc, log_variance)
    return _K1 - _K1 * torch.sigmoid(_K2 + _K3 * log_alpha) + 0.5 * torch.nn.functional.softplus(-log_alpha)


@dataclass(frozen=True)
class GroupNormalJeffreys(GroupPrior):
    r"""BC-GNJ: :math:`p(z_i) \propto 1/|z_i|`, :math:`w_{ij} = z_i \tilde w_{ij}`,
    :math:`\tilde w_{ij} \sim N(0, 1)` (Louizos et al. 2017, section 3.1).

    Guide: normals for ``scale`` and ``weight``. Statistic: the log dropout rate
    :math:`\log\alpha_i = \log\sigma_{z_i}^2 - \log\mu_{z_i}^2`, below which a group is kept.

    :param weights: prior for :math:`\tilde w`. :class:`LogUniform` prunes weights as well as groups, and
        :class:`~pyro_bc.LearnedCode` stores them as codes.
    :raises UsageError: where ``weights`` has groups of its own.
    """

    weights: Prior = STANDARD_NORMAL
    roles: ClassVar[tuple[str, ...]] = ("scale", "weight")

    def scale_sites(self, groups: int) -> dict[str, Any]:
        return {"scale": NormalJeffreys(torch.Size([groups]), validate_args=False).to_event(1)}

    @classmethod
    def recognise(cls, sites: Mapping[str, Any]) -> "GroupNormalJeffreys | None":
        if not isinstance(base_distribution(sites.get("scale")), NormalJeffreys):
            return None
        weights = recognised_prior({"weight": sites["weight"]})
        return None if weights is None else cls(weights)

    def scale(self, values: Mapping[str, Tensor]) -> Tensor:
        return values["scale"]

    def initial_values(self, sites: Mapping[str, Any]) -> dict[str, Tensor]:
        groups = sites["scale"].shape()
        return super().initial_values(sites) | {"scale": 1 + 0.01 * torch.randn(groups)}

    def group_scale(self, q: Mapping[str, Any]) -> Any:
        return base_distribution(q["scale"])

    def statistic(self, q: Mapping[str, Any]) -> Tensor:
        scale = self.group_scale(q)
        return log_dropout_rate(scale.loc, 2 * scale.scale.log())

    def balanced_roles(self, layer: LayerType) -> tuple[str, ...]:
        if self.weights != STANDARD_NORMAL or not is_product_of(GroupNormalJeffreys, self):
            return ()  # of log-uniform weights all sizes cost the same
        return ("scale", *scaled_roles(layer))

    def balance_(self, parameters: Mapping[str, tuple[Tensor, ...]], layer: LayerType) -> None:
        size = group_sizes(parameters, layer)
        divide_(parameters["scale"], 1 / size)  # whose own divergence knows no size
        divide_(parameters["weight"], layer.over_groups(size, parameters["weight"][0].shape))
        if layer.scales_outputs and "bias" in parameters:
            divide_(parameters["bias"], size)


@dataclass(frozen=True)
class LogUniform(Prior):
    r"""Sparse VD: :math:`p(w_{ij}) \propto 1/|w_{ij}|` for every weight alone (Molchanov et al. 2017), the
    paper's baseline.

    Guide: a normal for ``weight``. Statistic: :math:`\log\alpha_{ij} = \log\sigma_{ij}^2 - \log\mu_{ij}^2`,
    below which a weight is kept.
    """

    roles: ClassVar[tuple[str, ...]] = ("weight",)

    def sites(self, weight_shape: Sequence[int], groups: int | None = None) -> dict[str, Any]:
        return {"weight": NormalJeffreys(torch.Size(weight_shape), validate_args=False).to_event(len(weight_shape))}

    @classmethod
    def recognise(cls, sites: Mapping[str, Any]) -> "LogUniform | None":
        alone = set(sites) <= {"weight", "bias"}
        return cls() if alone and isinstance(base_distribution(sites["weight"]), NormalJeffreys) else None

    def group_scale(self, q: Mapping[str, Any]) -> None:
        return None

    def statistic(self, q: Mapping[str, Any]) -> Tensor:
        weight = base_distribution(q["weight"])
        return log_dropout_rate(weight.loc, 2 * weight.scale.log())
