"""What the posterior is compared with, measured by us under the same rules: magnitudes and k-means, and group lasso.

    python analyses/beyond/competitors.py --net lenet-300-100 --data-dir ../shared/data --seeds 0 1 2

``magnitude``
    Deep Compression (Han et al. 2016, 1510.00149): the smallest weights of every layer are set to 0 in steps, with
    training in between; what is left of a layer is clustered by k-means into shared values. Stored: the clusters'
    numbers under the adaptive code of this package, and the shared values as float32.
``lasso``
    Group lasso (Wen et al. 2016, 1608.03665): a proximal step on the norm of every group (input unit or filter) with
    each step of Adam; what is left is trained on and stored as fixed-point numbers.

How sparse, how many clusters, how strong a penalty and how many bits is chosen on the last 5,000 training pictures,
with the rule that the error there may rise by at most 0.2 points (LeNet-5: 0.1) over the dense network's, or, where no
choice manages that, for the lowest error; the test set is read once, for what was chosen. Bytes are those of the
range-coded stream, shared values, and a header as short as that of our own files. Results go to
``analyses/results/competitors.md``.
"""

import argparse
import copy
import json
import math
import sys
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor, nn

from pyro_bc.app.datasets import Dataset, load_dataset
from pyro_bc.app.own_network import network
from pyro_bc.data import Batches
from pyro_bc.file.coder import Encoder
from pyro_bc.inspection.diagnostics import error_percent
from pyro_bc.priors.base import group_dim

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS

HEADER = 21  # bytes, of our files of the same networks
ALLOWED = {"lenet-300-100": 0.2, "lenet-5-caffe": 0.1}
SPARSITIES = (0.9, 0.93, 0.95, 0.965, 0.975, 0.983, 0.988, 0.992, 0.995)
CLUSTERS = (4, 8, 16, 32)
PENALTIES = (1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3)
BITS = (4, 5, 6, 8)


def train(net: nn.Module, data: Dataset, epochs: int, rate: float, after_step=lambda: None) -> None:
    optimizer = torch.optim.Adam(net.parameters(), rate, fused=True)
    batches = Batches(data.train_x, data.train_y, 128)
    total = epochs * len(batches)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=total)
    net.train()
    for _ in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
            schedule.step()
            after_step()
    net.eval()


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in net.named_parameters() if p.dim() > 1}


def coded_bytes(codes: list[Tensor], values: int) -> int:
    """Bytes of integers under one adaptive stream, and of shared values in float32."""
    encoder = Encoder()
    for code in codes:
        encoder.adaptive(code.flatten().numpy())
    return HEADER + len(encoder.data()) + 4 * values


def kmeans(values: Tensor, clusters: int, steps: int = 30) -> tuple[Tensor, Tensor]:
    """Centres, spread evenly at first (Han et al. 2016, section 3.2), and the nearest one of every value."""
    centres = torch.linspace(float(values.min()), float(values.max()), clusters)
    for _ in range(steps):
        nearest = (values[:, None] - centres).abs().argmin(1)
        sums = torch.zeros(clusters).index_add(0, nearest, values)
        counts = torch.bincount(nearest, minlength=clusters)
        centres = torch.where(counts > 0, sums / counts.clamp_min(1), centres)
    return centres, (values[:, None] - centres).abs().argmin(1)


@torch.no_grad()
def share(net: nn.Module, clusters: int) -> tuple[nn.Module, dict[str, Tensor], int]:
    """A copy with shared values in the weights that are not 0 and in the biases; the numbers of their clusters."""
    shared, numbers, count = copy.deepcopy(net), {}, 0
    for name, p in shared.named_parameters():
        flat = p.view(-1)
        kept = flat.nonzero()[:, 0] if p.dim() > 1 else torch.arange(len(flat))
        number = min(clusters, len(kept))
        centres, nearest = kmeans(flat[kept], number)
        flat[kept] = centres[nearest]
        code = torch.zeros(len(flat), dtype=torch.int64)
        # Frequent clusters get small numbers, which the code expects.
        order = torch.bincount(nearest, minlength=number).argsort(descending=True).argsort()
        code[kept] = order[nearest] + 1
        numbers[name], count = code, count + number
    return shared, numbers, count


def better(error: float, size: int, best: dict | None, limit: float) -> bool:
    """Whether a choice is smaller than the best so far within the limit; where none is, whether its error is lower."""
    if best is None:
        return True
    if best["held_out"] > limit:
        return error < best["held_out"]
    return error <= limit and size < best["bytes"]


def most_zeros(weight: Tensor) -> float:
    """How much of a layer may go: of the last every output needs some, and filters on one channel have few weights."""
    if weight.dim() > 2:
        return 0.5 if weight.shape[1] == 1 else 0.95
    return 0.75 if weight.shape[0] <= 10 else 1.0


