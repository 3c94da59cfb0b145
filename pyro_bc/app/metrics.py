"""What a run came to, as JSON."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..compression.sensitivity import Sensitivity, blame, is_clearly_worse, sensitivity
from ..compression.target import Reached
from ..data.streamed import Inputs
from ..file import compressed
from ..inference.history import Epoch
from ..inspection.arviz import arviz_package, save_inference_data
from ..inspection.diagnostics import (
    calibration,
    importance_ratios,
    leave_one_out,
    mean_network,
    sampled_probabilities,
)
from ..model.guide import FactorizedGuide
from ..model.likelihoods import Categorical
from ..model.network import BayesianNetwork
from ..posterior.guides import posterior_of
from ..posterior.judged import held_out_batches, judge
from ..posterior.summary import code_bytes
from ..priors.cells import Cell
from ..quantisation.rounding import RULES
from .datasets import Dataset
from .normalised import Normalised
from .recipes import recipe
from .settings import Settings
from .tables import error_key

# What predictions under drawn weights may cost, in floating point operations: some seconds of a processor.
_OPERATIONS = 1e11
# Numbers of the inputs that they are of.
_NUMBERS = 2**25
# Draws of codes are exported where there are no more than this.
_MOST_CODES = 20_000
# Examples on which every layer is compressed alone.
_MOST_WATCHED = 300


def export_posterior(path: Path, model: BayesianNetwork, guide: Any, data: Dataset, history: Sequence[Epoch]) -> None:
    """Write a fit for ArviZ, with predictions of a spread of training points; fewer of them for a large network."""
    points, draws = _effort(model, data.train_x)
    index = torch.linspace(0, len(data.train_x) - 1, min(points, len(data.train_x))).long()
    codes = sum(q.centre.numel() for q in posterior_of(guide).marginals.values() if isinstance(q, Cell))
    save_inference_data(
        path, guide, data.train_x[index], data.train_y[index], draws=draws, history=history,
        weights=0 < codes <= _MOST_CODES,
    )  # fmt: skip


def test_error(net: nn.Module, data: Dataset) -> float:
    """Error of a network on the test part, in the unit of the likelihood's metric."""
    return judge(net, data.likelihood, data.test_batches()).error


def inputs_of(data: Dataset, net: nn.Module, held_out: int) -> dict[str, Any]:
    """What a user's inputs are, and how they were normalised; nothing of data sets of ours.

    :param held_out: examples that were split off to judge a target.
    """
    if not data.is_own:
        return {}
    scales = net.scales() if isinstance(net, Normalised) else {}
    parts = {"train": len(data.train_x), "held_out": held_out, "test": len(data.test_x)}
    return {
        "inputs": {
            "what": data.what, "examples": parts,
            "likelihood": type(data.likelihood).__name__ if data.has_targets else None,
            "classes": list(data.class_names) or data.classes, "columns": list(data.columns), "normalisation": scales,
            "categories": {name: list(levels) for name, levels in data.categories},
            "target": data.target, "split_from": data.split_from,
        }
    }  # fmt: skip


def _effort(model: BayesianNetwork, x: Inputs) -> tuple[int, int]:
    """Points and draws of predictions under drawn weights, by what one prediction costs and one input takes; the same
    on any machine."""
    net = model.skeleton.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x[:1])
    affordable = _OPERATIONS / max(1, counter.get_total_flops())
    points = int(min(1000, max(100, affordable / 200), max(20, _NUMBERS / x[:1].numel())))
    return points, int(min(200, max(25, affordable / points)))


