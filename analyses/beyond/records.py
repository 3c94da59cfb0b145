"""The smallest files: LeNet-300-100 and LeNet-5-Caffe on MNIST under a learned code.

    python analyses/beyond/records.py --data-dir ../shared/data [--only NAME]

Each record is one ``pyro-bc run --prior learned … --development``: trained on the first 55,000 training pictures,
every choice (widths, KL weight, epochs, augmentation) made on the other 5,000. The file's test error is read once, by
``pyro-bc evaluate`` in a process of its own. The runs were made with ``OMP_NUM_THREADS=1``, which a training needs to
give the same file again on the same machine. Files go to ``analyses/results/records/``, the table beside them; a run
that is there is continued.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from common import command

RESULTS = Path(__file__).parents[1] / "results" / "records"
COMMON = ["--prior", "learned", "--data", "mnist", "--development"]
_TEACHER = "{runs}/lenet-5-caffe-small/dense.safetensors"
RUNS: dict[str, list[str]] = {
    "lenet-5-caffe-small": ["--net", "lenet-5-caffe"],  # its recipe
    "lenet-5-caffe-tiny": ["--net", "lenet-5-caffe", "--kl-weight", "3", "--epochs", "240", "--pretrained", _TEACHER],
    "lenet-5-caffe-accurate": [
        "--net", "lenet-5-caffe", "--widths", "12-20-64", "--kl-weight", "0.5", "--epochs", "180", "--affine", "1",
        "--pretrained", _TEACHER,
    ],
    **{
        f"lenet-300-100-{name}": [
            "--net", "lenet-300-100", "--widths", "40-20", "--kl-weight", weight, "--epochs", epochs, "--affine", "0.7",
            "--teacher", "lenet-5-caffe", "--teacher-weights", _TEACHER,
        ]
        for name, weight, epochs in (("accurate", "0.4", "250"), ("small", "1.0", "250"), ("tiny", "1.7", "300"))
    },
}  # fmt: skip
# Published: method, error %, bytes, factor.
PUBLISHED = {
    "lenet-300-100": [("entropy-penalised reparameterization (2019)", "1.9", "8,560", "124")],
    "lenet-5-caffe": [
        ("MIRACLE (2018)", "0.96", "1,520", "1,110"),
        ("MIRACLE, low error (2018)", "0.69", "3,030", "555"),
        ("entropy-penalised reparameterization (2019)", "1.0", "2,840", "606"),
    ],
}


def one_run(name: str, data_dir: str, runs: Path) -> None:
    out = runs / name
    options = [option.format(runs=runs) for option in RUNS[name]]
    resume = ["--resume"] if (out / "run.json").exists() else []
    command("run", *COMMON, *options, "--data-dir", data_dir, "--out", str(out), *resume)
    metrics = json.loads((out / "metrics.json").read_text())
    RESULTS.mkdir(parents=True, exist_ok=True)
    file = RESULTS / f"{name}.pbc"
    shutil.copy(out / "network.pbc", file)
    evaluated = json.loads(command("evaluate", str(file), "--data", "mnist", "--data-dir", data_dir, "--json"))
    # As the file is read now, whatever version wrote it.
    metrics["compression"] = json.loads(command("inspect", str(file), "--json"))["compression"]
    shown = {"test": evaluated, "command": " ".join(["pyro-bc run", *COMMON, *options]), **metrics}
    (RESULTS / f"{name}.json").write_text(json.dumps(shown, indent=2) + "\n")


def table() -> str:
    lines = [
        "# The smallest files on MNIST",
        "",
        "`python analyses/beyond/records.py --data-dir DIR`. Test errors by `pyro-bc evaluate` on the "
        "file, in a new process; "
        "bytes are those of the file, everything included. Trained on 55,000 pictures; all choices on 5,000 more "
        "(held-out error). The published rows are those of the papers. Made with `OMP_NUM_THREADS=1`, two runs at a "
        "time on two cores.",
        "",
        "| network | method | seed | test error % | held-out error % | bytes | factor | widths | nonzero | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    commands = []
    for net, published in PUBLISHED.items():
        for name in RUNS:
            file = RESULTS / f"{name}.json"
            if not file.exists():
                continue
            m = json.loads(file.read_text())
            if m["net"] != net:
                continue
            left = round(m["compression"]["nonzero_percent"] * m["dense"]["parameters"] / 100)
            lines.append(
                f"| {net} | [{name}]({name}.pbc) | {m['seed']} | **{m['test']['error_percent']:.2f}** | "
                f"{m['compressed']['error_percent']:.2f} | **{m['file_bytes']:,}** | "
                f"{4 * m['dense']['parameters'] / m['file_bytes']:,.0f} | {'-'.join(map(str, m['started_from']))} | "
                f"{left:,} | {m['seconds'] / 60:.0f} |"
            )
            commands += ["", f"{name}: `{m['command']}`"]
        lines += [
            f"| {net} | {method} | | {error} | | {size} | {factor} | | | |" for method, error, size, factor in published
        ]
    return "\n".join([*lines, *commands]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--runs", type=Path, default=Path("runs/records"))
    args = parser.parse_args()
    for name in args.only:
        one_run(name, args.data_dir, args.runs)
        (RESULTS / "table.md").write_text(table())
    print(table())


if __name__ == "__main__":
    main()
