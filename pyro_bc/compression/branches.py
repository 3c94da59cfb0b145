"""Branches that pruning made constant: they leave the graph, and what they computed stays as numbers, if any."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..graph.constant_rules import Constant
from ..graph.nodes import Graph, Named, Value, without_dead_code, without_nodes

#: operations on two tensors that broadcast, and the number that as their second argument changes nothing.
_NEUTRAL = {"add": 0.0, "sub": 0.0, "mul": 1.0, "div": 1.0, "maximum": None, "minimum": None}


def without_constant_branches(graph: Graph, constants: Sequence[Constant]) -> Graph | None:
    """The graph in which sums and products read numbers instead of branches that are constant; None for the same.

    :param constants: of every node, as :func:`~pyro_bc.graph.constants.propagate` gives them.
    """
    nodes, tensors = list(graph.nodes), dict(graph.tensors)
    replaced: dict[int, int] = {}
    for index, node in enumerate(graph.nodes):
        if node.op in _NEUTRAL and len(node.args) == 2 and not node.kwargs and _known(constants[index]) is None:
            sides = [_number(graph, constants, side) for side in node.args]
            if (sides[0] is None) == (sides[1] is None):
                continue
            at = 0 if sides[1] is None else 1
            number, other = sides[at], node.args[1 - at]
            assert number is not None
            shape = graph.shape(index) or ()
            theirs = (graph.shape(other.index) if isinstance(other, Value) else None) or ()
            if not _gives_all(theirs, shape, axis=len(shape) - number.dim()):
                continue  # examples or places of the result are those of the branch alone, which numbers do not have
            neutral = _NEUTRAL[node.op]
            commutes = node.op in ("add", "mul") or at == 1
            if neutral is not None and commutes and theirs == shape and bool((number == neutral).all()):
                replaced[index] = other.index
                continue
            name = f"constant{index}"
            while name in tensors:
                name += "_"
            tensors[name] = number
            nodes[index] = replace(node, args=tuple(Named(name) if i == at else a for i, a in enumerate(node.args)))
    if not replaced and nodes == list(graph.nodes):
        return None
    buffers = graph.buffers | (tensors.keys() - graph.tensors.keys())
    graph = replace(graph, nodes=tuple(nodes), tensors=tensors, buffers=frozenset(buffers))
    return without_dead_code(without_nodes(graph, _ends(replaced)))


def _gives_all(shape: tuple[Any, ...], result: tuple[Any, ...], axis: int) -> bool:
    """Whether one side of a result has the sizes of all of its axes, but for that of the other side's numbers."""
    return len(shape) == len(result) and all(
        own == of_result or at == axis for at, (own, of_result) in enumerate(zip(shape, result, strict=True))
    )


def _ends(replaced: dict[int, int]) -> dict[int, int]:
    """What a node gives way to, where that gives way itself."""
    ends = {}
    for index, target in replaced.items():
        while target in replaced:
            target = replaced[target]
        ends[index] = target
    return ends


def _known(constant: Constant) -> np.ndarray | None:
    """All entries, where every one is known."""
    return constant[1] if constant is not None and not np.isnan(constant[1]).any() else None


def _number(graph: Graph, constants: Sequence[Constant], side: Any) -> torch.Tensor | None:
    """What a node's result always is, in a shape that broadcasts as it does; None where it is not always the same."""
    if not isinstance(side, Value) or side.index < 0:
        return None
    constant = constants[side.index]
    values = _known(constant)
    if constant is None or values is None:
        return None
    behind = len(graph.shape(side.index) or ()) - constant[0] - 1
    return torch.tensor(values, dtype=torch.float32).reshape(-1, *[1] * behind)
