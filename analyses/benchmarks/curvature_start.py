"""Where a fit starts: log-variances of -9 everywhere, or those of the trained network's curvature.

    python analyses/benchmarks/curvature_start.py --data-dir ../shared/data

LeNet-300-100 on the digits (three seeds) and on MNIST (one): the objective after so many epochs, negative
log-likelihood and weighted KL in nats an example, the epochs that each start takes to the other's last objective, and
the compressed network on held-out data. Writes ``analyses/results/curvature_start.md``.
"""

import argparse
import sys
from pathlib import Path

import pyro
import torch
from rich.progress import track

import pyro_bc
from pyro_bc.app.datasets import load_dataset
from pyro_bc.app.networks import lenet_300_100
from pyro_bc.app.settings import PRIORS
from pyro_bc.inspection.diagnostics import error_percent

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS

#: data set: epochs of the dense network and of the fit, weight of the KL, seeds, and the epochs that are shown.
CASES = {
    "digits": (100, 60, 0.02, (0, 1, 2), (5, 10, 20, 40, 60)),
    "mnist": (5, 15, 0.1, (0,), (1, 2, 5, 10, 15)),
}


def dense_network(data, epochs: int, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    net = lenet_300_100(data.picture_shape, data.classes)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(epochs):
        for x, y in pyro_bc.data.Batches(data.train_x, data.train_y, 128):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    return net.eval()


def fitted(data, net, prior: str, epochs: int, kl_weight: float, seed: int, from_curvature: bool):
    """Objectives after every epoch, and bytes and held-out error of the compressed network."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    model = pyro_bc.BayesianNetwork(net, PRIORS[prior], num_data=len(data.train_x))
    start = -9.0
    if from_curvature:
        start = pyro_bc.CurvatureGuide(model, data.train_x[:4000].split(100), progress=False).log_variances()
        pyro.clear_param_store()
    guide = pyro_bc.FactorizedGuide(model, init_log_variance=start)
    result = pyro_bc.fit(
        model, guide, pyro_bc.data.Batches(data.train_x, data.train_y, 128), epochs=epochs, progress=False, seed=seed,
        learning_rate=1e-3, log_learning_rate=2e-2, kl_weight=kl_weight, decay=0.5,
    )  # fmt: skip
    small = pyro_bc.compress(model, guide)
    course = [epoch.negative_log_likelihood + kl_weight * epoch.kl for epoch in result.history]
    return course, len(small.to_bytes()), error_percent(small.network(), data.test_x, data.test_y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder with mnist/")
    parser.add_argument("--data", nargs="*", default=list(CASES))
    args = parser.parse_args()
    lines = ["# A start from curvature", "", "`python analyses/benchmarks/curvature_start.py`", ""]
    for name in args.data:
        dense_epochs, epochs, kl_weight, seeds, shown = CASES[name]
        data = load_dataset(name, args.data_dir if name == "mnist" else None).development()
        lines += [
            f"## {name}, LeNet-300-100, KL weight {kl_weight}", "",
            f"| prior | seed | start | {' | '.join(f'{e} epochs' for e in shown)} | epochs to the last of −9 | file, "
            "held-out error |", f"|---|---|---|{'---|' * (len(shown) + 2)}",
        ]  # fmt: skip
        for seed in track(seeds, name):
            net = dense_network(data, dense_epochs, seed)
            for prior in ("gnj", "ghs"):
                goal = None
                for from_curvature in (False, True):
                    course, size, error = fitted(data, net, prior, epochs, kl_weight, seed, from_curvature)
                    goal = course[-1] if goal is None else goal
                    reached = next((i + 1 for i, value in enumerate(course) if value <= goal), None)
                    cells = [f"{course[e - 1]:.3f}" for e in shown]
                    lines.append(
                        f"| {prior} | {seed} | {'curvature' if from_curvature else '−9'} | {' | '.join(cells)} | "
                        f"{reached or 'never'} | {size:,} bytes, {error:.2f} % |"
                    )
        lines.append("")
        (RESULTS / "curvature_start.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
