"""Spatial grids over which weights are smooth, so that their cosine coefficients are few."""

import math
from typing import Any

from ..graph.layer_types import LINEAR, layer_type
from ..graph.nodes import Graph, Node, Value, is_layer
from ..graph.operations import BY_NAME

#: numbers of a file that are coded adaptively: it takes Python a few microseconds each, and larger layers gain nothing.
MOST_ADAPTIVE = 1 << 20

# Operations beside element-wise ones and layers that leave places where they are.
_IN_PLACE = {"batch_norm", "instance_norm", "group_norm", "pad"}

#: side of the grid of cosine coefficients.
MOST_SIDE = 1 << 10


def is_grid(shape: tuple[int, ...], grid: tuple[int, ...]) -> bool:
    """Whether a tensor's last entries are a whole number of grids, none of them too large for a file."""
    cells = math.prod(grid)
    return bool(grid) and cells > 0 and max(grid) <= MOST_SIDE and math.prod(shape[1:]) % cells == 0


def spatial_grids(graph: Graph) -> dict[str, tuple[int, ...]]:
    """Grids over which a network's weights are smooth: kernels, and pictures that a fully connected layer reads.

    :returns: by the name of the weight, sizes of the grid in its last entries; other weights are left out, and the
        largest, where they are more than a file takes as coefficients.
    """
    grids: dict[str, tuple[int, ...]] = {}
    for node in graph.nodes:
        if not is_layer(node) or not isinstance(node.args[0], Value):
            continue
        name, source = node.args[1].name, node.args[0].index
        shape: tuple[Any, ...] = tuple(graph.tensors[name].shape[2:])
        if layer_type(node.op) is LINEAR and source >= 0 and graph.nodes[source].op == "flatten":
            shape = _places(graph, graph.nodes[source])
        known = all(isinstance(size, int) for size in shape) and math.prod(shape) > 1
        if known and is_grid(tuple(graph.tensors[name].shape), shape):
            grids[name] = shape
    left = MOST_ADAPTIVE
    for name in sorted(grids, key=lambda name: graph.tensors[name].numel()):
        left -= graph.tensors[name].numel()
        if left < 0:
            del grids[name]
    return grids


def _places(graph: Graph, flatten: Node) -> tuple[Any, ...]:
    """Sizes of the axes of places that are flattened, with the channels before them; nothing where there are none.

    Behind a product of matrices, or axes that changed places, the last ones are no places but features, as the heads of
    an attention and what each of them computes.
    """
    read = flatten.args[0]
    first = flatten.args[1] if len(flatten.args) > 1 else 0
    last = flatten.args[2] if len(flatten.args) > 2 else -1
    shape = (graph.shape(read.index) if isinstance(read, Value) else None) or ()
    if first != 1 or last not in (-1, len(shape) - 1) or flatten.kwargs:
        return ()
    value = read
    while value.index >= 0:
        node = graph.nodes[value.index]
        if is_layer(node):
            return shape[2:] if layer_type(node.op).spatial else ()
        if "pool" in node.op:
            break
        values = [own for own in node.args if isinstance(own, Value)]
        if not values or not (node.op in _IN_PLACE or BY_NAME[node.op].elementwise):
            return ()
        value = values[0]
    return shape[2:]
