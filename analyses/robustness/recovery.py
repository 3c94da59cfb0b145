"""Does the posterior find the inputs that matter? 20 inputs, of which 10 say the target; known, since we made them.

Each of the ten adds a line of random size and sign (``lines``), or a line and a sine wave (``waves``, which a network
of few units cannot follow: what is left over looks like noise, and some of it like an input that has nothing to say).

    python analyses/robustness/recovery.py

For every prior and five seeds (of the data, the network and the fit) a network of 50 hidden units is fitted to
1,000 points with ``fit`` as it is, and compressed. An input counts as found where the compressed network reads it.
Precision is the part of the found inputs that are relevant, recall the part of the relevant ones that are found. For
Sparse VD, which decides weight by weight, the part of the irrelevant inputs' weights that survive is counted, too: an
input is dropped only where all of its weights are. Writes ``analyses/results/recovery.{md,json}``.
"""

import argparse
import json
import sys
from itertools import product
from pathlib import Path

import pyro
import torch
from rich.progress import track
from torch import Tensor, nn

import pyro_bc
from pyro_bc.file.contents import Selection

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS

POINTS, INPUTS, RELEVANT, HIDDEN, EPOCHS = 1000, 20, 10, 50, 200
SEEDS = range(5)
SHAPES, KINDS = ("lines", "waves"), ("regression", "classification")
SPARSE_VD = (
    f"Sparse VD (svd) has no scale of an input: it decides each of an input's {HIDDEN} weights alone, and an input "
    "goes only where all of them do. That so few in a hundred of an irrelevant input's weights survive is enough to "
    "keep about half of those inputs. A group's scale over the same prior for weights (gnj+svd) decides the input, and "
    "mends it."
)
PRIORS = {
    "gnj": pyro_bc.GroupNormalJeffreys(),
    "ghs": pyro_bc.GroupHorseshoe(),
    "svd": pyro_bc.LogUniform(),
    "gnj+svd": pyro_bc.GroupNormalJeffreys(weights=pyro_bc.LogUniform()),
}


def problem(shape: str, kind: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, targets, and which inputs are relevant, a random half."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(POINTS, INPUTS, generator=generator)
    relevant = torch.randperm(INPUTS, generator=generator)[:RELEVANT]
    sizes = 0.5 + torch.rand(2, RELEVANT, generator=generator)
    signs = torch.randint(2, (RELEVANT,), generator=generator) * 2.0 - 1
    own = x[:, relevant]
    waves = 0.5 * sizes[1] * torch.sin(2 * own) if shape == "waves" else 0.0
    f = (signs * (sizes[0] * own + waves)).sum(1)
    if kind == "regression":
        return x, f + 0.3 * torch.randn(POINTS, generator=generator), relevant
    u = torch.rand(POINTS, generator=generator)
    return x, (f + 0.2 * (u / (1 - u)).log() > 0).long(), relevant


def one(shape: str, kind: str, prior: str, seed: int) -> dict[str, float]:
    x, y, relevant = problem(shape, kind, seed)
    pyro.clear_param_store()
    torch.manual_seed(seed)
    outputs, likelihood = (1, pyro_bc.likelihoods.Normal()) if kind == "regression" else (2, None)
    net = nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs))
    model = pyro_bc.BayesianNetwork(net, PRIORS[prior], num_data=POINTS, likelihood=likelihood)
    guide = pyro_bc.FactorizedGuide(model)
    pyro_bc.fit(model, guide, pyro_bc.data.Batches(x, y, 100), epochs=EPOCHS, seed=seed, progress=False)
    small = pyro_bc.compress(model, guide)
    found = set(range(INPUTS))
    for tensor in small.tensors.values():
        if isinstance(tensor, Selection):
            found = set(tensor.indices.tolist())
    true = set(relevant.tolist())
    summary = pyro_bc.summarize(guide)["net.0"]
    result = {
        "precision": len(found & true) / len(found),
        "recall": len(found & true) / RELEVANT,
        "units": small.architecture[1],
        "bytes": len(small.to_bytes()),
    }
    if summary.per_weight:
        irrelevant = [i for i in range(INPUTS) if i not in true]
        cut = small.thresholds["0"]
        result["irrelevant weights kept %"] = 100 * float(cut.keeps(summary)[:, irrelevant].float().mean())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    rows = []
    work = list(product(SHAPES, KINDS, PRIORS, SEEDS))
    for shape, kind, prior, seed in track(work, "fits"):
        row = {"shape": shape, "kind": kind, "prior": prior, "seed": seed}
        rows.append(row | one(shape, kind, prior, seed))
    (RESULTS / "recovery.json").write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / "recovery.md").write_text(table(rows))
    print(table(rows))


def table(rows: list[dict]) -> str:
    lines = [
        f"# Recovery of the {RELEVANT} relevant ones of {INPUTS} inputs",
        "",
        f"`python analyses/robustness/recovery.py`: {POINTS} points, {HIDDEN} hidden units, {EPOCHS} epochs, seeds "
        f"{', '.join(map(str, SEEDS))}; mean, and the worst seed in brackets.",
        "",
        "| data | prior | precision | recall | hidden units | bytes | irrelevant inputs' weights kept % |",
        "|---|---|---|---|---|---|---|",
    ]
    for shape, kind, prior in product(SHAPES, KINDS, PRIORS):
        own = [row for row in rows if (row["shape"], row["kind"], row["prior"]) == (shape, kind, prior)]
        cells = [f"{shape}, {kind}", prior]
        for name in ("precision", "recall"):
            values = [row[name] for row in own]
            cells.append(f"{sum(values) / len(values):.2f} ({min(values):.2f})")
        cells += [f"{sum(row[name] for row in own) / len(own):.0f}" for name in ("units", "bytes")]
        kept = [row["irrelevant weights kept %"] for row in own if "irrelevant weights kept %" in row]
        cells.append(f"{sum(kept) / len(kept):.1f}" if kept else "")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", SPARSE_VD]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
