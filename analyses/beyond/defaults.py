"""What a fit comes to where nothing but model, guide and loader is given.

    python analyses/beyond/defaults.py

``fit(model, guide, loader, epochs=…)`` beside the same with ``kl_weight=1``, and ``compress(model, guide)``:
scikit-learn's digits, a table of classes (breast cancers) and one of numbers (diabetes, in deviations of the targets),
each from random weights, and a convolutional network that was trained on the digits before. Beside them the same
network trained by Adam for as many steps. The policy was chosen while looking at seed 0 of digits and cancers. Writes
``analyses/results/defaults.{md,json}``; points that are there are not run again.
"""

import argparse
import copy
import json
import statistics
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer, load_diabetes
from torch import Tensor, nn

import pyro_bc
from pyro_bc.app.datasets import load_dataset
from pyro_bc.data import Batches
from pyro_bc.errors import EmptyNetworkError
from pyro_bc.model.likelihoods import Categorical, Likelihood, Normal
from pyro_bc.posterior.guides import posterior_of
from pyro_bc.posterior.in_place import network_with
from pyro_bc.posterior.judged import held_out_batches, judge
from pyro_bc.posterior.summary import summarize

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS

PRIORS = {"gnj": pyro_bc.GroupNormalJeffreys, "ghs": pyro_bc.GroupHorseshoe, "learned": pyro_bc.LearnedCode}
#: epochs of training before the fit, by problem.
PROBLEMS = {"digits": 0, "cancer": 0, "diabetes": 0, "conv": 15}


@dataclass(frozen=True)
class Problem:
    """A network, what it is trained on, and what is observed."""

    net: nn.Module
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    likelihood: Likelihood


def problem(name: str, seed: int) -> Problem:
    if name in ("digits", "conv"):
        data = load_dataset("digits")
        train_x, test_x = data.train_x, data.test_x
        torch.manual_seed(seed)
        net: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
        if name == "conv":
            train_x, test_x = (F.interpolate(x, (28, 28), mode="bilinear") for x in (train_x, test_x))
            net = nn.Sequential(
                nn.Conv2d(1, 8, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
                nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10),
            )  # fmt: skip
        return Problem(net, train_x, data.train_y, test_x, data.test_y, Categorical())
    is_of_classes = name == "cancer"
    x, y = (
        torch.from_numpy(part) for part in (load_breast_cancer if is_of_classes else load_diabetes)(return_X_y=True)
    )
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    train = len(x) * 7 // 10
    x, y = x[order].float(), y[order] if is_of_classes else y[order].float()
    x = (x - x[:train].mean(0)) / x[:train].std(0)
    if not is_of_classes:
        y = (y - y[:train].mean()) / y[:train].std()
    torch.manual_seed(seed)
    units, outputs = (64, 2) if is_of_classes else (32, 1)
    net = nn.Sequential(
        nn.Linear(x.shape[1], units), nn.ReLU(), nn.Linear(units, units), nn.ReLU(), nn.Linear(units, outputs)
    )
    return Problem(net, x[:train], y[:train], x[train:], y[train:], Categorical() if is_of_classes else Normal())


def trained(net: nn.Module, data: Problem, epochs: int) -> nn.Module:
    """A network after so many epochs of Adam, as anyone would train it."""
    net = copy.deepcopy(net)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(epochs):
        for x, y in Batches(data.train_x, data.train_y, 128):
            optimizer.zero_grad()
            outputs = net(x)
            is_of_numbers = isinstance(data.likelihood, Normal)
            loss = F.mse_loss(outputs.squeeze(-1), y) if is_of_numbers else F.cross_entropy(outputs, y)
            loss.backward()
            optimizer.step()
    return net.eval()


