"""How a fit scales: examples per second with 1 and 2 processes, time and memory per step as the network grows.

    python analyses/benchmarks/scaling.py

Every line is a process (or two, under torchrun) of its own, on random data. The tables and a figure go to
``analyses/results/scaling.md`` and ``.png``.
"""

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.distributed as distributed
from torch import nn

import pyro_bc
from pyro_bc.app.own_network import network
from pyro_bc.compression.batch_norm import fold_batch_norm

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "beyond")]
from common import RESULTS
from six_networks import resnet_20

THROUGHPUT = [
    ("lenet-300-100", 128, 300),
    ("lenet-5-caffe", 128, 30),
    ("lenet-5-caffe", 512, 10),
    ("resnet-20", 128, 8),
]
#: processes and threads of each.
MACHINES = [(1, 1), (1, 2), (2, 1)]
#: width of the two hidden layers: 1e5 to 1e8 parameters of a network with 784 inputs.
WIDTHS = [110, 300, 690, 1_800, 2_800, 6_000, 9_600]


class Timed:
    """The same batch again and again, and when each was asked for in the last epoch."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, steps: int):
        self.x, self.y, self.steps = x, y, steps
        self.times: list[float] = []

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Any:
        self.times = []
        for _ in range(self.steps):
            self.times.append(time.perf_counter())
            yield self.x, self.y
        self.times.append(time.perf_counter())

    def seconds(self) -> float:
        """Median of a step; what the first epoch does once, checks of every batch among it, is not in it."""
        return statistics.median(b - a for a, b in itertools.pairwise(self.times))


def fitted(net: nn.Module, shape: tuple[int, ...], batch: int, steps: int, compiled: bool) -> float:
    """Seconds of a step of ``fit``."""
    torch.manual_seed(0)
    x, y = torch.rand(batch, *shape), torch.randint(10, (batch,))
    model = pyro_bc.BayesianNetwork(net, pyro_bc.GroupNormalJeffreys(), num_data=60_000)
    loader = Timed(x, y, steps)
    pyro_bc.fit(model, pyro_bc.FactorizedGuide(model), loader, epochs=2, progress=False, compile=compiled)
    return loader.seconds()


def throughput_worker(name: str, batch: int, steps: int) -> None:
    if "WORLD_SIZE" in os.environ:
        distributed.init_process_group("gloo")
    shape = (3, 32, 32) if name == "resnet-20" else (1, 28, 28)
    net = (
        fold_batch_norm(resnet_20().eval(), torch.rand(2, *shape)) if name == "resnet-20" else network(name)(shape, 10)
    )
    seconds = fitted(net, shape, batch, steps, compiled=True)
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        print(json.dumps(seconds))
    if distributed.is_initialized():
        distributed.destroy_process_group()


def growth_worker(width: int, compiled: bool) -> None:
    layers = [nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)]
    net = nn.Sequential(nn.Flatten(), *layers)
    before = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    parameters = sum(p.numel() for p in net.parameters())
    seconds = fitted(net, (1, 28, 28), 128, 40 if parameters < 3e6 else 6, compiled)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"parameters": parameters, "seconds": seconds, "bytes": peak - before + 4 * parameters}))


def _child(processes: int, threads: int, *arguments: Any) -> Any:
    program = [sys.executable]
    if processes > 1:
        program += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*program, str(Path(__file__).resolve()), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(growth: list[dict[str, Any]]) -> dict[str, Any]:
    """Both tables; the second anew where there is none."""
    throughput = []
    for name, batch, steps in THROUGHPUT:
        for processes, threads in MACHINES:
            seconds = _child(processes, threads, "--throughput", name, batch, steps)
            row = {"net": name, "batch": batch, "processes": processes, "threads": threads, "seconds": seconds}
            throughput.append(row | {"examples_per_second": processes * batch / seconds})
            print(throughput[-1], flush=True)
    for width in WIDTHS if not growth else []:
        for compiled in (False, True):
            growth.append(_child(1, 2, "--growth", width, int(compiled)) | {"compiled": compiled})
            print(growth[-1], flush=True)
    return {"throughput": throughput, "growth": growth}


def tables(found: dict[str, Any]) -> str:
    lines = [
        "# How a fit scales",
        "",
        f"`python analyses/benchmarks/scaling.py`, two cores, torch {torch.__version__}, group normal-Jeffreys prior, "
        "random data, medians over steps of `fit`.",
        "",
        "## Processes",
        "",
        "Compiled steps. A batch is that of each process; two processes exchange gradients by gloo after every step.",
        "",
        "| network | batch | processes x threads | ms per step | examples per second | of one process on one core |",
        "|---|---|---|---|---|---|",
    ]
    for r in found["throughput"]:
        one = next(o for o in found["throughput"] if (o["net"], o["batch"]) == (r["net"], r["batch"]))
        lines.append(
            f"| {r['net']} | {r['batch']} | {r['processes']} x {r['threads']} | {1e3 * r['seconds']:.2f} | "
            f"{r['examples_per_second']:,.0f} | {r['examples_per_second'] / one['examples_per_second']:.2f} |"
        )
    lines += [
        "",
        "## Parameters",
        "",
        "Two hidden layers, batch 128, two threads. Bytes are the peak of the process beyond what it held with the "
        "packages imported. A parameter has two numbers (mean and log-variance), each with a gradient and two moments "
        "of Adam: 32 bytes are the least.",
        "",
        "| parameters | step | ms per step | ns per parameter | MB | bytes per parameter |",
        "|---|---|---|---|---|---|",
    ]
    for r in found["growth"]:
        lines.append(
            f"| {r['parameters']:,} | {'compiled' if r['compiled'] else 'eager'} | {1e3 * r['seconds']:.1f} | "
            f"{1e9 * r['seconds'] / r['parameters']:.1f} | {r['bytes'] / 1e6:,.0f} | "
            f"{r['bytes'] / r['parameters']:.0f} |"
        )
    return "\n".join(lines) + "\n\n![time and memory against parameters](scaling.png)\n"


def figure(found: dict[str, Any]) -> None:
    plot, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for compiled, label in ((False, "eager"), (True, "compiled")):
        rows = [r for r in found["growth"] if r["compiled"] == compiled]
        sizes = [r["parameters"] for r in rows]
        axes[0].loglog(sizes, [1e3 * r["seconds"] for r in rows], "o-", label=label)
        axes[1].loglog(sizes, [r["bytes"] / 1e6 for r in rows], "o-", label=label)
    axes[0].set_ylabel("ms per step")
    axes[1].set_ylabel("MB at the peak")
    axes[1].loglog(
        sizes, [32 * size / 1e6 for size in sizes], color="0.5", linestyle="--", label="32 bytes a parameter"
    )
    for ax in axes:
        ax.set_xlabel("parameters")
        ax.legend()
    plot.savefig(RESULTS / "scaling.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", action="store_true", help="the first table alone; the second as it is")
    parser.add_argument("--throughput", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--growth", nargs=2, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.throughput:
        name, batch, steps = arguments.throughput
        return throughput_worker(name, int(batch), int(steps))
    if arguments.growth:
        return growth_worker(arguments.growth[0], bool(arguments.growth[1]))
    file = RESULTS / "scaling.json"
    found = measure(json.loads(file.read_text())["growth"] if arguments.processes else [])
    file.write_text(json.dumps(found, indent=2) + "\n")
    (RESULTS / "scaling.md").write_text(tables(found))
    figure(found)
    print(tables(found))


if __name__ == "__main__":
    main()
