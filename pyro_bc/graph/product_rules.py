"""Results of products of matrices and what is built of them: attention, recurrent cells; normalisations, transforms."""

import math
from dataclasses import replace

from .cells import GATES, check_cell
from .forms import (
    NUMBER,
    SLOW,
    Form,
    Given,
    Made,
    Misfit,
    Rule,
    axes_of,
    axis_of,
    broadcast,
    fits,
    floating,
    is_whole,
    joint,
    real_of,
    same_type,
    told,
    with_size,
    without,
    written,
)
from .window_rules import product

# A product of two small matrices, among others or alone, and a step of a cell take some time however small they are;
# and reading a number does that is multiplied once.
_MATRIX, _ALONE, _STEP, _READ = 1 << 10, 1 << 14, 1 << 19, 4


def _linear(given: Given) -> Made:
    x, weight, bias = given["input"], given["weight"], given["bias"]
    dtype = same_type(x, weight, bias)
    fits(weight.ndim in (1, 2) and x.ndim > 0, f"{told(weight.shape)} is no matrix")
    fits(x.shape[-1] == weight.shape[-1], f"a matrix {told(weight.shape)} does not fit {told(x.shape)}")
    shape = (*x.shape[:-1], *weight.shape[:-1])
    fits(bias is None or broadcast(shape, bias.shape) == shape, f"a bias does not fit {told(shape)}")
    work = product(dtype, math.prod(shape) * x.shape[-1]) + _READ * (x.numbers + weight.numbers)
    return written(shape, dtype, work, x.bytes + weight.bytes)


def _multiplied(a: Form, b: Form) -> Made:
    """A product of matrices, or of as many as there are in front of them."""
    dtype = same_type(a, b)
    fits(a.ndim > 0 and b.ndim > 0, "a single number is no matrix")
    left = a.shape if a.ndim > 1 else (1, *a.shape)
    right = b.shape if b.ndim > 1 else (*b.shape, 1)
    fits(left[-1] == right[-2], f"{told(a.shape)} and {told(b.shape)} do not multiply")
    lead = broadcast(left[:-2], right[:-2])
    shape = (*lead, *left[-2:-1] * (a.ndim > 1), *right[-1:] * (b.ndim > 1))
    each = left[-2] * left[-1] * right[-1]
    # Of matrices that are repeated there are then copies.
    read = math.prod(lead) * (left[-2] + right[-1]) * left[-1]
    work = product(dtype, math.prod(lead) * each) + math.prod(lead) * _MATRIX + _READ * read
    return written(shape, dtype, work, read * dtype.itemsize)


def _matmul(a: str, b: str, ndim: int | None = None) -> Rule:
    def rule(given: Given) -> Made:
        x, y = given[a], given[b]
        if ndim is not None:
            expected = (ndim, 1) if b == "vec" else (ndim, ndim)
            fits((x.ndim, y.ndim) == expected, f"{told(x.shape)} and {told(y.shape)} do not multiply so")
            fits(ndim < 3 or x.shape[0] == y.shape[0], f"{told(x.shape)} and {told(y.shape)} do not multiply so")
        made = _multiplied(x, y)
        assert isinstance(made.result, Form)
        named = given.get("out_dtype")
        return made if named is None else replace(made, result=replace(made.result, dtype=named))

    return rule


def _added(a: str, b: str, ndim: int, summed: bool = False) -> Rule:
    """The rule of a product that something is added to."""

    def rule(given: Given) -> Made:
        made = _matmul(a, b, ndim)(given)
        assert isinstance(made.result, Form)
        shape = made.result.shape[1:] if summed else made.result.shape
        same_type(made.result, given["self"])
        fits(
            broadcast(shape, given["self"].shape) == shape, f"{told(given['self'].shape)} is not added to {told(shape)}"
        )
        work = made.work + (_ALONE * given[a].shape[0] if summed else 0)
        return Made(Form(shape, made.result.dtype), work, made.memory + made.result.bytes)

    return rule


