"""The file's network is the one that was trained, rounded; dead units are gone; narrow networks are the dense one's."""

import pytest
import torch
from torch import nn

import pyro_bc
from pyro_bc.app.networks import Normalize, lenet_5_caffe, lenet_300_100
from pyro_bc.compression.codes import compress_codes
from pyro_bc.compression.dead_units import without_dead_units
from pyro_bc.errors import EmptyNetworkError, UsageError
from pyro_bc.graph.module import GraphNetwork
from pyro_bc.graph.read import read_graph
from pyro_bc.priors.learned_code import CellGuide, RateNetwork
from pyro_bc.quantisation.grids import spatial_grids


def coded(net: nn.Module, *shape: int):
    graph = read_graph(net, torch.rand(2, *shape))
    net = GraphNetwork(graph.nodes, graph.tensors, graph.buffers)
    model = RateNetwork(net, num_data=10, grids=spatial_grids(graph))
    guide = CellGuide(model)
    model.snap_steps_(guide)
    return graph, model, guide


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
    graph, model, guide = coded(convolutional(), 1, 8, 8)
    small = compress_codes(model, guide, graph)
    assert small.tensors["0.weight"].grid == (3, 3) and small.tensors["4.weight"].grid == (3, 3)
    small.save(tmp_path / "net.pbc")
    x = torch.rand(7, 1, 8, 8)
    with torch.no_grad():
        expected = model(x, codes=guide.rounded())
        assert torch.allclose(pyro_bc.load(tmp_path / "net.pbc")(x), expected, atol=1e-5)
    again = pyro_bc.read(tmp_path / "net.pbc")
    assert again.to_bytes() == small.to_bytes() and again.dense_parameters == small.dense_parameters
    figures = small.compression()
    cosines = sum(small.tensors[name].codes.numel() for name in ("0.weight", "4.weight"))
    others = sum(t.codes.numel() * t.bits for t in small.tensors.values() if not t.grid)
    # Cosine coefficients are no weights to multiply with: those are float32.
    assert figures.fast_prediction == pytest.approx(32 * small.dense_parameters / (32 * cosines + others))


def test_units_that_feed_nothing_or_are_nothing_fall_away():
    graph, model, guide = coded(convolutional(), 1, 8, 8)
    codes = dict(zip(guide.names, guide.codes, strict=True))
    with torch.no_grad():
        codes["0.weight"][1] = codes["0.bias"][1] = 0  # a filter of zeros
        codes["4.weight"].view(6, 4, 9)[:, 3] = 0  # nobody reads filter 3
        codes["6.weight"][:, [0, 5]] = 0
        codes["4.weight"][2] = 0  # a constant, but not zero: its bias is read
        codes["4.bias"][2] = 3
    small = compress_codes(model, guide, graph)
    assert [layer.weight.codes.shape for layer in small.layers] == [(2, 1, 3, 3), (4, 18), (3, 4)]
    x = torch.rand(7, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(small.network()(x), model(x, codes=guide.rounded()), atol=1e-5)
    assert small.compression().pruning > 1 and small.layers[0].dense_shape == (4, 1)
    assert without_dead_units(small).to_bytes() == small.to_bytes()


@pytest.mark.parametrize("grid", [(8,), (2, 2)])
def test_units_stay_where_a_grid_goes_across_them(grid):
    graph = read_graph(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), torch.rand(2, 5))
    model = RateNetwork(GraphNetwork(graph.nodes, graph.tensors), num_data=10, grids={"2.weight": grid})
    guide = CellGuide(model)
    model.snap_steps_(guide)
    with torch.no_grad():
        guide.codes[2][:, 1::2] = 0
    small = compress_codes(model, guide, graph)
    x = torch.rand(7, 5)
    with torch.no_grad():
        assert torch.allclose(small.network()(x), model(x, codes=guide.rounded()), atol=1e-5)


def test_what_is_not_trained_is_kept_as_it_is(tmp_path):
    net = nn.Sequential(Normalize([0.5], [0.25]), nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 2))
    graph, model, guide = coded(net, 1, 4, 4)
    small = compress_codes(model, guide, graph)
    small.save(tmp_path / "net.pbc")
    again = pyro_bc.read(tmp_path / "net.pbc")
    assert len(again.buffers) == len(graph.buffers) == 2
    x = torch.rand(7, 1, 4, 4)
    with torch.no_grad():
        assert torch.allclose(again.network()(x), model(x, codes=guide.rounded()), atol=1e-5)


def test_grids_that_no_file_takes_are_left_out():
    wide = read_graph(nn.Sequential(nn.Flatten(), nn.Linear(5000, 4)), torch.rand(2, 1, 5000))
    assert spatial_grids(wide) == {}
    partly = read_graph(nn.Sequential(nn.Flatten(1, 2), nn.Linear(5, 2)), torch.rand(2, 3, 1, 5))
    assert all(grid != (1, 15) for grid in spatial_grids(partly).values())
    large = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 64 * 64, 200))
    assert spatial_grids(read_graph(large, torch.rand(2, 1, 66, 66))) == {"0.weight": (3, 3)}


def test_a_sigmoid_of_nothing_is_something():
    graph, model, guide = coded(nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 2)), 4)
    with torch.no_grad():
        guide.codes[0][1] = guide.codes[1][1] = 0
    small = compress_codes(model, guide, graph)
    assert small.layers[0].weight.codes.shape == (3, 4)


def test_other_networks_keep_their_units(tmp_path):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.second(x + torch.relu(self.first(x)))

    graph, model, guide = coded(Residual(), 4)
    with torch.no_grad():
        guide.codes[0][1] = guide.codes[1][1] = 0
    small = compress_codes(model, guide, graph)
    small.save(tmp_path / "net.pbc")
    x = torch.rand(5, 4)
    with torch.no_grad():
        assert torch.allclose(pyro_bc.load(tmp_path / "net.pbc")(x), model(x, codes=guide.rounded()), atol=1e-5)


def test_what_cannot_be_stored_is_said():
    graph, model, guide = coded(convolutional(), 1, 8, 8)
    with torch.no_grad():
        guide.codes[0].zero_()
    with pytest.raises(EmptyNetworkError, match=r"0\.weight"):
        compress_codes(model, guide, graph)
    graph, model, guide = coded(convolutional(), 1, 8, 8)
    with torch.no_grad():
        model.log_steps += 0.1
    with pytest.raises(UsageError, match="power of two"):
        compress_codes(model, guide, graph)
    with pytest.raises(UsageError, match="parameters differ"):
        compress_codes(model, guide, read_graph(nn.Sequential(nn.Linear(3, 2)), torch.rand(2, 3)))
