"""Bytes against error after 2, 6 and 20 epochs: codes at the posterior's price, beside gradual magnitudes and rounding.

    python analyses/beyond/few_epochs.py --data-dir ../shared/data

For the trained networks of ``six_networks.py``, batch normalisation folded for all:

==============  ======================================================================================================
``curvature``   ours: ``compress(model, CurvatureGuide(…), nats_per_bit=…, epochs=…, loader=…)``
``magnitudes``  gradual magnitude pruning (Zhu and Gupta 2017: cubic in the first 60 %), of the whole network by weights
                beside their layer's deviation or of every layer alike, with uniform steps trained straight through, and
                our coder
==============  ======================================================================================================

Both train with the same batches, augmentation, optimiser and rates. Held-out examples choose: the fewest bytes whose
held-out error rises by at most 0.1, 0.5 and 1 points (or one example). Test errors are noted for every point, and
choose nothing. With ``--seeds 3`` every setting is trained three times, and bytes and errors are the means: a training
moves the error of a network on MNIST by as much as the smallest rise.
Writes ``analyses/results/few_epochs.{md,json,png}``; runs that are there are not run again.
"""

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from six_networks import NETWORKS, Problem, augmented, error, trained
from torch import Tensor, nn
from without_training import front, guide_of, label, stored

import pyro_bc
from pyro_bc.data import Batches
from pyro_bc.graph.module import GraphNetwork
from pyro_bc.graph.nodes import is_layer, layer_name
from pyro_bc.graph.read import read_graph
from pyro_bc.quantisation.fixed_point import FixedPoint

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS

TOLERANCES = (0.1, 0.5, 1.0)
#: by network: prices of a bit, and the magnitudes' shares of zeros and steps, as octaves below a layer's deviation.
SETTINGS: dict[str, tuple[list[float], list[float], list[float]]] = {
    "table": ([1e-4, 3e-4, 1e-3, 3e-3, 1e-2], [0.7, 0.85, 0.93, 0.97], [1, 0]),
    "transformer": ([4e-6, 7e-6, 1e-5, 2e-5, 4e-5], [0.2, 0.4, 0.6, 0.75], [1, 2]),
    "lenet-300-100": ([1e-5, 2e-5, 3e-5, 6e-5, 1e-4, 2e-4, 3e-4], [0.7, 0.8, 0.85, 0.9, 0.95], [0, 1]),
    "depthwise": ([3e-4, 5e-4, 7e-4, 1e-3, 1.4e-3], [0.2, 0.4, 0.6, 0.7], [2, 3]),
    "lenet-5-caffe": ([1e-5, 2e-5, 4e-5, 8e-5], [0.85, 0.9, 0.95, 0.97], [0, 1]),
    "resnet-20": ([1e-4, 2e-4, 5e-5, 2e-5], [0.6, 0.75, 0.4], [2]),
}
#: of the others only the whole network's magnitudes are tried, which were ahead in nearly all points of 2 epochs.
BOTH_WAYS = ("table", "transformer", "lenet-300-100")
RAMP = 0.6


def loader_of(name: str, data: Problem) -> Batches:
    return Batches(data.train_x, data.train_y, 128, augment=pictures if NETWORKS[name][4] else None)


def pictures(x: Tensor) -> Tensor:
    """Augmented, with channels last, which convolutions are faster with here."""
    return augmented(x).contiguous(memory_format=torch.channels_last)


def ours(name: str, net: nn.Module, data: Problem, epochs: int) -> Iterator[tuple[str, Any]]:
    model, guide = guide_of(net, data)
    for price in SETTINGS[name][0]:

        def point(price: float = price) -> tuple[int, nn.Module]:
            small = pyro_bc.compress(
                model, guide, nats_per_bit=price, epochs=epochs, loader=loader_of(name, data), progress=False
            )
            return len(small.to_bytes()), small.network()

        yield f"curvature {price:.0e}", point


def magnitudes(name: str, net: nn.Module, data: Problem, epochs: int) -> Iterator[tuple[str, Any]]:
    for share in SETTINGS[name][1]:
        for fineness in SETTINGS[name][2]:
            for way in ("global", "layers") if name in BOTH_WAYS else ("global",):

                def point(share: float = share, fineness: float = fineness, way: str = way) -> tuple[int, nn.Module]:
                    return pruned(name, net, data, epochs, share, fineness, way == "global")

                yield f"magnitudes {way} {share:.0%} {fineness}", point


