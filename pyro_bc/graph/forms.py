"""What a result is before it is computed: its shape, its type, and what it takes to compute it.

All sizes are Python's integers, which nothing overflows, and a type is what torch makes of the types of what an
operation reads. Nothing here calls torch on a tensor.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

Shape = tuple[int, ...]


class Misfit(Exception):
    """Why arguments do not fit together; one line."""


@dataclass(frozen=True, slots=True)
class Form:
    """A tensor without its numbers.

    :param bounds: least and largest of its integers, where they are known before anything runs.
    """

    shape: Shape
    dtype: torch.dtype = torch.float32
    bounds: tuple[int, int] | None = None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def numbers(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes that its numbers take where each has a place of its own."""
        return self.numbers * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Made:
    """What an operation makes, and what that takes.

    :param result: one tensor, several, or an integer.
    :param work: in units of a multiplication of float32 numbers within a product of matrices, beside what it takes to
        write the results.
    :param memory: bytes that are needed while it computes, beside what it reads and makes.
    :param shares: whether the results' numbers are, or may be, those of the first argument: that stays where it is as
        long as they do.
    :param is_view: whether they surely are, so that they take no memory of their own.
    """

    result: Form | tuple[Form, ...] | int
    work: int = 0
    memory: int = 0
    shares: bool = False
    is_view: bool = False


#: Arguments of an operation by their names, defaults included, every tensor as a :class:`Form`.
Given = Mapping[str, Any]

#: What tells a result from them; :raises Misfit: where they do not fit together.
Rule = Callable[[Given], Made]

#: units of work: of a number that is read or written by one operation, and of one by a slow function.
NUMBER, SLOW = 32, 256

_KIND = {torch.bool: 0, **dict.fromkeys((torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64), 1)}


def is_whole(dtype: torch.dtype) -> bool:
    """Whether numbers of a type are integers or truth values."""
    return dtype in _KIND


def real_of(dtype: torch.dtype) -> torch.dtype:
    """The type of a complex type's parts; others as they are."""
    return dtype.to_real() if dtype.is_complex else dtype


def floating(dtype: torch.dtype) -> torch.dtype:
    """The type of what a function such as a root makes of numbers of a type."""
    return torch.get_default_dtype() if dtype in _KIND else dtype


def summed(dtype: torch.dtype) -> torch.dtype:
    """The type of a sum of numbers of a type."""
    return torch.int64 if dtype in _KIND else dtype


def joint(*values: Form | bool | int | float) -> torch.dtype:
    """The type of an operation on several tensors and numbers: of torch's rules of promotion.

    A tensor of no dimensions counts only where those of some are of a lower kind, a number only where both are.
    """
    found: list[torch.dtype | None] = [None, None, None]
    for value in values:
        if isinstance(value, Form):
            rank, dtype = 0 if value.shape else 1, value.dtype
        else:
            own = {bool: torch.bool, int: torch.int64}
            rank, dtype = 2, own.get(type(value), torch.get_default_dtype())
        known = found[rank]
        found[rank] = dtype if known is None else torch.promote_types(known, dtype)
    result = _ranked(found[0], _ranked(found[1], found[2]))
    assert result is not None
    return result


def _ranked(higher: torch.dtype | None, lower: torch.dtype | None) -> torch.dtype | None:
    if higher is None or lower is None:
        return higher or lower
    kinds = [3 if dtype.is_complex else _KIND.get(dtype, 2) for dtype in (higher, lower)]
    if kinds[0] == 2 and kinds[1] == 3:
        return higher.to_complex()
    return torch.promote_types(higher, lower) if kinds[1] > kinds[0] else higher


def broadcast(*shapes: Shape) -> Shape:
    """The shape in which several are repeated to fit each other; :raises Misfit: where they do not."""
    ndim = max(map(len, shapes))
    result = [1] * ndim
    for shape in shapes:
        for axis, size in enumerate(shape, ndim - len(shape)):
            if size != 1:
                if result[axis] not in (1, size):
                    raise Misfit(f"sizes {', '.join(map(told, shapes))} do not fit together")
                result[axis] = size
    return tuple(result)


def told(shape: Sequence[int]) -> str:
    """A shape in a message."""
    return "×".join(map(str, shape)) or "()"


def axis_of(dim: int, ndim: int) -> int:
    """A dimension counted from the first; a tensor of none counts as one of one."""
    ndim = max(1, ndim)
    if not -ndim <= dim < ndim:
        raise Misfit(f"there is no dimension {dim} among {ndim}")
    return dim % ndim


def axes_of(dims: Any, ndim: int, empty_is_all: bool = True) -> list[int]:
    """Several dimensions, each once; all where none is named."""
    several = () if dims is None else (dims,) if isinstance(dims, int) else dims
    if dims is None or (not several and empty_is_all):
        return list(range(ndim))
    found = [axis_of(dim, ndim) for dim in several]
    if len(set(found)) != len(found):
        raise Misfit("a dimension is named twice")
    return found if ndim else []


def without(shape: Shape, axes: Sequence[int], keep: bool) -> Shape:
    """A shape without some dimensions, or with 1 in their place."""
    return tuple(1 if axis in axes else size for axis, size in enumerate(shape) if keep or axis not in axes)


def with_size(shape: Shape, axis: int, *sizes: int) -> Shape:
    """A shape with other sizes in the place of one."""
    return (*shape[:axis], *sizes, *shape[axis + 1 :])


def several(value: Any, count: int) -> tuple[int, ...]:
    """As many integers; one stands for all."""
    numbers = tuple(value) if isinstance(value, list | tuple) else (value,)
    numbers = numbers * count if len(numbers) == 1 else numbers
    if len(numbers) != count:
        raise Misfit(f"{len(numbers)} numbers stand where {count} belong")
    return numbers


def same_type(*forms: Form | None) -> torch.dtype:
    """The one type that all have."""
    types = {form.dtype for form in forms if form is not None}
    if len(types) > 1:
        raise Misfit(f"types {', '.join(sorted(name_of(dtype) for dtype in types))} meet where one is needed")
    return types.pop()


def name_of(dtype: torch.dtype) -> str:
    """A type's name."""
    return str(dtype).removeprefix("torch.")


def fits(what: bool, message: str) -> None:
    """:raises Misfit: where it is not so."""
    if not what:
        raise Misfit(message)


def written(shape: Sequence[int], dtype: torch.dtype, work: int = 0, memory: int = 0) -> Made:
    """A result whose every number is written."""
    return Made(Form(tuple(shape), dtype), work, memory)


def view(form: Form, shape: Sequence[int]) -> Made:
    """A result that shows numbers of the first argument, without a place of its own."""
    return Made(replace(form, shape=tuple(shape)), shares=True, is_view=True)


def perhaps_view(form: Form, shape: Sequence[int]) -> Made:
    """A result that is a view where the numbers lie so, and is written where they do not."""
    return Made(replace(form, shape=tuple(shape)), shares=True)
