"""A compressed network is trained on under its prior and pruned once more: LeNet-5-Caffe's horseshoe row.

    python analyses/beyond/pruned_again.py --data-dir ../shared/data --kl-weight 1.2 [--development]

Starts from ``analyses/results/lenet-5-caffe-mnist-ghs-seed0/network.pbc`` (of ``analyses/paper/runs.py``), whose
training stopped at an error below the paper's; more weight on the KL spends what is left of it. The weight is chosen
with ``--development``. Results go to ``analyses/results/pruned_again.md``.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyro

import pyro_bc
from pyro_bc.app.datasets import load_dataset
from pyro_bc.app.dense import load_weights
from pyro_bc.app.own_network import network
from pyro_bc.data.augment import Affine, ShiftAndFlip
from pyro_bc.data.batches import Batches
from pyro_bc.inspection.diagnostics import error_percent

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS

START = RESULTS / "lenet-5-caffe-mnist-ghs-seed0" / "network.pbc"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir")
    parser.add_argument("--kl-weight", type=float, default=1.2)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--development", action="store_true")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument(
        "--teacher", metavar="FILE.safetensors",
        help="weights of a dense LeNet-5-Caffe (records.py makes one) by whose probabilities to learn",
    )  # fmt: skip
    parser.add_argument("--affine", type=float, help="strength of random rotations and the like, in place of shifts")
    args = parser.parse_args()
    data = load_dataset("mnist", args.data_dir)
    data = data.development() if args.development else data
    first = pyro_bc.read(START)
    pyro.set_rng_seed(args.seed)
    likelihood = pyro_bc.likelihoods.SoftCategorical() if args.teacher else pyro_bc.likelihoods.Categorical()
    model = pyro_bc.BayesianNetwork(
        first.network(), pyro_bc.GroupHorseshoe(), num_data=len(data.train_x), likelihood=likelihood
    )
    guide = pyro_bc.FactorizedGuide(model)
    augment: Any = ShiftAndFlip(1) if args.affine is None else Affine.of_strength(args.affine)
    batches: Any = Batches(data.train_x, data.train_y, 128, augment=augment)
    if args.teacher:
        teacher = network("lenet-5-caffe")(data.picture_shape, data.classes).eval()
        load_weights(teacher, args.teacher)
        batches = pyro_bc.data.TaughtBatches(
            data.train_x, data.train_y, teacher, classes=10, augment=augment, passes=9, batch_size=128
        )
    pyro_bc.fit(
        model, guide, batches, epochs=args.epochs, learning_rate=2e-3, log_learning_rate=2e-2, kl_weight=args.kl_weight,
        seed=args.seed, checkpoint=args.checkpoint, resume=bool(args.checkpoint and args.checkpoint.exists()),
    )  # fmt: skip
    small = pyro_bc.compress(model, guide, dense=first)
    moved = f"-affine{args.affine:g}" * (args.affine is not None)
    name = f"kl{args.kl_weight:g}" + "-taught" * bool(args.teacher) + moved + "-development" * args.development
    folder = RESULTS / "pruned_again"
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.pbc"
    size = small.save(file)
    found = {
        "kl_weight": args.kl_weight, "taught": bool(args.teacher), "affine": args.affine, "epochs": args.epochs,
        "seed": args.seed, "measured_on": "held-out training data" if args.development else "test set",
        "error_percent": error_percent(pyro_bc.load(file), data.test_x, data.test_y), "file_bytes": size,
        "architecture": small.architecture, "bits": small.bits, "compression": asdict(small.compression(size)),
    }  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")
    (RESULTS / "pruned_again.md").write_text(table(folder))
    print(table(folder))


def table(folder: Path) -> str:
    lines = [
        "# LeNet-5-Caffe, horseshoe, pruned again",
        "",
        "`python analyses/beyond/pruned_again.py --data-dir DIR --kl-weight W [--development]`, from the network of "
        "analyses/paper/runs.py's ghs row. Held-out rows are those that the weight was chosen by; biases and all bytes "
        "count.",
        "",
        "| KL weight | measured on | error % | filters, inputs left | bits | pruning | fast prediction | maximum "
        "| bytes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for file in sorted(folder.glob("*.json")):
        m = json.loads(file.read_text())
        taught = ", taught" * m.get("taught", False)
        taught += f", affine {m['affine']:g}" if m.get("affine") else ""
        c, shape, bits = m["compression"], *("-".join(map(str, m[key])) for key in ("architecture", "bits"))
        lines.append(
            f"| {m['kl_weight']:g}{taught} | {m['measured_on']} | {m['error_percent']:.2f} | {shape} | {bits} | "
            f"{c['pruning']:.1f} | {c['fast_prediction']:.0f} | {c['maximum']:.0f} | {m['file_bytes']:,} |"
        )
    lines.append("| – | the paper, ghs | 1.0 | 5-10-76-16 | 10-10-14-13 | 156 | 419 | 771 | |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
