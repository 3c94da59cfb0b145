"""Error against bytes and against multiplications: ours beside the best plain alternatives, at equal epochs.

    python analyses/beyond/curves.py --data-dir ../shared/data --only lenet-300-100 --seeds 0 1 2

Every line starts from the same random network, passes as often over the same batches of training data without a
teacher and without augmentation, and ends with the same number of epochs in which the network computes with rounded
weights. What it comes to is stored by the same pruning of units and the same coder, and every byte of the file counts.

=================  ===================================================================================================
``gnj``, ``ghs``   ours, the paper's own form: normal weights under normal-Jeffreys or horseshoe scales
``gnj+svd`` …      ours, log-uniform weights under these scales
``svd``            Sparse VD, the predecessor that the paper compares with
``learned`` …      ours, integer codes under a learned prior, alone and under scales
``curvature``      ours, of the network trained without priors: codes at the price of its curvature
``global``         gradual magnitude pruning (Zhu and Gupta 2017, 1710.01878: cubic in time) by weights beside their
                   layer's spread, then uniform steps trained straight through
``layers``         the same with as many zeros in every layer
``kmeans``         the weights of ``global`` in shared values (Han et al. 2016, 1510.00149), which are trained
``lasso``          group lasso (Wen et al. 2016, 1608.03665) by a proximal step, then uniform steps
``bits``           no zeros asked for, uniform steps trained straight through at each of several widths
=================  ===================================================================================================

The 5,000 held-out examples (fewer of small data) choose: a line's curve are those of its points than which no smaller
one errs as little on them. What is shown is these points' error on the test set, which chooses nothing. Writes
``analyses/results/curves.{md,json}`` and a picture for each network; points that are there are not run again.
"""

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
import torch.nn.functional as F
from competitors import kmeans
from six_networks import NETWORKS, Problem, error
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import pyro_bc
from pyro_bc.compression.compress import _selections
from pyro_bc.compression.pruning import shrink
from pyro_bc.data import Batches
from pyro_bc.file.contents import Contents, Selection, integers_of
from pyro_bc.file.contents import values as values_of
from pyro_bc.file.format import encode
from pyro_bc.graph.layer_types import layer_type
from pyro_bc.graph.module import GraphNetwork
from pyro_bc.graph.nodes import is_layer, layer_name
from pyro_bc.graph.read import read_graph
from pyro_bc.posterior.curvature_guide import CurvatureGuide
from pyro_bc.posterior.summary import LayerPosterior
from pyro_bc.posterior.thresholds import choose_threshold
from pyro_bc.priors.base import group_dim
from pyro_bc.quantisation.fixed_point import FixedPoint

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS


@dataclass(frozen=True)
class Budget:
    """What every line of a network has: epochs before and with rounded weights, examples a batch, the largest rate."""

    epochs: int
    rounded: int
    batch: int = 128
    rate: float = 1e-3


BUDGETS = {
    "lenet-300-100": Budget(50, 10),
    "lenet-5-caffe": Budget(25, 5),
    "table": Budget(250, 50, 64),
    "transformer": Budget(200, 40, 128, 2e-3),
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
    "gnj": (0.1, 0.3), "ghs": (0.1, 0.3), "svd": (1.0,), "gnj+svd": (1.0,), "ghs+svd": (1.0,),
    "learned": (0.3, 0.6, 1.2), "gnj+learned": (0.3, 0.6, 1.2),
}  # fmt: skip
#: nats of a bit, beside those of one that the KL's weight leaves.
PRICES = (0.005, 0.02, 0.05, 0.1, 0.2)
#: shares of zeros, and steps as octaves below a layer's deviation.
SHARES = (0.8, 0.9, 0.95, 0.97, 0.98, 0.99)
FINENESS = (0.0, 0.5, 1.0)
CLUSTERS = (4, 8, 16)
PENALTIES = (1e-4, 3e-4, 1e-3, 2e-3)
RAMP = (0.1, 0.7)

