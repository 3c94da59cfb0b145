"""What has gone while a posterior is still being fitted: what compression prunes whatever the threshold, no more."""

import pytest
import torch

import pyro_bc
from pyro_bc.posterior.gone import gone, gone_axis
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
    assert gone(own).tolist() == [True, False, False] and gone_axis(own) == 1
    # What has gone is pruned by any automatic threshold.
    for value in (-10.0, 0.0, 10.0):
        assert not bool((Threshold(value, "mixture").keeps(own) & gone(own)).any())


def test_filters_of_a_convolution_go_and_inputs_where_single_weights_are_pruned():
    mean, variance = torch.full((2, 3, 2, 2), 0.1), torch.ones(2, 3, 2, 2)
    mean[1] = 3.0
    filters = LayerPosterior("c", pyro_bc.GroupHorseshoe(), mean, variance, None, None, torch.tensor([5.0, -5.0]))
    assert gone(filters).tolist() == [True, False]
    single = mean.clone()
    single[:, 1:] = 0.1
    rates = variance.log() - single.square().log()
    inputs = LayerPosterior("c", pyro_bc.LogUniform(), single, variance, None, None, rates)
    assert gone(inputs).tolist() == [False, True, True] and gone_axis(inputs) == 1


def test_single_weights_need_less_signal_than_groups_to_stay():
    mean = [[0.4, 0.1]] * 2
    assert gone(layer(mean, 1.0, torch.tensor([5.0, 5.0]))).tolist() == [True, True]
    rates = -torch.tensor(mean).square().log()
    both = layer(mean, 1.0, torch.tensor([5.0, 5.0]), weight_statistic=rates)
    assert gone(both).tolist() == [False, True]  # log alpha of 1.8 and 4.6, of which weights below 3 are kept


@pytest.mark.parametrize("statistic", [None, torch.tensor([5.0])])
def test_nothing_goes_where_the_prior_prunes_nothing_or_neighbours_are_one_group(statistic):
    assert gone(layer([[0.0, 0.0]] * 2, 1.0, statistic)).tolist() == [False, False]
