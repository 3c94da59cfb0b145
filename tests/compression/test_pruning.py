"""The small network computes what the masked large one does, for random architectures and masks of every kind."""

import copy
import math
import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from removal import remove_normalisation_
from torch import nn
from torch.nn import functional as F

from pyro_bc import GroupNormalJeffreys, LayerPosterior, LogUniform
from pyro_bc.app.own_network import network
from pyro_bc.compression.batch_norm import fold_batch_norm
from pyro_bc.compression.kernels import met_along
from pyro_bc.compression.pruning import shrink
from pyro_bc.errors import EmptyNetworkError, UsageError
from pyro_bc.graph.layer_types import LAYER_TYPES
from pyro_bc.graph.module import GraphNetwork
from pyro_bc.graph.read import read_graph
from pyro_bc.posterior.thresholds import Threshold, weight_mask

CUT = Threshold(0.0, "explicit")
TYPES = {row.module: row for row in LAYER_TYPES}
LAYERS = tuple(TYPES)


def posterior_of(layer, name, keep, variance=1e-4):
    """A posterior whose mean is the layer's weight, and whose statistic keeps what ``keep`` says."""
    per_weight = keep.shape == layer.weight.shape
    return LayerPosterior(
        name=name,
        prior=LogUniform() if per_weight else GroupNormalJeffreys(),
        weight_mean=layer.weight.detach(),
        weight_variance=torch.full_like(layer.weight, variance),
        bias_mean=None if layer.bias is None else layer.bias.detach(),
        bias_variance=None if layer.bias is None else torch.full_like(layer.bias, variance),
        statistic=torch.where(keep, -1.0, 1.0),
        type=TYPES[type(layer)],
    )


def masked(net, keeps, x):
    """The large network with pruned weights at zero, and the biases of pruned filters and what normalises them."""
    net, removed = copy.deepcopy(net), {}
    for name, keep in keeps.items():
        layer = net.get_submodule(name)
        if keep.shape != layer.weight.shape and TYPES[type(layer)].scales_outputs:
            removed[name] = ~keep
            if layer.bias is not None:
                layer.bias.data *= keep
            keep = TYPES[type(layer)].over_groups(keep, layer.weight.shape)
        layer.weight.data *= keep
    remove_normalisation_(net.eval(), removed, x)
    return net


def pruned(net, keeps, example):
    posterior = {name: posterior_of(net.get_submodule(name), name, keep) for name, keep in keeps.items()}
    small = shrink(read_graph(net, example), posterior, dict.fromkeys(keeps, CUT))
    return GraphNetwork(small.graph.nodes, small.graph.tensors, small.graph.buffers), small


def assert_equal_outputs(net, keeps, x):
    try:
        small, description = pruned(net, keeps, x)
    except EmptyNetworkError:
        with torch.no_grad():
            outputs = masked(net, keeps, x)(torch.randn(5, *x.shape[1:]))
        assert (outputs - outputs[0]).abs().max() <= 1e-5 * max(1, float(outputs.abs().max()))
        return None
    with torch.no_grad():
        expected, found = masked(net, keeps, x)(x), small(x)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))
    return description


