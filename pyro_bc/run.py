"""The main job: train dense, fit the posterior, prune, train on what is left, compress, measure what was stored.

Everything goes into one folder, from which an interrupted run continues:

=====================  ===========================================================================
``run.json``           the settings, written first
``dense.safetensors``  the dense network trained in this run
``checkpoint``         guide, optimiser and random state after the last whole epoch
``finetune``           the same, of the pruned network's training
``network.pbc``        the compressed network
``posterior.nc``       the posterior for ArviZ, of the first training
``finetune.nc``        the same, of the pruned network's training
``report.md``          the figures as a table
``plots``              pictures, refreshed while training goes on
``report.html``        figures, pictures and diagnostics on one page
``metrics.json``       the figures, written last
``.lock``              held by the process that works in the folder
=====================  ===========================================================================
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import safetensors.torch
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from . import compressed
from .checkpoint import load_checkpoint, save_checkpoint
from .datasets import Batches, Dataset, ShiftAndFlip, load_dataset
from .diagnostics import (
    calibration,
    error_percent,
    importance_ratios,
    leave_one_out,
    mean_network,
    sampled_probabilities,
)
from .errors import CheckpointError, NonFiniteLossError, OutputError, UsageError
from .files import is_empty, only_run_in, write_atomically
from .graph import is_layer, layer_name, read_graph
from .guides import FactorizedGuide
from .infer import Epoch, fit
from .inference_data import arviz_package, save_inference_data
from .networks import network
from .nn import BayesianNetwork
from .posterior import summarize
from .precision import RULES
from .priors import GroupHorseshoe, GroupNormalJeffreys, LogUniform, Prior, StandardNormal
from .pruning import fold_batch_norm
from .recipes import Recipe, Settings, check_objective, recipe
from .report import markdown, progress_pictures, write_report

#: priors by the command's names.
PRIORS: dict[str, type[Prior]] = {
    "gnj": GroupNormalJeffreys,
    "ghs": GroupHorseshoe,
    "svd": LogUniform,
    "normal": StandardNormal,
}


_SECONDS_BETWEEN_PICTURES = 60
# What predictions under drawn weights may cost, in floating point operations: some seconds of a processor.
_OPERATIONS = 1e11


def run(
    settings: Settings,
    out: str | Path,
    data_dir: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Run the whole job into a folder and return its metrics.

    :param device: where the networks and the data are; a run may be resumed on another one.
    :raises PyroBCError: on anything a user can mend; nothing half-written is left.
    """
    check_objective(settings, "elbo")
    build = network(settings.net)
    if settings.prior not in PRIORS:
        raise UsageError(f"unknown prior '{settings.prior}'; there are {', '.join(PRIORS)}")
    if settings.precision not in RULES:
        raise UsageError(f"unknown precision rule '{settings.precision}'; there are {', '.join(RULES)}")
    if settings.batch_norm not in ("fold", "keep"):
        raise UsageError(f"batch_norm is fold or keep, not '{settings.batch_norm}'")
    data = chosen_data(settings, data_dir).to(device)
    plan = recipe(settings)
    if (
        plan.epochs < 1
        or min(plan.pretrain_epochs, plan.finetune_epochs, plan.shift, plan.finetune_shift) < 0
        or plan.batch_size < 1
    ):
        raise UsageError("epochs and batch_size must be at least 1, the other epochs and shifts at least 0")
    rates = [plan.learning_rate, plan.log_learning_rate]
    if plan.pretrain_learning_rate is not None:
        rates.append(plan.pretrain_learning_rate)
    weights = [plan.kl_weight, plan.finetune_kl_weight]
    if not (all(0 < rate < math.inf for rate in rates) and all(0 <= weight < math.inf for weight in weights)):
        raise UsageError("learning rates must be positive and KL weights not negative, all finite")
    if settings.thresholds:
        graph = read_graph(build(data.picture_shape, data.classes).to(device), data.train_x[:2])
        layers = [layer_name(node) for node in graph.nodes if is_layer(node)]
        for layer in settings.thresholds:
            if layer not in layers:
                raise UsageError(f"a threshold is given for '{layer}', but the layers are {', '.join(layers)}")
    pyro.set_rng_seed(settings.seed)
    net = build(data.picture_shape, data.classes).to(device)
    if settings.pretrained is not None:
        load_weights(net, settings.pretrained)  # a file that does not fit is said before anything is written
    return in_folder(
        Path(out), settings, resume, say, lambda folder: _job(settings, plan, net, data, folder, resume, progress, say)
    )


