"""Statistics of batch normalisation for weights that changed after they were collected."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..data.loaders import inputs_of
from ..errors import UsageError
from ..graph.layer_types import layer_type
from ..graph.layers_alone import shared_layers
from ..graph.module import GraphNetwork
from ..graph.nodes import Graph, Named, Node, Value, is_layer, layer_groups, layer_name, without_nodes
from ..graph.read import read_graph
from ..posterior.summary import LayerPosterior
from ..runtime.inputs import tensors_of
from .pruned import PrunedLayer, masked_layers, with_weights


def fold_batch_norm(net: nn.Module, example: Tensor) -> GraphNetwork:
    """The network in evaluation mode with batch normalisation inside the layers before it, where there is one.

    What to do with a pretrained network before it becomes Bayesian: normalisation over a batch would undo the scales
    of filters. Dropout falls away.

    :param net: the network; it is not changed.
    :param example: a batch of inputs, ``(batch, …)``; its values do not matter.
    :raises UnsupportedNetworkError: as :func:`~pyro_bc.graph.read.read_graph`.
    """
    graph = read_graph(net, example)
    layers = masked_layers(graph, {}, {})
    graph = with_weights(*fold_batch_norms(graph, layers))
    return GraphNetwork(graph.nodes, graph.tensors, graph.buffers).to(example.device)


def fold_batch_norms(graph: Graph, layers: dict[str, PrunedLayer]) -> tuple[Graph, dict[str, PrunedLayer]]:
    """The graph without the normalisations whose input is a layer that nothing else reads, and that is no code."""
    readers: dict[int, list[int]] = {}
    for index, node in enumerate(graph.nodes):
        for value in node.values():
            readers.setdefault(value, []).append(index)
    uses = [layer_name(node) for node in graph.nodes if is_layer(node)]
    shared = shared_layers(graph)
    nodes, tensors, layers = list(graph.nodes), dict(graph.tensors), dict(layers)
    folded: dict[int, int] = {}
    for index, node in enumerate(graph.nodes):
        if node.op != "batch_norm" or not isinstance(node.args[0], Value):
            continue
        source = node.args[0].index
        if source < 0 or not is_layer(nodes[source]) or readers[source] != [index]:
            continue
        kind = layer_type(nodes[source].op)
        adds_nothing = kind.is_lookup or (kind.is_transposed and layer_groups(nodes[source]) > 1)
        if len(graph.shape(source) or ()) != kind.spatial + 2 or adds_nothing:
            continue
        name = layer_name(nodes[source])
        statistics = [None if a is None else tensors[a.name] for a in node.args[1:5]]
        if uses.count(name) > 1 or name in shared or statistics[2] is None or node.args[5] or layers[name].codes:
            continue
        gain, shift, mean, variance = statistics
        assert mean is not None and variance is not None
        factor = (torch.ones_like(mean) if gain is None else gain) / (variance + node.args[7]).sqrt()
        layer = layers[name]
        bias = torch.zeros_like(mean) if layer.bias is None else layer.bias
        bias = (bias - mean) * factor + (0 if shift is None else shift)
        over = kind.over_outputs(factor, layer.weight.shape)
        layers[name] = replace(
            layer,
            weight=layer.weight * over,
            variance=layer.variance * over.square(),
            bias=bias,
            bias_variance=new_bias_variance(layer, len(factor)) * factor.square(),
        )
        nodes[source] = with_bias(nodes[source])
        tensors[f"{name}.bias"] = bias
        folded[index] = source
    graph = replace(graph, nodes=tuple(nodes), tensors=tensors)
    return without_nodes(graph, folded), layers


def fold_into_posterior(
    graph: Graph, posterior: Mapping[str, LayerPosterior]
) -> tuple[Graph, dict[str, LayerPosterior], dict[str, Tensor]]:
    """The graph without the normalisations that can be folded, and the posterior of what their layers are then.

    :param posterior: by the layer's name in the graph.
    :returns: also by what each layer's outputs were multiplied, squared, ``(out,)``.
    """
    layers = masked_layers(graph, {}, {})
    for name, layer in layers.items():
        own = posterior.get(name)
        weight, bias = (layer.weight, layer.bias) if own is None else (own.weight_mean, own.bias_mean)
        bias = layer.bias if bias is None else bias
        layers[name] = replace(layer, weight=weight, bias=bias, variance=torch.ones_like(weight))
    graph, layers = fold_batch_norms(graph, layers)
    graph = with_weights(graph, layers)
    found, factors = dict(posterior), {}
    for name, own in posterior.items():
        if name not in layers:
            continue
        folded, kind = layers[name], own.layer_type
        squared = kind.by_output(folded.variance).flatten(1)[:, 0]
        variance = own.weight_variance * kind.over_outputs(squared, own.weight_variance.shape)
        bias_variance = own.bias_variance
        if folded.bias is not None:
            bias_variance = (own.weight_variance.median() if bias_variance is None else bias_variance) * squared
        factors[name] = squared
        found[name] = replace(
            own, weight_mean=folded.weight, weight_variance=variance, bias_mean=folded.bias, bias_variance=bias_variance
        )
    return graph, found, factors


def new_bias_variance(layer: PrunedLayer, outputs: int) -> Tensor:
    """The bias's variance; for a bias that the layer did not have, a middling one of its weights'."""
    if layer.bias_variance is not None:
        return layer.bias_variance
    known = layer.variance[layer.mask]
    return torch.full((outputs,), float(known.median()) if len(known) else 0.0)


def with_bias(node: Node) -> Node:
    return replace(node, args=(*node.args[:2], Named(f"{layer_name(node)}.bias"), *node.args[3:]))


def reestimate_batch_norm(graph: Graph, batches: Iterable[Any]) -> Graph:
    """The graph with the mean and variance that each of its normalisations sees now, averaged over batches.

    Statistics collected in training include the noise of sampled weights, and units that were pruned since.

    :param graph: its tensors hold the weights to collect for.
    :param batches: of inputs, a tensor or a dictionary of several, or tuples that begin with them; at least 2 examples
        each.
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
            tensors = [part.detach().cpu() for part in tensors_of(inputs_of(batch))]
            if len(tensors[0]) < 2:
                continue  # a last batch of one has no variance
            seen += 1
            network.run(_collecting(graph.nodes, 1 / seen), *tensors)  # a running mean over the batches
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
