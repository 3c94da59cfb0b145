"""What compression, export, diagnostics and plots read of a guide: this package's, or one of Pyro's own.

====================================================================  ==================  =====================
guide                                                                 marginals           moments of a weight
====================================================================  ==================  =====================
:class:`~pyro_bc.FactorizedGuide`, ``AutoNormal``                     closed form         closed form
:class:`~pyro_bc.CurvatureGuide`                                      closed form         closed form
``AutoDelta``, ``AutoLaplaceApproximation`` before its approximation  a point             a point
``AutoDiagonalNormal``                                                closed form         closed form
``AutoLowRankMultivariateNormal``, ``AutoMultivariateNormal``         closed form         from draws where a scale
                                                                                          and a weight correlate
any other ``AutoGuide``                                               from draws          from draws
``AutoGuideList``                                                     as its parts        as its parts
====================================================================  ==================  =====================

A guide of one's own is added by ``posterior_of.register(MyGuide)``, with a function that makes a :class:`Posterior`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial, singledispatch
from operator import attrgetter
from typing import Any

import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.infer.autoguide import (
    AutoContinuous,
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuide,
    AutoGuideList,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor
from torch.distributions import biject_to, constraints

from ..errors import UsageError
from ..model.guide import FactorizedGuide
from ..priors.base import LayerSites, base_distribution, find_layers
from ..priors.cells import Cell
from ..priors.learned_code import code_of
from ..priors.shared import SharedScale, find_shared
from ..runtime.devices import device_of
from ..runtime.inputs import Batch
from ..runtime.random_state import seeded
from .curvature import Curvature

#: how many draws moments are estimated from, where they have no closed form.
DRAWS = 1000


# Latent numbers whose correlations are looked at: the precision of so many is half a gigabyte.
_MOST_CORRELATED = 8192


@dataclass(frozen=True)
class Posterior:
    """A fitted guide.

    :param model: the Pyro model that it is a guide of.
    :param arguments: with which the guide was first called.
    :param layers: the model's layers.
    :param marginals: density of every latent site, of its shape and without event dimensions: a ``Normal``, a
        ``LogNormal``, a ``Cell``, or for sites of no layer any other. Points are normals of scale 0.
    :param draws: ``draws(n)`` gives n joint draws of all sites, ``{site: (n, *site)}``; ``draws(n, names)`` of some.
    :param log_prob: log-density of one joint draw, scalar.
    :param dependent: whether sites depend on each other, so that moments of their products are taken from draws.
    :param from_draws: whether the marginals themselves are.
    :param kl_weight: that the KL had in the fit.
    :param curvature: of layers whose weights are correlated as it says, by the layer's name; None elsewhere.
    :param precision: of a normal whose sites are correlated: ``precision({site: entries})``, flat indices ``(rows, k)``
        into each site, is the precision of each row's entries given all others, ``(rows, sum of k, sum of k)``; None
        where there is none.
    :param others: with a curvature, Fisher information of one example about a number of any tensor that belongs to no
        layer, by the tensor's name in the network's graph.
    :param examples: inputs that the guide was made from; None where they were not kept.
    :param shared: scales that the model's layers share, by the name of their sites.
    """

    model: Any
    arguments: tuple[Any, ...]
    layers: Mapping[str, LayerSites]
    marginals: Mapping[str, Any]
    draws: Callable[..., dict[str, Tensor]]
    log_prob: Callable[[Mapping[str, Tensor]], Tensor]
    dependent: bool = False
    from_draws: bool = False
    kl_weight: float = 1.0
    curvature: Mapping[str, Curvature] | None = None
    precision: Callable[[Mapping[str, Tensor]], Tensor] | None = None
    others: Mapping[str, float] = field(default_factory=dict)
    examples: Batch | None = None
    shared: Mapping[str, SharedScale] = field(default_factory=dict)

    def centre(self) -> dict[str, Tensor]:
        """A value of every site in the middle of its marginal: the median, where that has a closed form."""
        return {name: _centre(q) for name, q in self.marginals.items()}

    @property
    def has_codes(self) -> bool:
        """Whether weights are codes."""
        return any(isinstance(q, Cell) for q in self.marginals.values())

    @property
    def device(self) -> torch.device:
        """Where the posterior is."""
        return _centre(next(iter(self.marginals.values()))).device


@singledispatch
def posterior_of(guide: Any) -> Posterior:
    """The posterior that a fitted guide holds, detached; one that has been read already is given back.

    :raises RuntimeError: where the guide has not been set up by a first call.
    :raises UsageError: where it is no guide whose sites are known, or one with codes of another family.
    """
    raise UsageError(
        f"the posterior of a {type(guide).__name__} cannot be read: give a FactorizedGuide, one of Pyro's autoguides "
        f"or an AutoGuideList of them, or teach it with pyro_bc.posterior.guides.posterior_of.register"
    )


@posterior_of.register
def _read(posterior: Posterior) -> Posterior:
    return posterior


@posterior_of.register
def _factorized(guide: FactorizedGuide) -> Posterior:
    guide._require_setup()
    return _independent(guide, guide._source[0], guide.posterior(), guide.kl_weight)


@posterior_of.register
def _normal(guide: AutoNormal) -> Posterior:
    marginals = {
        name: _pushed(site["fn"], *(value.detach() for value in guide._get_loc_and_scale(name)))
        for name, site in _latent_sites(guide).items()
    }
    return _independent(guide, _unwrapped(guide.model), marginals)


@posterior_of.register
def _delta(guide: AutoDelta) -> Posterior:
    marginals = {}
    for name, site in _latent_sites(guide).items():
        value = attrgetter(name)(guide).detach()
        marginals[name] = point_at(site["fn"], value)
    return replace(_independent(guide, _unwrapped(guide.model), marginals), log_prob=_no_density)


@posterior_of.register(AutoDiagonalNormal)
@posterior_of.register(AutoLowRankMultivariateNormal)
@posterior_of.register(AutoMultivariateNormal)
@posterior_of.register(AutoLaplaceApproximation)
def _latent_vector(guide: AutoContinuous) -> Posterior:
    sites = _latent_sites(guide)
    with torch.no_grad():
        q: Any = guide.get_posterior()
    is_point = isinstance(guide, AutoLaplaceApproximation)
    loc = _unpacked(sites, q.mean.detach())
    scale = {} if is_point else _unpacked(sites, q.variance.detach().sqrt())
    marginals = {name: _pushed(site["fn"], loc[name], scale.get(name)) for name, site in sites.items()}
    found = _independent(guide, _unwrapped(guide.model), marginals)
    if is_point:
        return replace(found, log_prob=_no_density)
    if isinstance(guide, AutoDiagonalNormal):
        return found

    def draws(count: int, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        inner = _unpacked(sites, q.sample((count,)))
        return {name: biject_to(sites[name]["fn"].support)(inner[name]) for name in (sites if names is None else names)}

    def log_prob(values: Mapping[str, Tensor]) -> Tensor:
        parts, volume = [], torch.zeros(())
        for name, site in sites.items():
            transform = biject_to(site["fn"].support)
            value = transform.inv(values[name])
            parts.append(value.reshape(-1))
            volume = volume + transform.log_abs_det_jacobian(value, values[name]).sum()
        return q.log_prob(torch.cat(parts)) - volume

    def precision(entries: Mapping[str, Tensor]) -> Tensor:
        places = _unpacked(sites, torch.arange(q.mean.numel()))
        index = torch.cat([places[name].flatten()[own] for name, own in entries.items()], 1)
        return q.precision_matrix[index[:, :, None], index[:, None, :]]

    known = q.mean.numel() <= _MOST_CORRELATED
    return replace(found, draws=draws, log_prob=log_prob, dependent=True, precision=precision if known else None)


@posterior_of.register
def _any_autoguide(guide: AutoGuide) -> Posterior:
    """A guide of which only draws are known: normals and log-normals of their first two moments stand for them."""
    arguments = _arguments(guide)
    sites = _latent_sites(guide)

    def draws(count: int, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        values = [guide(*arguments) for _ in range(count)]
        wanted = sites if names is None else names
        return {name: torch.stack([value[name].detach() for value in values]) for name in wanted}

    def log_prob(values: Mapping[str, Tensor]) -> Tensor:
        trace = poutine.trace(poutine.condition(guide, data=dict(values))).get_trace(*arguments)
        return torch.as_tensor(trace.log_prob_sum())

    marginals = {}
    with torch.no_grad(), seeded(0, device_of(guide)):
        for name, values in draws(DRAWS).items():
            inner = biject_to(sites[name]["fn"].support).inv(values)
            marginals[name] = _pushed(sites[name]["fn"], inner.mean(0), inner.std(0))
    found = _independent(guide, _unwrapped(guide.model), marginals)
    return replace(found, draws=draws, log_prob=log_prob, dependent=True, from_draws=True)


@posterior_of.register
def _list(guide: AutoGuideList) -> Posterior:
    _latent_sites(guide)  # set up?
    parts = [posterior_of(part) for part in guide]
    marginals = {name: q for part in parts for name, q in part.marginals.items()}

    def draws(count: int, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        wanted = None if names is None else set(names)
        found: dict[str, Tensor] = {}
        for part in parts:
            own = [name for name in part.marginals if wanted is None or name in wanted]
            found |= part.draws(count, own) if own else {}
        return found

    def log_prob(values: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([part.log_prob({n: values[n] for n in part.marginals}) for part in parts]).sum()

    weights = [part.kl_weight for part in guide if isinstance(part, FactorizedGuide)]
    return replace(
        _independent(guide, _unwrapped(guide.model), marginals, *weights[:1]),
        draws=draws,
        log_prob=log_prob,
        dependent=any(part.dependent for part in parts),
        from_draws=any(part.from_draws for part in parts),
    )


def _independent(guide: AutoGuide, model: Any, marginals: Mapping[str, Any], kl_weight: float = 1.0) -> Posterior:
    """A posterior whose sites are independent of each other."""
    sites = _latent_sites(guide)
    for name, site in sites.items():
        if code_of(site["fn"]) is not None and not isinstance(marginals[name], Cell):
            raise UsageError(
                f"site '{name}' is a learned code, whose posterior is a cell: use a FactorizedGuide for it"
            )

    def draws(count: int, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        return {name: marginals[name].sample((count,)) for name in (marginals if names is None else names)}

    def log_prob(values: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([q.log_prob(values[name]).sum() for name, q in marginals.items()]).sum()

    densities = {name: site["fn"] for name, site in sites.items()}
    return Posterior(
        model, _arguments(guide), find_layers(densities), marginals, draws, log_prob, kl_weight=kl_weight,
        shared=find_shared(densities),
    )  # fmt: skip


_NOT_SET_UP = "the guide has not been set up: call it, or one training step, with a batch of data first"


def _latent_sites(guide: AutoGuide) -> dict[str, Any]:
    if guide.prototype_trace is None:
        raise RuntimeError(_NOT_SET_UP)
    return dict(guide.prototype_trace.iter_stochastic_nodes())


def _arguments(guide: AutoGuide) -> tuple[Any, ...]:
    if guide.prototype_trace is None:
        raise RuntimeError(_NOT_SET_UP)
    arguments: tuple[Any, ...] | None = guide.prototype_trace.nodes["_INPUT"].get("args")
    if arguments is None:
        raise UsageError(
            f"{type(guide).__name__} does not keep the inputs that it was set up with, without which nothing is known "
            f"of the network: take FactorizedGuide, AutoNormal, AutoMultivariateNormal or another of Pyro's guides"
        )
    return arguments


def _unwrapped(model: Any) -> Any:
    """The user's model, without the handler that an autoguide starts it under."""
    while isinstance(model, partial) and len(model.args) > 1 and isinstance(model.args[0], InitMessenger):
        model = model.args[1]
    return model


