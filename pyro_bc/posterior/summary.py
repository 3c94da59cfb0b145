"""What the fit knows about each layer: moments of every weight, and the statistic that prunes."""

import math
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ..graph.layer_types import LINEAR, LayerType, layer_type_of_shape
from ..model.guide import FactorizedGuide
from ..priors.base import GroupPrior, LayerSites, Prior
from ..priors.learned_code import bias_of, code_of, weight_of
from ..priors.shared import Members, SharedScale, scaled, scales_of, times_shared
from ..quantisation.fixed_point import FixedPoint
from ..runtime.random_state import seeded
from .guides import DRAWS, Posterior, posterior_of

_BEYOND = 1e4
_BLOCK = 20  # draws of a layer that are held at once


@dataclass(frozen=True)
class LayerPosterior:
    """Posterior summary of one layer; all tensors detached and on the CPU.

    :param name: the layer's name in the model (``net.fc1``).
    :param prior: its prior.
    :param weight_mean: ``(out, in)`` or ``(out, in, *kernel)``.
    :param weight_variance: the same shape.
    :param bias_mean: ``(out,)`` or None.
    :param bias_variance: ``(out,)`` or None.
    :param statistic: large where prunable: ``(groups,)``, the weight's shape, or None (nothing is pruned).
    :param weight_statistic: likewise of single weights, where ``statistic`` is that of groups, and weights are pruned
        as well.
    :param codes: how the file will hold weight and bias, where they are codes; empty elsewhere.
    :param type: of the layer, None for that which the weight's shape says.
    :param reach: which weights are in no pruned channel that crosses layers, boolean, of the weight's shape; None for
        all (``pyro_bc.posterior.channels``).
    """

    name: str
    prior: Prior
    weight_mean: Tensor
    weight_variance: Tensor
    bias_mean: Tensor | None
    bias_variance: Tensor | None
    statistic: Tensor | None
    weight_statistic: Tensor | None = None
    codes: Mapping[str, FixedPoint] = field(default_factory=dict)
    type: LayerType | None = None
    reach: Tensor | None = None

    @property
    def layer_type(self) -> LayerType:
        """The layer's type; that of its weight's shape where it was not said."""
        return self.type or layer_type_of_shape(self.weight_mean.shape)

    @property
    def group_dim(self) -> int:
        """Dimension of the weight that indexes its groups."""
        return self.layer_type.group_axis

    def over_weights(self, per_group: Tensor) -> Tensor:
        """A tensor of one entry per group, shaped for broadcasting against the weight."""
        return self.layer_type.over_groups(per_group, self.weight_mean.shape)

    def signal_to_noise(self) -> Tensor:
        r"""The largest :math:`E[w]^2 / V[w]` in each group, ``(groups,)``; that of each weight for per-weight priors.

        At most 1 means that no weight of the group is told from zero by more than its own noise.
        """
        ratio = self.weight_mean.square() / self.weight_variance
        return ratio if self.per_weight else self._by_group(ratio).amax(1)

    def removal_price(self) -> Tensor:
        r"""What removing each group alone costs, in nats: :math:`\tfrac12 \sum E[w]^2/V[w]`, ``(groups,)``.

        It is :math:`\tfrac12 w_g^\top \Sigma_{gg}^{-1} w_g` of a factorised posterior, by which a model without the
        group is compared (optimal brain surgeon, Hassibi and Stork 1993), and the evidence against it under a normal
        prior but for what the prior alone says (Bayesian model reduction, Beckers et al. 2022, 2210.09134).
        """
        return self._by_group(0.5 * self.weight_mean.square() / self.weight_variance).sum(1)

    def code_length(self) -> Tensor:
        r"""Bits that each group takes in a file, about, ``(groups,)``: the rate
        :math:`\tfrac12 \log_2(1 + E[w]^2/V[w])` of each weight, and 1.5 for its sign and that it is there.
        """
        rate = 0.5 * torch.log2(1 + self.weight_mean.square() / self.weight_variance)
        return self._by_group(rate + 1.5).sum(1)

    def information(self) -> Tensor:
        r"""What the posterior knows of each group, in nats: :math:`\tfrac12 \sum \log(1 + E[w]^2/V[w])`.

        It is the rate at which a Gaussian channel of that signal and noise carries the weights. ``(groups,)``; of
        each weight for per-weight priors.
        """
        nats = 0.5 * torch.log1p(self.weight_mean.square() / self.weight_variance)
        return nats if self.per_weight else self._by_group(nats).sum(1)

    def within_reach(self) -> Tensor:
        """Which entries of the statistic say something: all that are not in pruned channels alone, boolean."""
        assert self.statistic is not None
        if self.reach is None:
            return torch.ones_like(self.statistic, dtype=torch.bool)
        return self.reach if self.per_weight else self._by_group(self.reach).any(1)

    def _by_group(self, values: Tensor) -> Tensor:
        """Values of the weight's shape as rows, one for each group, ``(groups, …)``."""
        groups = values.shape[self.group_dim] if self.statistic is None else len(self.statistic)
        return values.movedim(self.group_dim, 0).reshape(groups, -1)

    @property
    def per_weight(self) -> bool:
        """Whether single weights are pruned instead of groups."""
        return self.statistic is not None and self.statistic.shape == self.weight_mean.shape

    @property
    def prunes_weights(self) -> bool:
        """Whether single weights are pruned, alone or as well as groups."""
        return self.per_weight or self.weight_statistic is not None


