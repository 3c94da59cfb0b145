"""The code's prior is a density whose logarithm is scipy's; the KL to a cell is the code length."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from pyro_bc.priors.cells import Cell, LaplaceCells


def reference(v: float, scales, weights) -> float:
    parts = [
        w * (stats.laplace(scale=b).cdf(v + 0.5) - stats.laplace(scale=b).cdf(v - 0.5))
        for b, w in zip(scales, weights, strict=True)
    ]
    return float(sum(parts))


@settings(deadline=None, max_examples=100)
@given(
    st.floats(-12, 12),
    st.lists(st.floats(-1.5, 3.0), min_size=2, max_size=2),
    st.floats(-3, 3),
)
def test_the_density_is_that_of_a_laplace_mixture_over_a_cell(v, log_scales, logit):
    double = {"dtype": torch.double}  # of the numbers themselves, not of their nearest float32
    prior = LaplaceCells(torch.tensor([log_scales], **double), torch.tensor([[0.0, logit]], **double))
    weights = [1 / (1 + math.exp(logit)), 1 / (1 + math.exp(-logit))]
    expected = max(reference(v, np.exp(log_scales), weights), 1e-9)
    assert prior.log_prob(torch.tensor(v, **double)).item() == pytest.approx(math.log(expected), abs=1e-7)


def test_the_density_integrates_to_one_and_so_do_the_codes():
    prior = LaplaceCells(torch.tensor([[-3.0, 1.0]]).double(), torch.tensor([[1.0, 0.0]]).double())

    def density(v):
        return prior.log_prob(torch.tensor(v).double()).exp().item()

    assert integrate.quad(density, -60, 60, points=[-0.5, 0.5], limit=400)[0] == pytest.approx(1, abs=1e-5)
    assert prior.log_prob(torch.arange(-80.0, 81.0).double()).exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_gradients_are_those_of_finite_differences():
    log_scales = torch.tensor([[-1.0, 1.5], [0.3, 0.8]], dtype=torch.double, requires_grad=True)
    logits = torch.tensor([[0.2, -0.4], [1.0, 0.1]], dtype=torch.double, requires_grad=True)
    v = torch.tensor([0.2, -0.49, 1.7, 6.0], dtype=torch.double, requires_grad=True)
    membership = torch.nn.functional.one_hot(torch.tensor([0, 1, 1, 0])).T.double()
    assert torch.autograd.gradcheck(lambda s, l, v: LaplaceCells(s, l, membership).log_prob(v), (log_scales, logits, v))


def test_classes_have_densities_of_their_own():
    log_scales, logits = torch.randn(3, 2), torch.randn(3, 2)
    classes = [2, 0, 1, 1]
    v = torch.randn(3, 2, 2)
    prior = LaplaceCells(log_scales, logits, torch.nn.functional.one_hot(torch.tensor(classes)).T.float(), (2, 2))
    found = prior.log_prob(v)
    assert found.shape == v.shape and prior.batch_shape == (2, 2)
    for index in np.ndindex(3, 2, 2):
        own = classes[2 * index[1] + index[2]]
        one = LaplaceCells(log_scales[own : own + 1], logits[own : own + 1])
        assert found[index].item() == pytest.approx(one.log_prob(v[index]).item(), rel=1e-5)
    draws = prior.sample((20_000,)).abs().mean(0).flatten()
    for place, own in enumerate(classes):
        alone = LaplaceCells(log_scales[own : own + 1], logits[own : own + 1], shape=(1,)).sample((20_000,))
        assert draws[place].item() == pytest.approx(alone.abs().mean().item(), rel=0.1)


def test_draws_follow_the_density():
    prior = LaplaceCells(torch.tensor([[-4.0, 1.0]]), torch.tensor([[0.5, 0.0]]), shape=(2,))
    draws = prior.sample((100_000,)).round()[:, 0]
    for code in range(-3, 4):
        p = prior.log_prob(torch.tensor(float(code))).exp().item()
        found = (draws == code).float().mean().item()
        # Rounding a draw of the smoothed density spreads it over neighbouring cells: compare with that.
        cell = integrate.quad(lambda v: prior.log_prob(torch.tensor(v)).exp().item(), code - 0.5, code + 0.5)[0]
        assert found == pytest.approx(cell, abs=4 * math.sqrt(cell / 100_000) + 1e-3)
        assert p > 0


def test_a_cell_is_uniform_and_its_draws_carry_gradients():
    centre = torch.tensor([0.0, 2.25], requires_grad=True)
    cell = Cell(centre)
    draws = cell.rsample((50_000,))
    assert (draws - centre).abs().max() <= 0.5
    assert torch.allclose(draws.mean(0), centre, atol=0.01) and torch.allclose(draws.var(0), cell.variance, atol=0.002)
    assert torch.autograd.grad(draws.sum(), centre)[0].tolist() == [50_000.0, 50_000.0]
    assert cell.log_prob(draws).abs().max() == 0


def test_the_divergence_of_a_cell_from_the_prior_is_monte_carlo_of_the_two_densities():
    prior = LaplaceCells(torch.tensor([[-4.0, 1.0]]).double(), torch.tensor([[0.5, 0.0]]).double())
    cell = Cell(torch.tensor(1.3).double())
    draws = cell.rsample((100_000,))
    by_draws = (cell.log_prob(draws) - prior.log_prob(draws)).mean().item()
    # The smoothed prior is a density and the cell's is 1: quadrature of log q/p over the cell.
    exact = integrate.quad(lambda v: -prior.log_prob(torch.tensor(v).double()).item(), 0.8, 1.8, points=[0.5, 1.5])[0]
    assert by_draws == pytest.approx(exact, abs=0.01)
