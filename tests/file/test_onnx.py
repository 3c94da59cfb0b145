"""The int8 ONNX holds a file's weights to the last bit, computes nearly the same, and packs without any difference."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import pyro_bc
from pyro_bc.app.cli import main
from pyro_bc.app.datasets import load_dataset
from pyro_bc.app.normalised import Normalised, Scales
from pyro_bc.errors import ExportError
from pyro_bc.file.onnx import OnnxNetwork, to_int8, to_onnx
from pyro_bc.file.packed_onnx import pack

TESTS = Path(__file__).parents[1]
FILES = [TESTS / "golden" / f"{name}.pbc" for name in (
    "2-lenet-300-100-digits", "2-regression", "2-transformer", "3-chain", "3-large-codes",
)]  # fmt: skip
FILES.append(TESTS.parent / "analyses" / "results" / "records" / "lenet-300-100-small.pbc")


def computed(file):
    """What an ONNX file computes of constants alone for what reads its input, as ONNX Runtime computes it."""
    model = onnx.load(file)
    made = {name for node in model.graph.node for name in node.output}
    depends = {own.name for own in model.graph.input}
    read = {}
    for node in model.graph.node:
        if depends.intersection(node.input):
            depends |= set(node.output)
            read |= dict.fromkeys(name for name in node.input if name in made)
    shapes = {own.name: [1, *(d.dim_value for d in own.type.tensor_type.shape.dim[1:])] for own in model.graph.input}
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in read if name not in depends)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})


def operations(file, folder):
    """What ONNX Runtime makes of a file's operations."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_weights_in_int8_onnx_are_the_file_s_bit_for_bit(tmp_path, file):
    small = pyro_bc.read(file)
    x = torch.rand(32, *small.input_shape)
    kinds = to_int8(small, tmp_path / "int8.onnx", [x])
    net = small.network()
    weights = {name: tensor for name, tensor in net.state_dict().items() if name in kinds}
    assert set(kinds) >= {f"{layer.name}.weight" for layer in small.layers}
    found = computed(tmp_path / "int8.onnx")
    for name, weight in weights.items():
        weight = weight.numpy()
        turned = [weight, weight.T] if weight.ndim == 2 else [weight]
        assert any(np.array_equal(own, other) for own in found for other in turned if own.shape == other.shape), name
    for layer in small.layers:
        assert (kinds[f"{layer.name}.weight"] == "int8") == (layer.weight.bits <= 8 and not layer.weight.grid)
    with torch.no_grad():
        expected, int8 = net(x), OnnxNetwork(tmp_path / "int8.onnx", threads=1)(x)
    assert (expected - int8).abs().max() < 0.15 * expected.abs().max()
    size = pack(tmp_path / "int8.onnx", tmp_path / "packed.onnx")
    assert size == (tmp_path / "packed.onnx").stat().st_size < (tmp_path / "int8.onnx").stat().st_size
    assert torch.equal(OnnxNetwork(tmp_path / "packed.onnx", threads=1)(x), int8)
    assert operations(tmp_path / "packed.onnx", tmp_path) == operations(tmp_path / "int8.onnx", tmp_path)


def test_what_inputs_are_normalised_by_is_no_weight(tmp_path):
    torch.manual_seed(0)
    x = torch.rand(64, 1, 8, 8)
    net = Normalised(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)), Scales.of(x))
    model = pyro_bc.BayesianNetwork(net, pyro_bc.StandardNormal(), num_data=64)
    small = pyro_bc.compress(model, pyro_bc.CurvatureGuide(model, [(x, None)], progress=False))
    kinds = to_int8(small, tmp_path / "int8.onnx", [x])
    assert set(kinds) == {f"{layer.name}.weight" for layer in small.layers}


def test_rows_with_steps_of_their_own_are_channels(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 20), nn.ReLU(), nn.Linear(20, 5))
    x = torch.rand(128, 1, 8, 8)
    model = pyro_bc.BayesianNetwork(net, pyro_bc.StandardNormal(), num_data=128)
    small = pyro_bc.compress(model, pyro_bc.CurvatureGuide(model, [(x, None)], progress=False), nats_per_bit=1e-8)
    assert all(layer.weight.rows is not None for layer in small.layers)
    kinds = to_int8(small, tmp_path / "int8.onnx", [x])
    weights = small.network().state_dict()
    found = {own.shape: own for own in computed(tmp_path / "int8.onnx")}
    for name, kind in kinds.items():
        weight = weights[name].numpy()
        if kind == "float32":
            assert np.array_equal(found[weight.shape], weight)
        else:  # a step that is no power of two is rounded to float32 before it is multiplied with
            np.testing.assert_array_max_ulp(found[weight.shape], weight, 1)
    used = operations(tmp_path / "int8.onnx", tmp_path)
    assert used["QLinearConv"] + used["QGemm"] == list(kinds.values()).count("int8") >= 2


