"""The coder on 15 million weights: seconds to encode and decode on one core, and memory beside the weights.

    python analyses/benchmarks/coder.py

One fully connected layer of 3,000 inputs and 5,000 outputs, its weights drawn from a Laplace density, is compressed,
written to bytes and read back, each in a process of its own with one thread. Memory is the process's peak (Linux)
beyond what it held before, as a multiple of the weights in float32; the integers that encode starts from are in it.
The table goes to ``analyses/results/coder.md``.
"""

import argparse
import json
import multiprocessing
import pickle
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import pyro_bc

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS

INPUTS, OUTPUTS = 3000, 5000


def make(folder: str) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(INPUTS, OUTPUTS)
    with torch.no_grad():
        layer.weight.copy_(torch.distributions.Laplace(0.0, 0.02).sample(layer.weight.shape))
    x, y = torch.rand(2, INPUTS), torch.tensor([0, 1])
    model = pyro_bc.BayesianNetwork(torch.nn.Sequential(layer), pyro_bc.StandardNormal(), num_data=2)
    guide = pyro_bc.FactorizedGuide(model)
    guide(x, y)
    # The pickle is of this benchmark alone: it holds what encode starts from.
    Path(folder, "network").write_bytes(pickle.dumps(pyro_bc.compress(model, guide)))


def _measured(action: Any) -> tuple[Any, dict[str, float]]:
    torch.set_num_threads(1)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, start = _memory("VmRSS"), time.perf_counter()
    result = action()
    return result, {"seconds": time.perf_counter() - start, "bytes": _memory("VmHWM") - before}


def _memory(name: str) -> int:
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[name].split()[0])


def encode(folder: str) -> dict[str, float]:
    small = pickle.loads(Path(folder, "network").read_bytes())
    data, figures = _measured(small.to_bytes)
    figures["bytes"] += sum(8 * tensor.codes.numel() for tensor in small.tensors.values())  # what it starts from
    Path(folder, "network.pbc").write_bytes(data)
    return figures


def decode(folder: str) -> dict[str, float]:
    data = Path(folder, "network.pbc").read_bytes()
    decoded, figures = _measured(lambda: pyro_bc.CompressedNetwork.from_bytes(data))
    _, loading = _measured(lambda: pyro_bc.load(Path(folder, "network.pbc")))
    figures |= {f"load_{name}": value for name, value in loading.items()}
    small = pickle.loads(Path(folder, "network").read_bytes())
    for a, b in zip(small.tensors.values(), decoded.tensors.values(), strict=True):
        if not torch.equal(a.codes, b.codes):
            raise SystemExit("what was read is not what was written")
    return figures


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    weights, processes = INPUTS * OUTPUTS, multiprocessing.get_context("spawn")
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for action in (make, encode, decode):
            with processes.Pool(1) as pool:
                rows[action.__name__] = pool.apply(action, (folder,))
        size = Path(folder, "network.pbc").stat().st_size
    lines = [
        "# The coder on 15 million weights",
        "",
        f"`python analyses/benchmarks/coder.py`: {weights:,} weights, {size:,} bytes ({8 * size / weights:.2f} bits "
        "each), one thread, each step in a process of its own.",
        "",
        "| | seconds | peak memory beyond the start, MB | as multiple of the weights in float32 |",
        "|---|---|---|---|",
    ]
    decode_row = rows["decode"]
    loading = {"seconds": decode_row["load_seconds"], "bytes": decode_row["load_bytes"]}
    shown = {"encode": rows["encode"], "decode to integers": decode_row, "load: a network of float32 weights": loading}
    for name, row in shown.items():
        lines.append(
            f"| {name} | {row['seconds']:.2f} | {row['bytes'] / 1e6:.0f} | {row['bytes'] / (4 * weights):.1f} |"
        )
    (RESULTS / "coder.md").write_text("\n".join(lines) + "\n")
    (RESULTS / "coder.json").write_text(json.dumps(rows | {"weights": weights, "file_bytes": size}, indent=2) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
