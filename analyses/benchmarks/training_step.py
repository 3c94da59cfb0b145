"""A Bayesian training step over a dense one, the same batch and optimiser, steps of both interleaved.

    python analyses/benchmarks/training_step.py
    OMP_NUM_THREADS=1 python analyses/benchmarks/training_step.py --eager   # as Python runs them, and in bfloat16

The Bayesian step is that of ``pyro_bc.fit`` on a ``BayesianNetwork`` and its ``FactorizedGuide``, exact local
reparameterization; the dense one is cross-entropy with the same Adam. ``fit`` is timed from outside, between the
batches that it takes from its loader: everything it does is in it. The table goes to
``analyses/results/training_step.md``, and that of ``--eager`` to ``eager_step.md``; on one thread a step's time is the
processor's, so that other work beside it does not count.
"""

import argparse
import itertools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyro
import torch
from torch import Tensor, nn

import pyro_bc
from pyro_bc.app.own_network import network
from pyro_bc.app.settings import PRIORS
from pyro_bc.compression.batch_norm import fold_batch_norm

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS

CASES = {
    "cpu": [("lenet-300-100", 128), ("lenet-5-caffe", 128), ("lenet-5-caffe", 512)],
    "cuda": [("lenet-300-100", 128), ("lenet-5-caffe", 512), ("vgg-16", 128)],
}
EAGER = [("lenet-300-100", 128), ("lenet-5-caffe", 128), ("resnet-18", 32), ("vgg-16", 32)]
SHAPES = {"vgg-16": (3, 32, 32), "resnet-18": (3, 32, 32)}


class Interleaved:
    """A loader that times the step behind each batch it gave out, then does and times one step of another network.

    :param step: of the other network.
    """

    def __init__(self, x: Tensor, y: Tensor, steps: int, warmup: int, step: Callable[[], None]):
        self.x, self.y, self.steps, self.warmup, self.step = x, y, steps, warmup, step
        self.own: list[float] = []
        self.all: list[float] = []
        self.other: list[float] = []

    def __len__(self) -> int:
        return self.steps + self.warmup

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(len(self)):
            start = _now(self.x.device)
            yield self.x, self.y
            between = _now(self.x.device)
            self.step()
            end = _now(self.x.device)
            self.all += [between - start, end - between]
            if number >= self.warmup:
                self.own.append(between - start)
                self.other.append(end - between)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def dense_step(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """One step of Adam on the cross-entropy."""
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()

    return step


def measure(
    name: str, batch: int, prior: str, steps: int, device: str, rounding: float, precision: str, is_compiled: bool
) -> dict:
    """One row; ``rounding`` is 1 for steps with rounded codes, 0 for those with draws from their cells."""
    torch.manual_seed(0)
    shape = SHAPES.get(name, (1, 28, 28))
    x, y = torch.rand(batch, *shape, device=device), torch.randint(10, (batch,), device=device)
    net = network(name)(shape, 10).to(device)
    if any(isinstance(module, nn.BatchNorm2d) for module in net.modules()):
        net.eval()  # normalisation is folded before the Bayesian training
        net = fold_batch_norm(net, x[:2])
    with torch.device(device):
        model = pyro_bc.BayesianNetwork(net, PRIORS[prior], num_data=60_000).to(device)
        guide = pyro_bc.FactorizedGuide(model)
        loader = Interleaved(x, y, steps, max(3, steps // 10), dense_step(net, x, y))
        pyro.clear_param_store()
        start = time.perf_counter()
        pyro_bc.fit(
            model,
            guide,
            loader,
            epochs=1,
            progress=False,
            compile=is_compiled,
            rounding=rounding,
            precision=precision,
            kl_weight=1.0,
        )
        seconds = time.perf_counter() - start - sum(loader.all)
    own, other = statistics.median(loader.own), statistics.median(loader.other)
    return {
        "net": name, "prior": prior + ", rounded" * bool(rounding), "precision": precision, "batch": batch,
        "steps": steps,
        "parameters": sum(p.numel() for p in net.parameters()),
        "compile_seconds": seconds, "bayesian_ms": 1e3 * own, "dense_ms": 1e3 * other, "ratio": own / other,
        "ratio_quartiles": [q for i, q in enumerate(statistics.quantiles(
            [a / b for a, b in zip(loader.own, loader.other, strict=True)], n=4)) if i != 1],
    }  # fmt: skip


def table(rows: list[dict], machine: str, option: str) -> str:
    lines = [
        "# Training step over dense step",
        "",
        f"`python analyses/benchmarks/training_step.py{option}`, {machine}, torch {torch.__version__}. Median of the "
        "steps of one run in which both networks take turns; quartiles of the ratio of neighbours. `pyro_bc.fit` "
        "against cross-entropy in float32, both with Adam; "
        + ("as Python runs it." if option else "compiled, which took the seconds in the last column."),
        "",
        "| network | prior | products | batch | steps | dense ms | Bayesian ms | ratio | quartiles | begins after s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        low, high = r["ratio_quartiles"]
        lines.append(
            f"| {r['net']} | {r['prior']} | {r['precision']} | {r['batch']} | {r['steps']} | {r['dense_ms']:.2f} | "
            f"{r['bayesian_ms']:.2f} | {r['ratio']:.2f} | {low:.2f} to {high:.2f} | {r['compile_seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=CASES, default="cpu")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--priors", nargs="+", choices=PRIORS, default=["gnj", "ghs", "learned"])
    parser.add_argument("--dry", action="store_true", help="print only")
    parser.add_argument("--eager", action="store_true", help="steps as Python runs them, of more networks")
    args = parser.parse_args()
    machine = f"{torch.get_num_threads()} threads of {platform.machine()}"
    if args.device == "cuda":
        machine = torch.cuda.get_device_name()
    rows = []
    option = " --eager" if args.eager else ""
    for name, batch in EAGER if args.eager else CASES[args.device]:
        for prior in args.priors:
            steps = args.steps if name == "lenet-300-100" else args.steps // (3 if batch > 32 else 30)
            precisions = ("float32", "bf16") if args.eager and name != "lenet-300-100" else ("float32",)
            for rounding, precision in itertools.product((0.0, 1.0) if "learned" in prior else (0.0,), precisions):
                rows.append(measure(name, batch, prior, steps, args.device, rounding, precision, not args.eager))
                print(table(rows[-1:], machine, option).splitlines()[-1], flush=True)
    if not args.dry:
        suffix = "" if args.device == "cpu" else "-cuda"
        name = ("eager" if args.eager else "training") + "_step"
        (RESULTS / f"{name}{suffix}.json").write_text(json.dumps(rows, indent=2) + "\n")
        (RESULTS / f"{name}{suffix}.md").write_text(table(rows, machine, option))


if __name__ == "__main__":
    main()
