"""A transformer encoder on digits, end to end: heads and feed-forward units are groups, and the width of its stream.

    python analyses/examples/transformer.py [--epochs N] [--seeds N …] [--out FOLDER]

Each picture is a sentence of eight tokens, its rows. The network is made of torch's own ``nn.TransformerEncoder``; it
is pretrained, fitted with the group horseshoe, with scales of each layer's own groups and with scales of the residual
stream's channels beside them, compressed, and the file's network measured in a new process that does not know the
class. The table goes to ``analyses/results/transformer.md``, the last file beside it.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

import pyro_bc
from pyro_bc.app.datasets import load_dataset
from pyro_bc.inspection.diagnostics import error_percent
from pyro_bc.runtime.files import write_atomically

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS

HEADS, LAYERS, WIDTH, HIDDEN = 8, 2, 64, 256

PRIORS = {
    "of each layer": pyro_bc.GroupHorseshoe(),
    "and channels of the stream": pyro_bc.ResidualWidth(pyro_bc.GroupHorseshoe()),
}


class RowTransformer(nn.Module):
    """Rows of a picture ``(N, 1, 8, 8)`` as tokens, a learned position, an encoder, the mean of its outputs."""

    def __init__(self, classes: int = 10):
        super().__init__()
        self.embed = nn.Linear(8, WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn(8, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, dropout=0.1, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x.squeeze(1)) + self.position).mean(1))


def pretrain(net, data, epochs):
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    net.train()
    for _ in range(epochs):
        for x, y in pyro_bc.data.Batches(data.train_x, data.train_y, 64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    return net.eval()


def measured(net, data, prior, args, seed, file):
    """Fit, compress, and read the file in a new process: the model's guide, the network, and its error."""
    model = pyro_bc.BayesianNetwork(net, prior, num_data=len(data.train_x))
    guide = pyro_bc.FactorizedGuide(model)
    batches = pyro_bc.data.Batches(data.train_x, data.train_y, 64)
    pyro_bc.fit(
        model, guide, batches, epochs=args.epochs, log_learning_rate=2e-2, kl_weight=args.kl_weight, seed=seed,
        progress=sys.stderr.isatty(),
    )  # fmt: skip
    small = pyro_bc.compress(model, guide)
    size = small.save(file)
    command = [sys.executable, "-m", "pyro_bc", "evaluate", str(file), "--data", "digits", "--json"]
    command += ["--development"] if args.development else []
    evaluated = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return guide, small, size, evaluated["error_percent"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--pretrain-epochs", type=int, default=40)
    parser.add_argument("--kl-weight", type=float, help="the weight that fit finds, unless it is given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--development", action="store_true", help="measure on held-out training data")
    args = parser.parse_args()
    data = load_dataset("digits")
    if args.development:
        data = data.development()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "transformer-digits-ghs.pbc"
    rows, left = [], []
    for seed in args.seeds:
        torch.manual_seed(seed)
        net = pretrain(RowTransformer(), data, args.pretrain_epochs)
        dense_error = error_percent(net, data.test_x, data.test_y)
        for name, prior in PRIORS.items():
            guide, small, size, error = measured(net, data, prior, args, seed, file)
            figures = small.compression(size)
            kept = [int(threshold.keeps(own).sum()) for own, threshold in cuts(guide, small)]
            channels = f"{kept[0]} of {WIDTH}" if kept else ""
            rows.append(
                f"| {seed} | {name} | {guide.kl_weight:.2g} | {dense_error:.2f} | {error:.2f} | {channels} | "
                f"{figures.pruning:.1f} | {figures.fast_prediction:.0f} | {figures.maximum:.0f} | {size:,} |"
            )
            left = [
                f"| `{own.name}` | {'×'.join(map(str, own.dense_shape))} | "
                f"{'×'.join(map(str, own.weight.codes.shape))} | {own.weight.bits} |"
                for own in small.layers
            ]
            write_atomically(args.out / "transformer.md", page(args, rows, left, seed, len(data.test_x)).encode())
            print(rows[-1], flush=True)


def cuts(guide, small):
    """The channels that cross layers, and where they were cut."""
    layers = pyro_bc.summarize(guide)
    return [(layers[name], small.thresholds[name]) for name in guide.shared]


def page(args, rows, left, seed, examples) -> str:
    """The results so far; the layers are those of the last network."""
    weight = "" if args.kl_weight is None else f" --kl-weight {args.kl_weight:g}"
    return "\n".join(
        [
            "# Transformer encoder on digits, rows as tokens",
            "",
            f"`python analyses/examples/transformer.py --epochs {args.epochs} --pretrain-epochs {args.pretrain_epochs}"
            f"{weight} --seeds {' '.join(map(str, args.seeds))}`: {LAYERS} layers of {HEADS} heads, width {WIDTH}, "
            f"{HIDDEN} feed-forward units, group horseshoe. Error on {examples} "
            f"{'held-out training' if args.development else 'test'} examples, by `pyro-bc evaluate` in a new process.",
            "",
            "| seed | groups | KL weight | dense error % | error % | channels | pruning | fast prediction | maximum | "
            "file bytes |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"The layers of the last one, seed {seed}:",
            "",
            "| layer | dense | left | bits |",
            "|---|---|---|---|",
            *left,
            "",
        ]
    )


if __name__ == "__main__":
    main()
