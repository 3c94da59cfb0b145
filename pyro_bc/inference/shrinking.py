r"""Training what is left: groups that have gone leave the tensors, and later epochs cost what is left.

The posterior that a user holds keeps its shapes. Where enough groups of it have gone (:mod:`pyro_bc.posterior.gone`),
training goes on with a smaller network, which is what :func:`~pyro_bc.compress` would cut it to, under the same priors:
a :class:`~pyro_bc.BayesianNetwork` and a guide whose parameters, and Adam's moments, are entries of those that were
there. After every epoch they are put back where they came from, so that whatever looks at the guide, or keeps it, sees
the whole posterior.

With a factorised posterior the ELBO is the same but for what gone groups add to the network's outputs, which is next to
nothing: that is what makes them gone. Without it the best that the posterior of a weight can be is its prior, to which
training would take it in time, and which it gets when it leaves: its KL is 0 then. Of group scales, a normal under
:math:`1/|z|` is as good at any size, as long as :math:`\sigma/\mu` stays what it is, and becomes small, so that what
left adds no noise to draws of the whole network; log-normal ones stay as they are. Their KL no longer changes, and is
added to that of what is left.
"""

import copy
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
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
from ..posterior.gone import gone
from ..posterior.in_place import InPlace, network_with
from ..posterior.summary import LayerPosterior, summarize
from ..priors.base import GroupPrior, Prior, base_distribution
from ..priors.horseshoe import GroupHorseshoe
from ..priors.normal_jeffreys import GroupNormalJeffreys, LogUniform, NormalJeffreys
from ..priors.standard_normal import StandardNormal
from ..runtime import processes
from ..runtime.devices import device_of
from ..runtime.inputs import head
from ..runtime.random_state import same_random_state
from .elbo import elbo_terms
from .history import Epoch
from .multiplier import is_looked_at
from .schedule import Schedule, log_variance_bounds, optimizer_of, trained_parameters
from .step import FlatParameters

#: a smaller network has at most this part of the weights of the one that is trained: each takes seconds to make, and
#: to compile.
WORTH_SHRINKING = 0.5
#: more steps than this, times weights, repay that.
WORK = 2e8
# Part of a training before which nothing leaves.
_FROM = 0.25

# Priors under which a group knows neither of others nor of the layer's size; those of subclasses might.
_OF_EACH_GROUP = (GroupHorseshoe, GroupNormalJeffreys, LogUniform, StandardNormal)

# What becomes of scales that leave, where no size is worse than another.
_FADED = 1e-3

# How far outputs may be apart, as a part of the largest: sums come in another order.
_TOLERANCE = 1e-3

# Examples on which both networks are compared.
_EXAMPLES = 16


@dataclass(frozen=True)
class Training:
    """What steps train: a model and its guide, as a few flat parameters under Adam.

    :param model: as :func:`~pyro_bc.inference.trainable.trainable` gives it.
    :param guide: of this model, set up.
    :param bounds: parameters that are clamped after every step, and at what.
    """

    model: Any
    guide: FactorizedGuide
    flat: FlatParameters
    optimizer: Any
    bounds: list[tuple[Tensor, float]]

    @classmethod
    def of(cls, model: Any, guide: FactorizedGuide, schedule: Schedule) -> "Training":
        """The training of all that a model and its guide learn."""
        trained = trained_parameters(model, guide, schedule)
        flat = FlatParameters([parameters for parameters, _, _ in trained])
        bounds = log_variance_bounds(guide, schedule.max_scale)
        return cls(model, guide, flat, optimizer_of(flat.vectors, trained), bounds)

    @property
    def weights(self) -> int:
        """How many weights its layers have."""
        return sum(self.guide.parameters_of(f"{layer}.weight")[0].numel() for layer in self.guide.layers)

    def moments(self, number: int) -> dict[str, Tensor]:
        """Adam's state of one of the vectors."""
        state: dict[str, Tensor] = self.optimizer.state[self.flat.vectors[number]]
        return state


@dataclass(frozen=True)
class Cut:
    """What has left a training; with the whole posterior it says what is left.

    :param gone: by layer, which entries of :func:`~pyro_bc.posterior.gone.gone_axis` have gone.
    :param kl: divergence of what left, of every site of the whole guide, in nats, ``(sites,)``.
    """

    gone: Mapping[str, Tensor]
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


