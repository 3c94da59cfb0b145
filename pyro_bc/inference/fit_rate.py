r"""The training loop of a :class:`~pyro_bc.RateNetwork`: rate–distortion, then the quantiser in the loop.

First the network computes with draws from the cells, while the KL is warmed up; then with rounded codes, in steps that
are fixed to powers of two. The learning rate falls as a cosine over all of it, so that codes come to rest.
"""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.poutine.util import site_is_subsample
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from ..errors import CheckpointError, UsageError
from ..priors.learned_code import CellGuide, RateNetwork
from ..runtime.devices import check_device, device_of
from ..runtime.random_state import same_random_state
from .checkpoint import CHECKPOINT_FORMAT, restore_fit, save_fit
from .checks import BatchCheck, check_finite, first_batch, loader_steps, not_finite_error, running_on
from .history import Epoch, FitResult

# Learning rates of steps and of the prior, as parts of that of the codes.
_OF_STEPS, _OF_PRIOR = 0.2, 0.5

# Warm-up of the learning rate, and where its cosine ends, as parts of all.
_RISE, _END = 0.02, 0.002

_SECOND_MOMENT = 0.99


def fit_rate(
    model: RateNetwork,
    guide: CellGuide,
    train_loader: Iterable[tuple[Tensor, Tensor]],
    *,
    epochs: int,
    kl_weight: float = 1.0,
    learning_rate: float = 0.04,
    warmup: float = 0.2,
    rounding: float = 0.5,
    seed: int | None = 0,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    after_epoch: Callable[[Epoch], None] | None = None,
) -> FitResult:
    r"""Maximise the ELBO with Adam; codes in the guide, steps and prior in the model hold the result.

    :param model: the network and its prior.
    :param guide: its guide.
    :param train_loader: iterable of ``(x, y)`` batches with a length, shuffled by torch's global generator; targets as
        the model's likelihood takes them.
    :param epochs: passes over the loader.
    :param kl_weight: :math:`\beta`, nats of likelihood that a nat of the file is worth: more makes smaller files.
    :param learning_rate: Adam's, of the codes, in steps of the quantiser.
    :param warmup: part of the training over which the KL's weight rises from 0.
    :param rounding: part of the training, at its end, in which the network computes with rounded codes.
    :param seed: seed of torch's global generator, None to leave it as it is.
    :param checkpoint: file to write after each epoch.
    :param resume: continue from ``checkpoint``; the result equals that of an uninterrupted run.
    :param after_epoch: called with each new :class:`~pyro_bc.Epoch`: ``kl`` is the rate in nats per training example,
        ``error`` that of what the network computed with, ``kl_by_layer`` the code length of the rounded codes, and
        ``groups_left`` how many of those are not zero, by parameter.
    :raises UsageError: on an argument out of range, an empty loader, or targets that do not fit the likelihood.
    :raises NonFiniteLossError: where the loss or a parameter is NaN or infinite; names sites and layer. The checkpoint
        of the last good epoch stays.
    :raises CheckpointError: where the checkpoint exists and ``resume`` is off, or belongs to another run.
    """
    steps = _validate(train_loader, epochs, kl_weight, learning_rate, warmup, rounding)
    settings = {
        "format": CHECKPOINT_FORMAT,
        "objective": "rate", "epochs": epochs, "steps": steps, "kl_weight": kl_weight, "learning_rate": learning_rate,
        "warmup": warmup, "rounding": rounding, "seed": seed,
        "sites": {name: list(code.shape) for name, code in zip(guide.names, guide.codes, strict=True)},
    }  # fmt: skip
    checkpoint = None if checkpoint is None else Path(checkpoint)
    if checkpoint is not None and not resume and checkpoint.exists():
        raise CheckpointError(f"'{checkpoint}' exists; resume it, or choose another path")
    if seed is not None:
        pyro.set_rng_seed(seed)
    x, y = first_batch(train_loader)
    check_device("the first batch's inputs are", x, device_of(guide))
    with torch.no_grad(), same_random_state(x.device):
        with running_on(x):
            outputs = model.net(x)
        check_batch = BatchCheck(model.likelihood, outputs, x)
        check_batch(x, y, 1)
        trace = poutine.trace(model.forward).get_trace(x, y)
    unguided = [name for name, _ in _latent_sites(trace) if name.removeprefix("net.") not in guide.names]
    if unguided:
        raise UsageError(
            f"the likelihood {type(model.likelihood).__name__} has a site '{unguided[0]}', which CellGuide does not "
            f"cover; take a likelihood without, or fit with SVI and a guide that does"
        )
    optimizer = _optimizer(model, guide, learning_rate)
    history = restore_fit(checkpoint, model, guide, optimizer, settings) if resume and checkpoint is not None else []
    rounded_from = epochs - math.floor(rounding * epochs)
    if len(history) > rounded_from:
        model.log_steps.requires_grad_(False)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[state]}"), disable=not progress,
    )  # fmt: skip
    elbo = _Elbo()
    with nullcontext() if bar.disable else bar, pyro.validation_enabled(False):
        task = bar.add_task("epoch", total=epochs, completed=len(history), state="")
        first_epoch = len(history)
        for epoch in range(first_epoch, epochs):
            start = time.perf_counter()
            if epoch == rounded_from:
                model.snap_steps_(guide)
            sums = torch.zeros(3, device=x.device)
            for step, (x, y) in enumerate(train_loader):
                if epoch == first_epoch:
                    check_batch(x, y, step + 1)
                part = (epoch + step / steps) / epochs
                weight = kl_weight * (min(1.0, part / warmup) if warmup else 1.0)
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * _rate_at(part)
                codes = guide.rounded() if epoch >= rounded_from else None
                # Their forward methods, since calling a PyroModule registers every parameter anew.
                loss = elbo.differentiable_loss(model.forward, guide.forward, x, y, weight, codes) / model.num_data
                if not math.isfinite(loss.item()):
                    raise not_finite_error(epoch, step, elbo.not_finite(), model, guide, x, y)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                sums += elbo.parts(model, y)
            check_finite(epoch, model, guide)
            record = _record(model, guide, epoch, (sums / steps).tolist(), weight, time.perf_counter() - start)
            history.append(record)
            if checkpoint is not None:
                save_fit(checkpoint, model, guide, optimizer, settings, history)
            bar.update(task, advance=1, state=f"loss {record.loss:.4f}  {_bytes(model, record):,.0f} bytes")
            if after_epoch is not None:
                after_epoch(record)
    if rounded_from == epochs:
        model.snap_steps_(guide)
    return FitResult(tuple(history))


