"""A network without what has gone is made of entries of the weights that it had, or it stays whole."""

import pytest
import torch
from torch import nn

from pyro_bc import GroupNormalJeffreys, LayerPosterior
from pyro_bc.compression.smaller import smaller
from pyro_bc.graph.layer_types import LAYER_TYPES
from pyro_bc.graph.module import GraphNetwork
from pyro_bc.graph.nodes import is_layer, layer_name
from pyro_bc.graph.read import read_graph

TYPES = {row.module: row for row in LAYER_TYPES}


def left_of(net, gone, x):
    """What is left of a network, whose groups that have gone are at 0, and that network's own result."""
    posterior = {}
    for name, layer in net.named_modules():
        if type(layer) not in TYPES:
            continue
        kind, marks = TYPES[type(layer)], gone.get(name)
        groups = layer.weight.shape[kind.group_axis]
        gone[name] = marks = torch.zeros(groups, dtype=torch.bool) if marks is None else marks
        layer.weight.data.movedim(kind.group_axis, 0)[marks] = 0.0
        if kind.scales_outputs and layer.bias is not None:
            layer.bias.data[marks] = 0.0
        one = torch.ones_like(layer.weight)
        bias = None if layer.bias is None else layer.bias.detach()
        posterior[name] = LayerPosterior(
            name, GroupNormalJeffreys(), layer.weight.detach(), one, bias, bias, torch.zeros(groups), type=kind
        )
    graph = read_graph(net.eval(), x)
    marks = {name: {TYPES[type(net.get_submodule(name))].group_axis: own} for name, own in gone.items()}
    return graph, smaller(graph, posterior, marks), net(x)


EVERY = torch.arange(8) % 2 == 0


def every(size, step=2):
    return torch.arange(size) % step == 0


@pytest.mark.parametrize(
    "net,gone",
    [
        (lambda: [nn.Flatten(), nn.Linear(36, 20), nn.ReLU(), nn.Linear(20, 3)], {"1": every(36), "3": every(20, 3)}),
        (
            lambda: [
                nn.Conv2d(1, 8, 3),
                nn.ReLU(),
                nn.Conv2d(8, 8, 3, groups=8, bias=False),
                nn.Flatten(),
                nn.Linear(32, 3),
            ],
            {"0": every(8), "2": every(8), "4": torch.arange(32) < 9},
        ),
        (
            lambda: [nn.Conv2d(1, 8, 3), nn.Tanh(), nn.ConvTranspose2d(8, 6, 2), nn.Flatten(), nn.Linear(150, 3)],
            {"0": every(8), "2": every(6, 3)},
        ),
    ],
)
def test_every_weight_that_is_left_is_one_that_was_there(net, gone):
    torch.manual_seed(0)
    x = torch.rand(5, 1, 6, 6)
    graph, left, expected = left_of(nn.Sequential(*net()), gone, x)
    before = sum(graph.tensors[f"{layer_name(node)}.weight"].numel() for node in graph.nodes if is_layer(node))
    assert sum(layer.weight.numel() for layer in left.layers.values()) < 0.7 * before
    tensors = dict(left.graph.tensors)
    for name, layer in left.layers.items():
        rows, columns = layer.kept
        own = graph.tensors[f"{name}.weight"].index_select(0, rows).index_select(1, columns)
        assert own.shape == layer.weight.shape
        tensors[f"{name}.weight"] = own
    found = GraphNetwork(left.graph.nodes, tensors, left.graph.buffers)(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# Statistics; constants of 1/2 in place of filters; filters that share channels; nothing that is left.
@pytest.mark.parametrize(
    "net,gone",
    [
        ([nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(128, 3)], {"0": EVERY}),
        ([nn.Conv2d(1, 8, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(128, 3)], {"0": EVERY}),
        ([nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 2, groups=2), nn.Flatten(), nn.Linear(72, 3)], {"2": EVERY}),
        ([nn.Flatten(), nn.Linear(36, 20), nn.ReLU(), nn.Linear(20, 3)], {"1": every(36, 1)}),
    ],
)  # fmt: skip
def test_what_would_change_weights_stays_whole(net, gone):
    torch.manual_seed(0)
    assert left_of(nn.Sequential(*net), gone, torch.rand(5, 1, 6, 6))[1] is None
