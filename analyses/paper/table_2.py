"""Table 2 of the paper: compression and error of every method, the paper's row beside ours.

    python analyses/paper/table_2.py --data-dir ../shared/data [--seeds 0 1 2] [--nets lenet-300-100]

From raw data: runs of the named seeds that are not in ``analyses/results/`` yet are made (``pyro-bc run``, see
runs.py). Rows of magnitude pruning with k-means and of group lasso come from competitors.py, those of pruning again
from pruned_again.py, those of a learned code from records.py. Writes ``analyses/results/table_2.md``.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import mean

sys.path.append(str(Path(__file__).parents[1]))
from common import PAPER, PRIORS, RESULTS, results_of

# Louizos et al. 2017, table 2: method, nonzero %, error %, pruning, fast prediction, maximum; * is their best case.
OTHERS = {
    "lenet-300-100": [
        ("Deep Compression", "8.0", "1.6", "6", "", "40"),
        ("DNS", "1.8", "2.0", "28*", "", ""),
        ("Soft weight sharing", "4.3", "1.9", "12*", "", "64"),
    ],
    "lenet-5-caffe": [
        ("Deep Compression", "8.0", "0.7", "6*", "", "39"),
        ("DNS", "0.9", "0.9", "55*", "", "108"),
        ("Soft weight sharing", "0.5", "1.0", "100*", "", "162"),
    ],
}
NONZERO = {
    "lenet-300-100": {"gnj": "10.8", "ghs": "10.6", "svd": "2.2"},
    "lenet-5-caffe": {"gnj": "0.9", "ghs": "0.6", "svd": "0.7"},
}


def spread(values: list[float], digits: int) -> str:
    """Mean of the seeds, and lowest and highest where there are several."""
    text = f"{mean(values):,.{digits}f}"
    return text if len(values) == 1 else f"{text} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def table(nets: list[str], seeds: list[int] | None, data_dir: str | None, runs: Path) -> str:
    lines = [
        "# Table 2: compression and error",
        "",
        "`python analyses/paper/table_2.py --data-dir DIR`. Test errors of the network decoded from the "
        "file; maximum and "
        "bytes are of the whole file, the paper's count weights alone. Several seeds: mean (lowest–highest). Pruning "
        "of single weights counts an index beside each that is left, as the paper's rows of sparse networks do.",
        "",
        "| network | method | seeds | dense error % | error % | nonzero % | pruning | fast prediction | maximum "
        "| bytes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    competitors = RESULTS / "competitors.json"
    measured = list(json.loads(competitors.read_text()).values()) if competitors.exists() else []
    records = [json.loads(file.read_text()) for file in sorted((RESULTS / "records").glob("*.json"))]
    again = [json.loads(file.read_text()) for file in sorted((RESULTS / "pruned_again").glob("*.json"))]
    again = [m for m in again if m["measured_on"] == "test set"]
    for net in nets:
        for method, nonzero, error, pruning, fast, most in OTHERS[net]:
            lines.append(
                f"| {net} | {method}, as published | | | {error} | {nonzero} | {pruning} | {fast} | {most} | |"
            )
        for method, title in (("magnitude", "magnitudes, k-means"), ("lasso", "group lasso")):
            rows = [r for r in measured if r["net"] == net and r["method"] == method]
            if rows:
                dense, error = (spread([r[key] for r in rows], 2) for key in ("dense_error", "error"))
                nonzero, most, size = (
                    spread([r[key] for r in rows], digits)
                    for key, digits in (("nonzero_percent", 1), ("maximum", 0), ("bytes", 0))
                )
                lines.append(f"| {net} | {title} | {len(rows)} | {dense} | {error} | {nonzero} | | | {most} | {size} |")
        for prior in PRIORS:
            rows = results_of(net, prior, seeds, data_dir, runs)
            if rows:
                dense, error = (spread([m[key]["error_percent"] for m in rows], 2) for key in ("dense", "compressed"))
                figures = [
                    spread([m["compression"][key] for m in rows], digits)
                    for key, digits in (("nonzero_percent", 1), ("pruning", 1), ("fast_prediction", 0), ("maximum", 0))
                ]
                if prior == "svd":
                    sparse = [50 / m["compression"]["nonzero_percent"] for m in rows]
                    figures[1] += f"; {spread(sparse, 0)} of single weights"
                size = spread([m["file_bytes"] for m in rows], 0)
                lines.append(f"| {net} | {prior} | {len(rows)} | {dense} | {error} | {' | '.join(figures)} | {size} |")
            for m in again if (net, prior) == ("lenet-5-caffe", "ghs") else []:
                taught = ", taught" * m.get("taught", False)
                taught += f", affine {m['affine']:g}" if m.get("affine") else ""
                c = m["compression"]
                lines.append(
                    f"| {net} | ghs, pruned again{taught}, KL weight {m['kl_weight']:g} | 1 | | "
                    f"{m['error_percent']:.2f} | "
                    f"{c['nonzero_percent']:.1f} | {c['pruning']:.1f} | {c['fast_prediction']:.0f} | "
                    f"{c['maximum']:.0f} | {m['file_bytes']:,} |"
                )
            dense, _, error, pruning, fast, most = PAPER[net][prior]
            cells = f"{error} | {NONZERO[net][prior]} | {pruning} | {fast} | {most}"
            lines.append(f"| {net} | {prior}, paper | | {dense} | {cells} | |")
        for m in records:
            if m["net"] == net:
                c = m["compression"]
                lines.append(
                    f"| {net} | learned code, KL weight {m['recipe']['fit']['kl_weight']:g} | 1 | | "
                    f"{m['test']['error_percent']:.2f} | {c['nonzero_percent']:.2f} | {c['pruning']:.1f} | "
                    f"{c['fast_prediction']:.0f} | {c['maximum']:,.0f} | {m['file_bytes']:,} |"
                )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir")
    parser.add_argument("--nets", nargs="+", choices=PAPER, default=list(PAPER))
    parser.add_argument("--seeds", nargs="+", type=int, default=None, help="(default: those that there are)")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    args = parser.parse_args()
    text = table(args.nets, args.seeds, args.data_dir, args.runs)
    (RESULTS / "table_2.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
