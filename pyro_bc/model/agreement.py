"""Whether a Pyro model and the network that is to be stored compute the same, for the same values of its sites.

What is trained is the model; what is pruned, rounded and stored is a network with the posterior's weights. The two
must be one function, and only running both tells: a weight that is used once more elsewhere, an activation of a network
given by hand, or a bias that one scales and the other does not, would make them two, silently.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pyro.poutine as poutine
import torch
from torch import Tensor, nn

from ..errors import PyroBCError, UnsupportedNetworkError, UsageError
from ..file.contents import integers_of
from ..graph.module import GraphNetwork, evaluating
from ..graph.nodes import Graph, is_layer, layer_name
from ..graph.read import graph_of_same
from ..graph.recurrent import cell_names
from ..priors.base import LayerSites, base_distribution
from ..priors.learned_code import bias_of, weight_of
from ..priors.shared import Axes, SharedScale, along, scales_of
from ..runtime.inputs import head, moved, tensors_of
from ..runtime.random_state import same_random_state
from .layers import BayesianLayer

# How far outputs may be apart: a part of each, and a part of the largest. Sums of float32 come in another order.
_OF_EACH, _OF_LARGEST = 1e-3, 1e-3

# Examples that are looked at.
_EXAMPLES = 16


def obstacle(
    model: Any,
    layers: Mapping[str, LayerSites],
    shared: Mapping[str, SharedScale],
    values: Mapping[str, Tensor],
    args: tuple[Any, ...],
) -> str | None:
    """Why the network of a :class:`~pyro_bc.BayesianNetwork` could not be compressed after a fit; None where it can.

    :param shared: scales that its layers share.
    :param args: of the model, the network's input first.
    """
    net = getattr(model, "skeleton", None)
    if not isinstance(net, nn.Module) or not args:
        return None
    try:
        inputs = tensors_of(args[0])
    except UsageError:
        return None  # a model of something else
    if not inputs[0].dim():
        return None
    if not any(True for _ in net.children()):
        return None  # a single layer has no name that a file could tell it by, and is a model all the same
    with same_random_state(inputs[0].device):
        try:
            graph = graph_of_same(net, args[0], getattr(model, "output", None))
            for name, tensor in graph.tensors.items():
                if not tensor.is_floating_point():
                    integers_of(name, tensor)
            names = graph_names([name.removeprefix("net.") for name in layers], graph, net)
            of_sites = {name: names[name.removeprefix("net.")] for name in layers}
            check_one_function(model, layers, shared, values, graph, of_sites, args)
        except PyroBCError as error:
            return str(error)
    return None


def graph_names(layers: Iterable[str], graph: Graph, net: nn.Module) -> dict[str, str]:
    """The name that a graph has for each layer of its network: a weight that is used under several has one there."""
    own = dict(net.named_parameters(remove_duplicate=False)) | dict(net.named_buffers(remove_duplicate=False))
    read = dict.fromkeys([*(layer_name(node) for node in graph.nodes if is_layer(node)), *cell_names(graph)])
    weights = {name: graph.origins.get(f"{name}.weight", f"{name}.weight") for name in read}
    by_weight = {id(own[path]): name for name, path in weights.items() if path in own}
    # The weight of a layer, or a parameter that is one's.
    return {name: by_weight.get(id(own.get(f"{name}.weight", own.get(name))), name) for name in layers}


def check_one_function(
    model: Any,
    layers: Mapping[str, LayerSites],
    shared: Mapping[str, SharedScale],
    values: Mapping[str, Tensor],
    graph: Graph,
    names: Mapping[str, str],
    args: tuple[Any, ...],
) -> None:
    """Run the model and the graph on the same inputs, with the same values of all sites.

    A model whose output cannot be told is left: it returns no tensor, and observes nothing whose density has its
    outputs among its parameters.

    :param model: any Pyro model of ``args``, the first of which is the network's input.
    :param layers: its layers, by the names of their sites.
    :param shared: scales that they share.
    :param values: of all its latent sites.
    :param graph: the network, whose tensors the weights of the layers replace.
    :param names: for every layer, its name in the graph.
    :raises UnsupportedNetworkError: where outputs differ; names the first layer that does, where one can be told.
    """
    device = next(iter(values.values())).device
    _check_not_folded(layers, graph, names)
    x = head(moved(args[0], device), _EXAMPLES)
    inputs = tensors_of(x)
    rest = [a.to(device) if isinstance(a, Tensor) else a for a in args[1:]]
    count = len(tensors_of(args[0])[0])
    rest = [a[:_EXAMPLES] if isinstance(a, Tensor) and a.dim() and len(a) == count else a for a in rest]
    seen: dict[str, Tensor] = {}
    hooks = []
    for path, module in model.named_modules(remove_duplicate=False) if isinstance(model, nn.Module) else ():
        if isinstance(module, BayesianLayer) and path in names:

            def look(module: nn.Module, inputs: Any, output: Any, name: str = names[path]) -> None:
                seen.setdefault(name, output)

            hooks.append(module.register_forward_hook(look))
    try:
        with torch.no_grad(), poutine.block(), _evaluating(model):
            trace = poutine.trace(poutine.condition(model, data=dict(values))).get_trace(x, *rest)
    finally:
        for hook in hooks:
            hook.remove()
    tensors = _with_values(graph, layers, shared, values, names)
    network = GraphNetwork(graph.nodes, tensors, graph.buffers).to(device)
    del tensors
    results: dict[str, Tensor] = {}
    with torch.no_grad():
        for node, result in zip(graph.nodes, network.results(graph.nodes, *inputs), strict=True):
            if is_layer(node):
                results.setdefault(layer_name(node), result)
    if _agrees(trace, result):
        return
    wrong = [name for name, output in seen.items() if name in results and not _close(output, results[name])]
    where = f"from layer '{wrong[0]}' on" if wrong else "in what is between or behind its layers"
    scaled = [names[name] for name, layer in layers.items() if _scales_a_bias(layer) and not wrong]
    bias = (
        f" A scale multiplies a filter's bias, too (Prior.bias), which may be what differs in {', '.join(scaled)}."
        if scaled and not isinstance(model, nn.Module)
        else ""
    )
    raise UnsupportedNetworkError(
        f"the Pyro model and the network that would be stored compute different things for the same weights, {where}."
        f"{bias} Give net=… the network that the model computes, or use each layer's weight through the layer alone"
    )


def _check_not_folded(layers: Mapping[str, LayerSites], graph: Graph, names: Mapping[str, str]) -> None:
    """:raises UnsupportedNetworkError: where a tensor was computed from what a posterior replaces."""
    for site, layer in layers.items():
        for role in ("weight", "bias") if layer.sites else ():
            if f"{names[site]}.{role}" in graph.folded:
                raise UnsupportedNetworkError(
                    f"the network computes with what becomes of the {role} of layer '{names[site]}', which a posterior "
                    f"cannot follow: use it through the layer alone, or leave the layer deterministic"
                )


def _evaluating(model: Any) -> Any:
    return evaluating(model) if isinstance(model, nn.Module) else torch.no_grad()


def _scales_a_bias(layer: LayerSites) -> bool:
    return layer.type.scales_outputs and "bias" in layer.sites and len(layer.prior.roles) > 1


def _with_values(
    graph: Graph,
    layers: Mapping[str, LayerSites],
    shared: Mapping[str, SharedScale],
    values: Mapping[str, Tensor],
    names: Mapping[str, str],
) -> dict[str, Tensor]:
    """The graph's tensors, with the weights and biases that these values of the sites make."""
    tensors = dict(graph.tensors)
    for site, layer in layers.items():
        own = {role: values[f"{site}.{role}"] for role in layer.sites}
        weight, bias = weight_of(layer, own), bias_of(layer, own)
        for role, value in (("weight", weight), ("bias", bias)):
            name = f"{names[site]}.{role}"
            if value is not None and name in tensors:
                if tensors[name].shape != value.shape:
                    raise UsageError(
                        f"layer '{names[site]}' has a {role} of shape {tuple(tensors[name].shape)} in the network, but "
                        f"{tuple(value.shape)} in the model"
                    )
                tensors[name] = value.detach().cpu().to(tensors[name].dtype)
    scales = {name: value.cpu() for name, value in scales_of(shared, values).items()}
    return under_shared(replace(graph, tensors=tensors), shared, scales, names)


