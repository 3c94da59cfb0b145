"""Prediction by the compressed network over that by the dense one, as in the paper's figure 2, on a CPU.

    python analyses/benchmarks/inference.py

Networks are the committed files of the main job (``analyses/results/<net>-mnist-<prior>-seed0/network.pbc``) and dense
ones of the same architecture. PyTorch in evaluation mode and ONNX Runtime, both networks taking turns; medians. Peak
memory is that of a process which loads one network and predicts, beyond what it held with the packages imported and the
pictures in memory (Linux). Table and figure go to ``analyses/results/inference.md`` and ``.png``.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

import pyro_bc
from pyro_bc.app.own_network import network
from pyro_bc.graph.onnx import OnnxNetwork, to_onnx

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS

NETS, PRIORS = ("lenet-300-100", "lenet-5-caffe"), ("gnj", "ghs")
RUNTIMES, BATCHES = ("PyTorch", "ONNX Runtime"), (1, 64, 8192)


def predictor(net: str, prior: str | None, runtime: str) -> Callable[[Tensor], Tensor]:
    """A network's forward pass; the dense network's without a prior."""
    torch.manual_seed(0)
    if prior is None:
        module = network(net)((1, 28, 28), 10).eval()
    else:
        module = pyro_bc.load(RESULTS / f"{net}-mnist-{prior}-seed0" / "network.pbc")
    if runtime == "PyTorch":
        return module
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "network.onnx")
        to_onnx(module, file, (1, 28, 28))
        return OnnxNetwork(file, threads=torch.get_num_threads())


def seconds(networks: list[Callable], batch: int) -> list[float]:
    """Median seconds of one prediction by each network, in turns.

    The first fifth of a second of a turn is left out: threads of ONNX Runtime's other sessions still spin then.
    """
    x = torch.rand(batch, 1, 28, 28)
    times: list[list[float]] = [[] for _ in networks]
    with torch.no_grad():
        for _ in range(5):
            for predict, own in zip(networks, times, strict=True):
                begin, measured = time.perf_counter(), 0
                predict(x)
                while measured < 2 or time.perf_counter() < begin + 0.5:
                    start = time.perf_counter()
                    predict(x)
                    if start > begin + 0.2:
                        own.append(time.perf_counter() - start)
                        measured += 1
    return [statistics.median(own) for own in times]


def in_parts(predict: Callable[[Tensor], Tensor], part: int) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.cat([predict(piece) for piece in x.split(part)])


def _memory(name: str) -> int:
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[name].split()[0])


def peak(net: str, prior: str | None, runtime: str, batch: int) -> int:
    """Peak memory of prediction, in bytes; for a process of its own."""
    predict = predictor(net, prior, runtime)
    x = torch.rand(batch, 1, 28, 28)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _memory("VmRSS")
    with torch.no_grad():
        predict(x)
    return _memory("VmHWM") - before


def measure() -> list[dict]:
    rows, processes = [], multiprocessing.get_context("spawn")
    for net in NETS:
        for runtime in RUNTIMES:
            for prior in PRIORS:
                pair = [predictor(net, None, runtime), predictor(net, prior, runtime)]
                for batch in BATCHES:
                    dense, small = seconds(pair, batch)
                    parts = [in_parts(pair[0], part) for part in (128, 256, 1024) if part < batch]
                    best = min(seconds(parts, batch)) if parts and runtime == "PyTorch" else None
                    with processes.Pool(1, maxtasksperchild=1) as pool:
                        memory = [pool.apply(peak, (net, which, runtime, batch)) for which in (None, prior)]
                    rows.append({
                        "net": net, "prior": prior, "runtime": runtime, "batch": batch, "dense_seconds": dense,
                        "dense_in_parts_seconds": best, "seconds": small, "ratio": dense / small,
                        "dense_bytes": memory[0], "bytes": memory[1],
                    })  # fmt: skip
                    print(f"{net} {prior} {runtime} {batch}: {dense / small:.1f}", flush=True)
    return rows


def table(rows: list[dict]) -> str:
    lines = [
        "# Prediction: the compressed network over the dense one",
        "",
        f"`python analyses/benchmarks/inference.py`, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        "float32. Medians of predictions in turns; memory beyond what the process held before its first prediction. In "
        'PyTorch the compressed network takes a large batch in parts by itself; "in parts" is the dense network given '
        "the same help, in parts of 128, 256 or 1024, whichever is fastest.",
        "",
        "| network | prior | runtime | batch | dense ms | in parts | compressed ms | times faster | dense MB | "
        "compressed MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        best = r["dense_in_parts_seconds"]
        lines.append(
            f"| {r['net']} | {r['prior']} | {r['runtime']} | {r['batch']} | {1e3 * r['dense_seconds']:.3f} | "
            f"{f'{1e3 * best:.3f}' if best else ''} | {1e3 * r['seconds']:.3f} | {r['ratio']:.1f} | "
            f"{r['dense_bytes'] / 1e6:.1f} | {r['bytes'] / 1e6:.1f} |"
        )
    return "\n".join(lines) + "\n"


def figure(rows: list[dict]) -> None:
    plot, axes = plt.subplots(1, len(NETS), figsize=(9, 3.2), sharey=True, layout="constrained")
    for ax, net in zip(axes, NETS, strict=True):
        chosen = [(runtime, prior) for runtime in RUNTIMES for prior in PRIORS]
        for position, (runtime, prior) in enumerate(chosen):
            ratios = [r["ratio"] for r in rows if (r["net"], r["runtime"], r["prior"]) == (net, runtime, prior)]
            places = [index + 0.2 * (position - 1.5) for index in range(len(BATCHES))]
            ax.bar_label(ax.bar(places, ratios, 0.18, label=f"{runtime}, {prior}"), fmt="%.1f", fontsize=7)
        ax.axhline(1, color="0.4", linewidth=0.8)
        ax.set_xticks(range(len(BATCHES)), [str(batch) for batch in BATCHES])
        ax.set_xlabel("batch size")
        ax.set_title(net)
    axes[0].set_ylabel("times faster than dense")
    axes[0].set_yscale("log", base=2)
    axes[0].legend(fontsize=7)
    plot.savefig(RESULTS / "inference.png", dpi=150)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    rows = measure()
    (RESULTS / "inference.json").write_text(json.dumps(rows, indent=2) + "\n")
    (RESULTS / "inference.md").write_text(table(rows))
    figure(rows)
    print(table(rows))


if __name__ == "__main__":
    main()
