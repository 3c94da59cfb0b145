"""Results of operations on elements and over dimensions."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from .forms import (
    NUMBER,
    SLOW,
    Form,
    Given,
    Made,
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
    summed,
    with_size,
    without,
    written,
)


def each(dtype: Callable[[torch.dtype], torch.dtype] = lambda dtype: dtype, work: int = 0, copies: int = 0) -> Rule:
    """The rule of what is made of every element by itself.

    :param dtype: of the result, by that of the argument.
    :param work: of a number, beside writing it.
    :param copies: of the argument that it needs while it computes.
    """

    def rule(given: Given) -> Made:
        x = given["self"]
        return written(x.shape, dtype(x.dtype), work * x.numbers, copies * x.bytes)

    return rule


def together(*names: str, dtype: Callable[..., torch.dtype] = joint, work: int = 0) -> Rule:
    """The rule of an operation on the elements of several tensors and numbers, the smaller of which are repeated."""

    def rule(given: Given) -> Made:
        values = [given[name] for name in names if given[name] is not None]
        shape = broadcast(*(value.shape for value in values if isinstance(value, Form)))
        return written(shape, dtype(*values), work * math.prod(shape))

    return rule


def _quotient(*values: Any) -> torch.dtype:
    return floating(joint(*values))


def _truth(*values: Any) -> torch.dtype:
    return torch.bool


def _clamped(given: Given) -> Made:
    fits((given["min"], given["max"]) != (None, None), "a range has at least one end")
    return together("self", "min", "max")(given)


def _between(*names: str) -> Rule:
    def rule(given: Given) -> Made:
        same_type(*(given[name] for name in names))
        return together(*names)(given)

    return rule


def _division(given: Given) -> Made:
    exact = given.get("rounding_mode") is None
    return together("self", "other", dtype=_quotient if exact else joint, work=0 if exact else SLOW)(given)


def _square(given: Given) -> Made:
    return written(given["self"].shape, joint(given["self"], 2))


def _choice(given: Given) -> Made:
    fits(given["condition"].dtype in (torch.bool, torch.uint8), "a choice is made by truth values")
    values = [given["self"], given["other"]]
    shapes = [value.shape for value in (given["condition"], *values) if isinstance(value, Form)]
    return written(broadcast(*shapes), joint(*values))


def _filled(given: Given) -> Made:
    fits(given["mask"].dtype == torch.bool, "a mask is one of truth values")
    fits(not isinstance(given["value"], Form) or not given["value"].shape, "a mask is filled with one number")
    return written(broadcast(given["self"].shape, given["mask"].shape), given["self"].dtype)


def _reduced(x: Form, dims: Any, keep: bool, dtype: torch.dtype, work: int = NUMBER, empty_is_all: bool = True) -> Made:
    axes = axes_of(dims, x.ndim, empty_is_all)
    # Where torch has no kernel of its own, it makes one or two of what it sums.
    memory = 2 * x.numbers * max(x.dtype.itemsize, dtype.itemsize)
    return written(without(x.shape, axes, keep), dtype, work * x.numbers, memory)


def over(
    dtype: Callable[[torch.dtype], torch.dtype], work: int = NUMBER, empty_is_all: bool = True, of_none: bool = True
) -> Rule:
    """The rule of what becomes one along some dimensions: a sum, a maximum.

    :param of_none: whether it is known of no numbers, too.
    """

    def rule(given: Given) -> Made:
        named, x = given.get("dtype"), given["self"]
        if not of_none:
            axes = axes_of(given.get("dim"), x.ndim, empty_is_all)
            fits(all(x.shape[axis] for axis in axes), "there is no largest of no numbers")
        own = dtype(given["self"].dtype) if named is None else named
        keep = bool(given.get("keepdim", False))
        return _reduced(given["self"], given.get("dim"), keep, own, work, empty_is_all)

    return rule


def _of_all(dtype: Callable[[torch.dtype], torch.dtype], work: int = NUMBER) -> Rule:
    return lambda given: _reduced(given["self"], None, False, given.get("dtype") or dtype(given["self"].dtype), work)


def with_places(*, work: int = NUMBER, keeps_size: bool = False) -> Rule:
    """The rule of numbers along a dimension and where they were found: two results."""

    def rule(given: Given) -> Made:
        x = given["self"]
        axis = axis_of(given["dim"], x.ndim)
        size = x.shape[axis] if x.ndim else 1
        fits(size > 0, "a dimension is empty")
        if "k" in given:
            fits(bool(given["k"] >= ("largest" not in given)) and given["k"] <= size, f"there are but {size} to pick")
        shape = x.shape
        if x.ndim and "largest" in given:
            shape = with_size(shape, axis, given["k"])
        elif not keeps_size:
            shape = without(shape, [axis], bool(given.get("keepdim", False)))
        effort = (work + (SLOW * size.bit_length() if work == SLOW else 0)) * x.numbers
        return Made((Form(shape, x.dtype), Form(shape, torch.int64)), effort, 2 * x.bytes + 8 * x.numbers)

    return rule


def _ordered(given: Given) -> Made:
    x = given["self"]
    axis = axis_of(given["dim"], x.ndim)
    size = x.shape[axis] if x.ndim else 1
    return written(x.shape, torch.int64, SLOW * (1 + size.bit_length()) * x.numbers, 2 * x.bytes + 8 * x.numbers)


def _smallest_and_largest(given: Given) -> Made:
    made = over(_own, of_none=False)(given)
    assert isinstance(made.result, Form)
    return Made((made.result, made.result), made.work)


def _spread_and_mean(given: Given) -> Made:
    x = given["self"]
    made = _reduced(x, given["dim"], bool(given["keepdim"]), _inexact(x.dtype), 2 * SLOW)
    assert isinstance(made.result, Form)
    return Made((replace(made.result, dtype=real_of(x.dtype)), made.result), made.work)


def along(dtype: Callable[[torch.dtype], torch.dtype], work: int = NUMBER) -> Rule:
    """The rule of what keeps its size along the dimension that it goes along: a running sum, a softmax."""

    def rule(given: Given) -> Made:
        axis_of(given["dim"], given["self"].ndim)
        own = given.get("dtype") or dtype(given["self"].dtype)
        # A type of its own is first made of every number.
        return written(given["self"].shape, own, work * given["self"].numbers, given["self"].numbers * own.itemsize)

    return rule


def _gated(given: Given) -> Made:
    x = given["self"]
    axis = axis_of(given["dim"], x.ndim)
    fits(x.ndim > 0 and x.shape[axis] % 2 == 0, "a dimension that is halved has an odd size")
    return written(with_size(x.shape, axis, x.shape[axis] // 2), x.dtype, SLOW * x.numbers, x.bytes)


def _trace(given: Given) -> Made:
    fits(given["self"].ndim == 2, "a trace is that of a matrix")
    return written((), summed(given["self"].dtype))


def _to_truth(dtype: torch.dtype) -> torch.dtype:
    """What truths about numbers are: bytes stay bytes."""
    return dtype if dtype == torch.uint8 else torch.bool


def _own(dtype: torch.dtype) -> torch.dtype:
    return dtype


def _inexact(dtype: torch.dtype) -> torch.dtype:
    fits(not is_whole(dtype), "it is one of floating point numbers, not of integers")
    return dtype


def _spread(dtype: torch.dtype) -> torch.dtype:
    return real_of(_inexact(dtype))


def _index(dtype: torch.dtype) -> torch.dtype:
    return torch.int64


def _real_float(dtype: torch.dtype) -> torch.dtype:
    return floating(real_of(dtype))


_KEPT = (
    "relu", "gelu", "silu", "softplus", "elu", "leaky_relu", "relu6", "hardtanh", "hardsigmoid", "hardswish", "selu",
    "mish", "celu", "neg", "floor", "ceil", "round", "trunc", "frac", "softshrink", "hardshrink",
    "sign", "nan_to_num", "threshold", "bitwise_not",
)  # fmt: skip
_FLOATING = (
    "tanh", "sigmoid", "exp", "log", "sqrt", "rsqrt", "erf", "sin", "cos", "reciprocal", "exp2", "expm1", "log2",
    "log10", "log1p", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "erfc",
    "erfinv", "deg2rad",
)  # fmt: skip
_COMPARING = [f"{name}.{kind}" for name in ("eq", "ne", "lt", "le", "gt", "ge") for kind in ("Tensor", "Scalar")]
_JOINT = (
    *("add", "sub", "mul", "maximum", "minimum", "fmax", "fmin", "logaddexp", "hypot"),
    *(f"{name}.{kind}" for name in ("fmod", "remainder") for kind in ("Tensor", "Scalar")),
    *(f"bitwise_{name}.{kind}" for name in ("and", "or", "xor") for kind in ("Tensor", "Scalar")),
    "floor_divide",
)
_QUOTIENTS = ("atan2", "xlogy.Tensor", "copysign.Tensor")
_SPREADS = ("var.correction", "std.correction", "var.dim", "std.dim", "std", "var")

RULES: dict[str, Rule] = {
    **dict.fromkeys(_KEPT, each(work=SLOW)),
    **dict.fromkeys(_FLOATING, each(floating, work=SLOW)),
    "abs": each(real_of),
    "angle": each(_real_float, SLOW, copies=2),
    "log_sigmoid": each(work=SLOW, copies=1),
    "logit": each(floating, 2 * SLOW),
    "square": _square,
    **dict.fromkeys(("isnan", "isinf", "isfinite", "logical_not", "signbit"), each(_truth, SLOW, copies=2)),
    "pow": together("self", "exponent", work=SLOW),
    **dict.fromkeys(_JOINT, together("self", "other", work=SLOW)),
    **dict.fromkeys(_COMPARING, together("self", "other", dtype=_truth)),
    **{f"logical_{name}": together("self", "other", dtype=_truth) for name in ("and", "or", "xor")},
    **dict.fromkeys(("div", "div.Tensor_mode", "div.Scalar_mode"), _division),
    **dict.fromkeys(
        ("atan2", "xlogy.Tensor", "copysign.Tensor"), together("self", "other", dtype=_quotient, work=SLOW)
    ),
    **dict.fromkeys(("where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar"), _choice),
    **dict.fromkeys(("masked_fill.Scalar", "masked_fill.Tensor"), _filled),
    **dict.fromkeys(("clamp", "clamp.Tensor"), _clamped),
    "clamp_min.Tensor": together("self", "min"),
    "clamp_max.Tensor": together("self", "max"),
    **dict.fromkeys(("addcmul", "addcdiv"), together("self", "tensor1", "tensor2")),
    "lerp.Tensor": _between("self", "end", "weight"),
    "lerp.Scalar": _between("self", "end"),
    **dict.fromkeys(("sum", "nansum"), over(summed)),
    **dict.fromkeys(("mean", "nanmean"), over(_inexact)),
    **dict.fromkeys(("amax", "amin"), over(_own, of_none=False)),
    "logsumexp": over(floating, SLOW),
    "prod.dim_int": over(summed),
    "prod": _of_all(summed),
    **dict.fromkeys(("any.dim", "all.dim", "any.dims", "all.dims", "any", "all"), over(_to_truth)),
    **dict.fromkeys(("argmax", "argmin"), over(_index, SLOW, of_none=False)),
    "count_nonzero.dim_IntList": over(_index, SLOW),
    **dict.fromkeys(("var.correction", "std.correction", "var.dim", "std.dim", "std", "var"), over(_spread, SLOW)),
    **dict.fromkeys(("var_mean.correction", "std_mean.correction"), _spread_and_mean),
    **dict.fromkeys(("linalg_vector_norm", "norm.ScalarOpt_dim", "norm.Scalar"), over(_spread, SLOW)),
    **dict.fromkeys(("max", "min"), _of_all(_own)),
    **dict.fromkeys(("max.dim", "min.dim"), with_places()),
    **dict.fromkeys(("cummax", "cummin"), with_places(work=6 * NUMBER, keeps_size=True)),
    **dict.fromkeys(("topk", "kthvalue", "median.dim"), with_places(work=SLOW)),
    "sort": with_places(work=SLOW, keeps_size=True),
    "argsort": _ordered,
    "aminmax": _smallest_and_largest,
    "trace": _trace,
    **dict.fromkeys(("softmax", "log_softmax", "_safe_softmax"), along(_own, SLOW)),
    **dict.fromkeys(("cumsum", "cumprod"), along(summed)),
    "logcumsumexp": along(_own, 2 * SLOW),
    "glu": _gated,
}
