"""Results of operations that look entries up, write into some, or make numbers; and integers of sizes."""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .forms import (
    NUMBER,
    SLOW,
    Form,
    Given,
    Made,
    Misfit,
    Rule,
    Shape,
    axis_of,
    broadcast,
    fits,
    joint,
    told,
    with_size,
    without,
    written,
)

# Of a number that is looked up.
_INDEX = 2 * NUMBER


def within(index: Form, size: int, least: int = 0) -> None:
    """Look whether integers that are known are entries of a dimension; :raises Misfit: where one is not."""
    fits(index.dtype in (torch.int64, torch.int32), "indices are integers")
    if index.bounds is not None and index.numbers:
        wrong = index.bounds[0] if index.bounds[0] < least else index.bounds[1]
        fits(least <= wrong < size, f"it reads entry {wrong:,} of {size:,}")


def _index_select(given: Given) -> Made:
    x, index = given["self"], given["index"]
    axis = axis_of(given["dim"], x.ndim)
    fits(index.ndim < 2, "entries are selected by a vector")
    within(index, x.shape[axis] if x.ndim else 1)
    shape = with_size(x.shape, axis, index.numbers) if x.ndim else ()
    return written(shape, x.dtype, NUMBER * math.prod(shape))


def rows_of(table: Form, index: Form) -> Made:
    """Entries of a table's first dimension."""
    fits(table.ndim == 2, "a table has two dimensions")
    within(index, table.shape[0])
    return written((*index.shape, table.shape[1]), table.dtype, _INDEX * index.numbers)


def _indexed(x: Form, indices: Sequence[Form | None]) -> Shape:
    """The shape of entries at several indices, which are together in one place, or else come first."""
    used = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    fits(bool(used) and len(indices) <= x.ndim, f"{len(indices)} indices are too many, or none")
    for axis, index in used:
        within(index, x.shape[axis], -x.shape[axis])
    axes = [axis for axis, _ in used]
    shape = broadcast(*(index.shape for _, index in used))
    together = axes == list(range(axes[0], axes[-1] + 1))
    place = axes[0] if together else 0
    rest = without(x.shape, axes, False)
    return (*rest[:place], *shape, *rest[place:])


def _index(given: Given) -> Made:
    shape = _indexed(given["self"], given["indices"])
    return written(shape, given["self"].dtype, _INDEX * len(given["indices"]) * math.prod(shape))


def _index_put(given: Given) -> Made:
    x, shape = given["self"], _indexed(given["self"], given["indices"])
    fits(given["values"].dtype == x.dtype, "what is written is of another type")
    fits(broadcast(shape, given["values"].shape) == shape, f"{told(given['values'].shape)} does not fit {told(shape)}")
    return written(x.shape, x.dtype, _INDEX * len(given["indices"]) * math.prod(shape))


def _at_least_one(form: Form) -> Shape:
    return form.shape or (1,)


def _gather(given: Given) -> Made:
    x, index = given["self"], given["index"]
    axis, own, where = axis_of(given["dim"], x.ndim), _at_least_one(x), _at_least_one(index)
    within(index, own[axis])
    if index.numbers:
        fits(len(own) == len(where), f"an index of {index.ndim} dimensions does not fit {x.ndim}")
        fits(all(i == axis or a >= b for i, (a, b) in enumerate(zip(own, where, strict=True))), "an index is too large")
    return written(index.shape, x.dtype, _INDEX * index.numbers)


def _scatter(given: Given) -> Made:
    x, index, source = given["self"], given["index"], given.get("src")
    axis, own, where = axis_of(given["dim"], x.ndim), _at_least_one(x), _at_least_one(index)
    within(index, own[axis])
    if index.numbers:
        fits(len(own) == len(where), f"an index of {index.ndim} dimensions does not fit {x.ndim}")
        fits(all(i == axis or a >= b for i, (a, b) in enumerate(zip(own, where, strict=True))), "an index is too large")
        if source is not None:
            fits(source.dtype == x.dtype, "what is written is of another type")
            from_ = _at_least_one(source)
            fits(
                len(from_) == len(where) and all(a >= b for a, b in zip(from_, where, strict=True)),
                "there is too little to write",
            )
    return written(x.shape, x.dtype, _INDEX * index.numbers)


