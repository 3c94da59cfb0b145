"""A network as a graph of tensor operations: read from any ``nn.Module``, run, followed unit by unit, exported."""

from typing import TYPE_CHECKING, Any

from .module import GraphNetwork
from .nodes import Graph, Named, Node, Value

if TYPE_CHECKING:
    from .read import read_graph as read_graph

__all__ = ["Graph", "GraphNetwork", "Named", "Node", "Value", "read_graph"]


def __getattr__(name: str) -> Any:
    if name == "read_graph":  # what reads a network takes longer to import than what runs one
        from .read import read_graph

        return read_graph
    raise AttributeError(f"module 'pyro_bc.graph' has no attribute '{name}'")
