"""A few epochs with codes in the loop: what is stored is what was trained, and it is better than codes without any."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import fitted, two_layers, two_of_six
from torch import nn

import pyro_bc
from pyro_bc.compression import rate
from pyro_bc.compression.rounded_training import _Layer
from pyro_bc.errors import NonFiniteLossError, UsageError
from pyro_bc.graph.layer_types import layer_type
from pyro_bc.quantisation.conditional import CodeLengths
from pyro_bc.quantisation.fixed_point import STEPS_PER_OCTAVE


@pytest.fixture(scope="module")
def trained():
    """A network that knows its data, with its curvature."""
    torch.manual_seed(0)
    x, y = two_of_six(1000)
    net = two_layers(units=32)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    model = pyro_bc.BayesianNetwork(net, pyro_bc.StandardNormal(), num_data=len(x))
    return model, pyro_bc.CurvatureGuide(model, x.split(100), progress=False), x, y


def loss(small, x, y):
    with torch.no_grad():
        return float(F.cross_entropy(small.network()(x), y))


@pytest.mark.parametrize("epochs", [2, 40])
def test_epochs_make_up_for_codes_that_are_too_coarse(trained, epochs):
    model, guide, x, y = trained
    loader = pyro_bc.data.Batches(x, y, 50)
    before = pyro_bc.compress(model, guide, nats_per_bit=0.03)
    after = pyro_bc.compress(model, guide, nats_per_bit=0.03, epochs=epochs, loader=loader, progress=False)
    assert loss(after, x, y) < loss(before, x, y)
    assert len(after.to_bytes()) < 1.25 * len(before.to_bytes())
    decoded = pyro_bc.CompressedNetwork.from_bytes(after.to_bytes())
    assert torch.equal(decoded.network()(x), after.network()(x))
    if epochs > 2:
        assert loss(after, x, y) < 0.25 * loss(before, x, y)


def test_the_network_of_the_model_stays_as_it_was(trained):
    model, guide, x, y = trained
    state = {name: value.clone() for name, value in model.skeleton.state_dict().items()}
    pyro_bc.compress(model, guide, epochs=1, loader=[(x, y)], progress=False)
    assert all(torch.equal(value, state[name]) for name, value in model.skeleton.state_dict().items())


def test_a_factorised_posterior_is_trained_on_likewise():
    torch.manual_seed(0)
    x, y = two_of_six()
    model, guide, _ = fitted(two_layers(units=16), x, y, epochs=60, kl_weight=0.1, learning_rate=1e-2)
    before = pyro_bc.compress(model, guide, nats_per_bit=0.5)
    after = pyro_bc.compress(
        model, guide, nats_per_bit=0.5, epochs=20, loader=pyro_bc.data.Batches(x, y, 50), progress=False
    )
    assert loss(after, x, y) < loss(before, x, y)


def test_a_weight_is_its_code_and_has_the_gradient_of_a_number():
    kind = layer_type("linear")
    means = torch.randn(5, 7)
    exponents = torch.arange(-10, -5)
    layer = _Layer(kind, 1, means.shape, rate.Entries(means, torch.full((5, 7), 3.0), exponents, 0.0))
    layer.count()
    weight = layer.rounded(1e-3)
    steps = torch.exp2(exponents / STEPS_PER_OCTAVE)[:, None]
    assert torch.allclose(weight, layer.codes * steps)
    weight.square().sum().backward()
    assert torch.allclose(layer.values.grad, 2 * weight.detach())


def test_codes_are_those_that_cost_least_by_an_exhaustive_search():
    means, steps, price, bit = torch.randn(6, 4), torch.full((6, 1), 0.3), torch.rand(6, 4) * 5, 0.2
    lengths = CodeLengths((means / steps).round().long())
    layer = _Layer(layer_type("linear"), 1, means.shape, rate.Entries(means, price, torch.full((6,), 0), 0.0))
    layer.steps, layer.lengths = steps, lengths
    layer.rounded(bit)
    for row in range(6):
        for column in range(4):
            costs = {}
            for code in range(-12, 13):
                error = float(price[row, column] * (means[row, column] - 0.3 * code) ** 2)
                bits = lengths.zero[row, column] if code == 0 else (
                    lengths.nonzero[row, column] + lengths.magnitude[abs(code)]
                )  # fmt: skip
                costs[code] = error + bit * float(bits)
            own = int(layer.codes[row, column])
            assert costs[own] <= min(costs.values()) + 0.05 or abs(own - means[row, column] / 0.3) <= 1


def test_other_tensors_are_trained_too():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(6))
            self.layers = two_layers()

        def forward(self, x):
            return self.layers(x + self.shift)

    torch.manual_seed(0)
    x, y = two_of_six()
    model = pyro_bc.BayesianNetwork(Shifted(), pyro_bc.StandardNormal(), num_data=len(x))
    guide = pyro_bc.CurvatureGuide(model, [x], progress=False)
    loader = pyro_bc.data.Batches(x, y, 20)
    small = pyro_bc.compress(model, guide, nats_per_bit=1e-9, epochs=10, loader=loader, progress=False)
    shift = next(t for name, t in small.tensors.items() if name.endswith("shift"))
    assert float(shift.values().abs().max()) > 1e-3


def test_what_is_missing_or_wrong_is_said(trained):
    model, guide, x, y = trained
    with pytest.raises(UsageError, match="loader="):
        pyro_bc.compress(model, guide, epochs=2)
    with pytest.raises(UsageError, match="loader="):
        pyro_bc.compress(model, guide, epochs=-1)
    with pytest.raises(UsageError, match="pairs"):
        pyro_bc.compress(model, guide, epochs=1, loader=[x])
    with pytest.raises(UsageError, match="length"):
        pyro_bc.compress(model, guide, epochs=1, loader=iter([(x, y)]))
    with pytest.raises(UsageError, match="labels lie"):
        pyro_bc.compress(model, guide, epochs=1, loader=[(x, y + 5)])
    with pytest.raises(NonFiniteLossError, match="step 1"):
        pyro_bc.compress(model, guide, nats_per_bit=1e-3, epochs=1, loader=[(x * math.inf, y)], progress=False)
    plain, fit, _ = fitted(two_layers(), *two_of_six(), epochs=1)
    with pytest.raises(UsageError, match="nats_per_bit"):
        pyro_bc.compress(plain, fit, epochs=1, loader=[(x, y)])
