"""What operations give where a weight is not drawn: scales gathered, pre-activations sampled.

A rule gives ``NotImplemented`` where it does not cover its arguments; the weight is then drawn, and that is said.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor

from ..graph.layer_types import LAYER_TYPES, LayerType
from .deferred import Certain, Deferred, DeferredProduct, Factor, derived, factors_of, new_deferred, plain

# Variance below which a pre-activation counts as certain; keeps the gradient of the root finite at zero.
_TINY = 1e-16


def _multiply(a: Any, b: Any) -> Any:
    """A product of independent deferred tensors; log-normals of one shape become one."""
    if not (isinstance(a, Deferred) and isinstance(b, Deferred)):
        return _scaled(a, b) if isinstance(a, Deferred) else _scaled(b, a)
    if any(source is other for source in a.sources for other in b.sources):
        return NotImplemented  # a square is not a product of independent variables
    merged: list[Factor] = []
    for factor in (*factors_of(a), *factors_of(b)):
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
    return derived(merged, plain(a), lambda: a.draw() * b.draw())


def _scaled(scale: Deferred, weight: Any) -> Any:
    """A weight that is known, times scales that are not drawn yet; or a number times whatever is not."""
    if isinstance(weight, int | float) or (isinstance(weight, Tensor) and weight.dim() == 0):
        return _times(scale, weight)
    # A vector may be scales, of which every product has the same draw; a bias is in one alone.
    is_one = scale.dim() > 1 or all(source.site.endswith(".bias") for source in factors_of(scale)[-1].sources)
    if isinstance(weight, Tensor) and scale.dim() and is_one and _is_held(weight.shape, scale.shape):
        return _times(scale, weight)
    is_tensor = isinstance(weight, Tensor) and weight.dim() > 0 and weight.is_floating_point()
    # A scale is one number, or one of each group: a weight that is random itself is drawn, and so is an input's factor.
    if not is_tensor or any(f.numel() > 1 and f.dim() >= weight.dim() > 1 for f in factors_of(scale)):
        return NotImplemented
    if not _is_held(scale.shape, weight.shape):
        return NotImplemented
    factors: list[Factor] = [(f.distribution, f.sources, f.repeats) for f in factors_of(scale)]
    return derived([*factors, (Certain(weight), (), 1)], plain(scale), lambda: scale.draw() * weight)


def _is_held(shape: torch.Size, by: torch.Size) -> bool:
    """Whether a tensor of this shape broadcasts to the other one."""
    sizes = zip(reversed(shape), reversed(by), strict=False)
    return len(shape) <= len(by) and all(size in (1, other) for size, other in sizes)


def _times(value: Deferred, number: Any) -> Any:
    """A number, or a known tensor that a weight's shape holds, times a deferred tensor: it goes to a normal."""
    factors: list[Factor] = [(f.distribution, f.sources, f.repeats) for f in factors_of(value)]
    for index, (q, sources, repeats) in reversed(list(enumerate(factors))):
        if isinstance(number, Tensor) and number.dim() and q.loc.shape != value.shape:
            continue
        if isinstance(q, Certain):
            factors[index] = Certain(q.loc * number), sources, repeats
        elif isinstance(q, dist.Normal):
            size = number.abs() if isinstance(number, Tensor) else abs(number)
            factors[index] = dist.Normal(q.loc * number, q.scale * size, validate_args=False), sources, repeats
        else:
            continue
        return derived(factors, plain(value), lambda: value.draw() * number)
    return NotImplemented


def _divide(value: Any, number: Any) -> Any:
    if not isinstance(value, Deferred) or isinstance(number, Deferred):
        return NotImplemented
    is_number = isinstance(number, int | float) or (isinstance(number, Tensor) and number.dim() == 0)
    return _times(value, 1 / number) if is_number else NotImplemented


def _negative(value: Deferred) -> Any:
    return _times(value, -1.0)


