"""The job under the objective ``rate``: a teacher, a narrow network, codes whose KL is the file's size.

Everything goes into one folder, from which an interrupted run continues:

=======================  =======================================================================
``run.json``             the settings, written first
``dense.safetensors``    the dense network trained in this run
``teacher.safetensors``  the teacher, where it is another network
``checkpoint``           guide, model, optimiser and random state after the last whole epoch
``network.pbc``          the compressed network
``posterior.nc``         the posterior of the codes for ArviZ
``report.md``            the figures as a table
``plots``                pictures
``report.html``          figures and pictures on one page
``metrics.json``         the figures, written last
``.lock``                held by the process that works in the folder
=======================  =======================================================================
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import nn

from ..compression.batch_norm import fold_batch_norm
from ..compression.codes import compress_codes
from ..data.augment import Affine
from ..data.batches import Batches
from ..data.teacher import TaughtBatches
from ..errors import UsageError
from ..file import compressed
from ..graph.fast import arranged
from ..graph.module import GraphNetwork
from ..graph.nodes import Graph
from ..graph.read import read_graph
from ..inference.fit_rate import fit_rate
from ..inference.history import Epoch
from ..inspection.codes_arviz import save_codes
from ..inspection.diagnostics import error_percent
from ..model.likelihoods import SoftCategorical
from ..priors.learned_code import CellGuide, RateNetwork
from ..quantisation.grids import spatial_grids
from ..runtime.files import write_atomically
from .datasets import Dataset
from .dense import chosen_data, dense_network, load_weights
from .folder import in_folder
from .narrow import narrowed
from .networks import network
from .recipes import RateRecipe, rate_recipe
from .report import write_rate_report
from .settings import Settings, check_objective
from .tables import rate_markdown

#: the prior's name in settings and tables.
LEARNED = "learned"

# Of a teacher that is trained where the dense network is given.
_TEACHER_EPOCHS = 20


def run_rate(
    settings: Settings,
    out: str | Path,
    data_dir: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
    after_epoch: Callable[[Epoch], None] = lambda epoch: None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Run the whole job into a folder and return its metrics.

    :param device: where the networks and the data are; a run may be resumed on another one.
    :raises PyroBCError: on anything a user can mend; nothing half-written is left.
    """
    plan = _validated(settings)
    data = chosen_data(settings, data_dir).to(device)
    pyro.set_rng_seed(settings.seed)
    net = network(settings.net)(data.picture_shape, data.classes).to(device)
    if settings.pretrained is not None:
        load_weights(net, settings.pretrained)
    taught_by = net
    if plan.teacher not in (None, settings.net):
        taught_by = network(str(plan.teacher))(data.picture_shape, data.classes).to(device)
        if settings.teacher_weights is not None:
            load_weights(taught_by, settings.teacher_weights)
    widths = _widths(settings, plan)
    plan = replace(plan, widths="-".join(map(str, widths)) or None)
    whole = read_graph(net, data.train_x[:2])
    if widths:
        narrowed(whole, widths)  # widths that do not fit are said before anything is written

    def job(folder: Path) -> dict[str, Any]:
        return _job(settings, plan, net, taught_by, widths, whole, data, folder, resume, progress, say, after_epoch)

    return in_folder(Path(out), settings, resume, say, job)


def _job(
    settings: Settings,
    plan: RateRecipe,
    net: nn.Module,
    taught_by: nn.Module,
    widths: tuple[int, ...],
    whole: Graph,
    data: Dataset,
    out: Path,
    resume: bool,
    progress: bool,
    say: Callable[[str], None],
    after_epoch: Callable[[Epoch], None],
) -> dict[str, Any]:
    """What :func:`run_rate` does in a folder of its own."""
    started = time.perf_counter()
    epochs_here: list[Epoch] = []

    def after(epoch: Epoch) -> None:
        epochs_here.append(epoch)
        after_epoch(epoch)

    affine = Affine.of_strength(plan.affine) if plan.affine else None
    batches = Batches(data.train_x, data.train_y, plan.batch_size, augment=affine)
    pretrain = plan.pretrain_epochs, plan.pretrain_learning_rate
    dense = dense_network(net, batches, *pretrain, out / "dense.safetensors", progress)
    dense_error = error_percent(dense, data.test_x, data.test_y)
    say(f"dense network: {sum(p.numel() for p in dense.parameters()):,} parameters, error {dense_error:.2f} %")
    teacher, teacher_error = dense, dense_error
    if taught_by is not net:
        pyro.set_rng_seed(settings.seed)  # as if the dense network had just been read back, by a resumed run
        epochs = 0 if settings.teacher_weights is not None else plan.pretrain_epochs or _TEACHER_EPOCHS
        teacher = dense_network(
            taught_by, batches, epochs, plan.pretrain_learning_rate, out / "teacher.safetensors", progress
        )
        teacher_error = error_percent(teacher, data.test_x, data.test_y)
        say(f"teacher, {plan.teacher}: error {teacher_error:.2f} %")
    pyro.set_rng_seed(settings.seed)
    if not widths:
        graph = read_graph(fold_batch_norm(dense, data.train_x[:2]), data.train_x[:2])
        dense_shapes, dense_parameters = None, sum(p.numel() for p in dense.parameters())
    else:
        graph, dense_shapes, dense_parameters = narrowed(whole, widths)
    model, guide, history = _fit(graph, teacher, data, affine, plan, settings.seed, out, resume, progress, after)
    small = compress_codes(model, guide, graph, dense_shapes=dense_shapes, dense_parameters=dense_parameters)
    small.save(out / "network.pbc")
    decoded = compressed.load(out / "network.pbc").to(data.test_x.device)
    before_resume = sum(epoch.seconds for epoch in history) - sum(epoch.seconds for epoch in epochs_here)
    file_bytes = (out / "network.pbc").stat().st_size
    metrics = {
        "net": settings.net,
        "prior": LEARNED,
        "objective": "rate",
        "data": settings.data,
        "data_name": data.name,
        "measured_on": "held-out training data" if settings.development else "test set",
        "n": len(data.test_x),
        "seed": settings.seed,
        "recipe": asdict(plan),
        "dense": {"error_percent": dense_error, "parameters": dense_parameters},
        "teacher": {"net": plan.teacher or settings.net, "error_percent": teacher_error},
        "compressed": {
            "error_percent": error_percent(decoded, data.test_x, data.test_y),
            "negative_log_likelihood": _loss(decoded, data),
        },
        "train_error_percent": error_percent(decoded, data.train_x[:10000], data.train_y[:10000]),
        "started_from": list(widths),
        "architecture": list(small.architecture),
        "bits": list(small.bits),
        "compression": {name: round(value, 3) for name, value in asdict(small.compression(file_bytes)).items()},
        "file_bytes": file_bytes,
        "code_nats": sum(history[-1].kl_by_layer.values()) * model.num_data,
        "training_seconds": round(sum(epoch.seconds for epoch in history), 1),
        "seconds": round(time.perf_counter() - started + before_resume, 1),
    }
    save_codes(out / "posterior.nc", model, guide, history=history)
    write_atomically(out / "report.md", rate_markdown(metrics).encode())
    write_rate_report(out, metrics)
    write_atomically(out / "metrics.json", (json.dumps(metrics, indent=2, allow_nan=False) + "\n").encode())
    return metrics


