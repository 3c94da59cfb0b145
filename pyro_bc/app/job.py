"""The main job, in stages: dense, fit, prune and fine-tune, compress, measure.

Everything goes into one folder. A stage leaves a file, and a run that was interrupted goes on where there is none yet:

=======================  =====================================================================================
``run.json``             the settings, written first
``dense.safetensors``    the dense network trained in this run
``teacher.safetensors``  the teacher, where it is another network
``checkpoint``           guide, model, optimiser and random state of the fit, after one of its last epochs
``posterior.nc``         the posterior for ArviZ
``finetune``             a checkpoint of the pruned network's training, where there is one
``finetune.nc``          its posterior for ArviZ
``network.pbc``          the compressed network
``report.md``            the figures as a table
``plots``                pictures, refreshed while training goes on
``report.html``          figures, pictures and diagnostics on one page
``metrics.json``         the figures, written last
``.lock``                held by the process that works in the folder
=======================  =====================================================================================
"""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
from torch import Tensor, nn

from ..compression.sensitivity import is_clearly_worse
from ..compression.target import Reached, compress_to
from ..errors import UsageError
from ..file import compressed
from ..graph.nodes import is_layer, layer_name
from ..graph.read import read_graph
from ..inference.history import Epoch
from ..inference.step import PRECISIONS
from ..inference.tensorboard import tensorboard_log
from ..posterior.judged import figure, held_out_batches, judge
from ..quantisation.rounding import RULES
from ..runtime import processes
from ..runtime.files import check_room
from .datasets import Dataset
from .dense import chosen_data, load_weights
from .folder import in_folder
from .metrics import (
    diagnostics_of,
    inputs_of,
    metrics_of,
    other_precision,
    target_of,
    thresholds_of,
    watched_of,
)
from .narrow import narrowed
from .own_network import is_own, network
from .pairing import check_changes, check_network, normalised, paired
from .recipes import Recipe, recipe
from .report import write_results
from .settings import PRIORS, Settings, has_codes, prior_of
from .stages import FEW, Fitted, Job, Start, dense_stage, finetune_stage, fit_stage, start_of, teacher_stage
from .tables import error_key, inputs_in_words, target_in_words
from .units import in_usual_units

# What a run writes at least: the dense network, and a checkpoint of posterior means, deviations and two moments of the
# optimiser of each, which is there twice while one takes the place of the one before.
_BYTES, _IN_CHECKPOINTS = 4, 2 * 6

# Test examples at most, by which it is seen whether a network knows the held-out ones.
_COMPARED = 5000


