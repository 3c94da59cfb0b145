"""Layers of a graph under one name each, wherever their tensors come from and whatever else reads them.

A layer ``fc`` has the weight ``fc.weight`` and the bias ``fc.bias``, or none. In a user's network a weight may be a
parameter of any name, and a bias may be that of several layers; such are renamed, or added behind the layer.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .layer_types import layer_type
from .nodes import Graph, Named, Node, Value, is_layer, layer_name, replace_leaves
from .recurrent import names_as_layers


def layers_alone(graph: Graph) -> Graph:
    """The same graph, with a weight and a bias of its own name for every layer."""
    graph = _renamed(graph, {name: f"{name}.weight" for name in _weights(graph) if not name.endswith(".weight")})
    graph = _renamed(graph, names_as_layers(graph))
    biases = _own_biases(graph)
    graph = _added_behind(graph, biases)
    return _renamed(graph, {bias: f"{layer}.bias" for layer, bias in biases.items()})


def shared_layers(graph: Graph) -> set[str]:
    """Layers whose weight or bias something else reads as well: they must stay what they are."""
    weights = set(_weights(graph))
    names = {f"{layer_name(node)}.weight" for node in graph.nodes if is_layer(node)}
    names |= {f"{layer_name(node)}.bias" for node in graph.nodes if is_layer(node) and _bias(node) is not None}
    found = set()
    for node in graph.nodes:
        own = [argument.name for argument in node.args[1:3] if isinstance(argument, Named)] if is_layer(node) else []
        for name in node.named():
            layer = name.rpartition(".")[0]
            alien = name not in own and (name in names or not name.endswith(".bias"))
            if f"{layer}.weight" in weights and alien:
                found.add(layer)
    return found


def _weights(graph: Graph) -> list[str]:
    return [node.args[1].name for node in graph.nodes if is_layer(node)]


def _bias(node: Node) -> str | None:
    return node.args[2].name if len(node.args) > 2 and node.args[2] is not None else None


def _own_biases(graph: Graph) -> dict[str, str]:
    """The bias of each layer that has one of its own: no other layer has it, and no other bias has its name."""
    of_layer: dict[str, set[str]] = {}
    readers: dict[str, set[str]] = {}
    for node in graph.nodes:
        bias = _bias(node) if is_layer(node) else None
        if bias is not None:
            of_layer.setdefault(layer_name(node), set()).add(bias)
            readers.setdefault(bias, set()).add(layer_name(node))
    own = {}
    for layer, biases in of_layer.items():
        (bias, *others) = sorted(biases)
        taken = f"{layer}.bias" != bias and f"{layer}.bias" in graph.tensors
        if not others and len(readers[bias]) == 1 and not taken:
            own[layer] = bias
    return own


def _added_behind(graph: Graph, own: Mapping[str, str]) -> Graph:
    """The graph where biases that are no layer's own, or are computed, are added to its result."""
    nodes: list[Node] = []
    shapes: list[Any] = [graph.shapes[0]]
    new: dict[int, int] = {}

    def moved(leaf: Any) -> Any:
        return Value(new[leaf.index]) if isinstance(leaf, Value) and leaf.index >= 0 else leaf

    for index, node in enumerate(graph.nodes):
        node = Node(node.op, replace_leaves(node.args, moved), replace_leaves(node.kwargs, moved))
        shape = graph.shape(index)
        added = _added(node, own)
        if added is not None:
            node = replace(node, args=(*node.args[:2], None, *node.args[3:]))
            nodes.append(node)
            shapes.append(shape)
            ones = (1,) * layer_type(node.op).spatial
            if ones:
                nodes.append(Node("reshape", (added, (-1, *ones))))
                added = Value(len(nodes) - 1)
                shapes.append((graph.tensors[node.args[1].name].shape[layer_type(node.op).output_axis], *ones))
            result = len(nodes) - 1 - bool(ones)
            node = Node("add", (Value(result), added))
        nodes.append(node)
        shapes.append(shape)
        new[index] = len(nodes) - 1
    return replace(graph, nodes=tuple(nodes), shapes=tuple(shapes))


def _added(node: Node, own: Mapping[str, str]) -> Any:
    """What a layer adds that is not its own bias; None for nothing."""
    if is_layer(node):
        bias = _bias(node)
        return None if bias is None or own.get(layer_name(node)) == bias else Named(bias)
    alone = replace(node, args=(*node.args[:2], None, *node.args[3:]))
    computed = len(node.args) > 2 and isinstance(node.args[2], Value) and is_layer(alone)
    return node.args[2] if computed and not layer_type(node.op).is_lookup else None


def _renamed(graph: Graph, names: Mapping[str, str]) -> Graph:
    """The graph with other names for some tensors; a name that is taken gets an underscore."""
    chosen: dict[str, str] = {}
    for old, new in names.items():
        while new != old and (new in graph.tensors or new in chosen.values()):
            new = f"{new.rpartition('.')[0]}_.{new.rpartition('.')[2]}"
        chosen[old] = new

    def rename(leaf: Any) -> Any:
        return Named(chosen.get(leaf.name, leaf.name)) if isinstance(leaf, Named) else leaf

    nodes = tuple(
        Node(node.op, replace_leaves(node.args, rename), replace_leaves(node.kwargs, rename)) for node in graph.nodes
    )
    tensors = {chosen.get(name, name): tensor for name, tensor in graph.tensors.items()}
    origins = {chosen.get(name, name): graph.origins.get(name, name) for name in graph.tensors}
    return replace(
        graph,
        nodes=nodes,
        tensors=tensors,
        buffers=frozenset(chosen.get(n, n) for n in graph.buffers),
        origins={name: origin for name, origin in origins.items() if name != origin},
        turned=frozenset(chosen.get(n, n) for n in graph.turned),
    )
