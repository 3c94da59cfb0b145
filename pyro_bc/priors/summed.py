"""The sum of a large site's KL, with its gradient, part by part.

Term by term a divergence is a dozen passes over memory and as many tensors of the site's size, which for millions of
weights takes longer than a network's products. Parts that stay in a processor's cache take one pass; the gradient is
known with the sum, and waits for the way back.
"""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import kl_divergence
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from .mean_field_normal import MeanFieldNormal, one_number
from .normal_jeffreys import NormalJeffreys

#: entries from which a sum part by part repays its calls, and entries of a part.
LARGE, _PART = 1 << 18, 1 << 16


def summed_divergence(q: Any, p: Any) -> Tensor | None:
    """Sum of the KL over all entries, scalar; None where it is none of a large mean-field normal from one density.

    :param q: the guide's.
    :param p: the prior's, of the same shape.
    """
    if not isinstance(q, MeanFieldNormal) or q.loc.numel() < LARGE or get_proxy_mode() is not None:
        return None  # a compiler fuses what is traced
    one = _one_density(p)
    if one is None or p.batch_shape != q.batch_shape or not (q.loc.is_contiguous() and q.log_variance.is_contiguous()):
        return None
    total: Tensor = _SummedDivergence.apply(q.loc, q.log_variance, q.variance.detach(), one)
    return total


def _one_density(p: Any) -> Any:
    """The density that all entries have, without a shape; None where they differ, or are learned."""
    if isinstance(p, NormalJeffreys):
        return NormalJeffreys(validate_args=False)
    if type(p) is not dist.Normal:
        return None
    loc, scale = one_number(p.loc), one_number(p.scale)
    if loc.dim() or scale.dim() or loc.requires_grad or scale.requires_grad:
        return None
    return dist.Normal(loc, scale, validate_args=False)


class _SummedDivergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loc: Tensor, log_variance: Tensor, variance: Tensor, p: Any) -> Tensor:
        gradients = torch.empty_like(loc), torch.empty_like(log_variance)
        total = torch.zeros((), dtype=torch.float64, device=loc.device)
        parts = [tensor.reshape(-1).split(_PART) for tensor in (loc, log_variance, variance, *gradients)]
        for own_loc, own_log_variance, own_variance, *own in zip(*parts, strict=True):
            with torch.enable_grad():
                leaves = own_loc.detach().requires_grad_(), own_log_variance.detach().requires_grad_()
                q = MeanFieldNormal(*leaves)
                q.variance = own_variance  # known already; the divergence asks for its number alone
                part = kl_divergence(q, p).sum()
            for gradient, found in zip(own, torch.autograd.grad(part, leaves), strict=True):
                gradient.copy_(found)
            total += part.detach()
        ctx.gradients = list(gradients)
        return total.to(loc.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        if not ctx.gradients:
            raise RuntimeError("the gradient of this KL has been asked for before: compute it anew")
        of_loc, of_log_variance = (ctx.gradients.pop(0).mul_(gradient) for _ in range(2))
        return of_loc, of_log_variance, None, None