def measured(name: str, prior: str, steps: int, seed: int, is_plain: bool) -> dict[str, Any]:
    data = problem(name, seed)
    test = held_out_batches(data.test_x, data.test_y)
    loader = Batches(data.train_x, data.train_y, 128)
    epochs = -(-steps // len(loader))
    pyro.clear_param_store()
    torch.manual_seed(seed)
    net = trained(data.net, data, PROBLEMS[name])
    dense = trained(data.net, data, PROBLEMS[name] or epochs)
    model = pyro_bc.BayesianNetwork(net, PRIORS[prior](), num_data=len(data.train_x), likelihood=data.likelihood)
    guide = pyro_bc.FactorizedGuide(model)
    start = time.perf_counter()
    options = {"kl_weight": 1.0} if is_plain else {}
    pyro_bc.fit(model, guide, loader, epochs=epochs, seed=seed, progress=False, **options)
    seconds = time.perf_counter() - start
    sites = posterior_of(guide)
    mean = judge(network_with(model, summarize(guide), {}), data.likelihood, test, sites)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            small = pyro_bc.compress(model, guide)
            stored, size = judge(small.network(), data.likelihood, test, sites).error, len(small.to_bytes())
        except EmptyNetworkError:
            stored, size = None, None
    return {
        "problem": name, "prior": prior, "steps": steps, "seed": seed, "is_plain": is_plain, "n": len(data.test_y),
        "dense": judge(dense, data.likelihood, test).error, "mean": mean.error, "stored": stored, "bytes": size,
        "kl_weight": guide.kl_weight, "seconds": round(seconds),
    }  # fmt: skip


def table(points: list[dict]) -> str:
    lines = [
        "# Defaults",
        "",
        "`python analyses/beyond/defaults.py`: test errors, means over seeds (lowest to highest of what is stored), in "
        '%, of diabetes RMSE in deviations of the targets; "empty" where nothing was left to store. Steps at batches '
        "of 128. The convolutional network was trained before, the others start from random weights. One example of a "
        "test set is 0.28 points (digits), 0.58 (cancer).",
        "",
        "| problem | prior | steps | seeds | dense | KL weight 1: mean | stored | bytes | now: KL weight | mean "
        "| stored | bytes |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys((p["problem"], p["prior"], p["steps"]) for p in points):
        own = [p for p in points if (p["problem"], p["prior"], p["steps"]) == key]
        plain, now = ([p for p in own if p["is_plain"] == which] for which in (True, False))
        digits = 3 if key[0] == "diabetes" else 2
        seeds = f"{len(plain)}, {len(now)}"
        dense = f"{statistics.mean(p['dense'] for p in own):.{digits}f}"
        weights = f"{statistics.median(p['kl_weight'] for p in now):.2g}" if now else ""
        cells = [*key[:2], f"{key[2]:,}", seeds, dense, *_cells(plain, digits), weights, *_cells(now, digits)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cells(points: list[dict], digits: int) -> tuple[str, str, str]:
    if not points:
        return "", "", ""
    mean = f"{statistics.mean(p['mean'] for p in points):.{digits}f}"
    stored = [p for p in points if p["stored"] is not None]
    empty = f"{len(points) - len(stored)} empty" if len(stored) < len(points) else ""
    if not stored:
        return mean, empty, ""
    errors = [p["stored"] for p in stored]
    shown = f"{statistics.mean(errors):.{digits}f} ({min(errors):.{digits}f}–{max(errors):.{digits}f})"
    size = f"{round(statistics.mean(p['bytes'] for p in stored)):,}"
    return mean, f"{shown}{', ' if empty else ''}{empty}", size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(PROBLEMS))
    parser.add_argument("--priors", nargs="*", default=list(PRIORS))
    parser.add_argument("--steps", nargs="*", type=int, default=[1000, 3000])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--ways", nargs="*", default=["now", "plain"], help="now, plain (KL weight 1), or both")
    args = parser.parse_args()
    file = RESULTS / "defaults.json"
    points = json.loads(file.read_text()) if file.exists() else []
    known = ("problem", "prior", "steps", "seed", "is_plain")
    for seed in args.seeds:
        for steps in args.steps:
            for name in args.only:
                for prior in args.priors:
                    for way in args.ways:
                        key = (name, prior, steps, seed, way == "plain")
                        if any(tuple(p[field] for field in known) == key for p in points):
                            continue
                        points.append(measured(*key))
                        file.write_text(json.dumps(points, indent=1) + "\n")
                        print(points[-1], flush=True)
    places = {name: at for at, name in enumerate([*PROBLEMS, *PRIORS])}
    points.sort(key=lambda p: (places[p["problem"]], places[p["prior"]], p["steps"], p["is_plain"], p["seed"]))
    file.write_text(json.dumps(points, indent=1) + "\n")
    (RESULTS / "defaults.md").write_text(table(points))
    print(table(points))


if __name__ == "__main__":
    main()
