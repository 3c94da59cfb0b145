r"""Training what is left: groups that have gone leave the tensors, and later epochs cost what is left.

The posterior that a user holds keeps its shapes. Where enough groups of it have gone (:mod:`pyro_bc.posterior.gone`),
training goes on with a smaller network, which is what :func:`~pyro_bc.compress` would cut it to, under the same priors:
a :class:`~pyro_bc.BayesianNetwork` and a guide whose parameters, and Adam's moments, are entries of those that were
there. After every epoch they are put back where they came from, so that whatever looks at the guide, or keeps it, sees
the whole posterior.

With a factorised posterior the ELBO is the same but for what gone groups add to the network's outputs, which is next to
nothing: that is what makes them gone. Without it the best that the posterior of a weight can be is its prior, to which
training would take it in time, and which it gets when it leaves: its KL is 0 then. Group scales that leave stay what
they were, but for their size where noise would come of it: a normal under :math:`1/|z|` is as good at any size, as long
as :math:`\sigma/\mu` stays, and becomes small; a filter's log-normal scale becomes small for some nats. So draws of the
whole network have next to no noise of what left. The KL of what left no longer changes, and is added to that of the
rest.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ..graph.layer_types import layer_type
from ..graph.nodes import is_layer, layer_name
from ..graph.read import graph_of_same
from ..model.guide import FactorizedGuide
from ..model.network import BayesianNetwork
from ..posterior.gone import Gone, gone
from ..posterior.summary import summarize
from ..priors.base import GroupPrior, LayerSites, Prior, base_distribution
from ..priors.horseshoe import GroupHorseshoe
from ..priors.normal_jeffreys import GroupNormalJeffreys, LogUniform, NormalJeffreys
from ..priors.standard_normal import StandardNormal
from ..runtime import processes
from ..runtime.random_state import same_random_state
from ..runtime.shapes import on_axis
from .elbo import elbo_terms
from .history import Epoch
from .left import Cut, Left, leaving, left_of
from .multiplier import is_looked_at
from .schedule import Schedule
from .training import Training

#: a smaller network multiplies at most this part as often as the one that is trained: each takes seconds to make, and
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


def can_shrink(model: Any, guide: FactorizedGuide, x: Any) -> bool:
    """Whether groups may leave this model's tensors, as far as is known before a training.

    :param x: a batch of inputs.
    """
    if type(model) is not BayesianNetwork or not isinstance(x, Tensor) or guide.shared or guide.obstacle is not None:
        return False
    if any("_unconstrained" in name for name, _ in guide.named_parameters()):
        return False
    return all(_is_of_each_group(layer.prior) and _has_own_groups(guide, name) for name, layer in guide.layers.items())


def _is_of_each_group(prior: Prior) -> bool:
    own = type(prior) in _OF_EACH_GROUP
    return own and (not isinstance(prior, GroupPrior) or type(prior.weights) in _OF_EACH_GROUP)


def _has_own_groups(guide: FactorizedGuide, name: str) -> bool:
    """Whether every entry of the axis that counts a layer's groups is one, and not a head's many."""
    prior, _, kind = guide.layers[name]
    size = guide.parameters_of(f"{name}.weight")[0].shape[kind.group_axis]
    scales = [guide.parameters_of(f"{name}.{role}")[0] for role in prior.roles if role != "weight"]
    return all(not scale.dim() or scale.shape == (size,) for scale in scales)


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
    marks = {name: gone(layer) for name, layer in summarize(whole.guide).items()}
    if before is not None:
        was = before.cut.gone
        marks = {name: {axis: m | was[name][axis] for axis, m in own.items()} for name, own in marks.items()}
    marks = processes.from_first(lambda: marks)
    positions = _positions(whole.model, x)
    most = WORTH_SHRINKING * _work((before.training if before else whole).guide, positions)
    if _least(whole.guide, positions, marks) > most:
        return None
    left = left_of(whole, Cut(marks, torch.zeros(len(whole.guide.families))), schedule, x, y)
    if left is None or _work(left.training.guide, positions) > most:
        return None
    _leave_(whole, before, left)
    apart = _divergences(whole, x, y) - left.with_all_sites(_divergences(left.training, x, y))
    return replace(left, cut=Cut(marks, apart))


def _leave_(whole: Training, before: Left | None, left: Left) -> None:
    """Give what leaves the posterior that it has once the data say nothing of it, but for noise that nothing holds.

    Means become 0. Variances become the prior's where a scale that has gone holds their noise: that of their own group,
    or those of the groups that read their outputs; elsewhere they stay as narrow as the data have made them.
    """
    now, all_of_it, guide = leaving(whole, before, left), leaving(whole, None, left), whole.guide
    behind = {name for name, layer in guide.layers.items() if _loses_inputs_alone(layer, left.cut.gone[name])}
    for name, (prior, sites, kind) in guide.layers.items():
        behind.discard(name)
        out = all_of_it[id(guide.parameters_of(f"{name}.weight")[0])]
        rows, columns = (out.movedim(axis, 0).flatten(1).all(1) for axis in (kind.output_axis, kind.input_axis))
        rows &= kind.scales_outputs or not behind
        columns &= not kind.scales_outputs and len(prior.roles) > 1
        held = on_axis(rows, kind.output_axis, out.dim()) | on_axis(columns, kind.input_axis, out.dim())
        for role, site in sites.items():
            loc, log_variance = guide.parameters_of(f"{name}.{role}")
            mask, density = now[id(loc)], base_distribution(site)
            if role in ("weight", "bias"):
                loc[mask] = 0.0
                if isinstance(density, dist.Normal):
                    mask = mask & (held if role == "weight" else rows)
                    log_variance[mask] = 2 * density.scale[mask].log()
            elif isinstance(density, NormalJeffreys):
                loc[mask] *= _FADED
                log_variance[mask] += 2 * math.log(_FADED)
            elif isinstance(density, dist.Gamma) and kind.scales_outputs:  # a factor of the square
                loc[mask] += 2 * math.log(_FADED)


def _loses_inputs_alone(layer: LayerSites, gone: Mapping[int, Tensor]) -> bool:
    """Whether a layer loses inputs that no scale of its own multiplies."""
    return any(
        bool(marks.any()) for axis, marks in gone.items() if axis != layer.type.group_axis or len(layer.prior.roles) < 2
    )


def _positions(model: Any, x: Tensor) -> dict[str, int]:
    """At how many positions of an input each layer multiplies with its weight."""
    graph = graph_of_same(model.skeleton, x, model.output)
    found: dict[str, int] = {}
    for index, node in enumerate(graph.nodes):
        if is_layer(node):
            weight, kind = graph.tensors[node.args[1].name], layer_type(node.op)
            sizes = [size for size in (graph.shape(index) or ())[1:] if isinstance(size, int)]
            positions = max(1, math.prod(sizes) // weight.shape[kind.output_axis])
            found[f"net.{layer_name(node)}"] = found.get(f"net.{layer_name(node)}", 0) + positions
    return found


def _work(guide: FactorizedGuide, positions: Mapping[str, int]) -> float:
    """Multiplications of one input with weights."""
    return sum(guide.parameters_of(f"{name}.weight")[0].numel() * positions.get(name, 1) for name in guide.layers)


def _least(guide: FactorizedGuide, positions: Mapping[str, int], marks: Gone) -> float:
    """Less work than is left: as if, where a layer loses nothing of an axis, as large a part of it went as of any."""
    parts = {name: {axis: 1 - float(m.float().mean()) for axis, m in own.items()} for name, own in marks.items()}
    least = min((part for own in parts.values() for part in own.values()), default=1.0)
    work = 0.0
    for name in guide.layers:
        weights = guide.parameters_of(f"{name}.weight")[0].numel() * positions.get(name, 1)
        work += weights * parts[name].get(0, least) * parts[name].get(1, least)
    return work


def _divergences(training: Training, x: Tensor, y: Tensor) -> Tensor:
    """The KL of every site, ``(sites,)``, on the CPU."""
    with same_random_state(x.device), pyro.get_param_store().scope():
        kl = elbo_terms(training.model, training.guide, x, y).kl
    return torch.stack([kl[name].reshape(()) for name in training.guide.families]).cpu()