class Residual(nn.Module):
    def __init__(self, channels, bias, norm):
        super().__init__()
        self.a = nn.Conv2d(channels, channels, 3, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.b = nn.Conv2d(channels, channels, 1, bias=bias)

    def forward(self, x):
        return F.relu(x + self.b(torch.tanh(self.norm(self.a(x)))))


class Dense(nn.Module):
    """A concatenation, as in a DenseNet, of the input, a convolution of it, and a gate."""

    def __init__(self, channels, growth):
        super().__init__()
        self.a = nn.Conv2d(channels, growth, 3, padding=1)
        self.gate = nn.Conv2d(channels, growth, 1)

    def forward(self, x):
        return torch.cat([x, self.a(x) * torch.sigmoid(self.gate(x))], 1)


ACTIVATIONS = st.sampled_from([nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Softplus, nn.Hardswish])


@st.composite
def networks(draw):
    """Modules of a random convolutional network for inputs of shape (2, 12, 12), and whether a hidden layer follows."""
    channels, size = 2, 12
    modules: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(
            st.sampled_from(["conv", "conv", "transposed", "depthwise", "grouped", "residual", "dense", "pool", "norm"])
        )
        bias = draw(st.booleans())
        if kind == "conv":
            out, kernel = draw(st.integers(2, 5)), draw(st.sampled_from([1, 3]))
            mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "circular"])) if size > 4 else "zeros"
            padding = draw(st.integers(0, 2)) if size > 4 else 1
            stride, dilation = draw(st.sampled_from([(1, 1), (2, 1), (1, 2)])) if size > 4 else (1, 1)
            layer = nn.Conv2d(channels, out, kernel, stride, padding, dilation, bias=bias, padding_mode=mode)
            modules.append(layer)
            size = layer(torch.zeros(1, channels, size, size)).shape[-1]
            channels = out
        elif kind == "transposed":
            out, stride = draw(st.integers(2, 5)), draw(st.integers(1, 2)) if size < 12 else 1
            extra = draw(st.integers(0, stride - 1))
            layer = nn.ConvTranspose2d(channels, out, 3, stride, 1, extra, bias=bias)
            modules.append(layer)
            size = layer(torch.zeros(1, channels, size, size)).shape[-1]
            channels = out
        elif kind == "depthwise":
            multiplier = draw(st.integers(1, 2))
            modules.append(nn.Conv2d(channels, channels * multiplier, 3, padding=1, groups=channels, bias=bias))
            channels *= multiplier
        elif kind == "grouped":
            if channels % 2:
                continue
            modules.append(nn.Conv2d(channels, 4, 1, groups=2, bias=bias))
            channels = 4
        elif kind == "residual":
            modules.append(Residual(channels, bias, draw(st.booleans())))
        elif kind == "dense":
            growth = draw(st.integers(1, 3))
            modules.append(Dense(channels, growth))
            channels += growth
        elif kind == "pool":
            pools = [nn.MaxPool2d(2, ceil_mode=True), nn.AvgPool2d(3, 1, 1), nn.MaxPool2d(3, 1, 1)]
            modules.append(draw(st.sampled_from(pools)))
            size = modules[-1](torch.zeros(1, channels, size, size)).shape[-1]
        else:
            modules.append(nn.BatchNorm2d(channels))
        modules += [draw(ACTIVATIONS)(), nn.Dropout(0.5)] if draw(st.booleans()) else []
    modules.append(draw(st.sampled_from([nn.Flatten(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())])))
    return modules, draw(st.booleans())


def finish(modules, hidden, size):
    """Add the fully connected end, for the features that come out of the convolutions."""
    body = nn.Sequential(*modules).eval()
    features = body(torch.zeros(2, 2, size, size)).shape[1]
    end = [nn.Linear(features, 4), nn.ReLU(), nn.BatchNorm1d(4)] if hidden else []
    return nn.Sequential(body, *end, nn.Linear(4 if hidden else features, 3, bias=hidden)).eval()


