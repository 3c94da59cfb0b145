r"""The training loop that a user need not write.

What it adds to ``SVI.step`` under :func:`~pyro_bc.local_reparameterization`: the KL is warmed up linearly, what
lives on a logarithmic scale (log-variances and the locations of log-normals) has a learning rate of its own,
standard deviations are capped while the network learns, the learning rate decays linearly at the end, and a
checkpoint of the last epochs continues to the same result as an uninterrupted run.

Where a ``torch.distributed`` process group exists, as in a script under ``torchrun`` that called
``init_process_group``, :func:`fit` is one fit on all its processes (:mod:`pyro_bc.runtime.processes`).
"""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

import pyro
import torch
from torch import Tensor

from ..compression.look import Look
from ..data.loaders import check_inputs, first_batch, loader_examples, loader_steps
from ..errors import CheckpointError, UnsupportedNetworkError, UsageError
from ..graph.module import same_statistics
from ..model.guide import FactorizedGuide
from ..model.network import BayesianNetwork
from ..posterior.judged import figure
from ..posterior.standing import Standing
from ..posterior.summary import code_bytes, summarize
from ..posterior.thresholds import choose_threshold
from ..priors.cells import Cell
from ..runtime import processes
from ..runtime.devices import check_device, device_of
from ..runtime.gradients import check_differentiates
from ..runtime.inputs import Batch, tensors_of
from ..runtime.messages import first_line
from ..runtime.progress import progress_bar
from .checkpoint import CHECKPOINT_FORMAT, put_back, restore_fit, save_fit, state_of
from .checks import BatchCheck, check_finite, not_finite_error, running_on
from .history import Epoch, FitResult
from .left import Left, left_of, whose_parameters
from .multiplier import Watch, best_look, guarded_weight, is_looked_at, learned_weight, nearest_look, usual_weight
from .rest import is_at_rest
from .schedule import Schedule, measure_, set_rates
from .shrinking import can_shrink, cut_of, is_time
from .step import PRECISIONS, FlatParameters, Step, StepResult, compiled_step, eager_step, has_compiler
from .straight_through import rounded_codes, settle_codes_
from .trainable import trainable
from .training import Training
from .watch import errors_before, guarding, some_examples, training_error, watching

#: more steps than this repay the time that compiling one takes.
WORTH_COMPILING = 10_000

# The part of what is allowed, below 0, at which a fit has left the neighbourhood of its target.
_COLLAPSE = -2.0

# The part of what the last epoch leaves below which an earlier one is taken.
_CLEARLY = 0.9

# So many times as long as a checkpoint takes to be written a training goes on before the next: epochs of small data are
# over sooner than that, and there are thousands of them.
_BETWEEN_CHECKPOINTS = 10

# Epochs and steps of a training, at least, where nobody says.
_EPOCHS, _STEPS = 40, 4000


class Constraint(Protocol):
    """What a network has to keep; :class:`~pyro_bc.Target` is one."""

    def watch(self, model: Any, guide: Any, held_out: Iterable[Any], examples: Iterable[Any]) -> Watch:
        """What looks at held-out data after an epoch, for a guide that is set up and not yet trained.

        :param examples: batches ``(x, y)`` that are trained on, some of them.
        """
        ...


