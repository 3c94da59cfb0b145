"""What an export holds: variables with their dimensions, and how their draws are made, block by block.

Draws are joint ones of the guide. What the model says of data comes from runs of the model, its latent sites fixed to
a draw: any arguments, masks, fixed plates, several observed sites and ``pyro.deterministic`` are as the model has them.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import pyro
import torch
from pyro.poutine.block_messenger import BlockMessenger
from torch import Tensor

from ..errors import UsageError
from ..graph.layer_types import LayerType
from ..inference.history import Epoch
from ..model.network import BayesianNetwork
from ..posterior.guides import DRAWS, Posterior, posterior_of
from ..posterior.predictive import is_deterministic, is_observed, predict, sites
from ..posterior.summary import LayerPosterior, summarize
from ..priors.base import base_distribution
from ..priors.learned_code import bias_of, code_of, weight_of
from ..priors.normal_jeffreys import NormalJeffreys
from ..priors.shared import times_shared
from ..runtime.random_state import seeded
from .netcdf import BLOCK_NUMBERS, Content, Variable

#: last part of the name under which a weight before its group's scale, the paper's w̃, is exported.
UNSCALED = "unscaled_weight"


class _Variables:
    """What is to be exported, as it is put together: variables by group and name, and the coordinates they share."""

    def __init__(self, draws: int):
        self.draws = draws
        self.by_key: dict[tuple[str, str], Variable] = {}
        self.coords: dict[str, np.ndarray] = {"chain": np.arange(1), "draw": np.arange(draws)}

    def drawn(self, group: str, name: str, dims: Sequence[str], shape: Sequence[int], dtype: Any = np.float32) -> None:
        """A variable of one value per draw."""
        self._sizes(dims, shape)
        self.by_key[group, name] = Variable(
            group, name, ("chain", "draw", *dims), (1, self.draws, *shape), np.dtype(dtype)
        )

    def known(self, group: str, name: str, dims: Sequence[str], values: Any) -> None:
        """A variable whose value is known."""
        values = np.asarray(values)
        self._sizes(dims, values.shape)
        self.by_key[group, name] = Variable(group, name, tuple(dims), values.shape, values.dtype, values)

    def _sizes(self, dims: Sequence[str], shape: Sequence[int]) -> None:
        for dim, size in zip(dims, shape, strict=True):
            self.coords.setdefault(dim, np.arange(size))

    def names(self, group: str) -> set[str]:
        return {name for of, name in self.by_key if of == group}


@torch.no_grad()
def content_of(
    guide: Any,
    *args: Any,
    draws: int = 500,
    layers: Sequence[str] | None = None,
    weights: bool = False,
    history: Iterable[Epoch] = (),
    seed: int = 0,
) -> Content:
    posterior = posterior_of(guide)
    if not (isinstance(draws, int) and draws > 0):
        raise UsageError(f"draws must be a positive integer, not {draws!r}")
    args = _data(posterior, args)
    chosen = list(posterior.layers) if layers is None else list(layers)
    for name in chosen:
        if name not in posterior.layers:
            raise UsageError(f"there is no layer '{name}'; there are {', '.join(posterior.layers)}")
    found = _Variables(draws)
    moments = summarize(posterior)
    for layer in chosen:
        _add_layer(found, posterior, layer, moments[layer], weights)
    for name in posterior.shared:
        _add_channels(found, posterior, name, moments[name])
    in_layers = {f"{name}.{role}" for name, layer in posterior.layers.items() for role in layer.sites}
    in_layers |= {f"{name}.{role}" for name, own in posterior.shared.items() for role in own.sites}
    others = [name for name in posterior.marginals if name not in in_layers]
    for name in others:
        shape = posterior.marginals[name].shape()
        found.drawn("posterior", name, _own_dims(name, shape), shape)
    if args:
        _add_data(found, posterior, args)
    _add_history(found, list(history))
    prior = _PriorDraws.of(posterior, found, args)
    names = _needed(posterior, found)
    numbers = sum(math.prod(variable.shape[2:]) for variable in found.by_key.values() if variable.is_drawn)
    numbers += sum(posterior.marginals[name].shape().numel() for name in names)
    size = max(1, min(draws, BLOCK_NUMBERS // max(1, numbers)))

    def blocks() -> Iterator[tuple[int, dict[tuple[str, str], np.ndarray]]]:
        with seeded(seed, posterior.device), torch.no_grad():
            for start in range(0, draws, size):
                count = min(size, draws - start)
                values = _draw(posterior, names, found, args, count) | prior.draw(count)
                yield (
                    start,
                    {
                        key: _numpy(value)[None].astype(found.by_key[key].dtype, copy=False)
                        for key, value in values.items()
                        if key in found.by_key
                    },
                )

    shape = args[0].shape[1:] if args else ()
    return Content(found.by_key, found.coords, _attributes(posterior, seed, draws, shape), blocks)


def _add_layer(found: _Variables, posterior: Posterior, layer: str, moments: LayerPosterior, weights: bool) -> None:
    prior, sites, kind = posterior.layers[layer]
    weight_dims = _weight_dims(layer, kind)
    q = {role: posterior.marginals[f"{layer}.{role}"] for role in sites}
    scale = prior.group_scale(q)
    whole = scale is None or len(scale.mean) == moments.weight_mean.shape[kind.group_axis]
    group_name = weight_dims[kind.group_axis] if whole else f"{layer}.group"
    behind_scale = [role for role in sites if role not in ("weight", "bias")]
    for role in sites:
        shape = q[role].shape()
        if role == "weight":
            dims = weight_dims
        elif role == "bias":
            dims = (weight_dims[kind.output_axis],)
        else:
            dims = (group_name,) if len(shape) == 1 else _own_dims(f"{layer}.{role}", shape)
        factors = [role, *behind_scale] if role == "weight" or (role == "bias" and kind.scales_outputs) else [role]
        if role != "weight" or weights:
            found.drawn("posterior", f"{layer}.{role}", dims, shape)
            if all(_is_proper(sites[factor]) for factor in factors) and _shares_proper(posterior, f"{layer}.{role}"):
                found.drawn("prior", f"{layer}.{role}", dims, shape)
        if role == "weight" and weights and scale is not None:
            found.drawn("posterior", f"{layer}.{UNSCALED}", dims, shape)
            if _is_proper(sites[role]):
                found.drawn("prior", f"{layer}.{UNSCALED}", dims, shape)
    if scale is not None and "scale" not in sites:
        found.drawn("posterior", f"{layer}.scale", (group_name,), scale.mean.shape)
        if all(_is_proper(sites[role]) for role in behind_scale):
            found.drawn("prior", f"{layer}.scale", (group_name,), scale.mean.shape)
    found.known("constant_data", f"{layer}.weight_mean", weight_dims, moments.weight_mean)
    found.known("constant_data", f"{layer}.weight_variance", weight_dims, moments.weight_variance)
    if moments.statistic is not None:
        dims = weight_dims if moments.per_weight else (group_name,)
        found.known("constant_data", f"{layer}.statistic", dims, moments.statistic)
    if moments.weight_statistic is not None:
        found.known("constant_data", f"{layer}.weight_statistic", weight_dims, moments.weight_statistic)
    for role, stored in moments.codes.items():
        dims = weight_dims if role == "weight" else (weight_dims[kind.output_axis],)
        found.known("constant_data", f"{layer}.{role}_codes", dims, stored.codes.int())


def _shares_proper(posterior: Posterior, site: str) -> bool:
    """Whether all scales that a layer's weight or bias shares can be drawn from their prior."""
    own = [shared for shared in posterior.shared.values() if site in shared.members.layers]
    return all(_is_proper(fn) for shared in own for fn in shared.sites.values())


