"""Constants that move through a graph: what a unit that reads nothing computes, behind activations and sums."""

from collections.abc import Mapping

import numpy as np

from .constant_rules import Constant
from .nodes import Graph, is_layer, layer_name
from .operations import operation
from .unit_rules import layer_axis


def propagate(
    graph: Graph, outputs: Mapping[str, np.ndarray], operations: Mapping[str, str] | None = None
) -> list[Constant]:
    """Which entries of every node's result are the same constant whatever the input.

    :param outputs: by the name of a layer, what each of its outputs is whatever it reads, or NaN.
    :param operations: by the name of a layer, the one whose results these are, where it is used in several ways.
    """
    constants: list[Constant] = []
    for index, node in enumerate(graph.nodes):
        constant: Constant = None
        row = operation(node.op)
        if is_layer(node) and (operations or {}).get(layer_name(node), node.op) == node.op:
            constant = (layer_axis(node, len(graph.shape(index) or ())), outputs[layer_name(node)])
        elif row.constants is not None:
            constant = row.constants(node, graph, constants, index, row.function)
        constants.append(None if constant is None or np.isnan(constant[1]).all() else constant)
    return constants
