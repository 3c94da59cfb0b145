"""Trained networks of numbers far from 1: the same function, whose first and last weights are as large as others.

Priors, initial variances and learning rates suit weights of a usual size. A network that was trained on prices or on
pixels up to 255 has some that are thousands of times smaller or larger; the scales of its inputs and outputs belong
outside, as they are for networks that are trained here (:class:`~pyro_bc.app.normalised.Normalised`).
"""

import copy
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..graph.layer_types import layer_type
from ..graph.module import evaluating
from ..graph.nodes import Graph, Named, Node, Value, is_layer, layer_arguments, leaves
from ..graph.read import read_graph
from ..model.likelihoods import Normal
from ..runtime.devices import device_of
from ..runtime.random_state import same_random_state
from .datasets import Dataset
from .normalised import Normalised, Scales

# Deviations and means, in powers of two, from which on numbers are far from 1.
_FAR = 3

# How many times nearer weights are to their usual size, in squares of powers of two, where scales are moved out.
_NEARER = 1.5

# Operations that leave numbers as they are.
_ARRANGEMENTS = ("flatten", "view", "reshape", "unsqueeze", "squeeze", "unflatten")

# Inputs on which the function must be the same, and how far outputs may be apart, of the largest.
_EXAMPLES, _APART = 64, 1e-3


def in_usual_units(net: nn.Module, data: Dataset) -> nn.Module:
    """The same function of a user's inputs as a network of numbers about 0 and 1, where they are far from that.

    :param net: a trained network; it is not changed, and comes back where nothing is far from 1, where no layer reads
        the inputs as they are, or where scales cannot be moved out, which is said.
    :param data: as :func:`~pyro_bc.app.pairing.paired` gives them.
    """
    if isinstance(net, Normalised) or not data.is_own or not data.train_x.is_floating_point():
        return net
    inputs = Scales.of(data.train_x)
    outputs = Scales.of(data.train_y) if data.has_targets and isinstance(data.likelihood, Normal) else None
    far = [scales.deviation.flatten() for scales in (inputs, outputs) if scales is not None and _is_far(scales)]
    if not far:
        return net
    with same_random_state(device_of(net)), torch.no_grad():
        moved = _moved(net, data.train_x[:_EXAMPLES], inputs, outputs)
    if moved is None:
        numbers = torch.cat(far)
        warnings.warn(
            f"the network was trained on numbers far from 1 (deviations of {float(numbers.min()):g} to "
            f"{float(numbers.max()):g}), and its first and last layers are none that could be brought to a usual size: "
            f"what is fitted will be worse than for a network of normalised inputs and targets",
            stacklevel=2,
        )
        return net
    return moved


def _is_far(scales: Scales) -> bool:
    by_deviation = scales.deviation.log2().abs() > _FAR
    return bool((by_deviation | (scales.mean.abs() > 2**_FAR * scales.deviation)).any())


def _moved(net: nn.Module, x: Tensor, inputs: Scales, outputs: Scales | None) -> nn.Module | None:
    """The network inside scales that its weights were freed of, where these are of a more usual size then; itself where
    none are; None where that would not be the same function."""
    inner = copy.deepcopy(net)
    whole = nn.Sequential(inner)
    graph, own = read_graph(whole, x[:2]), dict(whole.named_parameters())
    readers, is_rearranged = _readers(graph)
    taken = given = None
    if _is_far(inputs) and any(map(is_layer, readers)):  # else it has scales of its own
        if not all(map(_is_plain, readers)):
            return None
        found = [_parameters(graph, own, node) for node in dict.fromkeys(readers)]
        layers = [layer for layer in found if layer is not None]
        taken = _of_all(inputs) if is_rearranged else inputs
        if not all(map(_takes_means, readers)):
            taken = taken.without_mean()
        if len(layers) < len(found) or any(taken.mean.numel() not in (1, weight.shape[1]) for weight, _ in layers):
            return None
        taken = _out_of_first(layers, taken)
    if outputs is not None and _is_far(outputs):
        last = _parameters(graph, own, graph.nodes[-1]) if is_layer(graph.nodes[-1]) else None
        if last is None or outputs.mean.numel() not in (1, len(last[0])):
            return None
        given = _out_of_last(*last, outputs)
    if taken is None and given is None:
        return net
    moved = Normalised(inner, taken or _of_nothing(inputs), given).to(x.device)
    with evaluating(net), evaluating(moved):
        before, after = net(x), moved(x)
    same = (before - after).abs().max() <= _APART * before.abs().max()
    return moved if bool(same) else None


