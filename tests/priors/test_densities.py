"""KLs against quadrature and Monte Carlo; the half-Cauchy split against its closed-form distribution."""

import itertools
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from torch.distributions import kl_divergence

from pyro_bc.errors import ImproperPriorError, UsageError
from pyro_bc.priors.horseshoe import half_cauchy_factors
from pyro_bc.priors.normal_jeffreys import CONSTANT, NormalJeffreys, log_dropout_rate


def kl_normal_jeffreys_by_quadrature(loc: float, scale: float) -> float:
    """KL(N || 1/|z|) with the constant that makes it vanish at infinite dropout rate."""
    normal = stats.norm(loc, scale)
    edges = np.unique([loc - 12 * scale, loc, loc + 12 * scale, 0.0])
    mean_log = sum(
        integrate.quad(lambda z: normal.pdf(z) * np.log(abs(z)), a, b, limit=400)[0]
        for a, b in itertools.pairwise(edges)
    )
    at_infinity = -0.5 * math.log(2 * math.pi * math.e) + 0.5 * (-np.euler_gamma - math.log(2))  # E log|N(0,1)|
    return -normal.entropy() + mean_log - at_infinity


@pytest.mark.parametrize("log_alpha", np.linspace(-8, 8, 17))
@pytest.mark.parametrize("loc", [1.0, -0.01])
def test_normal_jeffreys_kl_matches_quadrature(log_alpha, loc):
    scale = abs(loc) * math.exp(log_alpha / 2)
    q = dist.Normal(torch.tensor(loc, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64))
    ours = kl_divergence(q, NormalJeffreys()).item()
    # The published approximation is itself within 0.011 nats of the exact divergence.
    assert ours == pytest.approx(kl_normal_jeffreys_by_quadrature(loc, scale), abs=0.011)


@pytest.mark.parametrize("loc,scale", [(1.0, 0.1), (0.3, 1.0), (0.0, 2.0)])
def test_normal_jeffreys_scores_draws_as_its_kl_says(loc, scale):
    q = dist.Normal(torch.tensor(loc, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64))
    z = q.sample((200_000,))
    drawn = q.log_prob(z) - NormalJeffreys().log_prob(z)
    assert kl_divergence(q, NormalJeffreys()).item() == pytest.approx(drawn.mean().item(), abs=0.02)


def test_normal_jeffreys_kl_gradient_by_finite_differences():
    loc = torch.tensor([0.7, -1.3, 1e-3], dtype=torch.float64, requires_grad=True)
    log_scale = torch.tensor([-2.0, 0.5, -4.0], dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(
        lambda m, s: kl_divergence(dist.Normal(m, s.exp()), NormalJeffreys((3,))), (loc, log_scale)
    )


def test_normal_jeffreys_kl_is_finite_and_flat_at_a_zero_mean():
    loc = torch.zeros(3, requires_grad=True)
    kl = kl_divergence(dist.Normal(loc, torch.full((3,), 1e-4)), NormalJeffreys((3,)))
    (gradient,) = torch.autograd.grad(kl.sum(), loc)
    assert torch.isfinite(kl).all() and torch.equal(gradient, torch.zeros(3))


def test_normal_jeffreys_scores_but_cannot_be_sampled():
    prior = NormalJeffreys().expand([2, 3]).to_event(1)
    assert prior.batch_shape == (2,) and prior.event_shape == (3,)
    value = torch.tensor([1.0, -math.e, 1.0])
    assert torch.allclose(prior.log_prob(value), torch.tensor([-1.0, -1.0]) - 3 * CONSTANT)
    with pytest.raises(ImproperPriorError, match="improper"):
        prior.sample()


@given(loc=st.floats(-12, 4), log_variance=st.floats(-9, 1), log_scale=st.floats(-23, 2))
def test_log_normal_kl_to_gamma_is_the_papers_formula(loc, log_variance, log_scale):
    loc_, variance = torch.tensor(loc, dtype=torch.float64), torch.tensor(log_variance, dtype=torch.float64).exp()
    theta = math.exp(log_scale)
    q = dist.LogNormal(loc_, variance.sqrt())
    p = dist.Gamma(torch.tensor(0.5, dtype=torch.float64), torch.tensor(1 / theta, dtype=torch.float64))
    formula = (loc_ + variance / 2).exp() / theta - 0.5 * (loc_ + variance.log() + 1 + math.log(2) - math.log(theta))
    assert torch.isclose(kl_divergence(q, p), formula, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("loc,scale", [(-1.0, 0.3), (0.5, 1.2), (-3.0, 0.05)])
@pytest.mark.parametrize("concentration,rate", [(0.5, 1.0), (0.5, 100.0), (2.5, 0.7)])
@pytest.mark.parametrize("family", ["gamma", "inverse-gamma"])
def test_log_normal_kls_match_quadrature(family, concentration, rate, loc, scale):
    a, r = (torch.tensor(v, dtype=torch.float64) for v in (concentration, rate))
    p = dist.Gamma(a, r) if family == "gamma" else dist.InverseGamma(a, r)
    reference = (
        stats.gamma(concentration, scale=1 / rate) if family == "gamma" else stats.invgamma(concentration, scale=rate)
    )
    q = dist.LogNormal(torch.tensor(loc, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64))
    normal = stats.norm(loc, scale)

    def integrand(u):  # over u = log x, with the Jacobian of the density of x
        return normal.pdf(u) * (normal.logpdf(u) - u - reference.logpdf(math.exp(u)))

    exact = integrate.quad(integrand, loc - 12 * scale, loc + 12 * scale, limit=400)[0]
    assert kl_divergence(q, p).item() == pytest.approx(exact, rel=1e-6, abs=1e-6)


def test_kls_keep_the_batch_shape_of_independent_sites():
    gamma, inverse = half_cauchy_factors(0.1, (4,))
    q = dist.LogNormal(torch.zeros(4), torch.ones(4)).to_event(1)
    assert kl_divergence(q, gamma).shape == kl_divergence(q, inverse).shape == ()
    scale = NormalJeffreys((4,)).to_event(1)
    assert kl_divergence(dist.Normal(torch.ones(4), torch.ones(4)).to_event(1), scale).shape == ()


@pytest.mark.parametrize("scale", [1.0, 0.05, 1e-5])
def test_root_of_the_factors_is_half_cauchy_with_the_given_scale(scale):
    a, b = half_cauchy_factors(scale)
    draws = (a.expand([40_000]).sample() * b.expand([40_000]).sample()).sqrt() / scale
    # The scale is the median; dividing by tau_0 instead of its square would move it to sqrt(tau_0).
    assert stats.kstest(draws.numpy(), stats.halfcauchy.cdf).pvalue > 1e-3


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_a_half_cauchy_scale_that_is_none_is_refused(scale):
    with pytest.raises(UsageError, match="positive"):
        half_cauchy_factors(scale)


def test_log_dropout_rate_is_log_variance_over_squared_mean():
    assert log_dropout_rate(torch.tensor(2.0), torch.tensor(0.3)).item() == pytest.approx(0.3 - math.log(4))
