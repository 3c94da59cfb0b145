"""Bytes against error without any training: curvature and conditional rounding beside what else one would do.

    python analyses/beyond/without_training.py --data-dir ../shared/data [--nncodec PYTHON]

For the networks of ``six_networks.py`` (trained there where ``runs/six-networks`` does not hold them), batch
normalisation folded for all, bytes counted whole:

=============  =======================================================================================================
``curvature``  ours: 4,000 unlabelled training inputs, codes at one price of a bit
``diagonal``   the same with the diagonal of the second moments alone
``nearest``    rounding to the nearest number in one step a layer, and our coder
``magnitudes`` the smallest weights of every layer dropped, the others rounded to the nearest, and our coder
``gptq``       conditional rounding without a price of bits, one step a row, and our coder
``nncodec``    the standard's coder with its trellis quantiser (NNCodec 2.1, in an environment of its own)
``int8``       ONNX Runtime's static quantisation
=============  =======================================================================================================

Settings are chosen on 5,000 held-out examples (fewer where a data set is small): the fewest bytes whose held-out error
rises by at most 0.1 points (or one example). The test set is read once, for what was chosen.
Writes ``analyses/results/without_training.{md,json,png}``.
"""

import argparse
import copy
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from six_networks import NETWORKS, Problem, error, trained
from torch import Tensor, nn

import pyro_bc
from pyro_bc.compression.compress import _dense_shapes, compress
from pyro_bc.file.contents import Contents
from pyro_bc.file.format import encode
from pyro_bc.graph.module import GraphNetwork
from pyro_bc.graph.nodes import Graph, is_layer, layer_name
from pyro_bc.graph.read import read_graph
from pyro_bc.posterior.curvature_guide import CurvatureGuide
from pyro_bc.quantisation.fixed_point import FixedPoint

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS

TOLERANCE = 0.1
PRICES = torch.logspace(-6, 0, 49).tolist()
#: a curve ends where errors are so many points above the dense network's.
FAR = 1.5
#: a point of a curve: method, setting, bytes, the network.
Point = tuple[str, str, int, nn.Module]


def guide_of(net: nn.Module, data: Problem) -> tuple[pyro_bc.BayesianNetwork, CurvatureGuide]:
    model = pyro_bc.BayesianNetwork(net, pyro_bc.StandardNormal(), num_data=len(data.train_x))
    return model, CurvatureGuide(model, data.train_x[:4000].split(100), progress=False)


def curvature(net: nn.Module, data: Problem) -> Iterator[Point]:
    model, guide = guide_of(net, data)
    for price in PRICES:
        small = compress(model, guide, nats_per_bit=price)
        yield "curvature", f"{price:.1e}", len(small.to_bytes()), small.network()


def diagonal(net: nn.Module, data: Problem) -> Iterator[Point]:
    model, guide = guide_of(net, data)
    for layer, own in guide.curvature.items():
        inputs = tuple(torch.diag_embed(a.diagonal(dim1=1, dim2=2)) for a in own.inputs)
        guide.curvature[layer] = replace(own, inputs=inputs)
    for price in PRICES:
        small = compress(model, guide, nats_per_bit=price)
        yield "diagonal", f"{price:.1e}", len(small.to_bytes()), small.network()


def stored(
    graph: Graph, codes: dict[str, FixedPoint], parameters: int, shape: tuple[int, ...]
) -> tuple[int, nn.Module]:
    """Bytes of a file with these numbers, and its network."""
    tensors = {}
    for name, tensor in graph.tensors.items():
        if name in codes:
            tensors[name] = codes[name]
        else:
            tensors[name] = as_fine(tensor)
    used = dict.fromkeys(name for node in graph.nodes for name in node.named())
    shapes = _dense_shapes(graph)
    contents = Contents(graph.nodes, {n: tensors[n] for n in used}, shapes, parameters, shape, graph.buffers)
    values = {name: tensors[name].values() for name in used}
    return len(encode(contents)), GraphNetwork(graph.nodes, values, graph.buffers)


def as_fine(tensor: Tensor) -> FixedPoint:
    """What is no weight, in steps of a 64th of its deviation."""
    step = float(tensor.float().std()) / 64 if tensor.numel() > 1 else 1e-3
    bits = -math.floor(math.log2(max(step, 1e-12)))
    return FixedPoint((tensor.double() * 2.0**bits).round().long(), bits)


