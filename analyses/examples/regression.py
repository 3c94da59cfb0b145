"""A Pyro model written by hand, with its own SVI loop, compressed: heteroscedastic regression.

Nothing here but the priors, the guide, one context manager and ``compress`` comes from pyro_bc: the model is a
Python function with ``pyro.sample`` statements, the loop is Pyro's. Data: scikit-learn's diabetes set (442
patients, 10 measurements, progression after a year), 340 for training and 102 for the test.

    python analyses/examples/regression.py

writes ``analyses/results/regression.{json,md,pbc}``.
"""

import argparse
import json
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.infer import SVI, TraceMeanField_ELBO
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from torch import nn

import pyro_bc
from pyro_bc.priors.normal_jeffreys import NormalJeffreys

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS

SEEDS = (0, 1, 2)
HIDDEN, STEPS = 50, 6000


def standardised() -> tuple[torch.Tensor, ...]:
    """Train and test inputs and targets, in units of the training set's standard deviations."""
    x, y = load_diabetes(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(x, y, test_size=102, random_state=0)
    x_mean, x_std, y_mean, y_std = train_x.mean(0), train_x.std(0), train_y.mean(), train_y.std()
    scaled = (
        (train_x - x_mean) / x_std,
        (test_x - x_mean) / x_std,
        (train_y - y_mean) / y_std,
        (test_y - y_mean) / y_std,
    )
    return tuple(torch.tensor(part, dtype=torch.float32) for part in scaled)


def make_model(num_data: int, inputs: int, prior: pyro_bc.Prior):
    def model(x, y=None):
        # One layer in full: a scale per input, a weight per connection, a bias. `prior.sample` writes the same sites.
        z = pyro.sample("fc1.scale", NormalJeffreys().expand([inputs]).to_event(1))
        w = pyro.sample("fc1.weight", dist.Normal(0.0, 1.0).expand([HIDDEN, inputs]).to_event(2))
        b = pyro.sample("fc1.bias", dist.Normal(0.0, 1.0).expand([HIDDEN]).to_event(1))
        hidden = torch.tanh(F.linear(x, z * w, b))
        weight = prior.sample("fc2", (2, HIDDEN))
        bias = pyro.sample("fc2.bias", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        mean, log_scale = F.linear(hidden, weight, bias).unbind(-1)
        with pyro.plate("data", num_data, subsample=x):
            pyro.sample("y", dist.Normal(mean, log_scale.exp()), obs=y)

    return model


def scores(outputs: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """RMSE, and mean log-likelihood in nats, of outputs (mean, log scale)."""
    mean, log_scale = outputs.unbind(-1)
    return (mean - y).square().mean().sqrt().item(), dist.Normal(mean, log_scale.exp()).log_prob(y).mean().item()


def dense_scores(net: nn.Module, train_x, train_y, test_x, test_y) -> tuple[float, float]:
    """The same network trained by maximum likelihood, stopped at its best epoch on a held-out fifth."""
    fit_x, held_x, fit_y, held_y = train_test_split(train_x, train_y, test_size=0.2, random_state=0)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    best, state = -np.inf, None
    for _ in range(2000):
        optimizer.zero_grad()
        mean, log_scale = net(fit_x).unbind(-1)
        (-dist.Normal(mean, log_scale.exp()).log_prob(fit_y).mean()).backward()
        optimizer.step()
        with torch.no_grad():
            held = scores(net(held_x), held_y)[1]
        if held > best:
            best, state = held, {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(state)
    with torch.no_grad():
        return scores(net(test_x), test_y)


def network(inputs: int) -> nn.Module:
    """What the model's function computes, as a module: the skeleton of the compressed file."""
    layers = OrderedDict(fc1=nn.Linear(inputs, HIDDEN), tanh=nn.Tanh(), fc2=nn.Linear(HIDDEN, 2))
    return nn.Sequential(layers)


def one_seed(seed: int) -> dict:
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    train_x, test_x, train_y, test_y = standardised()
    net = network(train_x.shape[1])
    dense_rmse, dense_log_likelihood = dense_scores(net, train_x, train_y, test_x, test_y)

    model = make_model(len(train_x), train_x.shape[1], pyro_bc.GroupNormalJeffreys())
    guide = pyro_bc.FactorizedGuide(model, init_log_variance=-6.0)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 5e-3, "lrd": 0.1 ** (1 / STEPS)}), TraceMeanField_ELBO())
    for _ in range(STEPS):
        batch = torch.randint(len(train_x), (64,))
        with pyro_bc.local_reparameterization():
            svi.step(train_x[batch], train_y[batch])

    small = pyro_bc.compress(model, guide, net=net)
    path = RESULTS / "regression.pbc"
    file_bytes = small.save(path)
    rmse, log_likelihood = scores(pyro_bc.load(path)(test_x), test_y)
    return {
        "seed": seed,
        "dense": {"rmse": dense_rmse, "log_likelihood": dense_log_likelihood, "parameters": small.dense_parameters},
        "compressed": {"rmse": rmse, "log_likelihood": log_likelihood},
        "architecture": list(small.architecture),
        "bits": list(small.bits),
        "file_bytes": file_bytes,
        "maximum": small.compression(file_bytes).maximum,
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    pyro.enable_validation(False)
    rows = [one_seed(seed) for seed in SEEDS]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "regression.json").write_text(json.dumps(rows, indent=2) + "\n")
    lines = [
        "# Heteroscedastic regression on scikit-learn's diabetes set, model written by hand",
        "",
        f"`python analyses/examples/regression.py`, seeds {', '.join(map(str, SEEDS))}. Test set of 102; "
        "targets standardised; "
        "log-likelihood in nats. 10-50-2 network with a normal-Jeffreys prior over its inputs.",
        "",
        "| seed | dense RMSE | compressed | dense log-likelihood | compressed | inputs left | bytes | times smaller |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['seed']} | {row['dense']['rmse']:.3f} | {row['compressed']['rmse']:.3f} | "
            f"{row['dense']['log_likelihood']:.3f} | {row['compressed']['log_likelihood']:.3f} | "
            f"{'-'.join(map(str, row['architecture']))} | {row['file_bytes']} | {row['maximum']:.0f} |"
        )
    text = "\n".join(lines) + "\n"
    (RESULTS / "regression.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