def _rate_at(part: float) -> float:
    """Learning rate at a part of the training, as a part of its largest."""
    return min(1.0, part / _RISE) * (_END + (1 - _END) * 0.5 * (1 + math.cos(math.pi * part)))


def _optimizer(model: RateNetwork, guide: CellGuide, learning_rate: float) -> Any:
    prior = [*model.log_scales, *model.logits]
    parts = ((list(guide.codes), 1.0), ([model.log_steps], _OF_STEPS), (prior, _OF_PRIOR))
    groups = [
        {"params": params, "lr": part * learning_rate, "initial_lr": part * learning_rate} for params, part in parts
    ]
    return torch.optim.Adam(groups, betas=(0.9, _SECOND_MOMENT), fused=True)


def _bytes(model: RateNetwork, record: Epoch) -> float:
    return sum(record.kl_by_layer.values()) * model.num_data / math.log(2) / 8


def code_bytes(model: RateNetwork, guide: CellGuide) -> float:
    """Bytes that the rounded codes take under the learned prior, header not included."""
    return sum(_nats(model, guide).values()) / math.log(2) / 8


@torch.no_grad()
def _nats(model: RateNetwork, guide: CellGuide) -> dict[str, float]:
    pairs = zip(guide.names, guide.codes, strict=True)
    return {name: -float(model.prior(name).log_prob(code.round()).sum()) for name, code in pairs}


def _record(
    model: RateNetwork, guide: CellGuide, epoch: int, means: list[float], weight: float, seconds: float
) -> Epoch:
    """One epoch's figures, from the means over its steps of negative log-likelihood, KL, and error."""
    negative_log_likelihood, kl, error = means
    pairs = list(zip(guide.names, guide.codes, strict=True))
    return Epoch(
        epoch=epoch + 1,
        loss=negative_log_likelihood + kl,
        negative_log_likelihood=negative_log_likelihood,
        kl=kl,
        kl_weight=weight,
        error=model.likelihood.summary(error),
        groups_left={name: int(code.round().count_nonzero()) for name, code in pairs},
        seconds=seconds,
        kl_by_layer={name: nats / model.num_data for name, nats in _nats(model, guide).items()},
    )


def _latent_sites(trace: Any) -> list[tuple[str, Any]]:
    return [(name, site) for name, site in trace.iter_stochastic_nodes() if not site_is_subsample(site)]


class _Elbo(Trace_ELBO):
    """Pyro's ELBO, which remembers what its last estimate was made of."""

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        traces = super()._get_trace(model, guide, args, kwargs)
        self.last = traces[0]
        return traces

    def not_finite(self) -> list[str]:
        """Parts of the last estimate that are not finite, by their sites."""
        return [f"log-density of site '{name}'" for name, site in self.last.nodes.items()
                if site["type"] == "sample" and not torch.isfinite(torch.as_tensor(site["log_prob_sum"]))]  # fmt: skip

    def parts(self, model: RateNetwork, y: Tensor) -> Tensor:
        """Negative log-likelihood and KL, without its weight, in nats per training example, and the batch's error."""
        sites = [site for _, site in _latent_sites(self.last)]
        kl = -sum(site["log_prob_sum"].detach() / site["scale"] for site in sites) / model.num_data
        log_likelihood = self.last.nodes["y"]["log_prob_sum"].detach() / model.num_data
        error = model.likelihood.error(self.last.nodes["_RETURN"]["value"].detach(), y).mean()
        return torch.stack([-log_likelihood, kl, error])


def _validate(loader: Any, epochs: int, kl_weight: float, learning_rate: float, warmup: float, rounding: float) -> int:
    if not (isinstance(epochs, int) and epochs > 0):
        raise UsageError(f"epochs must be a positive integer, not {epochs!r}")
    if not (math.isfinite(learning_rate) and learning_rate > 0 and 0 <= kl_weight < math.inf):
        raise UsageError(
            f"learning_rate must be positive and kl_weight 0 or more, both finite, not {learning_rate} and {kl_weight}"
        )
    if not (0 <= warmup <= 1 and 0 <= rounding <= 1):
        raise UsageError(f"warmup and rounding are parts of the training, 0 to 1, not {warmup} and {rounding}")
    return loader_steps(loader)
