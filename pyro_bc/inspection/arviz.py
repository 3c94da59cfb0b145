"""The posterior as ArviZ reads it: ``InferenceData`` (ArviZ 0.2x) or ``DataTree`` (1.x), in memory or in a file.

===========================  =============================================================================
``posterior``                draws of every group's scale (``<layer>.scale``), of the sites behind it, and of
                             biases; of weights on request; values of ``pyro.deterministic`` sites
``prior``                    the same from the prior, where it is proper
``prior_predictive``         targets drawn from the model with its sites from the prior, where all are proper
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
import math
import os
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from ..graph.layer_types import LayerType, layer_type
from ..inference.history import Epoch
from ..posterior.summary import LayerPosterior
from ..priors.base import described_prior
from .export import content_of
from .netcdf import write_content


def to_inference_data(
    guide: Any,
    x: Any = None,
    y: Any = None,
    *further: Any,
    draws: int = 500,
    layers: Sequence[str] | None = None,
    weights: bool = False,
    history: Iterable[Epoch] = (),
    seed: int = 0,
) -> Any:
    """A fitted posterior for ArviZ.

    :param guide: fitted: a :class:`~pyro_bc.FactorizedGuide`, or one of Pyro's (:mod:`pyro_bc.posterior.guides`).
    :param x: inputs of the points for which log-likelihood and posterior predictive are wanted: of the training set for
        ``az.loo`` and ``az.waic``, of the test set for checks. None to leave these groups out.
    :param y: their targets.
    :param further: the other arguments of a model that has more; one of a single argument takes ``x`` alone.
    :param draws: from the posterior, independent of each other.
    :param layers: names of those to export (``net.fc1``), None for all.
    :param weights: whether draws of weights are exported too, not only their moments: ``<layer>.weight`` is what the
        layer computes with, and ``<layer>.unscaled_weight`` the paper's :math:`\\tilde w`, before its group's scale.
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

    content = content_of(guide, x, y, *further, draws=draws, layers=layers, weights=weights, history=history, seed=seed)
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
    """ArviZ, without its announcement of version 1, on which everything here works too.

    It notes in the user's cache when it made that announcement, and cannot be imported where there is none that can
    be written: then it notes that elsewhere.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            import arviz
        except OSError:
            before = {name: os.environ.get(name) for name in ("HOME", "XDG_CACHE_HOME")}
            with tempfile.TemporaryDirectory() as folder:
                os.environ.update(dict.fromkeys(before, folder))
                try:
                    import arviz
                finally:
                    for name, value in before.items():
                        del os.environ[name]
                        os.environ.update({} if value is None else {name: value})
    return arviz


def is_before_1() -> bool:
    """Whether ArviZ has ``InferenceData`` of its own; from version 1 on it is xarray's ``DataTree``."""
    return int(version("arviz").split(".")[0]) < 1


def save_inference_data(
    path: str | os.PathLike[str], guide: Any, x: Any = None, y: Any = None, *further: Any, **options: Any
) -> None:
    """Write what :func:`to_inference_data` gives as a netCDF file for ``arviz.from_netcdf``, a block at a time.

    Memory stays bounded however many draws and weights there are. The file appears whole or not at all.

    :param path: an existing file is replaced.
    :param x: and what follows as of :func:`to_inference_data`.
    """
    write_content(path, content_of(guide, x, y, *further, **options))


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
            type=_layer_type(told),
        )
    return layers


def _layer_type(told: Mapping[str, Any]) -> LayerType:
    """A layer's type, with the groups that it had; a table's are columns or rows."""
    kind = layer_type(told["type"])
    return replace(kind, group_axis=told.get("group_axis", kind.group_axis))


def history_of(data: Any) -> list[Epoch]:
    """The course of a fit from exported data."""
    if "sample_stats" not in [str(name).strip("/") for name in _groups(data)]:
        return []
    stats = data["sample_stats"]
    layers = [str(name) for name in stats["layer"].values] if "layer" in stats.coords else []
    sites = [str(name) for name in stats["site"].values] if "site" in stats.coords else []
    history = []
    for index, epoch in enumerate(stats["epoch"].values):
        numbers: dict[str, Any] = {
            name: float(stats[name].values[index])
            for name in ("loss", "negative_log_likelihood", "kl", "kl_weight", "error", "seconds")
        }
        if "file_bytes" in stats and not math.isnan(stats["file_bytes"].values[index]):
            slack = float(stats["slack"].values[index])
            numbers |= {
                "slack": None if math.isnan(slack) else slack,
                "held_out_error": float(stats["held_out_error"].values[index]),
                "file_bytes": int(stats["file_bytes"].values[index]),
            }
        left = dict(zip(layers, stats["groups_left"].values[index].tolist(), strict=True)) if layers else {}
        kl = dict(zip(sites, stats["kl_by_layer"].values[index].tolist(), strict=True)) if sites else {}
        history.append(Epoch(epoch=int(epoch), **numbers, groups_left=left, kl_by_layer=kl))
    return history


def _groups(data: Any) -> Sequence[str]:
    return data.groups() if callable(data.groups) else data.groups