def diagnostics_of(
    model: BayesianNetwork,
    guide: Any,
    decoded: nn.Module,
    data: Dataset,
    kl_weight: float,
    measured_on: str,
    out: Path,
) -> dict[str, Any]:
    """How far the final fit can be trusted, as JSON."""
    points, draws = _effort(model, data.train_x)
    found: dict[str, Any] = {"measured_on": measured_on}
    x, y = data.train_x[: 2 * points], data.train_y[: 2 * points]
    if kl_weight > 0:
        ratios = importance_ratios(guide, x, y, draws=draws, kl_weight=kl_weight)
        found["importance"] = {"pareto_k": ratios.k, "message": ratios.message}
    file = out / "finetune.nc"
    found["loo"] = asdict(leave_one_out(arviz_package().from_netcdf(file if file.exists() else out / "posterior.nc")))
    if data.likelihood != Categorical() or data.test_y.dim() != 1:
        return found
    x, y = data.test_x[: 5 * points], data.test_y[: 5 * points]
    with torch.no_grad():
        probabilities = {
            "sampled": sampled_probabilities(guide, x, draws=max(10, draws // 10)),
            "mean": mean_network(model, guide)(x).softmax(1),
            "compressed": decoded(x).softmax(1),
        }
    found["calibration_points"] = len(x)
    found["calibration"] = {
        label: {
            key: value if isinstance(value, float) else np.nan_to_num(value).tolist()
            for key, value in asdict(calibration(p, y)).items()
        }
        for label, p in probabilities.items()
    }
    return found


def metrics_of(
    settings: Settings,
    data: Dataset,
    dense: nn.Module,
    dense_error: float,
    small: compressed.CompressedNetwork,
    decoded: nn.Module,
    file_bytes: int,
    history: tuple[Epoch, ...],
    guide: FactorizedGuide,
) -> dict[str, Any]:
    """The figures of a run; error and loss are those of the network decoded from the file."""
    last = history[-1]
    coded = Cell in guide.families.values()
    length = {"code_bytes": round(code_bytes(guide), 1)} if coded else {}
    figures = figures_of(small, decoded, data, dense_error, file_bytes, guide)
    figures["dense"]["trained_parameters"] = sum(parameter.numel() for parameter in dense.parameters())
    plan = asdict(recipe(settings, len(data.train_x)))
    if plan["fit"]["epochs"] is None:  # as many as it took
        plan["fit"]["epochs"] = len(history) - (plan["finetune"]["epochs"] or 0)
    return {
        "net": settings.net,
        "prior": settings.prior,
        "data": settings.data,
        "data_name": data.name,
        "measured_on": data.test_part,
        "n": len(data.test_x),
        "seed": settings.seed,
        "recipe": plan,
        **figures,
        "precision": "learned" if coded else settings.precision,
        **length,
        "loss_nats": {
            "negative_elbo_per_example": last.loss,
            "negative_log_likelihood_per_example": last.negative_log_likelihood,
            "kl_per_example": last.kl,
        },
        "kl_weight": guide.kl_weight,
        "training_seconds": round(sum(epoch.seconds for epoch in history), 1),
    }


def figures_of(
    small: compressed.CompressedNetwork,
    decoded: nn.Module,
    data: Dataset,
    dense_error: float,
    file_bytes: int,
    guide: Any,
) -> dict[str, Any]:
    """Sizes and errors of a compressed network; error and loss are those of the network decoded from the file."""
    likelihood, sites = data.likelihood, posterior_of(guide)
    key = error_key(likelihood.metric)
    found = judge(decoded, likelihood, data.test_batches(), sites)
    return {
        "metric": likelihood.metric,
        "dense": {key: dense_error, "parameters": small.dense_parameters},
        "compressed": {key: found.error, "negative_log_likelihood": found.loss},
        f"train_{key}": judge(decoded, likelihood, data.train_batches(10_000), sites).error,
        "architecture": list(small.architecture),
        "bits": list(small.bits),
        "thresholds": thresholds_of(small),
        "compression": {name: round(value, 3) for name, value in asdict(small.compression(file_bytes)).items()},
        "file_bytes": file_bytes,
    }


def target_of(settings: Settings, reached: Reached, held_out: int) -> dict[str, Any]:
    """A target, what was reached, and all networks that were tried.

    :param held_out: examples that judged.
    """
    target = settings.target
    assert target is not None
    (kind,) = [name for name, value in asdict(target).items() if value is not None]
    return {
        "kind": kind,
        "limit": target.limit,
        "is_met": reached.is_met,
        "held_out": held_out,
        "dense": asdict(reached.dense),
        "found": asdict(reached.found),
        "curve": [asdict(own) for own in reached.curve],
        "obstacle": reached.obstacle,
    }


def watched_of(
    model: BayesianNetwork,
    guide: Any,
    decoded: nn.Module,
    history: Sequence[Epoch],
    watched: tuple[Tensor, Tensor],
    watched_on: str,
    settings: Settings,
    thresholds: Mapping[str, float] | None,
) -> dict[str, Any]:
    """What the compressed network did while it was fitted, sensitivity by layer, and a warning where it went wrong.

    :param watched: inputs and targets.
    :param watched_on: what they are of.
    :param thresholds: explicit ones, of this fit.
    """
    looks = [record for record in history if record.held_out_error is not None]
    precision = settings.precision if settings.precision in RULES else RULES[0]
    batches, table = _layer_by_layer(model, guide, watched, thresholds=thresholds, precision=precision)
    found = judge(decoded, model.likelihood, batches, posterior_of(guide))
    told: dict[str, Any] = {
        "course": {
            "measured_on": watched_on,
            "n": len(watched[1]),
            **{name: [getattr(own, name) for own in looks] for name in ("epoch", "held_out_error", "file_bytes")},
        },
        **_sensitivity_told(table, batches, watched_on),
    }
    examples = sum(len(y) for _, y in batches)
    if settings.target is None and is_clearly_worse(found, table.mean, examples):
        told["warning"] = blame(found, table.mean, table.worst.layer, table.worst.error, table.metric)
    return told


def sensitivity_told(
    model: BayesianNetwork, guide: Any, watched: tuple[Inputs, Tensor], watched_on: str
) -> dict[str, Any]:
    """Sensitivity by layer, as JSON.

    :param watched: inputs and targets, of which some are used.
    :param watched_on: what they are of.
    """
    batches, table = _layer_by_layer(model, guide, watched)
    return _sensitivity_told(table, batches, watched_on)


def _layer_by_layer(
    model: BayesianNetwork, guide: Any, watched: tuple[Inputs, Tensor], **options: Any
) -> tuple[list[tuple[Tensor, Tensor]], Sensitivity]:
    """A spread of the examples, as many as can be afforded, and the table of sensitivity on them."""
    x, y = watched
    some = torch.linspace(0, len(x) - 1, min(len(x), _MOST_WATCHED, _effort(model, x)[0])).long()
    batches = held_out_batches(x[some], y[some])
    return batches, sensitivity(model, guide, batches, **options)


def _sensitivity_told(table: Sensitivity, batches: list[tuple[Tensor, Tensor]], watched_on: str) -> dict[str, Any]:
    return {
        "sensitivity": {
            "measured_on": watched_on,
            "n": sum(len(y) for _, y in batches),
            "metric": table.metric,
            "mean": {"error": table.mean.error, "loss": table.mean.loss},
            "rows": [asdict(row) for row in table.rows],
        },
    }


def without_nan(tree: Any) -> Any:
    """JSON has neither NaN nor infinity: None in their place."""
    if isinstance(tree, dict):
        return {key: without_nan(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [without_nan(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def thresholds_of(small: compressed.CompressedNetwork) -> dict[str, dict[str, Any]]:
    return {name: asdict(threshold) for name, threshold in small.thresholds.items()}


def other_precision(how: Callable[..., compressed.CompressedNetwork], precision: str, data: Dataset) -> dict[str, Any]:
    """The figures under the rules that were not chosen, for comparison; nothing is written.

    :param precision: the rule that was chosen; none of them where weights are codes, and nothing is to compare.
    """
    others: dict[str, Any] = {}
    for rule in RULES if precision in RULES else ():
        if rule == precision:
            continue
        small = how(precision=rule)
        others[rule] = {
            error_key(data.likelihood.metric): test_error(small.network().to(data.test_x.device), data),
            "bits": list(small.bits),
            "compression": {name: round(value, 3) for name, value in asdict(small.compression()).items()},
        }
    return others
