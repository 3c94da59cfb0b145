"""Every guide that Pyro has gives what ours gives: marginals, joint draws, moments of weights, a file, an export."""

import math
from dataclasses import replace

import numpy as np
import pyro
import pyro.poutine as poutine
import pytest
import torch
from helpers import two_layers, two_of_six
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoStructured,
)
from torch import nn

import pyro_bc
from pyro_bc.errors import UsageError
from pyro_bc.inspection.diagnostics import importance_ratios, sampled_probabilities
from pyro_bc.posterior.guides import posterior_of

POINTS = (AutoDelta, AutoLaplaceApproximation)


def halves(model):
    """A list of two guides, one for each layer."""
    guide = AutoGuideList(model)

    def is_last(message):
        return message["name"].startswith("net.2.")

    guide.append(pyro_bc.FactorizedGuide(poutine.block(model, hide_fn=is_last)))
    guide.append(AutoMultivariateNormal(poutine.block(model, expose_fn=is_last)))
    return guide


def curvature(model):
    return pyro_bc.CurvatureGuide(model, [two_of_six()[0]], progress=False)


KINDS = [
    pyro_bc.FactorizedGuide,
    curvature,
    AutoNormal,
    AutoDelta,
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoLaplaceApproximation,
    halves,
]


@pytest.fixture(scope="module")
def trained():
    """A network and its guide of a kind, after a few steps."""
    found = {}

    def of(kind, prior):
        if (kind, prior) not in found:
            pyro.clear_param_store()
            torch.manual_seed(0)
            x, y = two_of_six()
            model = pyro_bc.BayesianNetwork(two_layers(), prior, num_data=len(x))
            guide = kind(model)
            svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 1e-2}), Trace_ELBO())
            for _ in range(0 if kind is curvature else 60):
                svi.step(x, y)
            found[kind, prior] = model, guide
        return found[kind, prior]

    return of


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_draws_are_the_guides_and_have_its_marginals(trained, kind):
    _, guide = trained(kind, pyro_bc.GroupHorseshoe(0.1))
    posterior = posterior_of(guide)
    x, y = two_of_six()
    pyro.set_rng_seed(3)
    with pyro.validation_enabled(False), torch.no_grad():
        own = [guide(x, y) for _ in range(1000)]
    drawn = posterior.draws(1000)
    assert drawn.keys() == posterior.marginals.keys() == own[0].keys()
    for name, values in drawn.items():
        theirs = torch.stack([draw[name].detach() for draw in own])
        q = posterior.marginals[name]
        inner = (values.log(), theirs.log()) if hasattr(q, "base_dist") else (values, theirs)
        (mean, deviation), (other, other_deviation) = ((v.double().mean(0), v.double().std(0)) for v in inner)
        error = 6 * (deviation + other_deviation) / math.sqrt(1000) + 1e-5
        assert bool(((mean - other).abs() < error).all())
        assert torch.allclose(deviation, other_deviation, rtol=0.3, atol=1e-5)
        base = q.base_dist if hasattr(q, "base_dist") else q
        assert bool(((mean - base.loc).abs() < error).all())
        assert torch.allclose(deviation, base.scale.double(), rtol=0.3, atol=1e-5)