def randomise(net, generator):
    """Norms with statistics of their own: a fresh one is the identity."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=generator)
            module.running_var = 0.5 + torch.rand(module.num_features, generator=generator)
            module.weight.data = torch.randn(module.num_features, generator=generator)
            module.bias.data = torch.randn(module.num_features, generator=generator)


def random_masks(net, generator, share, per_weight):
    keeps = {}
    for name, layer in net.named_modules():
        if isinstance(layer, LAYERS):
            groups = layer.weight.shape[TYPES[type(layer)].group_axis]
            shape = layer.weight.shape if per_weight else (groups,)
            keeps[name] = torch.rand(shape, generator=generator) < share
    return keeps


@settings(max_examples=25, deadline=None)
@given(networks(), st.integers(0, 2**31), st.sampled_from([0.3, 0.6, 0.9]), st.booleans())
def test_the_small_network_computes_what_the_masked_one_does(description, seed, share, per_weight):
    modules, hidden = description
    generator = torch.Generator().manual_seed(seed)
    net = finish(modules, hidden, 12)
    randomise(net, generator)
    keeps = random_masks(net, generator, share, per_weight)
    x = torch.randn(3, 2, 12, 12, generator=generator)
    description = assert_equal_outputs(net, keeps, x)
    if description is not None:  # and what is left can be pruned again
        small = GraphNetwork(description.graph.nodes, description.graph.tensors, description.graph.buffers)
        per_weight |= any(node.op == "batch_norm" for node in description.graph.nodes)  # no module to be masked
        assert_equal_outputs(small, random_masks(small, generator, share, per_weight), x)


def test_what_is_left_is_made_of_layers_and_pruned_again_as_if_at_once():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.Tanh(), nn.Flatten())
    net = nn.Sequential(body, nn.Linear(3 * 25, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    x = torch.randn(3, 2, 7, 7)
    first = {"0.2": torch.tensor([True, True, False]), "1": torch.rand(75) < 0.5}
    small = assert_equal_outputs(net, first, x)
    module = GraphNetwork(small.graph.nodes, small.graph.tensors, small.graph.buffers)
    assert {name: type(layer) for name, layer in module.named_modules() if isinstance(layer, LAYERS)} == {
        "0.0": nn.Conv2d, "0.2": nn.Conv2d, "1": nn.Linear, "3": nn.Linear
    }  # fmt: skip
    second = {"0.2": torch.tensor([False, True]), "1": torch.rand(module.get_submodule("1").in_features) < 0.7}
    smaller = assert_equal_outputs(module, second, x)
    (selection,) = (node for node in smaller.graph.nodes if node.op == "index_select")
    assert smaller.graph.tensors["0.2.weight"].shape[0] == 1
    # Of the 25 positions of the filter that is left, those that both masks keep.
    kept_first = torch.nonzero(first["1"] & first["0.2"].repeat_interleave(25)).flatten()
    kept = kept_first[second["1"]]
    assert torch.equal(smaller.graph.tensors[selection.args[2].name], kept[kept >= 25] - 25)


@settings(max_examples=60, deadline=None)
@given(
    widths=st.lists(st.integers(1, 7), min_size=2, max_size=5),
    activation=ACTIVATIONS,
    kinds=st.lists(st.sampled_from(["group", "weight", "deterministic"]), min_size=4, max_size=4),
    share=st.floats(0.2, 1.0),
    seed=st.integers(0, 2**31),
)
def test_chains_of_fully_connected_layers_hold_nothing_that_is_not_read(widths, activation, kinds, share, seed):
    torch.manual_seed(seed)
    modules: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(widths)):
        modules += [nn.Linear(a, b), activation()] if i < len(widths) - 2 else [nn.Linear(a, b)]
    net = nn.Sequential(*modules).eval()
    keeps = {}
    for (name, layer), kind in zip(net.named_children(), kinds * 2, strict=False):
        if isinstance(layer, nn.Linear) and kind != "deterministic":
            keeps[name] = torch.rand(layer.weight.shape if kind == "weight" else layer.weight.shape[1]) < share
    small = assert_equal_outputs(net, keeps, torch.randn(9, widths[0]))
    for layer in small.layers.values() if small else ():
        assert layer.mask.any(0).all()


def test_inputs_that_are_not_read_take_their_producers_with_them():
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    keeps = {"0": torch.tensor([True, False, True, False, True]), "2": torch.tensor([False, True, True, False])}
    small = assert_equal_outputs(net, keeps, torch.randn(6, 5))
    assert [tuple(layer.weight.shape) for layer in small.layers.values()] == [(2, 3), (3, 2)]
    assert torch.equal(small.layers["0"].weight, net[0].weight[1:3][:, [0, 2, 4]])
    assert small.graph.tensors["0_inputs"].tolist() == [0, 2, 4]


def test_pruned_filters_take_channels_and_inputs_behind_a_flatten_with_them():
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.Flatten(), nn.Linear(5 * 4, 3)).eval()
    fc = torch.ones(20, dtype=torch.bool)
    fc[4:8] = False  # all positions of the second channel
    fc[9] = False  # and one of the third
    keeps = {"0": torch.tensor([True] * 4 + [False] * 2), "2": torch.tensor([False, True, True, True, True]), "4": fc}
    small = assert_equal_outputs(net, keeps, torch.randn(6, 2, 6, 6))
    assert [tuple(layer.weight.shape) for layer in small.layers.values()] == [(4, 2, 3, 3), (3, 4, 3, 3), (3, 11)]


def test_a_unit_that_reads_nothing_moves_into_the_next_bias():
    for has_bias in (True, False):
        net = nn.Sequential(nn.Linear(3, 2), nn.Sigmoid(), nn.Linear(2, 1, bias=has_bias)).eval()
        keep = torch.tensor([[True, True, True], [False, False, False]])
        small = assert_equal_outputs(net, {"0": keep}, torch.randn(6, 3))
        moved = net[2].weight[:, 1] * torch.sigmoid(net[0].bias[1])
        assert torch.allclose(small.layers["2"].bias, moved + (net[2].bias if has_bias else 0))
        assert small.layers["2"].weight.shape == (1, 1)


def test_a_constant_other_than_zero_stays_where_a_convolution_pads():
    for padding, left in ((1, 2), (0, 1)):
        net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Sigmoid(), nn.Conv2d(2, 1, 3, padding=padding)).eval()
        small = assert_equal_outputs(net, {"0": torch.tensor([True, False])}, torch.randn(3, 1, 5, 5))
        assert small.layers["2"].weight.shape[1] == left


def test_only_the_constant_zero_moves_into_a_transposed_convolution_whose_edges_see_fewer_inputs():
    for activation, left in ((nn.Sigmoid(), 2), (nn.ReLU(), 1)):
        net = nn.Sequential(nn.Conv2d(1, 2, 1), activation, nn.ConvTranspose2d(2, 3, 3)).eval()
        small = assert_equal_outputs(net, {"0": torch.tensor([True, False])}, torch.randn(3, 1, 5, 5))
        assert small.layers["2"].weight.shape == (left, 3, 3, 3)


@pytest.mark.parametrize("seed", range(8))
def test_a_transposed_convolution_of_groups_stays_whole_between_pruned_layers(seed):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 6, 3, 2, groups=2), nn.BatchNorm2d(6), nn.Sigmoid(),
        nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 49, 3),
    ).eval()  # fmt: skip
    randomise(net, generator)
    x = torch.randn(3, 2, 6, 6, generator=generator)
    folded = fold_batch_norm(net, x)
    with torch.no_grad():
        assert torch.allclose(folded(x), net(x), atol=1e-4)
    assert [node.op for node in read_graph(folded, x).nodes].count("batch_norm") == 1  # behind groups
    keeps = random_masks(net, generator, 0.6, per_weight=False)
    del keeps["2"]
    small = assert_equal_outputs(net, keeps, x)
    assert small is None or small.layers["2"].weight.shape == (4, 3, 3, 3)


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.out = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(torch.relu(self.fc(torch.relu(self.fc(x)))))


@pytest.mark.parametrize("seed", range(8))
def test_a_layer_that_is_used_twice(seed):
    generator = torch.Generator().manual_seed(seed)
    net = Shared().eval()
    assert_equal_outputs(net, random_masks(net, generator, 0.6, per_weight=False), torch.randn(6, 4))


class Heads(nn.Module):
    """Attention of three heads, written with plain functions, between residual additions and norms."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(6, 6) for _ in range(4))
        self.norm, self.up, self.down, self.end = nn.LayerNorm(6), nn.Linear(6, 9), nn.Linear(9, 6), nn.Linear(6, 2)

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (3, 2)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = self.norm(x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)))
        return self.end((x + self.down(F.gelu(self.up(x)))).mean(1))


