"""A network as a graph: nodes, what they refer to, and what can be done with a tuple of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .layer_types import LAYER_TYPES, layer_type

#: types of tensors as a graph's literals name them.
DTYPE_NAMES = {
    getattr(torch, name): name
    for name in (
        *("float32", "int64", "bool", "float16", "bfloat16", "float64", "int32", "int16", "int8", "uint8", "complex64"),
    )
}

DTYPES_BY_NAME = {name: dtype for dtype, name in DTYPE_NAMES.items()}


@dataclass(frozen=True)
class Value:
    """What node ``index`` computed; index −1 is the network's input, −2 its second one, and so on."""

    index: int


@dataclass(frozen=True)
class Named:
    """The tensor of this name."""

    name: str


@dataclass(frozen=True)
class Node:
    """One operation of the graph.

    :param op: its name in :data:`OPERATIONS`.
    :param args: :class:`Value`, :class:`Named`, ``None``, bool, int, float, str, or tuples of them.
    :param kwargs: pairs of name and argument.
    """

    op: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...] = ()

    def values(self) -> list[int]:
        """Indices of the nodes whose results this one uses."""
        return [leaf.index for leaf in leaves((self.args, self.kwargs)) if isinstance(leaf, Value)]

    def named(self) -> list[str]:
        """Names of the tensors that it uses."""
        return [leaf.name for leaf in leaves((self.args, self.kwargs)) if isinstance(leaf, Named)]


@dataclass(frozen=True)
class Graph:
    """A network; the last node is its output.

    :param nodes: in the order in which they run.
    :param tensors: weights and buffers by name, detached.
    :param shapes: shape of every node's result, of the input first; a dimension that depends on the batch size is
        a string. None for what is no tensor.
    :param buffers: names of the tensors that training leaves alone.
    :param further_inputs: shapes of the inputs behind the first.
    :param folded: names of the network's tensors that tensors of the graph were computed from.
    :param origins: what tensors are called in the network that was read, where that is another name.
    :param turned: names of the tensors that are a matrix of that network turned over.
    """

    nodes: tuple[Node, ...]
    tensors: Mapping[str, Tensor]
    shapes: tuple[tuple[Any, ...] | None, ...]
    buffers: frozenset[str] = frozenset()
    further_inputs: tuple[tuple[Any, ...], ...] = ()
    folded: frozenset[str] = frozenset()
    origins: Mapping[str, str] = field(default_factory=dict)
    turned: frozenset[str] = frozenset()

    def shape(self, index: int) -> tuple[Any, ...] | None:
        """Shape of a node's result, or of an input (−1, −2, …)."""
        return self.shapes[index + 1] if index >= -1 else self.further_inputs[-2 - index]


#: operations that are layers, where their weight is a tensor of the network.
LAYERS = tuple(row.op for row in LAYER_TYPES)


def is_layer(node: Node) -> bool:
    """Whether a node is a fully connected layer or convolution with a weight of its own."""
    bias = node.args[2] if len(node.args) > 2 else None
    return (
        node.op in LAYERS
        and len(node.args) > 1
        and isinstance(node.args[1], Named)
        and (bias is None or isinstance(bias, Named))
    )


def layer_name(node: Node) -> str:
    """The name of a layer, from that of its weight."""
    return node.args[1].name.removesuffix(".weight")


def layer_nodes(graph: "Graph") -> dict[str, Node]:
    """Every layer by name, with the first of the nodes that compute it; a lookup only where there is no other."""
    found: dict[str, Node] = {}
    for node in filter(is_layer, graph.nodes):
        known = found.setdefault(layer_name(node), node)
        if layer_type(known.op).is_lookup and not layer_type(node.op).is_lookup:
            found[layer_name(node)] = node
    return found


def layer_groups(node: Node) -> int:
    """``groups`` of a convolution; 1 for a fully connected layer."""
    return int(layer_arguments(node).get("groups", 1))


def layer_arguments(node: Node) -> dict[str, Any]:
    """A layer's arguments behind weight and bias, by the names that torch's module has for them."""
    return dict(zip(layer_type(node.op).arguments, node.args[3:], strict=False))


