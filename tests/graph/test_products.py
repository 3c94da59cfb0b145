"""However a network multiplies with a parameter, its graph has a layer, which computes the same."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_bc.graph.module import GraphNetwork
from pyro_bc.graph.nodes import Graph, Named, Node, Value, is_layer, layer_name
from pyro_bc.graph.products import products_as_layers
from pyro_bc.graph.read import read_graph


class Product(nn.Module):
    """One product with a matrix of its own, and a layer behind it."""

    def __init__(self, compute):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("known", torch.randn(4, 4))
        self.fc = nn.Linear(4, 3)
        self.compute = compute

    def forward(self, x):
        return self.fc(self.compute(self, x))


AS_IT_IS = {
    "linear": lambda net, x: F.linear(x, net.w),
    "matmul of T": lambda net, x: x @ net.w.T,
    "matmul of t()": lambda net, x: torch.matmul(x, net.w.t()),
    "matmul of transpose": lambda net, x: x @ net.w.transpose(0, 1),
    "both": lambda net, x: (x @ net.w.T).tanh() @ net.w.T,
}
TURNED = {
    "matmul": lambda net, x: x @ net.w,
    "twice": lambda net, x: (x @ net.w).tanh() @ net.w,
    "linear of T": lambda net, x: F.linear(x, net.w.T),
}
NONE = {
    "a sum with it": lambda net, x: x + net.w.sum(0),
    "the left factor": lambda net, x: (net.w @ x.unsqueeze(-1)).squeeze(-1),
    "two ways at once": lambda net, x: (x @ net.w) + net.w.sum(0),
    "what no training changes": lambda net, x: x @ net.known,
}


@pytest.mark.parametrize("way", [*AS_IT_IS, *TURNED])
def test_a_product_is_a_layer(way):
    net = Product((AS_IT_IS | TURNED)[way])
    x = torch.randn(5, 4)
    graph = read_graph(net, x)
    assert {layer_name(node) for node in graph.nodes if is_layer(node)} == {"w", "fc"}
    assert graph.origins == {"w.weight": "w"} and graph.turned == ({"w.weight"} if way in TURNED else set())
    found = graph.tensors["w.weight"]
    assert torch.equal(found, net.w.T if way in TURNED else net.w)
    again = GraphNetwork(graph.nodes, graph.tensors, graph.buffers)
    assert torch.allclose(again(x), net(x), atol=1e-5) and isinstance(again.w, nn.Linear)


@pytest.mark.parametrize("way", NONE)
def test_other_uses_of_a_matrix_are_none(way):
    net = Product(NONE[way])
    x = torch.randn(5, 4)
    graph = read_graph(net, x)
    assert {layer_name(node) for node in graph.nodes if is_layer(node)} == {"fc"} and not graph.turned


def test_a_table_is_a_layer_whose_columns_are_its_outputs():
    net = nn.Sequential(nn.Embedding(7, 4, padding_idx=2), nn.Flatten(), nn.Linear(12, 2))
    graph = read_graph(net, torch.zeros(2, 3, dtype=torch.long))
    node = graph.nodes[0]
    assert (node.op, node.args[2:], layer_name(node)) == ("lookup", (None, 2), "0")


X, W, BIAS = Value(-1), Named("w"), Named("b")


@pytest.mark.parametrize(
    ("node", "turned"),
    [
        (Node("einsum", ("bi,oi->bo", (X, W))), False),
        (Node("einsum", ("bi, io -> bo", (X, W))), True),
        (Node("mm", (X, W)), True),
        (Node("addmm", (BIAS, X, W)), True),
        (Node("einsum", ("bi,ii->bi", (X, W))), None),
        (Node("einsum", ("bi,oi->ob", (X, W))), None),
        (Node("einsum", ("bi,oi->bo", (W, X))), None),
        (Node("addmm", (W, X, W)), None),
        (Node("addmm", (BIAS, X, W), (("beta", 2),)), None),
    ],
    ids=str,
)
def test_sums_over_indices_and_products_that_add_are_layers_where_they_compute_what_one_does(node, turned):
    weight = torch.randn(4, 4)
    nodes = products_as_layers(Graph((node,), {"w": weight, "b": torch.zeros(4)}, (("s", 4), ("s", 4)))).nodes
    bias = (BIAS,) if "b" in node.named() else ()
    assert nodes == ((node,) if turned is None else (Node("linear", (X, W, *bias)),))
