"""How long it takes to load a compressed network in a new process, over ``import torch`` alone.

    python analyses/benchmarks/import_time.py

Each figure is the median of whole processes of one thread, those of all rows taking turns, after a round that brings
their files into the page cache. Writes ``analyses/results/import_time.md``.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"
TORCH = "import torch"
LOAD = "import pyro_bc; pyro_bc.load('{}')"
STATEMENTS = {f"`{TORCH}`": TORCH} | {
    f"`import pyro_bc; pyro_bc.load(…)`, {what}": LOAD.format(file)
    for what, file in {
        "LeNet-300-100": RESULTS / "lenet-300-100-mnist-ghs-seed0" / "network.pbc",
        "LeNet-5-Caffe": RESULTS / "lenet-5-caffe-mnist-ghs-seed0" / "network.pbc",
        "the smallest LeNet-5-Caffe": RESULTS / "records" / "lenet-5-caffe-small.pbc",
        "a transformer, whose operations' shapes torch is asked for": GOLDEN / "2-transformer.pbc",
    }.items()
} | {"`import pyro_bc; pyro_bc.fit`": "import pyro_bc; pyro_bc.fit"}  # fmt: skip


def seconds(statement: str) -> float:
    """Of one process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    taken = {name: [] for name in STATEMENTS}
    for repeat in range(args.repeats + 1):
        for name, statement in STATEMENTS.items():
            one = seconds(statement)
            if repeat:  # the first round fills the page cache
                taken[name].append(one)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    lines = [
        "# Loading a network in a new process",
        "",
        f"`python analyses/benchmarks/import_time.py`: torch {torch.__version__}, Python {sys.version.split()[0]}, "
        f"medians of {args.repeats} processes of one thread.",
        "",
        f"| statement | seconds | over `{TORCH}` |",
        "|---|---|---|",
        *(f"| {name} | {s:.2f} | {s / medians[f'`{TORCH}`']:.2f} |" for name, s in medians.items()),
    ]
    text = "\n".join(lines) + "\n"
    (RESULTS / "import_time.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
