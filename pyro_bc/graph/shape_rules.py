"""The shape of an operation's result, told from its arguments before anything is computed.

Torch tells shapes too, by computing on its meta device, but imports its compiler for that, which takes about as long as
importing torch. The rules here are for the operations that most networks consist of, in the form that they have there.
A rule only says what it is sure of, and None otherwise: also where arguments do not fit together, so that torch says
what is wrong.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, ...]

#: What tells a shape from the arguments of an operation, in which tensors are without storage.
ShapeRule = Callable[[tuple[Any, ...]], Shape | None]


def unchanged(args: tuple[Any, ...]) -> Shape | None:
    """The shape of what an operation makes of every element, without further arguments."""
    return tuple(args[0].shape) if len(args) == 1 and _are_numbers(*args) else None


def broadcast(args: tuple[Any, ...]) -> Shape | None:
    """The shape of an operation's result on two tensors, the smaller of which is repeated."""
    if len(args) != 2 or not _are_numbers(*args):
        return None
    ndim = max(x.dim() for x in args)
    a, b = ((1,) * (ndim - x.dim()) + tuple(x.shape) for x in args)
    fit = all(m == n or 1 in (m, n) for m, n in zip(a, b, strict=True))
    return tuple(map(max, a, b)) if fit else None


def linear(args: tuple[Any, ...]) -> Shape | None:
    """The shape of a fully connected layer's result."""
    if not 2 <= len(args) <= 3:
        return None
    x, weight, bias = (*args, None)[:3]
    if not _are_numbers(x, weight) or not _is_bias(bias, weight):
        return None
    fit = weight.dim() == 2 and x.dim() > 1 and x.shape[-1] == weight.shape[1]
    return (*x.shape[:-1], weight.shape[0]) if fit else None


def convolution(spatial: int) -> ShapeRule:
    """The rule of convolutions over as many dimensions."""

    def rule(args: tuple[Any, ...]) -> Shape | None:
        if not 2 <= len(args) <= 7:
            return None
        ones = (1,) * spatial
        defaults: tuple[Any, ...] = (None, ones, (0,) * spatial, ones, 1)
        x, weight, bias, stride, padding, dilation, groups = (*args, *defaults[len(args) - 2 :])
        if not _are_numbers(x, weight) or not _is_bias(bias, weight):
            return None
        if not _are_integers(spatial, 1, stride, dilation) or not _are_integers(spatial, 0, padding):
            return None
        if not _are_integers(1, 1, (groups,)) or not x.dim() == weight.dim() == spatial + 2:
            return None
        if x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
            return None
        reach = tuple(step * (size - 1) + 1 for step, size in zip(dilation, weight.shape[2:], strict=True))
        return _windows((x.shape[0], weight.shape[0]), x.shape[2:], reach, stride, padding)

    return rule


def transposed_convolution(spatial: int) -> ShapeRule:
    """The rule of transposed convolutions over as many dimensions."""

    def rule(args: tuple[Any, ...]) -> Shape | None:
        if not 2 <= len(args) <= 8:
            return None
        ones, zeros = (1,) * spatial, (0,) * spatial
        defaults: tuple[Any, ...] = (None, ones, zeros, zeros, 1, ones)
        x, weight, bias, stride, padding, more, groups, dilation = (*args, *defaults[len(args) - 2 :])
        if not _are_numbers(x, weight) or not x.dim() == weight.dim() == spatial + 2:
            return None
        if not _are_integers(spatial, 1, stride, dilation) or not _are_integers(spatial, 0, padding, more):
            return None
        if not _are_integers(1, 1, (groups,)) or x.shape[1] != weight.shape[0] or weight.shape[0] % groups:
            return None
        outputs = weight.shape[1] * groups
        if bias is not None and not (_are_numbers(bias) and tuple(bias.shape) == (outputs,)):
            return None
        if any(extra >= max(step, apart) for extra, step, apart in zip(more, stride, dilation, strict=True)):
            return None
        sizes = [
            (size - 1) * step - 2 * pad + apart * (window - 1) + extra + 1
            for size, step, pad, apart, window, extra in zip(
                x.shape[2:], stride, padding, dilation, weight.shape[2:], more, strict=True
            )
        ]
        return (x.shape[0], outputs, *sizes) if min(sizes) > 0 else None

    return rule