def _add_channels(found: _Variables, posterior: Posterior, name: str, moments: LayerPosterior) -> None:
    """The scales of channels that cross layers."""
    own = posterior.shared[name]
    of_channels = (f"{name}.channel",)
    shapes = {role: posterior.marginals[f"{name}.{role}"].shape() for role in own.sites}
    if "scale" not in shapes:
        shapes["scale"] = torch.Size([own.members.size])
    proper = all(map(_is_proper, own.sites.values()))
    for role, shape in shapes.items():
        dims = of_channels if shape == (own.members.size,) else _own_dims(f"{name}.{role}", shape)
        found.drawn("posterior", f"{name}.{role}", dims, shape)
        if proper:
            found.drawn("prior", f"{name}.{role}", dims, shape)
    found.known("constant_data", f"{name}.statistic", of_channels, moments.statistic)


def _data(posterior: Posterior, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The model's arguments as they were given, without what was left out; none for an export without data."""
    while args and args[-1] is None:
        args = args[:-1]
    if not args:
        return ()
    if not isinstance(args[0], Tensor) or not args[0].dim():
        raise UsageError("the first argument of the model must be a tensor of points, (points, …)")
    if isinstance(posterior.model, BayesianNetwork) and (len(args) != 2 or len(args[0]) != len(args[1])):
        raise UsageError("x and y are the inputs and targets of the same points: give both, of one length, or neither")
    _check_whole(posterior.model)
    return args


def _add_data(found: _Variables, posterior: Posterior, args: tuple[Any, ...]) -> None:
    """What the model says of its data: its observed and its deterministic sites."""
    points = len(args[0])
    few = _few(posterior.model, args)
    for name, site in sites(posterior.model, posterior.centre(), *few).items():
        value = site["value"]
        if is_deterministic(site):
            shape, dims = _by_point(name, value.shape, len(few[0]), points)
            found.drawn("posterior", name, dims, shape, _numpy(value).dtype)
        elif is_observed(name, site, posterior.marginals):
            shape, dims = _by_point(name, site["fn"].batch_shape, len(few[0]), points)
            found.drawn("log_likelihood", name, dims, shape, np.float64)
            shape, dims = _by_point(name, value.shape, len(few[0]), points)
            found.drawn("posterior_predictive", name, dims, shape, _numpy(value).dtype)
            found.known("observed_data", name, dims, _numpy(value if len(few[0]) == points else args[1]))


def _few(model: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments from which shapes can be told: two points of a network's, all of a model's written by hand."""
    return tuple(a[:2] for a in args) if isinstance(model, BayesianNetwork) else args


def _by_point(name: str, shape: Sequence[int], of: int, points: int) -> tuple[list[int], list[str]]:
    """Shape and dimensions of what has the points, or others, in front."""
    sizes, dims = list(shape), list(_own_dims(name, shape))
    if sizes and sizes[0] == of:
        sizes[0], dims[0] = points, "point"
    return sizes, dims


def _own_dims(name: str, shape: Sequence[int]) -> tuple[str, ...]:
    return tuple(f"{name}.{axis}" for axis in range(len(shape)))


def _needed(posterior: Posterior, found: _Variables) -> list[str]:
    """Sites to draw: all for predictions, else those that are exported and those that make up what is."""
    if found.names("log_likelihood") or found.names("posterior") - _of_sites(posterior):
        return list(posterior.marginals)
    wanted = found.names("posterior")
    needed = wanted & set(posterior.marginals)
    for layer, (_, roles, _) in posterior.layers.items():
        if wanted & {f"{layer}.{role}" for role in ("weight", UNSCALED)}:
            needed |= {f"{layer}.{role}" for role in roles}
        elif wanted & {f"{layer}.{role}" for role in ("scale", "bias")}:
            needed |= {f"{layer}.{role}" for role in roles if role != "weight"}
    for name, own in posterior.shared.items():
        if wanted & {f"{name}.scale", *own.members.layers}:
            needed |= {f"{name}.{role}" for role in own.sites}
    return [name for name in posterior.marginals if name in needed]


def _of_sites(posterior: Posterior) -> set[str]:
    """Names that a layer's or a site's draws make up."""
    made = {f"{layer}.{role}" for layer in posterior.layers for role in ("scale", "weight", "bias", UNSCALED)}
    return made | {f"{name}.scale" for name in posterior.shared} | set(posterior.marginals)


def _draw(
    posterior: Posterior, names: list[str], found: _Variables, args: tuple[Any, ...], size: int
) -> dict[tuple[str, str], Any]:
    """A block of draws of what the posterior says, each ``(size, …)``."""
    values = posterior.draws(size, names)
    result = {("posterior", name): value for name, value in _named(posterior, values, found.names("posterior")).items()}
    if args:
        model = posterior.model
        predicted = [predict(model, {site: v[i] for site, v in values.items()}, args) for i in range(size)]
        for key in predicted[0]:
            result[key] = torch.stack([draw[key] for draw in predicted])
    return result


def _named(posterior: Posterior, values: Mapping[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """Draws by the names under which they are exported: of weights what a layer computes with."""
    result = dict(values)
    scales = {
        name: _each(own.prior.scale, {role: values[f"{name}.{role}"] for role in own.sites})
        for name, own in posterior.shared.items()
        if all(f"{name}.{role}" in values for role in own.sites)
    }
    result |= {f"{name}.scale": drawn for name, drawn in scales.items() if f"{name}.scale" in wanted}

    def shared(site: str, made: Tensor) -> Tensor:
        factors = ({name: drawn[index] for name, drawn in scales.items()} for index in range(len(made)))
        parts = [times_shared(posterior.shared, site, *pair) for pair in zip(made, factors, strict=True)]
        return torch.stack(parts) if scales else made

    for layer, own in posterior.layers.items():
        by_role = {role: values[f"{layer}.{role}"] for role in own.sites if f"{layer}.{role}" in values}
        if f"{layer}.scale" in wanted and "scale" not in own.sites:
            result[f"{layer}.scale"] = _each(own.prior.scale, by_role)
        if f"{layer}.weight" in wanted:
            result[f"{layer}.weight"] = shared(f"{layer}.weight", _each(partial(weight_of, own), by_role))
        if f"{layer}.{UNSCALED}" in wanted:
            result[f"{layer}.{UNSCALED}"] = by_role["weight"]
        if f"{layer}.bias" in wanted:
            result[f"{layer}.bias"] = shared(f"{layer}.bias", _each(partial(bias_of, own), by_role))
    return result


def _each(function: Callable[[dict[str, Tensor]], Any], values: Mapping[str, Tensor]) -> Tensor:
    """A function of one draw, of every draw."""
    count = len(next(iter(values.values())))
    return torch.stack([function({role: value[index] for role, value in values.items()}) for index in range(count)])


@dataclass(frozen=True)
class _PriorDraws:
    """Draws from the prior, and of what it says of the data: of sites that have one, which an improper prior has not.

    :param known: prior densities that depend on no other site, by site.
    :param run: whether the model is run for what remains.
    """

    posterior: Posterior
    found: _Variables
    args: tuple[Any, ...]
    known: dict[str, Any]
    run: bool

    @staticmethod
    def of(posterior: Posterior, found: _Variables, args: tuple[Any, ...]) -> "_PriorDraws":
        """What can be drawn; adds the variables that only a run of the model gives."""
        arguments = args or tuple(a.to(posterior.device) if isinstance(a, Tensor) else a for a in posterior.arguments)
        few = _few(posterior.model, arguments)
        densities = {
            name: site["fn"]
            for name, site in sites(posterior.model, posterior.centre(), *few).items()
            if name in posterior.marginals
        }
        known = {
            name: _as_learned(fn)
            for name, fn in densities.items()
            if (_is_proper(fn) and (hasattr(fn, "of_layer") or hasattr(fn, "of_shared"))) or hasattr(fn, "of_code")
        }
        # A model written by hand may say one site's density by another's value: only a run of it draws from its prior.
        run = all(_is_proper(fn) for fn in densities.values()) and (bool(args) or len(known) < len(densities))
        if run:
            for name in found.names("posterior"):
                if name in densities:
                    variable = found.by_key["posterior", name]
                    found.by_key["prior", name] = replace(variable, group="prior")
            for name in found.names("posterior_predictive"):
                variable = found.by_key["posterior_predictive", name]
                found.by_key["prior_predictive", name] = replace(variable, group="prior_predictive")
        else:
            for name in found.names("prior"):
                layer = name.rpartition(".")[0]
                own = posterior.layers[layer].sites if layer in posterior.layers else posterior.shared[layer].sites
                if not all(f"{layer}.{role}" in known or not _is_proper(own[role]) for role in own):
                    del found.by_key["prior", name]
        return _PriorDraws(posterior, found, arguments, known, run)

    def draw(self, size: int) -> dict[tuple[str, str], Any]:
        """A block of draws, each ``(size, …)``."""
        wanted = self.found.names("prior")
        if not wanted and not self.run:
            return {}
        values = {name: fn.sample((size,)) for name, fn in self.known.items()}
        result: dict[tuple[str, str], Any] = {}
        if self.run:
            model, few = self.posterior.model, _few(self.posterior.model, self.args)
            drawn: list[dict[str, Tensor]] = []
            predicted: list[dict[tuple[str, str], Tensor]] = []
            for index in range(size):
                own = {name: value[index] for name, value in values.items()}
                if len(own) < len(self.posterior.marginals):
                    run = sites(model, own, *few)
                    own = {name: run[name]["value"] for name in self.posterior.marginals}
                drawn.append(own)
                if self.found.names("prior_predictive"):
                    predicted.append(predict(model, drawn[-1], self.args))
            values = {name: torch.stack([draw[name] for draw in drawn]) for name in drawn[0]}
            for name in self.found.names("prior_predictive"):
                result["prior_predictive", name] = torch.stack(
                    [draw["posterior_predictive", name] for draw in predicted]
                )
        named = _named(self.posterior, values, wanted)
        return result | {("prior", name): named[name] for name in wanted}


def _weight_dims(layer: str, kind: LayerType) -> tuple[str, ...]:
    names = {kind.output_axis: "output", kind.input_axis: "input"}
    ordered = [names[axis] for axis in sorted(names)] + ["depth", "row", "column"][3 - kind.spatial :]
    return tuple(f"{layer}.{name}" for name in ordered)


def _as_learned(fn: Any) -> Any:
    """A site's prior density, as it has been learned by now where it is a code's."""
    code = code_of(fn)
    return fn if code is None else code.density()


def _is_proper(fn: Any) -> bool:
    return not isinstance(base_distribution(fn), NormalJeffreys)


def _add_history(found: _Variables, history: list[Epoch]) -> None:
    """Add the course of a fit to the variables of ``sample_stats``."""
    if not history:
        return
    found.coords["epoch"] = np.array([record.epoch for record in history])
    for name in ("loss", "negative_log_likelihood", "kl", "kl_weight", "error", "seconds"):
        found.known("sample_stats", name, ("epoch",), np.array([getattr(record, name) for record in history]))
    if any(record.held_out_error is not None for record in history):  # NaN where nobody looked
        for name in ("slack", "held_out_error", "file_bytes"):
            values = [getattr(record, name) for record in history]
            told = np.array([math.nan if value is None else value for value in values], dtype=float)
            found.known("sample_stats", name, ("epoch",), told)
    layers = list(history[-1].groups_left)
    if layers and all(list(record.groups_left) == layers for record in history):
        found.coords["layer"] = np.array(layers)
        left = np.array([[record.groups_left[layer] for layer in layers] for record in history])
        found.known("sample_stats", "groups_left", ("epoch", "layer"), left)
    sites = list(history[-1].kl_by_layer)
    if sites and all(list(record.kl_by_layer) == sites for record in history):
        found.coords["site"] = np.array(sites)
        parts = np.array([[record.kl_by_layer[site] for site in sites] for record in history])
        found.known("sample_stats", "kl_by_layer", ("epoch", "site"), parts)


def _attributes(posterior: Posterior, seed: int, draws: int, example: Sequence[int]) -> dict[str, Any]:
    layers: dict[str, dict[str, Any]] = {
        name: {"prior": prior.description(), "type": kind.op, "group_axis": kind.group_axis}
        for name, (prior, _, kind) in posterior.layers.items()
    }
    attributes = {
        "created_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "inference_library": "pyro_bc",
        "inference_library_version": version("pyro-bc"),
        "pyro_version": pyro.__version__,
        "torch_version": str(torch.__version__),
        "arviz_version": version("arviz"),
        "prior": ", ".join(f"{name} {layer['prior']['type']}" for name, layer in layers.items()),
        "layers": json.dumps(layers),
        "num_data": int(getattr(posterior.model, "num_data", 0)),
        "kl_weight": posterior.kl_weight,
        "seed": seed,
        "moments": f"{DRAWS} draws" if posterior.dependent or posterior.from_draws else "closed form",
        "sampling": f"{draws} independent draws from the variational posterior",
    }
    return attributes | ({"input_shape": list(example)} if example else {})


def _check_whole(model: Any) -> None:
    """:raises UsageError: where the guide is one part of several, which do not all know the sites of the model."""
    hidden = getattr(model, "args", ()) if isinstance(model, partial) else ()
    if hidden and isinstance(hidden[0], BlockMessenger):
        raise UsageError(
            "this guide is one part of several (its model is behind poutine.block), and says nothing of other sites, "
            "which a prediction would draw from their prior: give the AutoGuideList of all parts, or leave x and y out"
        )


def _numpy(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()
