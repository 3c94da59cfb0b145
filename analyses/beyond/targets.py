"""One number from the user: what targets come to, on networks of eight kinds, with three priors and three seeds.

    python analyses/beyond/targets.py --data-dir ../shared/data

The trained networks of ``six_networks.py``, one of the digits, and one of scikit-learn's diabetes table (regression,
targets in units of their standard deviation). Each is fitted by ``fit(model, guide, loader, target=…, held_out=…)``
and compressed by ``compress_to``, with no other option: a rise of the error first, and then 0.7 of the bytes of that
file as a target of its own. Figures of the held-out examples say whether a target was reached; the test set, which
chooses nothing, how well that carries over, and by how much its examples, drawn again, would move that rise. Writes
``analyses/results/targets.{md,json}``; points that are there are not run again.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pyro
import torch
from six_networks import Problem, of_dataset, train, trained
from sklearn.datasets import load_diabetes
from torch import nn

import pyro_bc
from pyro_bc.compression.target import compress_to
from pyro_bc.data import Batches
from pyro_bc.model.likelihoods import Categorical, Likelihood, Normal
from pyro_bc.posterior.judged import held_out_batches, judge

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS

PRIORS = {"gnj": pyro_bc.GroupNormalJeffreys, "ghs": pyro_bc.GroupHorseshoe, "learned": pyro_bc.LearnedCode}
#: by network: rise of the error that is allowed, in points, or in the targets' standard deviations.
RISES = {
    "table": 1.0, "regression": 0.02, "digits": 0.5, "transformer": 1.0, "lenet-300-100": 0.2, "lenet-5-caffe": 0.1,
    "depthwise": 1.0, "resnet-20": 1.0,
}  # fmt: skip


def problem(name: str, folder: str | None) -> tuple[nn.Module, Problem, Likelihood]:
    """A trained network, its data, and what is observed."""
    if name == "digits":
        data = of_dataset("digits", 300)(None)
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
        )
        train(net, data, 60, 2e-3, False, name)
        return net, data, Categorical()
    if name != "regression":
        return *trained(name, folder), Categorical()
    x, y = (torch.from_numpy(part).float() for part in load_diabetes(return_X_y=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    x, y = x[order], y[order]
    x, y = (x - x[:340].mean(0)) / x[:340].std(0), (y - y[:340].mean()) / y[:340].std()
    data = Problem(x[:260], y[:260], x[260:340], y[260:340], x[340:], y[340:])
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.1)
    for _ in range(60):
        for own_x, own_y in Batches(data.train_x, data.train_y, 64):
            optimizer.zero_grad()
            nn.functional.mse_loss(net(own_x).squeeze(-1), own_y).backward()
            optimizer.step()
    return net.eval(), data, Normal()


@torch.no_grad()
def deviation(nets: list[nn.Module], likelihood: Likelihood, batches: list) -> float:
    """How far other examples would move the second network's rise over the first: of a thousand draws of these."""
    errors = [torch.cat([likelihood.error(net(x), y) for x, y in batches]) for net in nets]
    draws = torch.randint(len(errors[0]), (1000, len(errors[0])), generator=torch.Generator().manual_seed(0))
    before, after = ([likelihood.summary(float(own[draw].mean())) for draw in draws] for own in errors)
    return statistics.stdev(b - a for a, b in zip(before, after, strict=True))


