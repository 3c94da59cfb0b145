"""Layers without the channels that cross them, where those are pruned."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..priors.shared import Axes, along
from .summary import ChannelPosterior, LayerPosterior
from .thresholds import Threshold


def without_channels(
    layers: Mapping[str, LayerPosterior], thresholds: Mapping[str, Threshold]
) -> dict[str, LayerPosterior]:
    """Layers without the channels that thresholds prune: 0 in all that belongs to one, and no part of a mask.

    :param layers: summaries, those of channels among them, which then have a mean of 0 there.
    :param thresholds: by the names of channels in ``layers``; what has none stays.
    """
    found = dict(layers)
    for name, threshold in thresholds.items():
        channels = layers[name]
        if not isinstance(channels, ChannelPosterior):
            continue
        keep = threshold.keeps(channels).float()
        found[name] = replace(channels, scale_mean=channels.scale_mean * keep)
        for other, layer in found.items():
            axes = {role: channels.members.layers.get(f"{layer.name}.{role}") for role in ("weight", "bias")}
            if axes["weight"] or axes["bias"]:
                found[other] = _without(layer, axes["weight"] or {}, axes["bias"] or {}, keep)
    return found


def _without(layer: LayerPosterior, weight: Axes, bias: Axes, keep: Tensor) -> LayerPosterior:
    if weight:
        reach = (along(weight, keep, layer.weight_mean.dim()) > 0).expand(layer.weight_mean.shape)
        reach = reach if layer.reach is None else layer.reach & reach
        layer = replace(layer, reach=reach, weight_mean=torch.where(reach, layer.weight_mean, torch.zeros(())))
    if bias and layer.bias_mean is not None:
        layer = replace(layer, bias_mean=layer.bias_mean * along(bias, keep, 1))
    return layer
