"""How much gradient noise local reparameterization saves, against sampling weights once per batch.

Both estimate the same gradient of the expected log-likelihood; what differs is the variance. Measured on digits,
LeNet-300-100, batches of 128, with the posterior after a short fit: the variance of the gradient of every weight's
mean over repeated draws on one batch, summed over a layer, as a ratio.

    python analyses/paper/gradient_noise.py

writes ``analyses/results/gradient_noise.{json,md}``.
"""

import argparse
import json
import sys
from pathlib import Path

import pyro
import torch
from pyro import poutine

import pyro_bc
from pyro_bc.app.datasets import load_dataset
from pyro_bc.app.networks import lenet_300_100
from pyro_bc.inference.elbo import elbo_terms

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS

REPEATS = 200
PRIORS = {
    "gnj": pyro_bc.GroupNormalJeffreys(),
    "ghs": pyro_bc.GroupHorseshoe(),
    "svd": pyro_bc.LogUniform(),
}


def log_likelihood_by_weights(model, guide, x, y) -> torch.Tensor:
    """One draw of the weights for the whole batch."""
    trace = poutine.trace(poutine.replay(model, trace=poutine.trace(guide).get_trace(x, y))).get_trace(x, y)
    site = trace.nodes["y"]
    return (site["scale"] * site["fn"].log_prob(site["value"])).sum()


def gradient_variance(estimate, parameters: list[torch.Tensor]) -> list[float]:
    """Summed variance over repeated draws, for every parameter tensor."""
    total = [torch.zeros_like(p) for p in parameters]
    squares = [torch.zeros_like(p) for p in parameters]
    for _ in range(REPEATS):
        for i, gradient in enumerate(torch.autograd.grad(estimate(), parameters)):
            total[i] += gradient
            squares[i] += gradient.square()
    return [(s - t.square() / REPEATS).sum().item() / (REPEATS - 1) for t, s in zip(total, squares, strict=True)]


def ratios(prior: pyro_bc.Prior) -> dict[str, float]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    data = load_dataset("digits")
    model = pyro_bc.BayesianNetwork(lenet_300_100(data.picture_shape), prior, num_data=len(data.train_x))
    guide = pyro_bc.FactorizedGuide(model)
    batches = pyro_bc.data.Batches(data.train_x, data.train_y)
    pyro_bc.fit(model, guide, batches, epochs=60, kl_weight=0.02, log_learning_rate=2e-2, progress=False)
    x, y = data.train_x[:128], data.train_y[:128]
    names = [f"locs.{layer}.weight" for layer in guide.layers]
    parameters = [dict(guide.named_parameters())[name] for name in names]
    by_weights = gradient_variance(lambda: log_likelihood_by_weights(model, guide, x, y), parameters)
    local = gradient_variance(lambda: elbo_terms(model, guide, x, y).log_likelihood, parameters)
    result = {name.split(".")[2]: w / v for name, w, v in zip(names, by_weights, local, strict=True)}
    return result | {"all": sum(by_weights) / sum(local)}


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    pyro.enable_validation(False)
    measured = {name: ratios(prior) for name, prior in PRIORS.items()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "gradient_noise.json").write_text(json.dumps(measured, indent=2) + "\n")
    lines = [
        "# Gradient noise: weight sampling over local reparameterization",
        "",
        f"`python analyses/paper/gradient_noise.py`: digits, LeNet-300-100, one batch of 128, {REPEATS} draws, seed 0, "
        "posterior after 60 epochs. Ratio of summed variances of gradients of the weights' means; 10 means that one "
        "local draw is worth ten draws of weights.",
        "",
        "| prior | fc1 | fc2 | fc3 | all |",
        "|---|---|---|---|---|",
    ]
    for name, row in measured.items():
        lines.append(f"| {name} | {row['fc1']:.1f} | {row['fc2']:.1f} | {row['fc3']:.1f} | {row['all']:.1f} |")
    text = "\n".join(lines) + "\n"
    (RESULTS / "gradient_noise.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