def under_shared(
    graph: Graph,
    shared: Mapping[str, SharedScale],
    scales: Mapping[str, Tensor],
    names: Mapping[str, str],
    of_layers: bool = True,
) -> dict[str, Tensor]:
    """A graph's tensors under the scales that layers share.

    :param scales: by name.
    :param names: for every layer of the model, its name in the graph.
    :param of_layers: whether tensors that are made of the sites of layers are scaled, too.
    """
    tensors = dict(graph.tensors)
    for name, axes, scale in _shared_tensors(shared, scales, names, graph, of_layers):
        tensors[name] = tensors[name] * along(axes, scale, tensors[name].dim()).to(tensors[name].dtype)
    return tensors


def _shared_tensors(
    shared: Mapping[str, SharedScale],
    scales: Mapping[str, Tensor],
    names: Mapping[str, str],
    graph: Graph,
    of_layers: bool,
) -> Iterator[tuple[str, Axes, Tensor]]:
    """Every tensor of a graph that shared scales multiply, by its name there, with the axes and the scale."""
    origins = {graph.origins.get(name, name): name for name in graph.tensors}
    for name, own in shared.items():
        for site, axes in own.members.layers.items() if of_layers else ():
            layer, _, role = site.rpartition(".")
            tensor = f"{names[layer]}.{role}" if layer in names else ""
            if tensor in graph.tensors:
                yield tensor, axes, scales[name]
        for path, axes in own.members.others.items():
            tensor = origins.get(path, "")
            if tensor:
                is_turned = tensor in graph.turned
                yield tensor, {1 - a if is_turned else a: n for a, n in axes.items()}, scales[name]


def _agrees(trace: Any, outputs: Tensor) -> bool:
    """Whether the model's output is the network's; True where it cannot be told."""
    returned = trace.nodes["_RETURN"]["value"]
    if isinstance(returned, Tensor) and returned.shape == outputs.shape:
        return _close(returned, outputs)
    if isinstance(returned, Tensor) and returned.dim() == outputs.dim() and len(returned) == len(outputs):
        return False  # outputs of another size
    for site in trace.observation_nodes:
        fn = base_distribution(trace.nodes[site]["fn"])
        for name in ("logits", "loc"):
            parameter = getattr(fn, name, None)
            if isinstance(parameter, Tensor):
                normalised = outputs.log_softmax(-1) if type(fn).__name__.endswith("Categorical") else outputs
                if normalised.shape == parameter.shape:
                    return _close(parameter, normalised)
                if normalised.shape == (*parameter.shape, 1):
                    return _close(parameter, normalised.squeeze(-1))
    return True


def _close(a: Tensor, b: Tensor) -> bool:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.shape != b.shape:
        return True
    a, b = a.float().cpu(), b.float().cpu()
    largest = float(b.nan_to_num(0.0, 0.0, 0.0).abs().max()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=_OF_EACH, atol=_OF_LARGEST * largest, equal_nan=True)