def test_heads_and_hidden_units_of_a_transformer_are_removed():
    net = Heads().eval()
    keeps = {"out": torch.tensor([True, True, False, False, True, True]), "down": torch.arange(9) % 2 == 0}
    small = assert_equal_outputs(net, keeps, torch.randn(3, 5, 6))
    shapes = {name: tuple(layer.weight.shape) for name, layer in small.layers.items()}
    assert shapes["q"] == shapes["k"] == shapes["v"] == (4, 6) and shapes["out"] == (6, 4)
    assert shapes["up"] == (5, 6) and shapes["down"] == (6, 5)


@pytest.mark.parametrize("name,norms_left", [("vgg-16", 0), ("resnet-18", 0), ("wrn-16-4", 6)])
def test_the_shipped_networks_fold_and_shrink(name, norms_left):
    torch.manual_seed(0)
    net = network(name)((3, 32, 32), 10).eval()
    generator = torch.Generator().manual_seed(1)
    randomise(net, generator)
    x = torch.rand(2, 3, 32, 32, generator=generator)
    folded = fold_batch_norm(net, x)
    with torch.no_grad():
        expected, found = net(x), folded(x)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert [node.op for node in read_graph(folded, x).nodes].count("batch_norm") == norms_left
    keeps = random_masks(net, generator, 0.5, per_weight=False)
    small = assert_equal_outputs(net, keeps, x)
    kept = {key: layer.weight.shape[0] for key, layer in small.layers.items()}
    alone = "conv" if name == "vgg-16" else "stage"  # filters that one layer reads
    inner = [key for key in keeps if key.startswith(alone) and (name == "vgg-16" or key.endswith("conv1"))]
    assert len(inner) == {"vgg-16": 13, "resnet-18": 8, "wrn-16-4": 6}[name]
    assert all(kept[key] <= int(keeps[key].sum()) for key in inner)


