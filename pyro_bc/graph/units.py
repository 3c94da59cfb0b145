r"""Which channels of a graph are one and the same: units, followed along every axis of every tensor.

A unit is what pruning keeps or removes whole: an output of a fully connected layer, a filter of a convolution, a head
of an attention. Along an axis that is followed, every entry belongs to a unit; a residual addition makes the units of
both its arguments one, a concatenation puts them side by side, flattening repeats each one for every position, a
depthwise convolution has the units of its input. An operation that mixes the entries of an axis, or is not known here,
fixes their units: they stay.
"""

from .layers_alone import shared_layers
from .nodes import Graph, Value
from .operations import operation
from .unit_rules import FollowedUnits


class Tracking(FollowedUnits):
    """The units of every axis that is followed in a graph, from its first node to its last."""

    def __init__(self, graph: Graph):
        super().__init__(graph)
        for self.units.position, node in enumerate(graph.nodes):
            self.values.append(operation(node.op).units(self, node))
        self.units.position = len(graph.nodes)
        self.fix_axes(Value(len(graph.nodes) - 1))
        for name in shared_layers(graph):
            for role in ("weight", "bias"):
                for units in self.tensors.get(f"{name}.{role}", {}).values():
                    self.units.fix(units)
