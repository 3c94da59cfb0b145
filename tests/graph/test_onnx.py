"""ONNX Runtime computes what PyTorch does; int8 is close; what cannot be exported is one clear error."""

import builtins
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from compression.test_compress import Branches, fitted
from torch import nn

import pyro_bc
from pyro_bc.app.datasets import load_dataset
from pyro_bc.errors import ExportError
from pyro_bc.graph.module import GraphNetwork
from pyro_bc.graph.nodes import Named, Node, Value
from pyro_bc.graph.onnx import OnnxNetwork, to_int8, to_onnx, without_selections
from pyro_bc.graph.read import read_graph


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
    found = without_selections(net, *x)
    assert [node.op for node in found._nodes] == ["linear"]
    assert torch.allclose(found(*x), net(*x))
    constant = (
        replace(nodes[0], args=(Named("table"), *nodes[0].args[1:])),
        nodes[1],
        Node("add", (Value(1), Value(-1))),
    )
    net = GraphNetwork(constant, {**tensors, "table": torch.randn(4, 7)}, frozenset({"chosen", "table"}))
    assert torch.allclose(without_selections(net, x[0][:, :3])(x[0][:, :3]), net(x[0][:, :3]))  # of a constant it stays


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


def test_int8_stays_near_and_is_made_of_bytes(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)).eval()
    x = torch.rand(256, 1, 8, 8)
    to_onnx(net, tmp_path / "net.onnx", (1, 8, 8))
    to_int8(tmp_path / "net.onnx", tmp_path / "int8.onnx", x[:128].split(32))
    with torch.no_grad():
        expected, found = net(x), OnnxNetwork(tmp_path / "int8.onnx")(x)
    relative = (expected - found).std() / expected.std()
    assert 1e-4 < relative < 0.2
    import onnx

    model = onnx.load(tmp_path / "int8.onnx")
    weights = [t for t in model.graph.initializer if len(t.dims) > 1]
    assert len(weights) == 2 and {t.data_type for t in weights} == {onnx.TensorProto.INT8}


class Masked(nn.Module):
    """Attention that looks at no later place, beside a second input, with a size that no inference of shapes tells."""

    def __init__(self):
        super().__init__()
        self.read, self.head = nn.Linear(6, 8), nn.Linear(9, 3)

    def forward(self, x, y):
        h = self.read(x)
        weights = torch.where(torch.ones(5, 5, dtype=torch.bool).tril(), h @ h.mT, float("-inf")).softmax(-1)
        return self.head(torch.cat([(weights @ h).mean(1), y], 1))


def test_int8_of_several_inputs_and_of_what_is_infinite_stays_near(tmp_path):
    torch.manual_seed(0)
    net, x = Masked().eval(), (torch.rand(64, 5, 6), torch.rand(64, 1))
    model = pyro_bc.BayesianNetwork(net, pyro_bc.StandardNormal(), num_data=64)
    small = pyro_bc.compress(model, pyro_bc.CurvatureGuide(model, [(x, None)], progress=False), nats_per_bit=1e-5)
    to_onnx(small, tmp_path / "net.onnx")
    to_int8(tmp_path / "net.onnx", tmp_path / "int8.onnx", [x])
    with torch.no_grad():
        expected, found = small.network()(*x), OnnxNetwork(tmp_path / "int8.onnx")(*x)
    assert (expected - found).abs().max() < 0.1 * expected.abs().max()


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


def test_the_command_exports_and_measures_all_three(tmp_path):
    data = load_dataset("digits")
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))
    model = pyro_bc.BayesianNetwork(net, num_data=len(data.train_x))
    guide = pyro_bc.FactorizedGuide(model)
    batches = pyro_bc.data.Batches(data.train_x, data.train_y)
    pyro_bc.fit(model, guide, batches, epochs=30, learning_rate=1e-2, kl_weight=0.02, progress=False)
    file = tmp_path / "net.pbc"
    pyro_bc.compress(model, guide).save(file)

    def command(*args):
        arguments = [sys.executable, "-m", "pyro_bc", "export", str(file), *map(str, args)]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=300)

    refused = command("--onnx", tmp_path / "none" / "net.onnx")
    assert refused.returncode == 2 and "written: No such file" in refused.stderr and refused.stderr.count("\n") == 1
    refused = command("--onnx", tmp_path / "net.onnx", "--int8", tmp_path / "int8.onnx")
    assert refused.returncode == 2 and "--int8 needs --data" in refused.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["net.pbc"]
    done = command("--onnx", tmp_path / "net.onnx", "--int8", tmp_path / "int8.onnx", "--data", "digits", "--json")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    result = json.loads(done.stdout)
    assert result["error_percent"]["pytorch"] == result["error_percent"]["onnx"] < 15
    assert abs(result["error_percent"]["int8"] - result["error_percent"]["onnx"]) < 3
    assert result["bytes"] == {
        "onnx": (tmp_path / "net.onnx").stat().st_size,
        "int8": (tmp_path / "int8.onnx").stat().st_size,
    }
    assert result["difference"] <= 1e-5 * 30 and result["n"] == 360


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