def can_shrink(model: Any, guide: FactorizedGuide, x: Any) -> bool:
    """Whether groups may leave this model's tensors, as far as is known before a training.

    :param x: a batch of inputs.
    """
    if type(model) is not BayesianNetwork or not isinstance(x, Tensor) or guide.shared or guide.obstacle is not None:
        return False
    priors = [layer.prior for layer in guide.layers.values()]
    return all(_is_of_each_group(prior) for prior in priors) and not any(
        "_unconstrained" in name for name, _ in guide.named_parameters()
    )


def _is_of_each_group(prior: Prior) -> bool:
    own = type(prior) in _OF_EACH_GROUP
    return own and (not isinstance(prior, GroupPrior) or type(prior.weights) in _OF_EACH_GROUP)


def is_time(record: Epoch, epochs: int, steps: int) -> bool:
    """Whether groups may leave after an epoch: not while a network still learns what it needs, nor while what is asked
    for is missed, since the KL's weight then gives way; and not where too little is left to do.

    :param epochs: of the whole training.
    :param steps: of an epoch.
    """
    is_late = record.epoch > _FROM * epochs and is_looked_at(record.epoch - 1, epochs)
    work = (epochs - record.epoch) * steps * (record.weights_trained or 0)
    return is_late and record.is_kept is not False and work > WORK


@torch.no_grad()
def cut_of(whole: Training, before: Left | None, schedule: Schedule, x: Tensor, y: Tensor) -> Left | None:
    """What is left where all that has gone by now leaves; None where it is too much to be worth it, or cannot be cut.

    On several processes all come to the same.

    :param before: what is trained now, where something has left already; it does not come back.
    :param x: inputs of a batch.
    :param y: its targets.
    """
    layers = summarize(whole.guide)
    marks = {name: gone(layer) | before.cut.gone[name] if before else gone(layer) for name, layer in layers.items()}
    marks = processes.from_first(lambda: marks)
    weights = (before.training if before else whole).weights
    if _least(layers, marks) > WORTH_SHRINKING * weights:
        return None
    left = left_of(whole, Cut(marks, torch.zeros(len(whole.guide.families))), schedule, x, y)
    if left is None or left.training.weights > WORTH_SHRINKING * weights:
        return None
    _leave_(whole, before, left)
    apart = _divergences(whole, x, y) - left.with_all_sites(_divergences(left.training, x, y))
    return replace(left, cut=Cut(marks, apart))


def _leaving(whole: Training, before: Left | None, left: Left) -> dict[int, Tensor]:
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


def _leave_(whole: Training, before: Left | None, left: Left) -> None:
    """Give what leaves the posterior that it has once the data say nothing of it."""
    masks = _leaving(whole, before, left)
    for name, layer in whole.guide.layers.items():
        for role, site in layer.sites.items():
            loc, log_variance = whole.guide.parameters_of(f"{name}.{role}")
            mask, prior = masks[id(loc)], base_distribution(site)
            if isinstance(prior, dist.Normal):
                loc[mask], log_variance[mask] = prior.loc[mask], 2 * prior.scale[mask].log()
            elif isinstance(prior, NormalJeffreys) and role == "weight":
                loc[mask] = 0.0
            elif isinstance(prior, NormalJeffreys):
                loc[mask] *= _FADED
                log_variance[mask] += 2 * math.log(_FADED)


@contextmanager
def whose_parameters(left: Left | None) -> Iterator[None]:
    """A context in which Pyro's store holds the parameters of what is left, and afterwards again what it held."""
    with nullcontext() if left is None else pyro.get_param_store().scope():
        yield


def _least(layers: Mapping[str, LayerPosterior], marks: Mapping[str, Tensor]) -> float:
    """Fewer weights than are left: as if every layer lost as large a part of its other axis as any loses of one."""
    parts = {name: 1 - float(own.float().mean()) for name, own in marks.items()}
    return min(parts.values()) * sum(parts[name] * layer.weight_mean.numel() for name, layer in layers.items())


def _divergences(training: Training, x: Tensor, y: Tensor) -> Tensor:
    """The KL of every site, ``(sites,)``, on the CPU."""
    with same_random_state(x.device), pyro.get_param_store().scope():
        kl = elbo_terms(training.model, training.guide, x, y).kl
    return torch.stack([kl[name].reshape(()) for name in training.guide.families]).cpu()


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
        except PyroBCError:
            return None
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
    if any(f"{name}.weight" in graph.tensors and f"net.{name}" not in guide.layers for name in priors):
        return None  # a layer that the smaller network cannot have as one
    training = Training.of(model, guide, schedule)
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
    leaves = _leaving(left.whole, None, left)
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
