"""Bits from variance: both rules against their formulas, round-off below half a step, and codes within their bits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_bc.errors import UsageError
from pyro_bc.quantisation.fixed_point import FixedPoint
from pyro_bc.quantisation.rounding import fraction_bits, to_fixed_point


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 2**31),
    scale=st.floats(1e-6, 1e6),
    noise=st.floats(1e-4, 10),
    rule=st.sampled_from(["posterior", "paper"]),
)
def test_round_off_is_half_a_step_and_codes_fit_their_bits(seed, scale, noise, rule):
    generator = torch.Generator().manual_seed(seed)
    values = scale * torch.randn(40, generator=generator)
    numbers = to_fixed_point(values, torch.full((40,), (scale * noise) ** 2), rule=rule)
    step = 2.0**-numbers.fraction_bits
    assert ((numbers.values() - values).abs() <= step / 2 * (1 + 1e-6)).all()
    low, high = -(2 ** (numbers.bits - 1)), 2 ** (numbers.bits - 1) - 1
    assert low <= numbers.codes.min() and numbers.codes.max() <= high
    if numbers.bits > 1:  # and one bit fewer would not hold them
        assert numbers.codes.min() < low / 2 or numbers.codes.max() > (high - 1) / 2


def test_the_posterior_rule_is_the_coarsest_grid_whose_noise_the_posterior_covers():
    variance = torch.tensor([0.01, 0.04, 0.25])
    harmonic = 3 / (100 + 25 + 4)
    for ratio in (1.0, 0.1):
        step = 2.0 ** -math.ceil(fraction_bits(variance, "posterior", ratio))
        assert step**2 / 12 <= ratio * harmonic < (2 * step) ** 2 / 12


def test_rounding_adds_the_promised_noise():
    generator = torch.Generator().manual_seed(0)
    values, variance = 10 * torch.rand(100_000, generator=generator), torch.full((100_000,), 0.3)
    numbers = to_fixed_point(values, variance, noise_ratio=0.1)
    noise = (numbers.values() - values).square().mean().item()
    assert noise == pytest.approx(4.0**-numbers.fraction_bits / 12, rel=0.02) and noise <= 0.03


def test_the_papers_rule_averages_bits_of_round_off_against_twice_the_variance():
    variance = torch.tensor([2.0**-9, 2.0**-3])  # ½·2^(1-t) = 2V: t = 8 and 2
    assert fraction_bits(variance, "paper") == pytest.approx(5.0)


def test_small_numbers_have_bits_too():
    # Public code takes log2 of an integer part that is 0 where all weights are below ½, and gets NaN.
    numbers = to_fixed_point(torch.tensor([0.3, -0.2, 0.01]), torch.full((3,), 1e-6))
    assert numbers.bits >= 2 and torch.allclose(numbers.values(), torch.tensor([0.3, -0.2, 0.01]), atol=2e-3)


def test_pruned_values_stay_zero_and_have_no_say():
    values, mask = torch.tensor([1.0, 0.0, -0.5]), torch.tensor([True, False, True])
    a = to_fixed_point(values, torch.tensor([0.01, 1e-12, 0.01]), mask)
    b = to_fixed_point(values, torch.tensor([0.01, 1e6, 0.01]), mask)
    assert a.fraction_bits == b.fraction_bits and a.codes[1] == 0


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_without_variance_numbers_keep_float32s_own_precision(scale):
    values = scale * torch.randn(1000, generator=torch.Generator().manual_seed(1))
    numbers = to_fixed_point(values, torch.zeros(1000))
    assert numbers.bits <= 24
    assert (numbers.values() - values).abs().max() <= values.abs().max() * 2**-22


def test_a_layer_of_zeros_takes_one_bit():
    numbers = to_fixed_point(torch.zeros(4), torch.ones(4))
    assert numbers.bits == 1 and torch.equal(numbers.values(), torch.zeros(4))


@pytest.mark.parametrize(
    "low,high,bits", [(0, 0, 1), (-1, 0, 1), (0, 1, 2), (-2, 1, 2), (-3, 1, 3), (0, 127, 8), (-128, 0, 8)]
)
def test_bits_are_those_of_twos_complement(low, high, bits):
    assert FixedPoint(torch.tensor([low, high]), 0).bits == bits


def test_unknown_rules_and_ratios_are_refused():
    with pytest.raises(UsageError, match="posterior, paper"):
        fraction_bits(torch.ones(1), "floats")
    with pytest.raises(UsageError, match="positive"):
        fraction_bits(torch.ones(1), "posterior", 0.0)
