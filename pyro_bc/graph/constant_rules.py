"""Rules for constants: what each kind of operation makes of entries that are the same whatever the input."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..runtime.shapes import on_axis
from .nodes import Graph, Named, Node, Value, arguments, leaves
from .unit_rules import align

#: a node's constant entries: an axis, and for each of its entries the value or NaN.
Constant = tuple[int, np.ndarray] | None
#: what computes a node's operation.
Compute = Callable[..., Any]
#: a rule for constants: those of a node's result, from those of the nodes before it.
ConstantRule = Callable[[Node, Graph, list[Constant], int, Compute], Constant]


def _known(constants: list[Constant], reference: Any) -> Constant:
    return constants[reference.index] if isinstance(reference, Value) and reference.index >= 0 else None


def through_elementwise(node: Node, graph: Graph, constants: list[Constant], index: int, compute: Compute) -> Constant:
    known = _known(constants, node.args[0])
    if known is None or any(isinstance(leaf, Value | Named) for leaf in node.args[1:]):
        return None
    values = torch.tensor(known[1], dtype=torch.float32)  # a copy: what was broadcast cannot be written to
    args, kwargs = arguments(node, lambda leaf: values if isinstance(leaf, Value) else leaf)
    return known[0], compute(*args, **kwargs).double().numpy()


# Arguments of an average pool behind its input, in torch's order.
_AVERAGE = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")


def through_pool(node: Node, graph: Graph, constants: list[Constant], index: int, compute: Compute) -> Constant:
    known = _known(constants, node.args[0])
    if known is None or not node.op.startswith("avg"):
        return known  # the largest of equals; what pads a maximum is smaller than all
    axis, values = known
    given = dict(zip(_AVERAGE, node.args[1:], strict=False)) | dict(node.kwargs)
    only_zero = axis, np.where(values == 0, 0.0, np.nan)  # windows at the edge hold fewer of them
    if any(np.atleast_1d(given.get("padding", 0))):
        return only_zero
    divisor = given.get("divisor_override")
    if divisor is None:
        return known
    spatial = int(node.op.removeprefix("avg_pool").removesuffix("d"))
    window = int(np.prod(np.broadcast_to(given["kernel_size"], spatial)))
    return only_zero if given.get("ceil_mode") else (axis, values * window / divisor)


def through_binary(node: Node, graph: Graph, constants: list[Constant], index: int, compute: Compute) -> Constant:
    ndim = len(graph.shape(index) or ())
    sides = [_side(reference, graph, constants, ndim) for reference in node.args[:2]]
    axes = {side[0] for side in sides if isinstance(side, tuple)}
    if len(axes) != 1 or any(key != "alpha" for key, _ in node.kwargs):
        return None
    axis = axes.pop()
    a, b = (
        side[1] if isinstance(side, tuple) else _along(reference, graph, axis - ndim) if side is None else side
        for reference, side in zip(node.args[:2], sides, strict=True)
    )
    size = (graph.shape(index) or ())[axis]
    if not isinstance(size, int):
        return None
    a, b = (np.broadcast_to(np.nan if side is None else side, size) for side in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        tensors = (torch.from_numpy(side.copy()) for side in (a, b))
        result = compute(*tensors, **dict(node.kwargs)).numpy()
    if node.op == "mul":
        result = np.where((a == 0) | (b == 0), 0.0, result)
    return axis, result


def _side(reference: Any, graph: Graph, constants: list[Constant], ndim: int) -> Any:
    """A number, an axis with its constants, or None for what is not constant."""
    if isinstance(reference, int | float):
        return float(reference)
    if isinstance(reference, Value):
        known = _known(constants, reference)
        return None if known is None else (known[0] + ndim - len(graph.shape(reference.index) or ()), known[1])
    if not isinstance(reference, Named):
        return None
    tensor = graph.tensors[reference.name]
    wide = [axis for axis, size in enumerate(tensor.shape) if size > 1]
    if not wide:
        return float(tensor.reshape(()))
    return None if len(wide) > 1 else (wide[0] + ndim - tensor.dim(), tensor.flatten().double().numpy())


def _along(reference: Any, graph: Graph, axis: int) -> Any:
    """Entries along an axis of a tensor that has several, where they are the same along all others; None for none.

    :param axis: counted from the last one.
    """
    if not isinstance(reference, Named) or graph.tensors[reference.name].dim() < -axis:
        return None
    own = graph.tensors[reference.name].double().movedim(axis, 0).flatten(1)
    return own[:, 0].where((own == own[:, :1]).all(1), torch.tensor(np.nan, dtype=torch.float64)).numpy()


def through_prelu(node: Node, graph: Graph, constants: list[Constant], index: int, compute: Compute) -> Constant:
    known, slopes = _known(constants, node.args[0]), node.args[1]
    if known is None or not isinstance(slopes, Named):
        return None
    axis, values = known
    own = graph.tensors[slopes.name].double().numpy().ravel()
    return None if axis != 1 and own.size > 1 else (axis, np.where(values < 0, values * own, values))


def through_batch_norm(node: Node, graph: Graph, constants: list[Constant], index: int, compute: Compute) -> Constant:
    known = _known(constants, node.args[0])
    if known is None or known[0] != 1:
        return None
    named = [graph.tensors[a.name].double().numpy() if isinstance(a, Named) else None for a in node.args[1:5]]
    gain, shift, mean, variance = named
    if mean is None or variance is None or node.args[5]:  # of a batch: a constant is its own mean
        mean, variance = known[1], np.zeros(())
    values = (known[1] - mean) / np.sqrt(variance + node.args[7])
    return 1, values * (1 if gain is None else gain) + (0 if shift is None else shift)


def through_group_norm(node: Node, graph: Graph, constants: list[Constant], index: int, compute: Compute) -> Constant:
    return _without_gain(graph, node.args[2], node.args[3], 1)


def through_layer_norm(node: Node, graph: Graph, constants: list[Constant], index: int, compute: Compute) -> Constant:
    if len(node.args[1]) != 1:
        return None
    axis = len(graph.shape(index) or ()) - 1
    if node.op == "layer_norm":
        return _without_gain(graph, (*node.args, None)[2], (*node.args, None, None)[3], axis)
    known = _known(constants, node.args[0])
    if known is None or known[0] != axis:
        return _without_gain(graph, (*node.args, None)[2], None, axis)
    return axis, np.where(known[1] == 0, 0.0, np.nan)  # nothing is added: what is 0 stays 0


def _without_gain(graph: Graph, gain: Any, shift: Any, axis: int) -> Constant:
    """What is left of a normalisation whose gain is 0: its shift."""
    if not isinstance(gain, Named):
        return None
    off = graph.tensors[gain.name].numpy() == 0
    added = graph.tensors[shift.name].double().numpy() if isinstance(shift, Named) else np.zeros(off.shape)
    return axis, np.where(off, added, np.nan)


def through_moves(node: Node, graph: Graph, constants: list[Constant], index: int, compute: Compute) -> Constant:
    """Of operations that only move or repeat entries, or add them up: computed with NaN for what is not constant."""
    references = [leaf for leaf in leaves((node.args, node.kwargs)) if isinstance(leaf, Value)]
    if not any(_known(constants, reference) for reference in references):
        return None
    if any(graph.shape(reference.index) is None for reference in references):
        return None  # a size that depends on the batch

    def moved(values_of: Callable[[Tensor], Tensor]) -> Tensor:
        def filled(leaf: Any) -> Any:
            if not isinstance(leaf, Value):
                return graph.tensors[leaf.name] if isinstance(leaf, Named) else leaf
            shape = [size if isinstance(size, int) else 2 for size in graph.shape(leaf.index) or ()]
            known = _known(constants, leaf)
            if known is None:
                return torch.full(shape, np.nan, dtype=torch.float64)
            return on_axis(values_of(torch.tensor(known[1])), known[0], len(shape)).expand(shape)

        args, kwargs = arguments(node, filled)
        return compute(*args, **kwargs)

    result = moved(lambda values: values)
    axes = [axis for axis, size in enumerate(graph.shape(index) or ()) if isinstance(size, int)]
    best = _fullest(result, axes)
    if len(best) > 1:  # constants are all alike, and only numbers that are not say along which axis they are
        best = _fullest(moved(lambda values: values * 0 + torch.arange(len(values))), best)
    return (best[0], _same_along(result, best[0])) if best else None


def _fullest(numbers: Tensor, axes: list[int]) -> list[int]:
    """The axes of most of whose entries all places say the same."""
    along = {axis: np.isfinite(_same_along(numbers, axis)).mean() for axis in axes}
    return [axis for axis in axes if along[axis] == max(along.values())]


def _same_along(numbers: Tensor, axis: int) -> np.ndarray:
    """What is the same at all places of an axis's entries, NaN where it is not."""
    own = numbers.movedim(axis, 0).flatten(1)
    return own[:, 0].where((own == own[:, :1]).all(1), torch.tensor(np.nan, dtype=torch.float64)).numpy()