def _reshape(value: Deferred, *shape: Any) -> Any:
    """A vector's dimension among ones, as scales need them, or a weight without scales in another shape."""
    sizes = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
    if not all(isinstance(size, int) for size in sizes):
        return NotImplemented
    sizes = tuple(plain(value).reshape(sizes).shape)
    single = len(factors_of(value)) == 1 and not isinstance(value, DeferredProduct)
    is_vector = value.dim() == 1 and sizes.count(1) >= len(sizes) - 1
    if not (single or is_vector):
        return NotImplemented
    shaped: list[Factor] = []
    for factor in factors_of(value):
        q = factor.distribution
        if factor.repeats > 1:
            return NotImplemented
        if q.loc.dim():
            if isinstance(q, Certain):
                q = Certain(q.loc.reshape(sizes))
            else:
                kind = type(q) if isinstance(q, dist.LogNormal) else dist.Normal
                q = kind(q.loc.reshape(sizes), q.scale.reshape(sizes), validate_args=False)
        shaped.append((q, factor.sources, 1))
    return derived(shaped, plain(value), lambda: value.draw().reshape(sizes))


def _index(value: Deferred, index: Any) -> Any:
    """``z[None]``, ``z[:, None]`` and the like, which only add dimensions of one."""
    parts = index if isinstance(index, tuple) else (index,)
    if not isinstance(value, Deferred) or not all(p is None or p is Ellipsis or p == slice(None) for p in parts):
        return NotImplemented
    return _reshape(value, tuple(plain(value)[index].shape))


def _unsqueeze(value: Deferred, dim: int) -> Any:
    return _reshape(value, tuple(plain(value).unsqueeze(dim).shape))


class _TransposedProduct(Deferred):
    """The transpose of a matrix under scales, of which nothing is known but what a product with it is."""

    rules: ClassVar[dict[Callable[..., Any], Callable[..., Any]]] = {}
    matrix: Deferred


def _transpose(weight: Deferred, *dims: int) -> Any:
    """A matrix as its transpose; one under scales is known by the matrix itself (:func:`_matmul`)."""
    if weight.dim() != 2 or (dims and sorted(dim % 2 for dim in dims) != [0, 1]):
        return NotImplemented
    if isinstance(weight, _TransposedProduct):
        return weight.matrix
    if isinstance(weight, DeferredProduct):
        size = torch.Size(reversed(weight.shape))
        result = new_deferred(_TransposedProduct, plain(weight), size, lambda: weight.draw().T)
        result._sources, result.matrix = weight.sources, weight
        return result
    q = weight.distribution
    if isinstance(q, Certain) or weight.repeats > 1:
        return NotImplemented
    kind = type(q) if isinstance(q, dist.LogNormal) else dist.Normal
    turned = kind(q.loc.T, q.scale.T, validate_args=False)
    return derived([(turned, weight.sources, 1)], plain(weight), lambda: weight.draw().T)


def _matmul(input: Any, weight: Any) -> Any:
    """``x @ w.T`` is a linear layer."""
    if isinstance(input, Deferred) or not isinstance(weight, Deferred) or weight.dim() != 2 or input.dim() < 1:
        return NotImplemented
    matrix = _transpose(weight)
    # A product's columns are under scales of inputs; as the right factor it would need scales of outputs.
    return (
        NotImplemented if matrix is NotImplemented or isinstance(matrix, _TransposedProduct) else _linear(input, matrix)
    )


def _einsum(equation: Any, *operands: Any) -> Any:
    """``einsum("bi,oi->bo", x, w)`` and the like: a linear layer, the input's letters in its order."""
    operands = tuple(operands[0]) if len(operands) == 1 and isinstance(operands[0], list | tuple) else operands
    if not isinstance(equation, str) or len(operands) != 2 or "..." in equation or "->" not in equation:
        return NotImplemented
    left, result = equation.replace(" ", "").split("->")
    first, second = left.split(",")
    if isinstance(operands[0], Deferred):
        (first, second), operands = (second, first), (operands[1], operands[0])
    x, weight = operands
    if isinstance(x, Deferred) or not isinstance(weight, Deferred) or len(second) != 2 or not first:
        return NotImplemented
    inner = first[-1]
    if inner not in second or second[0] == second[1] or len(set(first)) < len(first):
        return NotImplemented
    outer = second.replace(inner, "")
    if outer in first or result != first[:-1] + outer:
        return NotImplemented
    return _linear(x, weight) if second == outer + inner else _matmul(x, weight)


def _repeat_interleave(value: Deferred, repeats: Any, dim: Any = None) -> Any:
    """Entries of a vector repeated, as scales are that several inputs of a layer share."""
    if value.dim() != 1 or not isinstance(repeats, int) or dim not in (None, 0, -1):
        return NotImplemented
    repeated: list[Factor] = []
    for factor in factors_of(value):
        vector = factor.distribution.loc.dim() == 1
        repeated.append((factor.distribution, factor.sources, factor.repeats * repeats if vector else 1))
    return derived(repeated, plain(value), lambda: value.draw().repeat_interleave(repeats))


