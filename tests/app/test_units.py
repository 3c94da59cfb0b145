"""A trained network of numbers far from 1 is fitted as one of numbers about 1, and is the same function."""

import pytest
import torch
from torch import nn

from pyro_bc.app.examples import Examples, dataset_of
from pyro_bc.app.normalised import Normalised, Scales
from pyro_bc.app.pairing import paired
from pyro_bc.app.units import in_usual_units

NOISE = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
TABLE = NOISE * torch.tensor([0.1, 1.0, 3000.0]) + torch.tensor([0.0, 50.0, -7.0])
PIXELS = 255 * torch.rand(60, 3, 8, 8)


class Twice(nn.Module):
    """Two layers that read the input, of which one has no bias."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, 4), nn.Linear(3, 4, bias=False), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.a(x).relu() + self.b(x))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3)

    def forward(self, x):
        return x + self.a(x)


class Divided(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 2, 8)

    def forward(self, x):
        return self.a(x / 255).flatten(1)


def in_their_units(net, layers, x):
    """The network as it would be trained on such inputs: weights as small as these are large."""
    with torch.no_grad():
        for layer in layers:
            deviation = Scales.of(x).deviation.flatten()
            if len(deviation) != layer.weight.shape[1]:
                deviation = deviation[:1]  # which all channels have
            layer.weight /= deviation.reshape(1, -1, *[1] * (layer.weight.dim() - 2))
    return net


def data_of(x, y, likelihood=None):
    return dataset_of("set", Examples("numbers", x, y), likelihood)


@pytest.mark.parametrize(
    ("build", "layers", "x"),
    [
        (lambda: nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), lambda net: [net[0]], TABLE),
        (Twice, lambda net: [net.a, net.b], TABLE),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)), lambda net: [net[0]], PIXELS),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 2)),
            lambda net: [net[0]],
            PIXELS,
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.Flatten(), nn.Linear(256, 2)),
            lambda net: [net[0]],
            PIXELS,
        ),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), lambda net: [net[1]], PIXELS),
    ],
    ids=["table", "two layers", "pixels", "padded pixels", "as wide as before", "flat pixels"],
)
def test_first_weights_are_of_a_usual_size_and_the_function_stays(build, layers, x):
    torch.manual_seed(0)
    net = build()
    usual = [float(layer.weight.square().mean()) for layer in layers(net)]
    in_their_units(net, layers(net), x).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    data = paired(net, data_of(x, torch.arange(len(x)) % 2))
    moved = in_usual_units(net, data)
    assert isinstance(moved, Normalised)
    assert torch.allclose(moved(x), net(x), rtol=1e-3, atol=1e-4 * float(net(x).abs().max()))
    for layer, size in zip(layers(moved.net), usual, strict=True):
        assert float(layer.weight.detach().square().mean()) == pytest.approx(size, rel=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_one_column_of_many_is_enough():
    x = torch.randn(300, 30, generator=torch.Generator().manual_seed(0))
    x[:, 4] *= 1000
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 2)).eval()
    with torch.no_grad():
        net[0].weight[:, 4] /= 1024
    moved = in_usual_units(net, paired(net, data_of(x, torch.arange(300) % 2)))
    size = moved.net[0].weight.detach().square().mean(0)
    assert float(size[4]) == pytest.approx(float(size.mean()), rel=0.5)


@pytest.mark.parametrize("first", ["layer", "normalisation"])
def test_targets_far_from_1_leave_the_last_weights(first):
    torch.manual_seed(0)
    net = (
        nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
        if first == "layer"
        else nn.Sequential(nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1))
    )
    size = float(net[2].weight.detach().square().mean())
    x = torch.randn(300, 3)
    y = 3e5 + 1e5 * x[:, :1]
    if first == "normalisation":
        x *= 100  # which is left to it
    with torch.no_grad():
        net[2].weight *= Scales.of(y).deviation
        net[2].bias += 3e5
    moved = in_usual_units(net.eval(), paired(net, data_of(x, y)))
    assert torch.allclose(moved(x), net(x), rtol=1e-4)
    assert float(moved.net[2].weight.detach().square().mean()) == pytest.approx(size, rel=1e-4)
    assert float(moved.net[2].bias.detach().abs().max()) < 3


def test_usual_numbers_leave_a_network_as_it_is_and_what_cannot_be_moved_is_said():
    net = nn.Linear(3, 2)
    for x in (torch.randn(300, 3), torch.rand(300, 3)):
        whole = nn.Sequential(net)
        assert in_usual_units(whole, paired(whole, data_of(x, torch.arange(300) % 2))) is whole
    rare = (torch.rand(300, 12) < 0.004).float()  # columns that are almost always 0, and weights as any
    whole = nn.Sequential(nn.Linear(12, 2))
    assert in_usual_units(whole, paired(whole, data_of(rare, torch.arange(300) % 2))) is whole
    for own in (Divided(), nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 8), nn.Flatten())):  # scales of their own
        assert in_usual_units(own, paired(own.eval(), data_of(PIXELS, torch.arange(60) % 2))) is own
    residual = Residual()
    data = paired(residual, data_of(TABLE, torch.arange(300) % 3))
    with pytest.warns(UserWarning, match=r"deviations of 0\.125 to \d+\), and its first and last layers are none"):
        assert in_usual_units(residual, data) is residual