def _dot(given: Given) -> Made:
    a, b = given["self"], given["tensor"]
    fits(a.ndim == b.ndim == 1 and a.shape == b.shape, f"{told(a.shape)} and {told(b.shape)} do not multiply so")
    return written((), same_type(a, b), NUMBER * a.numbers)


def _outer(given: Given) -> Made:
    a, b = given["self"], given["vec2"]
    fits(a.ndim == b.ndim == 1, "an outer product is one of vectors")
    return written((*a.shape, *b.shape), joint(a, b))


def _tensordot(given: Given) -> Made:
    a, b = given["self"], given["other"]
    left = axes_of(given["dims_self"], a.ndim, empty_is_all=False)
    right = axes_of(given["dims_other"], b.ndim, empty_is_all=False)
    fits(len(left) == len(right), "as many dimensions on either side are summed over")
    shared = 1
    for i, j in zip(left, right, strict=True):
        fits(1 in (a.shape[i], b.shape[j]) or a.shape[i] == b.shape[j], f"{told(a.shape)} and {told(b.shape)} differ")
        shared *= min(a.shape[i], b.shape[j])
    shape = (*without(a.shape, left, False), *without(b.shape, right, False))
    dtype = same_type(a, b)
    return written(
        shape, dtype, product(dtype, math.prod(shape) * shared) + NUMBER * (a.numbers + b.numbers), a.bytes + b.bytes
    )


def _einsum(given: Given) -> Made:
    text, forms = given["equation"].replace(" ", ""), given["tensors"]
    reads, arrow, result = text.partition("->")
    operands = reads.split(",")
    fits(len(operands) == len(forms), f"{len(operands)} tensors are named, and {len(forms)} given")
    dtype = same_type(*forms)
    indexed = [_indices(own, form) for own, form in zip(operands, forms, strict=True)]
    sizes: dict[str, int] = {}
    for pairs in indexed:
        for name, size in pairs:
            known = sizes.get(name, 1)
            fits(1 in (known, size) or known == size, f"sizes of an index, {known} and {size}, differ")
            sizes[name] = max(known, size) if 0 not in (known, size) else 0
    dots = sorted((name for name in sizes if name.isdigit()), key=int, reverse=True)
    if arrow:
        fits(result.count("...") < 2 and "." not in result.replace("...", ""), f"{text} is no product")
        parts = result.split("...")
        kept = [*parts[0], *(dots if len(parts) > 1 else ()), *parts[-1][: len(parts[-1]) if len(parts) > 1 else 0]]
    else:
        letters = "".join(own.replace("...", "") for own in operands)
        kept = [*dots, *sorted(name for name in sizes if letters.count(name) == 1)]
    fits(len(set(kept)) == len(kept) and set(kept) <= sizes.keys(), f"{text} is no product")
    # One after the other, an index as long as a later one or the result has it.
    work = memory = 0
    held = {name for name, _ in indexed[0]}
    for at, pairs in enumerate(indexed[1:], 1):
        held |= {name for name, _ in pairs}
        work += math.prod(sizes[name] for name in held)
        held &= {name for rest in indexed[at + 1 :] for name, _ in rest} | set(kept)
        memory += 2 * math.prod(sizes[name] for name in held) * dtype.itemsize
    shape = [sizes[name] for name in kept]
    read = sum(form.numbers for form in forms)
    return written(
        shape,
        dtype,
        product(dtype, work) + _MATRIX * math.prod(shape) + NUMBER * read,
        memory + 2 * read * dtype.itemsize,
    )


def _indices(text: str, form: Form) -> list[tuple[str, int]]:
    """The indices of a tensor's dimensions, each with its size; those of an ellipsis are numbers, from the last on."""
    before, dots, behind = text.partition("...")
    fits("." not in before + behind, f"{text} names no indices")
    open_ones = form.ndim - len(before) - len(behind)
    fits(open_ones == 0 or (bool(dots) and open_ones > 0), f"{text} does not name {form.ndim} dimensions")
    names = [*before, *map(str, range(open_ones - 1, -1, -1)), *behind]
    pairs = list(zip(names, form.shape, strict=True))
    for name, size in pairs:
        fits(all(other == size for own, other in pairs if own == name), f"sizes of an index of {text} differ")
    return pairs


