"""Whether a network's outputs are what a likelihood takes: an activation that the likelihood applies comes twice."""

from typing import Any

from torch import nn

from ..errors import PyroBCError
from ..graph.ending import last_operation
from ..graph.nodes import Graph
from ..graph.read import graph_of_same
from .likelihoods import Likelihood


def activated_twice(graph: Graph, likelihood: Likelihood) -> str:
    """What is wrong with a network that ends in what the likelihood applies; empty where it does not.

    :param graph: the network's.
    """
    last = last_operation(graph)
    if last not in likelihood.applies:
        return ""
    takes = {"softmax": "logits", "sigmoid": "logits"}.get(last, "logarithms of rates")
    return (
        f"the network ends in {last}, but the likelihood {type(likelihood).__name__} takes {takes}, and applies it "
        f"itself: leave the {last} out of the network"
    )


def said_of_outputs(model: Any, args: tuple[Any, ...]) -> str:
    """The same of a :class:`~pyro_bc.BayesianNetwork`, where its network can be read.

    :param args: of the model, the network's input first.
    """
    net, likelihood = getattr(model, "skeleton", None), getattr(model, "likelihood", None)
    if not isinstance(net, nn.Module) or not isinstance(likelihood, Likelihood) or not args:
        return ""
    if not any(True for _ in net.children()):  # a layer alone
        return ""
    try:
        return activated_twice(graph_of_same(net, args[0], model.output), likelihood) if likelihood.applies else ""
    except PyroBCError:  # which is said where it matters
        return ""
