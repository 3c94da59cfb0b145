"""What is compressed, read once: a model's posterior, and the graph of its network, which compute one function.

Reading traces the network and runs both; a search that compresses a posterior many times does it only once.
"""

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from ..errors import UsageError
from ..graph.nodes import Graph, is_layer, layer_name
from ..graph.read import graph_of_same, read_graph
from ..graph.recurrent import cell_names
from ..model.agreement import check_one_function, graph_names
from ..model.network import BayesianNetwork
from ..posterior.curvature import Curvature
from ..posterior.guides import Posterior, posterior_of
from ..posterior.summary import ChannelPosterior, LayerPosterior, summarize
from ..runtime.devices import device_of
from ..runtime.inputs import Batch, tensors_of, with_tensors


@dataclass(frozen=True)
class Reading:
    """A posterior, and the network that it is of.

    :param fitted: the posterior.
    :param net: the network that is stored.
    :param example: a batch of its inputs.
    :param graph: its graph.
    :param posterior: of every layer, by its name in the graph.
    :param names: of the layers in the graph, by their names in the model.
    :param channels: of channels that cross layers, by the name of their sites.
    :param loose: layers of the model whose weights no layer of the graph multiplies with as they are.
    :param inputs: second moments of what layers read, by their names in the graph, where what pruning takes is to be
        made up for (:mod:`pyro_bc.compression.made_up`).
    :param steps: to which tensors of no layer are rounded, by their names in the graph; those that are not there keep
        the precision that they have.
    """

    fitted: Posterior
    net: nn.Module
    example: Batch
    graph: Graph
    posterior: Mapping[str, LayerPosterior]
    names: Mapping[str, str]
    channels: Mapping[str, ChannelPosterior]
    loose: tuple[str, ...]
    inputs: Mapping[str, Curvature] = field(default_factory=dict)
    steps: Mapping[str, float] = field(default_factory=dict)


def read_posterior(model: Any, guide: Any, net: nn.Module | None = None) -> Reading:
    """Read a posterior and its network; the parameters are those of :func:`~pyro_bc.compress`.

    :raises UnsupportedNetworkError: where the network is no fixed graph of known operations, or computes something
        else than the model.
    :raises UsageError: where layers and network do not fit.
    """
    fitted = posterior_of(guide)
    own = net is None
    if net is None:
        if not isinstance(model, BayesianNetwork):
            raise UsageError(
                "a model written by hand needs net=…, the nn.Module that it computes, with one nn.Linear per layer "
                f"({', '.join(fitted.layers)})"
            )
        net = model.skeleton
    example = _example(fitted, net)
    graph = (graph_of_same if own else read_graph)(net, example, getattr(model, "output", None))
    names = [layer_name(node) for node in graph.nodes if is_layer(node)]
    prefix = _prefix(model, fitted.layers, {*names, *cell_names(graph)})
    posterior, channels = layer_posteriors(model, fitted, prefix)
    in_graph = graph_names([name.removeprefix(prefix) for name in fitted.layers], graph, net)
    posterior = {in_graph[name]: layer for name, layer in posterior.items()}
    if own:
        posterior = _used(posterior, graph)
    cells = cell_names(graph)
    loose = [name for name in posterior if name not in (*names, *cells) and f"{name}.weight" in graph.tensors]
    for site in fitted.marginals:
        layer = site.removeprefix(prefix).removesuffix(".weight")
        if site.endswith(".weight") and layer in names and layer not in posterior:
            raise UsageError(f"the prior over '{site}' is none that pyro_bc.priors knows: subclass Prior for it")
    for name in posterior:
        if name not in (*names, *cells, *loose):
            raise UsageError(f"the model has a layer '{name}', but the network's layers are {', '.join(names)}")
    of_sites = {name: in_graph[name.removeprefix(prefix)] for name in fitted.layers}
    check_one_function(model, fitted.layers, fitted.shared, fitted.centre(), graph, of_sites, _arguments(fitted, net))
    graph, posterior = _biases_alone(graph, posterior, loose)
    return Reading(fitted, net, example, graph, posterior, of_sites, channels, tuple(loose))


def _biases_alone(
    graph: Graph, posterior: Mapping[str, LayerPosterior], loose: list[str]
) -> tuple[Graph, dict[str, LayerPosterior]]:
    """Graph and posterior where a bias from which the network computes what it adds is a tensor like any other."""
    added = {layer_name(node) for node in graph.nodes if is_layer(node) and (*node.args, None, None)[2] is not None}
    tensors, found = dict(graph.tensors), dict(posterior)
    for name in posterior.keys() - {*added, *loose, *cell_names(graph)}:
        own = posterior[name]
        if own.bias_mean is not None and f"{name}.bias" in tensors:
            tensors[f"{name}.bias"] = own.bias_mean
            found[name] = replace(own, bias_mean=None, bias_variance=None)
    return replace(graph, tensors=tensors), found


def _used(posterior: Mapping[str, LayerPosterior], graph: Graph) -> dict[str, LayerPosterior]:
    """What the network uses of it in evaluation mode; layers that only training uses are left out, and said."""
    unused = [name for name in posterior if not {f"{name}.weight", f"{name}.bias"} & graph.tensors.keys()]
    if unused:
        warnings.warn(f"not part of the network in evaluation mode, and left out: {', '.join(unused)}", stacklevel=3)
    return {
        name: layer if f"{name}.bias" in graph.tensors else replace(layer, bias_mean=None, bias_variance=None)
        for name, layer in posterior.items()
        if name not in unused
    }


def _prefix(model: Any, layers: Collection[str] = (), known: Collection[str] = ()) -> str:
    """What stands before a layer's name in the network in the names of its sites.

    :param layers: names of the model's layers.
    :param known: those of the network, which a module of the user's may have under a name of its own.
    """
    if isinstance(model, BayesianNetwork):
        return "net."
    first = min(layers, default="")
    for end in [at + 1 for at, letter in enumerate(first) if letter == "."]:
        front = first[:end]
        if all(name.startswith(front) and name.removeprefix(front) in known for name in layers):
            return front
    return ""


def layer_posteriors(
    model: Any, guide: Any, prefix: str | None = None
) -> tuple[dict[str, LayerPosterior], dict[str, ChannelPosterior]]:
    """Posterior summaries by the layer's name in the network (``fc1``, where the site is ``net.fc1.weight``), and those
    of channels that cross layers.

    :param prefix: what stands before those names in the names of sites; None for what a model of ours has.
    """
    prefix = _prefix(model) if prefix is None else prefix
    found = summarize(guide)
    channels = {name: own for name, own in found.items() if isinstance(own, ChannelPosterior)}
    posterior = {name.removeprefix(prefix): layer for name, layer in found.items() if name not in channels}
    if not posterior:
        raise UsageError("the model has no layers: name the sites of each weight '<layer>.<role>' (see pyro_bc.priors)")
    return posterior, channels


def _arguments(posterior: Posterior, net: nn.Module) -> tuple[Any, ...]:
    """What the model was called with first, on the network's device."""
    device = device_of(net)
    first, *rest = posterior.arguments or (None,)
    inputs = first if first is None else with_tensors(first, [x.detach().to(device) for x in tensors_of(first)])
    return (inputs, *(a.detach().to(device) if isinstance(a, Tensor) else a for a in rest))


def _example(posterior: Posterior, net: nn.Module) -> Batch:
    """One batch of what the model was called with, on the network's device."""
    try:
        (example, *_) = _arguments(posterior, net)
        if tensors_of(example)[0].dim():
            return example
    except UsageError:
        pass
    raise UsageError("the model's first argument must be the network's input, a tensor of shape (batch, …)")
