"""Tables without the rows that pruning left nothing of: the file holds the others, and which those are.

A row of a pruned table is looked up in two steps: its place among those that are left, and then that. Places are the
running count of a mask of zeros and ones, which takes a bit a row at most. The first row of what is left is 0, and
stands for all that are gone.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..graph.layer_types import layer_type
from ..graph.nodes import Graph, Named, Node, Value, is_layer, layer_name, replace_leaves, without_dead_code
from .cut import pays
from .pruned import PrunedLayer, PrunedNetwork

# Zeros that a table must lose: looking up in two steps takes nodes in the file.
_LEAST = 256


def without_zero_rows(pruned: PrunedNetwork) -> PrunedNetwork:
    """The network whose tables hold no rows that are 0 but one."""
    rows = {name: left for name in tables_of(pruned.graph) if (left := _rows_left(pruned.layers.get(name))) is not None}
    if not rows:
        return pruned
    layers, tensors = dict(pruned.layers), dict(pruned.graph.tensors)
    buffers = set(pruned.graph.buffers)
    masks: dict[str, str] = {}
    for name, left in rows.items():
        layers[name] = _with_rows(layers[name], left)
        tensors[f"{name}.weight"] = layers[name].weight
        masks[name] = f"{name}_rows"
        while masks[name] in tensors:
            masks[name] += "_"
        tensors[masks[name]] = left.long()
        buffers.add(masks[name])
    graph = _in_two_steps(pruned.graph, masks)
    graph = without_dead_code(replace(graph, tensors=tensors, buffers=frozenset(buffers)))  # in the order of their use
    return replace(pruned, graph=graph, layers=layers)


def tables_of(graph: Graph) -> list[str]:
    """Tables whose weight is looked up in and nothing else."""
    found: dict[str, bool] = {}
    for node in graph.nodes:
        for name in node.named():
            is_table = is_layer(node) and layer_type(node.op).is_lookup and node.args[1] == Named(name)
            found[name] = found.get(name, True) and is_table
    return [name.removesuffix(".weight") for name, is_table in found.items() if is_table]


def _rows_left(layer: PrunedLayer | None) -> Tensor | None:
    """Which rows of a table have a weight, boolean; None where it does not pay to leave out the others."""
    if layer is None or (layer.codes and layer.codes["weight"].grid):
        return None
    left = layer.mask.any(1)
    count, columns = int(left.sum()), layer.mask.shape[1]
    is_worth = (len(left) - count) * columns >= _LEAST and pays(count + 1, len(left), columns)
    return left if is_worth and count else None


def _with_rows(layer: PrunedLayer, left: Tensor) -> PrunedLayer:
    def cut(tensor: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(tensor[:1]), tensor[left]])

    codes = dict(layer.codes)
    if codes:
        rows = torch.nonzero(left).flatten()
        codes["weight"] = codes["weight"].with_codes(cut(codes["weight"].codes), torch.cat([rows[:1], rows]))
    return replace(
        layer, weight=cut(layer.weight), variance=cut(layer.variance), mask=cut(layer.mask), codes=codes
    )  # fmt: skip


def _in_two_steps(graph: Graph, masks: dict[str, str]) -> Graph:
    """The graph where these tables are looked up in by the place among the rows that are left."""
    nodes: list[Node] = []
    shapes: list[Any] = [graph.shapes[0]]
    new: dict[int, int] = {}

    def add(node: Node, shape: Any) -> Value:
        nodes.append(node)
        shapes.append(shape)
        return Value(len(nodes) - 1)

    def moved(leaf: Any) -> Any:
        return Value(new[leaf.index]) if isinstance(leaf, Value) and leaf.index >= 0 else leaf

    for index, node in enumerate(graph.nodes):
        node = Node(node.op, replace_leaves(node.args, moved), replace_leaves(node.kwargs, moved))
        shape = graph.shape(index)
        if is_layer(node) and layer_name(node) in masks:
            mask = Named(masks[layer_name(node)])
            size = graph.tensors[node.args[1].name].shape[0]
            count = add(Node("cumsum", (mask, 0)), (size,))
            places = add(Node("mul", (count, mask)), (size,))
            column = add(Node("unsqueeze", (places, 1)), (size, 1))
            indices = tuple(shape or ())[:-1]
            found = add(Node("lookup", (node.args[0], column)), (*indices, 1))
            node = Node("lookup", (add(Node("squeeze", (found, -1)), indices), node.args[1]))
        new[index] = add(node, shape).index
    return replace(graph, nodes=tuple(nodes), shapes=tuple(shapes))
