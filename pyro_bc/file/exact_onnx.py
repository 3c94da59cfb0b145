"""What of an ONNX graph may not be rounded to bytes, as a little more or less of it is something else altogether.

A position that is counted in floats and cast to an integer becomes the one before where rounding takes a hair of it; so
do comparisons, the largest of some numbers, and whatever else decides. All that goes into a decision stays in floats,
back to the products that it is made of. A softmax stays in floats, too, as ONNX Runtime would give it steps of 1/256
whatever it comes to: over hundreds of places most weights are less than that. What reads it gives it the range that
calibration saw.
"""

from collections.abc import Iterable
from typing import Any

#: operations that decide, beside casts to integers.
_DECIDE = {
    "ArgMax", "ArgMin", "Ceil", "Equal", "Floor", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mod", "NonZero",
    "Round", "Sign", "TopK",
}  # fmt: skip
#: what is rounded there is a range that calibration has seen, and the price of int8.
_PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "LayerNormalization", "BatchNormalization"}
# Types of numbers that have no fraction, in ONNX's protocol: integers and booleans.
_WHOLE = {2, 3, 4, 5, 6, 7, 9, 12, 13}


def exact_nodes(graph: Any) -> list[str]:
    """Names of the nodes that stay in floats.

    :param graph: an ONNX graph whose nodes have names.
    """
    made_by = {name: node for node in graph.node for name in node.output}
    found: dict[str, None] = {}
    waiting: list[Iterable[str]] = [node.input for node in graph.node if _decides(node)]
    while waiting:
        for name in waiting.pop():
            node = made_by.get(name)
            if node is not None and node.name not in found and node.op_type not in _PRODUCTS:
                found[node.name] = None
                waiting.append(node.input)
    return list(found | {node.name: None for node in graph.node if node.op_type == "Softmax"})


def _decides(node: Any) -> bool:
    if node.op_type == "Cast":
        return any(own.name == "to" and own.i in _WHOLE for own in node.attribute)
    return node.op_type in _DECIDE
