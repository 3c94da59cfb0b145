"""Tensors that are drawn only where an operation needs their values, and the operations that do not."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, TypeVar

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor

from ..graph.layer_types import LAYER_TYPES, LayerType
from ..priors.base import ROLES

_D = TypeVar("_D", bound="Deferred")

# Variance below which a pre-activation counts as certain; keeps the gradient of the root finite at zero.
_TINY = 1e-16


class Deferred(torch.Tensor):
    """A tensor that is drawn from ``distribution`` only where an operation needs its value.

    It has shape, dtype and device, but no storage of its own. ``draw()`` returns the same draw every time, and
    that of a product or root is computed from the draws of its ``sources``, the sites that it is made of.
    """

    distribution: Any
    guide_fn: Any  # of a site's value: the guide's density at the site, with its event dimensions
    sources: tuple["Deferred", ...]
    repeats: int = 1  # how many neighbouring entries share each of the distribution's
    _rule: Callable[[], Tensor]
    _draw: Tensor | None

    @staticmethod
    def of(distribution: Any) -> "Deferred":
        """Defer a site's ``Normal`` or ``LogNormal`` (without ``to_event``)."""
        value = _empty(Deferred, distribution.loc, distribution.loc.shape, distribution.rsample)
        value.distribution = distribution
        value.sources = (value,)
        return value

    def draw(self) -> Tensor:
        """The value, drawn with a reparameterized gradient on first use; a plain tensor."""
        if self._draw is None:
            self._draw = self._rule()
        return self._draw

    def per_example(self, x: Tensor) -> Tensor:
        """One draw for every example of ``x``, shape ``(len(x), 1, …, *self.shape)``, broadcast to ``x.dim()``."""
        q = self.distribution
        loc, scale = q.loc, q.scale
        batch = [x.shape[0]] if x.dim() > 1 else []
        ones = [1] * (x.dim() - len(batch) - loc.dim())
        normal = loc + scale * torch.randn(*batch, *ones, *loc.shape, dtype=loc.dtype, device=loc.device)
        value = normal.exp() if isinstance(q, dist.LogNormal) else normal
        return value if self.repeats == 1 else value.repeat_interleave(self.repeats, -1)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        rule = _RULES.get(func)
        if rule is not None:
            result = rule(*args, **kwargs)
            if result is not NotImplemented:
                return result
        args, kwargs = torch.utils._pytree.tree_map_only(Deferred, lambda t: t.draw(), (args, kwargs))
        return func(*args, **kwargs)


# What can be answered without a draw.
_METADATA = {
    *(getattr(torch.Tensor, name).__get__ for name in ("shape", "dtype", "device", "layout", "ndim", "is_sparse")),
    *(getattr(torch.Tensor, name) for name in ("dim", "size", "numel", "__len__")),
}


@dataclass(frozen=True)
class Certain:
    """What stands for a distribution where a factor is a plain tensor: a weight that is known, under a random scale."""

    loc: Tensor
    variance: None = None


class DeferredProduct(Deferred):
    """A product of independent deferred tensors that broadcast against each other, still not drawn.

    Factors: any number of scales, and at most one weight (the normal of two or more dimensions).
    """

    factors: tuple[Deferred, ...]

    def per_example(self, x: Tensor) -> Tensor:
        return reduce(torch.mul, (f.per_example(x) for f in self.factors))


def _empty(kind: type[_D], like: Tensor, shape: torch.Size, rule: Callable[[], Tensor]) -> _D:
    value = like.detach().new_empty(()).expand(shape).as_subclass(kind)
    value._rule, value._draw = rule, None
    return value


#: a factor of a product: its distribution, the sites behind it, and how often each entry is repeated.
_Factor = tuple[Any, tuple[Deferred, ...], int]


def _derived(factors: list[_Factor], like: Tensor, rule: Callable[[], Tensor]) -> Deferred:
    """A deferred tensor from its independent factors."""
    parts = []
    for q, sources, repeats in factors:
        shape = q.loc.shape if repeats == 1 else torch.Size([*q.loc.shape[:-1], q.loc.shape[-1] * repeats])
        part = _empty(Deferred, like, shape, rule)
        part.distribution, part.sources, part.repeats = q, sources, repeats
        parts.append(part)
    if len(parts) == 1:
        return parts[0]
    shape = torch.broadcast_shapes(*(part.shape for part in parts))
    product = _empty(DeferredProduct, like, shape, rule)
    product.factors = tuple(parts)
    product.sources = tuple(source for part in parts for source in part.sources)
    return product


def is_deferrable(name: str, q: Any) -> bool:
    """Whether a site belongs to a layer, and has a distribution that can be deferred."""
    layer, _, role = name.rpartition(".")
    return bool(layer) and role in ROLES and isinstance(q, dist.Normal | dist.LogNormal)