def max_pool(spatial: int) -> ShapeRule:
    """The rule of maxima in windows over as many dimensions."""
    return _pool(spatial, lambda more: _are_integers(spatial, 1, *more[:1]) and len(more) < 2)


def avg_pool(spatial: int) -> ShapeRule:
    """The rule of means in windows over as many dimensions."""
    return _pool(spatial, _is_plain_average)


def _is_plain_average(more: tuple[Any, ...]) -> bool:
    """Whether no window reaches beyond the edge (``ceil_mode``), and a divisor, where there is one, is a number."""
    divisor = more[2] if len(more) > 2 else 1
    flags = all(type(flag) is bool for flag in more[:2]) and not any(more[:1])
    return flags and len(more) < 4 and type(divisor) is int and 0 < divisor < 1 << 20


def _pool(spatial: int, further: Callable[[tuple[Any, ...]], bool]) -> ShapeRule:
    """The rule of windows, whose arguments behind the padding leave the shape as it is."""

    def rule(args: tuple[Any, ...]) -> Shape | None:
        if len(args) < 2 or not _are_numbers(args[0]) or args[0].dim() != spatial + 2:
            return None
        x, kernel = args[:2]
        stride = args[2] if len(args) > 2 and args[2] != [] else kernel
        padding = args[3] if len(args) > 3 else (0,) * spatial
        if not _are_integers(spatial, 1, kernel, stride) or not _are_integers(spatial, 0, padding):
            return None
        if any(2 * pad > window for pad, window in zip(padding, kernel, strict=True)) or not further(args[4:]):
            return None
        return _windows(x.shape[:2], x.shape[2:], kernel, stride, padding)

    return rule


def adaptive_pool(spatial: int) -> ShapeRule:
    """The rule of pools into as many windows as are asked for."""

    def rule(args: tuple[Any, ...]) -> Shape | None:
        if len(args) != 2 or not _are_numbers(args[0]) or not _are_integers(spatial, 1, args[1]):
            return None
        return (*args[0].shape[:2], *args[1]) if args[0].dim() == spatial + 2 else None

    return rule


def batch_norm(args: tuple[Any, ...]) -> Shape | None:
    """The shape of a normalisation with statistics that were kept."""
    if len(args) != 9 or not _are_numbers(args[0], *args[3:5]) or args[5] is not False or args[0].dim() < 2:
        return None
    own = [x for x in args[1:5] if x is not None]
    fit = _are_numbers(*own) and all(tuple(x.shape) == (args[0].shape[1],) for x in own)
    options = all(type(number) is float for number in args[6:8]) and type(args[8]) is bool
    return tuple(args[0].shape) if fit and options else None


def layer_norm(args: tuple[Any, ...]) -> Shape | None:
    """The shape of a normalisation over the last dimensions, with a gain and a shift or without."""
    if not 2 <= len(args) <= 6 or not _are_numbers(args[0]) or not isinstance(args[1], list | tuple) or not args[1]:
        return None
    x, sizes = args[0], tuple(args[1])
    own = [tensor for tensor in args[2:4] if tensor is not None]
    if not _are_integers(len(sizes), 1, sizes) or not _are_numbers(*own):
        return None
    fit = all(tuple(shape) == sizes for shape in (x.shape[-len(sizes) :], *(tensor.shape for tensor in own)))
    options = all(type(number) is float for number in args[4:5]) and all(type(flag) is bool for flag in args[5:])
    return tuple(x.shape) if fit and options else None


def along_one(args: tuple[Any, ...]) -> Shape | None:
    """The shape of a result that keeps every size, such as that of softmax along a dimension."""
    fits = len(args) == 2 and _are_numbers(args[0]) and args[0].dim() and _is_dimension(args[1], args[0])
    return tuple(args[0].shape) if fits else None


def attention(args: tuple[Any, ...]) -> Shape | None:
    """The shape of attention without a mask: every query gets the features of the values."""
    if len(args) < 3 or args[3:] not in ((), (None,)) or not _are_numbers(*args[:3]):
        return None
    query, key, value = args[:3]
    shapes = [tuple(x.shape) for x in (query, key, value)]
    if len({shape[:-2] for shape in shapes}) != 1 or min(map(len, shapes)) < 2 or len(shapes[0]) != 4:
        return None
    if key.shape[-1] != query.shape[-1] or key.shape[-2] != value.shape[-2]:
        return None
    return (*query.shape[:-1], value.shape[-1])


