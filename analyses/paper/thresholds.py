"""The figure of the thresholds: every layer's group statistics, and where they are cut.

    python analyses/paper/thresholds.py --data-dir ../shared/data [--net lenet-300-100]

As the paper's figure of log dropout rates and log-modes, for both priors in one picture. Takes the posteriors of the
runs under ``--runs`` (default ``runs/``; those of runs.py) and makes them where they are missing. Writes
``analyses/results/thresholds-<net>.png``.
"""

import argparse
import json
import math
import sys
from pathlib import Path

from matplotlib.figure import Figure

from pyro_bc.inspection import plots
from pyro_bc.inspection.arviz import arviz_package, layer_posteriors
from pyro_bc.posterior.thresholds import Threshold

sys.path.append(str(Path(__file__).parents[1]))
from common import PAPER, RESULTS, one_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", choices=PAPER, default="lenet-300-100")
    parser.add_argument("--data-dir")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    args = parser.parse_args()
    rows = []
    for prior in ("gnj", "ghs"):
        folder = args.runs / f"{args.net}-mnist-{prior}-seed{args.seed}"
        if not (folder / "metrics.json").exists():
            one_run(args.net, prior, "mnist", args.data_dir, args.seed, args.runs)
        metrics = json.loads((folder / "metrics.json").read_text())
        cuts = metrics.get("pruning_thresholds", metrics["thresholds"])
        rows.append((prior, layer_posteriors(arviz_package().from_netcdf(folder / "posterior.nc")), cuts))
    columns = len(rows[0][1])
    figure = Figure(figsize=(3.6 * columns, 3.0 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for (prior, layers, cuts), line in zip(rows, axes, strict=True):
        for (name, layer), ax in zip(layers.items(), line, strict=True):
            cut = cuts[name.removeprefix("net.")]
            threshold = Threshold(math.inf if cut["value"] is None else cut["value"], cut["method"])
            plots.group_statistics(layer, threshold, ax).set_title(f"{prior}, {name.removeprefix('net.')}")
    file = RESULTS / f"thresholds-{args.net}.png"
    figure.savefig(file, dpi=110)
    print(file)


if __name__ == "__main__":
    main()
