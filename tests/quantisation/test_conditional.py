"""Conditional rounding: its price is the quadratic form, its steps are the best, its lengths are the coder's."""

import itertools
import math

import numpy as np
import pytest
import torch

from pyro_bc.errors import UsageError
from pyro_bc.file.coder import Encoder
from pyro_bc.quantisation import conditional
from pyro_bc.quantisation.conditional import CodeLengths, factorised, round_rows, steps_of


def contextual_bits(codes):
    coder = Encoder()
    coder.contextual(codes)
    return 8 * len(coder.data())


def moments(n, groups=1, seed=0):
    a = torch.randn(groups, 3 * n, n, generator=torch.Generator().manual_seed(seed))
    return a.transpose(1, 2) @ a / (3 * n)


def floored(inputs):
    return inputs + 0.01 * inputs.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] * torch.eye(inputs.shape[-1])


@pytest.mark.parametrize(("n", "groups"), [(3, 1), (5, 2), (150, 1)])
def test_what_rounding_costs_is_the_quadratic_form(n, groups, monkeypatch):
    """The prices of entries, each given those before, add up to that of the whole row, in whatever order."""
    torch.manual_seed(0)
    inputs, rows = moments(n, groups), torch.randn(4 * groups, n)
    cost = 0.5 + torch.rand(4 * groups)
    factor = factorised(inputs)
    steps = torch.exp2(steps_of(cost, factor, 0.05) / 4)
    codes = (rows / steps[:, None]).round().long()
    codes, _, nats = round_rows(rows, cost, factor, steps, 0.05, CodeLengths(codes))
    apart = (rows - codes * steps[:, None]).double()
    a = floored(inputs).double().repeat_interleave(4, 0)
    exact = 0.5 * cost * torch.einsum("on,onm,om->o", apart, a, apart)
    assert torch.allclose(nats.double(), exact, rtol=1e-3)


def test_it_finds_nearly_the_best_codes_of_all():
    """Against all codes of a row of three: as good as it gets, or close; and better than to the nearest."""
    torch.manual_seed(1)
    inputs, rows = moments(3), 0.7 * torch.randn(40, 3)
    inputs = inputs + 0.8 * (torch.ones(3, 3) - torch.eye(3))[None] * 0.9
    inputs = inputs @ inputs.transpose(1, 2)
    cost = torch.ones(40)
    factor = factorised(inputs)
    steps = torch.full((40,), 0.5)
    lengths = CodeLengths((rows / 0.5).round().long())
    _, _, nats = round_rows(rows, cost, factor, steps, 1e-6, lengths)
    a = floored(inputs)[0]
    grid = torch.tensor(list(itertools.product(range(-6, 7), repeat=3))).float() * 0.5

    def price(values):
        return 0.5 * torch.einsum("...n,nm,...m->...", values, a, values)

    best = price(rows[:, None] - grid[None]).amin(1)
    nearest = price(rows - (rows / 0.5).round() * 0.5)
    assert float(nats.mean()) < 0.75 * float(nearest.mean())
    assert float(nats.mean()) < 2 * float(best.mean())


def test_steps_are_the_best_ones_at_high_rate():
    """Nats and bits together are least at the step that theory says, of one number of many."""
    cost, price = torch.tensor([200.0]), 0.02
    factor = factorised(torch.eye(4)[None])
    factor.upper[:] = torch.eye(4)
    best = float(torch.exp2(steps_of(cost, factor, price) / 4))
    x = torch.randn(400_000, generator=torch.Generator().manual_seed(0)).double()

    def total(step):
        codes = (x / step).round()
        counts = torch.unique(codes, return_counts=True)[1].double()
        bits = -(counts / len(x) * (counts / len(x)).log2()).sum()
        return float(0.5 * 200.0 * (x - codes * step).square().mean() + price * bits)

    assert total(best) < min(total(2 * best), total(best / 2))
    assert best**2 == pytest.approx(6 * price / (math.log(2) * 0.5 * 200.0), rel=0.2)


def test_lengths_are_about_those_of_the_coder():
    rng = np.random.default_rng(0)
    codes = np.rint(rng.laplace(0, 0.6, (80, 120)) * np.exp(rng.normal(0, 1, (1, 120)))).astype(np.int64)
    tensor = torch.from_numpy(codes)
    assert CodeLengths(tensor).total(tensor) == pytest.approx(contextual_bits(codes), rel=0.06)


def test_a_higher_price_makes_fewer_bits_and_more_nats():
    torch.manual_seed(0)
    inputs, rows, cost = moments(40), torch.randn(30, 40), torch.ones(30)
    factor = factorised(inputs)
    found = []
    for price in (1e-4, 1e-2, 1.0, 100.0):
        steps = torch.exp2(steps_of(cost, factor, price) / conditional.STEPS_PER_OCTAVE)
        codes = (rows / steps[:, None]).round().long()
        for _ in range(3):
            codes, _, nats = round_rows(rows, cost, factor, steps, price, CodeLengths(codes))
        found.append((contextual_bits(codes.numpy()), float(nats.sum())))
    assert found == sorted(found, key=lambda pair: (-pair[0], pair[1])) and found[-1][0] < 60


def test_prices_that_are_none_are_refused():
    import pyro_bc

    x = torch.randn(20, 3)
    model = pyro_bc.BayesianNetwork(torch.nn.Sequential(torch.nn.Linear(3, 2)), pyro_bc.StandardNormal(), num_data=20)
    guide = pyro_bc.CurvatureGuide(model, [x], progress=False)
    for options in ({"nats_per_bit": 0.0}, {"nats_per_bit": math.nan}, {"divergence": 0.0}):
        with pytest.raises(UsageError, match="positive"):
            pyro_bc.compress(model, guide, **options)