def reduction(args: tuple[Any, ...]) -> Shape | None:
    """The shape of sums, means or maxima over dimensions."""
    if not 2 <= len(args) <= 3 or not _are_numbers(args[0]) or not isinstance(args[1], list | tuple) or not args[1]:
        return None
    x, axes = args[:2]
    if not all(_is_dimension(axis, x) for axis in axes) or args[2:] not in ((), (False,), (True,)):
        return None
    gone = {axis % x.dim() for axis in axes}
    if len(gone) != len(axes):
        return None
    return tuple(1 if i in gone else n for i, n in enumerate(x.shape) if i not in gone or args[2:] == (True,))


def cat(args: tuple[Any, ...]) -> Shape | None:
    """The shape of tensors one behind the other along a dimension."""
    if not 1 <= len(args) <= 2 or not isinstance(args[0], list | tuple) or not args[0] or not _are_numbers(*args[0]):
        return None
    parts, dim = (*args, 0)[:2]
    first = parts[0]
    if not first.dim() or not _is_dimension(dim, first) or any(part.dim() != first.dim() for part in parts):
        return None
    dim %= first.dim()
    if len({(*part.shape[:dim], *part.shape[dim + 1 :]) for part in parts}) != 1:
        return None
    return (*first.shape[:dim], sum(part.shape[dim] for part in parts), *first.shape[dim + 1 :])


def reshape(args: tuple[Any, ...]) -> Shape | None:
    """The shape that numbers are given, one size of which may be left open as −1."""
    if len(args) != 2 or not _are_numbers(args[0]) or not isinstance(args[1], list | tuple):
        return None
    return _filled(args[1], args[0].numel())


def unflatten(args: tuple[Any, ...]) -> Shape | None:
    """The shape where one dimension becomes several."""
    if len(args) != 3 or not _are_numbers(args[0]) or not args[0].dim() or not _is_dimension(args[1], args[0]):
        return None
    x, dim = args[0], args[1] % args[0].dim()
    sizes = _filled(args[2], x.shape[dim]) if isinstance(args[2], list | tuple) and args[2] else None
    return None if sizes is None else (*x.shape[:dim], *sizes, *x.shape[dim + 1 :])


def transpose(args: tuple[Any, ...]) -> Shape | None:
    """The shape where two dimensions change places."""
    if len(args) != 3 or not _are_numbers(args[0]) or not all(_is_dimension(dim, args[0]) for dim in args[1:]):
        return None
    sizes = list(args[0].shape)
    sizes[args[1]], sizes[args[2]] = sizes[args[2]], sizes[args[1]]
    return tuple(sizes)


def permute(args: tuple[Any, ...]) -> Shape | None:
    """The shape with all dimensions in another order."""
    if len(args) != 2 or not _are_numbers(args[0]) or not isinstance(args[1], list | tuple):
        return None
    x, order = args
    if not all(_is_dimension(dim, x) for dim in order) or len({dim % x.dim() for dim in order}) != x.dim():
        return None
    return tuple(x.shape[dim] for dim in order) if len(order) == x.dim() else None


def t(args: tuple[Any, ...]) -> Shape | None:
    """The shape of a transposed matrix."""
    return tuple(args[0].shape[::-1]) if len(args) == 1 and _are_numbers(*args) and args[0].dim() == 2 else None


def squeeze(args: tuple[Any, ...]) -> Shape | None:
    """The shape without dimensions of size 1."""
    if len(args) != 2 or not _are_numbers(args[0]):
        return None
    x, dims = args[0], args[1] if isinstance(args[1], list | tuple) else [args[1]]
    if not dims or not all(_is_dimension(dim, x) for dim in dims):
        return None
    gone = {dim % x.dim() for dim in dims}
    if len(gone) != len(dims):
        return None
    return tuple(size for axis, size in enumerate(x.shape) if axis not in gone or size != 1)


def unsqueeze(args: tuple[Any, ...]) -> Shape | None:
    """The shape with a new dimension of size 1."""
    if len(args) != 2 or not _are_numbers(args[0]):
        return None
    x, dim = args
    if type(dim) is not int or not -x.dim() - 1 <= dim <= x.dim():
        return None
    dim %= x.dim() + 1
    return (*x.shape[:dim], 1, *x.shape[dim:])