def _square_root(value: Deferred) -> Any:
    """The root of a product of log-normals is a product of log-normals."""
    roots: list[Factor] = []
    for factor in factors_of(value):
        q = factor.distribution
        if not isinstance(q, dist.LogNormal):
            return NotImplemented
        root = dist.LogNormal(0.5 * q.loc, 0.5 * q.scale, validate_args=False)
        roots.append((root, factor.sources, factor.repeats))
    return derived(roots, plain(value), lambda: value.draw().sqrt())


def _split(weight: Any, weight_dim: int) -> tuple[tuple[Deferred, ...], Any] | None:
    """Scales and the normal among the factors of a weight; the normal is of full size and stands last."""
    if not isinstance(weight, Deferred):
        return None
    full = [f for f in factors_of(weight) if f.dim() == weight_dim and f.shape == weight.shape]
    if not full or isinstance(full[-1].distribution, dist.LogNormal):
        return None
    scales = tuple(f for f in factors_of(weight) if f is not full[-1])
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
        return _SampleNormal.apply(mean, _of_square(function, input, q.variance, bias_variance))
    if bias_variance is None:
        return mean
    nothing = torch.zeros_like(q.loc)
    return _SampleNormal.apply(mean, function(input, nothing, bias_variance))


def _of_square(function: Callable[..., Tensor], input: Tensor, *others: Any) -> Tensor:
    """``function(input², …)``, where for the way back the input is kept, which others keep too, and not its square."""
    square = input.square()
    own = id(square)  # as hooks are kept, with all that they know
    with torch.autograd.graph.saved_tensors_hooks(
        lambda kept: (input, True) if id(kept) == own else (kept, False),
        lambda packed: packed[0].square() if packed[1] else packed[0],
    ):
        return function(square, *others)


def _linear(input: Tensor, weight: Any, bias: Any = None) -> Any:
    """Sample the output of a linear layer given its input; shapes as ``torch.nn.functional.linear``."""
    parts = _split(weight, 2)
    if isinstance(input, Deferred) or parts is None:
        return NotImplemented
    scales, q = parts
    x = input
    scales = tuple(_reshape(s, s.shape[-1:]) if s.dim() > 1 and s.numel() == s.shape[-1] else s for s in scales)
    if any(scale is NotImplemented or scale.dim() > 1 for scale in scales) or x.dim() < 1:
        return NotImplemented  # not one of each input
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
    if any(scale.numel() > 1 and scale.shape[0] != scale.numel() for scale in scales):
        return NotImplemented  # not one of each filter
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


