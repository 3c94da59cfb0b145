"""A convolutional network of 90 million parameters from ``check`` to a loaded file: seconds and memory.

    OMP_NUM_THREADS=1 python analyses/benchmarks/whole_line.py

Random weights and pictures; one step of ``fit``, then half of the groups of every layer are forced out. On one thread
seconds are the processor's, so that other work beside it does not count. Writes ``analyses/results/whole_line.md``.
"""

import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pyro_bc

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS

WIDTHS = (64, 256, 512, 1152, 1152, 1152, 1152, 1152, 1152, 1152, 1152)


def network() -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = 3
    for number, width in enumerate(WIDTHS):
        stride = 2 if number in (1, 2, 3) else 1
        layers += [nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def main() -> None:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    net = network().eval()
    x, y = torch.rand(4, 3, 32, 32), torch.randint(10, (4,))
    count = sum(p.numel() for p in net.parameters())
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    lines = ["| step | seconds | most memory so far, GiB |", "|---|---|---|"]

    def timed(name: str, step: Callable[[], Any]) -> Any:
        start = clock()
        result = step()
        gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        lines.append(f"| {name} | {clock() - start:.1f} | {gib:.1f} |")
        print(lines[-1], flush=True)
        return result

    timed("check", lambda: pyro_bc.check(net, x))
    model = pyro_bc.BayesianNetwork(net, pyro_bc.GroupNormalJeffreys(), num_data=50_000)
    guide = pyro_bc.FactorizedGuide(model, init_log_variance=-14.0)  # weights this small are noise to the usual one
    timed(
        "fit, one step and what comes before it",
        lambda: pyro_bc.fit(model, guide, [(x, y)], epochs=1, kl_weight=1, progress=False, compile=False),
    )
    for name, log_variance in guide.log_variances.named_parameters():
        if name.endswith("scale"):
            log_variance.data[torch.rand(log_variance.shape) < 0.5] = 6.0
    small = timed("compress", lambda: pyro_bc.compress(model, guide))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "large.pbc"
        size = timed("save", lambda: small.save(file))
        loaded = timed("load", lambda: pyro_bc.load(file))
    timed("predict", lambda: loaded(x))
    (RESULTS / "whole_line.md").write_text(
        f"# A large network through the whole line\n\n`python analyses/benchmarks/whole_line.py`, {count:,} parameters,"
        f" {torch.get_num_threads()} thread(s), a file of {size:,} bytes.\n\n" + "\n".join(lines) + "\n"
    )


if __name__ == "__main__":
    main()
