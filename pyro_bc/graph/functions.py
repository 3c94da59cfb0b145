"""What computes an operation: nothing but it, on tensors or integers, whatever a file asks for."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .cells import GATES, check_cell

#: names of the operations on what is no tensor, by Python's function.
ON_NUMBERS: dict[Any, str] = {
    operator.add: "int_add",
    operator.sub: "int_sub",
    operator.mul: "int_mul",
    operator.floordiv: "int_floordiv",
    operator.mod: "int_mod",
    torch.sym_max: "int_max",
    torch.sym_min: "int_min",
    operator.getitem: "getitem",
}

# What a graph may ask for, since one may come from a file: pieces of a tensor, and integers.
_MOST_PIECES, _MOST_INTEGER = 4096, 1 << 62


def on_integers(op: str, compute: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """An operation on two integers that takes nothing else, and gives no integer without end."""

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


def on_tensors(op: str) -> Callable[..., Any]:
    """ATen's operation of this name, on tensors alone."""
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
        if op in GATES:
            check_cell(op, *args, **kwargs)
        return aten(*args, **kwargs)

    checked.__name__ = op
    return checked


def _pieces(op: str, x: Tensor, size: Any, dim: int = 0) -> int:
    if not isinstance(size, int):
        return len(size)  # the size of each
    return size if op == "chunk" else x.shape[dim] // max(1, size)


def of_schema(name: str) -> Callable[..., Any]:
    """ATen's overload of this name (``max.dim``), with no other arguments than its schema has."""
    packet, _, overload = name.partition(".")
    aten = getattr(getattr(torch.ops.aten, packet), overload or "default")
    types = {argument.name: str(argument.real_type) for argument in aten._schema.arguments}
    positions = [argument.name for argument in aten._schema.arguments if not argument.kwarg_only]
    # A number in the place of a type would be taken for the type's position in a list of torch's, however long that is.
    numbered = {argument for argument, kind in types.items() if "ScalarType" in kind or "Layout" in kind}
    indices = positions.index("indices") if packet in ("index", "index_put") else None

    def checked(*args: Any, **kwargs: Any) -> Any:
        if len(args) > len(positions) or not kwargs.keys() <= types.keys():
            raise TypeError(f"{name} does not take these arguments")
        given = dict(zip(positions, args, strict=False)) | kwargs
        if any(isinstance(given.get(argument), int) for argument in numbered):
            raise TypeError(f"{name} takes a type by its name")
        # As many entries as there are truths would be a shape that depends on the numbers.
        if indices is not None and any(x is not None and x.dtype not in _INDICES for x in given["indices"]):
            raise TypeError(f"{name} takes indices that are integers")
        return aten(*args, **kwargs)

    checked.__name__ = packet
    checked.overload = aten  # type: ignore[attr-defined]
    return checked


_INDICES = (torch.int64, torch.int32)