def run(
    settings: Settings,
    out: str | Path,
    data_dir: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
    after_epoch: Callable[[Epoch], None] = lambda epoch: None,
    device: str = "cpu",
    log_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Run the whole job into a folder and return its metrics.

    On several processes (:func:`~pyro_bc.runtime.processes.joined`) all train, the first writes and measures, and the
    others return nothing.

    :param device: where the networks and the data are; a run may be resumed on another one.
    :param log_dir: folder for TensorBoard, with a log of each fit (:func:`~pyro_bc.tensorboard_log`).
    :raises PyroBCError: on anything a user can mend; nothing half-written is left.
    """
    build = network(settings.net)
    prior = prior_of(settings)
    data = chosen_data(settings, data_dir).to(device)
    plan = _checked(settings, len(data.train_x) - (0 if settings.target is None else _held_count(data)))
    widths = _widths(settings, plan)
    pyro.set_rng_seed(settings.seed)
    net = build(data.picture_shape, data.classes).to(device)
    if settings.dense.weights is not None:
        net = load_weights(net, settings.dense.weights)  # a file that does not fit is said before anything is written
    data = paired(net, data)
    check_changes(plan, data)
    held = None
    if settings.target is not None:
        data, held = _split_off(data)
    if settings.dense.weights is not None:
        net = in_usual_units(net, data)
    elif plan.dense.epochs:
        net = normalised(net, data)
    teacher = net
    if plan.distil.teacher not in (None, settings.net):
        teacher = network(str(plan.distil.teacher))(data.picture_shape, data.classes).to(device)
        if plan.distil.weights is not None:
            teacher = load_weights(teacher, plan.distil.weights)
        paired(teacher, data)
        if plan.distil.weights is None:
            teacher = normalised(teacher, data)
    if is_own(settings.net) or settings.residual_width is not None:
        check_network(net, data, prior)
    parameters = fitted = sum(parameter.numel() for parameter in net.parameters())
    if settings.thresholds or widths:
        graph = read_graph(net, data.train_x[:2])
        layers = [layer_name(node) for node in graph.nodes if is_layer(node)]
        for layer in settings.thresholds or {}:
            if layer not in layers:
                raise UsageError(f"a threshold is given for '{layer}', but the layers are {', '.join(layers)}")
        if widths:
            fitted = sum(tensor.numel() for tensor in narrowed(graph, widths).tensors.values())

    logs = None if log_dir is None else Path(log_dir)
    if logs is not None:
        tensorboard_log(logs / "fit")  # what stands in its way is said before anything is trained

    def job(folder: Path) -> dict[str, Any]:
        if not resume:
            processes.from_first(lambda: check_room(folder, _BYTES * (parameters + _IN_CHECKPOINTS * fitted)))
        own = Job(settings, plan, widths, data, folder, resume, progress, say, after_epoch, logs, held)
        return _run(own, net, teacher)

    return in_folder(Path(out), settings, resume, say, job)


def _run(job: Job, net: nn.Module, teacher: nn.Module) -> dict[str, Any]:
    """What :func:`run` does in a folder of its own, stage by stage."""
    started = time.perf_counter()
    epochs_here: list[Epoch] = []

    told = job.after_epoch

    def after_epoch(epoch: Epoch) -> None:
        epochs_here.append(epoch)
        told(epoch)

    job = replace(job, after_epoch=after_epoch)
    inputs = inputs_of(job.data, net, 0 if job.held is None else len(job.held[1]))
    if inputs:
        job.say(inputs_in_words(inputs))
    whole = _widest_graph(job, net)
    dense, dense_error = dense_stage(job, net)
    _warn_where_seen(job, dense)
    taught_by, teacher_error = teacher_stage(job, teacher, dense, dense_error)
    start = start_of(job, dense, whole)
    fitted = fit_stage(job, start, taught_by, "checkpoint", job.plan)
    first: compressed.CompressedNetwork | None = None
    history = fitted.history
    if job.plan.finetune.epochs:
        first = fitted.compressed()
        fitted = finetune_stage(job, first, taught_by)
        history = (*history, *fitted.history)
    reached = _reached(job, start, dense, fitted)
    small = fitted.compressed(precision=job.settings.precision) if reached is None else reached.network
    if not processes.leave():
        return {}  # what is left is the work of one
    file_bytes = small.save(job.out / "network.pbc")
    decoded = compressed.load(job.out / "network.pbc").to(job.data.test_x.device)
    metrics = metrics_of(job.settings, job.data, dense, dense_error, small, decoded, file_bytes, history, fitted.guide)
    metrics |= inputs
    metrics["started_from"] = list(job.widths)
    if job.plan.distil.share:
        metrics["teacher"] = {
            "net": job.plan.distil.teacher or job.settings.net, error_key(job.data.likelihood.metric): teacher_error
        }  # fmt: skip
    if first is not None:
        metrics["pruning_thresholds"] = thresholds_of(first)
    if reached is not None and job.held is not None:
        metrics["precision"] = "learned" if has_codes(job.settings) else "rate"
        metrics["target"] = target_of(job.settings, reached, len(job.held[0]))
        job.say(target_in_words(metrics))
    metrics |= watched_of(
        fitted.model, fitted.guide, decoded, history, job.watched, job.watched_on, job.settings,
        fitted.compressed.keywords["thresholds"],
    )  # fmt: skip
    if "warning" in metrics:
        job.say(f"warning: {metrics['warning']}")
    metrics["diagnostics"] = diagnostics_of(
        fitted.model, fitted.guide, decoded, job.data, fitted.guide.kl_weight, metrics["measured_on"], job.out
    )
    metrics["other_precision"] = other_precision(fitted.compressed, metrics["precision"], job.data)
    before_resume = sum(epoch.seconds for epoch in history) - sum(epoch.seconds for epoch in epochs_here)
    metrics["seconds"] = round(time.perf_counter() - started + before_resume, 1)
    return write_results(job.out, metrics)


def _split_off(data: Dataset) -> tuple[Dataset, tuple[Tensor, Tensor]]:
    """Data whose training set lacks its end, and that end, in memory."""
    own = replace(data, held_out=_held_count(data)).development()
    return replace(data, train_x=own.train_x, train_y=own.train_y), (own.test_x[:], own.test_y)


def _held_count(data: Dataset) -> int:
    """How many examples judge a target: those that the user put aside, or a fifth where there are few."""
    return data.put_aside or min(max(1, len(data.train_x) // 5), max(data.held_out, FEW))


def _warn_where_seen(job: Job, dense: nn.Module) -> None:
    """Warn where a given network knows the held-out examples that a rise is counted on from its training."""
    data, target, metric = job.data, job.settings.target, job.data.likelihood.metric
    if job.settings.dense.weights is None or target is None or target.max_bytes is not None or job.held is None:
        return
    if data.split_from:
        return  # it may know those that it would be compared by, too
    parts = (job.held, (data.test_x[:_COMPARED], data.test_y[:_COMPARED]))
    held, test = (judge(dense, data.likelihood, held_out_batches(*part)) for part in parts)
    if is_clearly_worse(test, held, min(len(part[1]) for part in parts)):
        warnings.warn(
            f"the network has {metric} {figure(metric, held.error)} on the {len(job.held[1]):,} held-out examples by "
            f"which the target is judged, but {figure(metric, test.error)} on the test set: was it trained on them, "
            f"too? Then less is allowed than it seems: put examples aside that it has not seen (val_x and val_y, or a "
            f"folder val), or give a target in bytes",
            stacklevel=2,
        )


def _reached(job: Job, start: Start, dense: nn.Module, fitted: Fitted) -> Reached | None:
    """What a target came to."""
    if job.settings.target is None or job.held is None:
        return None
    held = held_out_batches(*job.held)
    return compress_to(
        fitted.model, fitted.guide, job.settings.target, job.data.train_x.split(100), held,
        before=dense, seed=job.settings.seed, progress=job.progress,
        **fitted.compressed.keywords,
    )  # fmt: skip


def _checked(settings: Settings, examples: int) -> Recipe:
    """The run's recipe.

    :param examples: of the training set.
    :raises UsageError: where settings are impossible, or do not go together.
    """
    if settings.precision not in RULES:
        raise UsageError(f"unknown precision rule '{settings.precision}'; there are {', '.join(RULES)}")
    if settings.batch_norm not in ("fold", "keep"):
        raise UsageError(f"batch_norm is fold or keep, not '{settings.batch_norm}'")
    if settings.widths is not None and settings.widths_from is not None:
        raise UsageError("give widths, or a file to take them from, not both")
    if settings.thresholds and PRIORS[settings.prior].roles == ("weight",) and has_codes(settings):
        raise UsageError(f"the prior '{settings.prior}' prunes nothing by a threshold: its codes say what is left")
    plan = recipe(settings, examples)
    if settings.target is not None and (plan.finetune.epochs or settings.fit.kl_weight is not None):
        raise UsageError("a target finds the KL's weight in one training: leave out kl-weight and finetune-epochs")
    counts = (plan.dense.epochs, plan.finetune.epochs, plan.fit.shift, plan.finetune.shift)
    sizes = (1 if plan.fit.epochs is None else plan.fit.epochs, plan.fit.batch_size or 0)
    if min(sizes) < 1 or min(count or 0 for count in counts) < 0:
        raise UsageError("epochs and batch_size must be at least 1, the other epochs and shifts at least 0")
    if plan.fit.arithmetic not in PRECISIONS:
        raise UsageError(f"arithmetic is {' or '.join(PRECISIONS)}, not '{plan.fit.arithmetic}'")
    if (plan.distil.passes or 0) < 1:
        raise UsageError("passes must be at least 1")
    fit_rates = (plan.fit.learning_rate, plan.fit.log_learning_rate, plan.fit.code_learning_rate)
    if not all(rate is not None and 0 < rate < math.inf for rate in (*fit_rates, plan.dense.learning_rate)):
        raise UsageError("learning rates must be positive and finite")
    if not all(0 <= (weight or 0) < math.inf for weight in (plan.fit.kl_weight, plan.finetune.kl_weight)):
        raise UsageError("KL weights must not be negative, and finite")
    if not 0 <= (plan.fit.affine or 0) < math.inf:
        raise UsageError("affine must be 0 or more, and finite")
    parts = {"decay": plan.fit.decay, "rounding": plan.fit.rounding, "teacher-share": plan.distil.share}
    for name, part in parts.items():
        if not 0 <= (part or 0) <= 1:
            raise UsageError(f"{name} lies between 0 and 1")
    if plan.distil.teacher is not None:
        network(plan.distil.teacher)
    if plan.distil.weights is not None and plan.distil.teacher in (None, settings.net):
        raise UsageError("teacher-weights are those of another network than the dense one: name it with teacher")
    return plan


def _widths(settings: Settings, plan: Recipe) -> tuple[int, ...]:
    """Outputs of every layer but the last at the start; empty for all that the network has."""
    if settings.widths_from is not None:
        return tuple(len(layer.weight.codes) for layer in compressed.read(settings.widths_from).layers[:-1])
    if not plan.widths:
        return ()
    try:
        return tuple(int(width) for width in plan.widths.split("-"))
    except ValueError:
        raise UsageError(f"widths are numbers with hyphens between, as 8-12-32, not '{plan.widths}'") from None


def _widest_graph(job: Job, net: nn.Module) -> Any:
    return read_graph(net, job.data.train_x[:2]) if job.widths else None
