"""Prediction by compressed networks that people have over that by the dense ones, little pruned and much.

    PYTHONPATH=.zoo taskset -c 1 python analyses/benchmarks/prediction.py

The folder ``.zoo`` is that of ``analyses/robustness/zoo.py``. Random weights; of every layer's groups a part is left,
at random. PyTorch in evaluation mode without gradients, and ONNX Runtime on one thread; dense and compressed network
take turns, and the ratio is the median of the turns' own. Each network has a process of its own. Table:
``analyses/results/prediction.md``.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "robustness")]
import zoo
from common import RESULTS

import pyro_bc
from pyro_bc.graph import onnx as export
from pyro_bc.graph.onnx import OnnxNetwork, to_onnx

#: of torchvision unless "timm." says otherwise, with the side of their pictures.
NETWORKS = {
    "resnet18": 32, "mobilenet_v2": 64, "mobilenet_v3_small": 64, "squeezenet1_1": 64, "shufflenet_v2_x1_0": 64,
    "timm.efficientnet_b0": 64, "timm.vit_tiny_patch16_224": 64, "timm.convnext_atto": 64,
}  # fmt: skip
KEPT = (0.85, 0.5)
BATCHES = (1, 256)
TURNS = 5
export.TOLERANCE = 1e-3  # networks of random weights amplify rounding


def network(name: str, side: int) -> nn.Module:
    torch.manual_seed(0)
    zoo.stand_in_for_torchvision()
    if name.startswith("timm."):
        import timm

        size = {"img_size": side} if "vit" in name else {}
        return timm.create_model(name.removeprefix("timm."), num_classes=10, **size)
    import torchvision.models as models

    return getattr(models, name)(num_classes=10)


def compressed(net: nn.Module, x: Tensor, kept: float) -> Any:
    """The network with a part of every layer's groups out, as its file holds it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = pyro_bc.BayesianNetwork(net, pyro_bc.GroupNormalJeffreys(), num_data=1000)
        guide = pyro_bc.FactorizedGuide(model)
        guide(x, torch.zeros(len(x), dtype=torch.long))
        thresholds, generator = {}, torch.Generator().manual_seed(0)
        with torch.no_grad():
            for layer, posterior in pyro_bc.summarize(guide).items():
                if posterior.statistic is None:
                    continue
                log_variance = guide.parameters_of(f"{layer}.scale")[1]
                out = torch.randperm(log_variance.numel(), generator=generator) >= kept * log_variance.numel()
                log_variance.fill_(-10.0)
                log_variance.view(-1)[out] = 20.0
                thresholds[layer.removeprefix("net.")] = 2.0
        small = pyro_bc.compress(model, guide, thresholds=thresholds)
        return pyro_bc.CompressedNetwork.from_bytes(small.to_bytes())


def seconds(predict: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """One prediction: the mean of a tenth of a second of them."""
    count, start = 0, time.perf_counter()
    while not count or time.perf_counter() - start < 0.1:
        predict(x)
        count += 1
    return (time.perf_counter() - start) / count


def ratios(dense: Callable[[Tensor], Tensor], small: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, float]:
    """Seconds of both, and the compressed network's over the dense one's, medians of turns."""
    with torch.no_grad():
        for predict in (dense, small):
            predict(x)
        turns = [(seconds(dense, x), seconds(small, x)) for _ in range(TURNS)]
    first, second = (statistics.median(column) for column in zip(*turns, strict=True))
    return {"dense": first, "compressed": second, "ratio": statistics.median(b / a for a, b in turns)}


def measured(name: str, side: int) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    net = network(name, side)
    x = torch.rand(2, 3, side, side)
    zoo.realistic_(net, x)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        runtimes = {"PyTorch": net}
        to_onnx(net, f"{folder}/dense.onnx", tuple(x.shape[1:]))
        runtimes["ONNX Runtime"] = OnnxNetwork(f"{folder}/dense.onnx", threads=1)
        parameters = sum(own.numel() for own in net.parameters())
        for kept in KEPT:
            small = compressed(net, x, kept)
            left = sum(own.numel() for own in small.network().parameters())
            to_onnx(small, f"{folder}/small.onnx")
            networks = {"PyTorch": small.network(), "ONNX Runtime": OnnxNetwork(f"{folder}/small.onnx", threads=1)}
            for runtime, own in networks.items():
                for batch in BATCHES:
                    found = ratios(runtimes[runtime], own, torch.rand(batch, 3, side, side))
                    rows.append(
                        {"network": name, "pruned": parameters / left, "runtime": runtime, "batch": batch} | found
                    )
                    print(json.dumps(rows[-1]), flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "# Prediction of compressed networks that people have, over the dense ones",
        "",
        f"`taskset -c 1 python analyses/benchmarks/prediction.py`, one thread, torch {torch.__version__}. Of every "
        f"layer's groups {' or '.join(f'{100 * kept:.0f} %' for kept in KEPT)} are left, at random; pruned is how many "
        "times fewer parameters that leaves. Milliseconds are medians, ratios (compressed over dense, below 1 is "
        f"faster) medians of {TURNS} turns.",
        "",
        "| network | pruned | runtime | batch | dense ms | compressed ms | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['network']} | {row['pruned']:.2f} | {row['runtime']} | {row['batch']} | "
            f"{1e3 * row['dense']:.2f} | {1e3 * row['compressed']:.2f} | {row['ratio']:.2f} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="one network, in this process; prints and writes nothing else")
    args = parser.parse_args()
    if args.only:
        measured(args.only, NETWORKS[args.only])
        return
    rows: list[dict[str, Any]] = []
    for name in NETWORKS:
        done = subprocess.run([sys.executable, __file__, "--only", name], stdout=subprocess.PIPE, text=True)
        rows += [json.loads(line) for line in done.stdout.splitlines()]
        (RESULTS / "prediction.json").write_text(json.dumps(rows, indent=2) + "\n")
        (RESULTS / "prediction.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
