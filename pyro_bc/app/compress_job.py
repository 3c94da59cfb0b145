"""The job without a fit: a trained network and inputs in, its curvature as posterior, a small file and a report out.

The folder is that of a run (:mod:`pyro_bc.app.job`), without what belongs to a training. Where there are no targets,
errors are disagreements with the dense network.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ..compression.compress import compress
from ..data.batches import Batches
from ..data.loaders import check_inputs
from ..errors import PyroBCError, UsageError
from ..file import compressed
from ..graph.module import evaluating
from ..graph.read import read_graph
from ..inspection.diagnostics import error_percent
from ..model.likelihoods import Categorical
from ..model.network import BayesianNetwork
from ..posterior.curvature import EXAMPLES
from ..posterior.curvature_guide import CurvatureGuide
from ..priors.standard_normal import StandardNormal
from ..runtime.messages import first_line
from .datasets import Dataset
from .dense import load_weights
from .folder import in_folder
from .metrics import diagnostics_of, export_posterior, figures_of
from .own_data import Examples, load_examples
from .own_network import built
from .report import write_results
from .settings import CompressSettings

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

    :raises PyroBCError: on anything a user can mend; nothing half-written is left.
    """
    if settings.epochs < 0 or settings.batch_size < 1:
        raise UsageError("epochs must be at least 0, and batch_size at least 1")
    examples = load_examples(settings.data, data_dir)
    if settings.epochs and examples.train_y is None:
        raise UsageError(f"'{settings.data}' has no targets, which --epochs {settings.epochs} needs: leave it out")
    for part in (examples.train_x, examples.test_x):
        check_inputs(part, f"'{settings.data}': inputs")
    pyro.set_rng_seed(settings.seed)
    net = built(settings.net, tuple(examples.train_x.shape[1:]), examples.classes)
    if settings.weights is not None:
        load_weights(net, settings.weights)
    elif ":" not in settings.net:
        raise UsageError(f"--weights is needed: a file of trained weights of {settings.net}")
    data = _judged(examples, net)

    def job(folder: Path) -> dict[str, Any]:
        return _compress(settings, net, data, examples, folder, progress, say)

    folder = Path(out)
    was_there = folder.exists()
    try:
        return in_folder(folder, settings, False, say, job)
    except (PyroBCError, KeyboardInterrupt):
        if not was_there and not (folder / "network.pbc").exists():  # nothing in it is of use to anyone
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _judged(examples: Examples, net: nn.Module) -> Dataset:
    """The examples with targets, and whether the network can be judged by them.

    :raises UsageError: where it is no classifier, or cannot be run on the inputs.
    """
    try:
        with torch.no_grad(), evaluating(net):
            outputs = net(examples.train_x[:2])
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = first_line(error)
        raise UsageError(f"the network cannot be run on inputs {tuple(examples.train_x.shape)}: {reason}") from error
    if not isinstance(outputs, Tensor) or outputs.dim() != 2:
        raise UsageError(
            "the command compresses classifiers, whose output is (batch, classes); for others, Python: "
            "pyro_bc.BayesianNetwork(net, likelihood=…), pyro_bc.CurvatureGuide, pyro_bc.compress"
        )
    read_graph(net, examples.train_x[:2])
    train_y, test_y = examples.train_y, examples.test_y
    if train_y is None or test_y is None:
        train_y, test_y = (_predicted(net, x) for x in (examples.train_x, examples.test_x))
    for x, y in ((examples.train_x, train_y), (examples.test_x, test_y)):
        Categorical().check(outputs[:1].expand(len(x), -1), y)
    return Dataset(
        examples.name, examples.train_x, train_y, examples.test_x, test_y, classes=outputs.shape[1], held_out=0
    )


@torch.no_grad()
def _predicted(net: nn.Module, x: Tensor) -> Tensor:
    with evaluating(net):
        return torch.cat([net(part).argmax(1) for part in x.split(_PART)])


def _compress(
    settings: CompressSettings,
    net: nn.Module,
    data: Dataset,
    examples: Examples,
    folder: Path,
    progress: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    started = time.perf_counter()
    dense_error = error_percent(net.eval(), data.test_x, data.test_y)
    say(f"dense network: {sum(p.numel() for p in net.parameters()):,} parameters, error {dense_error:.2f} %")
    order = torch.randperm(len(data.train_x))[:EXAMPLES]
    model = BayesianNetwork(net, StandardNormal(), num_data=len(data.train_x))
    guide = CurvatureGuide(model, data.train_x[order].split(_PART), seed=settings.seed, progress=progress)
    loader = Batches(data.train_x, data.train_y, settings.batch_size) if settings.epochs else None
    small = compress(
        model, guide, nats_per_bit=settings.nats_per_bit, divergence=settings.divergence, epochs=settings.epochs,
        loader=loader, progress=progress,
    )  # fmt: skip
    file_bytes = small.save(folder / "network.pbc")
    decoded = compressed.load(folder / "network.pbc")
    export_posterior(folder / "posterior.nc", model, guide, data, ())
    by_agreement = examples.test_y is None
    measured_on = f"{examples.measured_on}, beside the dense network" if by_agreement else examples.measured_on
    metrics = {
        "net": settings.net,
        "prior": "curvature",
        "data": settings.data,
        "data_name": data.name,
        "measured_on": measured_on,
        "n": len(data.test_x),
        "seed": settings.seed,
        "recipe": {"epochs": settings.epochs, "divergence": settings.divergence, "price": settings.nats_per_bit},
        **figures_of(small, decoded, data, dense_error, file_bytes),
        "precision": "rate",
        "diagnostics": diagnostics_of(model, guide, decoded, data, 0.0, measured_on, folder),
    }
    metrics["seconds"] = round(time.perf_counter() - started, 1)
    return write_results(folder, metrics)