def select(args: tuple[Any, ...]) -> Shape | None:
    """The shape of one entry of a dimension."""
    if len(args) != 3 or not _are_numbers(args[0]) or not _is_dimension(args[1], args[0]):
        return None
    x, dim, entry = args
    if type(entry) is not int or not -x.shape[dim] <= entry < x.shape[dim]:
        return None
    return tuple(size for axis, size in enumerate(x.shape) if axis != dim % x.dim())


def slice_(args: tuple[Any, ...]) -> Shape | None:
    """The shape of a part of a dimension."""
    if len(args) != 4 or not _are_numbers(args[0]) or not _is_dimension(args[1], args[0]):
        return None
    x, dim, start, end = args
    if not all(bound is None or type(bound) is int for bound in (start, end)):
        return None
    return (*x.shape[: dim % x.dim()], len(range(x.shape[dim])[start:end]), *x.shape[dim % x.dim() + 1 :])


def matmul(args: tuple[Any, ...]) -> Shape | None:
    """The shape of products of matrices, as many on one side as on the other."""
    if len(args) != 2 or not _are_numbers(*args) or min(x.dim() for x in args) < 2:
        return None
    a, b = (tuple(x.shape) for x in args)
    return (*a[:-1], b[-1]) if a[:-2] == b[:-2] and a[-1] == b[-2] else None


def bmm(args: tuple[Any, ...]) -> Shape | None:
    """The shape of products of the matrices in two stacks."""
    return matmul(args) if all(isinstance(x, Tensor) and x.dim() == 3 for x in args) else None


def flatten(args: tuple[Any, ...]) -> Shape | None:
    """The shape where several dimensions become one."""
    if not 1 <= len(args) <= 3 or not _are_numbers(args[0]) or not args[0].dim():
        return None
    defaults: tuple[Any, ...] = (0, -1)
    x, first, last = (*args, *defaults[len(args) - 1 :])
    if not _is_dimension(first, x) or not _is_dimension(last, x):
        return None
    first, last = first % x.dim(), last % x.dim()
    return (*x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :]) if first <= last else None


def index_select(args: tuple[Any, ...]) -> Shape | None:
    """The shape of a selection of a dimension's entries."""
    if len(args) != 3 or not _are_numbers(args[0]) or not _is_dimension(args[1], args[0]):
        return None
    x, dim, index = args
    if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.dim() != 1:
        return None
    return (*x.shape[: dim % x.dim()], len(index), *x.shape[dim % x.dim() + 1 :])


def _windows(leading: Any, sizes: Any, reach: Any, stride: Any, padding: Any) -> Shape | None:
    """The shape where windows of this reach are moved over the last dimensions; None where one does not fit."""
    rooms = [size + 2 * pad - window for size, window, pad in zip(sizes, reach, padding, strict=True)]
    if min(rooms) < 0:
        return None
    return (*leading, *(room // step + 1 for room, step in zip(rooms, stride, strict=True)))


def _filled(sizes: Any, numel: int) -> Shape | None:
    """Sizes with the one that is −1 made such that they hold so many numbers."""
    if not all(type(size) is int and (size == -1 or 0 < size < 1 << 24) for size in sizes):
        return None
    known = math.prod(size for size in sizes if size != -1)
    if list(sizes).count(-1) > 1 or numel % known or (-1 not in sizes and known != numel):
        return None
    return tuple(numel // known if size == -1 else size for size in sizes)


def _are_numbers(*tensors: Any) -> bool:
    """Whether these are tensors of float32, none of them empty."""
    return all(isinstance(x, Tensor) and x.dtype == torch.float32 and x.numel() for x in tensors)


def _is_bias(bias: Any, weight: Tensor) -> bool:
    return bias is None or (_are_numbers(bias) and tuple(bias.shape) == (weight.shape[0],))


def _are_integers(count: int, least: int, *lists: Any) -> bool:
    """Whether each is a list of as many integers, none of them below the least, and none so large as to overflow."""
    return all(
        isinstance(numbers, list | tuple)
        and len(numbers) == count
        and all(type(number) is int and least <= number < 1 << 24 for number in numbers)
        for numbers in lists
    )


def _is_dimension(dim: Any, x: Tensor) -> bool:
    return type(dim) is int and -x.dim() <= dim < x.dim()