@pytest.mark.parametrize("bits", [7, 8])
def test_products_of_extreme_codes_are_exact(tmp_path, bits):
    low = -(1 << bits - 1)
    small = pyro_bc.read(TESTS / "golden" / "2-regression.pbc")
    name = small.layers[0].weight
    codes = torch.full_like(name.codes, low)
    codes[0] = -1 - low
    tensors = {key: own.with_codes(codes) if own is name else own for key, own in small.tensors.items()}
    small = replace(small, tensors=tensors)
    x = torch.ones(64, *small.input_shape)
    x[1:] = torch.rand(63, *small.input_shape)
    to_int8(small, tmp_path / "int8.onnx", [x])
    tensors = onnx.load(tmp_path / "int8.onnx").graph.initializer
    kinds = {own.data_type for own in tensors if sorted(own.dims) == sorted(codes.shape)}
    assert kinds == {onnx.TensorProto.INT8 if bits == 7 else onnx.TensorProto.UINT8}
    with torch.no_grad():
        expected = small.network()(x)
    assert (OnnxNetwork(tmp_path / "int8.onnx", threads=1)(x) - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.int32, np.int64])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
def test_packed_integers_are_the_same_integers(tmp_path, kind, density):
    generator = np.random.default_rng(0)
    limits = np.iinfo(np.int8 if kind == np.uint8 else kind)
    numbers = generator.integers(max(limits.min, -5000), min(limits.max, 5000), (7, 41, 11), endpoint=True)
    numbers *= generator.random(numbers.shape) < density
    numbers = (numbers + 128 * (kind == np.uint8)).astype(kind)
    numbers.flat[-1:] = numbers.flat[:1]
    read = onnx.helper.make_node("Cast", ["codes"], ["out"], to=onnx.TensorProto.INT64)
    output = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.INT64, numbers.shape)
    tensor = onnx.numpy_helper.from_array(numbers, "codes")
    graph = onnx.helper.make_graph([read], "g", [], [output], [tensor])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "plain.onnx")
    pack(tmp_path / "plain.onnx", tmp_path / "packed.onnx")
    (found,) = onnxruntime.InferenceSession(str(tmp_path / "packed.onnx")).run(None, {})
    assert np.array_equal(found, numbers.astype(np.int64))
    assert (tmp_path / "packed.onnx").stat().st_size < (tmp_path / "plain.onnx").stat().st_size + 1100


def test_what_cannot_be_packed_or_calibrated_is_one_error(tmp_path):
    graph = onnx.helper.make_graph([], "g", [], [], [])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), tmp_path / "old.onnx")
    with pytest.raises(ExportError, match="opset 17"):
        pack(tmp_path / "old.onnx", tmp_path / "packed.onnx")
    with pytest.raises(ExportError, match="inputs to calibrate on"):
        to_int8(pyro_bc.read(FILES[0]), tmp_path / "int8.onnx", [])
    assert [path.name for path in tmp_path.iterdir()] == ["old.onnx"]


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
    to_int8(tmp_path / "net.onnx", tmp_path / "again.onnx", [x])
    to_int8(small, tmp_path / "int8.onnx", [x])
    with torch.no_grad():
        expected = small.network()(*x)
    for name in ("int8.onnx", "again.onnx"):
        assert (expected - OnnxNetwork(tmp_path / name)(*x)).abs().max() < 0.1 * expected.abs().max()


def test_the_command_exports_and_measures_all_of_them(tmp_path, capsys):
    data = load_dataset("digits")
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))
    model = pyro_bc.BayesianNetwork(net, num_data=len(data.train_x))
    guide = pyro_bc.FactorizedGuide(model)
    batches = pyro_bc.data.Batches(data.train_x, data.train_y)
    pyro_bc.fit(model, guide, batches, epochs=30, learning_rate=1e-2, kl_weight=0.02, progress=False)
    file = tmp_path / "net.pbc"
    pyro_bc.compress(model, guide).save(file)

    def refused(*args):
        assert main(["export", str(file), *map(str, args)]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    assert "written: No such file" in refused("--onnx", tmp_path / "none" / "net.onnx")
    assert "--int8 needs --data" in refused("--onnx", tmp_path / "net.onnx", "--int8", tmp_path / "int8.onnx")
    assert "--packed needs --int8" in refused("--onnx", tmp_path / "net.onnx", "--packed", tmp_path / "packed.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["net.pbc"]
    names = {key: tmp_path / f"{key}.onnx" for key in ("onnx", "int8", "packed")}
    written = [word for key, path in names.items() for word in (f"--{key}", path)]
    words = [sys.executable, "-m", "pyro_bc", "export", file, *written, "--data", "digits", "--json"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    result = json.loads(done.stdout)
    assert result["error_percent"]["pytorch"] == result["error_percent"]["onnx"] < 15
    assert abs(result["error_percent"]["int8"] - result["error_percent"]["onnx"]) < 3
    assert result["bytes"] == {key: path.stat().st_size for key, path in names.items()}
    assert result["bytes"]["packed"] < result["bytes"]["int8"] and result["float32"] == []
    assert result["difference"] <= 1e-5 * 30 and result["n"] == 360
