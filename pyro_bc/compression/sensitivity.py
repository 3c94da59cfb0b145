"""How much each layer costs: error against bits and groups of one layer, all others at their posterior means.

A network that is clearly worse than the posterior mean has been cut or rounded too far somewhere; which layer it was is
seen when that layer alone takes the place of its mean.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import UsageError
from ..file.compressed import CompressedNetwork
from ..graph.module import GraphNetwork
from ..graph.nodes import Graph
from ..model.likelihoods import Likelihood
from ..model.network import BayesianNetwork
from ..posterior.channels import without_channels
from ..posterior.guides import Posterior, posterior_of
from ..posterior.in_place import InPlace, coarser, network_with, pruned, rounded
from ..posterior.judged import Judged, checked, figure, judge, rise, where_they_are
from ..posterior.summary import ChannelPosterior, LayerPosterior, summarize
from ..posterior.thresholds import Threshold, choose_threshold
from ..quantisation.rounding import NOISE_RATIO, RULES
from ..runtime.html import table
from ..runtime.inputs import names_of
from .pruned import with_values

# Steps beside those that the posterior asks for, in octaves, and parts of the groups beside those that it keeps.
_COARSER = (0, 1, 2, 3)
_FEWER = (0.5, 0.25)

# A network is clearly worse than another from so many points of error on, or standard deviations of its estimate; and
# from such a part of the error on, where that is no percentage.
_POINTS, _DEVIATIONS, _PART = 1.0, 2.0, 0.1

# The least part of what a network lost that one layer alone has to lose, to be named as what did it.
_SHARE = 0.25


@dataclass(frozen=True)
class Alone:
    """A network of which one layer is compressed.

    :param layer: its name in the network; or that of channels which cross layers.
    :param groups: that are left, or weights, where single ones are pruned.
    :param of: how many there were.
    :param bits: of a weight; None where nothing is rounded.
    :param code_bytes: that its weights take, about, at the entropy of their codes; 0 where nothing is rounded.
    :param error: of the network on held-out data, in the unit of the likelihood's metric.
    :param loss: its negative log-likelihood there, nats an example.
    :param is_chosen: whether this is what :func:`~pyro_bc.compress` makes of the layer.
    """

    layer: str
    groups: int
    of: int
    bits: int | None
    code_bytes: float
    error: float
    loss: float
    is_chosen: bool


@dataclass(frozen=True)
class Sensitivity:
    """What :func:`sensitivity` found; printed, it is a table.

    :param rows: layer by layer: as :func:`~pyro_bc.compress` has it, in coarser steps, and with fewer groups, not
        rounded.
    :param mean: error and loss of the network with all layers at their posterior means.
    :param metric: what the error is.
    """

    rows: tuple[Alone, ...]
    mean: Judged
    metric: str

    @property
    def worst(self) -> Alone:
        """Of the layers as :func:`~pyro_bc.compress` has them, the one that alone costs most."""
        return max((row for row in self.rows if row.is_chosen), key=lambda row: (row.error, row.loss))

    @property
    def head(self) -> tuple[str, ...]:
        """Names of the columns."""
        return ("layer", "groups", "bits", "bytes", self.metric, "rise", "nats")

    def cells(self) -> Iterator[tuple[str, ...]]:
        """The table's rows as text, the posterior mean first."""
        yield ("none", "", "", "", figure(self.metric, self.mean.error), "", f"{self.mean.loss:.4f}")
        for row in self.rows:
            is_rounded = row.bits is not None
            yield (
                row.layer,
                f"{row.groups:,} of {row.of:,}",
                f"{row.bits}{' (chosen)' if row.is_chosen else ''}" if is_rounded else "",
                f"{row.code_bytes:,.0f}" if is_rounded else "",
                figure(self.metric, row.error),
                rise(self.metric, row.error - self.mean.error),
                f"{row.loss:.4f}",
            )

    def __str__(self) -> str:
        lines = [self.head, *self.cells()]
        widths = [max(len(cells[column]) for cells in lines) for column in range(len(self.head))]
        return "\n".join("  ".join(map(str.ljust, cells, widths)).rstrip() for cells in lines)

    def _repr_html_(self) -> str:
        return table(self.head, self.cells())


