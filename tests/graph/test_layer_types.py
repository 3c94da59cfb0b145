"""The contract of a layer type: a row agrees with its module, and every part of the way honours it."""

import pyro
import pytest
import torch
from helpers import set_up
from torch import nn

import pyro_bc
from pyro_bc import GroupHorseshoe, GroupNormalJeffreys, LearnedCode, LogUniform
from pyro_bc.graph.layer_types import LAYER_TYPES, LINEAR, layer_type
from pyro_bc.graph.module import GraphNetwork
from pyro_bc.graph.read import read_graph
from pyro_bc.inference.elbo import elbo_terms
from pyro_bc.inference.straight_through import settle_codes_
from pyro_bc.model.layers import BAYESIAN

TYPES = pytest.mark.parametrize("kind", LAYER_TYPES, ids=lambda kind: kind.op)


def module_of(kind, inputs=5, outputs=6):
    return kind.module(inputs, outputs, *([3] * bool(kind.spatial)))


def input_of(kind, inputs=5, batch=4):
    if kind.is_lookup:
        return torch.randint(inputs, (batch, 7))
    size = {"conv3d": 5, "conv_transpose3d": 2}.get(kind.op, 7)
    return torch.randn(batch, inputs, *[size] * kind.spatial)


def network(kind):
    """Two layers of the type behind each other, or a linear one behind a table, and a linear one."""
    first, second = module_of(kind), nn.Linear(6, 4) if kind.is_lookup else module_of(kind, 6, 4)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))


@TYPES
def test_a_row_agrees_with_its_module(kind):
    module, x = module_of(kind), input_of(kind)
    assert torch.allclose(kind.function(x, module.weight, getattr(module, "bias", None)), module(x), atol=1e-5)
    shape = module.weight.shape
    assert kind.dense_shape(shape) == (6, 5) and kind.fan_in(shape) == 5 * 3**kind.spatial
    assert kind.by_output(module.weight).shape == (6, 5, *[3] * kind.spatial)
    assert layer_type(kind.op) is kind and BAYESIAN[kind.module].layer_type is kind
    groups = 6 if kind.scales_outputs else 5
    scales = torch.rand(groups)
    scaled = kind.over_groups(scales, shape) * module.weight
    over = [-1, *[1] * kind.spatial]
    expected = kind.function(x, module.weight) * scales.reshape(over) if kind.scales_outputs else None
    expected = kind.function(x * scales, module.weight) if expected is None else expected
    assert torch.allclose(kind.function(x, scaled), expected, atol=1e-4)


@TYPES
def test_a_graph_of_it_computes_what_the_module_does(kind):
    net = network(kind)
    x = input_of(kind)
    net(x)
    graph = read_graph(net, x)
    again = GraphNetwork(graph.nodes, graph.tensors, graph.buffers)
    assert torch.allclose(again(x), net(x), atol=1e-5)
    assert type(again.get_submodule("0")) is kind.module


@TYPES
@pytest.mark.parametrize("prior", [GroupNormalJeffreys(), GroupHorseshoe(0.1)], ids=lambda p: type(p).__name__)
def test_local_reparameterization_has_the_moments_of_drawn_weights(kind, prior):
    layer = BAYESIAN[kind.module].from_module(module_of(kind), prior)
    x = input_of(kind, batch=1)
    net = nn.Sequential(module_of(kind), nn.Flatten())
    model, guide = set_up(net, x, prior, num_data=4, init_log_variance=-2.0)
    n = 4000
    many = x.expand(n, *x.shape[1:])
    local = elbo_terms(model, guide, many, torch.zeros(n).long()).outputs.detach()
    q = guide.posterior()
    drawn = []
    with torch.no_grad():
        for _ in range(1500):
            draw = {name: site.sample() for name, site in q.items()}
            drawn.append(pyro.poutine.condition(model, data=draw)(x)[0])
    drawn = torch.stack(drawn)
    spread = drawn.std(0).clamp_min(1e-3)
    assert ((local.mean(0) - drawn.mean(0)).abs() / spread).max() < 0.2
    assert ((local.std(0) / spread) - 1).abs().max() < 0.25
    assert layer.sample_parameters is not None


