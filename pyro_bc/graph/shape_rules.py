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

#: from the arguments of an operation, in which tensors are without storage.
ShapeRule = Callable[[tuple[Any, ...]], Shape | None]


def unchanged(args: tuple[Any, ...]) -> Shape | None:
    """Of an operation on every element, without further arguments."""
    return tuple(args[0].shape) if len(args) == 1 and _are_numbers(*args) else None


def broadcast(args: tuple[Any, ...]) -> Shape | None:
    """Of an operation on two tensors, the smaller of which is repeated."""
    if len(args) != 2 or not _are_numbers(*args):
        return None
    ndim = max(x.dim() for x in args)
    a, b = ((1,) * (ndim - x.dim()) + tuple(x.shape) for x in args)
    fit = all(m == n or 1 in (m, n) for m, n in zip(a, b, strict=True))
    return tuple(map(max, a, b)) if fit else None


def linear(args: tuple[Any, ...]) -> Shape | None:
    """Of a fully connected layer."""
    if not 2 <= len(args) <= 3:
        return None
    x, weight, bias = (*args, None)[:3]
    if not _are_numbers(x, weight) or not _is_bias(bias, weight):
        return None
    fit = weight.dim() == 2 and x.dim() > 1 and x.shape[-1] == weight.shape[1]
    return (*x.shape[:-1], weight.shape[0]) if fit else None


def convolution(spatial: int) -> ShapeRule:
    """Of a convolution over as many dimensions."""

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


def max_pool2d(args: tuple[Any, ...]) -> Shape | None:
    """Of the maxima of windows without padding."""
    if not 2 <= len(args) <= 3 or not _are_numbers(args[0]) or args[0].dim() != 4:
        return None
    x, kernel = args[:2]
    stride = args[2] if len(args) > 2 and args[2] != [] else kernel
    return _windows(x.shape[:2], x.shape[2:], kernel, stride, (0, 0)) if _are_integers(2, 1, kernel, stride) else None


def flatten(args: tuple[Any, ...]) -> Shape | None:
    """Of dimensions that become one."""
    if not 1 <= len(args) <= 3 or not _are_numbers(args[0]) or not args[0].dim():
        return None
    defaults: tuple[Any, ...] = (0, -1)
    x, first, last = (*args, *defaults[len(args) - 1 :])
    if not _is_dimension(first, x) or not _is_dimension(last, x):
        return None
    first, last = first % x.dim(), last % x.dim()
    return (*x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :]) if first <= last else None


def index_select(args: tuple[Any, ...]) -> Shape | None:
    """Of a selection of the entries of a dimension."""
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
