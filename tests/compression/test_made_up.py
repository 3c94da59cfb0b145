"""What pruning takes from a layer, but for what the inputs that it keeps cannot say, is in the weights that stay."""

from dataclasses import replace

import pytest
import torch
from helpers import set_up
from torch import nn

import pyro_bc
from pyro_bc.compression.made_up import inputs_at_mean
from pyro_bc.compression.reading import read_posterior

EXACT = {"noise_ratio": 1e-10, "progress": False}


def both(net: nn.Module, x: torch.Tensor, keep: dict[str, list[bool]]):
    """A network whose groups are kept as said, without and with its inputs known; and the network of the mean."""
    model, guide = set_up(net, x, pyro_bc.GroupNormalJeffreys(), num_data=len(x))
    read = read_posterior(model, guide)
    statistics = {name: torch.tensor([0.0 if own else 9.0 for own in kept]) for name, kept in keep.items()}
    cut = {name: replace(read.posterior[name], statistic=own) for name, own in statistics.items()}
    plain = replace(read, posterior={**read.posterior, **cut})
    made = replace(plain, inputs=inputs_at_mean(read.graph, read.posterior, model.likelihood, [x], 0))
    thresholds = dict.fromkeys(keep, 1.0) | dict.fromkeys(read.posterior.keys() - keep.keys(), 1000000000.0)
    small = [pyro_bc.compress(model, own, thresholds=thresholds, **EXACT).network() for own in (plain, made)]
    return *small, net.eval()


@pytest.mark.parametrize("bias", [True, False])
def test_the_weights_that_stay_are_least_squares_of_what_the_layer_computed(bias):
    torch.manual_seed(0)
    x = torch.randn(400, 5) @ torch.randn(5, 5) + 0.5
    net = nn.Sequential(nn.Linear(5, 4, bias=bias), nn.ReLU(), nn.Linear(4, 3))
    kept = [True, False, True, True, False]
    plain, made, whole = both(net, x, {"0": kept})
    with torch.no_grad():
        y = whole[0](x)
        columns = torch.cat([x[:, kept], torch.ones(len(x), int(bias))], 1)
        found = torch.linalg.lstsq(columns.double(), y.double()).solution.T.float()
        weight = made.state_dict()["0.weight"]
        assert torch.allclose(weight, found[:, :3], atol=0.02) and not torch.allclose(weight, whole[0].weight[:, kept])
        if bias:
            assert torch.allclose(made.state_dict()["0.bias"], found[:, 3], atol=0.02)
        lost, left = (float((own(x) - whole(x)).square().mean()) for own in (plain, made))
    assert left < lost


def test_of_filters_that_others_say_nothing_is_lost():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2))
    with torch.no_grad():
        net[0].weight[3] = net[0].weight[0] - 2 * net[0].weight[1]
        net[0].bias.copy_(torch.tensor([0.5, -0.3, 0.2, 1.1]))
    x = torch.randn(300, 2, 6, 6)
    plain, made, whole = both(net, x, {"0": [True, True, True, False]})
    with torch.no_grad():
        lost, left = (float((own(x) - whole(x)).square().mean()) for own in (plain, made))
    assert made.state_dict()["1.weight"].shape == (3, 3, 2, 2)
    assert left < 1e-3 * lost


def test_single_weights_codes_and_layers_whose_inputs_are_not_known_stay_as_they_are():
    torch.manual_seed(0)
    x = torch.randn(40, 1, 8, 8)
    for prior in (pyro_bc.LogUniform(), pyro_bc.LearnedCode()):
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 3))
        model, guide = set_up(net, x, prior, num_data=len(x))
        read = read_posterior(model, guide)
        known = replace(read, inputs=inputs_at_mean(read.graph, read.posterior, model.likelihood, [x], 0))
        assert pyro_bc.compress(model, known).to_bytes() == pyro_bc.compress(model, read).to_bytes()
