"""The stages of the main job: the dense network, its teacher, a fit, and a fit of what pruning left.

Each leaves a file in the run's folder, and is skipped, or goes on, where there is one (:mod:`pyro_bc.app.job`).
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ..compression.batch_norm import fold_batch_norm
from ..compression.compress import compress
from ..data.teacher import TaughtBatches
from ..file import compressed
from ..graph.fast import arranged
from ..graph.module import GraphNetwork
from ..graph.read import read_graph
from ..graph.streams import residual_streams
from ..inference.checkpoint import history_of, load_checkpoint
from ..inference.fit import fit
from ..inference.history import Epoch
from ..inference.schedule import Schedule
from ..inference.tensorboard import tensorboard_log
from ..model.guide import FactorizedGuide
from ..model.likelihoods import SoftCategorical
from ..model.network import BayesianNetwork
from ..posterior.judged import held_out_batches
from ..posterior.summary import summarize
from ..priors.base import Prior
from ..priors.shared import ResidualWidth
from ..runtime import processes
from .datasets import Dataset
from .dense import batches_of, dense_network
from .metrics import export_posterior, test_error
from .narrow import narrowed
from .observed import starts_of_sites
from .recipes import Recipe
from .report import progress_pictures
from .settings import PRIORS, Settings, has_codes, prior_of
from .tables import in_words

_SECONDS_BETWEEN_PICTURES = 60
#: examples that are watched, or held out for a target, at least, where that is no more than a fifth of all.
FEW = 1000
# Logs of TensorBoard, by the checkpoint of their fit.
_LOGS = {"checkpoint": "fit", "finetune": "finetune"}
# Epochs of a teacher that is trained where the dense network is given.
_TEACHER_EPOCHS = 20


@dataclass(frozen=True)
class Job:
    """One run: what is done, with what, and where it is written.

    :param widths: outputs of every layer but the last that the fit starts from; empty for those of the dense network.
    :param after_epoch: called with each new epoch of a fit.
    :param log_dir: folder of TensorBoard's logs, of which each fit has one; None for none.
    :param data: as the network takes them.
    :param held: inputs and targets that were split off the training set to judge a target by; None without one.
    """

    settings: Settings
    plan: Recipe
    widths: tuple[int, ...]
    data: Dataset
    out: Path
    resume: bool
    progress: bool
    say: Callable[[str], None]
    after_epoch: Callable[[Epoch], None]
    log_dir: Path | None
    held: tuple[Tensor, Tensor] | None

    @property
    def watched(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets on which compression is watched: held-out ones, or else a spread of the training set.

        The test set is looked at once, at the end.
        """
        if self.held is not None:
            return self.held
        data = self.data
        x, y = (data.test_x, data.test_y) if self.settings.development else (data.train_x, data.train_y)
        some = torch.linspace(0, len(x) - 1, min(len(x), FEW)).long()
        return x[some], y[some]

    @property
    def watched_on(self) -> str:
        """What :attr:`watched` is of."""
        return "training data" if self.held is None and not self.settings.development else "held-out training data"


@dataclass(frozen=True)
class Start:
    """What a fit starts from.

    :param net: the network.
    :param stored_as: the network whose graph the file holds; the same function.
    :param dense: the network to compare with.
    :param collect: batches for new statistics of batch normalisation after pruning, where it is kept.
    """

    net: nn.Module
    stored_as: nn.Module | None
    dense: nn.Module | compressed.CompressedNetwork | None
    collect: Sequence[Tensor] | None


@dataclass(frozen=True)
class Fitted:
    """A fit, and how to compress it."""

    model: BayesianNetwork
    guide: FactorizedGuide
    history: tuple[Epoch, ...]
    compressed: "partial[compressed.CompressedNetwork]"


def dense_stage(job: Job, net: nn.Module) -> tuple[nn.Module, float]:
    """The dense network and its error; ``dense.safetensors``."""
    stage = job.plan.dense
    batches = batches_of(job.data, job.plan)
    dense = dense_network(
        net, job.data.likelihood, batches, stage.epochs or 0, stage.learning_rate or 0, job.out / "dense.safetensors",
        job.progress,
    )  # fmt: skip
    error, metric = test_error(dense, job.data), job.data.likelihood.metric
    job.say(f"dense network: {sum(p.numel() for p in dense.parameters()):,} parameters, {in_words(metric, error)}")
    return dense, error


def teacher_stage(job: Job, teacher: nn.Module, dense: nn.Module, dense_error: float) -> tuple[nn.Module, float]:
    """The network by whose probabilities the fit learns, and its error; ``teacher.safetensors`` where it is another."""
    if job.plan.distil.teacher in (None, job.settings.net):
        return dense, dense_error
    pyro.set_rng_seed(job.settings.seed)  # as if the dense network had just been read back, by a resumed run
    epochs = 0 if job.plan.distil.weights is not None else job.plan.dense.epochs or _TEACHER_EPOCHS
    rate = job.plan.dense.learning_rate or 0
    file = job.out / "teacher.safetensors"
    batches = batches_of(job.data, job.plan)
    taught_by = dense_network(teacher, job.data.likelihood, batches, epochs, rate, file, job.progress)
    error = test_error(taught_by, job.data)
    job.say(f"teacher, {job.plan.distil.teacher}: {in_words(job.data.likelihood.metric, error)}")
    return taught_by, error