def _job(
    settings: Settings,
    plan: Recipe,
    net: nn.Module,
    data: Dataset,
    out: Path,
    resume: bool,
    progress: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """What :func:`run` does in a folder of its own."""
    started = time.perf_counter()
    epochs_here: list[Epoch] = []

    rate = plan.learning_rate if plan.pretrain_learning_rate is None else plan.pretrain_learning_rate
    batches = _batches(data, plan)
    dense = dense_network(net, batches, plan.pretrain_epochs, rate, out / "dense.safetensors", progress)
    dense_error = error_percent(dense, data.test_x, data.test_y)
    parameters = sum(p.numel() for p in dense.parameters())
    say(f"dense network: {parameters:,} parameters, error {dense_error:.2f} %")
    collect: Sequence[Tensor] | None = None
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in dense.modules()):
        if settings.batch_norm == "keep":
            dense.train()
            collect = data.train_x[:2000].split(plan.batch_size)
        else:
            dense = fold_batch_norm(dense, data.train_x[:2])

    train = partial(
        _fit, data=data, seed=settings.seed, prior=PRIORS[settings.prior](), resume=resume, progress=progress
    )
    model, guide, history = train(dense, plan=plan, checkpoint=out / "checkpoint", after_epoch=epochs_here.append)
    _export_posterior(out / "posterior.nc", model, guide, data, history)
    how = partial(compressed.compress, model, guide, thresholds=settings.thresholds, batch_norm_loader=collect)
    if plan.finetune_epochs:
        first = how()
        left = "-".join(map(str, first.architecture))
        say(f"pruned to {left}; training on for {plan.finetune_epochs} epochs")
        plan = replace(plan, epochs=plan.finetune_epochs, kl_weight=plan.finetune_kl_weight, shift=plan.finetune_shift)
        net = first.network().to(data.train_x.device)
        model, guide, more = train(net, plan=plan, checkpoint=out / "finetune", after_epoch=epochs_here.append)
        _export_posterior(out / "finetune.nc", model, guide, data, more)
        history = (*history, *more)
        how = partial(compressed.compress, model, guide, dense=first)
    small = how(precision=settings.precision)
    file_bytes = small.save(out / "network.pbc")
    decoded = compressed.load(out / "network.pbc").to(data.test_x.device)
    metrics = _metrics(settings, data, dense, dense_error, small, decoded, file_bytes, history)
    if plan.finetune_epochs:
        metrics["pruning_thresholds"] = _thresholds(first)
    metrics["diagnostics"] = _diagnostics(model, guide, decoded, data, plan, metrics["measured_on"], out)
    metrics["other_precision"] = _other_precision(how, settings, data)
    before_resume = sum(epoch.seconds for epoch in history) - sum(epoch.seconds for epoch in epochs_here)
    metrics["seconds"] = round(time.perf_counter() - started + before_resume, 1)
    metrics["file_bytes"] = (out / "network.pbc").stat().st_size
    metrics = _without_nan(metrics)
    write_atomically(out / "report.md", markdown(metrics).encode())
    write_report(out, metrics)
    write_atomically(out / "metrics.json", (json.dumps(metrics, indent=2, allow_nan=False) + "\n").encode())
    return metrics


def chosen_data(settings: Settings, data_dir: str | Path | None) -> Dataset:
    """The data set of a run, of which it may hold out the end, and train on the first examples only."""
    data = load_dataset(settings.data, data_dir)
    if settings.development:
        data = data.development()
    return data if settings.train_limit is None else data.limited(settings.train_limit)


def in_folder(
    out: Path, settings: Settings, resume: bool, say: Callable[[str], None], job: Callable[[Path], dict[str, Any]]
) -> dict[str, Any]:
    """Do a job in a new folder, with its settings in it, or go on with one; no other run can be in it meanwhile.

    :param job: takes the folder and returns metrics; where it is complete, those in it are returned instead.
    :raises CheckpointError: where there is nothing to resume, or it has other settings.
    :raises UsageError: where a new run's folder is in use.
    :raises OutputError: where it cannot be written.
    """
    in_use = UsageError(
        f"'{out}' exists and is not empty; choose a new folder, or continue the run in it with --resume"
    )
    if resume:
        _check_settings(out, settings)
    elif out.exists() and (not out.is_dir() or not is_empty(out)):
        raise in_use
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"'{out}' cannot be written: {error.strerror}") from None
    with only_run_in(out):
        if not resume:
            if not is_empty(out):  # another run came first
                raise in_use
            write_atomically(out / "run.json", (json.dumps(asdict(settings), indent=2) + "\n").encode())
        if (out / "metrics.json").exists():
            say(f"{out} is complete; nothing to resume")
            return json.loads((out / "metrics.json").read_text())
        return job(out)