@dataclass(frozen=True)
class ChannelPosterior(LayerPosterior):
    """Posterior summary of channels that cross layers: what :class:`~pyro_bc.LayerPosterior` is of a layer.

    Weights stand as in a layer that reads every channel: one column each, ``(weights, channels)``, which holds all that
    layers have of it, and 0 of variance 1 where one has fewer than another. There is no bias.

    :param members: where its weights are.
    :param scale_mean: posterior mean of the scales, ``(channels,)``; 0 of channels that are pruned.
    """

    members: Members = field(default_factory=lambda: Members(0, {}, {}))
    scale_mean: Tensor = field(default_factory=lambda: torch.zeros(0))


def _codes(layer: LayerSites, q: Mapping[str, Any]) -> dict[str, FixedPoint]:
    """Weight and bias as a file holds them, where they are codes: rounded, with the scales' means in them."""
    prior, sites, kind = layer
    codes: dict[str, FixedPoint] = {}
    scale = prior.group_scale(q)
    for role, site in sites.items():
        code = code_of(site)
        if code is None:
            continue
        centre = q[role].centre
        if scale is not None and not code.is_settled and (role == "weight" or kind.scales_outputs):
            centre = centre * (kind.over_groups(scale.mean, centre.shape) if role == "weight" else scale.mean)
        codes[role] = code.stored(kind.held(centre) if role == "weight" else centre)
    return codes


def _bounded(statistic: Tensor | None) -> Tensor | None:
    """A statistic on the CPU: logarithms of variances that are 0 or infinite are numbers beyond all others."""
    return None if statistic is None else statistic.cpu().clamp(-_BEYOND, _BEYOND)


@torch.no_grad()
def code_bytes(guide: FactorizedGuide) -> float:
    """Bytes that the rounded codes of a guide take under their learned priors, header not included."""
    q = guide.posterior()
    nats = 0.0
    for name, layer in guide.layers.items():
        for role, site in layer.sites.items():
            if (code := code_of(site)) is not None:
                nats += float(code.nats(q[f"{name}.{role}"].centre))
    return nats / math.log(2) / 8


@torch.no_grad()
def summarize(guide: Any) -> dict[str, LayerPosterior]:
    """Posterior summary of every layer of a fitted guide, in the order of the network; of channels that cross layers
    behind them.

    :param guide: a :class:`~pyro_bc.FactorizedGuide`, one of Pyro's, or what was read of it
        (:mod:`pyro_bc.posterior.guides`).
    :raises RuntimeError: where the guide has not been set up by a first call.
    :raises UsageError: where a site's posterior is NaN, or the guide is none that is known.
    """
    posterior = posterior_of(guide)
    layers = {}
    for name, (prior, sites, kind) in posterior.layers.items():
        # Copies, so that what a density computes of itself once is gone with them: a variance is as large as the layer.
        layer_q = {role: copy(posterior.marginals[f"{name}.{role}"]) for role in sites}
        codes, source = _codes(posterior.layers[name], layer_q), prior
        for role, site in sites.items():
            if (code := code_of(site)) is not None:
                deviation = torch.full_like(layer_q[role].centre, float(code.log_step.exp()) / math.sqrt(12))
                layer_q[role] = dist.Normal(code.decoded(layer_q[role].centre), deviation, validate_args=False)
                # Once codes are settled, scales are in them, and say nothing any more.
                source = prior.weights if code.is_settled and isinstance(prior, GroupPrior) else prior
        if posterior.dependent and (len(prior.roles) > 1 or posterior.shared):
            mean, variance, bias_mean, bias_variance = _drawn_moments(posterior, name)
        else:
            mean, variance = _shared_moments(posterior, f"{name}.weight", *source.moments(layer_q, kind))
            bias_mean = bias_variance = None
            if "bias" in layer_q:
                moments = source.bias_moments(layer_q, kind)
                bias_mean, bias_variance = _shared_moments(posterior, f"{name}.bias", *moments)
        layers[name] = LayerPosterior(
            name=name,
            prior=prior,
            weight_mean=kind.held(mean).cpu(),
            weight_variance=variance.cpu(),
            bias_mean=None if bias_mean is None else bias_mean.cpu(),
            bias_variance=None if bias_variance is None else bias_variance.cpu(),
            # Scales that are points say nothing of groups.
            statistic=None if posterior.curvature is not None else _bounded(source.statistic(layer_q)),
            weight_statistic=None if posterior.curvature is not None else _bounded(source.weight_statistic(layer_q)),
            codes=codes,
            type=kind,
        )
    channels = {name: _channels(posterior, name, own, layers) for name, own in posterior.shared.items()}
    return layers | channels


