"""The operations that a graph may hold: a closed list, and what computes each."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Operations that keep every element in its place: what they do to one they do to all.
ELEMENTWISE = (
    "relu", "tanh", "sigmoid", "gelu", "silu", "softplus", "elu", "leaky_relu", "relu6", "hardtanh", "hardsigmoid",
    "hardswish", "selu", "mish", "celu", "log_sigmoid", "neg", "abs", "exp", "log", "sqrt", "rsqrt", "square", "pow",
    "clamp", "contiguous", "clone", "erf", "sin", "cos",
)  # fmt: skip

#: operations by name, as in ``torch.ops.aten``; the order is that of the file format, and only grows at the end.
OPERATIONS: tuple[str, ...] = (
    "linear", "conv2d", "conv1d", "max_pool2d", "flatten", "batch_norm", "add", "cat", "index_select", "sub", "mul",
    "div", "avg_pool2d", "adaptive_avg_pool2d", "mean", "view", "reshape", "transpose", "permute", "squeeze",
    "unsqueeze", "unflatten", "select", "slice", "layer_norm", "softmax", "scaled_dot_product_attention", "expand",
    "pad", "matmul", "bmm", "sum", "amax", "max_pool1d", "avg_pool1d", "adaptive_avg_pool1d", "group_norm",
    "log_softmax", "upsample_nearest2d", "adaptive_max_pool2d", "gru", "lstm", "zeros", "getitem", "size", "int_add",
    "int_sub", "int_mul", "int_floordiv", "maximum", "minimum", "prelu", "rms_norm", "chunk", "split", "stack",
    "embedding", "pixel_shuffle", "instance_norm", "t",
    *ELEMENTWISE,
)  # fmt: skip

ON_NUMBERS: dict[Any, str] = {
    operator.add: "int_add",
    operator.sub: "int_sub",
    operator.mul: "int_mul",
    operator.floordiv: "int_floordiv",
    operator.getitem: "getitem",
}

# What a graph may ask for, since one may come from a file: pieces of a tensor, and integers.
_MOST_PIECES, _MOST_INTEGER = 4096, 1 << 62

DTYPE_NAMES = {torch.float32: "float32", torch.int64: "int64", torch.bool: "bool"}

DTYPES_BY_NAME = {name: dtype for dtype, name in DTYPE_NAMES.items()}


def _on_integers(op: str, compute: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def checked(a: Any, b: Any) -> Any:
        # Lists can be added and multiplied, too, and Python's integers grow without end.
        if not (isinstance(a, int | torch.SymInt) and isinstance(b, int | torch.SymInt)):
            raise TypeError(f"{op} takes integers")
        result = compute(a, b)
        if isinstance(result, int) and abs(result) > _MOST_INTEGER:
            raise OverflowError(f"{op} comes to more than is allowed")
        return result

    checked.__name__ = op
    return checked


def getitem(pieces: Any, index: Any) -> Any:
    """One of several results."""
    if not (isinstance(pieces, list | tuple) and isinstance(index, int)):
        raise TypeError("getitem takes several results and a number")
    return pieces[index]


def _on_tensors(op: str) -> Callable[..., Any]:
    aten = getattr(torch.ops.aten, op)

    def checked(*args: Any, **kwargs: Any) -> Any:
        # ATen's operations of the same names on lists, text and plain numbers are none of a network's.
        first = args[:1] if op not in ("cat", "stack") or not args else args[0]
        if not first or not all(isinstance(x, Tensor) for x in first):
            exponent = op == "pow" and len(args) > 1 and isinstance(args[1], Tensor)
            if not exponent or not isinstance(first[0], int | float):
                raise TypeError(f"{op} takes a tensor")
        if op in ("split", "chunk") and _pieces(op, *args, **kwargs) > _MOST_PIECES:
            raise OverflowError(f"{op} makes more than {_MOST_PIECES} pieces")
        return aten(*args, **kwargs)

    checked.__name__ = op
    return checked


def _pieces(op: str, x: Tensor, size: Any, dim: int = 0) -> int:
    if not isinstance(size, int):
        return len(size)  # the size of each
    return size if op == "chunk" else x.shape[dim] // max(1, size)


def _functions() -> dict[str, Callable[..., Any]]:
    table: dict[str, Callable[..., Any]] = {op: _on_tensors(op) for op in OPERATIONS if hasattr(torch.ops.aten, op)}
    table |= {op: _on_integers(op, compute) for compute, op in ON_NUMBERS.items()}
    return table | {"getitem": getitem, "size": torch.ops.aten.sym_size.int, "zeros": torch.ops.aten.zeros}


def function(op: str) -> Callable[..., Any]:
    """What computes an operation: nothing but it, on tensors (``int_…`` on integers), whatever a file asks for."""
    return _FUNCTIONS[op]


_FUNCTIONS = _functions()