def magnitude(dense: nn.Module, data: Dataset, limit: float, epochs: int) -> dict:
    net, best = copy.deepcopy(dense), None
    for sparsity in track(SPARSITIES, "magnitude"):
        masks = {}
        for name, p in weights(net).items():
            part = min(sparsity, most_zeros(p))
            cut = p.abs().flatten().kthvalue(max(1, math.ceil(part * p.numel()))).values
            masks[name] = (p.abs() > cut).float()

        def apply(masks=masks) -> None:
            with torch.no_grad():
                for name, p in weights(net).items():
                    p.mul_(masks[name])

        apply()
        train(net, data, epochs, 1e-3, apply)
        for clusters in CLUSTERS:
            shared, numbers, count = share(net, clusters)
            error = error_percent(shared, data.test_x, data.test_y)
            size = coded_bytes(list(numbers.values()), count)
            if better(error, size, best, limit):
                left = sum(int(mask.sum()) for mask in masks.values())
                best = {"bytes": size, "held_out": error, "choice": f"{sparsity:.1%} zeros, {clusters} values a layer",
                        "nonzero": left, "net": shared, "pruned": None}  # fmt: skip
    assert best is not None
    return best


def lasso(dense: nn.Module, data: Dataset, limit: float, epochs: int) -> dict:
    best = None
    for penalty in track(PENALTIES, "lasso"):
        net = copy.deepcopy(dense)
        rate = 1e-3

        def shrink(net=net, step=rate * penalty) -> None:
            with torch.no_grad():
                for p in weights(net).values():
                    dims = [d for d in range(p.dim()) if d != group_dim(p.shape)]
                    norm = p.square().sum(dims, keepdim=True).sqrt()
                    size = math.sqrt(p.numel() / p.shape[group_dim(p.shape)])
                    p.mul_((1 - 30 * step * size / norm.clamp_min(1e-12)).clamp_min(0))

        train(net, data, 2 * epochs, rate, shrink)
        masks = {name: (p != 0).float() for name, p in weights(net).items()}

        def apply(net=net, masks=masks) -> None:
            with torch.no_grad():
                for name, p in weights(net).items():
                    p.mul_(masks[name])

        train(net, data, epochs, 5e-4, apply)
        groups = [int((p != 0).movedim(group_dim(p.shape), 0).flatten(1).any(1).sum()) for p in weights(net).values()]
        for bits in BITS:
            rounded, codes = copy.deepcopy(net), []
            with torch.no_grad():
                for p in rounded.parameters():
                    largest = float(p.abs().max())
                    step = 2.0 ** math.ceil(math.log2(largest / (2 ** (bits - 1) - 1))) if largest else 1.0
                    codes.append((p / step).round().long())
                    p.copy_(codes[-1] * step)
            error = error_percent(rounded, data.test_x, data.test_y)
            # Groups that are 0 are known from one bit each.
            kept = [
                c
                if c.dim() == 1
                else c.movedim(group_dim(c.shape), 0)[c.movedim(group_dim(c.shape), 0).flatten(1).any(1)]
                for c in codes
            ]
            size = coded_bytes(kept, 0) + sum(math.ceil(c.shape[group_dim(c.shape)] / 8) for c in codes if c.dim() > 1)
            if better(error, size, best, limit):
                left = sum(int(c.count_nonzero()) for c in codes if c.dim() > 1)
                best = {"bytes": size, "held_out": error, "choice": f"penalty {penalty:g}, {bits} bits",
                        "nonzero": left, "net": rounded, "pruned": groups}  # fmt: skip
    assert best is not None
    return best


METHODS = {"magnitude": magnitude, "lasso": lasso}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", choices=ALLOWED, default="lenet-300-100")
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--epochs", type=int, default=4, help="between two steps of pruning")
    args = parser.parse_args()
    whole = load_dataset("mnist", args.data_dir)
    data = whole.development()
    file = RESULTS / "competitors.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    for seed in args.seeds:
        torch.manual_seed(seed)
        dense = network(args.net)(data.picture_shape, data.classes)
        train(dense, data, 10, 1e-3)
        held_out = error_percent(dense, data.test_x, data.test_y)
        parameters = sum(p.numel() for p in dense.parameters())
        for name in args.methods:
            method = METHODS[name]
            best = method(dense, data, held_out + ALLOWED[args.net], args.epochs)
            net, groups = best.pop("net"), best.pop("pruned")
            best |= {
                "net": args.net, "method": method.__name__, "seed": seed, "groups": groups,
                "dense_error": error_percent(dense, whole.test_x, whole.test_y),
                "error": error_percent(net, whole.test_x, whole.test_y), "maximum": 4 * parameters / best["bytes"],
                "nonzero_percent": 100 * best["nonzero"] / parameters,
            }  # fmt: skip
            found[f"{args.net}-{method.__name__}-{seed}"] = best
            file.write_text(json.dumps(found, indent=2) + "\n")
            (RESULTS / "competitors.md").write_text(table(found))
            print(table(found))


def table(found: dict) -> str:
    lines = [
        "# Magnitudes and k-means, group lasso",
        "",
        "`python analyses/beyond/competitors.py --net NET --data-dir DIR --seeds 0 1 2`. Trained on "
        "55,000 pictures of MNIST, "
        "chosen on 5,000 more, test errors read once. Biases count.",
        "",
        "| network | method | seed | dense error % | error % | groups left | nonzero % | maximum | bytes | chosen |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in found.values():
        groups = "-".join(map(str, r["groups"])) if r["groups"] else ""
        lines.append(
            f"| {r['net']} | {r['method']} | {r['seed']} | {r['dense_error']:.2f} | {r['error']:.2f} | {groups} | "
            f"{r['nonzero_percent']:.1f} | {r['maximum']:.0f} | {r['bytes']:,} | {r['choice']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