def check_moments(guide, prior, count=4000):
    posterior, summary = posterior_of(guide), pyro_bc.summarize(guide)
    pyro.set_rng_seed(4)
    draws = posterior.draws(count)
    for name, layer in summary.items():
        weights = draws[f"{name}.weight"]
        if isinstance(prior, pyro_bc.GroupNormalJeffreys):
            weights = weights * draws[f"{name}.scale"][:, None, :]
        weights = weights.double()
        error = 6 * layer.weight_variance.sqrt() / math.sqrt(800) + 1e-5
        assert bool(((weights.mean(0).float() - layer.weight_mean).abs() < error).all())
        assert torch.allclose(weights.var(0).float(), layer.weight_variance, rtol=0.5, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("prior", [pyro_bc.GroupNormalJeffreys(), pyro_bc.StandardNormal()], ids=["gnj", "normal"])
def test_moments_of_weights_are_those_of_draws(trained, kind, prior):
    check_moments(trained(kind, prior)[1], prior)


def test_a_guide_of_which_only_draws_are_known(trained):
    model, guide = trained(AutoIAFNormal, pyro_bc.StandardNormal())
    check_moments(guide, pyro_bc.StandardNormal(), 800)
    assert pyro_bc.compress(model, guide, noise_ratio=1e-4).architecture == (6, 8)
    assert pyro_bc.to_inference_data(guide, draws=3).posterior.attrs["moments"] == "1000 draws"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("prior", [pyro_bc.GroupHorseshoe(0.1), pyro_bc.LogUniform()], ids=["ghs", "svd"])
def test_each_is_compressed_and_exported(trained, kind, prior):
    model, guide = trained(kind, prior)
    x, y = two_of_six()
    keep = {
        name.removeprefix("net."): 1e4 for name, own in pyro_bc.summarize(guide).items() if own.statistic is not None
    }
    small, again = (
        pyro_bc.compress(model, guide, thresholds=keep, noise_ratio=1e-6, divergence=1e-9) for _ in range(2)
    )
    posterior = posterior_of(guide)
    assert small.architecture == (6, 8) and small.to_bytes() == again.to_bytes()
    for layer in small.layers:
        summary = pyro_bc.summarize(guide)[f"net.{layer.name}"]
        apart = (layer.weight.values() - summary.weight_mean).abs()
        assert kind is curvature or bool((apart <= summary.weight_variance.amax().sqrt() + 1e-6).all())
        if kind in POINTS:  # no variance: nothing is rounded
            assert torch.equal(layer.weight.values(), summary.weight_mean)
    data = pyro_bc.to_inference_data(guide, x, y, draws=8, weights=True)
    assert set(posterior.marginals) <= set(data.posterior.data_vars)
    assert data.log_likelihood["y"].shape == (1, 8, 200) and np.isfinite(data.log_likelihood["y"].values).all()
    assert data.posterior.attrs["moments"] == ("1000 draws" if posterior.dependent else "closed form")
    probabilities = sampled_probabilities(guide, x, draws=4)
    assert torch.allclose(probabilities.sum(1), torch.ones(200), atol=1e-5)
    if kind in POINTS:
        with pytest.raises(UsageError, match="has no density"):
            importance_ratios(guide, x, y, draws=25)
    else:
        assert np.isfinite(importance_ratios(guide, x, y, draws=25).log_ratios).all()


def test_laplaces_approximation_is_one_of_them():
    x, y = two_of_six()
    torch.manual_seed(0)
    model = pyro_bc.BayesianNetwork(
        torch.nn.Sequential(torch.nn.Linear(6, 2)), pyro_bc.StandardNormal(), num_data=len(x)
    )
    guide = AutoLaplaceApproximation(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 3e-2}), Trace_ELBO())
    for _ in range(300):
        svi.step(x, y)
    approximation = guide.laplace_approximation(x, y)
    summary = pyro_bc.summarize(approximation)["net.0"]
    assert torch.allclose(summary.weight_mean, pyro_bc.summarize(guide)["net.0"].weight_mean, atol=1e-5)
    assert bool((summary.weight_variance > 0).all()) and pyro_bc.compress(model, approximation).to_bytes()


def test_what_is_no_guide_is_told_so():
    with pytest.raises(UsageError, match="the posterior of a function cannot be read"):
        pyro_bc.summarize(lambda x: None)
    x, y = two_of_six()
    model = pyro_bc.BayesianNetwork(two_layers(), pyro_bc.LearnedCode(), num_data=len(x))
    guide = AutoNormal(model)
    guide(x, y)
    with pytest.raises(UsageError, match="is a learned code"):
        pyro_bc.compress(model, guide)
    with pytest.raises(RuntimeError, match="has not been set up"):
        pyro_bc.summarize(AutoNormal(model))
    model = pyro_bc.BayesianNetwork(two_layers(), pyro_bc.StandardNormal(), num_data=len(x))
    guide = AutoStructured(model)
    guide(x, y)
    with pytest.raises(UsageError, match="AutoStructured does not keep the inputs"):
        pyro_bc.compress(model, guide)


def test_correlations_of_a_guide_make_up_for_its_rounding(monkeypatch):
    """Inputs that are nearly the same: their weights are known by their sum, which is what codes keep."""
    torch.manual_seed(0)
    x = torch.randn(400, 1) + 0.3 * torch.randn(400, 12)
    model = pyro_bc.BayesianNetwork(nn.Sequential(nn.Linear(12, 40)), pyro_bc.StandardNormal(), num_data=400)
    guide = AutoMultivariateNormal(model)
    guide(x, torch.zeros(400, dtype=torch.long))
    wide = torch.cat([x, torch.ones(400, 1)], 1)
    precision = wide.T @ wide / 4 + torch.eye(13)
    entries = {"net.0.weight": torch.arange(480).reshape(40, 12), "net.0.bias": torch.arange(40)[:, None]}
    starts = {"net.0.weight": 0, "net.0.bias": 480}
    if next(iter(posterior_of(guide).marginals)).endswith("bias"):
        starts = {"net.0.weight": 40, "net.0.bias": 0}
    whole = torch.zeros(520, 520)
    for row in torch.cat([starts[name] + own for name, own in entries.items()], 1):
        whole[row[:, None], row[None]] = precision
    exact = torch.distributions.MultivariateNormal(torch.randn(520), precision_matrix=whole)
    monkeypatch.setattr(guide, "get_posterior", lambda: exact)
    read = posterior_of(guide)
    assert torch.allclose(read.precision(entries), precision.expand(40, 13, 13), rtol=1e-2, atol=0.1)
    means = torch.cat([read.centre()["net.0.weight"], read.centre()["net.0.bias"][:, None]], 1)
    costs = []
    for posterior in (read, replace(read, precision=None)):
        small = pyro_bc.compress(model, posterior, nats_per_bit=0.3)
        (layer,) = small.layers
        error = torch.cat([layer.weight.values(), layer.bias.values()[:, None]], 1) - means
        nats = float(0.5 * torch.einsum("oi,ij,oj->", error, precision, error))
        costs.append(nats + 0.3 * 8 * len(small.to_bytes()))
    assert costs[0] < 0.85 * costs[1]
