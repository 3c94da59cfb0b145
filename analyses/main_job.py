"""The main job, as a user runs it, for every prior: LeNet-300-100 on digits and on MNIST, beside the paper's rows.

    python analyses/main_job.py --data digits
    python analyses/main_job.py --data mnist --data-dir ../shared/data/mnist

Each run is the command ``pyro-bc run …`` in a folder under ``--runs`` (default ``runs/``); one that is there is
continued, or taken as it is when finished. Metrics, file and report of each are copied to
``analyses/results/<net>-<data>-<prior>-seed<seed>/``, and the table of all of them to ``analyses/results/main_job.md``.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
NET = "lenet-300-100"
PRIORS = ("gnj", "ghs", "svd")
KEPT = ("metrics.json", "network.pbc", "report.md")
# Louizos et al. 2017, tables 1 and 2: architecture, error %, pruning, fast prediction, maximum. Weights only.
PAPER = {
    "gnj": ("278-98-13", "1.8", "9", "36", "58"),
    "ghs": ("311-86-14", "1.8-2.0", "9", "23", "59"),
    "svd": ("512-114-72", "1.8", "21", "84", "113"),
}


def command(*args: str) -> str:
    done = subprocess.run([sys.executable, "-m", "pyro_bc", *args], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def one_run(prior: str, data: str, data_dir: str | None, seed: int, runs: Path) -> None:
    out = runs / f"{data}-{prior}-seed{seed}"
    where = ["--data-dir", data_dir] if data_dir else []
    resume = ["--resume"] if (out / "run.json").exists() else []
    settings = ["--net", NET, "--prior", prior, "--data", data, "--seed", str(seed)]
    command("run", *settings, *where, "--out", str(out), *resume)
    metrics = json.loads((out / "metrics.json").read_text())
    evaluated = json.loads(command("evaluate", str(out / "network.pbc"), "--data", data, *where, "--json"))
    if evaluated["error_percent"] != metrics["compressed"]["error_percent"]:
        sys.exit(f"{out}: run says {metrics['compressed']['error_percent']} %, evaluate {evaluated['error_percent']} %")
    target = RESULTS / f"{NET}-{data}-{prior}-seed{seed}"
    target.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copy(out / name, target / name)


def table() -> str:
    """All results that there are, in Markdown."""
    lines = [
        "# The main job: LeNet-300-100",
        "",
        "`python analyses/main_job.py --data digits` and `--data mnist --data-dir DIR`, which run "
        "`pyro-bc run --net lenet-300-100 --prior PRIOR --data DATA --out DIR`. Test errors are of the network decoded "
        "from the file, and equal to `pyro-bc evaluate` in a new process. Biases count.",
        "",
        "| data | prior | seed | dense error % | error % | architecture | bits | pruning | fast prediction | maximum "
        "| file bytes | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for data in ("mnist", "digits"):
        for prior in PRIORS:
            for folder in sorted(RESULTS.glob(f"{NET}-{data}-{prior}-seed*")):
                m = json.loads((folder / "metrics.json").read_text())
                c = m["compression"]
                lines.append(
                    f"| {data} | {prior} | {m['seed']} | {m['dense']['error_percent']:.2f} | "
                    f"{m['compressed']['error_percent']:.2f} | {'-'.join(map(str, m['architecture']))} | "
                    f"{'-'.join(map(str, m['bits']))} | {c['pruning']:.1f} | {c['fast_prediction']:.0f} | "
                    f"{c['maximum']:.0f} | {m['file_bytes']:,} | {m['seconds']:.0f} |"
                )
            if data == "mnist":
                shape, error, pruning, fast, most = PAPER[prior]
                lines.append(
                    f"| mnist | {prior}, paper | | 1.6 | {error} | {shape} | | {pruning} | {fast} | {most} | | |"
                )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=("digits", "mnist"), required=True)
    parser.add_argument("--data-dir")
    parser.add_argument("--priors", nargs="+", choices=PRIORS, default=PRIORS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    args = parser.parse_args()
    for seed in args.seeds:
        for prior in args.priors:
            one_run(prior, args.data, args.data_dir, seed, args.runs)
            (RESULTS / "main_job.md").write_text(table())
    print(table())


if __name__ == "__main__":
    main()