def _validated(settings: Settings) -> RateRecipe:
    check_objective(settings, "rate")
    if settings.prior != LEARNED:
        raise UsageError(f"the objective 'rate' learns its prior; leave out the prior '{settings.prior}'")
    if settings.widths is not None and settings.widths_from is not None:
        raise UsageError("give widths, or a file to take them from, not both")
    plan = rate_recipe(settings)
    if settings.teacher_weights is not None and plan.teacher in (None, settings.net):
        raise UsageError("teacher_weights are those of another network than the dense one: name it with teacher")
    if plan.epochs < 1 or plan.pretrain_epochs < 0 or plan.batch_size < 2 or plan.passes < 1:
        raise UsageError("epochs and passes must be at least 1, pretrain_epochs at least 0, batch_size at least 2")
    if not all(0 < rate < math.inf for rate in (plan.learning_rate, plan.pretrain_learning_rate)):
        raise UsageError("learning rates must be positive and finite")
    if not (0 <= plan.kl_weight < math.inf and 0 <= plan.affine < math.inf):
        raise UsageError("kl_weight and affine must be 0 or more, and finite")
    if not (0 <= plan.rounding <= 1 and 0 <= plan.teacher_share <= 1):
        raise UsageError("rounding and teacher_share lie between 0 and 1")
    if plan.teacher is not None:
        network(plan.teacher)
    return plan


def _widths(settings: Settings, plan: RateRecipe) -> tuple[int, ...]:
    """Outputs of every layer but the last at the start; empty for all that the network has."""
    if settings.widths_from is not None:
        return tuple(len(layer.weight.codes) for layer in compressed.read(settings.widths_from).layers[:-1])
    if not plan.widths:
        return ()
    try:
        return tuple(int(width) for width in plan.widths.split("-"))
    except ValueError:
        raise UsageError(f"widths are numbers with hyphens between, as 8-12-32, not '{plan.widths}'") from None


def _fit(
    graph: Graph,
    teacher: nn.Module,
    data: Dataset,
    affine: Affine | None,
    plan: RateRecipe,
    seed: int,
    out: Path,
    resume: bool,
    progress: bool,
    after_epoch: Callable[[Epoch], None],
) -> tuple[RateNetwork, CellGuide, tuple[Epoch, ...]]:
    batches = TaughtBatches(
        data.train_x, data.train_y, teacher if plan.teacher_share else None, classes=data.classes,
        share=plan.teacher_share, augment=affine, passes=plan.passes, batch_size=plan.batch_size,
    )  # fmt: skip
    net = GraphNetwork(arranged(graph.nodes), graph.tensors, graph.buffers).to(data.train_x.device)
    model = RateNetwork(net, num_data=len(data.train_x), grids=spatial_grids(graph), likelihood=SoftCategorical())
    guide = CellGuide(model)
    checkpoint = out / "checkpoint"
    result = fit_rate(
        model, guide, batches, epochs=plan.epochs, kl_weight=plan.kl_weight, learning_rate=plan.learning_rate,
        rounding=plan.rounding, seed=seed, checkpoint=checkpoint, resume=resume and checkpoint.exists(),
        progress=progress, after_epoch=after_epoch,
    )  # fmt: skip
    return model, guide, result.history


@torch.no_grad()
def _loss(net: nn.Module, data: Dataset) -> float:
    """Mean negative log-likelihood of the labels, in nats."""
    losses = [
        nn.functional.cross_entropy(net(x), y, reduction="sum")
        for x, y in zip(data.test_x.split(1000), data.test_y.split(1000), strict=True)
    ]
    return float(sum(losses)) / len(data.test_x)
