"""Error against bytes and against multiplications: ours beside the best plain alternatives, at equal epochs.

    python analyses/beyond/curves.py --data-dir ../shared/data --only lenet-300-100 --seeds 0 1 2

``torch-pruning`` and the table of diamonds, from plotnine, are in packages of these names (``--no-deps``).

Every line starts from the same random network, passes as often over the same batches of training data without a
teacher and without augmentation, and ends with the same number of epochs in which the network computes with rounded
weights. What it comes to is stored by the same pruning of units and the same coder, and every byte of the file counts.

=================  ===================================================================================================
``gnj``, ``ghs``   ours, the paper's own form: normal weights under normal-Jeffreys or horseshoe scales
``gnj+svd`` …      ours, log-uniform weights under these scales
``svd``            Sparse VD, the predecessor that the paper compares with
``learned`` …      ours, integer codes under a learned prior, alone and under scales
``target ghs`` …   ours, with one number: a size; pretrained for a quarter of the epochs, and everything else found
``curvature``      ours, of the network trained without priors: codes at the price of its curvature
``global``         gradual magnitude pruning (Zhu and Gupta 2017, 1710.01878: cubic in time) by weights beside their
                   layer's spread, then uniform steps trained straight through
``layers``         the same with as many zeros in every layer
``kmeans``         the weights of ``global`` in shared values (Han et al. 2016, 1510.00149), which are trained
``lasso``          group lasso (Wen et al. 2016, 1608.03665) by a proximal step, then uniform steps
``torch-pruning``  units by the group-norm pruner of that library (Fang et al. 2023, 2301.12900), then uniform steps
``bmrs``           noise of units pruned by their evidence (Wright et al. 2024), written anew; then uniform steps
``spam``           single weights by precision and square, prior precisions from the evidence of a diagonal Laplace
                   posterior (Dhahri et al. 2024), written anew; then uniform steps
``bits``           no zeros asked for, uniform steps trained straight through at each of several widths
=================  ===================================================================================================

The 5,000 held-out examples (fewer of small data) choose: a line's curve are those of its points than which no smaller
one errs as little on them. What is shown is these points' error on the test set, which chooses nothing. Writes
``analyses/results/curves.{md,json}`` and a picture for each network; points that are there are not run again.
"""

import argparse
import csv
import importlib.util
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
import torch.nn.functional as F
from alternatives import WAYS, Budget, Stored, multiplications, plain_points, started, train
from six_networks import NETWORKS, Problem, error
from torch import nn
from without_training import logarithmic

import pyro_bc
from pyro_bc.posterior.curvature_guide import CurvatureGuide

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS


def diamonds(folder: str | None) -> Problem:
    """Which of five cuts a diamond has, of 53,940 in R's table of them, which plotnine brings along: nine columns, the
    two of words one-hot."""
    found = importlib.util.find_spec("plotnine")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("the table of diamonds is in plotnine: pip install --no-deps plotnine")
    with (Path(found.submodule_search_locations[0]) / "data" / "diamonds.csv").open() as file:
        rows = list(csv.DictReader(file))
    columns = []
    for name in ("carat", "depth", "table", "price", "x", "y", "z"):
        values = torch.tensor([float(row[name]) for row in rows])
        columns.append(((values - values.mean()) / values.std())[:, None])
    for name in ("color", "clarity"):
        kinds = sorted({row[name] for row in rows})
        columns.append(F.one_hot(torch.tensor([kinds.index(row[name]) for row in rows]), len(kinds)).float())
    cuts = ["Fair", "Good", "Very Good", "Premium", "Ideal"]
    x, y = torch.cat(columns, 1), torch.tensor([cuts.index(row["cut"]) for row in rows])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train_part, held, test = order[:-10_000], order[-10_000:-5000], order[-5000:]
    return Problem(x[train_part], y[train_part], x[held], y[held], x[test], y[test])


def layers_of_table() -> nn.Module:
    return nn.Sequential(nn.Linear(22, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 5))


