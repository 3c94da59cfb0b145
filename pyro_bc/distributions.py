r"""Densities that Pyro does not have, and the closed-form KL divergences of the paper.

========================  =============================  ==========================================
guide                     prior                          source
========================  =============================  ==========================================
``Normal``                :class:`NormalJeffreys`        Molchanov et al. 2017 (1701.05369), eq. 14
``LogNormal``             ``Gamma``                      Louizos et al. 2017 (1705.08665), appendix
``LogNormal``             ``InverseGamma``               Louizos et al. 2017 (1705.08665), appendix
:class:`MeanFieldNormal`  ``Normal``                     the textbook's, from the log-variance
========================  =============================  ==========================================

All are registered with :func:`torch.distributions.kl.register_kl`, so that
:func:`torch.distributions.kl_divergence` and :class:`pyro.infer.TraceMeanField_ELBO` find them.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl
from torch.distributions.utils import lazy_property

from .errors import ImproperPriorError, UsageError

# Molchanov et al. 2017, equation 14: fitted to the exact divergence, absolute error below 0.011 nats.
_K1, _K2, _K3 = 0.63576, 1.87320, 1.48695


class NormalJeffreys(TorchDistribution):
    r"""The improper scale prior :math:`p(z) \propto 1/|z|` on the real line (log-uniform in :math:`|z|`).

    It is what is left of :math:`\int N(w \mid 0, z^2)\, p(z)\, dz` as the Jeffreys prior of a normal's
    scale: Louizos et al. 2017, section 3.1. The density has no normaliser: it scores values, and its
    divergence from a normal guide is known up to a constant that no parameter enters, but it cannot be
    sampled.

    :param batch_shape: shape of independent copies.

    >>> NormalJeffreys().expand([3]).to_event(1).log_prob(torch.tensor([1.0, 2.0, 0.5]))
    tensor(0.)
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
        """:returns: :math:`-\\log|z|`, without the missing constant; shape of ``value`` and the batch."""
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        return -value.abs().log().expand(shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Not a draw, which there is none of, but ones where Pyro only looks for the shapes of sites.

        Autoguides and ``Predictive`` run the model under ``InitMessenger`` first, to see what is in it.

        :raises ImproperPriorError: anywhere else; the density is improper.
        """
        if any(isinstance(handler, InitMessenger) for handler in _PYRO_STACK):
            return self._one.expand(torch.Size(sample_shape) + self.batch_shape).clone()
        raise ImproperPriorError(
            "the normal-Jeffreys prior p(z) ∝ 1/|z| is improper and cannot be sampled; run the model "
            "under a guide, e.g. Predictive(model, guide=guide, num_samples=…), or use GroupHorseshoe, "
            "which is proper"
        )


class MeanFieldNormal(dist.Normal):
    r"""A diagonal normal that is parameterised by its log-variance, as the guide keeps it.

    A training step needs :math:`\sigma^2` and :math:`\log\sigma^2` of every weight, but no :math:`\sigma`: what is
    not asked for is not computed, and what is, once.

    :param loc: mean, any shape.
    :param log_variance: :math:`\log\sigma^2`, same shape.
    """

    def __init__(self, loc: Tensor, log_variance: Tensor):
        self.loc = loc
        self.log_variance = log_variance
        TorchDistribution.__init__(self, loc.shape, torch.Size(), validate_args=False)

    @lazy_property
    def scale(self) -> Tensor:
        return (0.5 * self.log_variance).exp()

    @lazy_property
    def variance(self) -> Tensor:
        return self.log_variance.exp()

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "MeanFieldNormal":
        return MeanFieldNormal(self.loc.expand(batch_shape), self.log_variance.expand(batch_shape))


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


@register_kl(MeanFieldNormal, dist.Normal)
def _kl_mean_field_normal(q: MeanFieldNormal, p: dist.Normal) -> Tensor:
    r""":math:`\tfrac12\,[(\sigma^2 + (\mu - m)^2)/s^2 - 1 - \log(\sigma^2/s^2)]` for a prior :math:`N(m, s^2)`."""
    loc, scale = _shared(p.loc), _shared(p.scale)
    difference = q.loc - loc
    second_moment = torch.addcmul(q.variance, difference, difference)
    return torch.sub(second_moment * (0.5 / scale.square()), q.log_variance, alpha=0.5) + (scale.log() - 0.5)


def _shared(value: Tensor) -> Tensor:
    """One number where a tensor is one number repeated by ``expand``; spares passes over large layers."""
    return value[(0,) * value.dim()] if value.numel() and not any(value.stride()) else value


def _log_normal_entropy(q: dist.LogNormal) -> Tensor:
    """Entropy of a log-normal: that of its logarithm plus the mean logarithm."""
    return q.loc + q.scale.log() + 0.5 * math.log(2 * math.pi * math.e)


@register_kl(dist.LogNormal, dist.Gamma)
def _kl_log_normal_gamma(q: dist.LogNormal, p: dist.Gamma) -> Tensor:
    r"""For :math:`\mathrm{Gamma}(\tfrac12, \text{scale}=\theta)`:
    :math:`e^{\mu+\sigma^2/2}/\theta - \tfrac12(\mu + \log\sigma^2 + 1 + \log 2 - \log\theta)`."""
    a, rate = p.concentration, p.rate
    mean = torch.exp(q.loc + 0.5 * q.scale.square())
    cross_entropy = torch.lgamma(a) - a * rate.log() - (a - 1) * q.loc + rate * mean
    return cross_entropy - _log_normal_entropy(q)


@register_kl(dist.LogNormal, dist.InverseGamma)
def _kl_log_normal_inverse_gamma(q: dist.LogNormal, p: dist.InverseGamma) -> Tensor:
    r"""For :math:`\mathrm{InvGamma}(\tfrac12, 1)`:
    :math:`e^{-\mu+\sigma^2/2} - \tfrac12(-\mu + \log\sigma^2 + 1 + \log 2)`."""
    a, rate = p.concentration, p.rate
    mean_of_inverse = torch.exp(-q.loc + 0.5 * q.scale.square())
    cross_entropy = torch.lgamma(a) - a * rate.log() + (a + 1) * q.loc + rate * mean_of_inverse
    return cross_entropy - _log_normal_entropy(q)
