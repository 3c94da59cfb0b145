"""A transformer encoder on digits, end to end: attention heads and feed-forward units are the groups.

    python analyses/examples/transformer.py [--epochs N] [--out FOLDER]

Each picture is a sentence of eight tokens, its rows. The network is made of torch's own ``nn.TransformerEncoder``; it
is pretrained, fitted with the group horseshoe, compressed, and the file's network measured in a new process that does
not know the class. The table goes to ``analyses/results/transformer.md``, the file beside it.
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--pretrain-epochs", type=int, default=40)
    parser.add_argument("--kl-weight", type=float, help="the weight that fit finds, unless it is given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--development", action="store_true", help="measure on held-out training data")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    data = load_dataset("digits")
    if args.development:
        data = data.development()
    net = pretrain(RowTransformer(), data, args.pretrain_epochs)
    dense_error = error_percent(net, data.test_x, data.test_y)
    model = pyro_bc.BayesianNetwork(net, pyro_bc.GroupHorseshoe(), num_data=len(data.train_x))
    guide = pyro_bc.FactorizedGuide(model)
    batches = pyro_bc.data.Batches(data.train_x, data.train_y, 64)
    pyro_bc.fit(
        model, guide, batches, epochs=args.epochs, log_learning_rate=2e-2, kl_weight=args.kl_weight, seed=args.seed,
        progress=sys.stderr.isatty(),
    )  # fmt: skip
    small = pyro_bc.compress(model, guide)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "transformer-digits-ghs.pbc"
    size = small.save(file)
    command = [sys.executable, "-m", "pyro_bc", "evaluate", str(file), "--data", "digits", "--json"]
    command += ["--development"] if args.development else []
    evaluated = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    figures = small.compression(size)
    lines = [
        "# Transformer encoder on digits, rows as tokens",
        "",
        f"`python analyses/examples/transformer.py --epochs {args.epochs} --pretrain-epochs {args.pretrain_epochs} "
        f"--seed {args.seed}`, KL weight {guide.kl_weight:.2g}: {LAYERS} layers of {HEADS} heads, width {WIDTH}, "
        f"{HIDDEN} feed-forward units, group horseshoe. Error on {evaluated['n']} "
        f"{'held-out training' if args.development else 'test'} examples, by `pyro-bc evaluate` in a new process.",
        "",
        "| dense error % | error % | pruning | fast prediction | maximum | file bytes |",
        "|---|---|---|---|---|---|",
        f"| {dense_error:.2f} | {evaluated['error_percent']:.2f} | {figures.pruning:.1f} | "
        f"{figures.fast_prediction:.0f} | {figures.maximum:.0f} | {size:,} |",
        "",
        "| layer | dense | left | bits |",
        "|---|---|---|---|",
    ]
    for layer in small.layers:
        left = "×".join(map(str, layer.weight.codes.shape))
        lines.append(f"| `{layer.name}` | {'×'.join(map(str, layer.dense_shape))} | {left} | {layer.weight.bits} |")
    text = "\n".join([*lines, ""])
    write_atomically(args.out / "transformer.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