@torch.no_grad()
def sensitivity(
    model: BayesianNetwork,
    guide: Any,
    held_out: Iterable[Any],
    *,
    thresholds: Mapping[str, float] | None = None,
    noise_ratio: float = NOISE_RATIO,
    precision: str = RULES[0],
) -> Sensitivity:
    """Error against bits and groups of every layer alone, a pass over the held-out batches for each row of the table.

    Rounding is to the nearest, by the posterior's variances; what a price of a bit does better (``nats_per_bit``,
    :class:`~pyro_bc.CurvatureGuide`) is not in it, so that the table is then of what has to be made up for.

    :param model: that was fitted.
    :param guide: its fitted guide, as :func:`~pyro_bc.compress` takes it.
    :param held_out: batches ``(x, y)`` that no training saw.
    :param thresholds: by layer, as :func:`~pyro_bc.compress` has them.
    :param noise_ratio: likewise.
    :param precision: likewise.
    :raises UsageError: for a model written by hand, and where there are no held-out batches.

    >>> import pyro_bc, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> model = pyro_bc.BayesianNetwork(net, pyro_bc.GroupNormalJeffreys(), num_data=100)
    >>> guide = pyro_bc.FactorizedGuide(model)
    >>> x, y = torch.randn(10, 4), torch.arange(10) % 3
    >>> _ = guide(x, y)
    >>> pyro_bc.sensitivity(model, guide, [(x, y)]).worst.layer in ("0", "2")
    True
    """
    if not isinstance(model, BayesianNetwork):
        raise UsageError(f"sensitivity is that of a BayesianNetwork, not of a {type(model).__name__}")
    fitted, batches = posterior_of(guide), checked(held_out, model)
    layers = summarize(fitted)
    mean = judge(network_with(model, layers, {}), model.likelihood, batches, fitted, model.output)
    rows = []
    for name, layer in layers.items():
        short = name.removeprefix("net.")
        threshold = choose_threshold(layer, (thresholds or {}).get(short))
        if isinstance(layer, ChannelPosterior):
            left = without_channels(layers, {name: threshold})
            found = judge(network_with(model, left, {}), model.likelihood, batches, fitted, model.output)
            kept = int(threshold.keeps(layer).sum())
            rows.append(Alone(short, kept, layer.members.size, None, 0.0, found.error, found.loss, True))
            continue
        for own, is_chosen in _ways(layer, threshold, noise_ratio, precision):
            found = judge(network_with(model, layers, {name: own}), model.likelihood, batches, fitted, model.output)
            groups, of = _groups(layer, own)
            bits = own.codes["weight"].bits if "weight" in own.codes else None
            rows.append(Alone(short, groups, of, bits, own.code_bytes(), found.error, found.loss, is_chosen))
    return Sensitivity(tuple(rows), mean, model.likelihood.metric)


def _ways(
    layer: LayerPosterior, threshold: Threshold, noise_ratio: float, precision: str
) -> Iterator[tuple[InPlace, bool]]:
    """What a layer may become, and whether it is what compression makes of it."""
    left = pruned(layer, threshold)
    own = rounded(layer, left, noise_ratio, precision)
    for octaves in _COARSER:
        yield coarser(own, octaves), octaves == 0
    if layer.statistic is None or layer.codes:
        return
    keep = threshold.keeps(layer)
    kept = layer.statistic[keep]
    for part in _FEWER:
        if len(kept) >= 1 / part:
            fewer = keep & (layer.statistic <= kept.sort().values[round(part * len(kept)) - 1])
            yield pruned(layer, threshold, fewer if layer.per_weight else layer.over_weights(fewer)), False


def _groups(layer: LayerPosterior, own: InPlace) -> tuple[int, int]:
    """Groups of a layer that have a weight left, and all."""
    if layer.statistic is None or layer.per_weight:
        return int((own.mask & (own.weight != 0)).sum()), own.mask.numel()
    groups = own.mask.movedim(layer.group_dim, 0).reshape(len(layer.statistic), -1)
    return int(groups.any(1).sum()), len(groups)


def is_clearly_worse(found: Judged, mean: Judged, examples: int) -> bool:
    """Whether an error is above the posterior mean's by more than an estimate from so many examples is off."""
    rise = found.error - mean.error
    if not mean.resolution:
        return not rise <= _PART * abs(mean.error)
    deviation = 10 * math.sqrt(max(mean.error, mean.resolution) / examples)
    return not rise <= max(_POINTS, _DEVIATIONS * deviation)


def blame(found: Judged, mean: Judged, layer: str, alone: float, metric: str) -> str:
    """What to say of a network that is clearly worse than the posterior mean: the layer that did it.

    :param layer: that costs most where it alone is compressed.
    :param alone: the error then.
    """
    errors = (figure(metric, error) for error in (found.error, mean.error, alone))
    compressed, at_mean, by_layer = errors
    said = f"the compressed network has {metric} {compressed} where the posterior mean has {at_mean}"
    finer = "take smaller steps (noise_ratio, or a lower nats_per_bit)"
    if alone - mean.error < _SHARE * (found.error - mean.error):
        return f"{said}; no layer alone does it, '{layer}' costs most ({by_layer}): {finer}"
    return (
        f"{said}; layer '{layer}' alone makes it {by_layer}: set a higher threshold for it (thresholds), {finer}, or "
        f"give the KL less weight"
    )


@torch.no_grad()
def warn_where_worse(
    small: CompressedNetwork,
    graph: Graph,
    posterior: Mapping[str, LayerPosterior],
    left: Mapping[str, InPlace],
    likelihood: Likelihood,
    held_out: Iterable[Any],
    sites: Posterior,
) -> None:
    """Warn where a compressed network is clearly worse than the posterior mean, and name the layer that did it.

    :param graph: of the network before compression.
    :param posterior: of its layers, by their names in the graph.
    :param left: what compression made of each of them.
    :param sites: whose centres the likelihood's own sites have.
    """
    batches = list(held_out)

    def judged(changed: Mapping[str, InPlace]) -> Judged:
        at_mean = {name: (layer.weight_mean, layer.bias_mean) for name, layer in posterior.items()}
        whole = with_values(graph, at_mean | {name: (own.weight, own.bias) for name, own in changed.items()})
        net = GraphNetwork(whole.nodes, whole.tensors, whole.buffers, names_of(batches[0][0]))
        return judge(where_they_are(net, batches), likelihood, batches, sites)

    if not batches:
        raise UsageError("there are no held-out examples to judge by")
    found = judge(where_they_are(small.network(), batches), likelihood, batches, sites)
    mean = judged({})
    if is_clearly_worse(found, mean, sum(len(y) for _, y in batches)):
        alone = {name: judged({name: own}) for name, own in left.items()}
        worst = max(alone, key=lambda name: (alone[name].error, alone[name].loss))
        warnings.warn(blame(found, mean, worst, alone[worst].error, likelihood.metric), stacklevel=4)
