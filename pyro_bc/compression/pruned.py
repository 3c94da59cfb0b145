"""What is left of a network after pruning, and the posterior of its layers."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import UsageError
from ..graph.nodes import Graph, is_layer, layer_name
from ..graph.recurrent import cell_names
from ..posterior.in_place import pruned
from ..posterior.summary import LayerPosterior
from ..posterior.thresholds import Threshold
from ..quantisation.fixed_point import FixedPoint
from ..runtime.shapes import on_axis


@dataclass(frozen=True)
class PrunedLayer:
    """What is left of a fully connected layer or convolution.

    :param name: the layer's name in the network.
    :param weight: posterior mean, zero where pruned, ``(out_left, in_left)`` or ``(out_left, in_left, *kernel)``.
    :param variance: posterior variance, same shape; 0 for a deterministic layer.
    :param mask: which weights are left, same shape.
    :param bias: ``(out_left,)`` or None.
    :param bias_variance: ``(out_left,)`` or None; 0 for a deterministic layer.
    :param codes: how weight and bias are stored, where they are codes, of the same shapes; empty elsewhere.
    :param kept: which entries of the first two axes of the network's own weight these are, two tensors of indices;
        None before units are cut, and where they are no such part of it.
    """

    name: str
    weight: Tensor
    variance: Tensor
    mask: Tensor
    bias: Tensor | None
    bias_variance: Tensor | None
    codes: Mapping[str, FixedPoint] = field(default_factory=dict)
    kept: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class PrunedNetwork:
    """A smaller graph, and the posterior of its layers.

    :param graph: its tensors hold the posterior means.
    :param layers: by the name of the layer in the network, in the order of the graph.
    :param parts: by the name of a layer that is a part of one in the network, the name of that one.
    """

    graph: Graph
    layers: Mapping[str, PrunedLayer]
    parts: Mapping[str, str] = field(default_factory=dict)


def with_values(graph: Graph, values: Mapping[str, tuple[Tensor, Tensor | None]]) -> Graph:
    """The graph with other weights and biases of layers, by name, where it has tensors of these names."""
    tensors = dict(graph.tensors)
    for name, own in values.items():
        for role, value in zip(("weight", "bias"), own, strict=True):
            if value is not None and f"{name}.{role}" in tensors:
                tensors[f"{name}.{role}"] = value
    return replace(graph, tensors=tensors)


def with_weights(graph: Graph, layers: Mapping[str, PrunedLayer]) -> Graph:
    tensors = dict(graph.tensors)
    for name, layer in layers.items():
        tensors[f"{name}.weight"] = layer.weight
        if layer.bias is not None:
            tensors[f"{name}.bias"] = layer.bias
    return replace(graph, tensors=tensors)


def masked_layers(
    graph: Graph, posterior: Mapping[str, LayerPosterior], thresholds: Mapping[str, Threshold]
) -> dict[str, PrunedLayer]:
    """Every layer of a graph, matrices of recurrent cells among them, with what its threshold left of it."""
    names = dict.fromkeys([*(layer_name(node) for node in graph.nodes if is_layer(node)), *cell_names(graph)])
    of_cells = {name for node in graph.nodes if not is_layer(node) for name in node.named()}
    biased = {layer_name(node) for node in graph.nodes if is_layer(node) and (*node.args, None, None)[2] is not None}
    biased |= {name for name in cell_names(graph) if f"{name}.bias" in of_cells}
    return {name: masked_layer(graph, name, name in biased, posterior, thresholds) for name in names}


def _not_zero(weight: Tensor) -> Tensor:
    """What of a weight without a posterior is in no row or column of zeros, boolean, of its shape."""
    mask = torch.ones_like(weight, dtype=torch.bool)
    for axis in (0, 1):
        some = (weight != 0).movedim(axis, 0).flatten(1).any(1)
        mask &= on_axis(some, axis, weight.dim())
    return mask if bool(mask.any()) else torch.ones_like(mask)


def masked_layer(
    graph: Graph,
    name: str,
    has_bias: bool,
    posterior: Mapping[str, LayerPosterior],
    thresholds: Mapping[str, Threshold],
) -> PrunedLayer:
    """One layer of these tensors, with what its threshold left of it."""
    dense = graph.tensors[f"{name}.weight"]
    dense_bias = graph.tensors[f"{name}.bias"] if has_bias else None
    if name not in posterior:
        zeros = None if dense_bias is None else torch.zeros_like(dense_bias)
        return PrunedLayer(name, dense.clone(), torch.zeros_like(dense), _not_zero(dense), dense_bias, zeros)
    layer = posterior[name]
    if layer.weight_mean.shape != dense.shape:
        raise UsageError(
            f"layer '{name}' has weights of shape {tuple(dense.shape)} in the network, but "
            f"{tuple(layer.weight_mean.shape)} in the posterior"
        )
    if layer.bias_mean is not None and dense_bias is None:
        raise UsageError(f"layer '{name}' has a bias in the posterior, but none in the network")
    left = pruned(layer, thresholds[name])
    if left.codes:  # numbers that are not to be changed
        zeros = None if left.bias is None else torch.zeros_like(left.bias)
        return PrunedLayer(name, left.weight, torch.zeros_like(left.weight), left.mask, left.bias, zeros, left.codes)
    variance = torch.where(left.mask, layer.weight_variance, torch.zeros(()))
    if not (torch.isfinite(left.weight).all() and torch.isfinite(variance).all()):
        raise UsageError(
            f"the posterior of layer '{name}' has means or variances that are NaN or infinite and cannot be "
            f"compressed; fit it anew, with smaller learning rates"
        )
    if left.bias is None and dense_bias is not None:  # one that the network computes, of which no posterior is known
        return PrunedLayer(name, left.weight, variance, left.mask, dense_bias, torch.zeros_like(dense_bias))
    return PrunedLayer(name, left.weight, variance, left.mask, left.bias, layer.bias_variance)
