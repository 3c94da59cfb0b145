"""What each help brings to the smallest files: their recipes with one of them taken away, and with none at all.

    python analyses/beyond/ablation.py --data-dir ../shared/data --net lenet-300-100

The recipe is that of ``records.py``: a learned code, a teacher, augmentation, cosine coefficients, a narrow start, and
the last half of the training with rounded codes. Each row is one ``pyro-bc run … --development`` (trained on 55,000
pictures, held-out error on the other 5,000) of so many epochs, in which one of them is not there:

==================  ====================================================================================================
``teacher``         labels alone
``augmentation``    pictures as they are
``cosines``         codes of the weights themselves (``LearnedCode(grids=None)``)
``narrow start``    from the whole network
``rounding``        codes are rounded once, when the training is over
``learned prior``   Sparse VD instead of a code, KL weight 1, with all the others
``all``             a learned code without any of them
==================  ====================================================================================================

Test errors are read once for each file, by ``pyro-bc evaluate``. Writes ``analyses/results/ablation.{md,json}``; a run
that is there is continued.
"""

import argparse
import json
import sys
from pathlib import Path
from unittest import mock

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS, command

#: by network: what the whole recipe asks for, and epochs.
RECIPES = {
    "lenet-300-100": (
        ["--widths", "40-20", "--kl-weight", "0.4", "--affine", "0.7", "--teacher", "lenet-5-caffe"],
        100,
    ),
    "lenet-5-caffe": (["--widths", "8-12-32", "--kl-weight", "1.8", "--affine", "0.7"], 60),
}
WITHOUT = {
    "nothing": [],
    "teacher": ["--teacher-share", "0"],
    "augmentation": ["--affine", "0"],
    "cosines": [],
    "narrow start": ["--widths", ""],
    "rounding": ["--rounding", "0"],
    "learned prior": ["--prior", "svd", "--kl-weight", "1", "--log-learning-rate", "1e-3", "--decay", "1"],
    "all": ["--teacher-share", "0", "--affine", "0", "--widths", "", "--rounding", "0"],
}


def run_here(options: list[str]) -> None:
    """``pyro-bc run`` in this process, where its codes are those of the weights themselves."""
    import pyro_bc
    from pyro_bc.app import settings
    from pyro_bc.app.cli import main as pyro_bc_main

    with mock.patch.dict(settings.PRIORS, learned=pyro_bc.LearnedCode(grids=None)):
        if pyro_bc_main(["run", *options]):
            sys.exit(1)


def one_run(net: str, without: str, folder: Path, data_dir: str, epochs: int) -> dict:
    out = folder / f"{net}-{without.replace(' ', '-')}"
    whole, first = RECIPES[net][0], folder / f"{net}-nothing"
    trained = {"--pretrained": first / "dense.safetensors", "--teacher-weights": first / "teacher.safetensors"}
    again = [part for option, file in trained.items() if out != first and file.exists() for part in (option, str(file))]
    resume = ["--resume"] if (out / "run.json").exists() else []
    options = [
        "--net", net, "--data", "mnist", "--data-dir", data_dir, "--development", "--out", str(out), *resume,
        "--prior", "learned", *whole, *again, "--epochs", str(epochs), *WITHOUT[without],
    ]  # fmt: skip
    if without in ("cosines", "all"):
        run_here(options)
    else:
        command("run", *options)
    metrics = json.loads((out / "metrics.json").read_text())
    evaluated = command("evaluate", str(out / "network.pbc"), "--data", "mnist", "--data-dir", data_dir, "--json")
    return {
        "net": net, "without": without, "epochs": epochs, "bytes": metrics["file_bytes"],
        "held": metrics["compressed"]["error_percent"], "test": json.loads(evaluated)["error_percent"],
        "dense": metrics["dense"]["error_percent"], "seconds": metrics["seconds"],
    }  # fmt: skip


def table(found: list[dict]) -> str:
    lines = [
        "# What each help brings",
        "",
        "`python analyses/beyond/ablation.py --data-dir DIR --net NET`: the recipes of the smallest files in fewer "
        "epochs, each help taken away alone, and all together. One seed; test errors read once. The first row's "
        "seconds include the teacher's training.",
        "",
        "| network | epochs | without | held-out error % | test error % | bytes | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for own in found:
        lines.append(
            f"| {own['net']} | {own['epochs']} | {own['without']} | {own['held']:.2f} | {own['test']:.2f} | "
            f"{own['bytes']:,} | {own['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--net", nargs="*", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--without", nargs="*", choices=WITHOUT, default=list(WITHOUT))
    parser.add_argument("--epochs", type=int, help="instead of the network's own")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results; what is there is kept")
    args = parser.parse_args()
    file = args.out / "ablation.json"
    found = json.loads(file.read_text()) if file.exists() else []
    for net in args.net:
        epochs = args.epochs or RECIPES[net][1]
        for without in args.without:
            if any((own["net"], own["without"], own["epochs"]) == (net, without, epochs) for own in found):
                continue
            found.append(one_run(net, without, args.runs, args.data_dir, epochs))
            print(found[-1], flush=True)
            file.write_text(json.dumps(found, indent=1) + "\n")
            (args.out / "ablation.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