Point = Callable[[], tuple[int, float, nn.Module]]


def multiplications(net: nn.Module, x: Tensor) -> float:
    """Of one example, in the network as it is stored."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x[:1])
    return counter.get_total_flops() / 2


def loader_of(name: str, data: Problem) -> Batches:
    return Batches(data.train_x, data.train_y, BUDGETS[name].batch)


# ------------------------------------------------------------------------------------------------------------- ours


def fitted(name: str, prior: str, weight: float, seed: int, data: Problem, runs: Path) -> tuple[Any, Any]:
    budget, has_codes = BUDGETS[name], "learned" in prior
    torch.manual_seed(seed)
    pyro.clear_param_store()
    net = NETWORKS[name][0]()
    model = pyro_bc.BayesianNetwork(net, PRIORS[prior](), num_data=len(data.train_x))
    guide = pyro_bc.FactorizedGuide(model)
    epochs = budget.epochs + (budget.rounded if has_codes else 0)  # whose fit rounds by itself
    scale_free = has_codes or "svd" in prior
    pyro_bc.fit(
        model, guide, loader_of(name, data), epochs=epochs, seed=seed, kl_weight=weight, kl_warmup_epochs=epochs / 5,
        decay=1.0, learning_rate=budget.rate, log_learning_rate=budget.rate if scale_free else 10 * budget.rate,
        checkpoint=runs / f"{name}-{prior}-{weight}-{seed}.pt", resume=True, progress=False,
    )  # fmt: skip
    return model, guide


def bayesian(name: str, prior: str, seed: int, data: Problem, runs: Path) -> Iterator[tuple[str, Point]]:
    rounded = BUDGETS[name].rounded
    for weight in WEIGHTS[prior]:
        found: list[Any] = []

        def posterior(weight: float = weight, found: list[Any] = found) -> list[Any]:
            if not found:
                found.extend(fitted(name, prior, weight, seed, data, runs))
            return found

        if "learned" in prior:

            def coded(posterior: Callable[[], list[Any]] = posterior) -> tuple[int, float, nn.Module]:
                return of_compressed(pyro_bc.compress(*posterior()), data)

            yield f"KL {weight}", coded
            continue
        for price in PRICES:

            def point(
                price: float = price, weight: float = weight, posterior: Callable[[], list[Any]] = posterior
            ) -> tuple[int, float, nn.Module]:
                small = pyro_bc.compress(
                    *posterior(), nats_per_bit=price, epochs=rounded, loader=loader_of(name, data), progress=False
                )
                return of_compressed(small, data)

            yield f"KL {weight}, {price} nats a bit", point


def of_compressed(small: Any, data: Problem) -> tuple[int, float, nn.Module]:
    net = small.network()
    return len(small.to_bytes()), multiplications(net, data.train_x), net


def curvature(name: str, seed: int, data: Problem, runs: Path) -> Iterator[tuple[str, Point]]:
    found: list[nn.Module] = []
    for price in (1e-5, 3e-5, 1e-4, 2e-4, 4e-4, 8e-4):

        def point(price: float = price) -> tuple[int, float, nn.Module]:
            if not found:
                found.append(kept(name, f"dense-{seed}", runs, seed, lambda net: train(net, name, data)))
            model = pyro_bc.BayesianNetwork(found[0], pyro_bc.StandardNormal(), num_data=len(data.train_x))
            guide = CurvatureGuide(model, data.train_x[:4000].split(100), progress=False)
            small = pyro_bc.compress(
                model, guide, nats_per_bit=price, epochs=BUDGETS[name].rounded, loader=loader_of(name, data),
                progress=False,
            )  # fmt: skip
            return of_compressed(small, data)

        yield f"{price:.0e} nats a bit", point


# ------------------------------------------------------------------------------------------------- plain alternatives


def kept(name: str, what: str, runs: Path, seed: int, make: Callable[[nn.Module], None]) -> nn.Module:
    """A network that was trained before, or is now."""
    torch.manual_seed(seed)
    net, file = NETWORKS[name][0](), runs / f"{name}-{what}.pt"
    if file.exists():
        net.load_state_dict(torch.load(file))
    else:
        make(net)
        torch.save(net.state_dict(), file)
    return net.eval()


def matrices(net: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in net.named_parameters() if p.dim() > 1 and n.endswith("weight")}


def train(
    net: nn.Module, name: str, data: Problem, after_step: Callable[[float, float], None] = lambda done, rate: None
) -> None:
    """Adam, its rate linearly to 0.

    :param after_step: called with the part of the training that is done, and the rate.
    """
    budget, loader = BUDGETS[name], loader_of(name, data)
    optimizer = torch.optim.Adam(net.parameters(), budget.rate, fused=True)
    steps, step = budget.epochs * len(loader), 0
    net.train()
    for _ in range(budget.epochs):
        for x, y in loader:
            rate = budget.rate * (1 - step / steps)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            step += 1
            after_step(step / steps, rate)
    net.eval()


def spread(p: Tensor) -> float:
    return float(p.detach().std())


def zeros(net: nn.Module, share: float, over_all: bool, scales: dict[str, float]) -> dict[str, Tensor]:
    """Which weights are left where so many are zero."""
    sizes = {n: p.detach().abs() / (scales[n] if over_all else 1.0) for n, p in matrices(net).items()}
    everything = torch.cat([s.flatten() for s in sizes.values()])
    masks = {}
    for n, s in sizes.items():
        among = everything if over_all else s.flatten()
        masks[n] = (s > among.kthvalue(max(1, int(share * among.numel()))).values).float()
    return masks


def gradual(share: float, over_all: bool, name: str, data: Problem) -> Callable[[nn.Module], None]:
    def make(net: nn.Module) -> None:
        # A layer's weights are measured by what they start from, so that a layer may lose more than another.
        scales, masks, count = {n: spread(p) for n, p in matrices(net).items()}, {}, [0]

        def after_step(done: float, rate: float) -> None:
            count[0] += 1
            part = min(1.0, max(0.0, (done - RAMP[0]) / (RAMP[1] - RAMP[0])))
            if (count[0] % 10 == 0 and part < 1) or not masks or done == 1:
                masks.update(zeros(net, share * (1 - (1 - part) ** 3), over_all, scales))
            with torch.no_grad():
                for n, p in matrices(net).items():
                    p.mul_(masks[n])

        train(net, name, data, after_step)

    return make


def penalised(penalty: float, name: str, data: Problem) -> Callable[[nn.Module], None]:
    def make(net: nn.Module) -> None:
        def after_step(done: float, rate: float) -> None:
            with torch.no_grad():
                for p in matrices(net).values():
                    axis = group_dim(p.shape)
                    dims = [d for d in range(p.dim()) if d != axis]
                    size = math.sqrt(p.numel() / p.shape[axis])
                    norm = p.square().sum(dims, keepdim=True).sqrt().clamp_min(1e-12)
                    p.mul_((1 - 30 * rate * penalty * size / norm).clamp_min(0))

        train(net, name, data, after_step)

    return make


def rounded(net: nn.Module, name: str, data: Problem, fineness: float) -> dict[str, Tensor]:
    """Train on with weights on a grid, straight through; zeros stay zero. Changes the network, returns the codes.

    :param fineness: octaves of the step below the deviation of a layer's weights that are not zero.
    """
    budget, loader = BUDGETS[name], loader_of(name, data)
    weights = matrices(net)
    masks = {n: (p.detach() != 0).float() for n, p in weights.items()}
    of_left = {n: float(p.detach()[p.detach() != 0].square().mean().sqrt()) for n, p in weights.items()}
    exponents = {n: round(4 * math.log2(of_left[n] * 2.0**-fineness)) for n in weights}
    optimizer = torch.optim.Adam(net.parameters(), budget.rate / 3, fused=True)
    steps, step = budget.rounded * len(loader), 0
    others = {n: p for n, p in net.named_parameters() if n not in weights}

    def on_grid() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        codes = {n: (p.detach() / 2.0 ** (exponents[n] / 4)).round() * masks[n] for n, p in weights.items()}
        return codes, {n: p + (codes[n] * 2.0 ** (exponents[n] / 4) - p.detach()) for n, p in weights.items()}

    for _ in range(budget.rounded):
        for x, y in loader:
            optimizer.param_groups[0]["lr"] = budget.rate / 3 * (1 - step / steps)
            optimizer.zero_grad()
            F.cross_entropy(torch.func.functional_call(net, {**others, **on_grid()[1]}, (x,)), y).backward()
            optimizer.step()
            step += 1
    codes = on_grid()[0]
    return {
        n: FixedPoint(c.long(), -(exponents[n] // 4), rows=torch.full((len(c),), exponents[n] % 4))
        for n, c in codes.items()
    }


def stored(net: nn.Module, codes: dict[str, FixedPoint], data: Problem) -> tuple[int, float, nn.Module]:
    """Bytes of a file with these codes, without the units that nothing reads or that read nothing."""
    graph = read_graph(net, data.train_x[:2])
    layers = {layer_name(node): layer_type(node.op) for node in graph.nodes if is_layer(node)}
    posterior = {}
    for name, kind in layers.items():
        own = {"weight": codes[f"{name}.weight"]}
        bias = graph.tensors.get(f"{name}.bias")
        if bias is not None:
            own["bias"] = as_fine(bias)
        known = {role: torch.full(numbers.codes.shape, 1e-12) for role, numbers in own.items()}
        values = {role: numbers.values() for role, numbers in own.items()}
        posterior[name] = LayerPosterior(
            name, pyro_bc.StandardNormal(), values["weight"], known["weight"], values.get("bias"), known.get("bias"),
            None, codes=own, type=kind,
        )  # fmt: skip
    pruned = shrink(graph, posterior, {name: choose_threshold(layer) for name, layer in posterior.items()})
    selections = _selections(pruned.graph)
    tensors: dict[str, Any] = {}
    for whole, tensor in pruned.graph.tensors.items():
        layer_of, _, role = whole.rpartition(".")
        layer = pruned.layers.get(layer_of)
        if whole in selections:
            tensors[whole] = Selection(tensor, selections[whole])
        elif not tensor.is_floating_point():
            tensors[whole] = integers_of(whole, tensor)
        else:
            tensors[whole] = layer.codes[role] if layer is not None and role in layer.codes else as_fine(tensor)
    shapes = {
        f"{name}.weight": kind.dense_shape(graph.tensors[f"{name}.weight"].shape)
        for name, kind in layers.items()
        if f"{name}.weight" in tensors
    }
    parameters = sum(p.numel() for p in net.parameters())
    nodes, buffers = pruned.graph.nodes, pruned.graph.buffers
    content = encode(Contents(nodes, tensors, shapes, parameters, tuple(data.train_x.shape[1:]), buffers))
    network = GraphNetwork(nodes, {n: values_of(t) for n, t in tensors.items()}, buffers)
    return len(content), multiplications(network, data.train_x), network


def as_fine(tensor: Tensor) -> FixedPoint:
    """What is no weight, in steps of a 64th of its deviation."""
    step = float(tensor.float().std()) / 64 if tensor.numel() > 1 else 1e-3
    bits = -math.floor(math.log2(max(step, 1e-12)))
    return FixedPoint((tensor.double() * 2.0**bits).round().long(), bits)


def stored_shared(net: nn.Module, name: str, data: Problem, clusters: int) -> tuple[int, float, nn.Module]:
    """Weights that are not zero take one of so many values a layer, which are trained (Han et al. 2016, section 3.3)
    and stored in 16 bits each; the file's coder codes which it is."""
    weights, loader, budget = matrices(net), loader_of(name, data), BUDGETS[name]
    others = {n: p for n, p in net.named_parameters() if n not in weights}
    centres, at, codes = {}, {}, {}
    for n, p in weights.items():
        flat = p.detach().flatten()
        left = flat.nonzero()[:, 0]
        found, nearest = kmeans(flat[left], min(clusters, len(left)))
        order = found.argsort()
        rank = torch.arange(len(found)) - int((found < 0).sum())
        rank = torch.where(rank >= 0, rank + 1, rank)
        number = torch.zeros(len(flat), dtype=torch.int64)
        number[left] = rank[order.argsort()[nearest]]
        codes[n] = FixedPoint(number.view(p.shape), 0)
        index = torch.zeros(len(flat), dtype=torch.int64)
        index[left] = nearest + 1
        centres[n], at[n] = found.clone().requires_grad_(), index.view(p.shape)

    def shared() -> dict[str, Tensor]:
        return {n: F.pad(centres[n], (1, 0))[at[n]] for n in weights}

    optimizer = torch.optim.Adam([*centres.values(), *others.values()], budget.rate / 3)
    steps, step = budget.rounded * len(loader), 0
    for _ in range(budget.rounded):
        for x, y in loader:
            optimizer.param_groups[0]["lr"] = budget.rate / 3 * (1 - step / steps)
            optimizer.zero_grad()
            F.cross_entropy(torch.func.functional_call(net, {**others, **shared()}, (x,)), y).backward()
            optimizer.step()
            step += 1
    size, products, _ = stored(net, codes, data)
    with torch.no_grad():
        for n, value in shared().items():
            weights[n].copy_(value)
    return size + 2 * sum(map(len, centres.values())), products, net


