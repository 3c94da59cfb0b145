"""Every layer has tensors of its own name; what is shared stays whole, and what is read computes what was given."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_bc.graph.layers_alone import shared_layers
from pyro_bc.graph.module import GraphNetwork
from pyro_bc.graph.nodes import is_layer, layer_name
from pyro_bc.graph.read import read_graph


class Fn(nn.Module):
    """A function of the input and of these tensors and modules."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, torch.Tensor) else part)

    def forward(self, x):
        return self.function(self, x)


def matrix(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


#: network, names of the layers that are read, layers that are shared.
NETWORKS = {
    "a weight by another name": (
        Fn(lambda s, x: F.linear(s.l(x).relu(), s.proj), l=nn.Linear(6, 8), proj=matrix(3, 8)), ["l", "proj"], set(),
    ),
    "a weight and a bias by other names": (
        Fn(lambda s, x: F.linear(x, s.w, s.b), w=matrix(3, 6), b=matrix(3)), ["w"], set(),
    ),
    "one bias for two layers": (
        Fn(lambda s, x: F.linear(x, s.v, s.b) * F.linear(x, s.w, s.b), v=matrix(3, 6), w=matrix(3, 6), b=matrix(3)),
        ["v", "w"], set(),
    ),
    "one weight with two biases": (
        Fn(lambda s, x: F.linear(s.a(x), s.a.weight, s.b), a=nn.Linear(6, 6), b=matrix(6)), ["a"], set(),
    ),
    "one weight with its bias and without": (
        Fn(lambda s, x: F.linear(s.a(x), s.a.weight), a=nn.Linear(6, 6)), ["a"], set(),
    ),
    "a tied decoder": (
        Fn(lambda s, x: F.linear(s.a(x).tanh(), s.a.weight.t(), s.b), a=nn.Linear(6, 4), b=matrix(6)), ["a"], {"a"},
    ),
    "a weight that is transformed": (
        Fn(lambda s, x: s.b(F.linear(x, s.a.weight.abs())), a=nn.Linear(6, 4), b=nn.Linear(4, 2)), ["b"], set(),
    ),
    "convolutions with one bias": (
        Fn(
            lambda s, x: F.conv1d(F.conv1d(x[:, None], s.v, s.b), s.w, s.b).flatten(1),
            v=matrix(3, 1, 2), w=matrix(3, 3, 2), b=matrix(3),
        ),
        ["v", "w"], set(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("net,layers,shared", NETWORKS.values(), ids=NETWORKS)
def test_layers_have_tensors_of_their_own_names(net, layers, shared):
    x = torch.randn(5, 6)
    graph = read_graph(net, x)
    assert list(dict.fromkeys(layer_name(node) for node in graph.nodes if is_layer(node))) == layers
    for node in filter(is_layer, graph.nodes):
        assert node.args[1].name == f"{layer_name(node)}.weight"
        assert len(node.args) < 3 or node.args[2] is None or node.args[2].name == f"{layer_name(node)}.bias"
    assert shared_layers(graph) == shared
    assert torch.allclose(GraphNetwork(graph.nodes, graph.tensors, graph.buffers)(x), net(x), atol=1e-5)
    assert len(graph.shapes) == len(graph.nodes) + 1
    results = list(GraphNetwork(graph.nodes, graph.tensors, graph.buffers).results(graph.nodes, x))
    for index, result in enumerate(results):
        shape = graph.shape(index)
        assert all(size == own or isinstance(own, str) for size, own in zip(result.shape, shape, strict=True))
