"""The main job, as a user runs it, for every prior: the LeNets on digits and MNIST, beside the paper's rows.

    python analyses/main_job.py --data digits
    python analyses/main_job.py --data mnist --data-dir ../shared/data/mnist
    python analyses/main_job.py --net lenet-5-caffe --data mnist --data-dir ../shared/data/mnist --priors gnj ghs

Each run is the command ``pyro-bc run …`` in a folder under ``--runs`` (default ``runs/``); one that is there is
continued, or taken as it is when finished. Metrics, file and report of each are copied to
``analyses/results/<net>-<data>-<prior>-seed<seed>/``, and all of them are tables in ``analyses/results/main_job.md``.
"""

import argparse
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PRIORS = ("gnj", "ghs", "svd")
KEPT = ("metrics.json", "network.pbc", "report.md")
# Louizos et al. 2017, tables 1 and 2, on MNIST: dense error %, architecture, error %, pruning, fast prediction,
# maximum; weights only.
PAPER = {
    "lenet-300-100": {
        "gnj": ("1.6", "278-98-13", "1.8", "9", "36", "58"),
        "ghs": ("1.6", "311-86-14", "1.8-2.0", "9", "23", "59"),
        "svd": ("1.6", "512-114-72", "1.8", "21", "84", "113"),
    },
    "lenet-5-caffe": {
        "gnj": ("0.9", "8-13-88-13", "1.0", "108", "361", "573"),
        "ghs": ("0.9", "5-10-76-16", "1.0", "156", "419", "771"),
        "svd": ("0.9", "14-19-242-131", "1.0", "63", "228", "365"),
    },
}


def command(*args: str) -> str:
    done = subprocess.run([sys.executable, "-m", "pyro_bc", *args], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def one_run(net: str, prior: str, data: str, data_dir: str | None, seed: int, runs: Path) -> None:
    out = runs / f"{net}-{data}-{prior}-seed{seed}"
    where = ["--data-dir", data_dir] if data_dir else []
    resume = ["--resume"] if (out / "run.json").exists() else []
    settings = ["--net", net, "--prior", prior, "--data", data, "--seed", str(seed)]
    command("run", *settings, *where, "--out", str(out), *resume)
    metrics = json.loads((out / "metrics.json").read_text())
    evaluated = json.loads(command("evaluate", str(out / "network.pbc"), "--data", data, *where, "--json"))
    if evaluated["error_percent"] != metrics["compressed"]["error_percent"]:
        sys.exit(f"{out}: run says {metrics['compressed']['error_percent']} %, evaluate {evaluated['error_percent']} %")
    target = RESULTS / f"{net}-{data}-{prior}-seed{seed}"
    target.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copy(out / name, target / name)


def results_of(net: str, prior: str, seeds: list[int] | None, data_dir: str | None, runs: Path) -> list[dict]:
    """Metrics on MNIST by seed; those that are missing are made, where seeds are named, else left out."""
    for seed in seeds or []:
        if not (RESULTS / f"{net}-mnist-{prior}-seed{seed}" / "metrics.json").exists():
            one_run(net, prior, "mnist", data_dir, seed, runs)
    files = sorted(RESULTS.glob(f"{net}-mnist-{prior}-seed*/metrics.json"))
    found = [json.loads(file.read_text()) for file in files]
    return [metrics for metrics in found if seeds is None or metrics["seed"] in seeds]


def table() -> str:
    """All results that there are, in Markdown."""
    lines = [
        "# The main job",
        "",
        "`python analyses/main_job.py --net NET --data DATA --data-dir DIR`, which runs "
        "`pyro-bc run --net NET --prior PRIOR --data DATA --out DIR`. Test errors are of the network decoded from the "
        "file, and equal to `pyro-bc evaluate` in a new process. Biases count.",
    ]
    for net, paper in PAPER.items():
        lines += [
            "",
            f"## {net}",
            "",
            "| data | prior | seed | dense error % | error % | architecture | bits | pruning | fast prediction "
            "| maximum | file bytes | seconds |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for data, prior in itertools.product(("mnist", "digits"), PRIORS):
            folders = sorted(RESULTS.glob(f"{net}-{data}-{prior}-seed*"))
            lines += [row(json.loads((folder / "metrics.json").read_text())) for folder in folders]
            if data == "mnist" and folders:
                dense, shape, error, pruning, fast, most = paper[prior]
                lines.append(
                    f"| mnist | {prior}, paper | | {dense} | {error} | {shape} | | {pruning} | {fast} | {most} | | |"
                )
    return "\n".join(lines) + "\n"


def row(m: dict) -> str:
    c = m["compression"]
    return (
        f"| {m['data']} | {m['prior']} | {m['seed']} | {m['dense']['error_percent']:.2f} | "
        f"{m['compressed']['error_percent']:.2f} | {'-'.join(map(str, m['architecture']))} | "
        f"{'-'.join(map(str, m['bits']))} | {c['pruning']:.1f} | {c['fast_prediction']:.0f} | {c['maximum']:.0f} | "
        f"{m['file_bytes']:,} | {m['seconds']:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", choices=PAPER, default="lenet-300-100")
    parser.add_argument("--data", choices=("digits", "mnist"), required=True)
    parser.add_argument("--data-dir")
    parser.add_argument("--priors", nargs="+", choices=PRIORS, default=PRIORS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    args = parser.parse_args()
    for seed in args.seeds:
        for prior in args.priors:
            one_run(args.net, prior, args.data, args.data_dir, seed, args.runs)
            (RESULTS / "main_job.md").write_text(table())
    print(table())


if __name__ == "__main__":
    main()
