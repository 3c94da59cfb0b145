"""Recurrent cells in a graph: one layer of them a node, and every matrix under a layer's name.

A matrix ``rnn.weight_ih_l0`` and its bias are ``rnn.weight_ih_l0.weight`` and ``rnn.weight_ih_l0.bias`` in a graph. Its
rows are the gates of the hidden units, one gate after the other, and its columns what the cell reads: inputs, or the
hidden units themselves (``hh``). A hidden unit whose column no other unit reads, nor a layer behind it, is not
computed.
"""

from collections import Counter
from dataclasses import replace
from typing import Any, NamedTuple

from .cells import GATES
from .nodes import Graph, Named, Node, Value, replace_leaves, without_dead_code


class Cell(NamedTuple):
    """Names of one cell's tensors; biases are None where there are none."""

    ih: str
    hh: str
    bias_ih: str | None
    bias_hh: str | None


def cells(node: Node) -> list[Cell]:
    """The cells of a node, of each layer both directions; none where it is none, or its weights are no tensors."""
    if node.op not in GATES or len(node.args) != 9 or node.kwargs or not isinstance(node.args[2], tuple):
        return []
    weights, has_biases, layers, bidirectional = node.args[2], node.args[3], node.args[4], node.args[7]
    each = 4 if has_biases else 2
    if not all(isinstance(weight, Named) for weight in weights) or len(weights) != each * layers * (1 + bidirectional):
        return []
    names = [weight.name for weight in weights]
    parts = [names[i : i + each] for i in range(0, len(names), each)]
    return [Cell(*part) if has_biases else Cell(part[0], part[1], None, None) for part in parts]


def matrices(graph: Graph) -> dict[str, str | None]:
    """Names of the matrices of a graph's recurrent cells, each with that of its bias."""
    found: dict[str, str | None] = {}
    for node in graph.nodes:
        for cell in cells(node):
            found |= {cell.ih: cell.bias_ih, cell.hh: cell.bias_hh}
    return found


def cell_names(graph: Graph) -> list[str]:
    """The names that the matrices have as layers."""
    return [name.removesuffix(".weight") for name in matrices(graph) if name.endswith(".weight")]


def names_as_layers(graph: Graph) -> dict[str, str]:
    """New names for the matrices and biases of all cells, where each bias is that of one matrix."""
    found = matrices(graph)
    uses = Counter(bias for bias in found.values() if bias is not None)
    names: dict[str, str] = {}
    for weight, bias in found.items():
        if weight.endswith(".weight"):
            continue
        names[weight] = f"{weight}.weight"
        if bias is not None and uses[bias] == 1:
            names[bias] = f"{weight}.bias"
    return names


def layers_apart(graph: Graph) -> Graph:
    """The graph with a node of its own for each layer and direction of recurrent cells whose last states nothing reads.

    Such cells may have different numbers of hidden units, and read different inputs.
    """
    nodes: list[Node] = []
    shapes: list[Any] = [graph.shapes[0]]
    new: dict[int, int] = {}
    whole: set[int] = set()

    def moved(leaf: Any) -> Any:
        return Value(new.get(leaf.index, leaf.index)) if isinstance(leaf, Value) else leaf

    def add(node: Node, shape: Any) -> Value:
        nodes.append(node)
        shapes.append(shape)
        return Value(len(nodes) - 1)

    for index, node in enumerate(graph.nodes):
        own = Node(node.op, replace_leaves(node.args, moved), replace_leaves(node.kwargs, moved))
        shape = graph.shape(index)
        if _reads_outputs(node) and node.args[0].index in whole:
            new[index] = new[node.args[0].index]  # the outputs of both directions
            continue
        if not _is_stack(graph, index):
            new[index] = add(own, shape).index
            continue
        if node.args[7]:
            whole.add(index)
        layers, directions = node.args[4], 1 + node.args[7]
        each, steps = len(node.args[2]) // (layers * directions), 1 if node.args[8] else 0
        *outer, width = graph.shape(next(i for i, other in enumerate(graph.nodes) if index in other.values())) or ()
        x = own.args[0]
        for layer in range(layers):
            read, given, results = graph.shape(node.args[0].index) if layer == 0 else (*outer, width), x, []
            for backwards in range(directions):
                if backwards:  # from the last step to the first
                    given = add(Node("flip", (x, (steps,))), read)
                states = []
                for state in _states(own):
                    zeros, size = nodes[state.index], shapes[state.index + 1]
                    sizes = (1, *zeros.args[0][1:])
                    states.append(add(replace(zeros, args=(sizes, *zeros.args[1:])), (1, *size[1:])))
                first = (layer * directions + backwards) * each
                state = tuple(states) if node.op == "lstm" else states[0]
                rest = (own.args[3], 1, *own.args[5:7], False, own.args[8])
                cell = add(replace(own, args=(given, state, own.args[2][first : first + each], *rest)), None)
                if layers == layer + 1 and directions == 1:
                    break
                result = add(Node("getitem", (cell, 0)), (*outer, width // directions))
                results.append(
                    add(Node("flip", (result, (steps,))), (*outer, width // directions)) if backwards else result
                )
            if directions == 2:
                x = add(Node("cat", (tuple(results), 2)), (*outer, width))
            elif layer + 1 < layers:
                x = results[0]
        new[index] = cell.index if directions == 1 else x.index
    return without_dead_code(replace(graph, nodes=tuple(nodes), shapes=tuple(shapes)))


def _states(node: Node) -> tuple[Any, ...]:
    return node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)


def _is_stack(graph: Graph, index: int) -> bool:
    """Whether a node is several cells that begin with zeros, of which only the last ones' outputs are read."""
    node = graph.nodes[index]
    if not cells(node) or (node.args[4] < 2 and not node.args[7]) or not isinstance(node.args[0], Value):
        return False
    from_zeros = all(
        isinstance(state, Value) and state.index >= 0 and graph.nodes[state.index].op == "zeros"
        for state in _states(node)
    )
    readers = [other for other in graph.nodes if index in other.values()]
    return from_zeros and bool(readers) and all(map(_reads_outputs, readers))


def _reads_outputs(node: Node) -> bool:
    """Whether a node is the outputs of another, of those that have several results."""
    return node.op == "getitem" and node.args[1] == 0 and isinstance(node.args[0], Value)
