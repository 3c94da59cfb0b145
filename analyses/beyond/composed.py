"""Priors that are composed of a scale for groups and another prior for weights, beside each alone, on MNIST.

    python analyses/beyond/composed.py --data-dir ../shared/data --seeds 0 1 2

From raw data: runs of the named seeds that are not in ``analyses/results/`` yet are made (``pyro-bc run``, with the
recipe of each). The rows of LeNet-5-Caffe under codes are of single runs with ``--development``, trained on 55,000
pictures, whose test error was read once: records.py's and those in ``analyses/results/composed/``. Writes
``analyses/results/composed.md``.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import mean

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS, results_of

#: priors by network; those that are composed come last.
ROWS = {
    "lenet-300-100": ("gnj", "ghs", "svd", "gnj+svd", "ghs+svd"),
    "lenet-5-caffe": ("gnj", "ghs", "svd"),
}
COMPOSED = ("gnj+svd", "ghs+svd")
CODES = {
    "`learned`, from 8-12-32": "records/lenet-5-caffe-small.json",
    "`learned`, from 12-20-64, KL weight 0.5": "records/lenet-5-caffe-accurate.json",
    "`gnj+learned`, from 10-20-64": "composed/lenet-5-caffe-gnj+learned.json",
    "`gnj+learned`, from all of 20-50-500": "composed/lenet-5-caffe-gnj+learned-whole.json",
}


def row(net: str, prior: str, measured: list[dict]) -> str:
    """Means of the seeds, and lowest and highest error where there are several."""
    errors = [m["error"] for m in measured]
    error = f"{mean(errors):.2f}" + (f" ({min(errors):.2f}–{max(errors):.2f})" if len(errors) > 1 else "")
    figures = " | ".join(
        f"{mean(m[key] for m in measured):,.{digits}f}"
        for key, digits in (
            ("nonzero_percent", 2),
            ("pruning", 1),
            ("fast_prediction", 0),
            ("maximum", 0),
            ("bytes", 0),
        )
    )
    return f"| {net} | {prior} | {len(measured)} | {error} | {measured[0]['left']} | {figures} |"


def figures(metrics: dict) -> dict:
    return {
        **metrics["compression"],
        "error": metrics["compressed"]["error_percent"],
        "left": "-".join(map(str, metrics["architecture"])),
        "bytes": metrics["file_bytes"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", nargs="+", type=int, default=None, help="(default: those that there are)")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    args = parser.parse_args()
    lines = [
        "# Composed priors",
        "",
        "`python analyses/beyond/composed.py --data-dir DIR`. Test errors of the network decoded from the file, all of "
        "whose bytes count. Means of the seeds (lowest–highest error); groups left are those of the first seed.",
        "",
        "| network | prior | seeds | error % | groups left | nonzero % | pruning | fast prediction | maximum | bytes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for net, priors in ROWS.items():
        for prior in priors:
            seeds = args.seeds if prior in COMPOSED else None
            found = [figures(m) for m in results_of(net, prior, seeds, args.data_dir, args.runs)]
            lines += [row(net, f"`{prior}`", found)] if found else []
    for what, file in CODES.items():
        m = json.loads((RESULTS / file).read_text())
        held_out = m["compressed"]["error_percent"]
        lines.append(
            row("lenet-5-caffe", f"{what} (held out {held_out:.2f} %)", [figures(m | {"compressed": m["test"]})])
        )
    text = "\n".join(lines) + "\n"
    (RESULTS / "composed.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
