"""What is left of a network after pruning, and the posterior of its layers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import UsageError
from ..graph.nodes import Graph, is_layer, layer_name
from ..posterior.summary import LayerPosterior
from ..posterior.thresholds import Threshold, signal_bar, weights_kept
from ..quantisation.fixed_point import FixedPoint


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
    """

    name: str
    weight: Tensor
    variance: Tensor
    mask: Tensor
    bias: Tensor | None
    bias_variance: Tensor | None
    codes: Mapping[str, FixedPoint] = field(default_factory=dict)


@dataclass(frozen=True)
class PrunedNetwork:
    """A smaller graph, and the posterior of its layers.

    :param graph: its tensors hold the posterior means.
    :param layers: by the name of the layer in the network, in the order of the graph.
    """

    graph: Graph
    layers: Mapping[str, PrunedLayer]


def weight_mask(layer: LayerPosterior, threshold: Threshold) -> Tensor:
    """Which weights survive a threshold, boolean, of the weight's shape.

    An automatic threshold also prunes across the groups: what a layer reads (a channel of a convolution) or computes
    (an output of a matrix) without any weight that has more signal than noise among those that are left. A filter can
    be well determined that no filter behind it listens to.
    """
    shape = layer.weight_mean.shape
    keep = threshold.keeps(layer)
    if keep.shape == shape:
        return keep
    mask = layer.over_weights(keep).expand(shape).clone()
    if layer.codes:
        return mask & _is_coded(layer.codes["weight"])
    weights = weights_kept(layer)
    if weights is not None:
        mask &= weights
    if threshold.method in ("mixture", "signal-to-noise"):
        across = 1 - layer.group_dim
        ratio = layer.weight_mean.square() / layer.weight_variance * mask
        signal = ratio.movedim(across, 0).flatten(1).amax(1) > signal_bar(layer)
        mask &= signal.reshape([-1 if dim == across else 1 for dim in range(len(shape))])
    return mask


def _is_coded(stored: FixedPoint) -> Tensor:
    """Which weights a code that is not 0 says something of: all of a grid where one of its coefficients is not 0."""
    cells = math.prod(stored.grid)
    some = stored.codes.reshape(-1, cells).any(1, keepdim=True)
    return some.expand(-1, cells).reshape(stored.codes.shape)


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
    """Every layer of a graph, with what its threshold left of it."""
    names = dict.fromkeys(layer_name(node) for node in graph.nodes if is_layer(node))
    used = {name for node in graph.nodes for name in node.named()}
    return {name: masked_layer(graph, name, f"{name}.bias" in used, posterior, thresholds) for name in names}


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
        everything = torch.ones_like(dense, dtype=torch.bool)
        return PrunedLayer(name, dense.clone(), torch.zeros_like(dense), everything, dense_bias, zeros)
    layer = posterior[name]
    if layer.weight_mean.shape != dense.shape:
        raise UsageError(
            f"layer '{name}' has weights of shape {tuple(dense.shape)} in the network, but "
            f"{tuple(layer.weight_mean.shape)} in the posterior"
        )
    if (layer.bias_mean is None) != (dense_bias is None):
        raise UsageError(f"layer '{name}' has a bias either in the network or in the posterior, but not in both")
    mask = weight_mask(layer, thresholds[name])
    if layer.codes:
        return _coded_layer(name, layer, mask)
    zero = torch.zeros(())  # what is pruned may have no finite moments
    weight, variance = torch.where(mask, layer.weight_mean, zero), torch.where(mask, layer.weight_variance, zero)
    bias = layer.bias_mean
    if bias is not None and layer.layer_type.scales_outputs and not layer.per_weight:
        outputs = mask.movedim(layer.layer_type.output_axis, 0).flatten(1)
        bias = bias * outputs.any(1)  # a filter's scale multiplies its bias too
    if not (torch.isfinite(weight).all() and torch.isfinite(variance).all()):
        raise UsageError(
            f"the posterior of layer '{name}' has means or variances that are NaN or infinite and cannot be "
            f"compressed; fit it anew, with smaller learning rates"
        )
    return PrunedLayer(name, weight, variance, mask, bias, layer.bias_variance)


def _coded_layer(name: str, layer: LayerPosterior, mask: Tensor) -> PrunedLayer:
    """What is left of a layer whose weight and bias are codes: the numbers that those stand for, not to be changed."""
    weight = layer.codes["weight"]
    codes = {"weight": replace(weight, codes=weight.codes * mask)}
    values = codes["weight"].values()
    bias = None
    if layer.bias_mean is not None:
        own = layer.codes["bias"]
        if layer.statistic is not None and layer.layer_type.scales_outputs:
            own = replace(own, codes=own.codes * mask.movedim(layer.layer_type.output_axis, 0).flatten(1).any(1))
        codes["bias"], bias = own, own.values()
    zeros = None if bias is None else torch.zeros_like(bias)
    return PrunedLayer(name, values, torch.zeros_like(values), mask, bias, zeros, codes)