def _check_settings(out: Path, settings: Settings) -> None:
    file = out / "run.json"
    if not file.is_file():
        raise CheckpointError(f"'{out}' holds no run to resume; leave out --resume to start one")
    try:
        saved = json.loads(file.read_text())
        assert isinstance(saved, dict)
    except (OSError, ValueError, AssertionError):
        raise CheckpointError(f"'{file}' is damaged; start the run anew in another folder") from None
    saved = asdict(Settings(settings.net, settings.prior, settings.data)) | saved  # older runs lack newer settings
    given = json.loads(json.dumps(asdict(settings)))
    differing = [key for key, value in given.items() if saved.get(key) != value]
    if differing:
        text = ", ".join(f"{key} {saved.get(key)!r}" for key in differing)
        raise CheckpointError(
            f"the run in '{out}' has other settings: {text}. Resume it with those, or use a new folder"
        )


def load_weights(net: nn.Module, path: str | Path) -> None:
    """Fill a network with the tensors of a safetensors file, by their names in its ``state_dict``.

    :raises UsageError: where the file cannot be read, or names or shapes differ.
    """
    try:
        weights = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UsageError(f"'{path}' is not a readable safetensors file ({error})") from None
    # Names that a state_dict has, but that no forward pass reads.
    expected = {name: tensor for name, tensor in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    for name, tensor in expected.items():
        if name not in weights:
            raise UsageError(f"'{path}' holds no '{name}'; it needs {len(expected)} tensors: {', '.join(expected)}")
        if weights[name].shape != tensor.shape:
            raise UsageError(
                f"'{name}' has shape {tuple(weights[name].shape)} in '{path}', but {tuple(tensor.shape)} in the network"
            )
    for name in weights:
        if name not in net.state_dict():
            raise UsageError(f"'{path}' holds '{name}', which the network does not have")
    net.load_state_dict(weights, strict=False)


def dense_network(
    net: nn.Module, batches: Batches, epochs: int, learning_rate: float, file: Path, progress: bool
) -> nn.Module:
    """The dense network of this run, trained with Adam, or read back where the run was interrupted later."""
    if file.exists():
        net.load_state_dict(load_checkpoint(file)[0])
        return net.eval()
    optimizer = torch.optim.Adam(net.parameters(), learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=max(1, epochs * len(batches)))
    net.train()
    for epoch in track(range(epochs), "dense network", transient=True) if progress else range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            schedule.step()
        if not torch.isfinite(loss):
            raise NonFiniteLossError(f"the loss of the dense network is not finite in epoch {epoch + 1}")
    save_checkpoint(file, net.state_dict(), {"epochs": epochs})
    return net.eval()


def _batches(data: Dataset, plan: Recipe) -> Batches:
    augment = ShiftAndFlip(plan.shift, plan.flip) if plan.shift or plan.flip else None
    return Batches(data.train_x, data.train_y, plan.batch_size, augment=augment)


def _fit(
    net: nn.Module,
    *,
    data: Dataset,
    plan: Recipe,
    prior: Prior,
    seed: int,
    checkpoint: Path,
    resume: bool,
    progress: bool,
    after_epoch: Callable[[Epoch], None],
) -> tuple[BayesianNetwork, FactorizedGuide, tuple[Epoch, ...]]:
    """A network's posterior; its training continues where there is a checkpoint to resume."""
    pyro.clear_param_store()
    model = BayesianNetwork(net, prior, num_data=len(data.train_x))
    guide = FactorizedGuide(model)
    resume = resume and checkpoint.exists()
    course = [Epoch(**record) for record in load_checkpoint(checkpoint)[1]["history"]] if resume else []
    drawn = time.monotonic()

    def refresh(epoch: Epoch) -> None:
        nonlocal drawn
        course.append(epoch)
        after_epoch(epoch)
        if time.monotonic() > drawn + _SECONDS_BETWEEN_PICTURES:
            progress_pictures(checkpoint.parent / "plots", course, summarize(guide))
            drawn = time.monotonic()

    result = fit(
        model,
        guide,
        _batches(data, plan),
        epochs=plan.epochs,
        learning_rate=plan.learning_rate,
        log_learning_rate=plan.log_learning_rate,
        kl_weight=plan.kl_weight,
        seed=seed,
        checkpoint=checkpoint,
        resume=resume,
        progress=progress,
        after_epoch=refresh,
    )
    return model, guide, result.history


def _export_posterior(path: Path, model: BayesianNetwork, guide: Any, data: Dataset, history: Sequence[Epoch]) -> None:
    """Write a fit for ArviZ, with predictions of a spread of training points; fewer of them for a large network."""
    points, draws = _effort(model, data.train_x)
    index = torch.linspace(0, len(data.train_x) - 1, min(points, len(data.train_x))).long()
    save_inference_data(path, guide, data.train_x[index], data.train_y[index], draws=draws, history=history)


def _effort(model: BayesianNetwork, x: Tensor) -> tuple[int, int]:
    """Points and draws of predictions under drawn weights, by what one prediction costs; the same on any machine."""
    net = model.skeleton.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x[:1])
    affordable = _OPERATIONS / max(1, counter.get_total_flops())
    points = int(min(1000, max(100, affordable / 200)))
    return points, int(min(200, max(25, affordable / points)))


