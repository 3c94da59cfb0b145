"""Statistics of batch normalisation for weights that changed after they were collected."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .errors import UsageError
from .graph import Graph, GraphNetwork, Named, Node


def reestimate_batch_norm(graph: Graph, batches: Iterable[Any]) -> Graph:
    """The graph with the mean and variance that each of its normalisations sees now, averaged over batches.

    Statistics collected in training include the noise of sampled weights, and units that were pruned since.

    :param graph: its tensors hold the weights to collect for.
    :param batches: of inputs ``(batch, …)``, or of tuples that begin with one; at least 2 examples each.
    :raises UsageError: where there is no batch.
    """
    statistics = {
        argument.name
        for node in graph.nodes
        if node.op == "batch_norm"
        for argument in node.args[3:5]
        if isinstance(argument, Named)
    }
    if not statistics:
        return graph
    network = GraphNetwork(graph.nodes, graph.tensors, graph.buffers)
    seen = 0
    with torch.no_grad():
        for batch in batches:
            x = batch if isinstance(batch, Tensor) else batch[0]
            if len(x) < 2:
                continue  # a last batch of one has no variance
            seen += 1
            network.run(_collecting(graph.nodes, 1 / seen), x.detach().cpu())  # a running mean over the batches
    if not seen:
        raise UsageError("there is no batch to collect the statistics of batch normalisation from")
    state = network.state_dict()
    return replace(graph, tensors={name: state.get(name, tensor) for name, tensor in graph.tensors.items()})


def _collecting(nodes: tuple[Node, ...], momentum: float) -> tuple[Node, ...]:
    """The nodes with normalisation by the batch's own statistics, which are added to the collected ones."""
    return tuple(
        replace(node, args=(*node.args[:5], True, momentum, *node.args[7:])) if node.op == "batch_norm" else node
        for node in nodes
    )