def _shared_moments(posterior: Posterior, site: str, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of a layer's weight or bias under the scales that it shares, too."""
    for name, own in posterior.shared.items():
        axes = own.members.layers.get(site)
        if axes:
            mean, variance = scaled(axes, mean, variance, own.posterior(name, posterior.marginals))
    return mean, variance


def _channels(
    posterior: Posterior, name: str, own: SharedScale, layers: Mapping[str, LayerPosterior]
) -> ChannelPosterior:
    """The summary of channels that share a scale."""
    means, variances = [], []
    for site, axes in own.members.layers.items():
        layer, _, role = site.rpartition(".")
        if role == "weight" and layer in layers:
            for axis, numbers in axes.items():
                means.append(_by_channel(layers[layer].weight_mean, axis, numbers, own.members.size, 0.0))
                variances.append(_by_channel(layers[layer].weight_variance, axis, numbers, own.members.size, 1.0))
    q = {role: posterior.marginals[f"{name}.{role}"] for role in own.sites}
    weight = {"weight": dist.Normal(torch.zeros(1, own.members.size), 1.0)}  # which no statistic of a scale is of
    return ChannelPosterior(
        name=name,
        prior=own.prior,
        weight_mean=torch.cat(means, 1).T,
        weight_variance=torch.cat(variances, 1).T,
        bias_mean=None,
        bias_variance=None,
        statistic=_bounded(own.prior.statistic({**weight, **q})),
        type=LINEAR,
        members=own.members,
        scale_mean=own.posterior(name, posterior.marginals).mean.cpu(),
    )


def _by_channel(values: Tensor, axis: int, numbers: Tensor, size: int, filling: float) -> Tensor:
    """Entries of a tensor in a row for each channel, ``(channels, …)``.

    :param numbers: of each entry's channel along the axis, −1 for none.
    """
    order = numbers.argsort(stable=True)
    order = order[numbers[order] >= 0]
    channels = numbers[order]
    counts = torch.bincount(channels, minlength=size)
    place = torch.arange(len(order)) - (counts.cumsum(0) - counts)[channels]
    rows = values.movedim(axis, 0).flatten(1)[order]
    result = torch.full((size, int(counts.max()), rows.shape[1]), filling)
    result[channels, place] = rows
    return result.flatten(1)


def _drawn_moments(posterior: Posterior, name: str) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Mean and variance of a layer's weight and bias from joint draws, where their factors are not independent."""
    layer = posterior.layers[name]
    roles = {role: f"{name}.{role}" for role in layer.sites}
    of_scales = [f"{scale}.{role}" for scale, shared in posterior.shared.items() for role in shared.sites]
    sums: dict[int, tuple[Tensor, Tensor]] = {}
    with seeded(0, posterior.device):
        for _ in range(DRAWS // _BLOCK):
            draws = posterior.draws(_BLOCK, [*roles.values(), *of_scales])
            for drawn in range(_BLOCK):
                own = {role: draws[site][drawn] for role, site in roles.items()}
                scales = scales_of(posterior.shared, {site: value[drawn] for site, value in draws.items()})
                made = {"weight": weight_of(layer, own), "bias": bias_of(layer, own)}
                for index, (role, alone) in enumerate(made.items()):
                    if alone is not None:
                        value = times_shared(posterior.shared, f"{name}.{role}", alone, scales)
                        first, second = sums.get(index, (0.0, 0.0))
                        sums[index] = first + value.double(), second + value.double().square()
    moments = {index: (total / DRAWS, squares / DRAWS) for index, (total, squares) in sums.items()}
    (mean, square), (bias_mean, bias_square) = moments[0], moments.get(1, (None, None))
    variance = (square - mean.square()).clamp_min(0).float()
    if bias_mean is None or bias_square is None:
        return mean.float(), variance, None, None
    return mean.float(), variance, bias_mean.float(), (bias_square - bias_mean.square()).clamp_min(0).float()
