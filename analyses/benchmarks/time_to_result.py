"""Four ways to draw, at equal time: local reparameterization, one weight for a batch, antithetic pairs, flipout.

    python analyses/benchmarks/time_to_result.py --data-dir ../shared/data

Networks of ``six_networks.py``, trained, each fitted with one prior by ``pyro_bc.fit`` in which the output of a linear
map with a random weight is drawn in another way; scales of groups are drawn for every example in all of them, and the
KL is exact. The first way gets the epochs below, and each of the others as many as take the same processor time. At
the end, on held-out data: the bound (negative log-likelihood of the posterior mean and the KL, in nats an example),
error and bytes of ``compress``. Flipout is Wen et al. 2018 (1803.04386). Writes
``analyses/results/time_to_result.{md,json}``; points that are there are not run again.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

import pyro_bc
from pyro_bc.data import Batches
from pyro_bc.inference import deferred_rules
from pyro_bc.inference.elbo import elbo_terms
from pyro_bc.posterior.in_place import network_with
from pyro_bc.posterior.judged import held_out_batches, judge
from pyro_bc.posterior.summary import summarize

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "beyond")]
from common import RESULTS
from six_networks import trained

PRIORS = {"gnj": pyro_bc.GroupNormalJeffreys, "ghs": pyro_bc.GroupHorseshoe}
#: epochs of local reparameterization, and the KL's weight.
CASES = {"transformer": (60, 0.05), "lenet-5-caffe": (6, 0.3), "resnet-20": (2, 0.3)}
LOCAL = deferred_rules._sample_affine


def one_weight(function: Callable[..., Tensor], x: Tensor, q: Any, bias: Any) -> Tensor:
    """One weight for the whole batch."""
    return function(x, q.loc + q.scale * torch.randn_like(q.loc), bias_of(bias))


def antithetic(function: Callable[..., Tensor], x: Tensor, q: Any, bias: Any) -> Tensor:
    """One weight for half of the batch, and its mirror image for the other half."""
    noise, own, half = q.scale * torch.randn_like(q.loc), bias_of(bias), len(x) // 2
    return torch.cat([function(x[:half], q.loc + noise, own), function(x[half:], q.loc - noise, own)])


def flipout(function: Callable[..., Tensor], x: Tensor, q: Any, bias: Any) -> Tensor:
    """One weight, of which every example has an own sign of each input's and each output's noise."""
    mean = function(x, q.loc, bias_of(bias))
    noise = q.scale * torch.randn_like(q.loc)
    return mean + function(x * signs(x, q.loc.dim()), noise, None) * signs(mean, q.loc.dim())


def signs(x: Tensor, weight_dim: int) -> Tensor:
    """A sign of every example and channel."""
    shape = (*x.shape[:2], *[1] * (x.dim() - 2)) if weight_dim > 2 else (len(x), *[1] * (x.dim() - 2), x.shape[-1])
    return torch.randint(2, shape).to(x).mul_(2).sub_(1)


def bias_of(bias: Any) -> Any:
    return bias.draw() if isinstance(bias, deferred_rules.Deferred) else bias


WAYS = {"local": LOCAL, "one weight": one_weight, "antithetic": antithetic, "flipout": flipout}


def fitted(name: str, folder: str | None, prior: str, way: str, epochs: int, kl_weight: float, seed: int) -> dict:
    net, data = trained(name, folder)
    pyro.clear_param_store()
    model = pyro_bc.BayesianNetwork(net, PRIORS[prior](), num_data=len(data.train_x))
    guide = pyro_bc.FactorizedGuide(model)
    loader, held = Batches(data.train_x, data.train_y, 128), held_out_batches(data.held_x, data.held_y)
    deferred_rules._sample_affine = WAYS[way]
    clock = [time.process_time()]
    try:
        pyro_bc.fit(
            model, guide, loader, epochs=epochs, kl_weight=kl_weight, seed=seed, progress=False, compile=False,
            after_epoch=lambda epoch: clock.append(time.process_time()),
        )  # fmt: skip
    finally:
        deferred_rules._sample_affine = LOCAL
    each = statistics.median(after - before for before, after in itertools.pairwise(clock[1:] if epochs > 1 else clock))
    mean = judge(network_with(model, summarize(guide), {}), model.likelihood, held)
    terms = elbo_terms(model, guide, data.held_x[:64], data.held_y[:64])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = pyro_bc.compress(model, guide)
    found = judge(small.network(), model.likelihood, held)
    return {
        "network": name, "prior": prior, "way": way, "seed": seed, "epochs": epochs, "seconds": each * epochs,
        "bound": mean.loss + kl_weight * float(terms.total_kl()) / model.num_data, "mean_error": mean.error,
        "error": found.error, "bytes": len(small.to_bytes()), "architecture": list(small.architecture),
    }  # fmt: skip


def table(points: list[dict]) -> str:
    lines = [
        "# Time to result",
        "",
        "`python analyses/benchmarks/time_to_result.py`, one thread, steps as Python runs them; means over seeds. "
        "Bound in nats an example, errors in %, held-out data; the same processor time for all ways of a network and "
        "prior.",
        "",
        "| network | prior | way | seeds | epochs | seconds | bound | error of the mean | error of the file | bytes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys((p["network"], p["prior"], p["way"]) for p in points):
        own = [p for p in points if (p["network"], p["prior"], p["way"]) == key]
        epochs, seconds, bound, mean, error, size = (
            statistics.mean(p[field] for p in own)
            for field in ("epochs", "seconds", "bound", "mean_error", "error", "bytes")
        )
        lines.append(
            f"| {' | '.join(key)} | {len(own)} | {epochs:.0f} | {seconds:.0f} | {bound:.4f} | {mean:.2f} | {error:.2f} "
            f"| {size:,.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder with mnist/ and cifar10-jpeg/")
    parser.add_argument("--only", nargs="*", default=list(CASES))
    parser.add_argument("--priors", nargs="*", default=list(PRIORS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    args = parser.parse_args()
    torch.set_num_threads(1)
    file = RESULTS / "time_to_result.json"
    points = json.loads(file.read_text()) if file.exists() else []
    for name in args.only:
        epochs, kl_weight = CASES[name]
        for prior in args.priors:
            for seed in args.seeds:
                whole = 0.0  # seconds of local reparameterization
                for way in WAYS:
                    key = (name, prior, way, seed)
                    found = next((p for p in points if (p["network"], p["prior"], p["way"], p["seed"]) == key), None)
                    if found is None:
                        own = epochs
                        if whole:
                            trial = fitted(name, args.data_dir, prior, way, 2, kl_weight, seed)
                            own = max(1, round(2 * whole / trial["seconds"]))
                        found = fitted(name, args.data_dir, prior, way, own, kl_weight, seed)
                        points.append(found)
                        file.write_text(json.dumps(points, indent=1) + "\n")
                        print(found, flush=True)
                    whole = whole or found["seconds"]
    (RESULTS / "time_to_result.md").write_text(table(points))
    print(table(points))


if __name__ == "__main__":
    main()
