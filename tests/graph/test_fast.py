"""Prediction is arranged anew, and stays what it was."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pyro_bc
from graph.test_operations import Case, examples
from pyro_bc.app.networks import lenet_5_caffe, lenet_300_100
from pyro_bc.errors import UnsupportedNetworkError
from pyro_bc.graph import fast as prediction
from pyro_bc.graph.fast import PredictionNetwork, arranged, keeps_examples_apart, pooled_by_two
from pyro_bc.graph.module import GraphNetwork
from pyro_bc.graph.nodes import Named, Node, Value
from pyro_bc.graph.operations import OPERATIONS
from pyro_bc.graph.read import read_graph
from pyro_bc.graph.whole_channels import with_whole_channels
from pyro_bc.inference.elbo import elbo_terms


def networks(net, example):
    graph = read_graph(net, example)
    arguments = (graph.nodes, graph.tensors, graph.buffers)
    return GraphNetwork(*arguments), PredictionNetwork(*arguments)


class Shortcut(nn.Module):
    """An activation that two operations read, pooling with padding, and a parameter used directly."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.scale = nn.Parameter(torch.rand(3, 1, 1))

    def forward(self, x):
        y = torch.tanh(self.conv(x))
        pooled = F.max_pool2d(y, 3, 2, padding=1) + y[:, :, ::2, ::2] * self.scale
        return F.max_pool2d(torch.sigmoid(pooled), 2).flatten(1).softmax(1)


@pytest.mark.parametrize(
    "net,shape",
    [(lenet_5_caffe(), (1, 28, 28)), (lenet_300_100(), (1, 28, 28)), (Shortcut(), (3, 9, 9)),
     (nn.Sequential(nn.Conv1d(2, 4, 3), nn.GELU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(12, 2)), (2, 8))],
)  # fmt: skip
def test_predictions_are_those_of_the_graph(monkeypatch, net, shape):
    monkeypatch.setattr(prediction, "PART", 20_000)  # so that a small batch goes in parts
    plain, fast = networks(net, torch.rand(2, *shape))
    for n in (1, 3, 64):
        x = torch.rand(n, *shape)
        with torch.no_grad():
            assert torch.allclose(fast(x), net.eval()(x), rtol=1e-5, atol=1e-6)
        assert torch.equal(fast(x), plain(x)) and fast(x).requires_grad  # with gradients it is the graph itself


def test_a_large_batch_goes_in_parts_of_bounded_activations(monkeypatch):
    fast = networks(lenet_300_100(), torch.rand(2, 1, 28, 28))[1]
    seen = []
    fast.fc2.register_forward_hook(lambda layer, args, output: seen.append(len(output)))
    monkeypatch.setattr(prediction, "PART", 784 * 10)
    with torch.no_grad():
        assert fast(torch.rand(25, 1, 28, 28)).shape == (25, 10)
        assert fast(torch.empty(0, 1, 28, 28)).shape == (0, 10)
    assert seen[-4:] == [10, 10, 5, 0]


@pytest.mark.parametrize("row,example", [(r, e) for r in OPERATIONS if r.per_example for e in examples(r)])
def test_a_row_that_keeps_examples_apart_predicts_the_same_in_parts(monkeypatch, row, example):
    case = Case(row, example)
    fast = PredictionNetwork(case.nodes[:-1], case.tensors)
    x, shapes = case.input(5), [(5, *case.input_shape)]
    shapes += [tuple(result.shape) for result in case.results(case.tensors, x)]
    assert all(keeps_examples_apart(node, shapes) for node in case.nodes[:-1])
    with torch.no_grad():
        whole = fast(x)
        monkeypatch.setattr(prediction, "PART", 1)
        parts = PredictionNetwork(case.nodes[:-1], case.tensors)
        assert torch.allclose(parts(x), whole, rtol=1e-5, atol=1e-6, equal_nan=True) and set(parts._parts.values()) == {
            1
        }


@pytest.mark.parametrize(
    "node,ndim",
    [
        (Node("flatten", (Value(-1),)), 3),
        (Node("flatten", (Value(-1), -3, 2)), 3),
        (Node("index_select", (Value(-1), -2, Named("w"))), 2),
        (Node("linear", (Value(-1), Value(-1))), 2),
        (Node("linear", (Value(-1), Named("w"))), 1),
        (Node("conv2d", (Value(-1), Named("w"))), 3),
        (Node("batch_norm", (Value(-1), None, None, None, None, True, 0.1, 1e-5, False)), 4),
        (Node("matmul", (Value(-1), Value(-1))), 3),
    ],
)
def test_arguments_under_which_examples_see_each_other_are_known(node, ndim):
    assert not keeps_examples_apart(node, [(2,) * ndim])