def start_of(job: Job, dense: nn.Module, whole: Any) -> Start:
    """The network that the fit starts from: the dense one, batch normalisation folded or kept, or a narrower one."""
    pyro.set_rng_seed(job.settings.seed)
    device = job.data.train_x.device
    collect: Sequence[Tensor] | None = None
    if job.widths:
        graph = narrowed(whole, job.widths)
    else:
        # A graph holds the matrices of recurrent cells, and no module that has a posterior.
        is_recurrent = any(isinstance(module, nn.RNNBase) for module in dense.modules())
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in dense.modules()):
            if job.settings.batch_norm == "keep" or is_recurrent:
                dense.train()
                collect = job.data.train_x[:2000].split(job.plan.fit.batch_size or 1)
            else:
                dense = fold_batch_norm(dense, job.data.train_x[:2])
        if collect is not None or is_recurrent or not has_codes(job.settings):
            return Start(dense, None, None, collect)
        graph = read_graph(dense, job.data.train_x[:2])
    net = GraphNetwork(arranged(graph.nodes), graph.tensors, graph.buffers).to(device)
    stored_as = GraphNetwork(graph.nodes, graph.tensors, graph.buffers)
    return Start(net, stored_as, dense if job.widths else None, None)


def fit_stage(job: Job, start: Start, taught_by: nn.Module, checkpoint: str, plan: Recipe) -> Fitted:
    """A network's posterior; ``checkpoint`` (or ``finetune``), from which its training continues, and its export."""
    pyro.clear_param_store()
    file = job.out / checkpoint
    share = plan.distil.share or 0.0
    likelihood = SoftCategorical() if share else job.data.likelihood
    prior = prior_of(job.settings) if checkpoint == "checkpoint" else _prior_of_rest(job, start.net)
    model = BayesianNetwork(start.net, prior, num_data=len(job.data.train_x), likelihood=likelihood)
    guide = FactorizedGuide(model, init_loc_fn=starts_of_sites)
    resume = job.resume and processes.from_first(file.exists)
    course = processes.from_first(lambda: history_of(file, load_checkpoint(file)[1]) if resume else [])
    drawn = time.monotonic()

    def refresh(epoch: Epoch) -> None:
        nonlocal drawn
        course.append(epoch)
        job.after_epoch(epoch)
        if processes.rank() == 0 and time.monotonic() > drawn + _SECONDS_BETWEEN_PICTURES:
            progress_pictures(job.out / "plots", course, summarize(guide))
            drawn = time.monotonic()

    x, y = job.watched
    held_out = held_out_batches(x, nn.functional.one_hot(y, job.data.classes).float() if share else y)
    log = [] if job.log_dir is None else [tensorboard_log(job.log_dir / _LOGS[checkpoint])]
    result = fit(
        model, guide, _taught(job, taught_by, plan), epochs=plan.fit.epochs, schedule=_schedule(plan),
        seed=job.settings.seed, checkpoint=file, resume=resume, progress=job.progress,
        after_epoch=[refresh, *log], target=job.settings.target, held_out=held_out,
        precision=plan.fit.arithmetic or "float32",
    )  # fmt: skip
    model.likelihood = job.data.likelihood  # whoever taught it, it is judged by labels
    if start.stored_as is not None:
        _take_trained_(start.stored_as, model.skeleton)
    name = "posterior.nc" if checkpoint == "checkpoint" else f"{checkpoint}.nc"
    processes.from_first(lambda: export_posterior(job.out / name, model, guide, job.data, result.history))
    thresholds = job.settings.thresholds if checkpoint == "checkpoint" else None
    how = partial(
        compress, model, guide, thresholds=thresholds, net=start.stored_as, dense=start.dense,
        batch_norm_loader=start.collect,
    )  # fmt: skip
    return Fitted(model, guide, result.history, how)


def _take_trained_(net: nn.Module, trained: nn.Module) -> None:
    """What has no posterior as the fit left it, under the same names."""
    there = trained.state_dict()
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if name in there and there[name].shape == value.shape:
                value.copy_(there[name])


def _prior_of_rest(job: Job, net: nn.Module) -> Prior | ResidualWidth:
    """The run's prior for what pruning left, which may have no channels that cross layers any more."""
    prior = prior_of(job.settings)
    if not isinstance(prior, ResidualWidth):
        return prior
    streams = residual_streams(read_graph(net, job.data.train_x[:2]))
    return prior if any(not stream.obstacle for stream in streams) else PRIORS[job.settings.prior]


def _taught(job: Job, taught_by: nn.Module, plan: Recipe) -> Iterable[tuple[Tensor, Tensor]]:
    """Batches with labels, or with a teacher's probabilities."""
    batches = batches_of(job.data, plan)
    if not plan.distil.share:
        return batches
    assert isinstance(job.data.train_x, Tensor)
    return TaughtBatches(
        job.data.train_x, job.data.train_y, taught_by, classes=job.data.classes, share=plan.distil.share,
        augment=batches.augment, passes=plan.distil.passes or 1, batch_size=plan.fit.batch_size or 1,
    )  # fmt: skip


def _schedule(plan: Recipe) -> Schedule:
    given = plan.fit
    names = ("learning_rate", "log_learning_rate", "code_learning_rate", "kl_weight", "decay", "rounding")
    values = {name: getattr(given, name) for name in names}
    return Schedule(**{name: value for name, value in values.items() if value is not None})


def finetune_stage(job: Job, first: compressed.CompressedNetwork, taught_by: nn.Module) -> Fitted:
    """The posterior of what pruning left; ``finetune`` and ``finetune.nc``."""
    own = job.plan.finetune
    job.say(f"pruned to {'-'.join(map(str, first.architecture))}; training on for {own.epochs} epochs")
    fit_again = replace(job.plan.fit, epochs=own.epochs, kl_weight=own.kl_weight, shift=own.shift)
    net = first.network().to(job.data.train_x.device)
    return fit_stage(job, Start(net, None, first, None), taught_by, "finetune", replace(job.plan, fit=fit_again))
