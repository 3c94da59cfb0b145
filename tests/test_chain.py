"""Chains are read from modules and functions alike, rebuilt to the same output, and refused where they are none."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_bc.chain import (
    ACTIVATIONS,
    ActivationStep,
    FlattenStep,
    LinearStep,
    Normalize,
    NormalizeStep,
    build,
    linear_names,
    read_chain,
)
from pyro_bc.errors import UnsupportedNetworkError


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict({"a": nn.Linear(12, 5), "b": nn.Linear(5, 2)})
        self.normalize = Normalize([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])

    def forward(self, x):
        x = torch.flatten(self.normalize(x), 1)
        x = F.dropout(torch.tanh(self.body["a"](x)), 0.5, self.training)
        return self.body["b"](x).relu()


def test_modules_and_functions_give_the_same_steps():
    steps = read_chain(Functional())
    assert [type(step) for step in steps] == [
        NormalizeStep,
        FlattenStep,
        LinearStep,
        ActivationStep,
        LinearStep,
        ActivationStep,
    ]
    assert linear_names(steps) == ["body.a", "body.b"]
    assert [step.kind for step in steps if isinstance(step, ActivationStep)] == ["tanh", "relu"]


def test_a_rebuilt_chain_computes_what_the_network_did():
    net = Functional().eval()
    linears = {
        name: (net.get_submodule(name).weight.data, net.get_submodule(name).bias.data) for name in ("body.a", "body.b")
    }
    x = torch.rand(7, 3, 2, 2)
    assert torch.allclose(build(read_chain(net), linears, None)(x), net(x), atol=1e-6)


def test_a_rebuilt_chain_reads_only_the_inputs_it_is_told_to():
    net = nn.Sequential(nn.Linear(4, 2))
    indices = torch.tensor([0, 3])
    small = build(read_chain(net), {"0": (net[0].weight.data[:, indices], net[0].bias.data)}, indices)
    x = torch.randn(5, 4)
    assert torch.allclose(small(x), F.linear(x[:, indices], net[0].weight[:, indices], net[0].bias), atol=1e-6)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_every_activation_is_read_as_module_and_as_function(kind):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.activation = nn.Linear(3, 3), ACTIVATIONS[kind]()

        def forward(self, x):
            return getattr(F, kind)(self.activation(self.fc(x)))

    assert read_chain(Net())[1:] == (ActivationStep(kind), ActivationStep(kind))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        return x + self.fc(x)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        return self.fc(F.relu(self.fc(x)))


class Conditional(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    "net,message",
    [
        (Residual(), "only chains"),
        (Twice(), "'fc' is used twice"),
        (Conditional(), "cannot be traced"),
        (nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), "LayerNorm"),
        (nn.Sequential(nn.Linear(3, 3), nn.LeakyReLU(0.3)), "negative_slope=0.3"),
        (nn.Sequential(nn.Flatten(0), nn.Linear(3, 3)), "Flatten"),
    ],
)
def test_what_is_no_chain_is_named(net, message):
    with pytest.raises(UnsupportedNetworkError, match=message):
        read_chain(net)
