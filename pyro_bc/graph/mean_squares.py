"""Root mean squares that a network computes step by step, as the normalisation that they are.

``x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)`` is ``torch.nn.functional.rms_norm``, through which channels
are followed one by one; a mean alone mixes them.
"""

from dataclasses import replace
from typing import Any

from .nodes import Graph, Node, Value


def with_root_mean_squares(graph: Graph) -> Graph:
    """The graph with ``rms_norm`` wherever something is divided by its own root mean square over the last axis."""
    nodes = list(graph.nodes)
    for index, node in enumerate(graph.nodes):
        found = _normalised(graph, node)
        if found is not None:
            x, eps = found
            size = (graph.shape(x.index) or ("",))[-1]
            if isinstance(size, int) and graph.shape(x.index) == graph.shape(index):
                nodes[index] = Node("rms_norm", (x, (size,), None, eps))
    return replace(graph, nodes=tuple(nodes))


def _normalised(graph: Graph, node: Node) -> tuple[Value, float] | None:
    """What is divided by its root mean square, and what is added to the square; None where that is not it."""
    if node.op not in ("mul", "div") or len(node.args) != 2 or node.kwargs:
        return None
    sides = (node.args, node.args[::-1]) if node.op == "mul" else (node.args,)
    for x, by in sides:
        root = _made_by(graph, by, "rsqrt" if node.op == "mul" else "sqrt")
        total = None if root is None else _made_by(graph, root.args[0], "add")
        if not isinstance(x, Value) or total is None or total.kwargs or len(total.args) != 2:
            continue
        mean, eps = total.args if isinstance(total.args[1], int | float) else total.args[::-1]
        of_squares = _made_by(graph, mean, "mean")
        if not isinstance(eps, int | float) or of_squares is None or not _is_over_last(graph, of_squares, x):
            continue
        if _is_square(graph, of_squares.args[0], x):
            return x, float(eps)
    return None


def _made_by(graph: Graph, value: Any, op: str) -> Node | None:
    if not isinstance(value, Value) or value.index < 0:
        return None
    node = graph.nodes[value.index]
    return node if node.op == op else None


def _is_over_last(graph: Graph, mean: Node, x: Value) -> bool:
    last = len(graph.shape(x.index) or ()) - 1
    dims, keeps = (*mean.args, None, None)[1:3]
    return keeps is True and not mean.kwargs and dims in ((-1,), (last,))


def _is_square(graph: Graph, value: Any, x: Value) -> bool:
    power, square, product = (_made_by(graph, value, op) for op in ("pow", "square", "mul"))
    if power is not None:
        return power.args == (x, 2) or power.args == (x, 2.0)
    return (square is not None and square.args == (x,)) or (product is not None and product.args == (x, x))
