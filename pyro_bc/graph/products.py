"""Products with a parameter as layers, however the network writes them: ``x @ w``, ``x @ w.T``, a table's rows.

A layer's weight is the second argument of its operation, with its outputs where the operation's row has them
(:mod:`pyro_bc.graph.layer_types`). Other ways to multiply with a parameter are brought into this form; a matrix that
is used the other way round everywhere is kept as its transpose.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from .nodes import Graph, Named, Node, Value, without_dead_code

# Operations that turn a matrix over, with the arguments that say so.
_TURNING: dict[str, tuple[tuple[Any, ...], ...]] = {
    "t": ((),),
    "transpose": ((0, 1), (1, 0), (-1, -2), (-2, -1), (0, -1), (-1, 0)),
    "permute": (((1, 0),),),
}


def products_as_layers(graph: Graph) -> Graph:
    """The graph with its products with parameters as layers, and its lookups in tables."""
    nodes = [_lookup(node, graph) for node in graph.nodes]
    nodes = [_product(node, nodes, graph) for node in nodes]
    graph = without_dead_code(replace(graph, nodes=tuple(nodes)))
    turned = _turned_everywhere(graph)
    nodes = [_with_matrix(node, graph.nodes, turned) for node in graph.nodes]
    tensors = {name: t.T.contiguous() if name in turned else t for name, t in graph.tensors.items()}
    graph = replace(graph, nodes=tuple(nodes), tensors=tensors, turned=frozenset(turned))
    return without_dead_code(graph)


def _matrix(graph: Graph, argument: Any) -> bool:
    """Whether an argument is a parameter of two dimensions."""
    is_parameter = isinstance(argument, Named) and argument.name not in graph.buffers
    return is_parameter and graph.tensors[argument.name].dim() == 2


def _lookup(node: Node, graph: Graph) -> Node:
    """Rows of a table, its indices first as a layer has its input."""
    if node.op != "embedding" or not isinstance(node.args[0], Named) or not isinstance(node.args[1], Value | Named):
        return node
    if not graph.tensors[node.args[0].name].is_floating_point():
        return node
    padding = (*node.args, -1)[2]
    more = (None, padding) if isinstance(padding, int) and padding >= 0 else ()
    return Node("lookup", (node.args[1], node.args[0], *more))


def _product(node: Node, nodes: list[Node], graph: Graph) -> Node:
    """``x @ w.T`` as a layer; what sums over indices as that, or as ``x @ w``."""
    if node.op == "einsum":
        node = _summed(node)
    parts = _factors(node)
    if parts is None:
        return node
    x, weight, bias = parts
    before = nodes[weight.index] if isinstance(weight, Value) and weight.index >= 0 else None
    if before is None or not _matrix(graph, before.args[0]):
        return node
    turns = before.args[1:] in _TURNING.get(before.op, ())
    return Node("linear", (x, before.args[0], *bias)) if turns else node


def _factors(node: Node) -> tuple[Any, Any, tuple[Any, ...]] | None:
    """What a product multiplies, and what it adds; None where it is none, or its left factor is no result."""
    if node.kwargs:
        return None
    if node.op in ("matmul", "mm") and len(node.args) == 2 and isinstance(node.args[0], Value):
        return node.args[0], node.args[1], ()
    if node.op == "addmm" and len(node.args) == 3 and isinstance(node.args[1], Value):
        return (node.args[1], node.args[2], node.args[:1]) if isinstance(node.args[0], Named) else None
    return None


def _summed(node: Node) -> Node:
    """``einsum("bi,oi->bo", x, w)`` and the like, the input's letters in its order."""
    equation, operands = node.args[0], node.args[1]
    if len(operands) != 2 or "..." in equation or "->" not in equation or not isinstance(operands[0], Value):
        return node
    left, result = equation.replace(" ", "").split("->")
    first, second = left.split(",")
    inner = first[-1:]
    outer = second.replace(inner, "") if inner else ""
    distinct = len(set(first)) == len(first) and len(second) == 2 and len(outer) == 1
    if not isinstance(operands[1], Named) or not distinct or outer in first or result != first[:-1] + outer:
        return node
    return Node("linear" if second == outer + inner else "matmul", tuple(operands))


def _turned_everywhere(graph: Graph) -> set[str]:
    """Parameters w that are used as ``x @ w``, or ``linear(x, w.T)``, and in no other way."""
    uses: dict[str, list[bool]] = {}
    for index, node in enumerate(graph.nodes):
        for name in node.named():
            argument, parts = Named(name), _factors(node)
            product = parts is not None and parts[1] == argument and parts[2] != (argument,)
            turning = node.args[0] == argument and node.args[1:] in _TURNING.get(node.op, ())
            product |= turning and all(
                other.op == "linear" and other.args[1] == Value(index) and other.values().count(index) == 1
                for other in _readers(graph.nodes, index)
            )
            uses.setdefault(name, []).append(product and _matrix(graph, argument))
    return {name for name, turned in uses.items() if all(turned)}


def _readers(nodes: Iterable[Node], index: int) -> list[Node]:
    return [node for node in nodes if index in node.values()]


def _with_matrix(node: Node, nodes: tuple[Node, ...], turned: set[str]) -> Node:
    """A node with a layer's form where its matrix is one that was turned over."""
    parts = _factors(node)
    if parts is not None and isinstance(parts[1], Named) and parts[1].name in turned:
        return Node("linear", (*parts[:2], *parts[2]))
    weight = node.args[1] if node.op == "linear" else None
    matrix = nodes[weight.index].args[0] if isinstance(weight, Value) and weight.index >= 0 else None
    if isinstance(matrix, Named) and matrix.name in turned:
        return replace(node, args=(node.args[0], matrix, *node.args[2:]))
    return node