def pruned(
    name: str, net: nn.Module, data: Problem, epochs: int, share: float, fineness: float, over_all: bool
) -> tuple[int, nn.Module]:
    graph = read_graph(net, data.train_x[:2])
    network = GraphNetwork(graph.nodes, graph.tensors, graph.buffers)
    names = list(dict.fromkeys(f"{layer_name(node)}.weight" for node in graph.nodes if is_layer(node)))
    values = {n: graph.tensors[n].clone().requires_grad_() for n in names}
    others = {n: p for n, p in network.named_parameters() if n not in values}
    spread = {n: float(v.detach().abs().median()) / 0.6745 for n, v in values.items()}
    exponent = {n: round(4 * math.log2(float(v.detach().std()) * 2.0**-fineness)) for n, v in values.items()}
    optimizer = torch.optim.Adam(
        [{"params": [v], "lr": 0.02 * spread[n]} for n, v in values.items()]
        + [{"params": list(others.values()), "lr": 1e-3}]
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    loader = loader_of(name, data)
    steps, step = epochs * len(loader), 0
    bars: dict[str, float] = {}

    def rounded() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        codes, moved = {}, {}
        for n, value in values.items():
            size, own = 2.0 ** (exponent[n] / 4), value.detach()
            codes[n] = torch.where(own.abs() > bars[n], (own / size).round(), 0.0)
            moved[n] = value + (codes[n] * size - own)
        return codes, moved

    for _ in range(epochs):
        for x, y in loader:
            if step % 10 == 0 or step == steps - 1:
                now = share * (1 - (1 - min(1.0, step / steps / RAMP)) ** 3)
                sizes = {n: v.detach().abs() / spread[n] for n, v in values.items()}
                everything = torch.cat([s.flatten() for s in sizes.values()])
                for n, s in sizes.items():
                    among = everything if over_all else s.flatten()
                    bars[n] = float(among.kthvalue(max(1, int(now * among.numel()))).values) * spread[n]
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (1 - step / steps)
            optimizer.zero_grad()
            F.cross_entropy(torch.func.functional_call(network, rounded()[1], (x,)), y).backward()
            optimizer.step()
            step += 1
    codes = {}
    for n, code in rounded()[0].items():
        rows = torch.full((len(code),), exponent[n] % 4)
        codes[n] = FixedPoint(code.long(), -(exponent[n] // 4), rows=rows)
    trained_on = replace(graph, tensors={**graph.tensors, **{n: p.detach() for n, p in others.items()}})
    return stored(trained_on, codes, sum(p.numel() for p in net.parameters()), tuple(data.train_x.shape[1:]))


def measured(name: str, folder: str | None, epochs: int, seeds: int, before: dict, save: Any) -> dict:
    """The runs of every setting, each as bytes, held-out error, test error and seconds."""
    net, data = trained(name, folder)
    result = before or {"network": name, "epochs": epochs, "points": {}}
    result["held"], result["test"] = error(net, data.held_x, data.held_y), error(net, data.test_x, data.test_y)
    result["held_n"], result["test_n"] = len(data.held_x), len(data.test_x)
    for seed, way in itertools.product(range(seeds), (ours, magnitudes)):
        for setting, point in way(name, net, data, epochs):
            runs = result["points"].setdefault(setting, [])
            if len(runs) > seed:
                continue
            torch.manual_seed(seed)
            start = time.perf_counter()
            try:
                size, network = point()
            except pyro_bc.PyroBCError as problem:
                print(f"  {name} {setting}: {problem}"[:160], flush=True)
                continue
            own = [size, error(network, data.held_x, data.held_y), error(network, data.test_x, data.test_y)]
            runs.append([*own, round(time.perf_counter() - start)])
            print(f"  {name} {epochs} {setting} seed {seed}: {size:,} bytes, held out {own[1]:.2f} %", flush=True)
            save(result)
    return result


def means(own: dict, method: str) -> list[list[float]]:
    """Of each of a method's settings that have as many runs as any: bytes, held-out and test error, means of these."""
    most = max(map(len, own["points"].values()))
    runs = [runs for setting, runs in own["points"].items() if setting.startswith(method) and len(runs) == most]
    return [[sum(column) / len(column) for column in zip(*found, strict=True)][:3] for found in runs]


def best(own: dict, method: str, tolerance: float) -> list[float] | None:
    bar = own["held"] + max(tolerance, 100 / own["held_n"]) + 1e-6
    return min((point for point in means(own, method) if point[1] <= bar), default=None)


def ratio_on_all(own: dict, tolerance: float) -> float | None:
    """Bytes beside the magnitudes' whose error on held-out and test examples together rises by as much: no choice that
    anyone could make, but curves at equal error with less noise."""
    held, test = own["held_n"], own["test_n"]

    def together(point: Sequence[float]) -> float:
        return (held * point[-2] + test * point[-1]) / (held + test)

    bar = together([own["held"], own["test"]]) + max(tolerance, 100 / (held + test)) + 1e-6
    sizes = [
        min((point[0] for point in means(own, method) if together(point) <= bar), default=None)
        for method in ("curvature", "magnitudes")
    ]
    return None if None in sizes else sizes[0] / sizes[1]


def table(results: list[dict]) -> str:
    lines = [
        "# A few epochs",
        "",
        "`python analyses/beyond/few_epochs.py`: fewest bytes (test error %) whose held-out error rises by at most so "
        "many points (or one example). Means of so many seeds; the same batches and rates for both. On all: the "
        "ratio of bytes where the error "
        "of held-out and test examples together rises by as much, which nobody can choose by, but which is less noisy.",
        "",
        "| network | epochs | seeds | dense % | rise | curvature | magnitudes | ratio | on all |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for own in results:
        for tolerance in TOLERANCES:
            found = [best(own, method, tolerance) for method in ("curvature", "magnitudes")]
            ran = [bool(means(own, method)) for method in ("curvature", "magnitudes")]
            cells = [
                f"{f[0]:,.0f} ({f[2]:.2f})" if f else "none" if own_ran else "not run"
                for f, own_ran in zip(found, ran, strict=True)
            ]
            cells.append(f"{found[0][0] / found[1][0]:.2f}" if found[0] and found[1] else "")
            on_all = ratio_on_all(own, tolerance)
            cells.append(f"{on_all:.2f}" if on_all else "")
            seeds = max(len(runs) for runs in own["points"].values())
            head = f"| {own['network']} | {own['epochs']} | {seeds} | {own['test']:.2f} | {tolerance}"
            lines.append(f"{head} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def picture(results: list[dict], path: Path) -> None:
    import matplotlib.pyplot as plt

    zero = {own["network"]: own for own in json.loads((RESULTS / "without_training.json").read_text())}
    names = [name for name in NETWORKS if any(own["network"] == name for own in results)]
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5))
    for name, axis in zip(names, axes.flat, strict=False):
        curves = {f"{m}, 0 epochs": zero[name]["curves"].get(m, []) for m in ("curvature", "nncodec", "magnitudes")}
        for own in results:
            if own["network"] == name:
                for method in ("curvature", "magnitudes"):
                    points = [["", p[0], p[1]] for p in means(own, method)]
                    curves[f"{method}, {own['epochs']} epochs"] = points
        for title, curve in curves.items():
            best_points = front(curve)
            colour = {"curvature": "C0", "nncodec": "C2", "magnitudes": "C1"}[title.split(",")[0]]
            style = {"0": ":", "2": "--", "6": "-", "20": "-."}[title.split()[1]]
            axis.plot([p[1] / 1000 for p in best_points], [p[2] for p in best_points], style, marker="o", ms=3,
                      color=colour, label=title)  # fmt: skip
        axis.axhline(zero[name]["held"], color="grey", lw=0.8)
        label(axis, zero[name], below=1)
    axes.flat[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder with mnist/ and cifar10-jpeg/")
    parser.add_argument("--only", nargs="*", default=list(SETTINGS))
    parser.add_argument("--epochs", nargs="*", type=int, default=[2, 6])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", default=RESULTS, help="folder of the results; what is there is kept")
    args = parser.parse_args()
    file = Path(args.out) / "few_epochs.json"

    def load() -> dict:
        found = json.loads(file.read_text()) if file.exists() else []
        return {(own["network"], own["epochs"]): own for own in found}

    def save(result: dict) -> None:
        everything = load() | {(result["network"], result["epochs"]): result}
        file.write_text(json.dumps(list(everything.values()), indent=1) + "\n")

    for epochs in args.epochs:
        for name in args.only:
            save(measured(name, args.data_dir, epochs, args.seeds, load().get((name, epochs), {}), save))
    found = load()
    results = [found[name, epochs] for name in NETWORKS for epochs in (2, 6, 20) if (name, epochs) in found]
    (Path(args.out) / "few_epochs.md").write_text(table(results))
    picture(results, Path(args.out) / "few_epochs.png")
    print(table(results))


if __name__ == "__main__":
    main()