def _diagnostics(
    model: BayesianNetwork,
    guide: FactorizedGuide,
    decoded: nn.Module,
    data: Dataset,
    plan: Recipe,
    measured_on: str,
    out: Path,
) -> dict[str, Any]:
    """How far the final fit can be trusted, as JSON."""
    points, draws = _effort(model, data.train_x)
    found: dict[str, Any] = {"measured_on": measured_on}
    x, y = data.train_x[: 2 * points], data.train_y[: 2 * points]
    if plan.kl_weight > 0:
        ratios = importance_ratios(guide, x, y, draws=draws, kl_weight=plan.kl_weight)
        found["importance"] = {"pareto_k": ratios.k, "message": ratios.message}
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
    file = out / "finetune.nc"
    found["loo"] = asdict(leave_one_out(arviz_package().from_netcdf(file if file.exists() else out / "posterior.nc")))
    return found


def _metrics(
    settings: Settings,
    data: Dataset,
    dense: nn.Module,
    dense_error: float,
    small: compressed.CompressedNetwork,
    decoded: nn.Module,
    file_bytes: int,
    history: tuple[Epoch, ...],
) -> dict[str, Any]:
    figures = small.compression(file_bytes)
    last = history[-1]
    return {
        "net": settings.net,
        "prior": settings.prior,
        "data": settings.data,
        "data_name": data.name,
        "measured_on": "held-out training data" if settings.development else "test set",
        "n": len(data.test_x),
        "seed": settings.seed,
        "recipe": asdict(recipe(settings)),
        "dense": {"error_percent": dense_error, "parameters": small.dense_parameters},
        "compressed": {"error_percent": error_percent(decoded, data.test_x, data.test_y)},
        "architecture": list(small.architecture),
        "bits": list(small.bits),
        "thresholds": _thresholds(small),
        "precision": settings.precision,
        "compression": {name: round(value, 3) for name, value in asdict(figures).items()},
        "file_bytes": file_bytes,
        "loss_nats": {
            "negative_elbo_per_example": last.loss,
            "negative_log_likelihood_per_example": last.negative_log_likelihood,
            "kl_per_example": last.kl,
        },
        "training_seconds": round(sum(epoch.seconds for epoch in history), 1),
    }


def _without_nan(tree: Any) -> Any:
    """JSON has neither NaN nor infinity: None in their place."""
    if isinstance(tree, dict):
        return {key: _without_nan(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_without_nan(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def _thresholds(small: compressed.CompressedNetwork) -> dict[str, dict[str, Any]]:
    return {name: asdict(threshold) for name, threshold in small.thresholds.items()}


def _other_precision(
    how: Callable[..., compressed.CompressedNetwork], settings: Settings, data: Dataset
) -> dict[str, Any]:
    """The figures under the rules that were not chosen, for comparison; nothing is written."""
    others = {}
    for rule in RULES:
        if rule == settings.precision:
            continue
        small = how(precision=rule)
        others[rule] = {
            "error_percent": error_percent(small.network().to(data.test_x.device), data.test_x, data.test_y),
            "bits": list(small.bits),
            "compression": {name: round(value, 3) for name, value in asdict(small.compression()).items()},
        }
    return others