def usual_epochs(steps: int) -> int:
    """Epochs of so many steps where nobody says how many."""
    return max(_EPOCHS, -(-_STEPS // steps))


def fit(
    model: Any,
    guide: FactorizedGuide,
    train_loader: Iterable[tuple[Tensor, Tensor]],
    *,
    epochs: int | None = None,
    target: Constraint | None = None,
    held_out: Iterable[Any] | None = None,
    schedule: Schedule | None = None,
    seed: int | None = 0,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    compile: bool | None = None,
    shrink: bool = True,
    precision: str = "float32",
    after_epoch: Callable[[Epoch], None] | Sequence[Callable[[Epoch], None]] = (),
    **changes: Any,
) -> FitResult:
    r"""Maximise the ELBO with Adam; the guide holds the result.

    With nothing else given, the KL weighs as much as there are training examples over weights, at most 1, and so many
    times less than in the ELBO: with few examples, the ELBO of a mean-field posterior is highest where much is pruned
    that predicts well. While compression would cost more than 0.01 nats an example and 0.3 points (where errors are
    counted) of what the posterior mean knows of its training data, the weight gives way, and the guide goes back to the
    smallest network of the second half that cost less, where the last one does not. What it came to is in
    ``guide.kl_weight`` and in the history. ``kl_weight=1`` is the ELBO, and any number stays what it is.

    Where the weight of the KL is found, so is the size of scales: before the first step, groups' scales take over the
    size of what they multiply (:meth:`FactorizedGuide.balance_`), which changes no weight of the network, and
    both are learned at rates that are a part of it.

    Where weights are codes (:class:`~pyro_bc.LearnedCode`), the last part of the training computes with rounded ones,
    in steps that are powers of two (:func:`~pyro_bc.rounded_codes`).

    :param model: the network as a Pyro model, or any other model of inputs and targets; the size of its training set is
        that of the plate in which it observes.
    :param guide: its guide, set up or not.
    :param train_loader: iterable of ``(x, y)`` batches with a length, shuffled by torch's global generator. On several
        processes each has its share of the examples, as :class:`~pyro_bc.data.Batches` and torch's
        ``DistributedSampler`` give it, in as many batches; N stays the size of the whole training set.
    :param epochs: passes over the loader; None for at least 40 of them, and at least 4,000 steps, or fewer where bound,
        groups and the KL's weight have been level over a fifth of them.
    :param target: what the compressed network has to keep (:class:`~pyro_bc.Target`): the KL's weight is then learned
        on held-out data (:mod:`pyro_bc.inference.multiplier`), and that of the schedule is not used. Where what the
        last epoch leaves does not keep it, or was clearly better before, the guide goes back to the best that did.
    :param held_out: batches ``(x, y)`` that are not trained on; needed for a target. Without one they change nothing:
        what :func:`~pyro_bc.compress` would make of the guide is looked at now and then, and error and bytes are shown
        and kept (``held_out_error`` of :class:`Epoch`).
    :param schedule: learning rates, and the weight of the KL over time; None for what suits the prior.
    :param seed: seed of torch's global generator, None to leave it as it is.
    :param checkpoint: file to write after an epoch, at the end and wherever the training since the last time took ten
        times as long as that; on several processes the first one writes and reads it.
    :param resume: continue from ``checkpoint``; the result equals that of an uninterrupted run. On another device than
        the checkpoint's, or on another number of processes, the same posterior goes on with other noise.
    :param progress: whether to show a progress bar.
    :param compile: whether steps on batches of the first one's shape are compiled (``torch.compile``, ten to forty
        seconds, and once more where rounding begins); None to do so where there is a C++ compiler, torch 2.13 or newer,
        and more than :data:`WORTH_COMPILING` steps, and to go on without where it fails. The noise is the same; sums
        are rounded in another order.
    :param shrink: whether groups that have gone leave the training, so that later epochs cost what is left: where that
        at least halves the weights, after the first quarter. What leaves does not come back; its weights stand at their
        prior in the guide, and are pruned. Gone is what tells less than a nat of all the data, with no weight above its
        noise (:mod:`pyro_bc.posterior.gone`). Networks and priors of which no part can be trained alone, such as those
        with batch normalisation, codes or shared scales, are trained whole.
    :param precision: of the network's products while it trains: ``float32``, or ``bf16``, which takes half the time
        where the processor has it. Parameters, the KL and the likelihood are in single precision either way.
    :param after_epoch: called with each new :class:`Epoch`; a function, or several, such as
        :func:`~pyro_bc.tensorboard_log`.
    :param changes: fields of the schedule that differ, e.g. ``kl_weight=1``.
    :raises UnsupportedNetworkError: where the network is none that :func:`~pyro_bc.compress` can handle.
    :raises UsageError: on an argument out of range, an empty loader, inputs that do not fit the network or are not
        finite, or targets that do not fit the likelihood; every batch is looked at in the first epoch.
    :raises NonFiniteLossError: where the loss or a parameter is NaN or infinite; names sites and layer. The last
        checkpoint stays, of a good epoch.
    :raises CheckpointError: where the checkpoint exists and ``resume`` is off, or belongs to another run.
    """
    check_differentiates("fit")
    schedule = (schedule or Schedule()).changed(changes)
    if epochs is not None and not (isinstance(epochs, int) and epochs > 0):
        raise UsageError(f"epochs must be a positive integer, not {epochs!r}")
    if target is not None and held_out is None:
        raise UsageError("a target needs held-out batches to judge by: give held_out, too")
    if target is not None and not hasattr(target, "watch"):
        raise UsageError(f"a target is a pyro_bc.Target, such as Target(max_error_rise=0.5), not {target!r}")
    if held_out is not None:
        held_out = list(held_out)  # passed over often
    if precision not in PRECISIONS:
        raise UsageError(f"precision is that of the products, {' or '.join(PRECISIONS)}, not {precision!r}")
    told = [after_epoch] if callable(after_epoch) else list(after_epoch)
    if not isinstance(guide, FactorizedGuide):
        raise UsageError(
            f"fit takes a FactorizedGuide, not {type(guide).__name__}: train another guide with Pyro's SVI"
        )
    if guide._source[0] is not model:
        raise UsageError("the guide is of another model than the one to train: FactorizedGuide(model) makes its guide")
    steps = loader_steps(train_loader)
    processes.check_steps(steps)
    may_end_early = epochs is None
    if epochs is None:
        epochs = usual_epochs(steps)
    if seed is not None:
        pyro.set_rng_seed(seed)
    x, y = first_batch(train_loader)
    examples = some_examples(train_loader) if schedule.kl_weight is None or target is not None else []
    model = processes.on_all(lambda: _trainable(model, guide, x, y))
    check_batch = processes.on_all(lambda: _check(model, guide, x, y))
    if processes.count() == 1 and (said := _other_count(model, train_loader, len(y))):
        warnings.warn(said, stacklevel=2)
    processes.start_alike([model, guide])
    processes.draw_apart()
    watch = guard = on_training = None
    if held_out is not None:
        watch = watching(model, held_out) if target is None else target.watch(model, guide, held_out, examples)
    has_codes = Cell in guide.families.values()
    most = schedule.kl_weight
    if most is None:
        most = usual_weight(model.num_data, weights_of(guide))
        if target is None and isinstance(model, BayesianNetwork) and not has_codes:
            guard = guarding(examples)
    before = None
    if target is not None and held_out is not None:
        on_training = training_error(examples)
        before = errors_before(model, guide, examples, held_out)
    guide.kl_weight = float(most)
    warmup = schedule.warmup(epochs, has_codes)
    rounded_from = schedule.rounded_from(epochs) if has_codes else epochs
    falls_from = max((1 - schedule.decay) * epochs, rounded_from if has_codes else 0)
    settings = {
        "epochs": epochs,
        "steps": steps,
        **asdict(schedule),
        "seed": seed,
        "format": CHECKPOINT_FORMAT,
        "processes": processes.count(),
        "sites": {name: list(value.shape) for name, value in guide.named_parameters()},
    }
    if target is not None:
        settings["target"] = repr(target)
    if precision != "float32":
        settings["precision"] = precision
    if not shrink:
        settings["shrink"] = False
    checkpoint = None if checkpoint is None else Path(checkpoint)
    if checkpoint is not None and not resume and processes.from_first(checkpoint.exists):
        raise CheckpointError(f"'{checkpoint}' exists; resume it, or choose another path")
    if schedule.kl_weight is None:
        guide.balance_()
    whole = Training.of(model, guide, schedule)
    with (
        pyro.validation_enabled(False), torch.enable_grad(), whole.flat,
        progress_bar("epoch", epochs, shown=progress) as bar,
    ):  # fmt: skip
        history: list[Epoch] = []
        kept: dict[str, Tensor] = {}
        left: Left | None = None
        may_shrink = shrink and can_shrink(model, guide, x)
        if resume and checkpoint is not None:
            history, kept, cut = restore_fit(checkpoint, model, guide, whole.optimizer, settings)
            if cut is not None:
                left = left_of(whole, cut, schedule, x, y)
        bar(len(history))
        first, shapes = (x, y), _shapes(x, y)  # the last batch of an epoch may be smaller
        first_epoch = saved = len(history)
        next_checkpoint = -math.inf  # on the clock

        def save() -> None:
            nonlocal saved, next_checkpoint
            if checkpoint is None or saved == len(history):  # the end was written already
                return
            began = time.monotonic()
            save_fit(
                checkpoint, model, guide, whole.optimizer, settings, history, kept, None if left is None else left.cut
            )
            saved, ended = len(history), time.monotonic()
            next_checkpoint = ended + _BETWEEN_CHECKPOINTS * (ended - began)

        stepped: Training | None = None  # what steps are made for
        for epoch in range(first_epoch, epochs):
            if may_end_early and is_looked_at(epoch - 1, epochs) and is_at_rest(history, epochs, falls_from):
                bar(total=epoch)
                break
            start = time.perf_counter()
            is_rounding = epoch >= rounded_from
            learned = None if target is None else learned_weight(history, epochs, before)
            highest = most if guard is None else guarded_weight(history, epochs, most)
            if epoch == rounded_from:
                settle_codes_(guide)
            now = whole
            if left is not None:
                now = left.training
                left.take()
            with rounded_codes() if is_rounding else nullcontext(), whose_parameters(left):
                if stepped is not now or epoch == rounded_from:
                    since, until = (rounded_from, epochs) if is_rounding else (0, rounded_from)
                    stepped, plain = now, eager_step(now.model, now.guide, now.flat, precision)
                    fast = plain
                    if _is_compiled(compile, model, (until - since) * steps, x):  # also where few of them are left
                        bar(state="compiling")
                        fast = _compiled(compile, plain, now.model, now.guide, now.flat, *first, precision)
                measure_(now.optimizer, epochs * steps)
                sums = torch.zeros(2 + len(now.guide.families), device=whole.flat.vectors[0].device)
                for step, (x, y) in enumerate(train_loader):
                    if epoch == first_epoch:
                        processes.on_all(partial(check_batch, x, y, step + 1))
                    progress_now = epoch + step / steps
                    weight = learned or highest * (min(1.0, progress_now / warmup) if warmup else 1.0)
                    set_rates(now.optimizer, schedule, progress_now, epochs, is_rounding)
                    result = (fast if _shapes(x, y) == shapes else plain)(x, y, weight)
                    if processes.count() > 1:
                        result = _averaged(result, now.flat)
                    if not math.isfinite(result.loss.item()):
                        parts = _not_finite(result, now.guide)
                        raise not_finite_error(epoch, step, parts, now.model, now.guide, x, y)
                    now.optimizer.step()
                    with torch.no_grad():
                        for parameter, bound in now.bounds:
                            parameter.clamp_(max=bound)
                    sums += torch.cat([torch.stack([result.log_likelihood, result.error]), result.kl])
            found = sums / steps
            if left is not None:
                left.give_back()
                found = torch.cat([found[:2], left.with_all_sites(found[2:])])
            check_finite(epoch, model, guide)
            processes.average_buffers_(model)
            log_likelihood, error, *kl_by_site = found.tolist()
            # Of thousands of epochs of a step each, counting takes a third of the time.
            is_counted = not history or is_looked_at(epoch, epochs)
            kl = sum(kl_by_site)
            record = Epoch(
                epoch=epoch + 1,
                loss=(kl - log_likelihood) / model.num_data,
                negative_log_likelihood=-log_likelihood / model.num_data,
                kl=kl / model.num_data,
                kl_weight=weight,
                error=model.likelihood.summary(error),
                groups_left=groups_left(guide) if is_counted else history[-1].groups_left,
                seconds=time.perf_counter() - start,
                kl_by_layer=_by_layer(guide, [value / model.num_data for value in kl_by_site]),
                learning_rates={group["kind"]: float(group["lr"]) for group in now.optimizer.param_groups},
                weights_trained=now.weights,
            )
            if is_looked_at(epoch, epochs) and (watch is not None or guard is not None):
                look = Look(model, guide, is_rounding)
                if watch is not None:
                    standing = watch(look)
                    if _is_collapse(standing.slack) and not _was_collapse(history):
                        _say_collapse(standing, model.likelihood.metric, epoch)
                    record = replace(_asked(record, standing), held_out_error=standing.error,
                                     file_bytes=standing.file_bytes)  # fmt: skip
                if on_training is not None:
                    record = replace(record, train_error=on_training(look))
                if guard is not None:
                    standing = guard(look)
                    record = replace(_asked(record, standing), train_error=standing.error,
                                     file_bytes=record.file_bytes or standing.file_bytes)  # fmt: skip
                if _to_go_back_to([*history, record], epochs, rounded_from) == epoch:
                    kept = {name: value.detach().clone() for name, value in state_of(model, guide).items()}
            history.append(record)
            if may_shrink and is_time(record, epochs, steps):
                left = cut_of(whole, left, schedule, *first) or left
            if checkpoint is not None and processes.from_first(lambda: time.monotonic() >= next_checkpoint):
                save()
            bar(1, state=_state(history, model.likelihood.metric, guide))
            for tell in told:
                tell(record)
        save()
    if target is not None or guard is not None:
        end, best = history[-1], best_look(history, epochs, rounded_from)
        if best is None and (near := nearest_look(history)) is not None:
            # What kept a target is gone back to however early it was; what cost little at the start may know nothing.
            # Codes that are not rounded yet say nothing of a file.
            is_stored = not has_codes or near >= rounded_from
            is_early = target is not None and is_stored and history[near].is_kept
            best = near if is_early or _is_collapse(end.slack) else None
        if best is not None and (not end.is_kept or _is_clearly_less(history[best].cost, end.cost)):
            put_back(kept, model, guide)
            end = history[best]
        elif target is None and not end.is_kept:
            _say_costly(end)
        guide.kl_weight = end.kl_weight
    if has_codes:  # where nothing was rounded
        settle_codes_(guide)
    return FitResult(tuple(history))


def _asked(record: Epoch, standing: Standing) -> Epoch:
    """An epoch with how it stands against what is asked for."""
    return replace(record, slack=standing.slack, is_kept=standing.is_kept, cost=standing.cost)


def _to_go_back_to(history: Sequence[Epoch], epochs: int, first: int) -> int | None:
    """The epoch whose network is kept beside that of the last one."""
    best = best_look(history, epochs, first)
    return nearest_look(history) if best is None else best


def _is_clearly_less(cost: float | None, than: float | None) -> bool:
    return cost is not None and than is not None and cost < _CLEARLY * than


def _state(history: Sequence[Epoch], metric: str, guide: FactorizedGuide) -> str:
    """What the progress bar says; of a network that is looked at, the error of what would be stored."""
    record = history[-1]
    left = "-".join(map(str, record.groups_left.values()))
    if record.weights_trained is not None and record.weights_trained < (whole := sum(weights_of(guide))):
        left += f"  training {record.weights_trained:,} of {whole:,} weights"
    looks = [(own.held_out_error, own.file_bytes) for own in history if own.held_out_error is not None]
    if looks:
        error = f"compressed {metric} {figure(metric, looks[-1][0])}"
        return f"{error}  {looks[-1][1]:,} bytes  {left}  loss {record.loss:.3f}  KL {record.kl:.3f}"
    size = f"  {code_bytes(guide):,.0f} bytes" if Cell in guide.families.values() else ""
    error = "" if math.isnan(record.error) else f"  {metric} of drawn weights {figure(metric, record.error)}"
    return f"loss {record.loss:.3f}  KL {record.kl:.3f}{error}  {left}{size}"


def _is_collapse(slack: float | None) -> bool:
    return slack is not None and slack < _COLLAPSE


def _was_collapse(history: Sequence[Epoch]) -> bool:
    """Whether the last look, if there was one, has found a collapse, which has been said then."""
    return _is_collapse(next((own.slack for own in reversed(history) if own.slack is not None), None))


def _say_collapse(standing: Standing, metric: str, epoch: int) -> None:
    """Say that a fit is far from its target, and what is done about it."""
    found = f"{metric} {figure(metric, standing.error)}"
    what = "nothing would be left of the network" if math.isnan(standing.error) else found
    how = "has lost most of what the network knew" if standing.slack == -math.inf else "is far beyond the target"
    warnings.warn(
        f"epoch {epoch + 1}: {what} on held-out data, pruned as the posterior is now, which {how}; the KL's weight is "
        f"adapted",
        stacklevel=3,
    )


def _say_costly(end: Epoch) -> None:
    """Say that compression costs more than it may, whatever the KL's weight has been."""
    left = "-".join(map(str, end.groups_left.values()))
    warnings.warn(
        f"compression would cost much of what the posterior mean knows of its training data, groups left {left}, even "
        f"at a KL weight of {end.kl_weight:.2g}: train for longer, or give less weight from the beginning (kl_weight)",
        stacklevel=3,
    )


@torch.no_grad()
def _other_count(model: Any, loader: Any, batch: int) -> str:
    """What is to be said where a model counts other examples than its loader gives; empty where it does not.

    :param batch: examples of the first batch, so many of which a loader may leave out.
    """
    count, own = loader_examples(loader), model.num_data
    is_known = isinstance(model, BayesianNetwork) or own == batch  # a scale of the user's may say another number
    if count is None or not is_known or own - max(batch, own / 10) <= count <= own * 1.1:
        return ""
    where = "num_data is" if isinstance(model, BayesianNetwork) else "the size of the plate of what it observes is"
    return f"{where} {own:,}, but the loader gives {count:,} examples: the KL has {count / own:.3g} times its weight"


def _trainable(model: Any, guide: FactorizedGuide, x: Batch, y: Tensor) -> Any:
    """The model as a module that knows how much data there are."""
    with running_on(x):
        return trainable(model, guide, x, y)


@torch.no_grad()
def _check(model: Any, guide: FactorizedGuide, x: Batch, y: Tensor) -> BatchCheck:
    """Set the guide up with a first batch; say now, not after the training, what is wrong with data or network."""
    check_inputs(x, "the first batch's inputs")
    if isinstance(model, BayesianNetwork):
        check_device("the first batch's inputs are", x, device_of(model.skeleton))
    check_device("the first batch's targets are", y, tensors_of(x)[0].device)
    with running_on(x), same_statistics(model):
        if guide.prototype_trace is None:
            # A guide starts from what Pyro's store holds under its names, which may be another model's.
            with pyro.get_param_store().scope(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what stands in the way of compression is an error here
                guide(x, y)
        guide_trace = pyro.poutine.trace(guide).get_trace(x, y)  # before labels are trusted
        outputs = pyro.poutine.replay(model, trace=guide_trace)(x, y)
    model.likelihood.check(outputs, y)
    if isinstance(x, Tensor) and x.is_floating_point():
        torch.rand(3, *x.shape[1:], dtype=x.dtype)  # as earlier versions drew: a seed gives what it gave, but for codes
    if guide.obstacle is not None:
        raise UnsupportedNetworkError(guide.obstacle)
    return BatchCheck(model.likelihood, outputs, x)


def _shapes(x: Batch, y: Tensor) -> tuple[Any, ...]:
    """Shapes of a batch, by which a compiled step is chosen."""
    return (*(part.shape for part in tensors_of(x)), y.shape)


def _is_compiled(wanted: bool | None, model: Any, steps: int, x: Batch) -> bool:
    if not isinstance(x, Tensor):
        return False  # a step is traced for one tensor of inputs
    if wanted is None:
        return isinstance(model, BayesianNetwork) and steps > WORTH_COMPILING and has_compiler()
    return wanted


def _compiled(wanted: bool | None, plain: Step, model: Any, guide: FactorizedGuide, *rest: Any) -> Step:
    try:
        return compiled_step(model, guide, *rest)
    except Exception as error:  # whatever the compiler raises
        reason = first_line(error)
        if wanted:
            raise UsageError(f"the training step cannot be compiled: {reason}. Leave compile out") from error
        warnings.warn(f"the training step is not compiled, and slower: {reason}", stacklevel=3)
        return plain


def _averaged(result: StepResult, flat: FlatParameters) -> StepResult:
    """The mean of all processes' steps, their gradients included; where one is not finite, none is."""
    numbers = torch.cat([torch.stack([result.loss, result.log_likelihood, result.error]), result.kl])
    processes.average_([numbers, *(vector.grad for vector in flat.vectors if vector.grad is not None)])
    return StepResult(numbers[0], numbers[1], numbers[3:], numbers[2])


def _by_layer(guide: FactorizedGuide, by_site: list[float]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for site, value in zip(guide.families, by_site, strict=True):
        layer = site.rpartition(".")[0]
        name = layer if layer in guide.layers or layer in guide.shared else site
        sums[name] = sums.get(name, 0.0) + value
    return sums


def weights_of(guide: FactorizedGuide) -> list[int]:
    """How many weights each layer has."""
    return [attrgetter(f"{layer}.weight")(guide.locs).numel() for layer in guide.layers]


def groups_left(guide: FactorizedGuide) -> dict[str, int]:
    """How many groups each layer would keep at its automatic threshold: weights, where those are pruned or coded."""
    left = {}
    for name, layer in summarize(guide).items():
        if layer.codes:
            left[name] = int(layer.codes["weight"].codes.count_nonzero())
        elif layer.statistic is not None:
            left[name] = int(choose_threshold(layer).keeps(layer).sum())
    return left


def _not_finite(result: StepResult, guide: FactorizedGuide) -> list[str]:
    """Parts of the loss that are not finite, by the names of their sites."""
    finite = result.kl.isfinite().tolist()
    parts = [f"KL of site '{name}'" for name, is_finite in zip(guide.families, finite, strict=True) if not is_finite]
    return parts if torch.isfinite(result.log_likelihood) else [*parts, "the log-likelihood"]
