"""What the analyses share: where results lie, the paper's rows, and the main job as a user runs it.

Scripts run from the project's root, ``python analyses/paper/table_2.py``; each puts this folder on Python's path.
"""

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