#: by name: the network with random weights, its data, and what every line has.
TASKS: dict[str, tuple[Callable[[], nn.Module], Callable[[str | None], Problem], Budget]] = {
    "lenet-300-100": (*NETWORKS["lenet-300-100"][:2], Budget(50, 10)),
    "lenet-5-caffe": (*NETWORKS["lenet-5-caffe"][:2], Budget(25, 5)),
    "diamonds": (layers_of_table, diamonds, Budget(50, 10)),
    "transformer": (*NETWORKS["transformer"][:2], Budget(200, 40, 128, 2e-3)),
}
PRIORS: dict[str, Callable[[], pyro_bc.Prior]] = {
    "gnj": pyro_bc.GroupNormalJeffreys,
    "ghs": pyro_bc.GroupHorseshoe,
    "svd": pyro_bc.LogUniform,
    "gnj+svd": lambda: pyro_bc.GroupNormalJeffreys(weights=pyro_bc.LogUniform()),
    "ghs+svd": lambda: pyro_bc.GroupHorseshoe(weights=pyro_bc.LogUniform()),
    "learned": pyro_bc.LearnedCode,
    "gnj+learned": lambda: pyro_bc.GroupNormalJeffreys(weights=pyro_bc.LearnedCode()),
}
#: by prior, weights of the KL; several where a whole fit of its own moves along the curve.
WEIGHTS = {
    "gnj": (0.1, 0.3, 1.0), "ghs": (0.1, 0.3, 1.0), "svd": (1.0, 0.3), "gnj+svd": (1.0,), "ghs+svd": (1.0,),
    "learned": (0.3, 0.6, 1.2, 2.5, 5.0), "gnj+learned": (0.3, 0.6, 1.2),
}  # fmt: skip
#: where there are many fewer examples than weights, parts of these, all of which are tried.
PARTS = {"transformer": (0.01, 0.03, 0.1)}
#: nats of a bit in a training with rounded weights, and rounding noise beside the posterior's variance without one.
PRICES, NOISE_RATIOS = (0.02, 0.1), (0.05, 0.2, 0.8)
#: the same in nats of the curvature of what is left.
CURVATURE_PRICES = (1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3)
#: sizes that are a target, as parts of the dense network's.
SIZES = (1 / 350, 1 / 240, 1 / 160, 1 / 100)
TARGETS = ("target gnj", "target ghs", "target gnj+svd")


def fitted(name: str, prior: str, weight: float, seed: int, data: Problem, runs: Path) -> tuple[Any, Any]:
    """A posterior from random weights: a fit of the whole budget where it rounds by itself."""
    build, _, budget = TASKS[name]
    has_codes = "learned" in prior
    torch.manual_seed(seed)
    pyro.clear_param_store()
    model = pyro_bc.BayesianNetwork(build(), PRIORS[prior](), num_data=len(data.train_x))
    guide = pyro_bc.FactorizedGuide(model)
    epochs = budget.epochs + (budget.rounded if has_codes else 0)
    checkpoint = runs / f"{prior}-{weight:g}-{seed}.pt"
    pyro_bc.fit(
        model, guide, budget.loader(data), epochs=epochs, seed=seed, kl_weight=weight, kl_warmup_epochs=epochs / 5,
        decay=1.0, learning_rate=budget.rate, log_learning_rate=budget.rate * (10 if prior in ("gnj", "ghs") else 1),
        checkpoint=checkpoint, resume=checkpoint.exists(), progress=False,
    )  # fmt: skip
    return model, guide


