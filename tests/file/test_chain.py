"""A chain is read from a graph and gives the same graph back; what is none is none."""

import pytest
import torch
from torch import nn

from pyro_bc.app.networks import lenet_5_caffe, lenet_300_100
from pyro_bc.file.chain import KNOWN, Chain, Layer, find_chain, prune
from pyro_bc.graph.module import GraphNetwork
from pyro_bc.graph.nodes import is_layer
from pyro_bc.graph.read import read_graph


def chain_of(net: nn.Module, *input_shape: int):
    graph = read_graph(net, torch.rand(2, *input_shape))
    shapes = {name: tuple(tensor.shape) for name, tensor in graph.tensors.items()}
    dense = {node.args[1].name: shapes[node.args[1].name][:2] for node in graph.nodes if is_layer(node)}
    return graph, find_chain(graph.nodes, shapes, dense, input_shape)


@pytest.mark.parametrize(
    ("net", "shape", "known"),
    [(lenet_300_100(), (1, 28, 28), 0), (lenet_5_caffe(), (1, 28, 28), 1), (lenet_300_100((1, 8, 8)), (1, 8, 8), 2)],
)
def test_the_known_chains_are_the_shipped_networks(net, shape, known):
    _, found = chain_of(net, *shape)
    assert found is not None and found[0] == KNOWN[known]
    assert prune(*found).dense_parameters == sum(p.numel() for p in net.parameters())


def test_a_pruned_chain_computes_what_its_graph_says():
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 1, bias=False), nn.ReLU(),
        nn.Flatten(), nn.Linear(16, 5, bias=False), nn.SiLU(), nn.Linear(5, 2),
    )  # fmt: skip
    graph, found = chain_of(net, 3, 8, 8)
    assert found is not None
    whole = prune(*found)
    tensors = {f"tensor{i}": tensor for i, tensor in enumerate(graph.tensors.values())}
    x = torch.rand(4, 3, 8, 8)
    assert torch.equal(GraphNetwork(whole.nodes, tensors)(x), net.eval()(x))
    smaller = prune(found[0], (5, 2, 3, 2))
    assert list(smaller.shapes.values()) == [(5, 3, 3, 3), (5,), (2, 5, 1, 1), (3, 8), (2, 3), (2,)]
    assert smaller.grids == {"tensor0": (3, 3), "tensor2": (1, 1), "tensor3": (2, 2), "tensor4": ()}
    assert smaller.dense_shapes == whole.dense_shapes and smaller.dense_parameters == whole.dense_parameters
    GraphNetwork(smaller.nodes, {name: torch.zeros(shape) for name, shape in smaller.shapes.items()})(x)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return x + self.layer(x)


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (Residual(), (4,)),
        (nn.Sequential(nn.Conv2d(1, 2, (3, 1)), nn.Flatten(), nn.Linear(24, 2)), (1, 6, 4 - 1)),
        (nn.Sequential(nn.Conv2d(1, 2, 3, dilation=2), nn.Flatten(), nn.Linear(8, 2)), (1, 6, 6)),
        (nn.Sequential(nn.Conv2d(2, 2, 3, groups=2), nn.Flatten(), nn.Linear(32, 2)), (2, 6, 6)),
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)), (3,)),
        (nn.Sequential(nn.Linear(3, 3), nn.LeakyReLU(), nn.Linear(3, 2)), (3,)),
    ],
)
def test_other_networks_are_no_chains(net, shape):
    assert chain_of(net, *shape)[1] is None


@pytest.mark.parametrize("widths", [(3,), (3, 2, 1), (9, 2), (0, 2)])
def test_impossible_widths_are_refused(widths):
    with pytest.raises(ValueError, match="widths"):
        prune(Chain((4,), (Layer(8), 0, Layer(2))), widths)


@pytest.mark.parametrize(
    "chain",
    [
        Chain((1, 8, 8), (Layer(4),)),  # not flattened
        Chain((4,), (Layer(4, kernel=3),)),  # no picture
        Chain((1, 2, 2), (Layer(4, kernel=3),)),  # smaller than the kernel
    ],
)
def test_layers_that_do_not_fit_their_input_are_refused(chain):
    with pytest.raises(ValueError, match=r"fit|empty"):
        prune(chain, (2,))
