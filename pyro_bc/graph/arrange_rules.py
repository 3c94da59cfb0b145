"""Results of operations that arrange numbers anew: views, repetitions, joins and pieces."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from .forms import (
    SLOW,
    Form,
    Given,
    Made,
    Rule,
    Shape,
    axes_of,
    axis_of,
    broadcast,
    fits,
    joint,
    perhaps_view,
    real_of,
    same_type,
    several,
    told,
    view,
    with_size,
    without,
    written,
)


def filled(sizes: Sequence[int], numbers: int) -> Shape:
    """Sizes with the one that is −1 made such that they hold so many numbers; :raises Misfit: where they cannot."""
    known = math.prod(size for size in sizes if size != -1)
    open_ones = list(sizes).count(-1)
    fits(open_ones < 2 and all(size >= -1 for size in sizes), f"{told(sizes)} is no shape")
    if open_ones:
        fits(known > 0 and numbers % known == 0, f"{numbers:,} numbers are not of shape {told(sizes)}")
        return tuple(numbers // known if size == -1 else size for size in sizes)
    fits(known == numbers, f"{numbers:,} numbers are not of shape {told(sizes)}")
    return tuple(sizes)


def _reshape(given: Given) -> Made:
    return perhaps_view(given["self"], filled(given["shape"], given["self"].numbers))


def _flatten(given: Given) -> Made:
    x = given["self"]
    first, last = axis_of(given["start_dim"], x.ndim), axis_of(given["end_dim"], x.ndim)
    fits(first <= last, "a flattening ends before it starts")
    return perhaps_view(x, (*x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :]))


def _unflatten(given: Given) -> Made:
    x = given["self"]
    axis = axis_of(given["dim"], x.ndim)
    fits(x.ndim > 0 and len(given["sizes"]) > 0, "no dimension becomes several")
    return perhaps_view(x, with_size(x.shape, axis, *filled(given["sizes"], x.shape[axis])))


def _transpose(given: Given) -> Made:
    x = given["self"]
    a, b = axis_of(given["dim0"], x.ndim), axis_of(given["dim1"], x.ndim)
    sizes = list(x.shape)
    if sizes:
        sizes[a], sizes[b] = sizes[b], sizes[a]
    return view(x, sizes)


def _permute(given: Given) -> Made:
    x = given["self"]
    axes = axes_of(given["dims"], x.ndim, empty_is_all=False)
    fits(len(given["dims"]) == x.ndim, f"{len(given['dims'])} dimensions are named of {x.ndim}")
    return view(x, [x.shape[axis] for axis in axes])


def _t(given: Given) -> Made:
    fits(given["self"].ndim <= 2, "only a matrix is transposed without saying how")
    return view(given["self"], given["self"].shape[::-1])


def _squeeze(given: Given) -> Made:
    x = given["self"]
    axes = axes_of(given["dim"], x.ndim, empty_is_all=False) if "dim" in given else range(x.ndim)
    return view(x, [size for axis, size in enumerate(x.shape) if axis not in axes or size != 1])


def _unsqueeze(given: Given) -> Made:
    x = given["self"]
    axis = axis_of(given["dim"], x.ndim + 1)
    return view(x, (*x.shape[:axis], 1, *x.shape[axis:]))


def _select(given: Given) -> Made:
    x, index = given["self"], given["index"]
    axis = axis_of(given["dim"], x.ndim)
    fits(x.ndim > 0, "a single number has no entries")
    fits(-x.shape[axis] <= index < x.shape[axis], f"it reads entry {index:,} of {x.shape[axis]:,}")
    return view(x, without(x.shape, [axis], False))


def _sliced(given: Given) -> tuple[int, Shape]:
    x = given["self"]
    axis = axis_of(given["dim"], x.ndim)
    fits(x.ndim > 0, "a single number has no parts")
    size = len(range(x.shape[axis])[given["start"] : given["end"] : given["step"]])
    return axis, with_size(x.shape, axis, size)


def _slice(given: Given) -> Made:
    return view(given["self"], _sliced(given)[1])


def _expand(given: Given) -> Made:
    x, sizes = given["self"], given["size"]
    new = len(sizes) - x.ndim
    fits(new >= 0, f"{told(x.shape)} is not repeated to fewer dimensions")
    result = [*sizes[:new], *(own if size == -1 else size for own, size in zip(x.shape, sizes[new:], strict=True))]
    fits(min(result, default=0) >= 0, f"{told(sizes)} is no shape")
    fits(
        all(own in (1, size) for own, size in zip(x.shape, result[new:], strict=True)),
        f"{told(x.shape)} is not repeated to {told(result)}",
    )
    return view(x, result)


def _expand_as(given: Given) -> Made:
    return _expand({"self": given["self"], "size": given["other"].shape})


def _repeat(given: Given) -> Made:
    x, repeats = given["self"], given["repeats"]
    new = len(repeats) - x.ndim
    fits(new >= 0 and min(repeats, default=0) >= 0, f"{told(x.shape)} is not repeated {told(repeats)} times")
    return written([n * size for n, size in zip(repeats, (*[1] * new, *x.shape), strict=True)], x.dtype)


def _tile(given: Given) -> Made:
    missing = max(0, given["self"].ndim - len(given["dims"]))
    return _repeat({"self": given["self"], "repeats": (*[1] * missing, *given["dims"])})


def _repeat_interleave(given: Given) -> Made:
    x, n, dim = given["self"], given["repeats"], given["dim"]
    fits(n >= 0, "nothing is repeated less than never")
    own = (x.numbers,) if dim is None else x.shape or (1,)
    axis = 0 if dim is None else axis_of(dim, x.ndim)
    shape = with_size(own, axis, own[axis] * n)
    fits(given["output_size"] in (None, shape[axis]), f"{shape[axis]} is not the size that it is told to have")
    return written(shape, x.dtype, SLOW * math.prod(shape), 8 * math.prod(shape))


def _same(given: Given) -> Made:
    return written(given["self"].shape, given["self"].dtype)


def _flip(given: Given) -> Made:
    axes_of(given["dims"], given["self"].ndim, empty_is_all=False)
    return _same(given)


def _roll(given: Given) -> Made:
    dims = several(given["dims"], len(given["dims"])) if given["dims"] else ()
    fits(len(given["shifts"]) == (len(dims) or 1), "as many shifts as dimensions are needed")
    for dim in dims:
        axis_of(dim, given["self"].ndim)
    return written(given["self"].shape, given["self"].dtype, 0, len(dims) * given["self"].bytes)


def _rotate(given: Given) -> Made:
    x = given["self"]
    fits(len(given["dims"]) == 2 and x.ndim > 1, "a quarter turn is one in two dimensions")
    a, b = axes_of(given["dims"], x.ndim)
    sizes = list(x.shape)
    if given["k"] % 2:
        sizes[a], sizes[b] = sizes[b], sizes[a]
    return written(sizes, x.dtype, 0, x.bytes)


def _triangle(given: Given) -> Made:
    fits(given["self"].ndim > 1, "a triangle is one of a matrix")
    return _same(given)


def _diagonal_shape(given: Given) -> Shape:
    x = given["self"]
    a, b = axis_of(given["dim1"], x.ndim), axis_of(given["dim2"], x.ndim)
    fits(a != b, "a dimension is named twice")
    rows, columns, offset = x.shape[a], x.shape[b], given["offset"]
    size = max(0, min(rows, columns - offset) if offset >= 0 else min(rows + offset, columns))
    return (*without(x.shape, [a, b], False), size)


def _diagonal(given: Given) -> Made:
    return view(given["self"], _diagonal_shape(given))


def _diagonal_matrix(given: Given) -> Made:
    x = given["self"]
    fits(x.ndim > 0, "a single number is no diagonal")
    ndim, size = x.ndim + 1, x.shape[-1] + abs(given["offset"])
    a, b = axis_of(given["dim1"], ndim), axis_of(given["dim2"], ndim)
    fits(a != b, "a dimension is named twice")
    rest = iter(x.shape[:-1])
    return written([size if axis in (a, b) else next(rest) for axis in range(ndim)], x.dtype)


def _diag(given: Given) -> Made:
    x, offset = given["self"], given["diagonal"]
    fits(x.ndim in (1, 2), "a diagonal is one of a vector or a matrix")
    own = {"self": x, "offset": offset}
    if x.ndim == 1:
        return _diagonal_matrix(own | {"dim1": 0, "dim2": 1})
    return written(_diagonal_shape(own | {"dim1": 0, "dim2": 1}), x.dtype)


def _unfold(given: Given) -> Made:
    x, window, step = given["self"], given["size"], given["step"]
    axis = axis_of(given["dimension"], x.ndim)
    size = x.shape[axis] if x.ndim else 1
    fits(0 <= window <= size, f"a window of {window} is larger than {size}")
    if not x.ndim:
        return view(x, (window,))
    return view(x, (*with_size(x.shape, axis, (size - window) // step + 1), window))


def _shape_of(made: Made) -> Shape:
    assert isinstance(made.result, Form)
    return made.result.shape


def _scattered(part: Callable[[Given], Shape]) -> Rule:
    def rule(given: Given) -> Made:
        fits(part(given) == given["src"].shape, f"{told(given['src'].shape)} is not the shape of what it replaces")
        return _same(given)

    return rule


def _real(given: Given) -> Made:
    return Made(Form(given["self"].shape, real_of(given["self"].dtype)), shares=True, is_view=True)


def _imaginary(given: Given) -> Made:
    fits(given["self"].dtype.is_complex, "only a complex number has an imaginary part")
    return _real(given)


def _as_real(given: Given) -> Made:
    made = _imaginary(given)
    assert isinstance(made.result, Form)
    return replace(made, result=replace(made.result, shape=(*given["self"].shape, 2)))


def _as_complex(given: Given) -> Made:
    x = given["self"]
    fits(x.shape[-1:] == (2,) and x.dtype.is_floating_point, "a complex number is two numbers in the last dimension")
    return Made(Form(x.shape[:-1], x.dtype.to_complex()), shares=True, is_view=True)


def _complex(a: Form, b: Form) -> Made:
    fits(a.dtype == b.dtype and a.dtype.is_floating_point, "a complex number is made of two of one floating type")
    shape = broadcast(a.shape, b.shape)
    return written(shape, a.dtype.to_complex(), SLOW * math.prod(shape))


def _cat(given: Given) -> Made:
    parts = given["tensors"]
    dtype = joint(*parts) if parts else torch.float32
    whole = [part for part in parts if part.shape != (0,)]  # which torch leaves out, whatever the others are
    fits(bool(parts) and all(part.ndim for part in parts), "nothing, or a single number, is joined")
    if not whole:
        return written((0,), dtype)
    axis = axis_of(given["dim"], whole[0].ndim)
    rest = {without(part.shape, [axis], True) for part in whole}
    fits(len(rest) == 1, f"shapes {', '.join(told(part.shape) for part in whole[:4])} do not join")
    return written(with_size(whole[0].shape, axis, sum(part.shape[axis] for part in whole)), dtype)


def _stack(given: Given) -> Made:
    parts = given["tensors"]
    fits(len({part.shape for part in parts}) == 1, "tensors of one shape are stacked")
    axis, shape = axis_of(given["dim"], parts[0].ndim + 1), parts[0].shape
    return written((*shape[:axis], len(parts), *shape[axis:]), joint(*parts))


def _pieces(x: Form, axis: int, sizes: Sequence[int]) -> Made:
    return Made(tuple(Form(with_size(x.shape, axis, size), x.dtype) for size in sizes), shares=True, is_view=True)


def _split(given: Given) -> Made:
    x = given["self"]
    axis = axis_of(given["dim"], x.ndim)
    fits(x.ndim > 0, "a single number has no pieces")
    size, sizes = x.shape[axis], given.get("split_sizes", given.get("split_size"))
    if "chunks" in given:
        sizes = max(1, -(-size // given["chunks"]))
    if isinstance(sizes, int):
        fits(sizes > 0 or size == 0, "pieces of nothing are without end")
        count = max(1, -(-size // max(1, sizes)))
        _count(count)
        if "chunks" in given and not size:
            return _pieces(x, axis, [0] * given["chunks"])
        whole, last = (Form(with_size(x.shape, axis, n), x.dtype) for n in (sizes, size - (count - 1) * sizes))
        return Made((whole,) * (count - 1) + (last,), shares=True, is_view=True)
    _count(len(sizes))
    fits(sum(sizes) == size and min(sizes, default=0) >= 0, f"pieces of {told(sizes[:8])} are not those of {size}")
    return _pieces(x, axis, sizes)


def _unbind(given: Given) -> Made:
    x = given["self"]
    axis = axis_of(given["dim"], x.ndim)
    fits(x.ndim > 0, "a single number has no pieces")
    _count(x.shape[axis])
    part = Form(without(x.shape, [axis], False), x.dtype)
    return Made((part,) * x.shape[axis], shares=True, is_view=True)


#: pieces of one tensor, more of which no network is made of.
MOST_PIECES = 1 << 12


def _count(pieces: int) -> None:
    fits(pieces <= MOST_PIECES, f"it makes more than {MOST_PIECES} pieces")


def _meshgrid(given: Given) -> Made:
    forms = given["tensors"]
    fits(bool(forms) and all(form.ndim < 2 for form in forms), "a grid is one of vectors")
    same_type(*forms)
    shape = tuple(form.numbers for form in forms)
    return Made(tuple(Form(shape, form.dtype) for form in forms), shares=True, is_view=True)


def _joined_complex(a: str, b: str) -> Rule:
    return lambda given: _complex(given[a], given[b])


RULES: dict[str, Rule] = {
    **dict.fromkeys(("view", "reshape"), _reshape),
    "flatten": _flatten,
    "unflatten": _unflatten,
    "contiguous": lambda given: perhaps_view(given["self"], given["self"].shape),
    "transpose": _transpose,
    "permute": _permute,
    "t": _t,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "select": _select,
    "slice": _slice,
    "expand": _expand,
    "expand_as": _expand_as,
    "unfold": _unfold,
    "diagonal": _diagonal,
    "real": _real,
    "imag": _imaginary,
    "view_as_real": _as_real,
    "view_as_complex": _as_complex,
    "complex": _joined_complex("real", "imag"),
    "polar": _joined_complex("abs", "angle"),
    "repeat": _repeat,
    "tile": _tile,
    "repeat_interleave.self_int": _repeat_interleave,
    "clone": _same,
    "flip": _flip,
    "roll": _roll,
    "rot90": _rotate,
    "tril": _triangle,
    "triu": _triangle,
    "diag_embed": _diagonal_matrix,
    "diag": _diag,
    "slice_scatter": _scattered(lambda given: _sliced(given)[1]),
    "select_scatter": _scattered(lambda given: _shape_of(_select(given))),
    "diagonal_scatter": _scattered(_diagonal_shape),
    "cat": _cat,
    "stack": _stack,
    **dict.fromkeys(("chunk", "split", "split_with_sizes"), _split),
    "unbind.int": _unbind,
    "meshgrid": _meshgrid,
}
