"""Runs are killed at random moments, again and again, and resumed: they must end as if nothing had happened.

    python analyses/robustness/crashes.py --kills 60

After every kill (SIGKILL, and SIGINT in one of four) each file under its final name is opened by what reads it; when a
run gets to its end, its file is compared byte for byte, and its figures number for number, with those of a run that
was left alone. Counts go to ``analyses/results/crashes.md``.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xarray
from PIL import Image
from rich.progress import Progress

import pyro_bc
from pyro_bc.inference.checkpoint import load_checkpoint

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS

FEW = ["--data", "digits", "--epochs", "8", "--train-limit", "600", "--batch-size", "64", "--development"]
#: what is run, by name: every kind of training that leaves a checkpoint.
RUNS = {
    "elbo": [
        "--prior", "ghs", "--pretrain-epochs", "10", "--widths", "40-20", "--kl-weight", "0.02", "--finetune-epochs",
        "6",
    ],
    "rate": ["--objective", "rate", "--pretrain-epochs", "20", "--widths", "20-12", "--passes", "2"],
}  # fmt: skip
_TIMES = ("seconds", "training_seconds")


def arguments(name: str, folder: Path) -> list[str]:
    """The command's; continued where the folder holds a run."""
    resume = ["--resume"] if (folder / "run.json").exists() else []
    return ["run", "--net", "lenet-300-100", *RUNS[name], *FEW, "--out", str(folder), *resume]


def start(name: str, folder: Path) -> subprocess.Popen:
    """The command, in a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "pyro_bc", *arguments(name, folder)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # so small a network gains nothing from more
        preexec_fn=_listen_to_ctrl_c,
    )  # fmt: skip


def _listen_to_ctrl_c() -> None:
    """A shell's background jobs ignore it, and hand that down."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def check_whole(folder: Path) -> list[str]:
    """Open every file of a run that is under its final name; their names."""
    seen = []
    for file in sorted(folder.rglob("*")):
        if file.is_dir() or file.name.endswith(".partial") or file.name == ".lock":
            continue
        if file.name in ("checkpoint", "finetune") or file.suffix == ".safetensors":
            load_checkpoint(file)
        elif file.suffix == ".pbc":
            pyro_bc.read(file)
        elif file.suffix == ".json":
            json.loads(file.read_text())
        elif file.suffix == ".nc":
            xarray.open_datatree(file, engine="h5netcdf").close()
        elif file.suffix == ".png":
            Image.open(file).load()
        elif file.suffix == ".html":
            assert file.read_text().rstrip().endswith("</html>"), file
        elif file.suffix == ".md":
            assert file.read_text().endswith("\n"), file
        else:
            raise AssertionError(f"what is {file}?")
        seen.append(file.name)
    return seen


def outcome(folder: Path) -> tuple[bytes, dict[str, Any]]:
    """A finished run's file, and its figures but for times."""
    metrics = json.loads((folder / "metrics.json").read_text())
    return (folder / "network.pbc").read_bytes(), {key: value for key, value in metrics.items() if key not in _TIMES}


@dataclass
class Tally:
    """What was tried, and what was found."""

    interrupted: Counter = field(default_factory=Counter)
    finished: int = 0
    files: Counter = field(default_factory=Counter)


def torment(
    name: str, folder: Path, reference: Path, kills: int, seconds: float, seed: int, tally: Tally, start: Any = start
) -> None:
    """Interrupt runs in a folder until there were so many kills, each at a moment within ``seconds`` of its start.

    :param start: how a run is started; the process.
    """
    generator = random.Random(seed)
    number = 0
    while True:
        out = folder / f"{name}-{number}"
        process = start(name, out)
        over = sum(tally.interrupted.values()) >= kills
        interrupt = signal.SIGINT if generator.random() < 0.25 else signal.SIGKILL
        try:
            _, said = process.communicate(timeout=None if over else generator.uniform(0.3, 1) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(interrupt)
            process.communicate()
            tally.interrupted[interrupt.name] += 1
            tally.files.update(check_whole(out) if out.exists() else [])
            continue
        if process.returncode:
            raise AssertionError(f"{out}: exit code {process.returncode}: {said}")
        check_whole(out)
        assert outcome(out) == outcome(reference), f"{out} is not what an uninterrupted run came to"
        assert not list(out.rglob("*.partial")), f"{out} holds what a killed run left"
        tally.finished += 1
        number += 1
        if over:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    lines = [
        "# Runs that were killed",
        "",
        f"`python analyses/robustness/crashes.py --kills {args.kills}`, on digits.",
        "",
    ]
    lines += ["| objective | killed | interrupted (Ctrl-C) | files opened after | runs finished, all equal |"]
    lines += ["|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as scratch, Progress() as bar:
        for name in RUNS:
            task = bar.add_task(name, total=None)
            folder = Path(scratch)
            started = time.monotonic()
            process = start(name, folder / f"{name}-reference")
            if process.communicate() and process.returncode:
                sys.exit("the uninterrupted run failed")
            tally = Tally()
            seconds = time.monotonic() - started
            torment(name, folder, folder / f"{name}-reference", args.kills // 2, seconds, args.seed, tally)
            bar.update(task, total=1, completed=1)
            lines.append(
                f"| {name} | {tally.interrupted['SIGKILL']} | {tally.interrupted['SIGINT']} | "
                f"{sum(tally.files.values()):,} | {tally.finished} |"
            )
    text = "\n".join(lines) + "\n"
    (RESULTS / "crashes.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