def _index_write(given: Given) -> Made:
    """Entries of one dimension that others take the place of, or are added to."""
    x, index = given["self"], given["index"]
    axis = axis_of(given["dim"], x.ndim)
    size = x.shape[axis] if x.ndim else 1
    within(index, size)
    fits(index.ndim < 2, "entries are told by a vector")
    work = _INDEX * max(1, index.numbers) * max(1, x.numbers // max(1, size))
    if "source" in given:
        source = given["source"]
        fits(source.dtype == x.dtype and source.ndim == x.ndim, "what is written does not fit")
        expected = with_size(x.shape, axis, index.numbers) if x.ndim else ()
        fits(source.shape == expected, f"{told(source.shape)} is written where {told(expected)} belongs")
    return written(x.shape, x.dtype, work)


def _take_along(given: Given) -> Made:
    x, index = given["self"], given["indices"]
    if given["dim"] is None:
        within(index, x.numbers)
        return written((index.numbers,), x.dtype, _INDEX * index.numbers)
    axis = axis_of(given["dim"], x.ndim)
    fits(x.ndim == index.ndim and x.ndim > 0, f"an index of {index.ndim} dimensions does not fit {x.ndim}")
    within(index, x.shape[axis])
    rest = broadcast(with_size(x.shape, axis, 1), with_size(index.shape, axis, 1))
    shape = with_size(rest, axis, index.shape[axis])
    return written(shape, x.dtype, _INDEX * math.prod(shape), 8 * math.prod(shape))


def _places(given: Given, sorted_ones: Form, x: Form) -> Made:
    own = given["sorter"] if given.get("sorter") is not None else None
    fits(sorted_ones.ndim == 1 or sorted_ones.shape[:-1] == x.shape[:-1], "what is searched does not fit")
    fits(sorted_ones.ndim > 0 and (own is None or own.shape == sorted_ones.shape), "what is searched does not fit")
    steps = max(1, sorted_ones.shape[-1]).bit_length()
    memory = 2 * (sorted_ones.bytes + x.bytes)
    return written(x.shape, torch.int32 if given["out_int32"] else torch.int64, SLOW * steps * x.numbers, memory)


def _is_in(given: Given) -> Made:
    x, others = given["elements"], given["test_elements"]
    # One by one where there are few, else sorted.
    steps = min(others.numbers, 256) + (others.numbers + x.numbers).bit_length()
    memory = 16 * 4 * (x.numbers + others.numbers)
    return written(x.shape, torch.bool, SLOW * steps * (x.numbers + others.numbers), memory)


def _length(given: Given) -> Made:
    x = given["self"]
    fits(x.ndim > 0, "a single number has no size")
    return Made(x.shape[axis_of(given["dim"], x.ndim)])


def _of_integers(compute: Callable[[int, int], int]) -> Rule:
    def rule(given: Given) -> Made:
        try:
            result = compute(given["a"], given["b"])
        except ZeroDivisionError:
            raise Misfit("it divides by zero") from None
        fits(abs(result) <= 1 << 62, "it comes to more than is allowed")
        return Made(result)

    return rule


def _to(given: Given) -> Made:
    x, other = given["self"], given.get("other")
    dtype = other.dtype if other is not None else given["dtype"] or x.dtype
    return Made(Form(x.shape, dtype, x.bounds if dtype == torch.int64 else None), shares=True)


def _created(sizes: Sequence[int], dtype: torch.dtype | None, of: Any = 0.0) -> Made:
    fits(min(sizes, default=0) >= 0, f"{told(sizes)} is no shape")
    return written(sizes, joint(of) if dtype is None else dtype)


def _zeros(given: Given) -> Made:
    return _created(given["size"], given["dtype"])


def _full(given: Given) -> Made:
    return _created(given["size"], given["dtype"], given["fill_value"])


def _range(given: Given) -> Made:
    start, end, step = given.get("start", 0), given["end"], given.get("step", 1)
    known = all(isinstance(number, int) or math.isfinite(number) for number in (start, end, step))
    fits(known and step != 0 and (end - start) * step >= 0, "a range goes from its start to its end")
    if any(isinstance(number, float) for number in (start, end, step)):
        ratio = (end - start) / step
        fits(abs(ratio) < 1 << 62, "a range is too long")
        count, dtype = math.ceil(ratio), torch.get_default_dtype()
    else:
        count, dtype = -(-(end - start) // step), torch.int64
    return written((count,), given["dtype"] or dtype)


def _identity(given: Given) -> Made:
    return _created((given["n"], given.get("m", given["n"])), given["dtype"])


def _scalar(given: Given) -> Made:
    return _created((), given["dtype"])


def _like(given: Given) -> Made:
    return _created(given.get("size", given["self"].shape), given["dtype"] or given["self"].dtype)


def _embedding(given: Given) -> Made:
    return rows_of(given["weight"], given["indices"])


def _lookup(given: Given) -> Made:
    fits(given["bias"] is None, "a table adds nothing")
    return rows_of(given["weight"], given["index"])


def _getitem(given: Given) -> Made:
    pieces, index = given["pieces"], given["index"]
    fits(-len(pieces) <= index < len(pieces), f"it reads piece {index:,} of {len(pieces):,}")
    return Made(pieces[index], shares=True, is_view=True)


RULES: dict[str, Rule] = {
    "index_select": _index_select,
    "embedding": _embedding,
    "lookup": _lookup,
    "index.Tensor": _index,
    "index_put": _index_put,
    "gather": _gather,
    "take_along_dim": _take_along,
    **dict.fromkeys(("scatter.src", "scatter.value", "scatter_add"), _scatter),
    **dict.fromkeys(("index_add", "index_copy", "index_fill.int_Scalar"), _index_write),
    "bucketize.Tensor": lambda given: _places(given, given["boundaries"], given["self"]),
    "searchsorted.Tensor": lambda given: _places(given, given["sorted_sequence"], given["self"]),
    "isin.Tensor_Tensor": _is_in,
    "getitem": _getitem,
    "size": _length,
    "int_add": _of_integers(operator.add),
    "int_sub": _of_integers(operator.sub),
    "int_mul": _of_integers(operator.mul),
    "int_floordiv": _of_integers(operator.floordiv),
    "int_mod": _of_integers(operator.mod),
    "int_max": _of_integers(max),
    "int_min": _of_integers(min),
    "to": _to,
    "zeros": _zeros,
    "ones": _zeros,
    "full": _full,
    **dict.fromkeys(("arange", "arange.start", "arange.start_step"), _range),
    "eye": _identity,
    "eye.m": _identity,
    "scalar_tensor": _scalar,
    **dict.fromkeys(("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"), _like),
}
