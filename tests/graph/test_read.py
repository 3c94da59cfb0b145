"""Graphs compute what the networks that they were read from do, and what cannot be read is named."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_bc.app.networks import Normalize
from pyro_bc.errors import UnsupportedNetworkError, UsageError
from pyro_bc.graph import read
from pyro_bc.graph.module import GraphNetwork
from pyro_bc.graph.nodes import Named, Node, Value
from pyro_bc.graph.read import read_graph


class Mixed(nn.Module):
    """Modules and functions, in-place writes, a branch, a view with the batch size, an embedding of positions."""

    def __init__(self):
        super().__init__()
        self.normalize = Normalize([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
        self.body = nn.ModuleDict({"a": nn.Conv2d(3, 4, 3, padding="same"), "b": nn.Linear(4 * 16, 5)})
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.position = nn.Parameter(torch.randn(1, 4, 4, 4))

    def forward(self, x):
        h = self.relu(self.norm(self.body["a"](self.normalize(x))))
        h = F.max_pool2d(h, 2) + self.position
        h = F.dropout(torch.cat([h, -h], 1)[:, 2:6], 0.5, self.training)
        return F.log_softmax(self.body["b"](h.reshape(h.size(0), -1)), -1)


@pytest.mark.parametrize("training", [True, False])
def test_a_graph_computes_what_the_network_does_in_evaluation_mode(training):
    torch.manual_seed(0)
    net = Mixed().train(training)
    net.norm.running_mean.normal_()
    graph = read_graph(net, torch.rand(1, 3, 8, 8))
    assert net.training == net.norm.training == training  # as it was
    assert [node.op for node in graph.nodes if node.op in ("dropout", "alias")] == []
    x = torch.rand(7, 3, 8, 8)
    assert torch.allclose(GraphNetwork(graph.nodes, graph.tensors, graph.buffers)(x), net.eval()(x), atol=1e-6)
    assert {"body.a.weight", "position", "norm.running_var"} <= set(graph.tensors)


class Asked(nn.Module):
    """Which place was the largest counts, too."""

    def forward(self, x):
        numbers, places = F.adaptive_max_pool2d(x, 1, return_indices=True)
        return numbers + places


@pytest.mark.parametrize(
    "net, op",
    [
        *((getattr(nn, f"AdaptiveMaxPool{n}d")(1), "amax") for n in (1, 2, 3)),
        (nn.AdaptiveMaxPool2d((1, 2)), "adaptive_max_pool2d"),
        (Asked(), "adaptive_max_pool2d"),
    ],
    ids=lambda own: str(own),
)
def test_the_largest_of_all_places_is_a_maximum_that_units_are_followed_through(net, op):
    x = torch.rand(3, 2, *[4] * int("".join(filter(str.isdigit, type(net).__name__)) or 2))
    graph = read_graph(net, x)
    assert graph.nodes[0].op == op and graph.shape(len(graph.nodes) - 1)[1:] == net(x).shape[1:]
    assert torch.equal(GraphNetwork(graph.nodes, graph.tensors, graph.buffers)(x), net(x))


def test_shapes_are_known_but_for_the_batch():
    graph = read_graph(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), torch.rand(2, 3, 2, 2))
    batch = graph.shape(-1)[0]
    assert isinstance(batch, str)
    assert [graph.shape(index) for index in (-1, 0, 1)] == [(batch, 3, 2, 2), (batch, 12), (batch, 5)]


def test_what_is_overwritten_in_place_is_read_as_overwritten():
    class Net(nn.Module):
        def forward(self, x):
            h = x + 1
            h.relu_()
            return h * 2

    x = torch.randn(5, 3)
    graph = read_graph(Net(), x)
    assert torch.equal(GraphNetwork(graph.nodes, graph.tensors, graph.buffers)(x), F.relu(x + 1) * 2)


def test_results_are_freed_after_their_last_use_and_the_input_can_be_used_late():
    nodes = (Node("relu", (Value(-1),)), Node("neg", (Value(0),)), Node("add", (Value(1), Value(-1))))
    x = torch.randn(4)
    assert torch.equal(GraphNetwork(nodes, {})(x), x - F.relu(x))


def test_names_of_tensors_survive_dots_and_shared_ones_are_stored_once():
    nodes = (Node("linear", (Value(-1), Named("a.b.weight"))), Node("linear", (Value(0), Named("a.b.weight"))))
    net = GraphNetwork(nodes, {"a.b.weight": torch.eye(3) * 2})
    assert torch.equal(net(torch.ones(1, 3)), torch.full((1, 3), 4.0))
    assert sum(p.numel() for p in net.parameters()) == 9


class Conditional(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Decomposes(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleDict({"svd": Svd()})

    def forward(self, x):
        return self.inner["svd"](x)


class Svd(nn.Module):
    def forward(self, x):
        return torch.linalg.svdvals(x)


class TwoOutputs(nn.Module):
    def forward(self, x):
        return x + 1, x + 2


class Random(nn.Module):
    def forward(self, x):
        return torch.rand_like(x)


class Remembers(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        self.mean.mul_(0.9).add_(x.mean((0, 1)))
        return self.fc(x - self.mean)


class Drops(Remembers):
    def forward(self, x):
        return self.fc(nn.functional.dropout(x, 0.5))


class Packs(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRU(3, 4, batch_first=True)

    def forward(self, x):
        lengths = torch.full((x.shape[0],), 3)
        return self.cell(nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True))[1][0]


@pytest.mark.parametrize(
    "net,message",
    [
        (Conditional(), r"decides by the numbers in a tensor \(test_read\.py, line \d+: .*\)$"),
        (Remembers(), "changes its buffer 'mean' as it predicts"),
        (Drops(), "F.dropout needs training=self.training"),
        (Packs(), "packed sequences have no fixed shape: give the layer padded ones"),
        (Decomposes(), r"'linalg_svdvals' in module 'inner\.svd'"),
        (TwoOutputs(), "a tuple of 0, 1; one tensor is needed: say which"),
        (nn.Identity(), "output is its input"),
        (Random(), "'rand_like'"),
    ],
)
def test_what_cannot_be_read_is_named(net, message, capfd):
    with pytest.raises(UnsupportedNetworkError, match=message):
        read_graph(net, torch.rand(2, 3, 3))
    assert capfd.readouterr().err == ""


def test_an_einsum_of_three_tensors_is_read_for_any_batch_size():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gates, self.up = nn.Linear(5, 4), nn.Linear(5, 12)
            self.down = nn.Parameter(torch.randn(4, 3, 2))

        def forward(self, x):
            hidden, gates = self.up(x).view(-1, 4, 3), self.gates(x).softmax(-1)
            return torch.einsum("beo,eoi,be->bi", hidden, self.down, gates)

    net, x = Experts(), torch.randn(7, 5)
    graph = read_graph(net, x[:2])
    assert torch.allclose(GraphNetwork(graph.nodes, graph.tensors, graph.buffers)(x), net(x), atol=1e-6)


def test_an_operation_that_is_not_known_is_named_with_the_users_own_line():
    class Inner(nn.Module):
        def forward(self, x):
            return x.i0()  # this line

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.inner = nn.Linear(4, 3), Inner()

        def forward(self, x):
            return self.inner(self.fc(x))

    expected = r"'i0' in module 'inner' \(test_read\.py, line \d+: return x\.i0\(\)  # this line\) cannot"
    with pytest.raises(UnsupportedNetworkError, match=expected):
        read_graph(Net(), torch.ones(2, 4))


def test_a_single_layer_needs_a_name():
    with pytest.raises(UnsupportedNetworkError, match=r"put it into an nn\.Sequential"):
        read_graph(nn.Linear(4, 3), torch.rand(2, 4))


def same(net, graph, *inputs):
    with torch.no_grad():
        expected, found = net.eval()(*inputs), GraphNetwork(graph.nodes, graph.tensors, graph.buffers)(*inputs)
    torch.testing.assert_close(found, expected)


class Positions(nn.Module):
    """A mask, positions, and a table that is written in part: nothing of it depends on the input but its size."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.table = nn.Parameter(torch.randn(9, 4))

    def forward(self, x):
        n = x.shape[1]
        places = torch.arange(n)[:, None] - torch.arange(n)[None] + n - 1
        mask = x.new_zeros((n, n))
        mask[:, n // 2 :] = 1
        mask = mask.masked_fill(mask != 0, -1e9).masked_fill(mask == 0, 0.0)
        scores = self.fc(x) @ x.transpose(1, 2) + mask + self.table[places.view(-1)].view(n, n, 4).mean(-1)
        return scores.softmax(-1, dtype=torch.float32) @ x


def test_what_does_not_depend_on_the_input_becomes_a_tensor():
    torch.manual_seed(0)
    net = Positions()
    graph = read_graph(net, torch.rand(2, 5, 4))
    same(net, graph, torch.randn(3, 5, 4))
    ops = {node.op for node in graph.nodes}
    assert not ops & {"arange", "new_zeros", "masked_fill.Scalar", "sub"}
    constants = {name: tensor for name, tensor in graph.tensors.items() if name.startswith("constants.")}
    assert sorted(tensor.numel() for tensor in constants.values()) == [25, 25]
    assert "table" in graph.tensors  # trained numbers keep their name
    assert set(constants) <= graph.buffers


@pytest.mark.parametrize("old", [True, False])
def test_a_weight_that_is_computed_is_a_layers_and_says_what_it_was_computed_from(old):
    norm = nn.utils.weight_norm if old else nn.utils.parametrizations.weight_norm
    net = nn.Sequential(norm(nn.Linear(4, 3)), nn.ReLU(), nn.Linear(3, 2))
    graph = read_graph(net, torch.rand(2, 4))
    same(net, graph, torch.randn(3, 4))
    assert [node.op for node in graph.nodes] == ["linear", "relu", "linear"]
    assert torch.equal(graph.tensors["0.weight"], net[0].weight) and len(graph.folded) == 2


class OfAnother(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return F.linear(self.fc(x), self.fc.weight.t() * 2)


def test_a_weight_that_may_get_a_posterior_is_never_folded():
    graph = read_graph(OfAnother(), torch.rand(2, 4))
    assert set(graph.tensors) == {"fc.weight", "fc.bias"} and not graph.folded
    assert "t" in {node.op for node in graph.nodes}


class InPart(nn.Module):
    def forward(self, x):
        h = x + 1
        h[:, :2] *= 2
        return h.renorm(2, 0, 1.0)


class Without(nn.Module):
    def forward(self, x):
        with torch.no_grad():
            h = x.relu()
        with torch.autocast("cpu", enabled=False):
            h = h * 2
        a, b, c = h.split([1, 2, 1], -1)
        return a + b.unbind(-1)[1][..., None] + (1 - c) + h.chunk(2, -1)[0]


@pytest.mark.parametrize("net", [InPart(), Without()])
def test_writes_into_parts_regions_pieces_and_what_torch_decomposes(net):
    graph = read_graph(net, torch.rand(2, 4))
    same(net, graph, torch.randn(3, 4))


@dataclasses.dataclass
class Result:
    loss: torch.Tensor | None
    logits: torch.Tensor
    hidden: torch.Tensor


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 3)

    def forward(self, ids, mask=None, scale=None):
        hidden = self.table(ids)
        if mask is not None:
            hidden = hidden * mask[..., None]
        if scale is not None:
            hidden = hidden * scale[:, None, None]
        return Result(None, self.head(hidden.mean(1)), hidden)


def test_one_of_several_outputs_is_chosen():
    net, ids = Several(), torch.randint(0, 7, (3, 5))
    graph = read_graph(net, ids)
    assert torch.allclose(GraphNetwork(graph.nodes, graph.tensors)(ids), net(ids).logits, atol=1e-6)
    graph = read_graph(net, ids, "hidden")
    assert torch.equal(GraphNetwork(graph.nodes, graph.tensors)(ids), net(ids).hidden)
    with pytest.raises(UnsupportedNetworkError, match=r"no output 'loss': it gives a Result of 'logits', 'hidden'"):
        read_graph(net, ids, "loss")
    graph = read_graph(TwoOutputs(), torch.rand(2, 3), 1)
    assert torch.equal(GraphNetwork(graph.nodes, graph.tensors)(torch.ones(1, 3)), torch.full((1, 3), 3.0))


def test_several_inputs_go_in_by_position_or_name():
    net = Several()
    ids, mask, scale = torch.randint(0, 7, (3, 5)), torch.rand(3, 5) < 0.5, torch.rand(3)
    for inputs, more in (((ids, mask), {}), ({"ids": ids, "scale": scale}, {"scale": scale})):
        graph = read_graph(net, inputs)
        batch = graph.shape(-1)[0]
        assert graph.shape(-1) == (batch, 5) and graph.shape(-2)[0] == batch
        values = tuple(inputs.values()) if more else inputs
        expected = net(ids, **more).logits if more else net(*values).logits
        assert torch.allclose(GraphNetwork(graph.nodes, graph.tensors)(*values), expected, atol=1e-6)
    with pytest.raises(UsageError, match="the batch first, as many in each"):
        read_graph(net, (ids, mask[:1]))


def test_a_network_that_training_changed_is_not_traced_again(monkeypatch):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 3)).eval()
    x = torch.randn(2, 1, 6, 6)
    read.graph_of_same(net, x)
    monkeypatch.setattr(read, "read_graph", None)
    with torch.no_grad():
        for tensor in (*net.parameters(), net[1].running_mean):
            tensor.add_(torch.rand_like(tensor))
    graph = read.graph_of_same(net, torch.randn(5, 1, 6, 6))
    assert torch.allclose(GraphNetwork(graph.nodes, graph.tensors, graph.buffers)(x), net(x))


def test_a_network_of_which_something_was_computed_is_traced_again():
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.head = nn.Parameter(torch.randn(3, 4)), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(torch.nn.functional.linear(x, self.w * 2))

    net, x = Folded(), torch.randn(2, 4)
    read.graph_of_same(net, x)
    net.w.data.mul_(3)
    graph = read.graph_of_same(net, x)
    assert torch.allclose(GraphNetwork(graph.nodes, graph.tensors, graph.buffers)(x), net(x))


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("batch_first", [True, False])
def test_layers_and_directions_of_recurrent_cells_are_nodes_of_their_own(cell, batch_first):
    class Outputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cell(3, 4, 2, batch_first=True, bidirectional=True)
            self.cell.batch_first = batch_first

        def forward(self, x):
            h = self.cell(x if batch_first else x.transpose(0, 1))[0]
            return h if batch_first else h.transpose(0, 1)

    net, x = Outputs().eval(), torch.randn(5, 6, 3)
    graph = read_graph(net, x)
    of_cells = [node for node in graph.nodes if cell.__name__.lower() in node.op]
    assert len(of_cells) == 4
    assert torch.allclose(GraphNetwork(graph.nodes, graph.tensors, graph.buffers)(x), net(x), atol=1e-6)
