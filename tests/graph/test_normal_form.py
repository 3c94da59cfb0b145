"""Graphs in normal form compute the same, in operations that units are followed through."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_bc.graph.module import GraphNetwork
from pyro_bc.graph.normal_form import in_normal_form
from pyro_bc.graph.read import read_graph
from pyro_bc.graph.units import Tracking

X = torch.randn(3, 24, 5, generator=torch.Generator().manual_seed(0))


class Moves(nn.Module):
    """A layer, a function of its result, and a layer of what that gives."""

    def __init__(self, function):
        super().__init__()
        self.a, self.function = nn.Conv1d(24, 24, 1), function

    def forward(self, x):
        return self.function(self.a(x)) * 1.0


def shuffled(x):
    return x.view(x.shape[0], 4, 6, 5).transpose(1, 2).reshape(x.shape[0], 24, 5)


def queries(x, entry=0):
    """One of three parts of an attention's projection, by heads: as timm writes it."""
    return x.transpose(1, 2).reshape(x.shape[0], 5, 3, 4, 2).permute(2, 0, 3, 1, 4)[entry]


def interleaved(x):
    return x.transpose(1, 2).unflatten(-1, (4, 3, 2))[:, :, :, 1].transpose(1, 2)


@pytest.mark.parametrize(
    "function,has,has_not",
    [
        (shuffled, {"index_select"}, {"view", "transpose", "reshape"}),
        (lambda x: x.reshape(x.shape[0], 24, 5, 1).squeeze(-1) + x, {"add"}, {"reshape", "squeeze"}),
        (lambda x: x.split(10, 1)[2], {"slice"}, {"split", "getitem"}),
        (lambda x: x.chunk(5, 1)[4] + x.chunk(6, 1)[2], {"slice"}, {"chunk", "split", "getitem"}),
        (queries, {"slice", "permute"}, {"select"}),
        (lambda x: queries(x, 2), {"slice", "permute"}, {"select"}),
        (lambda x: F.scaled_dot_product_attention(*(queries(x, i) for i in range(3))), {"slice"}, {"select"}),
        (interleaved, {"index_select"}, {"select"}),
        (lambda x: x[:, 3], {"select"}, {"slice", "index_select"}),
        (lambda x: x.view(x.shape[0], 4, 6, 5).transpose(1, 2), {"view", "transpose"}, {"index_select"}),
        (lambda x: x.view(-1, 4, 6, 5)[0] + x.view(-1, 4, 6, 5), {"select"}, {"slice", "index_select"}),  # of the batch
        (lambda x: x.reshape(x.shape[0] * 4, 6, 5).reshape(x.shape[0], 24, 5), {"reshape"}, {"index_select"}),
        (lambda x: x.transpose(1, 2).transpose(1, 2).exp(), {"exp"}, {"transpose"}),
    ],
)
def test_the_same_function_with_slices_and_selections(function, has, has_not):
    net = Moves(function)
    graph = in_normal_form(read_graph(net, X))
    operations = {node.op for node in graph.nodes}
    assert has <= operations and not has_not & operations
    network = GraphNetwork(graph.nodes, graph.tensors, graph.buffers)
    values = list(network.results(graph.nodes, X))
    assert torch.equal(values[-1], net(X))
    for index, value in enumerate(values):
        if isinstance(value, torch.Tensor):
            sizes = [size if isinstance(size, int) else None for size in graph.shape(index)]
            assert len(sizes) == value.dim()
            assert all(size in (None, own) for size, own in zip(sizes, value.shape, strict=True))


def test_what_is_in_normal_form_stays():
    graph = in_normal_form(read_graph(Moves(shuffled), X))
    assert in_normal_form(graph).nodes == graph.nodes


def test_patches_whose_batch_holds_channels_are_one_turn_of_axes():
    """As MobileViT cuts them: pictures (b, 4, 6, 6) to patches (b · 4, 9, 4)."""

    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.read = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4, 5)

        def forward(self, x):
            h = self.conv(x)
            b, c = h.shape[:2]
            h = h.reshape(b * c * 3, 2, 3, 2).transpose(1, 2).reshape(b, c, 9, 4).transpose(1, 3).reshape(b * 4, 9, c)
            return self.read(h).reshape(-1, 36, 5)

    net, x = Patches().eval(), torch.randn(3, 2, 6, 6)
    graph = in_normal_form(read_graph(net, x))
    assert [node.op for node in graph.nodes] == ["conv2d", "reshape", "permute", "reshape", "linear", "reshape"]
    assert torch.allclose(GraphNetwork(graph.nodes, graph.tensors, graph.buffers)(x), net(x), atol=1e-6)
    tracking = Tracking(graph)
    assert (tracking.tensors["conv.weight"][0] == tracking.tensors["read.weight"][1]).all()
