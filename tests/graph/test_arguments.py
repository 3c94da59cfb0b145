"""Arguments are looked at before anything is computed: every row's example is taken, every mutation of it refused."""

from dataclasses import replace

import pytest
import torch

from graph.test_operations import EXAMPLES, examples
from pyro_bc.errors import UnsupportedNetworkError
from pyro_bc.graph.arguments import check_program, named_arguments, signatures
from pyro_bc.graph.cells import GATES
from pyro_bc.graph.nodes import Named, Node, Value, leaves
from pyro_bc.graph.operations import OPERATIONS

X = Value(-1)


def node_of(row, example):
    """An example's node; a cell's state, which the network may not have of its own, is a result."""
    args = example.args
    if row.name in GATES:
        args = (args[0], (Value(2), Value(2)) if row.name == "lstm" else Value(2), *args[2:])
    types = {key: str(value).removeprefix("torch.") for key, value in example.kwargs if isinstance(value, torch.dtype)}
    return Node(row.name, args, tuple((dict(example.kwargs) | types).items()))


CASES = [pytest.param(row, case, id=f"{row.name}-{i}") for row in OPERATIONS for i, case in enumerate(examples(row))]


def test_every_row_has_signatures_that_torch_says():
    for row in OPERATIONS:
        assert signatures(row.name), row.name
    (linear,) = signatures("linear")
    assert [own.name for own in linear.parameters] == ["input", "weight", "bias"] and linear.result == "Tensor"
    assert {found.result for found in signatures("chunk")} == {"List[Tensor]"}


def parameters_at(op, position):
    """What an operation takes at a position, in all ways of calling it."""
    return [own for found in signatures(op) for own in found.parameters[position : position + 1]]


@pytest.mark.parametrize("row,example", CASES)
def test_an_example_is_taken_and_no_mutation_of_it(row, example):
    if row.name == "to":
        example = replace(example, args=example.args[:1], kwargs=(("dtype", "int64"),))
    node = node_of(row, example)
    assert named_arguments(node)
    long = ("sum", "mean", "amax", "squeeze", "permute", "reshape", "view", "expand", "unflatten", "zeros", "pad")
    mutants = [
        replace(node, args=(*node.args, *["no argument"] * 12)),
        replace(node, kwargs=(*node.kwargs, ("bogus", 1))),
        replace(node, args=()),
    ]
    for at, argument in enumerate(node.args):
        for other in (1 << 70, "load", (((1,),),), 0.5 if type(argument) is int else None, True, -(1 << 70)):
            if type(other) is type(argument) or (other is None and not isinstance(argument, tuple | int)):
                continue
            if other is None and any(own.is_optional for own in parameters_at(row.name, at)):
                continue
            if type(other) in (float, bool) and "number" in [own.kind for own in parameters_at(row.name, at)]:
                continue  # any number will do
            if other is None and (row.name in long or type(argument) is bool or at > 1):
                continue  # means all, or the default
            mutants.append(replace(node, args=(*node.args[:at], other, *node.args[at + 1 :])))
        if any(type(leaf) is int for leaf in leaves(argument)) and isinstance(argument, tuple):
            huge = tuple(1 << 70 if type(leaf) is int else leaf for leaf in argument)
            mutants.append(replace(node, args=(*node.args[:at], huge, *node.args[at + 1 :])))
    for mutant in mutants:
        with pytest.raises(UnsupportedNetworkError):
            named_arguments(mutant)


W = Named("w")


@pytest.mark.parametrize(
    "node,message",
    [
        (Node("softmax", (X, 1, 1000)), "'dtype' cannot be 1000"),
        (Node("sum", (X, (1,)), (("dtype", "load"),)), "'dtype' cannot be 'load'"),
        (Node("conv2d", (X, W, None), (("stride", (2, 2)),)), "takes no arguments by name"),
        (Node("conv2d", (X, W, None, (1, 1), (1 << 61, 0))), "'padding' lies between 0 and 65,536"),
        (Node("conv2d", (X, W, None, (1, 1), "sam\x1b[31m")), r"'padding' is one of valid, same, not 'sam\\x1b\[31m'"),
        (Node("conv2d", (X, W, None, (Value(0), 1))), "'stride' cannot be the result of operation 1"),
        (Node("linear", (X, W, None, 7)), "takes 3 arguments, not 4"),
        (Node("zeros", ((1 << 20, 1 << 20),)), "comes to more than 268,435,456 numbers"),
        (Node("upsample_nearest2d", (X, None, (1e9, 1.0))), "'scale_factors' cannot be 1000000000.0"),
        (Node("scaled_dot_product_attention", (X, X, X, None, 0.5)), "'dropout_p' is 0.0"),
        (Node("batch_norm", (X, None, None, W, W, True, 0.1, 1e-5, False)), "write the batch's statistics"),
        (Node("grid_sampler", (X, X, 3, 0, False)), "'interpolation_mode' lies between 0 and 2"),
        (Node("grid_sampler", (X, X, 0, -1, False)), "'padding_mode' lies between 0 and 2"),
        (Node("cdist", (X, X, 2.0, 7)), "'compute_mode' lies between 0 and 2"),
        (Node("repeat", (X, (1 << 15, 1 << 15))), "'repeats' comes to more than 268,435,456 numbers"),
        (Node("gru", (X, W, (W,) * 4, True, 1, 0.0, False, False, True)), "'hx' is a tensor of the network's own"),
        (Node("gru", (X, X, (W,) * 4, True, 1, 0.0, True, False, True)), "'train' is False"),
        (Node("relu", ("text",)), "'self' cannot be 'text'"),
    ],
)
def test_what_is_wrong_is_named(node, message):
    with pytest.raises(UnsupportedNetworkError, match=message):
        check_program([Node("relu", (X,)), node])


def test_a_program_comes_from_its_input_to_one_tensor():
    size, pieces = Node("size", (X, 0)), Node("chunk", (X, 2, 1))
    check_program([size, Node("zeros", ((Value(0), 3),)), Node("add", (Value(1), X))])
    check_program([pieces, Node("getitem", (Value(0), 1))])
    check_program([Node("zeros", ((2,),)), Node("size", (X, 0)), Node("add", (Value(0), Value(1)))])
    for nodes, message in (
        ([pieces], "output is no tensor"),
        ([size], "output is no tensor"),
        ([], "output is no tensor"),
        ([Node("zeros", ((2, 3),))], "does not depend on its input"),
        ([pieces, Node("relu", (Value(0),))], "operation 2, relu: 'self' cannot be the result of operation 1"),
        ([size, Node("relu", (Value(0),))], "cannot be the result of operation 1"),
        ([Node("relu", (X,)), Node("zeros", ((Value(0), 3),))], "cannot be the result of operation 1"),
        ([Node("relu", (X,)), Node("getitem", (Value(0), 0))], "'pieces' are several tensors"),
    ):
        with pytest.raises(UnsupportedNetworkError, match=message):
            check_program(nodes)


def test_defaults_are_torchs():
    given = named_arguments(Node("flatten", (X,)))
    assert (given["start_dim"], given["end_dim"]) == (0, -1)
    assert named_arguments(Node("conv2d", (X, W)))["stride"] == (1, 1)
    assert named_arguments(Node("slice", (X, 1, None, torch.iinfo(torch.int64).max)))["step"] == 1
    assert set(EXAMPLES)  # the rows' own
