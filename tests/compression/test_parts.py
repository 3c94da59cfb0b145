"""A convolution that pruning takes apart is one layer to whoever looks at it, also in the file."""

import json

import matplotlib.figure
import pytest
import torch
from helpers import command, set_up
from torch import nn

import pyro_bc
from pyro_bc.file.contents import FURTHER_PART


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.grouped = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1, groups=4)
        self.head = nn.Linear(64, 3)

    def forward(self, x):
        return self.head(self.grouped(self.first(x).relu()).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def compressed():
    torch.manual_seed(0)
    x = torch.randn(6, 1, 6, 6)
    model, guide = set_up(Grouped(), x, y=torch.zeros(6, dtype=torch.long), init_log_variance=-14.0)
    kept = torch.zeros(4, 16, dtype=torch.bool)
    for group, count in enumerate((16, 2, 14, 3)):
        kept[group, :count] = True
    with torch.no_grad():
        guide.locs.net.grouped.scale[~kept.flatten()] = 1e-3
        guide.log_variances.net.grouped.scale[~kept.flatten()] = 0.0
    return model, guide, pyro_bc.compress(model, guide), x


def test_parts_are_one_layer_with_the_shape_that_it_had(compressed):
    *_, small, x = compressed
    assert len(small.layers) > 3 and len(small.whole_layers) == 3
    whole = small.whole_layers[1]
    assert whole.name == "grouped" and whole.dense_shape == (64, 8) and whole.dense_groups == 64
    assert [part.dense_shape for part in whole.parts[1:]] == [FURTHER_PART] * (len(whole.parts) - 1)
    assert whole.groups_left == whole.shape_left[0] == sum(part.weight.codes.shape[0] for part in whole.parts) < 45
    assert len(small.architecture) == len(small.bits) == 3 and whole.bits == max(p.weight.bits for p in whole.parts)
    assert whole.nonzero <= sum(p.weight.codes.numel() for p in whole.parts)
    again = pyro_bc.CompressedNetwork.from_bytes(small.to_bytes())
    assert again.architecture == small.architecture and again.bits == small.bits
    assert [layer.dense_shape for layer in again.layers] == [layer.dense_shape for layer in small.layers]
    assert torch.equal(again.network()(x), small.network()(x))
    assert small._repr_html_().count("<tr>") == 4


def test_inspect_and_plots_show_one_row(compressed, tmp_path):
    _, guide, small, _ = compressed
    small.save(tmp_path / "small.pbc")
    said = json.loads(command("inspect", tmp_path / "small.pbc", "--json").stdout)
    assert said["dense_architecture"] == [32, 64, 64] and said["architecture"] == list(small.architecture)
    assert len(said["bits"]) == len(said["bias_bits"]) == 3
    shown = [line for line in command("inspect", tmp_path / "small.pbc").stdout.splitlines() if "became" in line]
    assert len(shown) == 3 and f"in {len(small.whole_layers[1].parts)} parts" in shown[1]
    ax = matplotlib.figure.Figure().add_subplot()
    pyro_bc.plots.bits(pyro_bc.summarize(guide), pyro_bc.read(tmp_path / "small.pbc"), ax)
    assert [label.get_text().split("\n")[0] for label in ax.get_yticklabels()] == [
        "net.first",
        "net.grouped",
        "net.head",
    ]
    ax = matplotlib.figure.Figure().add_subplot()
    pyro_bc.plots.architecture(small, ax)
    assert len(ax.get_yticklabels()) == 3


def test_what_came_apart_is_compared_with_the_dense_network_when_it_is_trained_on(compressed):
    *_, small, x = compressed
    y = torch.zeros(6, dtype=torch.long)
    model, guide = set_up(small.network(), x, y=y, init_log_variance=-14.0)
    again = pyro_bc.compress(model, guide, dense=small)
    assert [layer.dense_shape for layer in again.whole_layers] == [layer.dense_shape for layer in small.whole_layers]
    assert again.dense_parameters == small.dense_parameters
