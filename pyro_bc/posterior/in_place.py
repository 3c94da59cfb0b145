"""Layers compressed where they are: pruned and rounded, in tensors of the shape that they had.

The network computes what it will compute once units are cut and codes are written, so that it can be looked at for the
price of a pass over some examples: as a whole while it is trained, and one layer after the other in a table
(:func:`~pyro_bc.sensitivity`).
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..model.network import BayesianNetwork
from ..priors.shared import along
from ..quantisation.fixed_point import FixedPoint
from ..quantisation.rounding import NOISE_RATIO, RULES, to_fixed_point
from ..runtime.devices import on_cpu
from .channels import without_channels
from .summary import ChannelPosterior, LayerPosterior
from .thresholds import Threshold, choose_threshold, removed_outputs, weight_mask


@dataclass(frozen=True)
class InPlace:
    """What is left of a layer, in its own shapes.

    :param weight: zero where pruned.
    :param bias: None where there is none.
    :param mask: which weights are left, boolean, of the weight's shape.
    :param codes: of weight and bias, where they are rounded; empty where they are not.
    """

    weight: Tensor
    bias: Tensor | None
    mask: Tensor
    codes: Mapping[str, FixedPoint] = field(default_factory=dict)

    def code_bytes(self) -> float:
        """Bytes of the weight's codes at their own entropy, of rows and columns that have a weight left; 0 where
        nothing is rounded."""
        if "weight" not in self.codes:
            return 0.0
        rows, columns = self.mask.flatten(1).any(1), self.mask.transpose(0, 1).flatten(1).any(1)
        left = self.codes["weight"].codes[rows][:, columns].flatten()
        counts = left.unique(return_counts=True)[1].double()
        return float(-(counts * (counts / counts.sum()).log2()).sum()) / 8


@on_cpu
def pruned(layer: LayerPosterior, threshold: Threshold, also: Tensor | None = None) -> InPlace:
    """What a threshold leaves of a layer: posterior means, or the codes that a prior made of them.

    :param also: weights to keep at most, boolean, shaped for broadcasting against the weight.
    """
    mask = weight_mask(layer, threshold)
    if also is not None:
        mask = mask & also
    stays = ~removed_outputs(layer, mask)
    if layer.codes:
        weight = layer.codes["weight"]
        codes = {"weight": replace(weight, codes=weight.codes * mask)}
        if layer.bias_mean is not None:
            own = layer.codes["bias"]
            codes["bias"] = replace(own, codes=own.codes * stays)
        return _of_codes(codes, mask)
    weight_mean = torch.where(mask, layer.weight_mean, torch.zeros(()))  # what is pruned may have no finite mean
    bias = layer.bias_mean
    return InPlace(weight_mean, None if bias is None else bias * stays, mask)


@on_cpu
def rounded(
    layer: LayerPosterior, left: InPlace, noise_ratio: float = NOISE_RATIO, precision: str = RULES[0]
) -> InPlace:
    """What is left of a layer, as coarse as its posterior allows; codes are as they are.

    :param noise_ratio: as of :func:`~pyro_bc.compress`.
    :param precision: likewise.
    """
    if left.codes:
        return left
    weight = left.weight.float()
    codes = {"weight": to_fixed_point(weight, layer.weight_variance, left.mask, precision, noise_ratio)}
    if left.bias is not None and layer.bias_variance is not None:
        codes["bias"] = to_fixed_point(left.bias.float(), layer.bias_variance, None, precision, noise_ratio)
    return _of_codes(codes, left.mask)


def coarser(left: InPlace, octaves: int) -> InPlace:
    """Rounded weights, rounded again to steps that are so many times twice as large; the bias stays."""
    own = left.codes["weight"]
    codes = torch.round(own.codes.double() * 2.0**-octaves).long()
    weight = replace(own, codes=codes, fraction_bits=own.fraction_bits - octaves)
    return _of_codes({**left.codes, "weight": weight}, left.mask)


def _of_codes(codes: Mapping[str, FixedPoint], mask: Tensor) -> InPlace:
    bias = codes["bias"].values() if "bias" in codes else None
    return InPlace(codes["weight"].values(), bias, mask, codes)


def compressed_in_place(layer: LayerPosterior) -> InPlace:
    """What :func:`~pyro_bc.compress` makes of a layer, with nothing else said."""
    return rounded(layer, pruned(layer, choose_threshold(layer)))


def all_compressed_in_place(
    layers: Mapping[str, LayerPosterior],
) -> tuple[dict[str, LayerPosterior], dict[str, InPlace]]:
    """The same of all layers, and of the channels that cross them.

    :param layers: as :func:`~pyro_bc.summarize` gives them.
    :returns: the same without channels that are pruned, and what is left of each layer.
    """
    channels = {name: choose_threshold(own) for name, own in layers.items() if isinstance(own, ChannelPosterior)}
    left = without_channels(layers, channels)
    alone = {name: own for name, own in left.items() if name not in channels}
    return left, {name: compressed_in_place(own) for name, own in alone.items()}


@torch.no_grad()
def network_with(
    model: BayesianNetwork, layers: Mapping[str, LayerPosterior], changed: Mapping[str, InPlace]
) -> nn.Module:
    """The network in evaluation mode, with every weight at its posterior mean but for what is changed.

    :param layers: by the layer's name in the model, as :func:`~pyro_bc.summarize` gives them, those of channels with
        what they multiply beside layers.
    :param changed: what takes the place of the mean, by the same names.
    """
    net = copy.deepcopy(model.skeleton)
    place_of = _places(model, net)
    parameters = dict(net.named_parameters(remove_duplicate=False)) | dict(net.named_buffers(remove_duplicate=False))
    for name, layer in layers.items():
        if isinstance(layer, ChannelPosterior):
            for path, axes in layer.members.others.items():
                tensor = parameters[path]
                tensor.copy_(tensor * along(axes, layer.scale_mean.to(tensor), tensor.dim()))
            continue
        own = changed.get(name)
        weight, bias = (layer.weight_mean, layer.bias_mean) if own is None else (own.weight, own.bias)
        for role, value in (("weight", weight), ("bias", bias)):
            if value is not None:
                parameter, turned = place_of(name, role)
                parameter.copy_(value.T if turned else value)
    return net.eval()


def _places(model: BayesianNetwork, net: nn.Module) -> Callable[[str, str], tuple[nn.Parameter, bool]]:
    """By a layer's name in the model and a role, the network's own parameter, and whether it is the matrix turned."""
    parameters = dict(net.named_parameters(remove_duplicate=False))
    modules: dict[str, Any] = dict(model.named_modules(remove_duplicate=False))

    def place_of(name: str, role: str) -> tuple[nn.Parameter, bool]:
        of_layer = f"{name.removeprefix('net').removeprefix('.')}.{role}".removeprefix(".")
        path, turned = modules[name].in_network.get(role, (of_layer, False))
        return parameters[path], turned

    return place_of
