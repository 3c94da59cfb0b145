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

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions.kl import register_kl
from torch.distributions.utils import lazy_property


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


@register_kl(MeanFieldNormal, dist.Normal)
def _kl_mean_field_normal(q: MeanFieldNormal, p: dist.Normal) -> Tensor:
    r""":math:`\tfrac12\,[(\sigma^2 + (\mu - m)^2)/s^2 - 1 - \log(\sigma^2/s^2)]` for a prior :math:`N(m, s^2)`."""
    value: Tensor = _Divergence.apply(
        q.loc, q.log_variance, q.variance.detach(), one_number(p.loc), one_number(p.scale)
    )
    return value


class _Divergence(torch.autograd.Function):
    """The divergence with its gradient by hand: of millions of weights, every tensor in between is a large one.

    The variance is that of the log-variance, once more, which is known already.
    """

    @staticmethod
    def forward(
        ctx: Any, loc: Tensor, log_variance: Tensor, variance: Tensor, prior_loc: Tensor, prior_scale: Tensor
    ) -> Tensor:
        ctx.save_for_backward(loc, variance, prior_loc, prior_scale)
        difference = loc - prior_loc
        value = torch.addcmul(variance, difference, difference) * (0.5 / prior_scale.square())
        return value.sub_(log_variance, alpha=0.5).add_(prior_scale.log() - 0.5)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        loc, variance, prior_loc, prior_scale = ctx.saved_tensors
        gradient = one_number(gradient)  # as that of a sum is
        precision = prior_scale.square().reciprocal()
        scaled = gradient * precision
        of_loc = (loc - prior_loc) * scaled
        of_log_variance = 0.5 * (variance * scaled - gradient)
        of_prior = of_scale = None
        if ctx.needs_input_grad[3]:
            of_prior = -of_loc.sum_to_size(prior_loc.shape)
        if ctx.needs_input_grad[4]:
            second = variance + (loc - prior_loc).square()
            of_scale = (gradient * (1 - second * precision) / prior_scale).sum_to_size(prior_scale.shape)
        return of_loc.sum_to_size(loc.shape), of_log_variance.sum_to_size(loc.shape), None, of_prior, of_scale


def one_number(value: Tensor) -> Tensor:
    """One number where a tensor is one number repeated by ``expand``; spares passes over large layers."""
    return value[(0,) * value.dim()] if value.numel() and not any(value.stride()) else value
