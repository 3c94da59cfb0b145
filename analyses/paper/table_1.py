"""Table 1 of the paper: architectures and bits that each prior leaves, the paper's row beside ours.

    python analyses/paper/table_1.py --data-dir ../shared/data [--seeds 0 1 2] [--nets lenet-300-100]

From raw data: runs of the named seeds that are not in ``analyses/results/`` yet are made (``pyro-bc run``, see
runs.py). Bits are those of the rule ``posterior``, and of the paper's own rule in brackets. Writes
``analyses/results/table_1.md``.
"""

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from common import PAPER, PRIORS, RESULTS, results_of

# Louizos et al. 2017, table 1.
BITS = {
    "lenet-300-100": {"gnj": "8-9-14", "ghs": "13-11-10", "svd": "8-11-14"},
    "lenet-5-caffe": {"gnj": "18-10-7-9", "ghs": "10-10-14-13", "svd": "13-10-8-12"},
}


def table(nets: list[str], seeds: list[int] | None, data_dir: str | None, runs: Path) -> str:
    lines = [
        "# Table 1: architectures and bits",
        "",
        "`python analyses/paper/table_1.py --data-dir DIR`. Groups left: inputs of a fully connected "
        "layer, filters of a "
        "convolution. Bits by the posterior's variance, those of the paper's rule in brackets.",
        "",
        "| network | prior | seed | groups left | bits |",
        "|---|---|---|---|---|",
    ]
    for net in nets:
        for prior in PRIORS:
            for m in results_of(net, prior, seeds, data_dir, runs):
                shape, bits = ("-".join(map(str, m[key])) for key in ("architecture", "bits"))
                paper = "-".join(map(str, m["other_precision"]["paper"]["bits"]))
                lines.append(f"| {net} | {prior} | {m['seed']} | {shape} | {bits} ({paper}) |")
            lines.append(f"| {net} | {prior}, paper | | {PAPER[net][prior][1]} | {BITS[net][prior]} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir")
    parser.add_argument("--nets", nargs="+", choices=PAPER, default=list(PAPER))
    parser.add_argument("--seeds", nargs="+", type=int, default=None, help="(default: those that there are)")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    args = parser.parse_args()
    text = table(args.nets, args.seeds, args.data_dir, args.runs)
    (RESULTS / "table_1.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
