r"""Scales that layers share: one for each channel of a residual stream, over all weights that belong to it.

A channel of a residual stream is written by several layers and read by others. Its weights are one group: the rows of
those that write it, biases included, the columns of those that read it, gain and shift of normalisations on it, and
what is added to it, such as positions. The group's scale :math:`z_c` multiplies each of them once:

.. math:: w_{ij} = z_{c(i)}\, z_{c(j)}\, \hat w_{ij},

where :math:`\hat w` is what the layer's own prior makes, a scale of its own groups included, and a factor is 1 where an
output or input is in no such channel. Where a weight reads and writes the same channel it is in one group, and has one
factor. With the scale at 0 the channel is 0 wherever it is, also behind a normalisation over all channels, so that all
of it can leave the network.

Only the product of a layer's own scale and the shared one is told by the data; the shared one says which channels
anything needs, a layer's own which of those it reads.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..runtime.shapes import on_axis
from .base import GroupPrior, Prior, scaled_moments, standard_normal
from .horseshoe import GroupHorseshoe

#: along an axis of a tensor, the number of each entry's channel, ``(size,)``; −1 for an entry of none.
Axes = Mapping[int, Tensor]


class ResidualWidth:
    """Priors of a network's layers, and one over the width of its residual streams, for a
    :class:`~pyro_bc.BayesianNetwork`.

    Channels that additions tie are found in the network's graph with the first input. Sites are
    ``residual.<number>.<role>``, one stream after the other; those of the layers stay what they are.

    :param layers: of the layers: a prior, or a rule as :func:`~pyro_bc.bayesianize` takes it. With
        :class:`~pyro_bc.StandardNormal` or :class:`~pyro_bc.LogUniform`, channels of the streams are the only groups.
    :param width: of the channels; None for the one of the layers, or a horseshoe where that is none of groups.
    :raises UsageError: where one of them is something else.

    >>> import pyro_bc, torch
    >>> class Block(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.start, self.up, self.down = torch.nn.Linear(3, 8), torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)
    ...         self.head = torch.nn.Linear(8, 2)
    ...     def forward(self, x):
    ...         x = self.start(x)
    ...         return self.head(x + self.down(self.up(x).relu()))
    >>> model = pyro_bc.BayesianNetwork(Block(), ResidualWidth(pyro_bc.GroupNormalJeffreys()), num_data=8)
    >>> pyro_bc.FactorizedGuide(model)(torch.ones(2, 3), torch.tensor([0, 1]))["residual.0.scale"].shape
    torch.Size([8])
    """

    def __init__(
        self,
        layers: Prior | Callable[[str, nn.Module], Prior | None] | None = None,
        width: GroupPrior | None = None,
    ):
        self.layers = GroupHorseshoe() if layers is None else layers
        if not isinstance(self.layers, Prior) and not callable(self.layers):
            raise UsageError(f"layers=… is a prior, or a rule (name, module) -> prior, not {self.layers!r}")
        self.width = width
        if width is None:
            self.width = self.layers if isinstance(self.layers, GroupPrior) else GroupHorseshoe()
        if not isinstance(self.width, GroupPrior):
            raise UsageError(f"width=… is a prior with a scale for groups, such as GroupHorseshoe(), not {width!r}")

    def __call__(self, name: str, module: nn.Module) -> Prior | None:
        """The prior of one layer."""
        return self.layers if isinstance(self.layers, Prior) else self.layers(name, module)

    def __repr__(self) -> str:
        return f"ResidualWidth({self.layers!r}, {self.width!r})"


@dataclass(frozen=True)
class Members:
    """The tensors along which a network has the channels of one scale.

    :param size: how many channels there are.
    :param layers: by the name of a layer's site (``net.fc1.weight``), the axes of its value.
    :param others: by the name of a parameter or buffer of the network (``norm.weight``), its axes.
    :param writers: names of the layers that compute the channels, in the network.
    :param readers: of those that read them.
    """

    size: int
    layers: Mapping[str, Axes]
    others: Mapping[str, Axes]
    writers: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()


@dataclass(frozen=True)
class SharedScale:
    """A scale that layers share, among a model's sites.

    :param prior: whose scale it is.
    :param sites: prior density by role.
    :param members: what it multiplies.
    """

    prior: GroupPrior
    sites: Mapping[str, Any] = field(repr=False)
    members: Members = field(repr=False)

    def value(self, name: str, values: Mapping[str, Tensor]) -> Tensor:
        """The scale from values of a model's sites, ``(channels,)``."""
        scale = self.prior.scale({role: values[f"{name}.{role}"] for role in self.sites})
        assert scale is not None
        return scale

    def posterior(self, name: str, marginals: Mapping[str, Any]) -> Any:
        """Its density from the marginal densities of a model's sites."""
        return self.prior.group_scale({role: marginals[f"{name}.{role}"] for role in self.sites})


