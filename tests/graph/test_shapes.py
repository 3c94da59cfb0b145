"""A rule of a shape says what torch says, or nothing: it lets no graph pass that torch would refuse."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import pyro_bc
from pyro_bc.graph.nodes import Named, Node, Value
from pyro_bc.graph.operations import OPERATIONS
from pyro_bc.graph.shapes import shapes_by_rules

from .test_operations import Case, examples

GOLDEN = Path(__file__).parents[1] / "golden"
WITH_RULES = [row for row in OPERATIONS if row.shape is not None]


def random_arguments(op: str, generator: np.random.Generator) -> tuple:
    """Arguments that often fit an operation, and often nearly do: a size, a type or a number of them is wrong."""

    def sizes(count):
        return tuple(map(int, generator.choice([1, 2, 3, 4, 6], count)))

    def tensor(*shape):
        if generator.random() < 0.05:
            shape = (*shape, 2)
        if generator.random() < 0.05:
            shape = tuple(0 if generator.random() < 0.3 else size for size in shape)
        dtype = torch.int64 if generator.random() < 0.05 else torch.float32
        return torch.empty(shape, dtype=dtype, device="meta")

    def integers(count):
        values = [int(generator.choice([0, 1, 2, 3, -1], p=[0.1, 0.5, 0.25, 0.1, 0.05])) for _ in range(count)]
        return [float(value) if generator.random() < 0.02 else value for value in values]

    x = tensor(*sizes(generator.choice([1, 2, 3, 4])))
    if op == "linear":
        out = int(generator.integers(1, 5))
        inputs = x.shape[-1] if generator.random() < 0.8 else 5
        args = (x, tensor(out, inputs), tensor(out if generator.random() < 0.8 else 7))
    elif op in ("conv1d", "conv2d"):
        spatial, groups = int(op[4]), int(generator.choice([1, 1, 2]))
        channels, filters = int(generator.choice([1, 2, 4])), int(generator.choice([2, 4, 3]))
        x = tensor(2, channels * (groups if generator.random() < 0.9 else 1), *sizes(spatial))
        weight = tensor(filters, channels, *sizes(spatial))
        args = (x, weight, tensor(filters), *(integers(spatial) for _ in range(3)), groups)
        args = (*args[:4], [0] * spatial, *args[5:]) if generator.random() < 0.5 else args
    elif op == "max_pool2d":
        x = tensor(*sizes(4))
        args = (x, integers(2), integers(2) if generator.random() < 0.7 else [])
    elif op == "flatten":
        args = (x, int(generator.integers(-3, 4)), int(generator.integers(-3, 4)))
    elif op == "index_select":
        index = torch.empty(3, dtype=torch.int64, device="meta") if generator.random() < 0.8 else tensor(3)
        args = (x, int(generator.integers(-3, 4)), index)
    elif op in ("add", "sub", "mul", "div", "maximum", "minimum"):
        shape = [size if generator.random() < 0.6 else 1 for size in x.shape][int(generator.integers(0, 2)) :]
        args = (x, tensor(*shape))
    else:
        args = (x, *integers(int(generator.random() < 0.1)))
    return args[: len(args) if generator.random() < 0.5 else int(generator.integers(1, len(args) + 1))]


def nearly(args: tuple, generator: np.random.Generator) -> tuple:
    """These arguments with some of them changed: a size, a type, a number, or how many there are."""

    def number():
        return int(generator.choice([-3, -2, -1, 0, 1, 2, 3, 4, 6, 1 << 40]))

    def changed(argument):
        if generator.random() > 1.5 / len(args):
            return argument
        if isinstance(argument, torch.Tensor):
            shape = list(argument.shape)
            kind = generator.random()
            if shape and kind < 0.6:
                shape[int(generator.integers(len(shape)))] = abs(number()) % 9
            elif kind < 0.8:
                shape = [*shape, 2] if generator.random() < 0.5 else shape[1:]
            dtype = torch.int64 if kind > 0.9 else argument.dtype
            return torch.empty(shape, dtype=dtype, device="meta")
        if isinstance(argument, list):
            several = [changed(entry) for entry in argument]
            kind = generator.random()
            return several[1:] if kind < 0.1 else [*several, number()] if kind < 0.2 else several
        return [number(), number(), float(number()), None, True, False][int(generator.integers(6))]

    changes = tuple(map(changed, args))
    return changes if generator.random() < 0.8 else changes[: int(generator.integers(1, len(args) + 1))]


def drawn(row):
    """Arguments of an operation: those of its examples, and many that are random or nearly those."""
    generator = np.random.default_rng(row.code)
    for example in examples(row):
        case = Case(row, example)
        args = case.computed(case.results(case.tensors, case.input(2)), case.tensors)[0]
        args = tuple(_without_storage(argument) for argument in args)
        yield args
        yield from (nearly(args, generator) for _ in range(400))
    yield from (random_arguments(row.name, generator) for _ in range(400))


def _without_storage(argument):
    if isinstance(argument, list):
        return list(map(_without_storage, argument))
    return argument.to("meta") if isinstance(argument, torch.Tensor) else argument


@pytest.mark.parametrize("row", WITH_RULES, ids=lambda row: row.name)
def test_a_rule_says_what_torch_says(row):
    known = 0
    for args in drawn(row):
        shape = row.shape(args)
        if shape is not None:
            result = row.function(*args)
            assert tuple(result.shape) == shape and result.dtype == torch.float32
            known += 1
    assert known > 25


@pytest.mark.parametrize("row", WITH_RULES, ids=lambda row: row.name)
def test_a_rule_knows_the_usual_forms(row):
    for example in examples(row):
        case = Case(row, example)
        args = case.computed(case.results(case.tensors, case.input(2)), case.tensors)[0]
        if row.name == "avg_pool2d" and len(args) > 4 and args[4]:
            continue  # ceil_mode: torch is asked
        assert row.shape(tuple(map(_without_storage, args))) is not None


def test_the_shapes_of_a_network_are_those_that_it_computes():
    network = pyro_bc.read(GOLDEN / "3-chain.pbc")
    tensors = {name: tensor.values() for name, tensor in network.tensors.items()}
    module, x = network.network(), torch.zeros(2, *network.input_shape)
    computed = [tuple(result.shape) for result in module.results(network.nodes, x)]
    assert shapes_by_rules(network.nodes, tensors, tuple(x.shape), 2 * 9 * 9 * 8) == computed
    assert shapes_by_rules(network.nodes, tensors, tuple(x.shape), max(map(np.prod, computed)) - 1) is None


def test_what_no_rule_knows_is_left_to_torch():
    relu = Node("relu", (Value(-1),))
    for node in (
        Node("softmax", (Value(0), 1, "float64")),
        Node("gelu", (Value(0),), (("approximate", "tanh"),)),
        Node("linear", (Value(0), Named("w"))),
    ):
        assert shapes_by_rules((relu, node), {"w": torch.zeros(3, 5)}, (2, 4), 100) is None
    assert shapes_by_rules((relu, relu), {}, (2, 4), 100) == [(2, 4), (2, 4)]


def test_common_networks_need_no_other_rule():
    ops = Counter(
        node.op
        for name in ("2-lenet-300-100-digits", "2-regression", "3-lenet-5-caffe", "3-chain", "2-transformer")
        for node in pyro_bc.read(GOLDEN / f"{name}.pbc").nodes
    )
    assert set(ops) <= {row.name for row in WITH_RULES}
