"""Fits whose groups leave the training once they have gone, and the same fits of all groups to the end.

    OMP_NUM_THREADS=1 python analyses/benchmarks/shrink_while_training.py --data-dir MNIST --runs FOLDER

The recipes of ``pyro-bc run`` on MNIST without their fine-tuning, both from the same dense network and with the same
seed: ``pyro_bc.fit`` with ``shrink=True``, its default, and with ``shrink=False``. Seconds are the processor's, the
compiler's in them, so that other work beside it does not count. At the end, the bound on test data under drawn weights
of the whole guide, and error and bytes of what ``compress`` makes of it. Writes
``analyses/results/shrink_while_training.{md,json}``; fits that are there are not run again.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import pyro
import torch

import pyro_bc
from pyro_bc.app.datasets import load_dataset
from pyro_bc.app.dense import batches_of, dense_network
from pyro_bc.app.metrics import test_error
from pyro_bc.app.own_network import network
from pyro_bc.app.recipes import RECIPES
from pyro_bc.app.settings import PRIORS
from pyro_bc.inference.elbo import elbo_terms
from pyro_bc.inference.history import Epoch

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS

CASES = [("lenet-300-100", "gnj"), ("lenet-300-100", "ghs"), ("lenet-5-caffe", "gnj")]
#: draws of all weights for the bound.
DRAWS = 10


def processor_seconds() -> float:
    """Of this process and of those that it has started, the compiler's among them."""
    return sum(os.times()[:4])


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True, check=False)
    return done.stdout.strip()


def fitted(name: str, prior: str, shrink: bool, seed: int, folder: str | None, runs: Path, epochs: int | None) -> dict:
    plan = RECIPES[name, "mnist", prior]
    data = load_dataset("mnist", folder)
    batches = batches_of(data, plan)
    pyro.set_rng_seed(seed)
    net = network(name)((1, 28, 28), 10)
    file = runs / f"{name}-{prior}-{seed}.safetensors"
    dense = dense_network(
        net, data.likelihood, batches, plan.dense.epochs, plan.dense.learning_rate, file, progress=False
    )
    pyro.clear_param_store()
    model = pyro_bc.BayesianNetwork(dense, PRIORS[prior], num_data=len(data.train_x))
    guide = pyro_bc.FactorizedGuide(model)
    names = ("learning_rate", "log_learning_rate", "kl_weight", "decay")
    own = {field: value for field, value in asdict(plan.fit).items() if field in names and value is not None}
    clock = [processor_seconds()]
    history: list[Epoch] = []

    def note(epoch: Epoch) -> None:
        clock.append(processor_seconds())
        history.append(epoch)

    pyro_bc.fit(
        model, guide, batches, epochs=epochs or plan.fit.epochs, seed=seed, shrink=shrink, after_epoch=note,
        progress=False, **own,
    )  # fmt: skip
    with torch.no_grad():
        torch.manual_seed(0)
        terms = [elbo_terms(model, guide, data.test_x, data.test_y) for _ in range(DRAWS)]
    drawn = -sum(float(one.log_likelihood) for one in terms) / DRAWS / model.num_data
    kl = float(terms[0].total_kl()) / model.num_data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = pyro_bc.compress(model, guide)
    return {
        "network": name, "prior": prior, "shrink": shrink, "seed": seed, "dense_error": test_error(dense, data),
        "epoch_seconds": [after - before for before, after in itertools.pairwise(clock)],
        "weights": [epoch.weights_trained for epoch in history], "seconds": clock[-1] - clock[0],
        "groups": ["-".join(map(str, epoch.groups_left.values())) for epoch in history],
        "loss": [epoch.loss for epoch in history], "kl": kl, "negative_log_likelihood": drawn,
        "kl_weight": history[-1].kl_weight, "error": test_error(small.network(), data),
        "bytes": len(small.to_bytes()), "architecture": list(small.architecture), "commit": commit(),
    }  # fmt: skip


def stages(point: dict) -> list[tuple[int, int, float]]:
    """First epoch, weights and median seconds of an epoch, for as long as the weights stay the same."""
    found, weights, seconds = [], point["weights"], point["epoch_seconds"]
    for first, own in enumerate(weights):
        if first == 0 or own != weights[first - 1]:
            last = next((at for at in range(first, len(weights)) if weights[at] != own), len(weights))
            # the first of them compiles
            found.append((first + 1, own, statistics.median(seconds[first + (last > first + 1) : last])))
    return found


def table(points: list[dict]) -> str:
    lines = [
        "# Shrinking while training",
        "",
        "`python analyses/benchmarks/shrink_while_training.py`, one thread, processor's seconds with those of the "
        "compiler, one seed; the recipes of `pyro-bc run` on MNIST without fine-tuning. Bound: negative log-likelihood "
        f"of the test set under {DRAWS} draws of the whole guide, and the KL times its weight in the fit, in nats an "
        "example. Seconds of an epoch are medians, from the epoch from which on so many weights were trained.",
        "",
        "| network | prior | groups leave | epochs | weights trained (from epoch): seconds of an epoch "
        "| seconds in all | bound | KL | error of the file, % | bytes | architecture | commit |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in points:
        course = "; ".join(f"{weights:,} ({first}): {seconds:.1f}" for first, weights, seconds in stages(one))
        bound = one["negative_log_likelihood"] + one["kl_weight"] * one["kl"]
        lines.append(
            f"| {one['network']} | {one['prior']} | {'yes' if one['shrink'] else 'no'} | {len(one['weights'])} "
            f"| {course} | {one['seconds']:.0f} | {bound:.4f} | {one['kl']:.4f} | {one['error']:.2f} "
            f"| {one['bytes']:,} | {'-'.join(map(str, one['architecture']))} | {one['commit']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder with MNIST's files")
    parser.add_argument("--runs", type=Path, required=True, help="folder for dense networks")
    parser.add_argument("--only", nargs="*", default=[f"{name}/{prior}" for name, prior in CASES])
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.runs.mkdir(parents=True, exist_ok=True)
    file = RESULTS / "shrink_while_training.json"
    points = json.loads(file.read_text()) if file.exists() else []
    for case in args.only:
        name, prior = case.split("/")
        for shrink in (True, False):
            key = {"network": name, "prior": prior, "shrink": shrink, "seed": args.seed}
            if any(all(point[field] == value for field, value in key.items()) for point in points):
                continue
            points.append(fitted(name, prior, shrink, args.seed, args.data_dir, args.runs, args.epochs))
            points.sort(key=lambda one: (CASES.index((one["network"], one["prior"])), one["shrink"]))
            file.write_text(json.dumps(points, indent=1))
            (RESULTS / "shrink_while_training.md").write_text(table(points))


if __name__ == "__main__":
    main()
