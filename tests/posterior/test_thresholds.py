"""Cuts lie between clusters, are refused where they would throw knowledge away, and fall back to signal-to-noise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

import pyro_bc
from pyro_bc.errors import UsageError
from pyro_bc.posterior.summary import LayerPosterior
from pyro_bc.posterior.thresholds import Threshold, choose_threshold, minimum_error_threshold


def layer(statistic, strength, prior=None) -> LayerPosterior:
    """One output; group i has the given statistic, and weights of signal-to-noise ``strength[i]``."""
    mean = torch.as_tensor(strength, dtype=torch.float32).sqrt().reshape(1, -1)
    statistic = torch.as_tensor(statistic, dtype=torch.float32)
    return LayerPosterior(
        "fc", prior or pyro_bc.GroupNormalJeffreys(), mean, torch.ones_like(mean), None, None, statistic
    )


@settings(deadline=None, max_examples=60)
@given(
    live=st.integers(10, 400),
    dead=st.integers(10, 400),
    gap=st.floats(8, 40),
    width=st.floats(0.2, 1.0),
    shift=st.floats(-50, 50),
    seed=st.integers(0, 2**31),
)
def test_two_clusters_are_cut_between(live, dead, gap, width, shift, seed):
    rng = np.random.default_rng(seed)
    low, high = rng.normal(shift, width, live), rng.normal(shift + gap, 1.0, dead)
    cut = minimum_error_threshold(np.concatenate([low, high]))
    misplaced = (low >= cut).sum() + (high < cut).sum()
    assert misplaced <= max(1, 0.01 * (live + dead))  # a rare outlier may lie nearer to the other cluster


def test_the_cut_is_near_the_best_classifier_of_overlapping_normals():
    rng = np.random.default_rng(0)
    low, high = rng.normal(-4, 1.2, 4000), rng.normal(2, 0.8, 6000)
    cut = minimum_error_threshold(np.concatenate([low, high]))
    errors = [(low >= c).sum() + (high < c).sum() for c in np.linspace(-4, 2, 601)]
    assert (low >= cut).sum() + (high < cut).sum() <= min(errors) + 20


@pytest.mark.parametrize("values", [np.random.default_rng(1).normal(0, 1, 500), np.ones(9), np.array([1.0, 2.0])])
def test_one_cluster_has_no_cut(values):
    assert minimum_error_threshold(values) is None


def test_clusters_of_a_layer_are_a_mixture():
    rng = np.random.default_rng(2)
    statistic = np.concatenate([rng.normal(-5, 1, 30), rng.normal(6, 1, 70)])
    chosen = choose_threshold(layer(statistic, [50.0] * 30 + [0.01] * 70))
    assert chosen.method == "mixture" and chosen.keeps(layer(statistic, [50.0] * 30 + [0.01] * 70)).sum() == 30


def test_a_mixture_that_would_throw_knowledge_away_is_refused():
    rng = np.random.default_rng(3)
    # One outlier far below forms a cluster of its own; the others know as much as it does.
    statistic = np.concatenate([[-40.0, -40.5], rng.normal(-4, 0.5, 40), rng.normal(4, 0.5, 10)])
    example = layer(statistic, [50.0] * 42 + [0.01] * 10)
    chosen = choose_threshold(example)
    assert chosen.keeps(example).tolist() == [True] * 42 + [False] * 10


def bar(price: float | None) -> float:
    """Signal over noise, squared, of a weight alone that is just kept; with a price, one just worth its bits."""
    if price is None:
        return 1.0
    return brentq(lambda x: 0.5 * x - price * (0.5 * np.log2(1 + x) + 1.5), 1e-6, 10)


@pytest.mark.parametrize("price", [None, 0.03, 0.3])
def test_without_clusters_signal_or_price_decides(price):
    statistic = np.linspace(-3, 3, 50)
    example = layer(statistic, bar(price) * np.exp(-statistic))  # at the bar at 0
    chosen = choose_threshold(example, nats_per_bit=price)
    assert chosen.method == "signal-to-noise" and abs(chosen.value) < 0.1 and chosen.nats_per_bit == price


@pytest.mark.parametrize("price", [None, 0.03])
def test_a_group_without_signal_or_worth_goes_whatever_its_scale_says(price):
    rng = np.random.default_rng(4)
    statistic = np.concatenate([rng.normal(-5, 1, 30), rng.normal(6, 1, 70)])
    example = layer(statistic, [50.0] * 29 + [0.5 * bar(price)] + [0.01] * 70)
    assert choose_threshold(example, nats_per_bit=price).keeps(example).sum() == 29
    assert choose_threshold(example, explicit=0.0).keeps(example).sum() == 30


def test_single_weights_are_kept_down_to_the_published_dropout_rate():
    log_alpha = torch.tensor([[-2.0, 1.0, 2.9, 3.1, 9.0]])
    example = LayerPosterior(
        "fc", pyro_bc.LogUniform(), (-log_alpha / 2).exp(), torch.ones(1, 5), None, None, log_alpha
    )
    kept = Threshold(math.inf, "signal-to-noise").keeps(example)
    assert kept.tolist() == [[True, True, True, False, False]]


def test_explicit_thresholds_are_taken_or_refused():
    assert choose_threshold(layer([0.0, 1.0], [1.0, 1.0]), 0.5) == Threshold(0.5, "explicit")
    with pytest.raises(UsageError, match="not a number"):
        choose_threshold(layer([0.0], [1.0]), math.nan)
    plain = LayerPosterior("fc", pyro_bc.StandardNormal(), torch.ones(2, 3), torch.ones(2, 3), None, None, None)
    assert choose_threshold(plain).method == "none" and choose_threshold(plain).keeps(plain).tolist() == [True] * 3
    with pytest.raises(UsageError, match="StandardNormal"):
        choose_threshold(plain, 0.0)