def _unpacked(sites: Mapping[str, Any], vectors: Tensor) -> dict[str, Tensor]:
    """Parts ``(…, *site)`` of vectors ``(…, latent)`` that hold all sites on the real line, one after the other."""
    shapes = {name: biject_to(site["fn"].support).inverse_shape(site["value"].shape) for name, site in sites.items()}
    parts = vectors.split([shape.numel() for shape in shapes.values()], -1)
    named = zip(shapes.items(), parts, strict=True)
    return {name: part.reshape((*vectors.shape[:-1], *shape)) for (name, shape), part in named}


def _pushed(fn: Any, loc: Tensor, scale: Tensor | None) -> Any:
    """What a normal on the real line is at a site of this support; a point without a scale."""
    if bool(loc.isnan().any()) or (scale is not None and bool(scale.isnan().any())):
        raise UsageError("the posterior is NaN; fit it anew, with smaller learning rates")
    scale = torch.zeros_like(loc) if scale is None else scale
    support = base_distribution(fn).support
    if support is constraints.real:
        return dist.Normal(loc, scale, validate_args=False)
    half_lines = (constraints.greater_than, constraints.greater_than_eq)
    if isinstance(support, half_lines) and bool(torch.as_tensor(support.lower_bound == 0).all()):
        # A scale must not be 0, however small.
        return dist.LogNormal(loc, scale.clamp_min(torch.finfo(scale.dtype).tiny), validate_args=False)
    normal = dist.Normal(loc, scale, validate_args=False)
    return dist.TransformedDistribution(normal, [biject_to(fn.support)], validate_args=False)


def point_at(fn: Any, value: Tensor) -> Any:
    """A point as the family that a site of this support has in other guides, with no spread."""
    return _pushed(fn, biject_to(fn.support).inv(value), None)


def _centre(q: Any) -> Tensor:
    value = q.base_dist.loc if isinstance(q, dist.TransformedDistribution) else q.mean
    for transform in q.transforms if isinstance(q, dist.TransformedDistribution) else ():
        value = transform(value)
    return value


def _no_density(values: Mapping[str, Tensor]) -> Tensor:
    raise UsageError("a guide of points (AutoDelta, MAP) has no density; what needs one takes another guide")