def through_repeat(node: Node, graph: Graph, constants: list[Constant], index: int, compute: Compute) -> Constant:
    known = _known(constants, node.args[0])
    if known is None:
        return None
    axis = known[0] + len(node.args[1]) - len(graph.shape(node.args[0].index) or ())
    times = node.args[1][axis]
    return (axis, np.tile(known[1], times)) if isinstance(times, int) else None


def through_cat(node: Node, graph: Graph, constants: list[Constant], index: int, compute: Compute) -> Constant:
    ndim = len(graph.shape(index) or ())
    dim = (node.args[1] if len(node.args) > 1 else 0) % ndim
    parts = []
    for reference in node.args[0]:
        known = _known(constants, reference)
        is_value = isinstance(reference, Value)
        shape = (graph.shape(reference.index) or ()) if is_value else graph.tensors[reference.name].shape
        size = shape[dim]
        if not isinstance(size, int):
            return None
        parts.append(known[1] if known is not None and known[0] == dim else np.full(size, np.nan))
    return dim, np.concatenate(parts)


def through_reshape(node: Node, graph: Graph, constants: list[Constant], index: int, compute: Compute) -> Constant:
    known = _known(constants, node.args[0])
    if known is None:
        return None
    before, after = graph.shape(node.args[0].index) or (), graph.shape(index) or ()
    for old, new in align(before, after):
        if known[0] not in old:
            continue
        wide = [axis for axis in new if after[axis] != 1]
        if len(wide) != 1 or not all(isinstance(before[axis], int) for axis in old):
            return None
        shaped = known[1].reshape([-1 if axis == known[0] else 1 for axis in old])
        return wide[0], np.broadcast_to(shaped, [before[axis] for axis in old]).ravel()
    return None


def through_mean(node: Node, graph: Graph, constants: list[Constant], index: int, compute: Compute) -> Constant:
    known = _known(constants, node.args[0])
    ndim = len(graph.shape(node.args[0].index) or ()) if isinstance(node.args[0], Value) else 0
    if known is None or len(node.args) < 2 or not isinstance(node.args[1], tuple):
        return None
    reduced = {dim % ndim for dim in node.args[1]}
    keepdim = len(graph.shape(index) or ()) == ndim
    if known[0] in reduced:
        return None
    return known[0] - (0 if keepdim else sum(dim < known[0] for dim in reduced)), known[1]


def through_selection(node: Node, graph: Graph, constants: list[Constant], index: int, compute: Compute) -> Constant:
    known = _known(constants, node.args[0])
    if known is None or not isinstance(node.args[2], Named):
        return None
    if node.args[1] % len(graph.shape(index) or (1,)) != known[0]:
        return known
    return known[0], known[1][graph.tensors[node.args[2].name].numpy()]
