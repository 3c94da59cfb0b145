"""What a network ends in: the last operation that makes numbers, and which numbers its outputs can be."""

from .nodes import Graph, Node, Value, is_layer

#: operations that move numbers, and make none.
_MOVES = {
    *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "permute", "t"),
    *("expand", "contiguous", "clone", "to", "slice", "select", "index.Tensor", "index_select", "flip", "roll"),
}
#: those whose results are any numbers, whatever they read.
_FREE = {
    *("matmul", "bmm", "mm", "mv", "addmm", "addbmm", "baddbmm", "einsum", "bilinear", "lookup", "embedding"),
    *("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "leaky_relu", "prelu"),
}
#: those that are free where something that they read is.
_MIXES = {"add", "sub", "mul", "div", "neg", "mean", "sum", "cumsum", "cat", "stack"}
_MIXING = ("upsample", "avg_pool", "adaptive_avg_pool")
#: those whose results are all numbers above 0, or some of them times any positive number.
_POSITIVE = {"relu", "softplus", "exp", "abs", "square"}


def last_operation(graph: Graph) -> str:
    """The operation that makes the outputs: behind it they are moved at most."""
    return _made(graph, len(graph.nodes) - 1).op


def outputs_are_free(graph: Graph) -> bool:
    """Whether outputs may be any numbers, so that they can be shifted and scaled; False where that is not known."""
    return _is_free(graph, len(graph.nodes) - 1)


def outputs_are_positive(graph: Graph) -> bool:
    """Whether outputs are positive, and may be as large as any."""
    return last_operation(graph) in _POSITIVE


def _made(graph: Graph, index: int) -> Node:
    node = graph.nodes[index]
    while node.op in _MOVES and isinstance(node.args[0], Value) and node.args[0].index >= 0:
        node = graph.nodes[node.args[0].index]
    return node


def _is_free(graph: Graph, index: int) -> bool:
    if index < 0:
        return True  # an input
    node = _made(graph, index)
    if is_layer(node) or node.op in _FREE:
        return True
    return (node.op in _MIXES or node.op.startswith(_MIXING)) and any(_is_free(graph, own) for own in node.values())
