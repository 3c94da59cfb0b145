"""What computes an operation: nothing but it, on tensors or integers, whatever a file asks for."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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

#: gates of each kind of recurrent cell: as many rows of its matrices a hidden unit has.
GATES = {"gru": 3, "lstm": 4, "rnn_tanh": 1, "rnn_relu": 1}

# Their states.
_STATES = {**dict.fromkeys(("gru", "rnn_tanh", "rnn_relu"), ("state",)), "lstm": ("state", "cells' state")}


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


def check_cell(
    op: str,
    x: Tensor,
    hx: Tensor | list[Tensor],
    params: list[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> None:
    """Look at all shapes of a recurrent cell, as ``nn.LSTM`` does: ATen computes, and reads memory, without a look.

    :param op: ``lstm``, which may have projections, or ``gru``.
    :param x: ``(batch, steps, inputs)``, or ``(steps, batch, inputs)``.
    :param hx: ``(layers · directions, batch, units)``; of an LSTM that and the cells' state.
    :param params: of every layer and direction the weights of the input, of the state, and biases of both.
    :raises ValueError: where one does not fit the others, or the batch.
    """
    directions, states = 1 + bidirectional, [hx] if isinstance(hx, Tensor) else list(hx)
    batch = x.shape[0 if batch_first else 1] if x.dim() == 3 else None
    if batch is None or len(states) != len(_STATES[op]) or any(state.dim() != 3 for state in states):
        raise ValueError(f"{op} takes (batch, steps, inputs) and a state of (layers, batch, units)")
    for name, state in zip(_STATES[op], states, strict=True):
        if tuple(state.shape[:2]) != (num_layers * directions, batch):
            raise ValueError(f"the {name} of {op} has shape {tuple(state.shape)}, for a batch of {batch}")
    told, units = states[0].shape[2], states[-1].shape[2]
    shapes: list[tuple[int, ...]] = []
    for layer in range(num_layers):
        inputs = x.shape[2] if layer == 0 else told * directions
        gates = GATES[op] * units
        own = [(gates, inputs), (gates, told), *[(gates,)] * (2 * has_biases), *[(told, units)] * (told != units)]
        shapes += own * directions
    if [tuple(tensor.shape) for tensor in params] != shapes:
        raise ValueError(f"the weights of {op} do not fit its input and its state")
    if any(tensor.dtype != x.dtype for tensor in (*states, *params)):
        raise TypeError(f"{op} takes tensors of one type")


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
