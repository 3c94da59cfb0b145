"""The main job, as a user runs it, for every prior: the LeNets on digits and MNIST, beside the paper's rows.

    python analyses/paper/runs.py --data digits
    python analyses/paper/runs.py --data mnist --data-dir ../shared/data/mnist
    python analyses/paper/runs.py --net lenet-5-caffe --data mnist --data-dir ../shared/data/mnist --priors gnj ghs

Each run is the command ``pyro-bc run …`` in a folder under ``--runs`` (default ``runs/``); one that is there is
continued, or taken as it is when finished. Metrics, file and report of each are copied to
``analyses/results/<net>-<data>-<prior>-seed<seed>/``, and all of them are tables in ``analyses/results/main_job.md``.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from common import PAPER, PRIORS, RESULTS, one_run


def table() -> str:
    """All results that there are, in Markdown."""
    lines = [
        "# The main job",
        "",
        "`python analyses/paper/runs.py --net NET --data DATA --data-dir DIR`, which runs "
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
