"""A network compressed in place computes what the file's does."""

import pytest
import torch
from helpers import fitted, two_of_six
from torch import nn

import pyro_bc
from pyro_bc.posterior.in_place import coarser, compressed_in_place, network_with
from pyro_bc.posterior.summary import summarize


def convolutional():
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 12, 2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 10), nn.ReLU(),
        nn.Linear(10, 2),
    )  # fmt: skip


@pytest.mark.parametrize(
    "prior",
    [
        pyro_bc.GroupNormalJeffreys(), pyro_bc.GroupHorseshoe(), pyro_bc.LogUniform(), pyro_bc.StandardNormal(),
        pyro_bc.LearnedCode(), pyro_bc.GroupHorseshoe(weights=pyro_bc.LogUniform()),
    ],
    ids=lambda prior: type(prior).__name__,
)  # fmt: skip
def test_it_computes_what_the_file_does(prior):
    x, y = two_of_six()
    model, guide, _ = fitted(convolutional(), x, y, prior, epochs=15, learning_rate=1e-2, log_learning_rate=5e-2)
    layers = summarize(guide)
    changed = {name: compressed_in_place(layer) for name, layer in layers.items()}
    net = network_with(model, layers, changed)
    small = pyro_bc.compress(model, guide)
    with torch.no_grad():
        expected, means = small.network()(x), network_with(model, layers, {})(x)
    spread = expected.std()
    # Biases that take in what is constant are rounded once more, and steps are those of fewer weights.
    assert (net(x) - expected).abs().max() < 0.1 * spread
    assert (net(x) - means).abs().max() > 1e-4 * spread


def test_a_module_of_two_names_is_one_layer():
    net = nn.Sequential(nn.Linear(6, 6))
    net.same = net[0]
    model = pyro_bc.BayesianNetwork(net, pyro_bc.GroupNormalJeffreys(), num_data=4)
    guide = pyro_bc.FactorizedGuide(model)
    guide(*two_of_six())
    found = network_with(model, summarize(guide), {})
    assert torch.allclose(found[0].weight, net[0].weight, rtol=0.1, atol=0.02)  # where the guide starts
    assert found.same is found[0]


def test_coarser_codes_are_those_of_twice_the_step():
    x, y = two_of_six()
    _, guide, _ = fitted(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), x, y, epochs=2)
    left = compressed_in_place(summarize(guide)["net.0"])
    twice = coarser(left, 1)
    assert twice.codes["weight"].fraction_bits == left.codes["weight"].fraction_bits - 1
    step = 2.0 ** -twice.codes["weight"].fraction_bits
    assert torch.equal((twice.weight / step).round() * step, twice.weight)
    assert (twice.weight - left.weight).abs().max() <= step / 2
    assert twice.bias is not None and torch.equal(twice.bias, left.bias)
    assert twice.code_bytes() < left.code_bytes()
    # Entropy by hand.
    codes = left.codes["weight"].codes[left.mask.any(1)][:, left.mask.any(0)].flatten()
    share = torch.stack([(codes == value).float().mean() for value in codes.unique()])
    assert left.code_bytes() == pytest.approx(float(-(share * share.log2()).sum()) * len(codes) / 8, rel=1e-5)