def _out_of_first(layers: list[tuple[Tensor, Tensor | None]], inputs: Scales) -> Scales | None:
    """Change layers that read inputs to read them without these scales; None, and no change, where weights would not be
    of a more usual size."""
    if not all(_is_more_usual(weight, 1, inputs.deviation) for weight, _ in layers):
        return None
    for weight, bias in layers:
        along = [1, -1, *[1] * (weight.dim() - 2)]
        if bias is not None:
            bias += (weight * inputs.mean.reshape(along)).flatten(1).sum(1)
        weight *= inputs.deviation.reshape(along)
    return inputs


def _out_of_last(weight: Tensor, bias: Tensor | None, outputs: Scales) -> Scales | None:
    """The same of a layer that gives outputs: to give them without these scales."""
    deviation = outputs.deviation.reshape(-1)
    if not _is_more_usual(weight, 0, 1 / deviation):
        return None
    weight /= deviation.reshape(-1, *[1] * (weight.dim() - 1))
    if bias is None:
        return outputs.without_mean()
    bias -= outputs.mean.reshape(-1)
    bias /= deviation
    return outputs


def _is_more_usual(weight: Tensor, dim: int, factors: Tensor) -> bool:
    """Whether weights times factors along a dimension are nearer to the size that a new network's have."""
    size = weight.transpose(0, dim).flatten(1).square().mean(1).sqrt() * weight[0].numel() ** 0.5
    kept = size > 0
    before, after = (own.log2()[kept].square().mean() for own in (size, size * factors.flatten()))
    return bool(before > _NEARER * after)


def _of_nothing(scales: Scales) -> Scales:
    return Scales(torch.zeros_like(scales.mean), torch.ones_like(scales.deviation))


def _of_all(scales: Scales) -> Scales:
    """The scale of all numbers alike."""
    mean, squares = scales.mean.mean(), (scales.deviation.square() + scales.mean.square()).mean()
    shape = [1] * scales.mean.dim()
    return Scales(mean.reshape(shape), (squares - mean.square()).sqrt().reshape(shape)).rounded()


def _readers(graph: Graph) -> tuple[list[Node], bool]:
    """What reads the numbers of the input, and whether they are in another arrangement there."""
    held, found, is_rearranged = {-1}, [], False
    for index, node in enumerate(graph.nodes):
        if node.op == "size" or held.isdisjoint(node.values()):
            continue
        if node.op in _ARRANGEMENTS and isinstance(node.args[0], Value):
            held.add(index)
            is_rearranged |= graph.shape(index) != graph.shape(-1)
        else:
            found.append(node)
    return found, is_rearranged


def _is_plain(node: Node) -> bool:
    """Whether a node is a layer that multiplies each input with weights of its own."""
    if not is_layer(node):
        return False
    kind = layer_type(node.op)
    return not kind.is_lookup and not kind.is_transposed and layer_arguments(node).get("groups", 1) == 1


def _takes_means(node: Node) -> bool:
    """Whether a layer can take the inputs' means into its bias: not where it pads inputs with 0."""
    padding = layer_arguments(node).get("padding", 0)
    is_padded = padding != "valid" if isinstance(padding, str) else any(leaves((padding,)))
    return len(node.args) > 2 and isinstance(node.args[2], Named) and not is_padded


def _parameters(graph: Graph, own: Mapping[str, Tensor], node: Node) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias of the network that a layer of its graph has; None where one of them is computed."""
    names = [argument.name for argument in node.args[1:3] if isinstance(argument, Named)]
    found = [None if name in graph.turned else own.get(graph.origins.get(name, name)) for name in names]
    weight, bias = [*found, None][:2]
    return None if weight is None or (len(found) > 1 and bias is None) else (weight, bias)