def plain(way: str, name: str, seed: int, data: Problem, runs: Path) -> Iterator[tuple[str, Point]]:
    starts: dict[str, Callable[[nn.Module], None]] = {}
    if way in ("global", "layers", "kmeans"):
        over_all = way != "layers"
        label = "layers" if way == "layers" else "global"
        starts = {f"{label}-{share}": gradual(share, over_all, name, data) for share in SHARES}
    elif way == "lasso":
        starts = {f"lasso-{penalty:g}": penalised(penalty, name, data) for penalty in PENALTIES}
    else:
        starts = {"dense": lambda net: train(net, name, data)}
    for start, make in starts.items():
        settings: tuple[float, ...] = CLUSTERS if way == "kmeans" else FINENESS
        for setting in settings if way != "bits" else (-1.0, 0.0, 1.0, 2.0, 3.0):

            def point(
                start: str = start, make: Callable[[nn.Module], None] = make, setting: float = setting
            ) -> tuple[int, float, nn.Module]:
                net = copy.deepcopy(kept(name, f"{start}-{seed}", runs, seed, make))
                torch.manual_seed(seed)
                if way == "kmeans":
                    return stored_shared(net, name, data, int(setting))
                return stored(net, rounded(net, name, data, setting), data)

            yield f"{start} {setting:g}", point


