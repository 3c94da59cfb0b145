"""The file's network is the one whose codes were fitted, rounded; units that are nothing are gone."""

import pyro
import pytest
import torch
from helpers import fitted, set_up, two_layers
from torch import nn

import pyro_bc
from pyro_bc import GroupNormalJeffreys, LearnedCode
from pyro_bc.app.networks import Normalize, lenet_5_caffe, lenet_300_100
from pyro_bc.errors import EmptyNetworkError
from pyro_bc.graph.read import read_graph
from pyro_bc.inference.straight_through import settle_codes_
from pyro_bc.quantisation.grids import spatial_grids


def coded(net: nn.Module, *shape: int, prior=None):
    """A model, its guide, and the centres of its codes by the name of the tensor."""
    model, guide = set_up(net, torch.rand(4, *shape), LearnedCode() if prior is None else prior, num_data=10)
    settle_codes_(guide)
    centres = {name.removeprefix("net."): guide.parameters_of(name)[0] for name in guide.families}
    return model, guide, centres


def outputs(model, guide, x):
    """What the model computes with rounded codes."""
    data = {name: q.centre.round() for name, q in guide.posterior().items()}

    with torch.no_grad():
        return pyro.poutine.condition(model, data=data)(x)


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 6), nn.ReLU(), nn.Linear(6, 3)
    )


def test_grids_are_kernels_and_what_is_read_behind_a_flattening():
    graph = read_graph(lenet_5_caffe(), torch.rand(2, 1, 28, 28))
    assert spatial_grids(graph) == {"conv1.weight": (5, 5), "conv2.weight": (5, 5), "fc1.weight": (4, 4)}
    assert spatial_grids(read_graph(lenet_300_100(), torch.rand(2, 1, 28, 28))) == {"fc1.weight": (28, 28)}
    assert spatial_grids(read_graph(nn.Sequential(nn.Linear(4, 2)), torch.rand(2, 4))) == {}


def test_the_file_computes_what_was_trained(tmp_path):
    model, guide, _ = coded(convolutional(), 1, 8, 8)
    small = pyro_bc.compress(model, guide)
    assert small.tensors["0.weight"].grid == (3, 3) and small.tensors["4.weight"].grid == (3, 3)
    small.save(tmp_path / "net.pbc")
    x = torch.rand(7, 1, 8, 8)
    assert torch.allclose(pyro_bc.load(tmp_path / "net.pbc")(x), outputs(model, guide, x), atol=1e-5)
    again = pyro_bc.read(tmp_path / "net.pbc")
    assert again.to_bytes() == small.to_bytes() and again.dense_parameters == small.dense_parameters
    figures = small.compression()
    cosines = sum(small.tensors[name].codes.numel() for name in ("0.weight", "4.weight"))
    others = sum(t.codes.numel() * t.bits for t in small.tensors.values() if not t.grid)
    # Cosine coefficients are no weights to multiply with: those are float32.
    assert figures.fast_prediction == pytest.approx(32 * small.dense_parameters / (32 * cosines + others))


def test_steps_that_are_not_settled_are_rounded_to_powers_of_two():
    model, guide = set_up(convolutional(), torch.rand(4, 1, 8, 8), LearnedCode(), num_data=10)
    unsettled = pyro_bc.compress(model, guide).to_bytes()
    settle_codes_(guide)
    assert pyro_bc.compress(model, guide).to_bytes() == unsettled


def test_units_that_feed_nothing_or_are_nothing_fall_away():
    model, guide, codes = coded(convolutional(), 1, 8, 8)
    with torch.no_grad():
        codes["0.weight"][1] = codes["0.bias"][1] = 0  # a filter of zeros
        codes["4.weight"].view(6, 4, 9)[:, 3] = 0  # nobody reads filter 3
        codes["6.weight"][:, [0, 5]] = 0
        codes["4.weight"][2] = 0  # a constant, but not zero: its bias is read
        codes["4.bias"][2] = 3
    small = pyro_bc.compress(model, guide)
    assert [layer.weight.codes.shape for layer in small.layers] == [(2, 1, 3, 3), (4, 18), (3, 4)]
    x = torch.rand(7, 1, 8, 8)
    assert torch.allclose(small.network()(x), outputs(model, guide, x), atol=1e-5)
    assert small.compression().pruning > 1 and small.layers[0].dense_shape == (4, 1)


