"""Constants that move through a graph: what a unit that reads nothing computes, behind activations and sums."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..graph.module import arguments
from ..graph.nodes import Graph, Named, Node, Value, is_layer, layer_name
from ..graph.operations import ELEMENTWISE, function
from ..graph.units import Tracking, align, layer_axis
from .pruned import PrunedLayer


def pads(node: Node) -> bool:
    """Whether a convolution sees zeros where its input ends."""
    if node.op == "linear" or len(node.args) <= 4:
        return False
    padding = node.args[4]
    return padding == "same" or (not isinstance(padding, str) and any(np.atleast_1d(padding)))


# A node's constant entries: an axis, and for each of its entries the value or NaN.
_Constant = tuple[int, np.ndarray] | None


def propagate(graph: Graph, layers: Mapping[str, PrunedLayer], tracking: Tracking) -> list[_Constant]:
    """Which entries of every node's result are the same constant whatever the input."""
    constants: list[_Constant] = []
    for index, node in enumerate(graph.nodes):
        constant = None
        if is_layer(node):
            layer = layers[layer_name(node)]
            reads = layer.mask.flatten(1).any(1).numpy()
            bias = np.zeros(len(reads)) if layer.bias is None else layer.bias.double().numpy()
            axis = layer_axis(node, len(graph.shape(index) or ()))
            constant = (axis, np.where(reads, np.nan, bias))
        elif node.op in _CONSTANT_RULES:
            constant = _CONSTANT_RULES[node.op](node, graph, constants, index)
        constants.append(None if constant is None or np.isnan(constant[1]).all() else constant)
    return constants


def _known(constants: list[_Constant], reference: Any) -> _Constant:
    return constants[reference.index] if isinstance(reference, Value) and reference.index >= 0 else None


def _through_elementwise(node: Node, graph: Graph, constants: list[_Constant], index: int) -> _Constant:
    known = _known(constants, node.args[0])
    if known is None or any(isinstance(leaf, Value | Named) for leaf in node.args[1:]):
        return None
    values = torch.from_numpy(known[1]).float()
    args, kwargs = arguments(node, lambda leaf: values if isinstance(leaf, Value) else leaf)
    return known[0], function(node.op)(*args, **kwargs).double().numpy()


def _through_pool(node: Node, graph: Graph, constants: list[_Constant], index: int) -> _Constant:
    known = _known(constants, node.args[0])
    if known is None or not node.op.startswith("avg"):
        return known  # the largest of equals; what pads a maximum is smaller than all
    padding = node.args[3] if len(node.args) > 3 else 0
    return (known[0], np.where(known[1] == 0, 0.0, np.nan)) if any(np.atleast_1d(padding)) else known


def _through_binary(node: Node, graph: Graph, constants: list[_Constant], index: int) -> _Constant:
    ndim = len(graph.shape(index) or ())
    sides = [_side(reference, graph, constants, ndim) for reference in node.args[:2]]
    axes = {side[0] for side in sides if isinstance(side, tuple)}
    if len(axes) != 1 or any(key != "alpha" for key, _ in node.kwargs):
        return None
    axis = axes.pop()
    a, b = (side[1] if isinstance(side, tuple) else side for side in sides)
    size = (graph.shape(index) or ())[axis]
    if not isinstance(size, int):
        return None
    a, b = (np.broadcast_to(np.nan if side is None else side, size) for side in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        tensors = (torch.from_numpy(side.copy()) for side in (a, b))
        result = function(node.op)(*tensors, **dict(node.kwargs)).numpy()
    if node.op == "mul":
        result = np.where((a == 0) | (b == 0), 0.0, result)
    return axis, result


def _side(reference: Any, graph: Graph, constants: list[_Constant], ndim: int) -> Any:
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


def _through_batch_norm(node: Node, graph: Graph, constants: list[_Constant], index: int) -> _Constant:
    known = _known(constants, node.args[0])
    if known is None or known[0] != 1:
        return None
    named = [graph.tensors[a.name].double().numpy() if isinstance(a, Named) else None for a in node.args[1:5]]
    gain, shift, mean, variance = named
    if mean is None or variance is None or node.args[5]:
        return None
    values = (known[1] - mean) / np.sqrt(variance + node.args[7])
    return 1, values * (1 if gain is None else gain) + (0 if shift is None else shift)


def _through_cat(node: Node, graph: Graph, constants: list[_Constant], index: int) -> _Constant:
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


def _through_reshape(node: Node, graph: Graph, constants: list[_Constant], index: int) -> _Constant:
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


def _through_mean(node: Node, graph: Graph, constants: list[_Constant], index: int) -> _Constant:
    known = _known(constants, node.args[0])
    ndim = len(graph.shape(node.args[0].index) or ()) if isinstance(node.args[0], Value) else 0
    if known is None or len(node.args) < 2 or not isinstance(node.args[1], tuple):
        return None
    reduced = {dim % ndim for dim in node.args[1]}
    keepdim = len(graph.shape(index) or ()) == ndim
    if known[0] in reduced:
        return None
    return known[0] - (0 if keepdim else sum(dim < known[0] for dim in reduced)), known[1]


def _through_selection(node: Node, graph: Graph, constants: list[_Constant], index: int) -> _Constant:
    known = _known(constants, node.args[0])
    if known is None or not isinstance(node.args[2], Named):
        return None
    if node.args[1] % len(graph.shape(index) or (1,)) != known[0]:
        return known
    return known[0], known[1][graph.tensors[node.args[2].name].numpy()]


_CONSTANT_RULES: dict[str, Any] = {
    **dict.fromkeys(ELEMENTWISE, _through_elementwise),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d"), _through_pool),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d", "upsample_nearest2d"), _through_pool),
    **dict.fromkeys(("add", "sub", "mul", "div", "maximum", "minimum"), _through_binary),
    **dict.fromkeys(("view", "reshape", "flatten", "squeeze", "unsqueeze"), _through_reshape),
    **dict.fromkeys(("mean", "amax"), _through_mean),
    "batch_norm": _through_batch_norm,
    "cat": _through_cat,
    "index_select": _through_selection,
}
