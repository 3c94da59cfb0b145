"""Two hundred runs in one process, one after the other, with options drawn at random from what is valid.

    python analyses/robustness/soak.py --runs 200

Each is the command ``pyro-bc run …`` on digits, short, then ``evaluate`` and ``inspect`` of its file, which must agree
with it. A run may end with exit code 2 only where pruning left nothing, which
the command says. Statistics go to ``analyses/results/soak.md``.
"""

import argparse
import contextlib
import io
import json
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from rich.progress import Progress

from pyro_bc.app.cli import main as command

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS


def option(name: str, values: st.SearchStrategy) -> st.SearchStrategy[list[str]]:
    """Left out, or given with one of these values."""
    return st.one_of(st.just([]), values.map(lambda value: [f"--{name}", str(value)]))


def flag(name: str) -> st.SearchStrategy[list[str]]:
    return st.sampled_from([[], [f"--{name}"]])


COMMON = (
    option("pretrain-epochs", st.integers(0, 20)), option("batch-size", st.integers(2, 700)),
    option("kl-weight", st.floats(0, 0.5)), option("learning-rate", st.floats(1e-4, 1e-2)),
    option("pretrain-learning-rate", st.floats(1e-4, 1e-2)), option("train-limit", st.integers(40, 1257)),
    option("seed", st.integers(0, 2**31)), flag("development"),
)  # fmt: skip
ELBO = (
    st.sampled_from(("gnj", "ghs", "svd", "normal")).map(lambda prior: ["--prior", prior]),
    option("log-learning-rate", st.floats(1e-3, 5e-2)), option("shift", st.integers(0, 2)),
    option("finetune-epochs", st.integers(0, 4)), option("finetune-kl-weight", st.floats(0, 0.5)),
    option("finetune-shift", st.integers(0, 2)), option("precision", st.sampled_from(("posterior", "paper"))),
    option("batch-norm", st.sampled_from(("fold", "keep"))),
)  # fmt: skip
RATE = (
    st.just(["--objective", "rate"]), option("widths", st.tuples(st.integers(3, 60), st.integers(3, 30)).map(
        lambda widths: "-".join(map(str, widths)))),
    option("teacher-share", st.floats(0, 1)), option("affine", st.floats(0, 2)), option("passes", st.integers(1, 3)),
    option("rounding", st.floats(0, 1)),
)  # fmt: skip


def options() -> st.SearchStrategy[list[str]]:
    """A run's options."""
    epochs = st.integers(1, 8).map(lambda number: ["--epochs", str(number)])
    kinds = [st.tuples(epochs, *COMMON, *own) for own in (ELBO, RATE)]
    return st.one_of(kinds).map(lambda parts: [word for part in parts for word in part])


def said_by(*arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of the command."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as errors:
        code = command(arguments)
    return code, out.getvalue(), errors.getvalue()


def one_run(chosen: list[str]) -> str:
    """Run, evaluate, inspect; what it came to."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "out")
        run = ["run", "--net", "lenet-300-100", "--data", "digits", "--out", out, *chosen]
        code, _, errors = said_by(*run)
        if code:
            assert code == 2 and errors.count("\n") <= 4 and ("nothing is left" in errors or "are 0" in errors or
                                                              "same for every input" in errors), errors  # fmt: skip
            return "nothing left"
        file = str(Path(out) / "network.pbc")
        metrics = json.loads((Path(out) / "metrics.json").read_text())
        held_out = ["--development"] if "--development" in chosen else []
        code, text, errors = said_by("evaluate", file, "--data", "digits", "--json", *held_out)
        assert not code, errors
        assert json.loads(text)["error_percent"] == metrics["compressed"]["error_percent"]
        code, text, errors = said_by("inspect", file, "--json")
        assert not code and json.loads(text)["architecture"] == metrics["architecture"], errors
        code, text, _ = said_by(*run, "--resume")
        assert not code  # complete: nothing to resume
        return "compressed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    args = parser.parse_args()
    counts: Counter = Counter()
    seconds: list[float] = []
    memory: list[int] = []
    with Progress() as bar:
        task = bar.add_task("runs", total=args.runs)

        @settings(
            max_examples=args.runs, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(options())
        def soak(chosen: list[str]) -> None:
            started = time.monotonic()
            kind = "rate" if "rate" in chosen else chosen[chosen.index("--prior") + 1]
            try:
                counts[kind, one_run(chosen)] += 1
            except BaseException:
                print("these options did it:", *chosen)
                raise
            seconds.append(time.monotonic() - started)
            memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
            bar.advance(task)

        soak()
    lines = [
        "# Runs with random options",
        "",
        f"`python analyses/robustness/soak.py --runs {args.runs}`: {sum(counts.values())} runs in one "
        "process, none failed.",
        "",
        "| prior or objective | compressed | pruned to nothing, and said so |",
        "|---|---|---|",
    ]
    for kind in ("gnj", "ghs", "svd", "normal", "rate"):
        lines.append(f"| {kind} | {counts[kind, 'compressed']} | {counts[kind, 'nothing left']} |")
    half = len(memory) // 2
    lines += [
        "",
        f"Seconds a run: {min(seconds):.1f} to {max(seconds):.1f}, median {sorted(seconds)[len(seconds) // 2]:.1f}. "
        f"Peak memory of the process: {memory[half]:,} MB after half of the runs, {memory[-1]:,} MB after all.",
    ]
    text = "\n".join(lines) + "\n"
    (RESULTS / "soak.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