def _distances(given: Given) -> Made:
    a, b = given["x1"], given["x2"]
    fits(a.ndim > 1 and b.ndim > 1 and a.shape[-1] == b.shape[-1], f"{told(a.shape)}, {told(b.shape)}: no distances")
    shape = (*broadcast(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-2])
    wide = math.prod(shape[:-2]) * (a.shape[-2] + b.shape[-2]) * (a.shape[-1] + 2)
    dtype = same_type(a, b)
    work = SLOW * math.prod(shape) * max(1, a.shape[-1])
    return written(shape, dtype, work, 2 * wide * dtype.itemsize)


def _similarity(given: Given) -> Made:
    a, b = given["x1"], given["x2"]
    shape = broadcast(a.shape, b.shape)
    numbers, dtype = math.prod(shape), joint(a, b)
    fits(not is_whole(dtype), "a similarity is one of floating point numbers, not of integers")
    left = without(shape, [axis_of(given["dim"], len(shape))], False)
    return written(left, dtype, 2 * SLOW * numbers, 4 * numbers * dtype.itemsize)


def _pairwise(given: Given) -> Made:
    a, b = given["x1"], given["x2"]
    shape = broadcast(a.shape, b.shape)
    fits(bool(shape), "a single number is no vector")
    numbers, dtype, left = math.prod(shape), real_of(joint(a, b)), without(shape, [len(shape) - 1], given["keepdim"])
    return written(left, dtype, SLOW * numbers, 4 * numbers * dtype.itemsize)


def _bilinear(given: Given) -> Made:
    a, b, weight, bias = given["input1"], given["input2"], given["weight"], given["bias"]
    dtype = same_type(a, b, weight, bias)
    fits(
        a.ndim == b.ndim > 0 and a.shape[:-1] == b.shape[:-1] and weight.ndim == 3,
        f"{told(a.shape)} and {told(b.shape)} do not fit a weight {told(weight.shape)}",
    )
    fits(weight.shape[1:] == (a.shape[-1], b.shape[-1]), f"a weight {told(weight.shape)} does not fit its inputs")
    fits(bias is None or bias.shape == weight.shape[:1], "a bias does not fit its weight")
    rows = math.prod(a.shape[:-1])
    work = product(dtype, 2 * rows * weight.numbers)
    memory = rows * (weight.shape[0] * max(weight.shape[1:]) + a.shape[-1] * b.shape[-1]) * dtype.itemsize
    return written((*a.shape[:-1], weight.shape[0]), dtype, work, memory)


def _cross(given: Given) -> Made:
    a, b = given["self"], given["other"]
    fits(a.ndim == b.ndim > 0, "a cross product is one of as many dimensions")
    shape = broadcast(a.shape, b.shape)
    axis = axis_of(given["dim"], len(shape))
    fits(a.shape[axis] == b.shape[axis] == 3, "a cross product is one of three numbers")
    return written(shape, same_type(a, b), NUMBER * math.prod(shape))


def _kronecker(given: Given) -> Made:
    a, b = given["self"], given["other"]
    ndim = max(a.ndim, b.ndim)
    wide = [(*[1] * (ndim - form.ndim), *form.shape) for form in (a, b)]
    return written([m * n for m, n in zip(*wide, strict=True)], joint(a, b))


