"""Deep networks with batch normalisation on CIFAR-10 (JPEG copy), from pretraining to ONNX, in a few hundred steps.

    python analyses/beyond/cifar.py --data-dir ../shared/data

What two cores can do in half an hour a network: it shows that the whole line holds for VGG-16 and ResNet-18, batch
normalisation kept, not what they compress to. Each run is ``pyro-bc run``, ``evaluate`` and ``export``; a run that is
there is continued. The table goes to ``analyses/results/cifar.md``, metrics and report beside it.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS, command

DATA = ["--data", "cifar-10-jpeg"]
SHORT = [
    "--prior", "gnj", "--kl-weight", "2e-5", "--learning-rate", "1e-3", "--log-learning-rate", "2e-2",
    "--batch-norm", "keep", "--epochs", "2", "--finetune-epochs", "0", "--shift", "2", "--seed", "0",
]  # fmt: skip
RUNS = {  # VGG-16's dropout wants more pretraining than ResNet-18 does before it leaves chance
    "vgg-16": ["--train-limit", "4000", "--batch-size", "16", "--pretrain-epochs", "12"],
    "resnet-18": ["--train-limit", "2000", "--batch-size", "8", "--pretrain-epochs", "8"],
}


def one_run(net: str, data_dir: str, runs: Path) -> None:
    out = runs / f"cifar-{net}"
    resume = ["--resume"] if (out / "run.json").exists() else []
    command("run", "--net", net, *DATA, *RUNS[net], *SHORT, "--data-dir", data_dir, "--out", str(out), *resume)
    file, onnx, int8 = (str(out / name) for name in ("network.pbc", "network.onnx", "network.int8.onnx"))
    exported = command(
        "export", file, "--onnx", onnx, "--int8", int8, "--data", "cifar-10-jpeg", "--data-dir", data_dir, "--json"
    )
    metrics = json.loads((out / "metrics.json").read_text()) | {"exported": json.loads(exported)}
    if metrics["exported"]["error_percent"]["pytorch"] != metrics["compressed"]["error_percent"]:
        sys.exit(f"{out}: the file's error is not the one that the run measured")
    target = RESULTS / f"cifar-{net}"
    target.mkdir(parents=True, exist_ok=True)
    (target / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    shutil.copy(out / "report.md", target / "report.md")


def table() -> str:
    lines = [
        "# VGG-16 and ResNet-18 on CIFAR-10 (JPEG copy), a short run",
        "",
        f"`python analyses/beyond/cifar.py --data-dir DIR`: `pyro-bc run … {' '.join(SHORT)}` on two cores: 2,000 "
        "(VGG-16: 3,000) steps of dense pretraining, then 500 of Bayesian training. It shows that the line holds, not "
        "what these networks compress to. Test errors of 10,000 pictures, of the network in the file, in "
        "ONNX Runtime, and in ONNX Runtime with int8 weights and activations.",
        "",
        "| network | options | dense error % | error % | ONNX % | int8 % | difference to PyTorch | architecture "
        "| pruning | maximum | file bytes | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for net, options in RUNS.items():
        file = RESULTS / f"cifar-{net}" / "metrics.json"
        if not file.exists():
            continue
        m = json.loads(file.read_text())
        errors, c = m["exported"]["error_percent"], m["compression"]
        lines.append(
            f"| {net} | `{' '.join(options)}` | {m['dense']['error_percent']:.2f} | {errors['pytorch']:.2f} | "
            f"{errors['onnx']:.2f} | {errors['int8']:.2f} | {m['exported']['difference']:.1e} | "
            f"{'-'.join(map(str, m['architecture']))} | {c['pruning']:.2f} | {c['maximum']:.1f} | "
            f"{m['file_bytes']:,} | {m['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--nets", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    args = parser.parse_args()
    for net in args.nets:
        one_run(net, args.data_dir, args.runs)
        (RESULTS / "cifar.md").write_text(table())
    print(table())


if __name__ == "__main__":
    main()
