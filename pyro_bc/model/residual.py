"""Scales that layers share, as modules of a network that is a Pyro model; and what of it they multiply."""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from ..errors import UnsupportedNetworkError, UsageError
from ..graph.nodes import Graph
from ..graph.streams import OF_OUTPUT, Stream, residual_streams
from ..priors.base import GroupPrior
from ..priors.shared import Axes, Members, along, shared_sites
from ..runtime.devices import default_dtype
from .agreement import graph_names
from .layers import BayesianLayer
from .readers import scale_reading


class ResidualScale(PyroModule):
    """The scales of one residual stream's channels, with one site for every role of their prior.

    :param prior: whose scale it is.
    :param members: what it multiplies.
    """

    def __init__(self, prior: GroupPrior, members: Members):
        super().__init__()
        self.prior, self.members = prior, members
        self._dtype = torch.get_default_dtype()
        self._place(torch.get_default_device())
        for role in self._densities:
            self.__dict__["_pyro_samples"][role] = partial(_density, role=role)

    def _place(self, device: torch.device) -> None:
        """Make the densities, whose draws are on this device."""
        self._device = device
        with torch.device(device), default_dtype(self._dtype):
            self._densities = shared_sites(self.prior, self.members)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ResidualScale":
        result: ResidualScale = super()._apply(fn, recurse)
        self._place(fn(torch.empty(0, device=self._device)).device)
        return result

    @property
    def scale(self) -> Tensor:
        """The channels' scales, ``(channels,)``; the first reading in a pass samples the sites."""
        scale = self.prior.scale({role: PyroModule.__getattr__(self, role) for role in self._densities})
        assert scale is not None
        return scale

    def times(self, axes: Axes, value: Tensor) -> Tensor:
        """A tensor of the network times the scales of its entries' channels."""
        return value * along(axes, self.scale, value.dim())

    def extra_repr(self) -> str:
        return f"{self.members.size}, prior={self.prior}"


def _density(module: ResidualScale, role: str) -> Any:
    return module._densities[role]


def share_scales_(net: nn.Module, skeleton: nn.Module, graph: Graph, prior: GroupPrior) -> list[ResidualScale]:
    """Give a network's residual streams scales that all that writes to them and reads from them shares.

    :param net: a ``PyroModule`` that computes the graph.
    :param skeleton: the network that it was made of.
    :param prior: of the scales.
    :raises UnsupportedNetworkError: where there are no channels that additions tie, or none that can leave.
    :raises UsageError: where the weights of a stream are codes.
    """
    streams = residual_streams(graph)
    own = dict(skeleton.named_parameters(remove_duplicate=False)) | dict(skeleton.named_buffers(remove_duplicate=False))
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, BayesianLayer)}
    of_graph = {graph_name: name for name, graph_name in graph_names(layers, graph, skeleton).items()}
    found, stuck = [], []
    for stream in streams:
        computed = [
            name
            for name in stream.tensors
            if not _is_layer(name, of_graph) and graph.origins.get(name, name) not in own
        ]
        why = stream.obstacle or (f"the network computes '{computed[0]}', which is added to them" if computed else "")
        if why:
            stuck.append(f"the {stream.size} channels that {', '.join(stream.writers)} write stay: {why}")
        else:
            found.append(_shared(net, own, stream, graph, of_graph, layers, prior))
    if not streams:
        raise UnsupportedNetworkError(
            "there are no channels that cross layers: no addition of two results ties what several layers compute. "
            "Give the layers' prior alone, instead of ResidualWidth"
        )
    if not found:
        raise UnsupportedNetworkError(f"no channel that crosses layers can leave: {'; '.join(stuck)}")
    for said in stuck:
        if OF_OUTPUT not in said:  # which nobody thinks could go
            warnings.warn(said, stacklevel=5)
    return found


def _is_layer(tensor: str, of_graph: Mapping[str, str]) -> bool:
    return tensor.rpartition(".")[0] in of_graph


def _shared(
    net: nn.Module,
    own: Mapping[str, Tensor],
    stream: Stream,
    graph: Graph,
    of_graph: Mapping[str, str],
    layers: Mapping[str, BayesianLayer],
    prior: GroupPrior,
) -> ResidualScale:
    """The scale of one stream, which from now on multiplies its tensors."""
    of_layers: dict[str, Axes] = {}
    others: dict[str, Axes] = {}
    for name, channels in stream.tensors.items():
        axes = {axis: torch.from_numpy(numbers) for axis, numbers in channels.items()}
        layer, _, role = name.rpartition(".")
        if layer in of_graph:
            if layers[of_graph[layer]].weight_code is not None:
                raise UsageError(
                    f"layer '{layer}' writes to or reads from channels that cross layers, and its weights are codes, "
                    f"which share no scales: give it another prior than LearnedCode, or leave out ResidualWidth"
                )
            of_layers[f"net.{of_graph[layer]}.{role}"] = axes
        else:
            is_turned = name in graph.turned
            others[graph.origins.get(name, name)] = {1 - a if is_turned else a: n for a, n in axes.items()}
    members = Members(stream.size, of_layers, others, stream.writers, stream.readers)
    scale = ResidualScale(prior, members)
    for site, own_axes in of_layers.items():
        name, _, role = site.removeprefix("net.").rpartition(".")
        layers[name].share(role, partial(scale.times, own_axes))
    for path, own_axes in others.items():
        for module, key in _holders(net, own, path):
            scale_reading(module, key, partial(scale.times, own_axes))
    return scale


def _holders(net: nn.Module, own: Mapping[str, Tensor], path: str) -> list[tuple[nn.Module, str]]:
    """Modules that have a tensor of the network, and under which name."""
    same = [name for name, tensor in own.items() if tensor is own[path]]
    found = []
    for name in same:
        module, _, key = name.rpartition(".")
        found.append((net.get_submodule(module), key))
    return found