def leaves(tree: Any) -> list[Any]:
    """Everything in nested tuples, in order."""
    if isinstance(tree, tuple):
        return [leaf for branch in tree for leaf in leaves(branch)]
    return [tree]


def replace_leaves(tree: Any, change: Callable[[Any], Any]) -> Any:
    """Nested tuples with every leaf changed."""
    if isinstance(tree, tuple):
        return tuple(replace_leaves(branch, change) for branch in tree)
    return change(tree)


def arguments(node: Node, lookup: Callable[[Any], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments of a node's operation, what it refers to looked up."""
    args = tuple(_as_list(replace_leaves(argument, lookup)) for argument in node.args)
    kwargs = {key: _as_list(replace_leaves(value, lookup)) for key, value in node.kwargs}
    if "dtype" in kwargs:
        kwargs["dtype"] = DTYPES_BY_NAME[kwargs["dtype"]]
    return args, kwargs


def _as_list(argument: Any) -> Any:
    return list(argument) if isinstance(argument, tuple) else argument


def of_input(nodes: Sequence[Node], but: str = "") -> list[bool]:
    """Which of these nodes depend on an input.

    :param but: an operation through which none is looked for.
    """
    found: list[bool] = []
    for node in nodes:
        found.append(node.op != but and any(index < 0 or found[index] for index in node.values()))
    return found


def reads_input(nodes: Sequence[Node]) -> bool:
    """Whether the last of these nodes, the output, depends on an input."""
    return any(of_input(nodes)[-1:])


def reads_numbers(nodes: Sequence[Node]) -> bool:
    """Whether the output depends on what an input holds, and not on its size alone."""
    return any(of_input(nodes, but="size")[-1:])


def last_reads(nodes: Sequence[Node]) -> list[list[int]]:
    """For every node, the results that nothing reads behind it, its own among them where nothing reads it at all.

    A network that frees these has no more in memory than one that is written by hand. The last result is the output.
    """
    last = {index: index for index in range(len(nodes) - 1)}
    for position, node in enumerate(nodes):
        last |= dict.fromkeys((index for index in node.values() if index != len(nodes) - 1), position)
    done: list[list[int]] = [[] for _ in nodes]
    for index, position in last.items():
        done[position].append(index)
    return done


def without_dead_code(graph: Graph) -> Graph:
    """Only the nodes and tensors that the output depends on."""
    used = {len(graph.nodes) - 1}
    for index in reversed(range(len(graph.nodes))):
        if index in used:
            used.update(graph.nodes[index].values())
    kept = [index for index in range(len(graph.nodes)) if index in used]
    return select_nodes(graph, kept)


def select_nodes(graph: Graph, kept: list[int]) -> Graph:
    """The graph with only these nodes, renumbered, and the tensors that they use."""
    new = {index: position for position, index in enumerate(kept)}

    def renumber(leaf: Any) -> Any:
        return Value(new[leaf.index]) if isinstance(leaf, Value) and leaf.index >= 0 else leaf

    nodes = []
    for index in kept:
        node = graph.nodes[index]
        nodes.append(Node(node.op, replace_leaves(node.args, renumber), replace_leaves(node.kwargs, renumber)))
    names = dict.fromkeys(name for node in nodes for name in node.named())
    shapes = (graph.shapes[0], *(graph.shapes[index + 1] for index in kept))
    tensors = {name: graph.tensors[name] for name in names}
    return replace(graph, nodes=tuple(nodes), tensors=tensors, shapes=shapes, buffers=graph.buffers.intersection(names))


def without_nodes(graph: Graph, replaced: Mapping[int, int]) -> Graph:
    """The graph without some nodes, each of which gives way to an earlier one."""

    def redirect(leaf: Any) -> Any:
        return Value(replaced.get(leaf.index, leaf.index)) if isinstance(leaf, Value) else leaf

    nodes = tuple(
        Node(node.op, replace_leaves(node.args, redirect), replace_leaves(node.kwargs, redirect))
        for node in graph.nodes
    )
    kept = [index for index in range(len(nodes)) if index not in replaced]
    if len(nodes) - 1 in replaced:  # the output itself gave way
        kept = [index for index in kept if index <= replaced[len(nodes) - 1]]
    return select_nodes(replace(graph, nodes=nodes), kept)
