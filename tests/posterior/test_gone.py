"""What has gone while a posterior is still being fitted: what compression prunes whatever the threshold, no more."""

import pytest
import torch

import pyro_bc
from pyro_bc.posterior.gone import gone
from pyro_bc.posterior.summary import LayerPosterior
from pyro_bc.posterior.thresholds import Threshold


def layer(mean, variance, statistic, prior=None, weight_statistic=None):
    mean, variance = torch.tensor(mean), torch.tensor(variance)
    return LayerPosterior(
        "fc", prior or pyro_bc.GroupNormalJeffreys(), mean, variance.expand(mean.shape), None, None, statistic,
        weight_statistic,
    )  # fmt: skip


def test_a_group_has_gone_without_a_weight_above_its_noise_and_less_than_a_nat():
    # Inputs of a fully connected layer: noise, one strong weight, many weak ones that add up.
    mean = [[0.1, 2.0, 0.9]] * 4
    own = layer(mean, 1.0, torch.tensor([5.0, -5.0, 5.0]))
    assert 0.5 * 4 * 0.9**2 > 1 > 0.5 * 4 * 0.1**2
    assert {axis: marks.tolist() for axis, marks in gone(own).items()} == {1: [True, False, False]}
    # What has gone is pruned by any automatic threshold.
    for value in (-10.0, 0.0, 10.0):
        assert not bool((Threshold(value, "mixture").keeps(own) & gone(own)[1]).any())


def test_filters_of_a_convolution_go_and_inputs_where_single_weights_are_pruned():
    mean, variance = torch.full((2, 3, 2, 2), 0.1), torch.ones(2, 3, 2, 2)
    mean[1] = 3.0
    filters = LayerPosterior("c", pyro_bc.GroupHorseshoe(), mean, variance, None, None, torch.tensor([5.0, -5.0]))
    assert {axis: marks.tolist() for axis, marks in gone(filters).items()} == {0: [True, False], 1: [False] * 3}
    single = mean.clone()
    single[:, 1:] = 0.1
    rates = variance.log() - single.square().log()
    inputs = LayerPosterior("c", pyro_bc.LogUniform(), single, variance, None, None, rates)
    assert {axis: marks.tolist() for axis, marks in gone(inputs).items()} == {1: [False, True, True]}


def test_inputs_go_that_no_filter_listens_to_whatever_a_gone_filter_has_of_them():
    mean = torch.full((40, 3, 1, 1), 0.05)
    mean[:20, 0], mean[20:, :2] = 2.0, 0.2  # the second half of the filters has no signal
    own = LayerPosterior("c", pyro_bc.GroupHorseshoe(), mean, torch.ones_like(mean), None, None, torch.zeros(40))
    found = gone(own)
    assert found[0].tolist() == [False] * 20 + [True] * 20
    assert found[1].tolist() == [False, True, True]
    alone = own.weight_mean.square().sum((0, 2, 3))  # of which twice a nat would have been more than that
    assert alone[1] > 0.8


def test_single_weights_need_less_signal_than_groups_to_stay():
    mean = [[0.4, 0.1]] * 2
    assert gone(layer(mean, 1.0, torch.tensor([5.0, 5.0])))[1].tolist() == [True, True]
    rates = -torch.tensor(mean).square().log()
    both = layer(mean, 1.0, torch.tensor([5.0, 5.0]), weight_statistic=rates)
    assert gone(both)[1].tolist() == [False, True]  # log alpha of 1.8 and 4.6, of which weights below 3 are kept


@pytest.mark.parametrize("statistic", [None, torch.tensor([5.0])])
def test_nothing_goes_where_the_prior_prunes_nothing_or_neighbours_are_one_group(statistic):
    assert gone(layer([[0.0, 0.0]] * 2, 1.0, statistic)) == {}
