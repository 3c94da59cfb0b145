"""What is left of a training once groups have left it: a smaller network, of entries of the whole's parameters."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import pyro
import torch
from torch import Tensor, nn

from ..compression.pruned import PrunedNetwork
from ..compression.reading import Reading, read_posterior
from ..compression.smaller import smaller
from ..errors import PyroBCError
from ..graph.interface import called
from ..graph.layer_types import LayerType, layer_type
from ..graph.module import GraphNetwork
from ..graph.nodes import is_layer, layer_name
from ..model.guide import FactorizedGuide
from ..model.network import BayesianNetwork
from ..posterior.gone import Gone
from ..posterior.in_place import InPlace, network_with
from ..posterior.summary import summarize
from ..runtime import processes
from ..runtime.devices import device_of
from ..runtime.inputs import head
from ..runtime.random_state import same_random_state
from .schedule import Schedule
from .step import FlatParameters
from .training import Training

# How far outputs may be apart, as a part of the largest: sums come in another order.
_TOLERANCE = 1e-3

# Examples on which both networks are compared.
_EXAMPLES = 16


@dataclass(frozen=True)
class Cut:
    """What has left a training; with the whole posterior it says what is left.

    :param gone: by layer, as :func:`~pyro_bc.posterior.gone.gone` says it.
    :param kl: divergence of what left, of every site of the whole guide, in nats, ``(sites,)``.
    """

    gone: Gone
    kl: Tensor


class Part(NamedTuple):
    """A vector as a part of a longer one.

    :param source: number of that one.
    :param places: of each of its numbers there, ``(size,)``.
    """

    source: int
    places: Tensor


@dataclass(frozen=True)
class Left:
    """What is left of a training.

    :param cut: what is not.
    :param whole: the training of the whole posterior.
    :param training: that of the smaller network.
    :param places: of the vectors of its parameters.
    :param sites: places of its sites among the whole's, ``(sites left,)``.
    """

    cut: Cut
    whole: Training
    training: Training
    places: list[Part]
    sites: Tensor

    def take(self) -> None:
        """Give the smaller network the numbers of the whole posterior, and Adam's moments."""
        for number, (source, places) in enumerate(self.places):
            vector = self.training.flat.vectors[number]
            vector.copy_(self.whole.flat.vectors[source][places])
            own = self.whole.moments(source)
            self.training.optimizer.state[vector] = {
                name: value[places] if value.dim() else value.clone() for name, value in own.items()
            }

    def give_back(self) -> None:
        """Put its numbers, and the moments, where they came from."""
        for number, (source, places) in enumerate(self.places):
            self.whole.flat.vectors[source][places] = self.training.flat.vectors[number]
            own = self.whole.moments(source)
            for name, value in self.training.moments(number).items():
                if value.dim():
                    own[name][places] = value
                else:
                    own[name].copy_(value)

    def with_all_sites(self, kl: Tensor) -> Tensor:
        """The divergence of every site of the whole guide, ``(sites,)``, from that of what is left."""
        found = self.cut.kl.to(kl)
        return found.index_add(0, self.sites.to(kl.device), kl)


@contextmanager
def whose_parameters(left: Left | None) -> Iterator[None]:
    """A context in which Pyro's store holds the parameters of what is left, and afterwards again what it held."""
    with nullcontext() if left is None else pyro.get_param_store().scope():
        yield


@torch.no_grad()
def left_of(whole: Training, cut: Cut, schedule: Schedule, x: Tensor, y: Tensor) -> Left | None:
    """What a cut leaves of a training, with the numbers of the whole; None where it cannot be cut so.

    On several processes all come to the same.
    """
    left = _left(whole, cut, schedule, x, y)
    return left if all(processes.gathered(left is not None)) else None


