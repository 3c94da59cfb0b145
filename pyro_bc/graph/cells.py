"""Recurrent cells: how many gates each kind has, and whether its tensors fit together."""

from collections.abc import Sequence
from typing import Any

#: gates of each kind of recurrent cell: as many rows of its matrices a hidden unit has.
GATES = {"gru": 3, "lstm": 4, "rnn_tanh": 1, "rnn_relu": 1}

# Their states.
_STATES = {**dict.fromkeys(("gru", "rnn_tanh", "rnn_relu"), ("state",)), "lstm": ("state", "cells' state")}


def check_cell(
    op: str,
    x: Any,
    hx: Any,
    params: Sequence[Any],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> None:
    """Look at all shapes of a recurrent cell, as ``nn.LSTM`` does: ATen computes, and reads memory, without a look.

    Tensors may be anything that has ``shape``, ``ndim`` and ``dtype``.

    :param op: ``lstm``, which may have projections, ``gru`` or one of the plain cells.
    :param x: ``(batch, steps, inputs)``, or ``(steps, batch, inputs)``.
    :param hx: ``(layers · directions, batch, units)``; of an LSTM that and the cells' state.
    :param params: of every layer and direction the weights of the input, of the state, and biases of both.
    :raises ValueError: where one does not fit the others, or the batch.
    """
    directions, states = 1 + bidirectional, list(hx) if isinstance(hx, list | tuple) else [hx]
    batch = x.shape[0 if batch_first else 1] if x.ndim == 3 else None
    if batch is None or len(states) != len(_STATES[op]) or any(state.ndim != 3 for state in states):
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
