"""ONNX Runtime computes what PyTorch does; what cannot be exported is one clear error."""

import builtins
from dataclasses import replace

import pytest
import torch
from compression.test_compress import Branches, fitted
from torch import nn

import pyro_bc
from pyro_bc.errors import ExportError
from pyro_bc.graph.module import GraphNetwork
from pyro_bc.graph.nodes import Named, Node, Value
from pyro_bc.graph.onnx import OnnxNetwork, to_onnx
from pyro_bc.graph.read import read_graph
from pyro_bc.graph.whole_channels import with_whole_channels


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))


def test_what_is_selected_of_a_second_input_is_multiplied_by_zeros():
    nodes = (Node("index_select", (Value(-2), -1, Named("chosen"))), Node("linear", (Value(0), Named("fc.weight"))))
    tensors = {"chosen": torch.tensor([1, 6]), "fc.weight": torch.randn(3, 2)}
    net = GraphNetwork(nodes, tensors, frozenset({"chosen"}), ("a", "b"))
    x = torch.randn(4, 5), torch.randn(4, 7)
    found = with_whole_channels(net, *x)
    assert [node.op for node in found._nodes] == ["linear"]
    assert torch.allclose(found(*x), net(*x))
    constant = (
        replace(nodes[0], args=(Named("table"), *nodes[0].args[1:])),
        nodes[1],
        Node("add", (Value(1), Value(-1))),
    )
    net = GraphNetwork(constant, {**tensors, "table": torch.randn(4, 7)}, frozenset({"chosen", "table"}))
    assert torch.allclose(
        with_whole_channels(net, x[0][:, :3])(x[0][:, :3]), net(x[0][:, :3])
    )  # of a constant it stays


def test_attention_with_a_bias_of_the_examples_is_the_same_in_onnx(tmp_path):
    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(1, 2, 5, 5))

        def forward(self, x):
            bias = torch.ones(1, 1, 5, 5).tril().expand(x.shape[0], 1, 5, 5) + self.table
            x = x.transpose(1, 2)
            heads = nn.functional.scaled_dot_product_attention(x, x, x, bias)
            return heads.transpose(1, 2).reshape(x.shape[0], 5, 8)

    graph = read_graph(Biased(), torch.randn(2, 5, 2, 4))
    net = GraphNetwork(graph.nodes, graph.tensors, graph.buffers)
    assert to_onnx(net, tmp_path / "net.onnx", (5, 2, 4)) < 1e-6


@pytest.mark.parametrize(
    "make,shape",
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.GELU(), nn.Linear(7, 3)), (1, 3, 4)),
        (Branches, (1, 9, 9)),
        (Tokens, (5, 16)),
    ],
)
def test_onnx_runtime_computes_the_compressed_network(tmp_path, make, shape):
    torch.manual_seed(0)
    small = pyro_bc.compress(*fitted(make(), inputs=shape, log_variance=-9.0))
    net = small.network()
    difference = to_onnx(net, tmp_path / "net.onnx", shape)
    exported = OnnxNetwork(tmp_path / "net.onnx", threads=1)
    for n in (1, 9):
        x = torch.rand(n, *shape)
        expected = net(x).detach()
        assert torch.allclose(exported(x), expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))
    assert 0 <= difference < 1e-4 and sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx"]


def test_a_difference_is_an_error_and_writes_nothing(tmp_path):
    class Random(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    with pytest.raises(ExportError, match="outputs differ"):
        to_onnx(Random(), tmp_path / "net.onnx", (3,))
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_the_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "onnxruntime":
            raise ImportError(name, name="onnxruntime")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ExportError, match=r"onnxruntime is not installed; pip install 'pyro-bc\[onnx\]'"):
        to_onnx(nn.Linear(2, 2), tmp_path / "net.onnx", (2,))


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(2, divisor_override=3),
        nn.AvgPool2d(3, 2, padding=1, divisor_override=5),
        nn.AvgPool2d(1, 1, 0, divisor_override=2),
    ],
    ids=["plain", "padded", "of one"],
)
def test_a_pool_with_a_divisor_of_its_own_is_the_same_in_onnx(tmp_path, pool):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), pool, nn.Flatten(), nn.LazyLinear(3)).eval()
    x = torch.rand(2, 1, 10, 10)
    net(x)
    graph = read_graph(net, x)
    to_onnx(GraphNetwork(graph.nodes, graph.tensors, graph.buffers), tmp_path / "net.onnx", (1, 10, 10))
    found = OnnxNetwork(tmp_path / "net.onnx")(x)
    assert torch.allclose(found, net(x), atol=1e-5)
