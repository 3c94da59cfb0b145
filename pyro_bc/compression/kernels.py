"""Convolutions without the parts of their kernels that meet nothing but padding: a wide one over a small picture.

So it is with the dilated kernels of a segmentation, whose last pictures are smaller than they reach. Only of a network
that resizes to a size that it names, and so is of one size of pictures: of others a larger one may be asked for.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..graph.layer_types import layer_type
from ..graph.nodes import Graph, Node, Value, is_layer, layer_arguments, layer_name
from .pruned import PrunedLayer

_DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1}


def without_unmet(graph: Graph, layers: dict[str, PrunedLayer]) -> tuple[Graph, dict[str, PrunedLayer]]:
    """The graph and its layers where every kernel is as large as what it meets of its input, and pads that much less.

    One that is used twice, and one that is codes, stays.
    """
    if not any(node.op.startswith("upsample") and isinstance(node.args[1], tuple) for node in graph.nodes):
        return graph, layers
    uses = Counter(name for node in graph.nodes for name in node.named())
    nodes, tensors, found = list(graph.nodes), dict(graph.tensors), dict(layers)
    for index, node in enumerate(graph.nodes):
        if not is_layer(node) or not layer_type(node.op).spatial or layer_type(node.op).is_transposed:
            continue
        name, layer = layer_name(node), layers[layer_name(node)]
        if uses[f"{name}.weight"] > 1 or layer.codes or not isinstance(node.args[0], Value):
            continue
        met = _met(node, graph.shape(node.args[0].index) or (), tuple(layer.weight.shape[2:]))
        if met is None:
            continue
        kept, padding = met
        weight, variance, mask = (_cropped(part, kept) for part in (layer.weight, layer.variance, layer.mask))
        found[name] = replace(layer, weight=weight, variance=variance, mask=mask)
        tensors[f"{name}.weight"] = weight
        at = 3 + layer_type(node.op).arguments.index("padding")
        nodes[index] = replace(node, args=(*node.args[:at], padding, *node.args[at + 1 :]))
    return replace(graph, nodes=tuple(nodes), tensors=tensors), found


def _cropped(tensor: Tensor, kept: list[tuple[int, int]]) -> Tensor:
    return tensor[(slice(None), slice(None), *(slice(first, last + 1) for first, last in kept))].contiguous()


def _met(
    node: Node, shape: tuple[Any, ...], kernel: tuple[int, ...]
) -> tuple[list[tuple[int, int]], tuple[int, ...]] | None:
    """First and last place of a kernel that meets the input, by axis, and the padding that it then takes.

    None where all of it does, or is not known to.
    """
    given: Mapping[str, Any] = _DEFAULTS | layer_arguments(node)
    sizes = shape[len(shape) - len(kernel) :]
    if isinstance(given["padding"], str) or not all(isinstance(size, int) for size in sizes):
        return None
    each = [
        given[key] if isinstance(given[key], tuple) and len(given[key]) > 1 else _repeated(given[key], len(kernel))
        for key in _DEFAULTS
    ]
    along = [met_along(*axis) for axis in zip(sizes, kernel, *each, strict=True)]
    if all(last - first + 1 == size for (first, last, _), size in zip(along, kernel, strict=True)):
        return None
    return [(first, last) for first, last, _ in along], tuple(padding for *_, padding in along)


def _repeated(argument: Any, count: int) -> tuple[int, ...]:
    return (argument[0] if isinstance(argument, tuple) else argument,) * count


def met_along(size: int, kernel: int, stride: int, padding: int, dilation: int) -> tuple[int, int, int]:
    """First and last place of the kernel that meets one of so many entries, and the padding with those alone."""
    count = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    starts = range(-padding, -padding + count * stride, stride)
    met = [tap for tap in range(kernel) if any(0 <= start + tap * dilation < size for start in starts)]
    if met:
        first = min(met[0], padding // dilation)  # what is left of the padding is not less than none
        pads = padding - first * dilation
        for last in range(met[-1], kernel):  # behind, it pads as much: until there are as many results
            if (size + 2 * pads - dilation * (last - first) - 1) // stride + 1 == count:
                return first, last, pads
    return 0, kernel - 1, padding
