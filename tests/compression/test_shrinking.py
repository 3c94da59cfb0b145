"""Of half of the groups, what is left of today's blocks is what the output depends on (all 18, twice, in analyses)."""

import copy

import pytest
import shrinking
import torch
from torch import nn

from pyro_bc import GroupNormalJeffreys, LayerPosterior
from pyro_bc.compression.pruning import shrink
from pyro_bc.graph.layer_types import LINEAR, LOOKUP
from pyro_bc.graph.module import GraphNetwork
from pyro_bc.graph.read import read_graph
from pyro_bc.graph.recurrent import cell_names
from pyro_bc.posterior.thresholds import Threshold


@pytest.mark.parametrize(
    "name",
    [
        "ResNet block",
        "conv, activation, batch norm",
        "RepVGG",
        "GroupNorm",
        "TCN with chomp",
        "ShuffleNetV2",
        "ConvNeXt",
        "RegNet (grouped, SE)",
    ],
)
def test_parameters_left_are_those_that_are_needed(name):
    _, left, needed, difference = shrinking.measure(name, "at random")
    assert difference < 1e-5
    assert needed > 0.9 * left


@pytest.mark.parametrize("name", ["RegNet (grouped, SE)", "ViT, one qkv"])
def test_groups_of_a_grouped_convolution_and_heads_of_one_projection_go(name):
    _, left, needed, difference = shrinking.measure(name, "every second")
    assert difference < 1e-5
    assert needed > 0.9 * left


class Tied(nn.Module):
    """Words and their places, a head that is the table of words, and a layer that sees a batch of all places."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(40, 12), nn.Embedding(30, 12)
        self.norm, self.up, self.down = nn.LayerNorm(12), nn.Linear(12, 24), nn.Linear(24, 12)
        self.head = nn.Linear(12, 40, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x):
        h = self.words(x) + self.places(torch.arange(x.shape[1]))
        h = h + self.down(self.up(self.norm(h).reshape(-1, 12)).view(-1, x.shape[1], 24).sin())
        return self.head(h)


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.read, self.keep, self.head = nn.Linear(4, 16), nn.Linear(16, 16, bias=False), nn.Linear(16, 3)

    def forward(self, x):
        h = x.new_zeros(x.shape[0], 16)
        for step in x.unbind(1):
            h = torch.tanh(self.read(step) + self.keep(h))
        return self.head(h)


class Crossing(nn.Module):
    """Questions of one sequence to itself in einsums over heads: a feature of a head is an entry, and no axis."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(16, 32)
        self.out, self.head = nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (4, 8)) for layer in (self.q, self.k, self.v))
        weights = torch.einsum("bihd,bjhd->bhij", q, k).div(8**0.5).softmax(-1)
        return self.head((x + self.out(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2))).mean(1))


def upsampling():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(8, 16, 3))


def slopes():
    """Each channel with a slope of its own, one for all of them, and constants of pruned filters between."""
    layers = (nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.PReLU(), nn.Conv2d(12, 4, 3))
    for layer in layers:
        if isinstance(layer, nn.PReLU):
            nn.init.uniform_(layer.weight, 0.1, 0.9)
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("net", "x"),
    [
        (Tied, torch.randint(0, 40, (8, 5))),
        (Loop, torch.randn(8, 3, 4)),
        (Crossing, torch.randn(8, 5, 16)),
        (upsampling, torch.randn(8, 3, 8, 8)),
        (slopes, torch.randn(8, 3, 8, 8)),
    ],
)
def test_tables_tied_heads_loops_and_upsampled_filters_go(net, x):
    torch.manual_seed(0)
    net = shrinking.randomised(net())
    keeps = shrinking.halved(net, "at random", torch.Generator().manual_seed(1))
    keeps.pop("words", None)  # which is the head's
    left, needed, difference = shrinking.measured(net, keeps, x)
    assert difference < 1e-5
    assert left <= needed / 0.9


def test_filters_that_read_nothing_leave_their_numbers_behind():
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.GroupNorm(1, 16), nn.Conv2d(16, 4, 1))
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(100, 3)).eval()
    keeps = {"0": torch.arange(16) < 5, "1": torch.ones(16, dtype=torch.bool), "3": torch.ones(4, dtype=torch.bool)}
    left, needed, difference = shrinking.measured(net, keeps, torch.randn(4, 3, 5, 5))
    assert difference < 1e-5
    assert needed > 0.98 * left


def test_recurrent_cells_read_only_what_is_left_of_their_inputs():
    class Cells(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.cell = nn.Embedding(9, 8), nn.GRU(8, 6, batch_first=True, bidirectional=True)
            self.head = nn.Linear(12, 3)

        def forward(self, x):
            return self.head(self.cell(self.words(x))[0].mean(1))

    torch.manual_seed(0)
    net, x = Cells().eval(), torch.randint(0, 9, (8, 5))
    graph = read_graph(net, x)
    matrices = {name: graph.tensors[f"{name}.weight"] for name in [*cell_names(graph), "words", "head"]}
    posterior, masked = {}, copy.deepcopy(net)
    for number, (name, weight) in enumerate(matrices.items()):
        keep = torch.arange(weight.shape[1]) % 2 != number % 2
        bias = graph.tensors.get(f"{name}.bias")
        posterior[name] = LayerPosterior(
            name=name, prior=GroupNormalJeffreys(), weight_mean=weight, weight_variance=torch.full_like(weight, 1e-4),
            bias_mean=bias, bias_variance=None if bias is None else torch.full_like(bias, 1e-4),
            statistic=torch.where(keep, -1.0, 1.0), type=LOOKUP if name == "words" else LINEAR,
        )  # fmt: skip
        path = name if "cell" in name else f"{name}.weight"
        masked.get_parameter(path).data *= keep
    small = shrink(graph, posterior, dict.fromkeys(posterior, Threshold(0.0, "explicit"))).graph
    found = GraphNetwork(small.nodes, small.tensors, small.buffers)(x)
    assert torch.allclose(found, masked(x), atol=1e-6)
    # Each direction reads the inputs that words still make and that its own groups have left.
    for name in ("cell.weight_ih_l0", "cell.weight_ih_l0_reverse"):
        alive = posterior["words"].statistic.lt(0) & posterior[name].statistic.lt(0)
        assert small.tensors[f"{name}.weight"].shape[1] == max(1, int(alive.sum()))
