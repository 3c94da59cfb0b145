"""Layers of whole channels compute what they did, with nothing selected or placed, and in fours."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyro_bc
from pyro_bc.graph.module import GraphNetwork
from pyro_bc.graph.nodes import Named, Node, Value, is_layer
from pyro_bc.graph.read import read_graph
from pyro_bc.graph.whole_channels import with_whole_channels


class Shortcuts(nn.Module):
    """What networks have around convolutions: shortcuts, channels alone, gates, pools, parts side by side."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.expand, self.alone = nn.Conv2d(24, 44, 1), nn.Conv2d(44, 44, 3, padding=1, groups=44)
        self.squeeze, self.excite = nn.Conv2d(44, 11, 1), nn.Conv2d(11, 44, 1)
        self.project = nn.Conv2d(44, 24, 1)
        self.left, self.right = nn.Conv2d(24, 18, 1), nn.Conv2d(24, 22, 3, padding=1)
        self.last, self.head = nn.Conv2d(40, 30, 3), nn.Linear(30, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem(x)), 2)
        y = F.hardswish(self.alone(F.silu(self.expand(x))))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        x = x + self.project(y)
        x = torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1)
        return self.head(F.adaptive_avg_pool2d(F.relu(self.last(x)), 1).flatten(1))


def pruned(net, x, kept):
    """The network with a part of the groups of every layer out, at random."""
    model = pyro_bc.BayesianNetwork(net, pyro_bc.GroupNormalJeffreys(), num_data=100)
    guide = pyro_bc.FactorizedGuide(model)
    guide(x, torch.zeros(len(x), dtype=torch.long))
    thresholds = {}
    with torch.no_grad():
        for name in pyro_bc.summarize(guide):
            log_variance = guide.parameters_of(f"{name}.scale")[1]
            log_variance.fill_(-10.0)
            log_variance.view(-1)[torch.randperm(log_variance.numel()) >= kept * log_variance.numel()] = 20.0
            thresholds[name.removeprefix("net.")] = 2.0
    return pyro_bc.compress(model, guide, thresholds=thresholds).network()


def test_a_pruned_network_of_shortcuts_has_whole_channels_in_fours():
    torch.manual_seed(0)
    x = torch.rand(2, 3, 12, 12)
    net = pruned(Shortcuts().eval(), x, 0.8)
    before = [node.op for node in net._nodes]
    assert before.count("index_select") >= 3 and before.count("pad") >= 2
    with torch.no_grad():
        expected = net(x)
        found = with_whole_channels(net, x)
        difference = (found(x) - expected).abs().max()
    assert difference < 1e-5 * expected.abs().max() and expected.abs().max() > 0.01
    assert not {"index_select", "pad"}.intersection(node.op for node in found._nodes)
    tensors = found.state_dict()
    for node in found._nodes:
        if is_layer(node):
            inputs = tensors[node.args[1].name].shape[1]
            assert inputs % 4 == 0 or inputs <= 8
    joined = [tensors[f"{name}.weight"].shape[0] for name in ("left", "right")]
    assert all(count % 16 == 0 for count in joined), joined
    assert torch.equal(net(x), expected)  # the network itself is as it was


@pytest.mark.parametrize("between,stays", [(F.relu, False), (torch.sigmoid, True)])
def test_what_makes_no_zeros_of_zeros_keeps_a_placement(between, stays):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.more = nn.Conv2d(2, 9, 3), nn.Conv2d(12, 3, 1)
            self.register_buffer("where", torch.tensor([9, 1, 2, 3, 10, 0, 4, 5, 6, 7, 8, 11]))

        def forward(self, x):
            y = F.pad(between(self.conv(x)), (0, 0, 0, 0, 0, 3))
            return self.more(y.index_select(1, self.where))

    graph = read_graph(Net().eval(), torch.rand(2, 2, 5, 5))
    net, x = GraphNetwork(graph.nodes, graph.tensors, graph.buffers), torch.rand(4, 2, 5, 5)
    found = with_whole_channels(net, x)
    assert ("pad" in [node.op for node in found._nodes]) is stays
    assert torch.allclose(found(x), net(x), atol=1e-6)


def test_what_is_infinite_at_zero_is_not_widened():
    nodes = (
        Node("conv2d", (Value(-1), Named("a.weight"))),
        Node("abs", (Value(0),)),
        Node("log", (Value(1),)),
        Node("conv2d", (Value(2), Named("b.weight"))),
    )
    tensors = {"a.weight": torch.rand(13, 2, 1, 1), "b.weight": torch.rand(3, 13, 1, 1)}
    net, x = GraphNetwork(nodes, tensors), torch.rand(2, 2, 4, 4)
    found = with_whole_channels(net, x)
    assert found.state_dict()["b.weight"].shape == (3, 13, 1, 1) and torch.equal(found(x), net(x))


def test_far_more_products_than_moves_are_not_made():
    nodes = (
        Node("relu", (Value(-1),)),
        Node("index_select", (Value(0), 1, Named("kept"))),
        Node("conv2d", (Value(1), Named("a.weight"), None, (1, 1), (1, 1))),
    )
    for outputs, stays in ((4, False), (512, True)):
        tensors = {"kept": torch.arange(8), "a.weight": torch.randn(outputs, 8, 3, 3)}
        net, x = GraphNetwork(nodes, tensors, frozenset({"kept"})), torch.randn(2, 64, 4, 4)
        found = with_whole_channels(net, x)
        assert ("index_select" in [node.op for node in found._nodes]) is stays
        assert torch.allclose(found(x), net(x), atol=1e-5)


@pytest.mark.parametrize("channels", [8, 40])
def test_channels_alone_are_selected_behind_their_convolution(channels):
    nodes = (
        Node("relu", (Value(-1),)),
        Node("index_select", (Value(0), 1, Named("kept"))),
        Node("conv2d", (Value(1), Named("a.weight"), Named("a.bias"), (1, 1), (1, 1), (1, 1), 6)),
        Node("pad", (Value(2), (0, 0, 0, 0, 0, 2))),
        Node("index_select", (Value(3), 1, Named("placed"))),
        Node("add", (Value(4), Value(4))),
    )
    tensors = {
        "kept": torch.tensor([7, 1, 2, 3, 5, 6]), "a.weight": torch.randn(6, 1, 3, 3), "a.bias": torch.randn(6),
        "placed": torch.tensor([6, 0, 5, 1, 7, 2, 3, 4]),
    }  # fmt: skip
    net, x = GraphNetwork(nodes, tensors, frozenset({"kept", "placed"})), torch.randn(3, channels, 5, 5)
    found = with_whole_channels(net, x)
    moved = ["relu", "conv2d", "index_select", "add"]
    assert [node.op for node in found._nodes] == (moved if channels == 8 else [node.op for node in nodes])
    assert torch.allclose(found(x), net(x), atol=1e-6)