def test_a_kernel_without_what_meets_only_padding_computes_the_same():
    draw, smaller = random.Random(0), 0
    for _ in range(150):
        size, kernel, stride, padding, dilation = (draw.randint(*e) for e in ((1, 7), (1, 7), (1, 4), (0, 8), (1, 4)))
        if size + 2 * padding > dilation * (kernel - 1):
            first, last, left = met_along(size, kernel, stride, padding, dilation)
            x, w = torch.randn(1, 1, size), torch.randn(1, 1, kernel)
            expected = F.conv1d(x, w, None, stride, padding, dilation)
            found = F.conv1d(x, w[..., first : last + 1], None, stride, left, dilation)
            assert torch.allclose(found, expected, atol=1e-6)
            smaller += last - first + 1 < kernel
    assert smaller > 10


def test_a_dead_network_names_its_layer():
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)).eval()
    with pytest.raises(EmptyNetworkError, match="layer '2'"):
        pruned(net, {"2": torch.zeros(2, dtype=torch.bool)}, torch.rand(2, 3))


def test_group_masks_run_over_inputs_of_matrices_and_filters_of_kernels():
    linear = posterior_of(nn.Linear(3, 2), "fc", torch.tensor([True, False, True]))
    assert weight_mask(linear, CUT).tolist() == [[True, False, True]] * 2
    convolution = posterior_of(nn.Conv2d(3, 2, 5), "c", torch.tensor([False, True]))
    assert weight_mask(convolution, CUT).flatten(1).all(1).tolist() == [False, True]


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(3, 4), nn.Conv1d(4, 3, 2), nn.Conv2d(4, 3, 2), nn.ConvTranspose2d(4, 3, 2)],
    ids=lambda m: type(m).__name__,
)
def test_automatic_cuts_also_prune_across_the_groups_what_has_no_signal(layer):
    across = 1 - TYPES[type(layer)].group_axis
    keep = torch.tensor([True, True, False])
    posterior = posterior_of(layer, "layer", keep, variance=1.0)
    weight = posterior.weight_mean.movedim(across, 0)  # of four slices across, three weak ones
    weight.fill_(0.9)
    weight[1] = 1.1
    weight[2][2] = 50.0  # strong in a dead group only: without that axis, groups come first
    mask = weight_mask(posterior, Threshold(0.0, "mixture")).movedim(across, 0)
    assert mask.flatten(1).any(1).tolist() == [False, True, False, False]
    assert torch.equal(mask[1].flatten(1).any(1) if mask[1].dim() > 1 else mask[1], keep)
    assert weight_mask(posterior, CUT).movedim(across, 0).flatten(1).any(1).all()


def test_posteriors_that_do_not_fit_the_network_are_refused():
    net = nn.Sequential(nn.Linear(3, 2))
    graph = read_graph(net, torch.rand(2, 3))
    with pytest.raises(UsageError, match=r"\(2, 3\).*\(2, 4\)"):
        shrink(graph, {"0": posterior_of(nn.Linear(4, 2), "0", torch.ones(4) > 0)}, {"0": CUT})
    poisoned = posterior_of(net[0], "0", torch.ones(3) > 0)
    poisoned.weight_mean[0, 0] = math.nan
    with pytest.raises(UsageError, match="NaN or infinite"):
        shrink(graph, {"0": poisoned}, {"0": CUT})
