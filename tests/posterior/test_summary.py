"""Summaries carry the layers' moments; signal-to-noise and information are their formulas over each group."""

import math

import pytest
import torch
from torch import nn

import pyro_bc
from pyro_bc.posterior.summary import LayerPosterior, summarize


def posterior(mean, variance, statistic, prior=None):
    return LayerPosterior("fc", prior or pyro_bc.GroupHorseshoe(), mean, variance, None, None, statistic)


def test_summaries_are_the_priors_moments_layer_by_layer():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2, bias=False))
    model = pyro_bc.BayesianNetwork(net, pyro_bc.GroupNormalJeffreys(), num_data=5)
    guide = pyro_bc.FactorizedGuide(model, init_log_variance=-1.0)
    with pytest.raises(RuntimeError, match="set up"):
        summarize(guide)
    guide(torch.randn(5, 4), torch.zeros(5, dtype=torch.long))
    layers = summarize(guide)
    assert list(layers) == ["net.0", "net.2"]
    z, w = guide.posterior()["net.0.scale"], guide.posterior()["net.0.weight"]
    s = math.exp(-1)
    assert torch.allclose(layers["net.0"].weight_mean, z.loc * w.loc)
    assert torch.allclose(layers["net.0"].weight_variance, s * (s + w.loc**2) + s * z.loc**2, atol=1e-6)
    assert torch.allclose(layers["net.0"].bias_mean, net[0].bias) and torch.allclose(
        layers["net.0"].bias_variance, torch.full((3,), s)
    )
    assert layers["net.2"].bias_mean is None and not layers["net.2"].weight_mean.requires_grad


def test_the_price_of_a_removal_is_how_much_less_probable_a_group_of_zeros_is():
    mean, variance = torch.randn(3, 4), torch.rand(3, 4) + 0.1
    layer = posterior(mean, variance, torch.zeros(4))
    for group, price in enumerate(layer.removal_price()):
        density = torch.distributions.Normal(mean[:, group], variance[:, group].sqrt())
        nats = (density.log_prob(mean[:, group]) - density.log_prob(torch.zeros(3))).sum()
        assert float(price) == pytest.approx(float(nats), rel=1e-5)
    none = posterior(torch.zeros(3, 4), variance, torch.zeros(4))
    assert none.code_length().tolist() == [4.5] * 4  # a sign and a place for each of three weights
    finer = posterior(mean, variance / 16, torch.zeros(4)).code_length() - layer.code_length()
    assert bool((finer > 0).all()) and bool((finer < 3 * 2).all())  # two bits a weight where signal is all there is


def test_signal_is_the_best_weight_of_a_group_and_information_their_sum():
    mean, variance = torch.tensor([[1.0, 0.0], [3.0, 0.5]]), torch.tensor([[1.0, 2.0], [1.0, 0.25]])
    groups = posterior(mean, variance, torch.zeros(2))
    assert groups.signal_to_noise().tolist() == [9.0, 1.0]  # groups are the columns, inputs
    assert groups.information().tolist() == pytest.approx([0.5 * math.log(2 * 10), 0.5 * math.log(1 * 2)])
    single = posterior(mean, variance, torch.zeros(2, 2), pyro_bc.LogUniform())
    assert single.per_weight and single.signal_to_noise().tolist() == [[1.0, 0.0], [9.0, 1.0]]
    kernel = posterior(mean.reshape(2, 2, 1, 1), variance.reshape(2, 2, 1, 1), torch.zeros(2))
    assert kernel.signal_to_noise().tolist() == [1.0, 9.0]  # filters of a convolution, rows