def measured(name: str, folder: str | None, prior: str, target: pyro_bc.Target, seed: int) -> dict[str, Any]:
    net, data, likelihood = problem(name, folder)
    start = time.perf_counter()
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    held, test = held_out_batches(data.held_x, data.held_y), held_out_batches(data.test_x, data.test_y)
    model = pyro_bc.BayesianNetwork(net, PRIORS[prior](), num_data=len(data.train_x), likelihood=likelihood)
    guide = pyro_bc.FactorizedGuide(model)
    loader = Batches(data.train_x, data.train_y, 128)
    pyro_bc.fit(model, guide, loader, target=target, held_out=held, seed=seed, progress=False)
    fitted = time.perf_counter() - start
    reached = compress_to(model, guide, target, loader, held, seed=seed, progress=False)
    small = reached.network.network()
    return {
        "network": name, "prior": prior, "seed": seed, "kind": "bytes" if target.max_bytes else "rise",
        "limit": target.limit, "bytes": reached.found.file_bytes, "is_met": reached.is_met,
        "held": [reached.dense.error, reached.found.error],
        "test": [judge(net, likelihood, test).error, judge(small, likelihood, test).error],
        "deviation": deviation([net.eval(), small], likelihood, test),
        "held_n": len(data.held_x), "test_n": len(data.test_x),
        "seconds": [round(fitted), round(time.perf_counter() - start - fitted)],
    }  # fmt: skip


def table(points: list[dict]) -> str:
    lines = [
        "# Targets",
        "",
        "`python analyses/beyond/targets.py`: one number, nothing else; medians over seeds, and the range of the "
        "test errors' rise, with the deviation that it has from the choice of test examples. Errors in %, of the "
        "regression RMSE in the targets' standard deviations.",
        "",
        "| network | prior | target | met | bytes | rise, held out | rise, test | deviation | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys((own["network"], own["prior"], own["kind"]) for own in points):
        own = [p for p in points if (p["network"], p["prior"], p["kind"]) == key]
        digits = 3 if key[0] == "regression" else 2
        held, test = ([p[part][1] - p[part][0] for p in own] for part in ("held", "test"))
        limits = sorted({p["limit"] for p in own})
        unit = "bytes" if key[2] == "bytes" else "more"
        size, moved, seconds = (
            statistics.median(values)
            for values in zip(*((p["bytes"], p["deviation"], sum(p["seconds"])) for p in own), strict=True)
        )
        lines.append(
            f"| {key[0]} | {key[1]} | {'–'.join(f'{limit:,g}' for limit in limits)} {unit} "
            f"| {sum(p['is_met'] for p in own)} of {len(own)} | {size:,.0f} | {statistics.median(held):.{digits}f} "
            f"| {statistics.median(test):.{digits}f} ({min(test):.{digits}f} to {max(test):.{digits}f}) "
            f"| {moved:.{digits}f} | {seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder with mnist/ and cifar10-jpeg/")
    parser.add_argument("--only", nargs="*", default=list(RISES))
    parser.add_argument("--priors", nargs="*", default=list(PRIORS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--out", default=RESULTS, help="folder of the results; what is there is kept")
    args = parser.parse_args()
    file = Path(args.out) / "targets.json"
    points = json.loads(file.read_text()) if file.exists() else []

    def done(*key: Any) -> dict | None:
        return next((p for p in points if (p["network"], p["prior"], p["seed"], p["kind"]) == key), None)

    def run(name: str, prior: str, seed: int, target: pyro_bc.Target) -> dict:
        kind = "bytes" if target.max_bytes else "rise"
        found = done(name, prior, seed, kind)
        if found is None:
            found = measured(name, args.data_dir, prior, target, seed)
            points.append(found)
            file.write_text(json.dumps(points, indent=1) + "\n")
            print(found, flush=True)
        return found

    for seed in args.seeds:
        for name in args.only:
            for prior in args.priors:
                first = run(name, prior, seed, pyro_bc.Target(max_error_rise=RISES[name]))
                run(name, prior, seed, pyro_bc.Target(max_bytes=first["bytes"] * 7 // 10))
    order = {name: at for at, name in enumerate(RISES)}
    points.sort(key=lambda p: (order[p["network"]], list(PRIORS).index(p["prior"]), p["kind"] == "bytes", p["seed"]))
    (Path(args.out) / "targets.md").write_text(table(points))
    print(table(points))


if __name__ == "__main__":
    main()
