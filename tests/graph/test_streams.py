"""Which channels cross layers: those that additions tie, where they lie in which tensors, and which cannot leave."""

import numpy as np
import pytest
import torch
from streams import Encoder, Gated, Pictures, example
from torch import nn

from pyro_bc.graph.mean_squares import with_root_mean_squares
from pyro_bc.graph.read import read_graph
from pyro_bc.graph.streams import residual_streams
from pyro_bc.model.prepare import prepared


def streams_of(net, x=None):
    return residual_streams(read_graph(prepared(net), example(net) if x is None else x))


@pytest.mark.parametrize("before", [False, True])
def test_an_encoder_has_one_stream_of_its_width_and_heads_are_none(before):
    (found,) = streams_of(Encoder(before=before))
    assert found.size == 8 and not found.obstacle
    assert found.writers == ("embed", "block.self_attn.out_proj", "block.linear2")
    assert found.readers == (*(f"block.self_attn.{p}" for p in ("query", "key", "value")), "block.linear1", "head")
    axes = {name: sorted(own) for name, own in found.tensors.items()}
    assert axes["embed.weight"] == axes["embed.bias"] == axes["block.norm1.weight"] == axes["block.norm2.bias"] == [0]
    assert axes["position"] == axes["head.weight"] == axes["block.linear1.weight"] == [1]
    assert "head.bias" not in axes and "block.linear1.bias" not in axes
    assert all((own == np.arange(8)).all() for along in found.tensors.values() for own in along.values())


def test_stages_of_a_residual_network_are_streams_of_their_own():
    first, second = streams_of(Pictures())
    assert (first.size, second.size) == (6, 8)
    assert first.writers == ("stem", "b") and first.readers == ("a", "c", "short")
    assert second.writers == ("c", "short") and second.readers == ("head",)
    assert {"norm.weight", "norm_b.bias"} <= first.tensors.keys()
    assert not any("running" in name for name in (*first.tensors, *second.tensors))  # which multiply nothing


def test_a_tied_table_writes_and_reads_and_a_mean_square_is_followed_however_it_is_written():
    for own in (True, False):
        (found,) = streams_of(Gated(own=own))
        assert found.writers == ("head", "down") and found.readers == ("head", "gate", "up")
        assert sorted(found.tensors["head.weight"]) == [1] and "norm.weight" in found.tensors


@pytest.mark.parametrize(
    "normalise",
    [
        lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt(),
        lambda x: torch.rsqrt(1e-3 + (x * x).mean((2,), keepdim=True)) * x,
    ],
)
def test_a_mean_square_in_other_words_is_the_same_function(normalise):
    class Net(nn.Module):
        def forward(self, x):
            return normalise(x) + 0

    x = torch.randn(3, 4, 6)
    graph = with_root_mean_squares(read_graph(Net(), x))
    (norm,) = [node for node in graph.nodes if node.op == "rms_norm"]
    torch.testing.assert_close(nn.functional.rms_norm(x, norm.args[1], None, norm.args[3]), normalise(x))


@pytest.mark.parametrize(
    "other",
    [
        lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-3),
        lambda x: x * torch.rsqrt(x.pow(3).mean(-1, keepdim=True) + 1e-3),
        lambda x: x * torch.rsqrt(x.cos().pow(2).mean(-1, keepdim=True) + 1e-3),
        lambda x: x / torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3),
    ],
)
def test_what_only_looks_like_one_stays(other):
    class Net(nn.Module):
        def forward(self, x):
            return other(x) + 0

    graph = with_root_mean_squares(read_graph(Net(), torch.randn(3, 4, 4)))
    assert not any(node.op == "rms_norm" for node in graph.nodes)


class Odd(nn.Module):
    """A sum of layers that something else mixes, or none at all."""

    def __init__(self, way: str):
        super().__init__()
        self.way, self.a, self.b, self.c = way, nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = self.a(x)
        if self.way == "input":
            return self.c(x + self.b(h))
        if self.way == "mixed":
            return self.c(torch.cumsum(h + self.b(h), 1))
        if self.way == "product":
            return self.c(h * self.b(x))
        return self.c(h.relu())


def test_what_cannot_leave_is_said_and_products_are_no_streams():
    x = torch.randn(3, 4)
    (found,) = streams_of(Odd("mixed"), x)
    assert found.writers == ("a", "b") and "cumsum" in found.obstacle and not found.tensors
    assert not any(own for own in streams_of(Odd("input"), x) if not own.obstacle)
    assert streams_of(Odd("product"), x) == streams_of(Odd("chain"), x) == ()