# --------------------------------------------------------------------------------------------------------- all of them

OURS = (*PRIORS, "curvature")
PLAIN = ("global", "layers", "kmeans", "lasso", "bits")


def points_of(line: str, name: str, seed: int, data: Problem, runs: Path) -> Iterator[tuple[str, Point]]:
    if line == "curvature":
        return curvature(name, seed, data, runs)
    if line in PRIORS:
        return bayesian(name, line, seed, data, runs)
    return plain(line, name, seed, data, runs)


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


def levels(points: list[dict]) -> list[float]:
    """Errors at which lines are compared: rises over the best that any network of these points has."""
    best = min(p["test"] for p in points)
    return [round(best * (1 + part) + 0.1 * part, 2) for part in (0.1, 0.25, 0.5, 1.0)]


def table(points: list[dict]) -> str:
    lines = [
        "# Curves",
        "",
        "`python analyses/beyond/curves.py --data-dir DIR`: what a line costs at a test error, between those of its "
        "points that held-out examples choose; geometric means over the seeds. Every line starts from random weights "
        "and trains for as many epochs, without teacher and augmentation; one pruning of units and one coder for all.",
    ]
    for name in BUDGETS:
        own = [p for p in points if p["network"] == name]
        if not own:
            continue
        budget = BUDGETS[name]
        for cost, what in (("bytes", "Bytes"), ("products", "Multiplications")):
            at = levels(own)
            lines += ["", f"## {name}: {what.lower()}, {budget.epochs} + {budget.rounded} epochs", ""]
            lines += [
                f"| line | seeds | {' | '.join(f'{level:.2f} %' for level in at)} |",
                f"|{'---|' * (len(at) + 2)}",
            ]
            best: dict[bool, list[float | None]] = {True: [None] * len(at), False: [None] * len(at)}
            for line in (*OURS, *PLAIN):
                those = [p for p in own if p["line"] == line]
                if not those:
                    continue
                found = [mean_cost(those, cost, level) for level in at]
                for number, cell in enumerate(found):
                    side = best[line in OURS]
                    if cell and (side[number] is None or cell[0] < side[number]):
                        side[number] = cell[0]
                cells = [f"{cell[0]:,.0f}" if cell else "" for cell in found]
                seeds = len({p["seed"] for p in those})
                lines.append(f"| `{line}` | {seeds} | {' | '.join(cells)} |")
            ratios = [f"{a / b:.2f}" if a and b else "" for a, b in zip(best[True], best[False], strict=True)]
            lines.append(f"| **best of ours, of the best alternative** | | {' | '.join(ratios)} |")
    return "\n".join(lines) + "\n"


