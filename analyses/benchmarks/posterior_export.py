"""Time and memory of exporting LeNet-5-Caffe's posterior for ArviZ: 1,000 draws of all scales, moments of all weights.

    python analyses/benchmarks/posterior_export.py

The table goes to ``analyses/results/posterior_export.md``.
"""

import argparse
import resource
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import arviz
import torch

import pyro_bc
from pyro_bc.app.networks import lenet_5_caffe

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    lines = [
        "# Exporting a posterior",
        "",
        f"`python analyses/benchmarks/posterior_export.py`: LeNet-5-Caffe, 1,000 draws, {torch.get_num_threads()} "
        "threads. Memory is the whole process's peak, packages included.",
        "",
        "| prior | scales drawn | weights' moments | seconds | peak MB | file MB |",
        "|---|---|---|---|---|---|",
    ]
    for prior in (pyro_bc.GroupNormalJeffreys(), pyro_bc.GroupHorseshoe()):
        torch.manual_seed(0)
        model = pyro_bc.BayesianNetwork(lenet_5_caffe(), prior, num_data=60_000)
        guide = pyro_bc.FactorizedGuide(model)
        guide(torch.rand(2, 1, 28, 28), torch.tensor([0, 1]))
        with TemporaryDirectory() as folder:
            file = Path(folder, "posterior.nc")
            start = time.perf_counter()
            pyro_bc.save_inference_data(file, guide, draws=1000)
            seconds = time.perf_counter() - start
            size = file.stat().st_size
            data = arviz.from_netcdf(file)
        scales = sum(data.posterior[name].shape[2] for name in data.posterior if name.endswith(".scale"))
        moments = sum(data.constant_data[name].size for name in data.constant_data if name.endswith("weight_mean"))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        name = type(prior).__name__
        lines.append(f"| {name} | {scales:,} | {moments:,} | {seconds:.1f} | {peak:,.0f} | {size / 1e6:.1f} |")
        print(lines[-1], flush=True)
    (RESULTS / "posterior_export.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