def plain(net: nn.Module, data: Problem) -> Iterator[Point]:
    """Rounding to the nearest, with and without the smallest weights."""
    graph = read_graph(net, data.train_x[:2])
    parameters, shape = sum(p.numel() for p in net.parameters()), tuple(data.train_x.shape[1:])
    names = list(dict.fromkeys(f"{layer_name(node)}.weight" for node in graph.nodes if is_layer(node)))
    for share in (0.0, 0.15, 0.3, 0.5, 0.7, 0.85):
        for fineness in torch.arange(8.0, -1.6, -0.5).tolist():
            codes = {}
            for name in names:
                weight = graph.tensors[name]
                step = float(weight.std()) * 2.0**-fineness
                # A step that is no power of two: rows that all have the same one.
                exponent = round(4 * math.log2(step))
                rounded = (weight / 2.0 ** (exponent / 4)).round().long()
                if share:
                    bar = weight.abs().flatten().kthvalue(max(1, int(share * weight.numel()))).values
                    rounded = torch.where(weight.abs() > bar, rounded, 0)
                rows = torch.full((len(weight),), exponent % 4)
                codes[name] = FixedPoint(rounded, -(exponent // 4), rows=rows)
            size, network = stored(graph, codes, parameters, shape)
            yield ("magnitudes" if share else "nearest"), f"{share:.0%} {fineness}", size, network


def gptq(net: nn.Module, data: Problem) -> Iterator[Point]:
    """Conditional rounding where bits cost nothing: the steps of a price, and codes as if it were none."""
    from pyro_bc.compression import rate

    model, guide = guide_of(net, data)
    round_rows = rate.round_rows

    def without_price(*args: Any) -> Any:
        return round_rows(*args[:4], 1e-12, args[5])

    for price in PRICES:
        with mock.patch.object(rate, "round_rows", without_price):
            small = compress(model, guide, nats_per_bit=price)
        yield "gptq", f"{price:.1e}", len(small.to_bytes()), small.network()


def nncodec(net: nn.Module, python: str) -> Iterator[Point]:
    script = Path(__file__).resolve().with_name("nncodec_worker.py")
    with tempfile.TemporaryDirectory() as folder:
        torch.save(net.state_dict(), f"{folder}/net.pt")
        qps = [str(qp) for qp in range(-38, -5)]
        done = subprocess.run([python, str(script), folder, *qps], capture_output=True, text=True, cwd=folder)
        for line in done.stdout.splitlines():
            if line.startswith("RESULT"):
                _, qp, size = line.split()
                decoded = copy.deepcopy(net)
                decoded.load_state_dict(torch.load(f"{folder}/{qp}.pt"), strict=False)
                yield "nncodec", qp, int(size), decoded.eval()


def int8(net: nn.Module, data: Problem) -> Iterator[Point]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pyro_bc.onnx.to_onnx(net, folder / "net.onnx", tuple(data.train_x.shape[1:]))
        pyro_bc.onnx.to_int8(folder / "net.onnx", folder / "int8.onnx", list(data.train_x[:500].split(100)))
        yield "int8", "", (folder / "int8.onnx").stat().st_size, pyro_bc.onnx.OnnxNetwork(folder / "int8.onnx")


def measured(name: str, folder: str | None, python: str | None, methods: list[str], before: dict) -> dict:
    net, data = trained(name, folder)
    held, test = error(net, data.held_x, data.held_y), error(net, data.test_x, data.test_y)
    parameters = sum(p.numel() for p in net.parameters())
    result: dict = {"network": name, "parameters": parameters, "held": held, "test": test, "curves": {}}
    bar = held + max(TOLERANCE, 100 / len(data.held_x)) + 1e-6
    best: dict[str, tuple[int, str, nn.Module]] = {}
    start = time.perf_counter()
    model, guide = guide_of(net, data)
    compress(model, guide, nats_per_bit=1e-4).to_bytes()
    result["seconds"] = time.perf_counter() - start
    points = [curve(net, data) for curve in (curvature, plain, gptq, int8, diagonal) if curve.__name__ in methods]
    if python and "nncodec" in methods:
        points.append(nncodec(net, python))
    for curve in points:
        try:
            ended: set[str] = set()
            for method, setting, size, network in curve:
                part = f"{method} {setting.split()[0]}" if method in ("nearest", "magnitudes") else method
                if part in ended:
                    continue
                own = error(network, data.held_x, data.held_y)
                if own > bar + FAR and part == method:
                    break
                if own > bar + FAR:
                    ended.add(part)
                result["curves"].setdefault(method, []).append([setting, size, own])
                if own <= bar and (method not in best or size < best[method][0]):
                    best[method] = size, setting, network
        except pyro_bc.PyroBCError as problem:  # a price at which nothing is left ends a curve; int8 may refuse
            print(f"  {name}: {problem}"[:160], flush=True)
    result["chosen"] = {
        method: {"bytes": size, "setting": setting, "test": error(network, data.test_x, data.test_y)}
        for method, (size, setting, network) in best.items()
    }
    asked = set(result["curves"])
    for part in ("curves", "chosen"):
        result[part] = {**{m: v for m, v in before.get(part, {}).items() if m not in asked}, **result[part]}
    for method, own in result["chosen"].items():
        print(f"  {name} {method}: {own['bytes']:,} bytes, test {own['test']:.2f} % (dense {test:.2f} %)", flush=True)
    return result


METHODS = ("curvature", "diagonal", "gptq", "nearest", "magnitudes", "nncodec", "int8")


def table(results: list[dict]) -> str:
    lines = [
        "# Without training",
        "",
        "`python analyses/beyond/without_training.py`: fewest bytes (test error %) whose held-out error rises by at "
        "most 0.1 points (or one example). Held-out examples choose, the test set is read once. One seed.",
        "",
        f"| network | parameters | dense % | {' | '.join(METHODS)} | of nncodec | of the better of nearest and "
        "magnitudes | s |",
        f"|{'---|' * (len(METHODS) + 6)}",
    ]
    for own in results:
        cells = []
        for method in METHODS:
            found = own["chosen"].get(method)
            cells.append(f"{found['bytes']:,} ({found['test']:.2f})" if found else "none")
        size = own["chosen"]["curvature"]["bytes"]
        standard = own["chosen"].get("nncodec", {}).get("bytes")
        plain_sizes = [own["chosen"][m]["bytes"] for m in ("nearest", "magnitudes") if m in own["chosen"]]
        ratios = [f"{size / other:.2f}" if other else "" for other in (standard, min(plain_sizes, default=None))]
        lines.append(
            f"| {own['network']} | {own['parameters']:,} | {own['test']:.2f} | {' | '.join(cells)} | "
            f"{' | '.join(ratios)} | {own['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def front(curve: list[list]) -> list[list]:
    """The points ``[setting, bytes, error]`` than which no smaller one has as little error, the smallest first."""
    curve = sorted(curve, key=lambda point: point[1])
    return [p for i, p in enumerate(curve) if all(p[2] < q[2] for q in curve[:i])]


def logarithmic(axis: Any) -> None:
    """A logarithmic scale of plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())


def label(axis: Any, own: dict, below: float) -> None:
    """Name the axes of a network's curves, from so many points below the dense network's error to 5 above it."""
    logarithmic(axis)
    axis.set_ylim(max(0, own["held"] - below), own["held"] + 5)
    axis.set_title(own["network"])
    axis.set_xlabel("kB")
    axis.set_ylabel("held-out error %")


def picture(results: list[dict], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5))
    for own, axis in zip(results, axes.flat, strict=False):
        for number, method in enumerate(METHODS):
            best = front(own["curves"].get(method, []))
            if best:
                axis.plot(
                    [p[1] / 1000 for p in best], [p[2] for p in best], "o-", ms=3, color=f"C{number}", label=method
                )
        axis.axhline(own["held"], color="grey", lw=0.8, ls=":")
        label(axis, own, below=0.5)
    axes.flat[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder with mnist/ and cifar10-jpeg/")
    parser.add_argument("--nncodec", help="Python of an environment with NNCodec")
    parser.add_argument("--only", nargs="*", default=list(NETWORKS))
    ways = ["curvature", "plain", "gptq", "int8", "diagonal", "nncodec"]
    parser.add_argument("--methods", nargs="*", default=ways, choices=ways)
    parser.add_argument("--out", default=RESULTS, help="folder of the results; what is there is kept")
    args = parser.parse_args()
    folder = Path(args.out)
    file = folder / "without_training.json"
    before = {own["network"]: own for own in json.loads(file.read_text())} if file.exists() else {}
    for name in args.only:
        before[name] = measured(name, args.data_dir, args.nncodec, args.methods, before.get(name, {}))
        results = [before[n] for n in NETWORKS if n in before]
        file.write_text(json.dumps(results, indent=1) + "\n")
        (folder / "without_training.md").write_text(table(results))
        picture(results, folder / "without_training.png")
    print(table(results))


if __name__ == "__main__":
    main()