def plain(value: Tensor) -> Tensor:
    """The tensor's own (empty) storage, without the subclass."""
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(torch.Tensor)


def _factors(value: Deferred) -> tuple[Deferred, ...]:
    return value.factors if isinstance(value, DeferredProduct) else (value,)


def _multiply(a: Any, b: Any) -> Any:
    """A product of independent deferred tensors; log-normals of one shape become one."""
    if not (isinstance(a, Deferred) and isinstance(b, Deferred)):
        return _scaled(a, b) if isinstance(a, Deferred) else _scaled(b, a)
    if any(source is other for source in a.sources for other in b.sources):
        return NotImplemented  # a square is not a product of independent variables
    merged: list[_Factor] = []
    for factor in (*_factors(a), *_factors(b)):
        q = factor.distribution
        for i, (p, sources, repeats) in enumerate(merged):
            same = p.loc.shape == q.loc.shape and repeats == factor.repeats
            if same and isinstance(p, dist.LogNormal) and isinstance(q, dist.LogNormal):
                scale = (p.scale.square() + q.scale.square()).sqrt()
                both = dist.LogNormal(p.loc + q.loc, scale, validate_args=False)
                merged[i] = (both, (*sources, *factor.sources), repeats)
                break
        else:
            merged.append((q, factor.sources, factor.repeats))
    return _derived(merged, plain(a), lambda: a.draw() * b.draw())


def _scaled(scale: Deferred, weight: Any) -> Any:
    """A weight that is known, times scales that are not drawn yet."""
    is_tensor = isinstance(weight, Tensor) and weight.dim() > 0 and weight.is_floating_point()
    # A scale is one number, or one of each group: a weight that is random itself is drawn, and so is an input's factor.
    if not is_tensor or any(f.numel() > 1 and f.dim() >= weight.dim() > 1 for f in _factors(scale)):
        return NotImplemented
    if torch.broadcast_shapes(scale.shape, weight.shape) != weight.shape:
        return NotImplemented
    factors: list[_Factor] = [(f.distribution, f.sources, f.repeats) for f in _factors(scale)]
    return _derived([*factors, (Certain(weight), (), 1)], plain(scale), lambda: scale.draw() * weight)


def _reshape(value: Deferred, *shape: Any) -> Any:
    """Ones behind the dimension of a vector, ``(n,)`` to ``(n, 1, …)``, as a scale of filters needs them."""
    sizes = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
    if value.dim() != 1 or len(sizes) < 2 or sizes[0] not in (-1, len(value)) or any(size != 1 for size in sizes[1:]):
        return NotImplemented
    shaped: list[_Factor] = []
    for factor in _factors(value):
        q = factor.distribution
        if factor.repeats > 1:
            return NotImplemented
        if q.loc.dim():
            kind = type(q) if isinstance(q, dist.LogNormal) else dist.Normal
            q = kind(q.loc.reshape(sizes), q.scale.reshape(sizes), validate_args=False)
        shaped.append((q, factor.sources, 1))
    return _derived(shaped, plain(value), lambda: value.draw().reshape(sizes))


def _repeat_interleave(value: Deferred, repeats: Any, dim: Any = None) -> Any:
    """Entries of a vector repeated, as scales are that several inputs of a layer share."""
    if value.dim() != 1 or not isinstance(repeats, int) or dim not in (None, 0, -1):
        return NotImplemented
    repeated: list[_Factor] = []
    for factor in _factors(value):
        vector = factor.distribution.loc.dim() == 1
        repeated.append((factor.distribution, factor.sources, factor.repeats * repeats if vector else 1))
    return _derived(repeated, plain(value), lambda: value.draw().repeat_interleave(repeats))


def _square_root(value: Deferred) -> Any:
    """The root of a product of log-normals is a product of log-normals."""
    roots: list[_Factor] = []
    for factor in _factors(value):
        q = factor.distribution
        if not isinstance(q, dist.LogNormal):
            return NotImplemented
        root = dist.LogNormal(0.5 * q.loc, 0.5 * q.scale, validate_args=False)
        roots.append((root, factor.sources, factor.repeats))
    return _derived(roots, plain(value), lambda: value.draw().sqrt())


def _split(weight: Any, weight_dim: int) -> tuple[tuple[Deferred, ...], Any] | None:
    """Scales and the normal among the factors of a weight; the normal is of full size and stands last."""
    if not isinstance(weight, Deferred):
        return None
    full = [f for f in _factors(weight) if f.dim() == weight_dim and f.shape == weight.shape]
    if not full or isinstance(full[-1].distribution, dist.LogNormal):
        return None
    scales = tuple(f for f in _factors(weight) if f is not full[-1])
    return scales, full[-1].distribution


