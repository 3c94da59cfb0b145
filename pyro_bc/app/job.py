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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyro
from torch import Tensor, nn

from ..compression.batch_norm import fold_batch_norm
from ..compression.compress import compress
from ..errors import UsageError
from ..file import compressed
from ..graph.nodes import is_layer, layer_name
from ..graph.read import read_graph
from ..inference.checkpoint import load_checkpoint
from ..inference.fit import fit
from ..inference.history import Epoch
from ..inspection.diagnostics import error_percent
from ..model.guide import FactorizedGuide
from ..model.network import BayesianNetwork
from ..posterior.summary import summarize
from ..priors.base import Prior
from ..priors.horseshoe import GroupHorseshoe
from ..priors.normal_jeffreys import GroupNormalJeffreys, LogUniform
from ..priors.standard_normal import StandardNormal
from ..quantisation.rounding import RULES
from ..runtime.files import write_atomically
from .datasets import Dataset
from .dense import batches_of, chosen_data, dense_network, load_weights
from .folder import in_folder
from .metrics import diagnostics_of, export_posterior, metrics_of, other_precision, thresholds_of, without_nan
from .networks import network
from .recipes import Recipe, recipe
from .report import progress_pictures, write_report
from .settings import Settings, check_objective
from .tables import markdown

#: priors by the command's names.
PRIORS: dict[str, type[Prior]] = {
    "gnj": GroupNormalJeffreys,
    "ghs": GroupHorseshoe,
    "svd": LogUniform,
    "normal": StandardNormal,
}


_SECONDS_BETWEEN_PICTURES = 60


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
    batches = batches_of(data, plan)
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
    export_posterior(out / "posterior.nc", model, guide, data, history)
    how = partial(compress, model, guide, thresholds=settings.thresholds, batch_norm_loader=collect)
    if plan.finetune_epochs:
        first = how()
        left = "-".join(map(str, first.architecture))
        say(f"pruned to {left}; training on for {plan.finetune_epochs} epochs")
        plan = replace(plan, epochs=plan.finetune_epochs, kl_weight=plan.finetune_kl_weight, shift=plan.finetune_shift)
        net = first.network().to(data.train_x.device)
        model, guide, more = train(net, plan=plan, checkpoint=out / "finetune", after_epoch=epochs_here.append)
        export_posterior(out / "finetune.nc", model, guide, data, more)
        history = (*history, *more)
        how = partial(compress, model, guide, dense=first)
    small = how(precision=settings.precision)
    file_bytes = small.save(out / "network.pbc")
    decoded = compressed.load(out / "network.pbc").to(data.test_x.device)
    metrics = metrics_of(settings, data, dense, dense_error, small, decoded, file_bytes, history)
    if plan.finetune_epochs:
        metrics["pruning_thresholds"] = thresholds_of(first)
    metrics["diagnostics"] = diagnostics_of(model, guide, decoded, data, plan, metrics["measured_on"], out)
    metrics["other_precision"] = other_precision(how, settings, data)
    before_resume = sum(epoch.seconds for epoch in history) - sum(epoch.seconds for epoch in epochs_here)
    metrics["seconds"] = round(time.perf_counter() - started + before_resume, 1)
    metrics["file_bytes"] = (out / "network.pbc").stat().st_size
    metrics = without_nan(metrics)
    write_atomically(out / "report.md", markdown(metrics).encode())
    write_report(out, metrics)
    write_atomically(out / "metrics.json", (json.dumps(metrics, indent=2, allow_nan=False) + "\n").encode())
    return metrics


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
        batches_of(data, plan),
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
