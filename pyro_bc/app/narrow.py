"""A narrower network in place of a dense one: where a training under a learned code may start."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..file.chain import Layer, find_chain, prune
from ..graph.module import GraphNetwork
from ..graph.nodes import Graph, is_layer


def narrowed(graph: Graph, widths: tuple[int, ...]) -> Graph:
    """A chain with fewer hidden units, freshly initialised, in place of the dense network.

    :param graph: the dense network's; a chain (:mod:`pyro_bc.file.chain`).
    :param widths: outputs of every layer but the last.
    :raises UsageError: where the network is no chain, or a width is impossible.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in graph.tensors.items()}
    weights = [node.args[1].name for node in graph.nodes if is_layer(node)]
    dense_shapes = {name: (shapes[name][0], shapes[name][1]) for name in weights}
    input_shape = tuple(size for size in graph.shapes[0] or () if isinstance(size, int))
    found = find_chain(graph.nodes, shapes, dense_shapes, input_shape)
    if found is None:
        raise UsageError("widths can be given for a chain of layers, activations and pools only; this network is none")
    layers = [step for step in found[0].steps if isinstance(step, Layer)]
    most = [layer.outputs for layer in layers[:-1]]
    if len(widths) != len(most) or not all(1 <= width <= limit for width, limit in zip(widths, most, strict=False)):
        raise UsageError(f"widths are {len(most)} numbers of at most {'-'.join(map(str, most))}, not {widths}")
    small = prune(found[0], (*widths, layers[-1].outputs))
    tensors: dict[str, Tensor] = {}
    for name, shape in zip(shapes, small.shapes.values(), strict=True):
        tensors[name] = torch.zeros(shape)
        if len(shape) > 1:
            tensors[name].normal_(0, math.sqrt(2 / math.prod(shape[1:])))  # He et al. 2015, for rectified units
    meta = {name: tensor.to("meta") for name, tensor in tensors.items()}
    return Graph(graph.nodes, tensors, _shapes(graph, meta), graph.buffers)


def _shapes(graph: Graph, tensors: Mapping[str, Tensor]) -> tuple[tuple[Any, ...] | None, ...]:
    """Shapes of the results with other tensors; the batch comes first in all results of a chain."""
    batch, *rest = graph.shapes[0] or ()
    results = GraphNetwork(graph.nodes, tensors, graph.buffers).results(
        graph.nodes, torch.empty(2, *rest, device="meta")
    )
    return (graph.shapes[0], *((batch, *value.shape[1:]) for value in results))