@pytest.mark.parametrize("grid", [(8,), (2, 2)])
def test_units_stay_where_a_grid_goes_across_them(grid):
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    model, guide, codes = coded(net, 5, prior=LearnedCode(grids={"2.weight": grid}))
    with torch.no_grad():
        codes["2.weight"][:, 1::2] = 0
    small = pyro_bc.compress(model, guide)
    x = torch.rand(7, 5)
    assert torch.allclose(small.network()(x), outputs(model, guide, x), atol=1e-5)


def test_what_is_not_trained_is_kept_as_it_is(tmp_path):
    net = nn.Sequential(Normalize([0.5], [0.25]), nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 2))
    model, guide, _ = coded(net, 1, 4, 4)
    small = pyro_bc.compress(model, guide)
    small.save(tmp_path / "net.pbc")
    again = pyro_bc.read(tmp_path / "net.pbc")
    assert len(again.buffers) == 2
    x = torch.rand(7, 1, 4, 4)
    assert torch.allclose(again.network()(x), outputs(model, guide, x), atol=1e-5)


def test_grids_that_no_file_takes_are_left_out():
    wide = read_graph(nn.Sequential(nn.Flatten(), nn.Linear(5000, 4)), torch.rand(2, 1, 5000))
    assert spatial_grids(wide) == {}
    partly = read_graph(nn.Sequential(nn.Flatten(1, 2), nn.Linear(5, 2)), torch.rand(2, 3, 1, 5))
    assert all(grid != (1, 15) for grid in spatial_grids(partly).values())
    large = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 64 * 64, 200))
    assert spatial_grids(read_graph(large, torch.rand(2, 1, 66, 66))) == {"0.weight": (3, 3)}


def test_heads_and_features_are_no_places():
    class Read(nn.Module):
        def __init__(self, read):
            super().__init__()
            self.conv, self.read, self.head = nn.Conv2d(1, 4, 3, padding=1), read, nn.Linear(64, 2)

        def forward(self, x):
            return self.head(self.read(self.conv(x)))

    x = torch.rand(2, 1, 4, 4)
    for read, expected in (
        (lambda h: h.flatten(1), (4, 4)),
        (lambda h: h.relu().flatten(1), (4, 4)),
        (lambda h: h.permute(0, 2, 3, 1).flatten(1), None),  # channels come last
        (lambda h: h.flatten(2).transpose(1, 2).flatten(1), None),
    ):
        assert spatial_grids(read_graph(Read(read), x)).get("head.weight") == expected
    attention = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    assert spatial_grids(read_graph(attention, torch.rand(2, 5, 8))) == {}


@pytest.mark.parametrize("grid", [(4,), ()])
def test_coefficients_of_a_grid_stay_while_one_of_its_weights_reads_something(grid):
    """Two of the four features that a grid is over are 0, and may not be taken from its coefficients."""

    class Features(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            h = torch.cat([self.first(x)[:, :2], self.second(x)[:, 1:3]], 1)
            return self.head(h.relu())

    model = pyro_bc.BayesianNetwork(Features(), pyro_bc.LearnedCode(grids={"head.weight": grid}), num_data=8)
    guide = pyro_bc.FactorizedGuide(model)
    x, y = torch.randn(8, 3), torch.arange(8) % 2
    guide(x, y)
    with torch.no_grad():
        for name in ("first", "second"):
            weight, bias = (guide.parameters_of(f"net.{name}.{role}")[0] for role in ("weight", "bias"))
            weight.copy_(torch.arange(-5, 7).reshape(4, 3)), bias.fill_(1.0)
        guide.parameters_of("net.first.weight")[0][0] = 0
        guide.parameters_of("net.first.bias")[0][0] = -3  # and what comes of it
        guide.parameters_of("net.second.weight")[0][1] = 0
        guide.parameters_of("net.second.bias")[0][1] = -3
        guide.parameters_of("net.head.weight")[0].copy_(torch.tensor([[5.0, 3, -2, 1], [-4.0, 1, 0, 2]]))
    settle_codes_(guide)
    small = pyro_bc.compress(model, guide)
    assert torch.allclose(small.network()(x), outputs(model, guide, x), atol=1e-5)


def test_a_constant_branch_stays_where_it_gives_the_places():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.gate = nn.Conv2d(1, 3, 1), nn.Linear(1, 3)
            self.b, self.head = nn.Conv2d(3, 2, 3, padding=1), nn.Linear(2, 2)

        def forward(self, x):
            gate = torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
            return self.head(self.b(self.a(x).tanh() * gate).relu().mean((2, 3)))

    model, guide, codes = coded(Gated(), 1, 4, 4)
    with torch.no_grad():
        for name, centre in codes.items():
            centre.copy_(torch.arange(1, centre.numel() + 1).reshape(centre.shape) % 4 - 1.0)
            centre.mul_(name != "a.weight")
    x = 100 * torch.randn(5, 1, 4, 4)
    expected = outputs(model, guide, x)
    assert (expected - expected[:1]).abs().max() > 1e-3
    assert torch.allclose(pyro_bc.compress(model, guide).network()(x), expected, atol=1e-5)


def test_a_sigmoid_of_nothing_is_something():
    model, guide, codes = coded(nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 2)), 4)
    with torch.no_grad():
        codes["0.weight"][1] = codes["0.bias"][1] = 0
    small = pyro_bc.compress(model, guide)
    assert small.layers[0].weight.codes.shape == (3, 4)
    x = torch.rand(5, 4)
    assert torch.allclose(small.network()(x), outputs(model, guide, x), atol=1e-5)