def _lookup(
    index: Any,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    """Sample rows of a table, by the mean and variance of each; shapes as ``torch.nn.functional.embedding``.

    The first dimension of the indices is taken for that of the examples.
    """
    if max_norm is not None:
        return NotImplemented

    def rows(q: Any) -> tuple[Tensor, Any]:
        variance = None if q.variance is None else F.embedding(index, q.variance, padding_idx)
        return F.embedding(index, q.loc, padding_idx), variance

    return _sample_rows(index, weight, rows)


def _bag(
    index: Any, weight: Any, offsets: Any = None, mode: str = "mean", norm_type: float = 2.0, **options: Any
) -> Any:
    """Sample sums or means of a table's rows, ``(batch, features)`` for indices ``(batch, length)``.

    A row that a bag has several times is the same each time: its variance counts with the square of how often.
    """
    if offsets is not None or any(value not in (None, False) for value in options.values()):
        return NotImplemented
    if mode not in ("sum", "mean") or not isinstance(index, Tensor) or index.dim() != 2:
        return NotImplemented

    def bags(q: Any) -> tuple[Tensor, Any]:
        mean = F.embedding_bag(index, q.loc, mode=mode)
        if q.variance is None:
            return mean, None
        often = (index[:, :, None] == index[:, None, :]).sum(2).to(mean.dtype)
        variance = F.embedding_bag(index, q.variance, mode="sum", per_sample_weights=often)
        return mean, variance / (index.shape[1] ** 2 if mode == "mean" else 1)

    return _sample_rows(index, weight, bags)


def _sample_rows(index: Any, weight: Any, moments: Callable[[Any], tuple[Tensor, Any]]) -> Any:
    """Sample what a table gives, by its mean and variance, under the scales of the table's columns, or of its rows.

    Scales of rows are drawn once for the batch: a row is the same wherever it is looked up.
    """
    parts = _split(weight, 2)
    if isinstance(index, Deferred) or parts is None:
        return NotImplemented
    scales, q = parts
    of_rows = [scale for scale in scales if scale.shape == (q.loc.shape[0], 1)]
    for scale in of_rows:
        drawn_scale = scale.draw()
        spread = None if q.variance is None else q.scale * drawn_scale.abs()
        loc = q.loc * drawn_scale
        q = Certain(loc) if spread is None else dist.Normal(loc, spread, validate_args=False)
    scales = tuple(scale for scale in scales if not any(scale is own for own in of_rows))
    scales = tuple(_reshape(s, s.shape[-1:]) if s.dim() > 1 and s.numel() == s.shape[-1] else s for s in scales)
    if any(scale is NotImplemented or scale.dim() > 1 for scale in scales):
        return NotImplemented  # not one of each column
    result, variance = moments(q)
    if variance is not None:
        drawn: Tensor = _SampleNormal.apply(result, variance)
        result = torch.where(variance > 0, drawn, result)  # a row that is certain stays what it is
    if scales:
        result = result * reduce(torch.mul, (scale.per_example(result) for scale in scales))
    return result


def _drawn(function: Callable[..., Any]) -> Callable[..., Any]:
    """A recurrent layer's weights, which all its steps share, are drawn once for a batch: no rule would be exact."""

    def rule(input: Any, state: Any, weights: Any, *options: Any) -> Any:
        return function(input, state, [w.draw() if isinstance(w, Deferred) else w for w in weights], *options)

    return rule


def _per_filter(scale: Deferred, output: Tensor, dim: int) -> Tensor:
    """A draw of the filters' scales for every example, ``(batch, filters, 1, …)`` against an output."""
    q = scale.distribution
    batch = output.shape[: output.dim() - dim - 1]
    shape = (*batch, q.loc.numel(), *[1] * dim)
    loc, deviation = (value.reshape(-1, *[1] * dim) for value in (q.loc, q.scale))
    normal = loc + deviation * torch.randn(shape, dtype=loc.dtype, device=loc.device)
    return normal.exp() if isinstance(q, dist.LogNormal) else normal


_TENSOR: Any = torch.Tensor
_RECURRENT: tuple[Any, ...] = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)

Deferred.rules |= {
    torch.mul: _multiply,
    torch.Tensor.mul: _multiply,
    torch.Tensor.__mul__: _multiply,
    torch.Tensor.__rmul__: _multiply,
    torch.div: _divide,
    torch.Tensor.div: _divide,
    torch.Tensor.__truediv__: _divide,
    torch.neg: _negative,
    torch.Tensor.neg: _negative,
    torch.Tensor.__neg__: _negative,
    torch.sqrt: _square_root,
    torch.Tensor.sqrt: _square_root,
    torch.reshape: _reshape,
    torch.Tensor.reshape: _reshape,
    torch.Tensor.view: _reshape,
    torch.Tensor.__getitem__: _index,
    torch.unsqueeze: _unsqueeze,
    torch.Tensor.unsqueeze: _unsqueeze,
    torch.Tensor.repeat_interleave: _repeat_interleave,
    torch.repeat_interleave: _repeat_interleave,
    torch.t: _transpose,
    torch.Tensor.t: _transpose,
    _TENSOR.T.__get__: _transpose,
    _TENSOR.mT.__get__: _transpose,
    torch.transpose: _transpose,
    torch.Tensor.transpose: _transpose,
    torch.matmul: _matmul,
    torch.Tensor.matmul: _matmul,
    torch.Tensor.__matmul__: _matmul,
    torch.mm: _matmul,
    torch.einsum: _einsum,
    F.linear: _linear,
    **{function: _drawn(function) for function in _RECURRENT},
    F.embedding: _lookup,
    F.embedding_bag: _bag,
    **{layer.function: partial(_convolution, layer) for layer in LAYER_TYPES if layer.spatial},
}
_TransposedProduct.rules |= {
    function: rule for function, rule in Deferred.rules.items() if rule in (_transpose, _matmul, _einsum)
}
