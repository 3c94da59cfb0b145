"""The posterior as ArviZ reads it: ``InferenceData`` (ArviZ 0.2x) or ``DataTree`` (1.x), in memory or in a file.

===========================  =============================================================================
``posterior``                draws of every group's scale (``<layer>.scale``), of the sites behind it, and of
                             biases; of weights on request
``prior``                    the same from the prior, where it is proper
``constant_data``            each weight's posterior mean and variance, each group's statistic
``log_likelihood``           of every given point under every draw (weights drawn, not pre-activations)
``posterior_predictive``     a draw of every given point's target
``observed_data``            the targets
``sample_stats``             the course of the fit, by epoch
===========================  =============================================================================

Dimensions are named after what they count: ``<layer>.input``, ``<layer>.output``, ``<layer>.row``, ``<layer>.column``,
``<layer>.group`` where a group is several inputs, ``point``, ``epoch``. Draws are independent, so there is one chain.
"""

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from ..graph.layer_types import LayerType, layer_type
from ..inference.history import Epoch
from ..model.guide import FactorizedGuide, factorized_part
from ..model.network import BayesianNetwork
from ..posterior.predictive import observed_values, predict
from ..posterior.summary import LayerPosterior, summarize
from ..priors.base import base_distribution, described_prior
from ..priors.learned_code import code_of
from ..priors.normal_jeffreys import NormalJeffreys
from ..runtime.devices import device_of
from ..runtime.random_state import seeded
from .netcdf import BLOCK_NUMBERS, Content, Variable, write_content


def to_inference_data(
    guide: FactorizedGuide,
    x: Tensor | None = None,
    y: Tensor | None = None,
    *,
    draws: int = 500,
    layers: Sequence[str] | None = None,
    weights: bool = False,
    history: Iterable[Epoch] = (),
    seed: int = 0,
) -> Any:
    """A fitted posterior for ArviZ.

    :param guide: fitted.
    :param x: inputs of the points for which log-likelihood and posterior predictive are wanted: of the training set for
        ``az.loo`` and ``az.waic``, of the test set for checks. None to leave these groups out.
    :param y: their targets.
    :param draws: from the posterior, independent of each other.
    :param layers: names of those to export (``net.fc1``), None for all.
    :param weights: whether draws of weights are exported too, not only their moments.
    :param history: of :class:`~pyro_bc.FitResult`.
    :param seed: of the draws; torch's global generator is left as it is.
    :returns: ``arviz.InferenceData``, or from ArviZ 1 on ``xarray.DataTree``.
    :raises UsageError: for an unknown layer, inputs without targets, or no draws.

    >>> import pyro_bc, torch
    >>> guide = pyro_bc.FactorizedGuide(pyro_bc.BayesianNetwork(torch.nn.Linear(4, 3), num_data=8))
    >>> _ = guide(torch.ones(2, 4), torch.tensor([0, 1]))
    >>> pyro_bc.to_inference_data(guide, draws=10).posterior["net.scale"].dims
    ('chain', 'draw', 'net.input')
    """
    import xarray  # here, as ArviZ below: together they take longer to import than all else

    content = _content(guide, x, y, draws, layers, weights, history, seed)
    arrays = {key: np.empty(v.shape, v.dtype) if v.values is None else v.values for key, v in content.variables.items()}
    for start, block in content.blocks():
        for key, values in block.items():
            arrays[key][:, start : start + values.shape[1]] = values
    groups: dict[str, dict[str, Any]] = {}
    for (group, name), variable in content.variables.items():
        groups.setdefault(group, {})[name] = (variable.dims, arrays[group, name])
    datasets: dict[str, Any] = {}
    for group, data in groups.items():
        dims = {dim for names, _ in data.values() for dim in names}
        coords = {dim: content.coords[dim] for dim in dims}
        datasets[group] = xarray.Dataset(data, coords, content.attributes)
    arviz = arviz_package()
    if is_before_1():
        return arviz.InferenceData(attrs=content.attributes, **datasets)
    return xarray.DataTree.from_dict({"/": xarray.Dataset(attrs=content.attributes), **datasets})


def arviz_package() -> Any:
    """ArviZ, without its announcement of version 1, on which everything here works too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz


def is_before_1() -> bool:
    """Whether ArviZ has ``InferenceData`` of its own; from version 1 on it is xarray's ``DataTree``."""
    return int(version("arviz").split(".")[0]) < 1


