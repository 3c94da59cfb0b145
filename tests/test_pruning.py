"""The small network computes what the masked large one does, for random chains and masks of every kind."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pyro_bc
from pyro_bc.chain import ACTIVATIONS, build, linear_names, read_chain
from pyro_bc.errors import EmptyNetworkError, UnsupportedNetworkError, UsageError
from pyro_bc.posterior import LayerPosterior
from pyro_bc.pruning import shrink, weight_mask
from pyro_bc.thresholds import Threshold

CUT = Threshold(0.5, "explicit")


def layer_posterior(name: str, linear: nn.Linear, statistic: torch.Tensor | None, prior=None) -> LayerPosterior:
    bias = None if linear.bias is None else linear.bias.detach()
    return LayerPosterior(
        name=name,
        prior=pyro_bc.GroupNormalJeffreys() if prior is None else prior,
        weight_mean=linear.weight.detach(),
        weight_variance=torch.ones_like(linear.weight),
        bias_mean=bias,
        bias_variance=None if bias is None else torch.ones_like(bias),
        statistic=statistic,
    )


def shrunk(net: nn.Module, statistics: dict[str, torch.Tensor | None]):
    chain = read_chain(net)
    posterior = {name: layer_posterior(name, net.get_submodule(name), s) for name, s in statistics.items()}
    layers = shrink(net, chain, posterior, dict.fromkeys(posterior, CUT))
    inputs = layers[0].inputs
    return build(chain, {layer.name: (layer.weight, layer.bias) for layer in layers}, inputs), layers


def masked(net: nn.Module, statistics: dict[str, torch.Tensor | None]) -> nn.Module:
    with torch.no_grad():
        for name, statistic in statistics.items():
            if statistic is not None:
                weight = net.get_submodule(name).weight
                weight *= (statistic < CUT.value).expand_as(weight)  # a vector runs over the inputs
    return net


@settings(deadline=None, max_examples=150)
@given(
    widths=st.lists(st.integers(1, 7), min_size=2, max_size=5),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    kinds=st.lists(st.sampled_from(["group", "weight", "none", "deterministic"]), min_size=4, max_size=4),
    density=st.floats(0.2, 1.0),
    seed=st.integers(0, 2**31),
)
def test_the_small_network_equals_the_masked_large_one(widths, activation, kinds, density, seed):
    torch.manual_seed(seed)
    modules: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(widths)):
        modules += [nn.Linear(a, b)] + ([ACTIVATIONS[activation]()] if i < len(widths) - 2 else [])
    net = nn.Sequential(*modules)
    statistics = {}
    for name, kind in zip(linear_names(read_chain(net)), kinds, strict=False):
        weight = net.get_submodule(name).weight
        if kind != "deterministic":
            shape = {"group": weight.shape[1:], "weight": weight.shape}.get(kind)
            statistics[name] = None if shape is None else (torch.rand(shape) >= density).float()
    x = torch.randn(9, widths[0])
    try:
        small, layers = shrunk(net, statistics)
    except EmptyNetworkError:
        # Right only where some layer has really lost its last weight, perhaps by way of its neighbours.
        assert min(int((s < 0.5).sum()) if s is not None else 1 for s in statistics.values()) == 0 or density < 1
        return
    assert torch.allclose(small(x), masked(net, statistics)(x), atol=1e-5)
    for layer in layers:
        assert layer.mask.any(0).all() and layer.weight.shape == (len(layer.outputs), len(layer.inputs))


def test_inputs_that_are_not_read_take_their_producers_with_them():
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    statistics = {"0": torch.tensor([0.0, 1, 0, 1, 0]), "2": torch.tensor([1.0, 0, 0, 1])}
    _, layers = shrunk(net, statistics)
    assert [tuple(layer.weight.shape) for layer in layers] == [(2, 3), (3, 2)]
    assert layers[0].inputs.tolist() == [0, 2, 4] and layers[0].outputs.tolist() == layers[1].inputs.tolist() == [1, 2]


def test_a_unit_that_reads_nothing_moves_into_the_next_bias():
    net = nn.Sequential(nn.Linear(3, 2), nn.Sigmoid(), nn.Linear(2, 1))
    statistic = torch.tensor([[0.0, 0, 0], [1, 1, 1]])  # the second unit has lost all its weights
    _, layers = shrunk(net, {"0": statistic})
    first, second = net[0], net[2]
    constant = torch.sigmoid(first.bias[1])
    assert torch.allclose(layers[1].bias, second.bias + second.weight[:, 1] * constant)
    assert layers[0].outputs.tolist() == [0]


def test_a_constant_unit_needs_a_bias_to_move_into():
    net = nn.Sequential(nn.Linear(3, 2), nn.Sigmoid(), nn.Linear(2, 1, bias=False))
    with pytest.raises(UnsupportedNetworkError, match="'2' needs a bias"):
        shrunk(net, {"0": torch.tensor([[0.0, 0, 0], [1, 1, 1]])})


def test_a_dead_layer_is_named():
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    with pytest.raises(EmptyNetworkError, match="layer '2'"):
        shrunk(net, {"2": torch.ones(2)})


def test_group_masks_run_over_inputs_of_matrices_and_filters_of_kernels():
    linear = layer_posterior("fc", nn.Linear(3, 2), torch.tensor([0.0, 1.0, 0.0]))
    assert weight_mask(linear, CUT).tolist() == [[True, False, True]] * 2
    kernel = torch.zeros(2, 3, 5, 5)
    dead_first = torch.tensor([1.0, 0.0])
    convolution = LayerPosterior("c", pyro_bc.GroupHorseshoe(), kernel, kernel + 1, None, None, dead_first)
    assert weight_mask(convolution, CUT).flatten(1).all(1).tolist() == [False, True]


def test_posteriors_that_do_not_fit_the_network_are_refused():
    net = nn.Sequential(nn.Linear(3, 2))
    other = {"0": layer_posterior("0", nn.Linear(4, 2), torch.zeros(4))}
    with pytest.raises(UsageError, match=r"\(2, 3\).*\(2, 4\)"):
        shrink(net, read_chain(net), other, {"0": CUT})
    poisoned = layer_posterior("0", net[0], torch.zeros(3))
    poisoned.weight_mean[0, 0] = math.nan
    with pytest.raises(UsageError, match="not finite"):
        shrink(net, read_chain(net), {"0": poisoned}, {"0": CUT})
