"""What a program takes is told before it runs: shapes, work, and the memory that lives at the same time."""

import weakref
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pyro_bc
from pyro_bc.graph.arguments import check_program
from pyro_bc.graph.fast import PredictionNetwork
from pyro_bc.graph.forms import Form
from pyro_bc.graph.module import GraphNetwork
from pyro_bc.graph.nodes import Named, Node, Value, last_reads
from pyro_bc.graph.outline import form_of, outline

GOLDEN = Path(__file__).parents[1] / "golden"
X = Value(-1)


def cost(nodes, shape=(10,), batch=2, tensors=None):
    return outline(check_program(nodes), [Form((batch, *shape))], tensors or {}, batch).cost


@pytest.mark.parametrize("name", ["3-chain", "3-operations", "2-transformer", "3-lenet-5-caffe"])
def test_the_outline_of_a_network_is_what_it_computes(name):
    network = pyro_bc.read(GOLDEN / f"{name}.pbc")
    module, x = network.network(), torch.zeros(2, *network.input_shape, dtype=network.input_dtype)
    tensors = {name: form_of(tensor) for name, tensor in module.state_dict().items()}
    found = outline(check_program(network.nodes), [form_of(x)], tensors, 2)
    computed = [
        tuple(result.shape) if isinstance(result, torch.Tensor) else None
        for result in GraphNetwork.results(module, network.nodes, x)
    ]
    assert found.shapes() == computed


def test_multiplications_of_layers_are_their_products():
    """64 filters of 32 x 5 x 5 over 36 x 36 positions, half of which a stride leaves out, and 64 x 18 x 18 x 100."""
    products = 64 * 32 * 25 * 18**2 + 64 * 18**2 * 100
    nodes = (
        Node("conv2d", (X, Named("a"), None, (2, 2))), Node("flatten", (Value(0), 1)),
        Node("linear", (Value(1), Named("b"))),
    )  # fmt: skip
    tensors = {"a": Form((64, 32, 5, 5)), "b": Form((100, 64 * 18**2))}
    two, three = (cost(nodes, (32, 40, 40), batch, tensors).multiplications for batch in (2, 3))
    assert products < three - two < 1.2 * products


def test_what_is_not_read_any_more_is_free():
    """In a chain two results live at a time, whatever its length; what is read at the end lives until then."""
    numbers = 1000
    chain = [Node("relu", (Value(at - 1),)) for at in range(50)]
    assert cost(chain, (numbers,), 1).memory == 4 * numbers * 3  # and the input
    kept = [*chain, Node("cat", (tuple(map(Value, range(50))), 1))]
    assert cost(kept, (numbers,), 1).memory == 4 * numbers * (1 + 50 + 50)
    unread = [*[Node("exp", (X,))] * 50, Node("relu", (X,))]
    assert cost(unread, (numbers,), 1).memory == 4 * numbers * 2


def test_a_view_keeps_what_it_shows_and_takes_nothing():
    wide, size = Node("expand", (X, (-1, 1 << 20))), 1 << 20
    assert cost([wide, Node("select", (Value(0), 1, 3))], (1,), 1).memory == 4
    part = [wide, Node("clone", (Value(0),)), Node("slice", (Value(1), 1, 0, 1)), Node("reshape", (Value(2), (-1, 1)))]
    assert cost(part, (1,), 1).memory == 4 + 4 * size + 4
    last = [*part, Node("relu", (Value(3),)), Node("expand", (Value(4), (-1, size))), Node("exp", (Value(5),))]
    assert 4 + 4 * size < cost(last, (1,), 1).memory < 4 * size + 100  # the slice, and what it shows, are free


def test_a_result_is_freed_by_the_last_that_reads_it_or_at_once():
    nodes = [
        Node("relu", (X,)),
        Node("exp", (X,)),
        Node("add", (Value(0), Value(0))),
        Node("add", (Value(2), Value(0))),
    ]
    assert [set(done) for done in last_reads(nodes)] == [set(), {1, -1}, set(), {0, 2}]


@pytest.mark.parametrize("fast", [False, True])
def test_a_network_frees_what_it_does_not_read(fast):
    """Of forty results that nobody reads, one is there at a time."""
    wide = Node("expand", (X, (-1, 4)))
    nodes = (wide, *[Node("exp", (Value(0),))] * 40, Node("sum", (Value(0), (1,), True)))
    net = (PredictionNetwork if fast else GraphNetwork)(nodes, {})
    made, most = [], [0]

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.exp.default:
                made.append(weakref.ref(result))
                most[0] = max(most[0], sum(one() is not None for one in made))
            return result

    with torch.no_grad(), Watched():
        net(torch.zeros(1, 1))
    assert len(made) == 40 and most == [1]