def our_points(
    line: str, name: str, seed: int, data: Problem, runs: Path
) -> Iterator[tuple[str, Callable[[], Stored]]]:
    """Settings of a line, and what makes a point of each."""
    build, _, budget = TASKS[name]
    runs.mkdir(parents=True, exist_ok=True)

    def compressed(posterior: Callable[[], tuple[Any, Any]], **choice: Any) -> Stored:
        if choice.get("epochs"):
            choice |= {"loader": budget.loader(data), "progress": False}
        small = pyro_bc.compress(*posterior(), **choice)
        net = small.network()
        return len(small.to_bytes()), multiplications(net, data.train_x), net

    def by_curvature(net: nn.Module) -> tuple[Any, Any]:
        model = pyro_bc.BayesianNetwork(net, pyro_bc.StandardNormal(), num_data=len(data.train_x))
        return model, CurvatureGuide(model, data.train_x[:4000].split(100), progress=False)

    def left_of(posterior: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
        """What pruning leaves, by its curvature."""
        return by_curvature(pyro_bc.compress(*posterior(), noise_ratio=1e-4).network())

    if line == "curvature":

        def known() -> tuple[Any, Any]:
            return by_curvature(started("dense", lambda own: train(own, data, budget), build, seed, runs))

        for price in CURVATURE_PRICES:
            yield f"{price:.0e} nats a bit", partial(compressed, known, nats_per_bit=price, epochs=budget.rounded)
        return
    if line in TARGETS:

        def fitted_to(size: int) -> Stored:
            first = budget.epochs // 4
            dense = started(
                f"dense-{first}", lambda own: train(own, data, replace(budget, epochs=first)), build, seed, runs
            )
            pyro.clear_param_store()
            model = pyro_bc.BayesianNetwork(dense, PRIORS[line.removeprefix("target ")](), num_data=len(data.train_x))
            guide, target = pyro_bc.FactorizedGuide(model), pyro_bc.Target(max_bytes=size)
            held = [*zip(data.held_x.split(500), data.held_y.split(500), strict=True)]
            pyro_bc.fit(
                model, guide, budget.loader(data), epochs=budget.epochs + budget.rounded - first, target=target,
                held_out=held, seed=seed, progress=False,
            )  # fmt: skip
            reached = pyro_bc.compress_to(model, guide, target, budget.loader(data), held, seed=seed, progress=False)
            net = reached.network.network()
            return reached.found.file_bytes, multiplications(net, data.train_x), net

        for part in SIZES:
            size = round(4 * part * sum(p.numel() for p in build().parameters()))
            yield f"{size:,} bytes", partial(fitted_to, size)
        return
    for weight in (part * weight for part in PARTS.get(name, (1.0,)) for weight in WEIGHTS[line]):
        posterior = partial(fitted, name, line, weight, seed, data, runs)
        if "learned" in line:
            yield f"KL {weight:g}", partial(compressed, posterior)
            continue
        for ratio in NOISE_RATIOS:
            yield f"KL {weight:g}, noise {ratio}", partial(compressed, posterior, noise_ratio=ratio)
        for price in PRICES:
            rounding = partial(compressed, posterior, nats_per_bit=price, epochs=budget.rounded)
            yield f"KL {weight:g}, {price} nats a bit", rounding
        for price in CURVATURE_PRICES:
            rounding = partial(compressed, partial(left_of, posterior), nats_per_bit=price, epochs=budget.rounded)
            yield f"KL {weight:g}, {price:.0e} nats a bit of curvature", rounding


#: errors at which lines are compared.
LEVELS = {
    "lenet-300-100": (1.8, 2.0, 2.25, 2.5), "lenet-5-caffe": (0.8, 0.9, 1.0, 1.2), "diamonds": (19.8, 20.5, 21.5, 22.5),
    "transformer": (2.5, 3.0, 4.0, 5.0),
}  # fmt: skip
#: alternatives that are no Bayesian ones.
PLAIN = tuple(way for way in WAYS if way not in ("bmrs", "spam"))
OURS = (*PRIORS, "curvature", *TARGETS)


def front(points: list[dict], cost: str) -> list[dict]:
    """The points than which no cheaper one errs as little on held-out examples, the cheapest first."""
    points = sorted(points, key=lambda p: (p[cost], p["held"]))
    return [p for i, p in enumerate(points) if all(p["held"] < q["held"] for q in points[:i])]


def cost_at(points: list[dict], cost: str, level: float) -> float | None:
    """What the curve costs at a test error, on a logarithmic scale between its points; None where it has no such."""
    before: dict | None = None
    for point in front(points, cost):
        if point["test"] <= level:
            if before is None:
                return float(point[cost])
            part = (before["test"] - level) / (before["test"] - point["test"])
            return before[cost] * (point[cost] / before[cost]) ** part
        before = point if before is None or point["test"] < before["test"] else before
    return None


def mean_cost(points: list[dict], cost: str, level: float) -> tuple[float, int] | None:
    """Geometric mean over seeds, and how many; None where one of them does not reach the error."""
    seeds = sorted({p["seed"] for p in points})
    found = [cost_at([p for p in points if p["seed"] == seed], cost, level) for seed in seeds]
    if not found or None in found:
        return None
    return math.exp(sum(math.log(f) for f in found if f) / len(found)), len(found)


def ratios(own: list[dict], cost: str, at: tuple[float, ...], others: tuple[str, ...]) -> list[str]:
    """The least that a line of ours costs, beside the least of these."""
    found = []
    for level in at:
        costs = {line: mean_cost([p for p in own if p["line"] == line], cost, level) for line in (*OURS, *others)}
        least = [min((c[0] for line in lines if (c := costs[line])), default=0) for lines in (OURS, others)]
        found.append(f"{least[0] / least[1]:.2f}" if all(least) else "")
    return found


def table(points: list[dict]) -> str:
    lines = [
        "# Curves",
        "",
        "`python analyses/beyond/curves.py --data-dir DIR`: what a line costs at a test error, between those of its "
        "points that held-out examples choose; geometric means over the seeds. Every line starts from random weights "
        "and trains for as many epochs, without teacher and augmentation; one pruning of units and one coder for all. "
        "Nothing is said where a line does not reach an error; where all of its points are below it, its smallest "
        "counts.",
    ]
    for name, (_, _, budget) in TASKS.items():
        own = [p for p in points if p["network"] == name]
        for cost, what in (("bytes", "bytes"), ("products", "multiplications")) if own else ():
            at = LEVELS[name]
            lines += ["", f"## {name}: {what}, {budget.epochs} + {budget.rounded} epochs", ""]
            lines += [
                f"| line | seeds | points | {' | '.join(f'{level:.2f} %' for level in at)} |",
                f"|{'---|' * (len(at) + 3)}",
            ]
            for line in (*OURS, *WAYS):
                those = [p for p in own if p["line"] == line]
                if those:
                    found = [mean_cost(those, cost, level) for level in at]
                    cells = [f"{cell[0]:,.0f}" if cell else "" for cell in found]
                    seeds = len({p["seed"] for p in those})
                    lines.append(f"| `{line}` | {seeds} | {len(those)} | {' | '.join(cells)} |")
            for said, others in (("the best plain alternative", PLAIN), ("the best of all alternatives", WAYS)):
                cells = ratios(own, cost, at, tuple(others))
                lines.append(f"| **best of ours, of {said}** | | | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def picture(name: str, points: list[dict], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 4.6))
    colours = {line: f"C{number}" for number, line in enumerate(OURS)}
    greys = plt.get_cmap("Greys")
    colours |= {line: greys(0.35 + 0.08 * number) for number, line in enumerate(WAYS)}
    markers = dict(zip(WAYS, "s^vD<>Px", strict=True))
    for axis, cost, what in zip(axes, ("bytes", "products"), ("kB", "thousand multiplications"), strict=True):
        for line in (*WAYS, *OURS):
            own = [p for p in points if p["line"] == line]
            for seed in sorted({p["seed"] for p in own}):
                curve = front([p for p in own if p["seed"] == seed], cost)
                axis.plot(
                    [p[cost] / 1000 for p in curve], [p["test"] for p in curve],
                    "-" if line in OURS else "--", marker=markers.get(line, "o"), ms=4, lw=1.5 if line in OURS else 1,
                    color=colours[line], label=line if seed == min(p["seed"] for p in own) else None,
                )  # fmt: skip
        logarithmic(axis)
        low, high = LEVELS[name][0], LEVELS[name][-1]
        axis.set_ylim(low - 0.4 * (high - low), high + 1.2 * (high - low))
        axis.set_xlabel(what)
        axis.set_ylabel("test error %")
    axes[0].set_title(name)
    axes[1].legend(fontsize=7, ncol=2, loc="upper right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder with mnist/ and cifar10-jpeg/")
    parser.add_argument("--only", nargs="*", default=list(TASKS), choices=TASKS)
    parser.add_argument("--lines", nargs="*", default=[*OURS, *WAYS], choices=[*OURS, *WAYS])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", default="runs/curves", help="folder of what is trained once for several points")
    parser.add_argument("--out", default=RESULTS, help="folder of the results; what is there is kept")
    args = parser.parse_args()
    runs, out = Path(args.runs), Path(args.out)
    file = out / "curves.json"
    points = json.loads(file.read_text()) if file.exists() else []
    there = {(p["network"], p["line"], p["setting"], p["seed"]) for p in points}
    for seed in args.seeds:
        for name in args.only:
            build, load, budget = TASKS[name]
            data = load(args.data_dir)
            for line in args.lines:
                own = runs / name
                if line in OURS:
                    settings = our_points(line, name, seed, data, own)
                else:
                    settings = plain_points(line, build, data, budget, seed, own)
                for setting, point in settings:
                    if (name, line, setting, seed) in there:
                        continue
                    torch.manual_seed(seed)
                    start = time.perf_counter()
                    try:
                        size, products, net = point()
                    except pyro_bc.PyroBCError as problem:
                        print(f"{name} {line} {setting}: {problem}"[:200], flush=True)
                        continue
                    points.append(
                        {
                            "network": name, "line": line, "setting": setting, "seed": seed, "bytes": size,
                            "products": products, "held": error(net, data.held_x, data.held_y),
                            "test": error(net, data.test_x, data.test_y),
                            "seconds": round(time.perf_counter() - start),
                        }
                    )  # fmt: skip
                    print(points[-1], flush=True)
                    file.write_text(json.dumps(points, indent=1) + "\n")
    (out / "curves.md").write_text(table(points))
    for name in dict.fromkeys(p["network"] for p in points):
        picture(name, [p for p in points if p["network"] == name], out / f"curves-{name}.png")
    print(table(points))


if __name__ == "__main__":
    main()