def save_inference_data(path: str | os.PathLike[str], guide: FactorizedGuide, *args: Any, **options: Any) -> None:
    """Write what :func:`to_inference_data` gives as a netCDF file for ``arviz.from_netcdf``, a block at a time.

    Memory stays bounded however many draws and weights there are. The file appears whole or not at all.

    :param path: an existing file is replaced.
    :param args: and ``options`` as of :func:`to_inference_data`.
    """
    write_content(path, _content(guide, *args, **options))


@torch.no_grad()
def _content(
    guide: FactorizedGuide,
    x: Tensor | None = None,
    y: Tensor | None = None,
    draws: int = 500,
    layers: Sequence[str] | None = None,
    weights: bool = False,
    history: Iterable[Epoch] = (),
    seed: int = 0,
) -> Content:
    guide = factorized_part(guide, "an export")
    if x is not None:
        _check_whole(guide)
    if not (isinstance(draws, int) and draws > 0):
        raise UsageError(f"draws must be a positive integer, not {draws!r}")
    if (x is None) != (y is None) or (x is not None and y is not None and len(x) != len(y)):
        raise UsageError("x and y are the inputs and targets of the same points: give both, of one length, or neither")
    chosen = list(guide.layers) if layers is None else list(layers)
    q = guide.posterior()
    for name in chosen:
        if name not in guide.layers:
            raise UsageError(f"there is no layer '{name}'; there are {', '.join(guide.layers)}")
    variables: dict[tuple[str, str], Variable] = {}
    coords: dict[str, np.ndarray] = {"chain": np.arange(1), "draw": np.arange(draws)}

    def add(group: str, name: str, dims: tuple[str, ...], shape: Sequence[int], dtype: Any = np.float32) -> None:
        for dim, size in zip(dims, shape, strict=True):
            coords.setdefault(dim, np.arange(size))
        full = ("chain", "draw", *dims), (1, draws, *shape)
        variables[group, name] = Variable(group, name, *full, dtype)

    def add_values(group: str, name: str, dims: tuple[str, ...], values: Any) -> None:
        values = np.asarray(values)
        for dim, size in zip(dims, values.shape, strict=True):
            coords.setdefault(dim, np.arange(size))
        variables[group, name] = Variable(group, name, dims, values.shape, values.dtype, values)

    moments = summarize(guide)
    for layer in chosen:
        prior, sites, kind = guide.layers[layer]
        weight_dims = _weight_dims(layer, kind)
        layer_q = {role: base_distribution(q[f"{layer}.{role}"]) for role in sites}
        scale = prior.group_scale(layer_q)
        inputs_or_filters = moments[layer].weight_mean.shape[kind.group_axis]
        whole = scale is None or len(scale.mean) == inputs_or_filters
        group_name = weight_dims[kind.group_axis] if whole else f"{layer}.group"
        for role in sites:
            shape = layer_q[role].mean.shape
            if role == "weight":
                dims = weight_dims
            elif role == "bias":
                dims = (weight_dims[kind.output_axis],)
            else:
                dims = (group_name,) * len(shape)
            if role != "weight" or weights:
                add("posterior", f"{layer}.{role}", dims, shape)
                if _is_proper(sites[role]):
                    add("prior", f"{layer}.{role}", dims, shape)
        if scale is not None and "scale" not in sites:
            add("posterior", f"{layer}.scale", (group_name,), scale.mean.shape)
            if all(_is_proper(sites[role]) for role in sites):
                add("prior", f"{layer}.scale", (group_name,), scale.mean.shape)
        add_values("constant_data", f"{layer}.weight_mean", weight_dims, moments[layer].weight_mean)
        add_values("constant_data", f"{layer}.weight_variance", weight_dims, moments[layer].weight_variance)
        statistic = moments[layer].statistic
        if statistic is not None:
            dims = weight_dims if moments[layer].per_weight else (group_name,)
            add_values("constant_data", f"{layer}.statistic", dims, statistic)
        if moments[layer].weight_statistic is not None:
            add_values("constant_data", f"{layer}.weight_statistic", weight_dims, moments[layer].weight_statistic)
        for role, stored in moments[layer].codes.items():
            dims = weight_dims if role == "weight" else (weight_dims[kind.output_axis],)
            add_values("constant_data", f"{layer}.{role}_codes", dims, stored.codes.int())
    others = [name for name in q if name.rpartition(".")[0] not in guide.layers]
    for name in others:
        shape = tuple(base_distribution(q[name]).mean.shape)
        add("posterior", name, tuple(f"{name}.{axis}" for axis in range(len(shape))), shape)
    if x is not None and y is not None:
        points = 2 if isinstance(guide._source[0], BayesianNetwork) else len(x)
        for name, observed in observed_values(guide, x[:points], y[:points]).items():
            if not observed.dim() or len(observed) != points:
                raise UsageError(
                    f"the observed site '{name}' has shape {tuple(observed.shape)} for {points} points, not "
                    f"({points}, …)"
                )
            event = tuple(observed.shape[1:])
            dims = ("point", *(f"{name}.{axis}" for axis in range(len(event))))
            add("log_likelihood", name, ("point",), [len(x)], np.float64)
            add("posterior_predictive", name, dims, [len(x), *event], _numpy(observed).dtype)
            add_values("observed_data", name, dims, _numpy(y if points < len(x) else observed))
    add_history(list(history), add_values, coords)
    names = _needed(q, variables)
    numbers = sum(q[name].mean.numel() for name in names) + (0 if x is None else 2 * len(x))
    size = max(1, min(draws, BLOCK_NUMBERS // max(1, numbers)))

    def blocks() -> Iterator[tuple[int, dict[tuple[str, str], np.ndarray]]]:
        with seeded(seed, device_of(guide)), torch.no_grad():
            for start in range(0, draws, size):
                yield start, _draw(guide, q, names, variables, x, y, min(size, draws - start))

    return Content(variables, coords, _attributes(guide, seed, draws, () if x is None else x.shape[1:]), blocks)


def _needed(q: Mapping[str, Any], variables: Mapping[tuple[str, str], Variable]) -> list[str]:
    """Sites to draw: all for predictions, else those that are exported and those that make up an exported scale."""
    if any(group == "log_likelihood" for group, _ in variables):
        return list(q)
    wanted = {name for group, name in variables if group == "posterior"}
    layers = {name.removesuffix(".scale") for name in wanted if name.endswith(".scale")}
    return [
        s for s in q if s in wanted or (s.rpartition(".")[0] in layers and s.split(".")[-1] not in ("weight", "bias"))
    ]


def _draw(
    guide: FactorizedGuide,
    q: Mapping[str, Any],
    names: list[str],
    variables: Mapping[tuple[str, str], Variable],
    x: Tensor | None,
    y: Tensor | None,
    size: int,
) -> dict[tuple[str, str], np.ndarray]:
    """A block of draws of every variable, each ``(1, size, …)``."""
    wanted = {name for group, name in variables if group == "posterior"}
    values = {site: q[site].sample((size,)) for site in names}
    result: dict[tuple[str, str], Any] = {}
    for layer, (prior, sites, _) in guide.layers.items():
        if f"{layer}.scale" in wanted and "scale" not in sites:
            roles = {role: values[f"{layer}.{role}"] for role in sites if f"{layer}.{role}" in values}
            result["posterior", f"{layer}.scale"] = torch.vmap(prior.scale)(roles)
        prior_values = {
            role: _as_learned(fn).sample((size,))
            for role, fn in sites.items()
            if ("prior", f"{layer}.{role}") in variables and role != "scale"
        }
        for role, value in prior_values.items():
            result["prior", f"{layer}.{role}"] = value
        if ("prior", f"{layer}.scale") in variables:
            result["prior", f"{layer}.scale"] = torch.vmap(prior.scale)(prior_values)
    result |= {("posterior", site): value for site, value in values.items() if site in wanted}
    if x is not None and y is not None:
        predicted = [predict(guide, {site: value[i] for site, value in values.items()}, x, y) for i in range(size)]
        for key in predicted[0]:
            result[key] = torch.stack([draw[key] for draw in predicted])
    return {key: _numpy(value)[None].astype(variables[key].dtype, copy=False) for key, value in result.items()}


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


def add_history(history: list[Epoch], add_values: Callable[..., None], coords: dict[str, np.ndarray]) -> None:
    """Add the course of a fit to the variables of ``sample_stats``."""
    if not history:
        return
    coords["epoch"] = np.array([record.epoch for record in history])
    for name in ("loss", "negative_log_likelihood", "kl", "kl_weight", "error", "seconds"):
        add_values("sample_stats", name, ("epoch",), np.array([getattr(record, name) for record in history]))
    layers = list(history[-1].groups_left)
    if layers and all(list(record.groups_left) == layers for record in history):
        coords["layer"] = np.array(layers)
        left = np.array([[record.groups_left[layer] for layer in layers] for record in history])
        add_values("sample_stats", "groups_left", ("epoch", "layer"), left)
    sites = list(history[-1].kl_by_layer)
    if sites and all(list(record.kl_by_layer) == sites for record in history):
        coords["site"] = np.array(sites)
        parts = np.array([[record.kl_by_layer[site] for site in sites] for record in history])
        add_values("sample_stats", "kl_by_layer", ("epoch", "site"), parts)


def _attributes(guide: FactorizedGuide, seed: int, draws: int, example: Sequence[int]) -> dict[str, Any]:
    (model,) = guide._source
    layers: dict[str, dict[str, Any]] = {
        name: {"prior": prior.description(), "type": kind.op} for name, (prior, _, kind) in guide.layers.items()
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
        "num_data": int(getattr(model, "num_data", 0)),
        "kl_weight": guide.kl_weight,
        "seed": seed,
        "sampling": f"{draws} independent draws from the variational posterior",
    }
    return attributes | ({"input_shape": list(example)} if example else {})


def _check_whole(guide: FactorizedGuide) -> None:
    """:raises UsageError: where the guide is one part of several, which do not all know the sites of the model."""
    model = guide._source[0]
    assert guide.prototype_trace is not None
    given = guide.prototype_trace.nodes["_INPUT"]["args"]
    if len(given) > 2:
        raise UsageError(
            f"predictions are of models of inputs and targets, and this one was called with {len(given)} arguments: "
            f"leave x and y out, or bind the others with functools.partial before the guide is made"
        )
    hidden = getattr(model, "args", ()) if isinstance(model, partial) else ()
    if hidden and isinstance(hidden[0], BlockMessenger):
        raise UsageError(
            "this guide is one part of several (its model is behind poutine.block), and says nothing of other sites, "
            "which a prediction would draw from their prior: leave x and y out"
        )


def layer_posteriors(data: Any) -> dict[str, LayerPosterior]:
    """The summaries that :func:`~pyro_bc.summarize` gave, from exported data; biases are not in it.

    :param data: of :func:`to_inference_data`, or read from its file.
    """
    values = data["constant_data"]
    layers = {}
    for name, told in json.loads(values.attrs["layers"]).items():
        if f"{name}.weight_mean" not in values:
            continue
        numbers = {
            key: torch.from_numpy(np.array(values[f"{name}.{key}"].values))
            for key in ("weight_mean", "weight_variance", "statistic", "weight_statistic")
            if f"{name}.{key}" in values
        }
        layers[name] = LayerPosterior(
            name=name,
            prior=described_prior(told["prior"]),
            weight_mean=numbers["weight_mean"],
            weight_variance=numbers["weight_variance"],
            bias_mean=None,
            bias_variance=None,
            statistic=numbers.get("statistic"),
            weight_statistic=numbers.get("weight_statistic"),
            type=layer_type(told["type"]),
        )
    return layers


def _numpy(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()


def history_of(data: Any) -> list[Epoch]:
    """The course of a fit from exported data."""
    if "sample_stats" not in [str(name).strip("/") for name in _groups(data)]:
        return []
    stats = data["sample_stats"]
    layers = [str(name) for name in stats["layer"].values] if "layer" in stats.coords else []
    sites = [str(name) for name in stats["site"].values] if "site" in stats.coords else []
    history = []
    for index, epoch in enumerate(stats["epoch"].values):
        numbers = {
            name: float(stats[name].values[index])
            for name in ("loss", "negative_log_likelihood", "kl", "kl_weight", "error", "seconds")
        }
        left = dict(zip(layers, stats["groups_left"].values[index].tolist(), strict=True)) if layers else {}
        kl = dict(zip(sites, stats["kl_by_layer"].values[index].tolist(), strict=True)) if sites else {}
        history.append(Epoch(epoch=int(epoch), **numbers, groups_left=left, kl_by_layer=kl))
    return history


def _groups(data: Any) -> Sequence[str]:
    return data.groups() if callable(data.groups) else data.groups