def find_shared(densities: Mapping[str, Any]) -> dict[str, SharedScale]:
    """The scales that layers share among a model's latent sites, by the name before their roles.

    :param densities: site name to prior density, in the order of the trace.
    """
    found: dict[str, SharedScale] = {}
    for site, fn in densities.items():
        if hasattr(fn, "of_shared"):
            name, _, role = site.rpartition(".")
            prior, members = fn.of_shared
            own = found.setdefault(name, SharedScale(prior, {}, members))
            found[name] = SharedScale(prior, {**own.sites, role: fn}, members)
    return found


def shared_sites(prior: GroupPrior, members: Members) -> dict[str, Any]:
    """Prior density of every role of a scale that layers share, each of which knows what it multiplies."""
    densities = prior.scale_sites(members.size)
    for density in densities.values():
        density.of_shared = (prior, members)
    return densities


def initial_scale(own: SharedScale) -> dict[str, Tensor]:
    """Values at which a guide starts, for every role of the scale."""
    weight = standard_normal((1, own.members.size))  # of which only the shape counts
    values = own.prior.initial_values({**own.sites, "weight": weight})
    return {role: value for role, value in values.items() if role in own.sites}


def along(axes: Axes, scale: Tensor, ndim: int) -> Tensor:
    """What entries of a tensor are multiplied by, shaped for broadcasting against it.

    :param axes: of the tensor.
    :param scale: of each channel, ``(channels,)``.
    :param ndim: dimensions of the tensor.
    """
    factors = list(_factors(axes, scale, ndim))
    return reduce(torch.mul, factors)


def _factors(axes: Axes, scale: Tensor, ndim: int, of_none: float = 1.0) -> Iterator[Tensor]:
    """What each axis multiplies entries by: a channel's scale, or ``of_none`` for an entry that is in none of them, and
    for one that an axis before has in the same.
    """
    padded = torch.cat([scale, scale.new_full((1,), of_none)])
    seen: list[Tensor] = []
    for axis, numbers in axes.items():
        own = on_axis(numbers.to(scale.device), axis, ndim)
        value = padded[own]
        for other in seen:
            value = torch.where((own == other) & (own >= 0), padded[-1], value)
        yield value
        seen.append(own)


def scaled(axes: Axes, mean: Tensor, variance: Tensor, scale: Any) -> tuple[Tensor, Tensor]:
    """Mean and variance of a tensor's entries times the scales of their channels, all independent.

    :param scale: density of the scales, ``(channels,)``.
    """
    means, variances = _factors(axes, scale.mean, mean.dim()), _factors(axes, scale.variance, mean.dim(), 0.0)
    for own_mean, own_variance in zip(means, variances, strict=True):
        value = SimpleNamespace(mean=mean, variance=variance)
        mean, variance = scaled_moments(value, own_mean, own_variance)
    return mean, variance


def times_shared(shared: Mapping[str, SharedScale], site: str, value: Tensor, scales: Mapping[str, Tensor]) -> Tensor:
    """A layer's weight or bias times the scales that it shares.

    :param site: its name, ``net.fc1.weight``.
    :param scales: value of every scale, by its name.
    """
    for name, own in shared.items():
        axes = own.members.layers.get(site)
        if axes:
            value = value * along(axes, scales[name], value.dim())
    return value


def scales_of(shared: Mapping[str, SharedScale], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The value of every shared scale, from values of a model's sites."""
    return {name: own.value(name, values) for name, own in shared.items()}