def _bias_parts(bias: Any) -> tuple[Any, Any]:
    """Mean and variance of a bias; without a variance where it is a plain tensor or had to be drawn."""
    if not isinstance(bias, Deferred):
        return bias, None
    if isinstance(bias, DeferredProduct) or not isinstance(bias.distribution, dist.Normal | Certain):
        return bias.draw(), None
    return bias.distribution.loc, bias.distribution.variance


class _SampleNormal(torch.autograd.Function):
    """A draw from N(mean, variance) with the reparameterized gradient.

    By hand because these tensors are a network's largest: autograd keeps the root, the noise and their product,
    and passes over them three times on the way back; this keeps one tensor and passes once.
    """

    @staticmethod
    def forward(ctx: Any, mean: Tensor, variance: Tensor) -> Tensor:
        twice_deviation = (4 * variance).add_(4 * _TINY).sqrt_()
        noise = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device)
        draw = torch.addcmul(mean, twice_deviation, noise, value=0.5)
        ctx.save_for_backward(noise.div_(twice_deviation))
        return draw

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (slope,) = ctx.saved_tensors
        return gradient, gradient * slope


def _sample_affine(function: Callable[..., Tensor], input: Tensor, q: Any, bias: Any) -> Tensor:
    """Sample the output of a linear map given its input, from means and variances of its weight and bias."""
    bias_loc, bias_variance = _bias_parts(bias)
    mean = function(input, q.loc, bias_loc)
    if q.variance is not None:
        return _SampleNormal.apply(mean, function(input.square(), q.variance, bias_variance))
    if bias_variance is None:
        return mean
    nothing = torch.zeros_like(q.loc)
    return _SampleNormal.apply(mean, function(input, nothing, bias_variance))


def _linear(input: Tensor, weight: Any, bias: Any = None) -> Any:
    """Sample the output of a linear layer given its input; shapes as ``torch.nn.functional.linear``."""
    parts = _split(weight, 2)
    if isinstance(input, Deferred) or parts is None:
        return NotImplemented
    scales, q = parts
    x = input
    if scales:
        x = x * reduce(torch.mul, (scale.per_example(x) for scale in scales))  # (batch, …, in_features)
    return _sample_affine(F.linear, x, q, bias)


def _convolution(layer: LayerType, input: Tensor, weight: Any, bias: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Sample the output of a convolution; shapes as its function in ``torch.nn.functional``."""
    dim = layer.spatial
    parts = _split(weight, dim + 2)
    if isinstance(input, Deferred) or parts is None:
        return NotImplemented
    scales, q = parts
    behind = None  # a bias that is added to the scaled output
    shared = {id(source) for scale in scales for source in scale.sources}
    if isinstance(bias, DeferredProduct):
        own = [f for f in bias.factors if not (f.sources and shared.issuperset(map(id, f.sources)))]
        used = {id(source) for f in bias.factors for source in f.sources if f is not own[0]} if own else set()
        if len(own) == 1 and used == shared and isinstance(own[0].distribution, dist.Normal | Certain):
            bias = own[0]  # scaled as the filters are
        else:
            bias, behind = None, bias.draw()
    elif scales and bias is not None:
        bias, behind = None, bias.draw() if isinstance(bias, Deferred) else bias
    result = _sample_affine(lambda x, w, b: layer.function(x, w, b, *args, **kwargs), input, q, bias)
    if scales:  # the product of the scales first: they are small, and the output is large
        result = result * reduce(torch.mul, (_per_filter(scale, result, dim) for scale in scales))
    return result if behind is None else result + behind.reshape(-1, *[1] * dim)


def _per_filter(scale: Deferred, output: Tensor, dim: int) -> Tensor:
    """A draw of the filters' scales for every example, ``(batch, filters, 1, …)`` against an output."""
    q = scale.distribution
    batch = output.shape[: output.dim() - dim - 1]
    shape = (*batch, q.loc.numel(), *[1] * dim)
    loc, deviation = (value.reshape(-1, *[1] * dim) for value in (q.loc, q.scale))
    normal = loc + deviation * torch.randn(shape, dtype=loc.dtype, device=loc.device)
    return normal.exp() if isinstance(q, dist.LogNormal) else normal


_RULES: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.mul: _multiply,
    torch.Tensor.mul: _multiply,
    torch.Tensor.__mul__: _multiply,
    torch.Tensor.__rmul__: _multiply,
    torch.sqrt: _square_root,
    torch.Tensor.sqrt: _square_root,
    torch.Tensor.reshape: _reshape,
    torch.Tensor.repeat_interleave: _repeat_interleave,
    torch.repeat_interleave: _repeat_interleave,
    F.linear: _linear,
    **{layer.function: partial(_convolution, layer) for layer in LAYER_TYPES if layer.spatial},
}
