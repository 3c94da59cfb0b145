"""The job without a fit: a trained network and inputs in, its curvature as posterior, a small file and a report out.

The folder is that of a run (:mod:`pyro_bc.app.job`), without what belongs to a training. Where there are no targets,
errors are disagreements with the dense network.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ..compression.compress import compress
from ..data.batches import Batches
from ..data.streamed import Inputs
from ..errors import PyroBCError, UsageError
from ..file import compressed
from ..graph.module import evaluating
from ..model.likelihoods import Likelihood
from ..model.network import BayesianNetwork
from ..posterior.curvature import EXAMPLES
from ..posterior.curvature_guide import CurvatureGuide
from ..priors.standard_normal import StandardNormal
from ..runtime import processes
from .datasets import Dataset
from .dense import load_weights
from .folder import in_folder
from .metrics import diagnostics_of, export_posterior, figures_of, inputs_of, sensitivity_told, test_error
from .observed import check_targets, said_by, scaled_to
from .own_data import load_data
from .own_network import is_own, network
from .pairing import check_outputs, paired
from .report import write_results
from .settings import CompressSettings
from .tables import BESIDE_DENSE, in_words, inputs_in_words

# Inputs of one pass through the network.
_PART = 100


def compress_trained(
    settings: CompressSettings,
    out: str | Path,
    data_dir: str | None = None,
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Compress a trained network into a new folder, and return its metrics.

    On several processes each looks at its share of the inputs; the first writes, and the others return nothing.

    :raises PyroBCError: on anything a user can mend; nothing half-written is left.
    """
    if settings.epochs < 0 or settings.batch_size < 1:
        raise UsageError("epochs must be at least 0, and batch_size at least 1")
    build = network(settings.net)
    data = load_data(
        settings.data, data_dir, likelihood=settings.likelihood, target=settings.target,
        picture_size=settings.picture_size,
    )  # fmt: skip
    if settings.epochs and not data.has_targets:
        raise UsageError(f"'{settings.data}' has no targets, which --epochs {settings.epochs} needs: leave it out")
    pyro.set_rng_seed(settings.seed)
    net = build(data.picture_shape, data.classes)
    if settings.weights is not None:
        net = load_weights(net, settings.weights)
    elif not is_own(settings.net):
        raise UsageError(f"--weights is needed: a file of trained weights of {settings.net}")
    data = paired(net, data)
    check_outputs(net, data)
    by_agreement = not data.has_targets
    if by_agreement:
        data = _judged_by(net, data)

    def job(folder: Path) -> dict[str, Any]:
        return _compress(settings, net, data, by_agreement, folder, progress, say)

    folder = Path(out)
    was_there = folder.exists()
    try:
        return in_folder(folder, settings, False, say, job)
    except (PyroBCError, KeyboardInterrupt):
        if not was_there and not (folder / "network.pbc").exists():  # nothing in it is of use to anyone
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _judged_by(net: nn.Module, data: Dataset) -> Dataset:
    """Data whose targets are what the network itself says.

    :raises UsageError: where its outputs say none.
    """
    train_y, test_y = (_said(net, data.likelihood, x) for x in (data.train_x, data.test_x))
    likelihood = scaled_to(data.likelihood, train_y)
    with torch.no_grad(), evaluating(net):
        check_targets(likelihood, net(data.train_x[:2]), train_y[:2])
    return replace(data, train_y=train_y, test_y=test_y, likelihood=likelihood)


@torch.no_grad()
def _said(net: nn.Module, likelihood: Likelihood, x: Inputs) -> Tensor:
    with evaluating(net):
        return torch.cat([said_by(likelihood, net(part)) for part in x.split(_PART)])


def _compress(
    settings: CompressSettings,
    net: nn.Module,
    data: Dataset,
    by_agreement: bool,
    folder: Path,
    progress: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    started = time.perf_counter()
    inputs = inputs_of(data, net, 0)
    if inputs:
        say(inputs_in_words(inputs))
    dense_error = test_error(net.eval(), data)
    parameters = sum(p.numel() for p in net.parameters())
    error = "" if by_agreement else f", {in_words(data.likelihood.metric, dense_error)}"
    say(f"dense network: {parameters:,} parameters{error}")
    order = processes.shuffled(len(data.train_x))[: EXAMPLES // processes.count()]
    model = BayesianNetwork(net, StandardNormal(), num_data=len(data.train_x), likelihood=data.likelihood)
    some = data.train_x.index_select(0, order).split(_PART)
    guide = CurvatureGuide(model, some, seed=settings.seed, progress=progress)
    loader = Batches(data.train_x, data.train_y, settings.batch_size) if settings.epochs else None
    small = compress(
        model, guide, nats_per_bit=settings.nats_per_bit, divergence=settings.divergence, epochs=settings.epochs,
        loader=loader, progress=progress,
    )  # fmt: skip
    if not processes.leave():
        return {}  # what is left is the work of one
    file_bytes = small.save(folder / "network.pbc")
    decoded = compressed.load(folder / "network.pbc")
    export_posterior(folder / "posterior.nc", model, guide, data, ())
    measured_on = f"{data.test_part}{BESIDE_DENSE}" if by_agreement else data.test_part
    metrics = {
        "net": settings.net,
        "prior": "curvature",
        "data": settings.data,
        "data_name": data.name,
        "measured_on": measured_on,
        "n": len(data.test_x),
        "seed": settings.seed,
        "recipe": {"epochs": settings.epochs, "divergence": settings.divergence, "price": settings.nats_per_bit},
        **figures_of(small, decoded, data, dense_error, file_bytes, guide),
        **inputs,
        "precision": "rate",
        **sensitivity_told(model, guide, (data.train_x, data.train_y), "training data"),
        "diagnostics": diagnostics_of(model, guide, decoded, data, 0.0, measured_on, folder),
    }
    metrics["seconds"] = round(time.perf_counter() - started, 1)
    return write_results(folder, metrics)