@TYPES
@pytest.mark.parametrize("prior", [GroupNormalJeffreys(), LogUniform(), LearnedCode()], ids=lambda p: type(p).__name__)
def test_what_is_pruned_is_cut_and_the_rest_computes_the_same(tmp_path, kind, prior):
    net = network(kind)
    x = input_of(kind)
    net(x)
    model, guide = set_up(net, x, prior, num_data=4)
    settle_codes_(guide)
    with torch.no_grad():  # outputs 1 and 4 of the first layer become nothing
        for name, q in guide.posterior().items():
            layer, _, role = name.rpartition(".")
            first = guide.parameters_of(name)[0]
            if layer == "net.0" and role in ("weight", "bias"):
                index = (slice(None), [1, 4]) if role == "weight" and kind.output_axis else [1, 4]
                first[index] = 0.0
            if layer == "net.0" and role == "scale" and kind.scales_outputs:
                first[[1, 4]] = 1e-6
            if layer == "net.2" and role == "scale" and kind is LINEAR:
                first[[1, 4]] = 1e-6
            assert q is not None
    thresholds = None if isinstance(prior, LearnedCode) else dict.fromkeys(("0", "2", "5"), 15.0)
    small = pyro_bc.compress(model, guide, thresholds=thresholds, noise_ratio=1e-6)
    assert small.layers[0].weight.codes.shape[kind.output_axis] == 4
    small.save(tmp_path / "net.pbc")
    loaded = pyro_bc.load(tmp_path / "net.pbc")
    means = {name: q.centre.round() if hasattr(q, "centre") else q.mean for name, q in guide.posterior().items()}
    with torch.no_grad():
        expected = pyro.poutine.condition(model, data=means)(x)
        found = loaded(x)
    assert torch.allclose(found, expected, atol=1e-3 * expected.abs().max())
    assert small.architecture[0] == (4 if kind.scales_outputs else 5)


def test_a_decoder_with_transposed_convolutions_goes_all_the_way(tmp_path):
    torch.manual_seed(2)
    net = nn.Sequential(
        nn.Linear(4, 32), nn.ReLU(), nn.Unflatten(1, (8, 2, 2)),
        nn.ConvTranspose2d(8, 6, 3, stride=2, output_padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.ConvTranspose2d(6, 2, 2, padding=1, dilation=2), nn.Flatten(), nn.Linear(98, 2),
    )  # fmt: skip
    x = torch.randn(200, 4)
    y = (x[:, 0] > 0).long()
    shape = net[:7](x[:2]).shape
    net[8] = nn.Linear(shape[1] * shape[2] * shape[3], 2)
    from pyro_bc.compression.batch_norm import fold_batch_norm

    folded = fold_batch_norm(net.eval(), x[:2])
    assert torch.allclose(folded(x), net(x), atol=1e-4)
    model = pyro_bc.BayesianNetwork(folded, GroupNormalJeffreys(), num_data=200)
    guide = pyro_bc.FactorizedGuide(model)
    loader = pyro_bc.data.Batches(x, y, 50)
    pyro_bc.fit(
        model, guide, loader, epochs=60, learning_rate=5e-3, log_learning_rate=5e-2, kl_weight=0.3, progress=False
    )
    small = pyro_bc.compress(model, guide)
    assert small.compression().pruning > 2
    small.save(tmp_path / "decoder.pbc")
    loaded = pyro_bc.load(tmp_path / "decoder.pbc")
    assert (loaded(x).argmax(1) != y).float().mean() < 0.1
    assert any(isinstance(module, nn.ConvTranspose2d) for module in loaded.modules())
    difference = pyro_bc.onnx.to_onnx(loaded, tmp_path / "decoder.onnx", (4,))
    assert difference < 1e-5


def test_groups_of_a_transposed_convolution_stay_and_that_is_said():
    net = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(4, 4, 5, 5)
    net(x)
    with pytest.raises(pyro_bc.errors.UsageError, match="of 2 groups cannot be Bayesian"):
        pyro_bc.BayesianConvTranspose2d(4, 6, 3, groups=2)
    with pytest.warns(UserWarning, match=r"left deterministic.*'0' \(ConvTranspose2d\)"):
        model = pyro_bc.BayesianNetwork(net, GroupNormalJeffreys(), num_data=4)
    guide = pyro_bc.FactorizedGuide(model)
    guide(x, torch.zeros(4).long())
    small = pyro_bc.compress(model, guide)
    assert small.layers[0].weight.codes.shape == (4, 3, 3, 3)