def _attention(given: Given) -> Made:
    query, key, value, mask = given["query"], given["key"], given["value"], given["attn_mask"]
    dtype = same_type(query, key, value)
    fits(min(query.ndim, key.ndim, value.ndim) > 1, "attention is one of (…, positions, features)")
    fits(mask is None or not given["is_causal"], "attention has a mask, and is causal")
    fits(
        query.shape[-1] == key.shape[-1] and key.shape[-2] == value.shape[-2],
        f"queries {told(query.shape)}, keys {told(key.shape)} and values {told(value.shape)} do not fit together",
    )
    heads = [form.shape[:-2] for form in (query, key, value)]
    if given["enable_gqa"]:
        fits(min(map(len, heads)) > 0, "there are no heads to share")
        for own in (1, 2):
            shared = heads[own]
            fits(shared[-1] > 0 and heads[0][-1] % shared[-1] == 0, "heads of queries are not shared so")
            heads[own] = (*shared[:-1], heads[0][-1])
    lead = broadcast(*heads)
    scores = (*lead, query.shape[-2], key.shape[-2])
    fits(mask is None or broadcast(scores, mask.shape) == scores, f"a mask does not fit {told(scores)}")
    work = product(dtype, math.prod(scores) * (query.shape[-1] + value.shape[-1])) + SLOW * math.prod(scores)
    copies = math.prod(lead) * (query.shape[-2] * query.shape[-1] + key.shape[-2] * (query.shape[-1] + value.shape[-1]))
    memory = (3 * math.prod(scores) + 2 * copies) * dtype.itemsize
    return written((*lead, query.shape[-2], value.shape[-1]), dtype, work + _MATRIX * math.prod(lead), memory)


def _cell(op: str) -> Rule:
    def rule(given: Given) -> Made:
        x, states, layers = given["input"], given["hx"], given["num_layers"]
        directions = 1 + given["bidirectional"]
        try:
            check_cell(op, x, *(given[name] for name in _OF_A_CELL))
        except (ValueError, TypeError) as error:
            raise Misfit(str(error)) from None
        own = tuple(states) if isinstance(states, list | tuple) else (states,)
        steps, batch = x.shape[:2][:: -1 if given["batch_first"] else 1]
        told_units, units = own[0].shape[2], own[-1].shape[2]
        outputs = Form((*x.shape[:2], told_units * directions), x.dtype)
        gates, wide = GATES[op] * units, max(x.shape[2], told_units * directions)
        each = batch * (gates * (wide + told_units) + told_units * units * (told_units != units))
        work = layers * directions * steps * (product(x.dtype, each) + SLOW * batch * gates + _STEP)
        # What each layer reads and makes, and its inputs to all gates at once.
        memory = (4 * outputs.numbers + directions * steps * batch * gates + x.numbers) * x.dtype.itemsize
        return Made((outputs, *own), work, memory)

    return rule


_OF_A_CELL = (
    "hx", "params", "has_biases", "num_layers", "dropout", "train", "bidirectional", "batch_first"
)  # fmt: skip


def _per_channel(x: Form, channels: int, *own: Form | None) -> None:
    for form in own:
        fits(form is None or form.shape == (channels,), f"{told(x.shape)} has {channels} channels")


def _batch_norm(given: Given) -> Made:
    x, statistics = given["input"], [given["running_mean"], given["running_var"]]
    fits(x.ndim > 1, "a single number, or one of each example, is not normalised")
    own = given["training"] if "training" in given else given["use_input_stats"]
    fits(bool(own) or None not in statistics, "there are no statistics")
    _per_channel(x, x.shape[1], given["weight"], given["bias"], *statistics)
    return written(x.shape, x.dtype, 4 * NUMBER * x.numbers, x.bytes)


def _group_norm(given: Given) -> Made:
    x = given["input"]
    fits(x.ndim > 1 and x.shape[1] % given["num_groups"] == 0, f"{told(x.shape)} has no such groups of channels")
    _per_channel(x, x.shape[1], given["weight"], given["bias"])
    return written(x.shape, x.dtype, 4 * NUMBER * x.numbers, x.bytes)


def _layer_norm(given: Given) -> Made:
    x, sizes = given["input"], tuple(given["normalized_shape"])
    fits(bool(sizes) and x.shape[-len(sizes) :] == sizes, f"{told(x.shape)} does not end with {told(sizes)}")
    for name in ("weight", "bias"):
        fits(given.get(name) is None or given[name].shape == sizes, f"a {name} is not {told(sizes)}")
    return written(x.shape, x.dtype, 4 * NUMBER * x.numbers, 2 * x.bytes)


