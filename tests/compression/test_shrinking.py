"""Of half of the groups, what is left of today's blocks is what the output depends on (all 18, twice, in analyses)."""

import pytest
import shrinking
import torch
from torch import nn


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


def upsampling():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(8, 16, 3))


@pytest.mark.parametrize(
    ("net", "x"),
    [
        (Tied, torch.randint(0, 40, (8, 5))),
        (Loop, torch.randn(8, 3, 4)),
        (upsampling, torch.randn(8, 3, 8, 8)),
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