def picture(name: str, points: list[dict], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 4.6))
    best = min(p["test"] for p in points)
    for axis, cost, what in zip(axes, ("bytes", "products"), ("bytes", "multiplications an example"), strict=True):
        for number, line in enumerate((*OURS, *PLAIN)):
            own = [p for p in points if p["line"] == line]
            for seed in sorted({p["seed"] for p in own}):
                curve = front([p for p in own if p["seed"] == seed], cost)
                axis.plot(
                    [p[cost] for p in curve], [p["test"] for p in curve], "o-" if line in OURS else "s--", ms=3, lw=1,
                    color=plt.get_cmap("tab20")(number), label=line if seed == min(p["seed"] for p in own) else None,
                )  # fmt: skip
        axis.set_xscale("log")
        axis.set_ylim(best - 0.1, 2.5 * best + 0.5)
        axis.set_xlabel(what)
        axis.set_ylabel("test error %")
    axes[0].set_title(name)
    axes[1].legend(fontsize=7, ncol=2)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder with mnist/ and cifar10-jpeg/")
    parser.add_argument("--only", nargs="*", default=list(BUDGETS), choices=BUDGETS)
    parser.add_argument("--lines", nargs="*", default=[*OURS, *PLAIN], choices=[*OURS, *PLAIN])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", default="runs/curves", help="folder of what is trained once for several points")
    parser.add_argument("--out", default=RESULTS, help="folder of the results; what is there is kept")
    args = parser.parse_args()
    runs, out = Path(args.runs), Path(args.out)
    runs.mkdir(parents=True, exist_ok=True)
    file = out / "curves.json"
    points = json.loads(file.read_text()) if file.exists() else []
    there = {(p["network"], p["line"], p["setting"], p["seed"]) for p in points}
    for seed in args.seeds:
        for name in args.only:
            data = NETWORKS[name][1](args.data_dir)
            for line in args.lines:
                for setting, point in points_of(line, name, seed, data, runs):
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
