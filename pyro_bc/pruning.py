r"""From posterior to a physically smaller network with the same output.

Thresholds decide which weights are zero; then units fall away, forwards and backwards along the chain, until
nothing changes:

* an input that no weight reads is not read any more;
* a hidden unit that no later layer reads is not computed;
* a hidden unit that reads nothing is the constant :math:`\phi(b_j)`, and moves into the next layer's bias.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .chain import ActivationStep, FlattenStep, LinearStep, NormalizeStep, Step
from .errors import EmptyNetworkError, UnsupportedNetworkError, UsageError
from .posterior import LayerPosterior
from .thresholds import Threshold


@dataclass(frozen=True)
class PrunedLayer:
    """What is left of a fully connected layer.

    :param name: the layer's name in the network.
    :param weight: posterior mean, zero where pruned, ``(out_left, in_left)``.
    :param variance: posterior variance, same shape; 0 for a deterministic layer.
    :param mask: which weights are left, same shape.
    :param bias: ``(out_left,)`` or None.
    :param bias_variance: ``(out_left,)`` or None; 0 for a deterministic layer.
    :param inputs: which inputs of the original layer are left, ``(in_left,)``.
    :param outputs: which outputs, ``(out_left,)``.
    """

    name: str
    weight: Tensor
    variance: Tensor
    mask: Tensor
    bias: Tensor | None
    bias_variance: Tensor | None
    inputs: Tensor
    outputs: Tensor


def weight_mask(layer: LayerPosterior, threshold: Threshold) -> Tensor:
    """Which weights survive a threshold, boolean, of the weight's shape."""
    shape = layer.weight_mean.shape
    keep = threshold.keeps(layer)
    if keep.shape == shape:
        return keep
    index = [1] * len(shape)
    index[layer.group_dim] = -1
    return keep.reshape(index).expand(shape).clone()


def shrink(
    net: nn.Module,
    chain: Sequence[Step],
    posterior: Mapping[str, LayerPosterior],
    thresholds: Mapping[str, Threshold],
) -> tuple[PrunedLayer, ...]:
    """Prune every layer of a chain and cut units that no longer matter.

    :param net: the network whose layers the chain names; supplies the weights of deterministic layers.
    :param posterior: summaries by layer name *in the network*.
    :param thresholds: one per layer of ``posterior``.
    :raises EmptyNetworkError: where a layer is left without any weight.
    """
    layers = [_masked(net, step.name, posterior, thresholds) for step in chain if isinstance(step, LinearStep)]
    between = _activations_between(chain)
    for layer in layers:
        if not layer.mask.any():
            raise EmptyNetworkError(
                f"nothing is left of layer '{layer.name}': every one of its groups was pruned. Train longer or with a "
                f"higher learning rate, cap its standard deviations while it learns (max_scale), or set a higher "
                f"threshold for it"
            )
    changed = True
    while changed:
        changed = False
        for i, layer in enumerate(layers):
            reads = layer.mask.any(0)
            if not reads.all():
                layers[i] = layer = _keep(layer, inputs=reads)
                changed = True
                if i:
                    layers[i - 1] = _keep(layers[i - 1], outputs=reads)
            if i + 1 < len(layers):
                computes = layer.mask.any(1)
                if not computes.all():
                    layers[i + 1] = _absorb(layer, layers[i + 1], ~computes, between[i])
                    layers[i] = _keep(layer, outputs=computes)
                    changed = True
            if not layers[i].mask.any():
                raise EmptyNetworkError(f"nothing is left of layer '{layer.name}' after its neighbours were pruned")
    return tuple(layers)


def _masked(net, name, posterior, thresholds) -> PrunedLayer:
    linear = net.get_submodule(name)
    out_features, in_features = linear.weight.shape
    if name in posterior:
        layer = posterior[name]
        if layer.weight_mean.shape != linear.weight.shape:
            raise UsageError(
                f"layer '{name}' has weights of shape {tuple(linear.weight.shape)} in the network, but "
                f"{tuple(layer.weight_mean.shape)} in the posterior"
            )
        if (layer.bias_mean is None) != (linear.bias is None):
            raise UsageError(f"layer '{name}' has a bias either in the network or in the posterior, but not in both")
        mask = weight_mask(layer, thresholds[name])
        weight, variance = layer.weight_mean * mask, layer.weight_variance
        bias, bias_variance = layer.bias_mean, layer.bias_variance
    else:
        weight = linear.weight.detach().cpu().clone()
        mask, variance = torch.ones_like(weight, dtype=torch.bool), torch.zeros_like(weight)
        bias = None if linear.bias is None else linear.bias.detach().cpu().clone()
        bias_variance = None if bias is None else torch.zeros_like(bias)
    if not (torch.isfinite(weight).all() and torch.isfinite(variance).all()):
        raise UsageError(f"the posterior of layer '{name}' is not finite; it cannot be compressed")
    inputs, outputs = torch.arange(in_features), torch.arange(out_features)
    return PrunedLayer(name, weight, variance, mask, bias, bias_variance, inputs, outputs)


def _keep(layer: PrunedLayer, inputs: Tensor | None = None, outputs: Tensor | None = None) -> PrunedLayer:
    """The layer with only some of its inputs and outputs (boolean masks)."""
    if inputs is not None:
        layer = replace(
            layer,
            weight=layer.weight[:, inputs],
            variance=layer.variance[:, inputs],
            mask=layer.mask[:, inputs],
            inputs=layer.inputs[inputs],
        )
    if outputs is not None:
        layer = replace(
            layer,
            weight=layer.weight[outputs],
            variance=layer.variance[outputs],
            mask=layer.mask[outputs],
            bias=None if layer.bias is None else layer.bias[outputs],
            bias_variance=None if layer.bias_variance is None else layer.bias_variance[outputs],
            outputs=layer.outputs[outputs],
        )
    return layer


def _absorb(layer: PrunedLayer, following: PrunedLayer, constant: Tensor, activation: Callable) -> PrunedLayer:
    """The following layer without the constant units, whose contribution moves into its bias."""
    bias = layer.bias if layer.bias is not None else torch.zeros(len(constant))
    value = activation(bias[constant])
    contribution = following.weight[:, constant] @ value
    if following.bias is None:
        if contribution.abs().max() > 0:
            raise UnsupportedNetworkError(
                f"layer '{following.name}' needs a bias to take up the constant units of layer '{layer.name}'"
            )
    else:
        following = replace(following, bias=following.bias + contribution)
    return _keep(following, inputs=~constant)


def _activations_between(chain: Sequence[Step]) -> list[Callable[[Tensor], Tensor]]:
    """The element-wise function after each fully connected layer but the last."""
    functions: list[Callable[[Tensor], Tensor]] = []
    current: list[nn.Module] = []
    seen = False
    for step in chain:
        if isinstance(step, LinearStep):
            if seen:
                functions.append(nn.Sequential(*current))
            seen, current = True, []
        elif isinstance(step, ActivationStep):
            current.append(step.module())
        elif seen and isinstance(step, NormalizeStep):
            raise UnsupportedNetworkError("a Normalize step between layers cannot be pruned through; put it first")
        elif not seen and isinstance(step, FlattenStep | NormalizeStep):
            continue
    return functions