def test_units_of_a_residual_network_stay_where_they_are_read(tmp_path):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.second(x + torch.relu(self.first(x)))

    model, guide, codes = coded(Residual(), 4)
    with torch.no_grad():
        codes["first.weight"][1] = codes["first.bias"][1] = 0
    small = pyro_bc.compress(model, guide)
    small.save(tmp_path / "net.pbc")
    x = torch.rand(5, 4)
    assert torch.allclose(pyro_bc.load(tmp_path / "net.pbc")(x), outputs(model, guide, x), atol=1e-5)


def test_normalisation_behind_codes_is_kept_and_not_folded_into_them(tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    net(torch.rand(64, 1, 8, 8))
    model, guide, _ = coded(net.eval(), 1, 8, 8)
    model.eval()
    small = pyro_bc.compress(model, guide)
    assert any(node.op == "batch_norm" for node in small.nodes)
    small.save(tmp_path / "net.pbc")
    x = torch.rand(5, 1, 8, 8)
    assert torch.allclose(pyro_bc.load(tmp_path / "net.pbc")(x), outputs(model, guide, x), atol=1e-4)


def test_groups_that_a_scale_prunes_are_not_stored():
    net = two_layers()
    torch.manual_seed(1)
    x = torch.randn(200, 6)
    y = (x[:, 0] > 0).long()
    model, guide, _ = fitted(
        net, x, y, GroupNormalJeffreys(weights=LearnedCode()), epochs=150, learning_rate=5e-3, log_learning_rate=3e-2,
        code_learning_rate=0.1, kl_weight=0.3,
    )  # fmt: skip
    small = pyro_bc.compress(model, guide)
    assert small.architecture[1] < 8 and (small.network()(x).argmax(1) != y).float().mean() < 0.1
    assert torch.allclose(small.network()(x), outputs_of_settled(model, guide, x), atol=1e-5)


def outputs_of_settled(model, guide, x):

    data = {name: q.centre.round() if hasattr(q, "centre") else q.mean for name, q in guide.posterior().items()}
    with torch.no_grad():
        return pyro.poutine.condition(model, data=data)(x)


def test_what_cannot_be_stored_is_said():
    model, guide, codes = coded(convolutional(), 1, 8, 8)
    with torch.no_grad():
        codes["0.weight"].zero_()
    with pytest.raises(EmptyNetworkError, match="'0'"):
        pyro_bc.compress(model, guide)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, 4), nn.Linear(64, 5), nn.Linear(9, 3)

    def forward(self, x):
        x = x.flatten(1)
        return self.head(torch.cat([self.first(x), self.second(x)], 1).relu())


def test_codes_of_which_only_biases_are_left_stay_on_their_grid():
    model, guide, centres = coded(Branches(), 1, 8, 8)
    with torch.no_grad():
        centres["first.weight"].zero_()
        centres["first.bias"].copy_(torch.tensor([3.0, 0.0, 5.0, -2.0]))
    x = torch.rand(7, 1, 8, 8)
    small = pyro_bc.compress(model, guide)
    assert small.tensors["first.weight"].grid == (8, 8)
    assert torch.allclose(small.network()(x), outputs(model, guide, x), atol=1e-5)
    with torch.no_grad():
        centres["second.weight"].zero_()
    with pytest.raises(EmptyNetworkError, match="are 0"):
        pyro_bc.compress(model, guide)