class Alike(nn.Module):
    """How alike the examples of a batch are."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        z = self.layer(x)
        return F.linear(z, z)


@pytest.mark.parametrize(
    "net", [nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.ReLU()), Alike()]
)
def test_statistics_of_a_batch_are_those_of_the_whole(monkeypatch, net):
    plain, fast = networks(net, torch.rand(2, 4))
    monkeypatch.setattr(prediction, "PART", 64)
    x = torch.rand(30, 4) * torch.linspace(0, 3, 30)[:, None]
    with torch.no_grad():
        assert torch.allclose(fast(x), plain(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("forward", [lambda x: x - x.mean(0), lambda x: x.flatten(0, 1).softmax(0).view(x.shape)])
def test_examples_that_see_each_other_stay_together(monkeypatch, forward):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return forward(self.layer(x))

    monkeypatch.setattr(prediction, "PART", 4)
    net = Net()
    fast = networks(net, torch.rand(2, 4))[1]
    x = torch.rand(6, 4)
    with torch.no_grad():
        assert torch.allclose(fast(x), net(x), atol=1e-6)


def test_activations_come_behind_pooling_where_nothing_else_reads_them():
    def ops(nodes):
        return [node.op for node in arranged(nodes)]

    pool = ("max_pool2d", (2, 2), (2, 2))
    nodes = (Node("relu", (Value(-1),)), Node(pool[0], (Value(0), *pool[1:])))
    assert ops(nodes) == ["max_pool2d", "relu"]
    assert arranged(nodes)[1].args == (Value(0),)
    assert ops((Node("gelu", (Value(-1),)), nodes[1])) == ["gelu", "max_pool2d"]  # not monotone
    read_twice = (*nodes, Node("max_pool2d", (Value(0), (2, 2))), Node("add", (Value(1), Value(2))))
    assert ops(read_twice) == [node.op for node in read_twice]


@given(st.integers(1, 5), st.integers(2, 40), st.integers(2, 40))
def test_maxima_of_neighbours_are_pooling(channels, height, width):
    for scale in (1, 64):  # below and above the size from which slices are taken
        x = torch.randn(scale, channels, height, width)
        assert torch.equal(pooled_by_two(x), F.max_pool2d(x, 2))


def test_pooling_lets_nan_through():
    x = torch.rand(2, 2, 200, 200)
    x[0, 0, 3, 3] = torch.nan
    assert np.array_equal(pooled_by_two(x), F.max_pool2d(x, 2), equal_nan=True)


def test_inputs_of_another_precision_are_told_what_to_do():
    graph = read_graph(nn.Sequential(nn.Linear(3, 2)), torch.zeros(2, 3))
    net = PredictionNetwork(graph.nodes, graph.tensors, graph.buffers)
    with pytest.raises(UnsupportedNetworkError, match=r"takes float32, not torch\.float64: give x\.float\(\)"):
        net(torch.zeros(2, 3, dtype=torch.float64))


def test_it_is_copied_pickled_and_moved_like_any_module():
    fast = networks(lenet_5_caffe(), torch.rand(2, 1, 28, 28))[1]
    x = torch.rand(4, 1, 28, 28)
    with torch.no_grad():
        expected = fast(x)
        assert torch.equal(copy.deepcopy(fast)(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(fast))(x), expected)
        assert torch.allclose(fast.double()(x.double()).float(), expected, atol=1e-5)


def test_a_bayesian_network_of_it_draws_weights():
    torch.manual_seed(0)
    fast = networks(lenet_300_100(), torch.rand(2, 1, 28, 28))[1]
    x, y = torch.rand(8, 1, 28, 28), torch.randint(10, (8,))
    with torch.no_grad():
        fast(x)  # the function exists before the layers are replaced
    model = pyro_bc.BayesianNetwork(fast, pyro_bc.GroupNormalJeffreys(), num_data=8)
    guide = pyro_bc.FactorizedGuide(model)
    with torch.no_grad():
        first, second = (elbo_terms(model, guide, x, y).outputs for _ in range(2))
    assert not torch.allclose(first, second, atol=1e-4)


def test_trained_weights_are_used():
    fast = networks(lenet_300_100(), torch.rand(2, 1, 28, 28))[1]
    x = torch.rand(4, 1, 28, 28)
    with torch.no_grad():
        before = fast(x)
        fast.fc3.bias += 1
        assert torch.allclose(fast(x), before + 1, atol=1e-5)
        fast.fc3 = nn.Linear(100, 2)
        assert fast(x).shape == (4, 2)


def test_selections_become_zeros():
    nodes = (
        Node("flatten", (Value(-1), 1)),
        Node("index_select", (Value(0), -1, Named("kept"))),
        Node("linear", (Value(1), Named("fc.weight"), Named("fc.bias"))),
    )
    tensors = {"kept": torch.tensor([0, 3, 4]), "fc.weight": torch.randn(2, 3), "fc.bias": torch.randn(2)}
    net = GraphNetwork(nodes, tensors)
    x = torch.rand(5, 2, 3)
    found = with_whole_channels(net, x)
    assert [node.op for node in found._nodes] == ["flatten", "linear"] and list(found.state_dict()) == list(tensors)[1:]
    assert torch.allclose(found(x), net(x)) and torch.equal(net.fc.weight, tensors["fc.weight"])


def test_selections_of_a_weight_used_twice_stay():
    select = Node("index_select", (Value(-1), 1, Named("kept")))
    linear = (Named("fc.weight"), None)
    nodes = (select, Node("linear", (Value(0), *linear)), Node("linear", (Value(1), *linear)))
    net = GraphNetwork(nodes, {"kept": torch.tensor([0, 3]), "fc.weight": torch.randn(2, 2)})
    x = torch.rand(5, 4)
    found = with_whole_channels(net, x)
    assert [node.op for node in found._nodes] == [node.op for node in nodes] and torch.equal(found(x), net(x))
