"""Graphs compute what the networks that they were read from do, and what cannot be read is named."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_bc.app.networks import Normalize
from pyro_bc.errors import UnsupportedNetworkError
from pyro_bc.graph.module import GraphNetwork
from pyro_bc.graph.nodes import Named, Node, Value
from pyro_bc.graph.read import read_graph


class Mixed(nn.Module):
    """Modules and functions, in-place writes, a branch, a view with the batch size, an embedding of positions."""

    def __init__(self):
        super().__init__()
        self.normalize = Normalize([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
        self.body = nn.ModuleDict({"a": nn.Conv2d(3, 4, 3, padding="same"), "b": nn.Linear(4 * 16, 5)})
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.position = nn.Parameter(torch.randn(1, 4, 4, 4))

    def forward(self, x):
        h = self.relu(self.norm(self.body["a"](self.normalize(x))))
        h = F.max_pool2d(h, 2) + self.position
        h = F.dropout(torch.cat([h, -h], 1)[:, 2:6], 0.5, self.training)
        return F.log_softmax(self.body["b"](h.reshape(h.size(0), -1)), -1)


@pytest.mark.parametrize("training", [True, False])
def test_a_graph_computes_what_the_network_does_in_evaluation_mode(training):
    torch.manual_seed(0)
    net = Mixed().train(training)
    net.norm.running_mean.normal_()
    graph = read_graph(net, torch.rand(1, 3, 8, 8))
    assert net.training == net.norm.training == training  # as it was
    assert [node.op for node in graph.nodes if node.op in ("dropout", "alias")] == []
    x = torch.rand(7, 3, 8, 8)
    assert torch.allclose(GraphNetwork(graph.nodes, graph.tensors, graph.buffers)(x), net.eval()(x), atol=1e-6)
    assert {"body.a.weight", "position", "norm.running_var"} <= set(graph.tensors)


def test_shapes_are_known_but_for_the_batch():
    graph = read_graph(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), torch.rand(2, 3, 2, 2))
    batch = graph.shape(-1)[0]
    assert isinstance(batch, str)
    assert [graph.shape(index) for index in (-1, 0, 1)] == [(batch, 3, 2, 2), (batch, 12), (batch, 5)]


def test_what_is_overwritten_in_place_is_read_as_overwritten():
    class Net(nn.Module):
        def forward(self, x):
            h = x + 1
            h.relu_()
            return h * 2

    x = torch.randn(5, 3)
    graph = read_graph(Net(), x)
    assert torch.equal(GraphNetwork(graph.nodes, graph.tensors, graph.buffers)(x), F.relu(x + 1) * 2)


def test_results_are_freed_after_their_last_use_and_the_input_can_be_used_late():
    nodes = (Node("relu", (Value(-1),)), Node("neg", (Value(0),)), Node("add", (Value(1), Value(-1))))
    x = torch.randn(4)
    assert torch.equal(GraphNetwork(nodes, {})(x), x - F.relu(x))


def test_names_of_tensors_survive_dots_and_shared_ones_are_stored_once():
    nodes = (Node("linear", (Value(-1), Named("a.b.weight"))), Node("linear", (Value(0), Named("a.b.weight"))))
    net = GraphNetwork(nodes, {"a.b.weight": torch.eye(3) * 2})
    assert torch.equal(net(torch.ones(1, 3)), torch.full((1, 3), 4.0))
    assert sum(p.numel() for p in net.parameters()) == 9


class Conditional(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Decomposes(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleDict({"svd": Svd()})

    def forward(self, x):
        return self.inner["svd"](x)


class Svd(nn.Module):
    def forward(self, x):
        return torch.linalg.svdvals(x)


class TwoOutputs(nn.Module):
    def forward(self, x):
        return x + 1, x + 2


class Random(nn.Module):
    def forward(self, x):
        return torch.rand_like(x)


@pytest.mark.parametrize(
    "net,message",
    [
        (Conditional(), "cannot be read as a fixed graph"),
        (Decomposes(), r"'linalg_svdvals' in module 'inner\.svd'"),
        (TwoOutputs(), "2 outputs"),
        (nn.Identity(), "output is its input"),
        (Random(), "'rand_like'"),
    ],
)
def test_what_cannot_be_read_is_named(net, message):
    with pytest.raises(UnsupportedNetworkError, match=message):
        read_graph(net, torch.rand(2, 3, 3))


def test_an_operation_that_is_not_known_is_named_with_the_users_own_line():
    class Inner(nn.Module):
        def forward(self, x):
            return x.i0()  # this line

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.inner = nn.Linear(4, 3), Inner()

        def forward(self, x):
            return self.inner(self.fc(x))

    expected = r"'i0' in module 'inner' \(test_read\.py, line \d+: return x\.i0\(\)  # this line\) cannot"
    with pytest.raises(UnsupportedNetworkError, match=expected):
        read_graph(Net(), torch.ones(2, 4))


def test_a_single_layer_needs_a_name():
    with pytest.raises(UnsupportedNetworkError, match=r"put it into an nn\.Sequential"):
        read_graph(nn.Linear(4, 3), torch.rand(2, 4))
