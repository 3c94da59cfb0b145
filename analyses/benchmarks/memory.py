"""How much memory a fit takes at its peak, beside a dense training of the same network and batch.

    python analyses/benchmarks/memory.py

Every line is a process of its own, which takes a few steps of Adam; its peak is what the system counts as resident,
beyond what it held with the packages imported. The table goes to ``analyses/results/memory.md``.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from training_step import dense_step

import pyro_bc
from pyro_bc.app.own_network import network
from pyro_bc.compression.batch_norm import fold_batch_norm
from pyro_bc.data import Batches

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS

#: pictures' side, batch.
CASES = {"lenet-5-caffe": (28, 128), "resnet-18": (32, 64), "vgg-16": (32, 64), "alexnet": (224, 16)}
WAYS = ("dense", "eager", "compiled")


def alexnet() -> nn.Module:
    """As torchvision has it, without dropout (Krizhevsky 2014)."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    layers += [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    for inputs, outputs in ((192, 384), (384, 256), (256, 256)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
    layers += [nn.MaxPool2d(3, 2), nn.Flatten(), nn.Linear(256 * 36, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(4096, 1000))


def of_process(field: str) -> int:
    """Bytes: ``VmHWM`` is the most that was resident, ``VmRSS`` what is."""
    line = next(own for own in Path("/proc/self/status").read_text().splitlines() if own.startswith(field))
    return 1024 * int(line.split()[1])


def worker(name: str, way: str) -> dict[str, Any]:
    size, batch = CASES[name]
    torch.manual_seed(0)
    before = of_process("VmRSS")
    shape = (1 if size == 28 else 3, size, size)
    net = alexnet() if name == "alexnet" else network(name)(shape, 10)
    x, y = torch.rand(batch, *shape), torch.randint(10, (batch,))
    if any(isinstance(module, nn.BatchNorm2d) for module in net.modules()):
        net = fold_batch_norm(net.eval(), x[:2])  # as it is before the Bayesian training
    if way == "dense":
        step = dense_step(net, x, y)
        for _ in range(4):
            step()
    else:
        model = pyro_bc.BayesianNetwork(net, pyro_bc.GroupNormalJeffreys(), num_data=60_000)
        loader = Batches(x.repeat(4, 1, 1, 1), y.repeat(4), batch)
        pyro_bc.fit(model, pyro_bc.FactorizedGuide(model), loader, epochs=1, kl_weight=1.0, progress=False,
                    compile=way == "compiled")  # fmt: skip
    weights = sum(p.numel() for p in net.parameters())
    return {"parameters": weights, "bytes": of_process("VmHWM") - before}


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "# Memory of a fit",
        "",
        f"`python analyses/benchmarks/memory.py`, one thread, torch {torch.__version__}: most memory of a process that "
        "takes four steps of Adam, beyond what it held with the packages imported; `pyro_bc.fit` with the group "
        "normal-Jeffreys prior, as Python runs it and compiled, beside cross-entropy; MB, and times the dense one.",
        "",
        "| network | parameters | batch | dense | eager | ratio | compiled | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["net"] for row in rows):
        own = {row["way"]: row["bytes"] for row in rows if row["net"] == name}
        first = next(row for row in rows if row["net"] == name)
        cells = [f"{own['dense'] / 1e6:,.0f}"]
        for way in WAYS[1:]:
            cells += [f"{own[way] / 1e6:,.0f}", f"{own[way] / own['dense']:.2f}"] if way in own else ["", ""]
        lines.append(f"| {name} | {first['parameters']:,} | {CASES[name][1]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="*", default=list(CASES))
    parser.add_argument("--ways", nargs="*", default=WAYS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(worker(*args.worker)))
        return
    rows = []
    for name in args.only:
        for way in args.ways:
            command = [sys.executable, str(Path(__file__).resolve()), "--worker", name, way]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows.append({"net": name, "way": way} | json.loads(done.stdout.strip().splitlines()[-1]))
            print(rows[-1], flush=True)
    if args.only == list(CASES):
        (RESULTS / "memory.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