def _prelu(given: Given) -> Made:
    x, weight = given["self"], given["weight"]
    channels = x.shape[1] if x.ndim > 1 else 1
    fits(weight.ndim < 2 and weight.numbers in (1, channels), f"{weight.numbers} slopes are not those of {channels}")
    return written(x.shape, same_type(x, weight), SLOW * x.numbers)


def _transform(real_in: bool = False, real_out: bool = False, several_dims: bool = False) -> Rule:
    """The rule of a Fourier transform.

    :param real_in: whether it is one of real numbers, so that half of the last dimension says all.
    :param real_out: whether it is the inverse of such.
    """

    def rule(given: Given) -> Made:
        x = given["self"]
        fits(x.ndim > 0, "a single number is not transformed")
        if several_dims:
            named, sizes = given["dim"], given["s"]
            if named is None and sizes is not None:
                fits(len(sizes) <= x.ndim, "more sizes than dimensions are named")
                named = range(x.ndim - len(sizes), x.ndim)
            axes = axes_of(None if named is None else tuple(named), x.ndim, empty_is_all=False)
            sizes = [-1] * len(axes) if sizes is None else list(sizes)
            fits(len(sizes) == len(axes), "as many sizes as dimensions are needed")
        else:
            axes, sizes = [axis_of(given["dim"], x.ndim)], [-1 if given["n"] is None else given["n"]]
        fits(bool(axes), "no dimension is transformed")
        fits(not (real_in and x.dtype.is_complex), "real numbers are needed")
        shape = x.shape
        for place, (axis, size) in enumerate(zip(axes, sizes, strict=True)):
            is_last = place == len(axes) - 1
            if size == -1:
                size = 2 * (shape[axis] - 1) if real_out and is_last else shape[axis]
            fits(size > 0, "a transform of nothing")
            shape = with_size(shape, axis, size)
        full = math.prod(shape)
        if real_in:
            shape = with_size(shape, axes[-1], shape[axes[-1]] // 2 + 1)
        dtype = floating(x.dtype)
        dtype = dtype.to_real() if real_out else dtype if dtype.is_complex else dtype.to_complex()
        # Sizes that have no small factors take longest.
        work = SLOW * full * sum(SLOW + shape[axis].bit_length() for axis in axes)
        return written(shape, dtype, work, (1 + 2 * len(axes)) * 2 * full * dtype.itemsize + 2 * x.bytes)

    return rule


RULES: dict[str, Rule] = {
    "linear": _linear,
    "matmul": _matmul("self", "other"),
    "bmm": _matmul("self", "mat2", 3),
    "mm": _matmul("self", "mat2", 2),
    "mv": _matmul("self", "vec", 2),
    "addmm": _added("mat1", "mat2", 2),
    "baddbmm": _added("batch1", "batch2", 3),
    "addbmm": _added("batch1", "batch2", 3, summed=True),
    "dot": _dot,
    "outer": _outer,
    "tensordot": _tensordot,
    "einsum": _einsum,
    "cdist": _distances,
    "cosine_similarity": _similarity,
    "pairwise_distance": _pairwise,
    "bilinear": _bilinear,
    "linalg_cross": _cross,
    "kron": _kronecker,
    "scaled_dot_product_attention": _attention,
    **{op: _cell(op) for op in GATES},
    **dict.fromkeys(("batch_norm", "instance_norm"), _batch_norm),
    "group_norm": _group_norm,
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm),
    "prelu": _prelu,
    **dict.fromkeys(("fft_fft", "fft_ifft"), _transform()),
    **dict.fromkeys(("fft_fft2", "fft_ifft2", "fft_fftn", "fft_ifftn"), _transform(several_dims=True)),
    "fft_rfft": _transform(real_in=True),
    "fft_irfft": _transform(real_out=True),
    "fft_rfft2": _transform(real_in=True, several_dims=True),
    "fft_irfft2": _transform(real_out=True, several_dims=True),
}