def _left(whole: Training, cut: Cut, schedule: Schedule, x: Tensor, y: Tensor) -> Left | None:
    x, y = head(x, _EXAMPLES), y[:_EXAMPLES]
    device = device_of(whole.guide)
    with same_random_state(device), pyro.get_param_store().scope(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all that is to be said of the network has been
        try:
            reading = read_posterior(whole.model, whole.guide)
            if reading.loose or reading.channels or any(f"net.{name}" != own for own, name in reading.names.items()):
                return None
            own = {name.removeprefix("net."): marks for name, marks in cut.gone.items()}
            pruned = smaller(reading.graph, reading.posterior, own)
            if pruned is None:
                return None
            priors = {name.removeprefix("net."): layer.prior for name, layer in whole.guide.layers.items()}
            graph = pruned.graph
            model = BayesianNetwork(
                GraphNetwork(graph.nodes, graph.tensors, graph.buffers).to(device),
                lambda name, module: priors.get(name),
                num_data=whole.model.num_data,
                likelihood=copy.deepcopy(whole.model.likelihood),
            )
            guide = FactorizedGuide(model)
            guide(x, y)
            training = Training.of(model, guide, schedule)
        except PyroBCError:  # then all of it is trained
            return None
    if guide.obstacle is not None:
        return None
    if any(f"{name}.weight" in graph.tensors and f"net.{name}" not in guide.layers for name in priors):
        return None  # a layer that the smaller network cannot have as one
    places = _places(whole, training, reading, pruned)
    order = list(whole.guide.families)
    if places is None or any(whole.guide.families.get(name) is not own for name, own in guide.families.items()):
        return None
    left = Left(cut, whole, training, places, torch.tensor([order.index(name) for name in guide.families]))
    left.take()
    return left if _is_one_function(left, x) else None


def _places(whole: Training, training: Training, reading: Reading, pruned: PrunedNetwork) -> list[Part] | None:
    """Of which of the whole's vectors each of the smaller network's is a part; None where one is of none."""
    types = {layer_name(node): layer_type(node.op) for node in reading.graph.nodes if is_layer(node)}
    types |= {name.removeprefix("net."): layer.type for name, layer in whole.guide.layers.items()}
    theirs = _named(whole)
    starts: dict[int, tuple[int, int]] = {}
    for number, group in enumerate(whole.flat.groups):
        ends = accumulate(parameter.numel() for parameter in group)
        starts |= {id(p): (number, end - p.numel()) for p, end in zip(group, ends, strict=True)}
    names = {id(parameter): name for name, parameter in _named(training).items()}
    found = []
    for group in training.flat.groups:
        sources, places = set(), []
        for parameter in group:
            own = theirs.get(names[id(parameter)])
            if own is None:
                return None
            path, _, role = names[id(parameter)].partition(":")[2].removeprefix("net.").rpartition(".")
            entries = torch.arange(own.numel()).reshape(own.shape)
            layer = pruned.layers.get(path)
            if layer is not None and layer.kept is not None:
                entries = _entries(entries, role, types[path], layer.kept)
            if entries.shape != parameter.shape:
                return None
            source, start = starts[id(own)]
            sources.add(source)
            places.append(entries.reshape(-1) + start)
        if len(sources) > 1:
            return None
        found.append(Part(sources.pop(), torch.cat(places).to(group[0].device)))
    return found


def _named(training: Training) -> dict[str, nn.Parameter]:
    """All parameters, by a name of their kind and that of their site or of the network's own parameter."""
    guide = training.guide
    trees = {"loc": guide.locs, "log-variance": guide.log_variances, "own": training.model}
    return {f"{kind}:{name}": own for kind, tree in trees.items() for name, own in tree.named_parameters()}


def _entries(entries: Tensor, role: str, kind: LayerType, kept: tuple[Tensor, Tensor]) -> Tensor:
    """What is left of a tensor of a layer."""
    if role == "weight":
        return entries.index_select(0, kept[0]).index_select(1, kept[1])
    if not entries.dim():  # a scale of the whole layer
        return entries
    return entries.index_select(0, kept[kind.output_axis if role == "bias" else kind.group_axis])


def _is_one_function(left: Left, x: Tensor) -> bool:
    """Whether the smaller network computes, at its means, what the whole does where all that leaves is 0."""
    guide, layers = left.whole.guide, summarize(left.whole.guide)
    leaves = leaving(left.whole, None, left)
    without = {}
    for name, layer in layers.items():
        weight, bias = layer.weight_mean, layer.bias_mean
        mask = ~leaves[id(guide.parameters_of(f"{name}.weight")[0])].cpu()
        if bias is not None:
            bias = bias * ~leaves[id(guide.parameters_of(f"{name}.bias")[0])].cpu()
        without[name] = InPlace(weight * mask, bias, mask)
    whole = network_with(left.whole.model, layers, without)
    small = network_with(left.training.model, summarize(left.training.guide), {})
    expected, found = called(whole, x, left.whole.model.output), called(small, x)
    largest = float(expected.abs().max())
    return bool(torch.allclose(expected, found, rtol=_TOLERANCE, atol=_TOLERANCE * largest))


def leaving(whole: Training, before: Left | None, left: Left) -> dict[int, Tensor]:
    """Which entries of the whole's parameters leave, boolean, by the ``id`` of the parameter."""
    masks: dict[int, Tensor] = {}
    leaves = [torch.full_like(vector, before is None, dtype=torch.bool) for vector in whole.flat.vectors]
    for one, leaving in ((before, True), (left, False)):
        for source, places in one.places if one else ():
            leaves[source][places] = leaving
    for vector, group in zip(leaves, whole.flat.groups, strict=True):
        parts = FlatParameters.split(vector, group)
        masks |= {id(parameter): part for parameter, part in zip(group, parts, strict=True)}
    return masks
