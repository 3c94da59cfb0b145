"""What every row of the table of operations promises: its code, its function, its rules, and that its flags are true.

A new operation joins by an example of it in ``EXAMPLES``.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_bc.graph.constants import propagate
from pyro_bc.graph.layer_types import LAYER_TYPES, layer_type
from pyro_bc.graph.module import GraphNetwork
from pyro_bc.graph.nodes import Graph, Named, Node, Value, arguments, is_layer, layer_name
from pyro_bc.graph.operations import OPERATIONS
from pyro_bc.graph.units import Tracking

# The names in the order of their codes, written out: files depend on them.
NAMES = [
    "linear", "conv2d", "conv1d", "max_pool2d", "flatten", "batch_norm", "add", "cat", "index_select", "sub",
    "mul", "div", "avg_pool2d", "adaptive_avg_pool2d", "mean", "view", "reshape", "transpose", "permute",
    "squeeze", "unsqueeze", "unflatten", "select", "slice", "layer_norm", "softmax",
    "scaled_dot_product_attention", "expand", "pad", "matmul", "bmm", "sum", "amax", "max_pool1d",
    "avg_pool1d", "adaptive_avg_pool1d", "group_norm", "log_softmax", "upsample_nearest2d",
    "adaptive_max_pool2d", "gru", "lstm", "zeros", "getitem", "size", "int_add", "int_sub", "int_mul",
    "int_floordiv", "maximum", "minimum", "prelu", "rms_norm", "chunk", "split", "stack", "embedding",
    "pixel_shuffle", "instance_norm", "t", "relu", "tanh", "sigmoid", "gelu", "silu", "softplus", "elu",
    "leaky_relu", "relu6", "hardtanh", "hardsigmoid", "hardswish", "selu", "mish", "celu", "log_sigmoid",
    "neg", "abs", "exp", "log", "sqrt", "rsqrt", "square", "pow", "clamp", "contiguous", "clone", "erf",
    "sin", "cos", "conv_transpose2d", "to",
]  # fmt: skip

#: layers that came later, by their codes.
LATER = {
    400: "conv3d",
    401: "conv_transpose1d",
    402: "conv_transpose3d",
    403: "lookup",
    404: "rnn_tanh",
    405: "rnn_relu",
}


def test_codes_are_those_that_files_hold():
    assert {row.code: row.name for row in OPERATIONS} == dict(enumerate(NAMES)) | LATER
    assert len(OPERATIONS) == len({row.name for row in OPERATIONS})


#: arguments behind the tensor of operations that need some.
MORE = {"pow": (2,), "clamp": (-0.5, 0.5), "to": (torch.int64,)}

#: results of two layers of four units each, which the operation of an example may read.
A, B = Value(0), Value(1)

PICTURES, SEQUENCES, ROWS, VOLUMES = (nn.Conv2d, (6, 6)), (nn.Conv1d, (6,)), (nn.Linear, ()), (nn.Conv3d, (4, 4, 4))


@dataclass(frozen=True)
class Example:
    """An operation's arguments, of which the layers' results are some, and who computes the same.

    :param args: of the operation; ``Value(2)`` is the result of ``before``.
    :param reference: torch's public function, which takes the same arguments, looked up.
    :param tensors: that the arguments name: shapes of random ones, or the tensors themselves.
    :param after: type of the two layers, and the dimensions of their results behind the units.
    :param before: a node between the layers and the operation.
    :param kwargs: of the operation, as a node has them.
    """

    args: tuple[Any, ...]
    reference: Callable[..., Any]
    tensors: dict[str, Any] = field(default_factory=dict)
    after: tuple[type[nn.Module], tuple[int, ...]] = PICTURES
    before: Node | None = None
    kwargs: tuple[tuple[str, Any], ...] = ()


def layer(op, weight, outputs, *more, after=PICTURES):
    """An example of a layer with a weight of this shape, behind two of another type, or of its own."""
    args = (A, Named("op.weight"), Named("op.bias"), *more)
    return Example(args, layer_type(op).function, {"op.weight": weight, "op.bias": (outputs,)}, after)


W, SHIFT, MEAN, VARIANCE = map(Named, ("w", "shift", "mean", "variance"))
CELL = tuple(map(Named, ("ih", "hh", "bih", "bhh")))


def normalised(args, reference):
    """An example of a normalisation of channels."""
    return Example(args, reference, dict.fromkeys(("w", "shift", "mean", "variance"), (4,)))


def recurrent(module, gates, state):
    def reference(x, hidden, weights, *options):
        cell = module(6, 3)
        for parameter, weight in zip(cell.parameters(), weights, strict=True):
            parameter.data = weight
        outputs, last = cell(x, tuple(hidden) if isinstance(hidden, list) else hidden)
        return (outputs, *last) if isinstance(last, tuple) else (outputs, last)

    shapes = {"h": (1, 4, 3), "ih": (3 * gates, 6), "hh": (3 * gates, 3), "bih": (3 * gates,), "bhh": (3 * gates,)}
    return Example((A, state, CELL, True, 1, 0.0, False, False, False), reference, shapes, SEQUENCES)


#: a gain that is 0 for some channels.
HALF = torch.tensor([0.5, 0.0, 1.5, 0.0])
ONE_POSITION = Node("mean", (A, (2, 3), True))
TURNED = Node("transpose", (B, 1, 2))

#: by the name of the operation; of the element-wise ones only those whose function has another name in torch.
EXAMPLES: dict[str, list[Example]] = {
    "linear": [layer("linear", (3, 4), 3, after=ROWS), layer("linear", (3, 6), 3)],
    "conv1d": [layer("conv1d", (3, 4, 3), 3, (1,), (1,), after=SEQUENCES)],
    "conv2d": [
        layer("conv2d", (3, 4, 3, 3), 3, (2, 2), (1, 1)),
        layer("conv2d", (4, 1, 1, 1), 4, (1, 1), (0, 0), (1, 1), 4),
        layer("conv2d", (6, 2, 1, 1), 6, (1, 1), (0, 0), (1, 1), 2),
    ],
    "lookup": [
        Example(
            (Named("rows"), Named("op.weight"), None, 2),
            lambda rows, weight, bias, padding: F.embedding(rows, weight, padding),
            {"rows": torch.tensor([[0, 2], [3, 1], [3, 3]]), "op.weight": (4, 3), "op.bias": (3,)},
        )
    ],
    "conv3d": [
        layer("conv3d", (6, 4, 3, 3, 3), 6, (2, 1, 2), (1, 1, 1), (1, 1, 1), 1, after=VOLUMES),
        layer("conv3d", (6, 2, 1, 2, 3), 6, (1, 1, 1), (0, 1, 0), (2, 1, 1), 2, after=VOLUMES),
    ],
    "conv_transpose1d": [
        layer("conv_transpose1d", (4, 3, 3), 3, (2,), (1,), (1,), 1, (2,), after=SEQUENCES),
        layer("conv_transpose1d", (4, 3, 3), 6, (2,), (0,), (0,), 2, (1,), after=SEQUENCES),
    ],
    "conv_transpose3d": [
        layer("conv_transpose3d", (4, 3, 3, 2, 3), 3, (2, 1, 2), (1, 0, 1), (1, 0, 1), 1, (2, 1, 1), after=VOLUMES),
    ],
    "conv_transpose2d": [
        layer("conv_transpose2d", (4, 3, 3, 3), 3, (2, 2), (1, 1), (1, 1), 1, (2, 2)),
        layer("conv_transpose2d", (4, 3, 3, 3), 6, (2, 2), (0, 0), (0, 0), 2, (1, 1)),
    ],
    "max_pool2d": [Example((A, (2, 2), (2, 2)), F.max_pool2d), Example((A, (3, 3), (1, 1), (1, 1)), F.max_pool2d)],
    "avg_pool2d": [
        Example((A, (2, 2), (2, 2)), F.avg_pool2d),
        Example((A, (3, 3), (1, 1), (1, 1)), F.avg_pool2d),
        Example((A, (3, 3), (1, 1), (1, 1), False, False), F.avg_pool2d),
        Example((A, (2, 2), (2, 2), (0, 0), False, True, 3), F.avg_pool2d),
        Example((A, (3, 2), (2, 2), (0, 0), True, True, 5), F.avg_pool2d),
        Example((A, (3, 2), (2, 2), (0, 0), True), F.avg_pool2d),
    ],
    "adaptive_avg_pool2d": [Example((A, (2, 3)), F.adaptive_avg_pool2d)],
    "adaptive_max_pool2d": [Example((A, (2, 2)), lambda x, size: F.adaptive_max_pool2d(x, size, True))],
    "max_pool1d": [Example((A, (2,), (2,)), F.max_pool1d, after=SEQUENCES)],
    "avg_pool1d": [
        Example((A, (2,), (2,)), F.avg_pool1d, after=SEQUENCES),
        Example((A, (3,), (1,), (1,)), F.avg_pool1d, after=SEQUENCES),
    ],
    "adaptive_avg_pool1d": [Example((A, (3,)), F.adaptive_avg_pool1d, after=SEQUENCES)],
    "upsample_nearest2d": [
        Example((A, None, (2.0, 2.0)), lambda x, _, scales: F.interpolate(x, scale_factor=tuple(scales)))
    ],
    "flatten": [Example((A, 1), torch.flatten), Example((A, 2), torch.flatten)],
    "batch_norm": [
        normalised(
            (A, W, SHIFT, MEAN, VARIANCE, False, 0.1, 1e-5, False),
            lambda x, w, b, m, v, training, momentum, eps, _: F.batch_norm(x, m, v, w, b, training, momentum, eps),
        )
    ],
    "instance_norm": [
        normalised(
            (A, W, SHIFT, None, None, True, 0.1, 1e-5, False),
            lambda x, w, b, m, v, own, momentum, eps, _: F.instance_norm(x, m, v, w, b, own, momentum, eps),
        )
    ],
    "group_norm": [
        normalised((A, 2, W, SHIFT, 1e-5), F.group_norm),
        Example((A, 2, W, SHIFT, 1e-5), F.group_norm, {"w": HALF, "shift": (4,)}),
    ],
    "layer_norm": [
        Example((A, (6, 6), W, SHIFT, 1e-5), F.layer_norm, {"w": (6, 6), "shift": (6, 6)}),
        Example((A, (4,), W, SHIFT, 1e-5), F.layer_norm, {"w": HALF, "shift": (4,)}, after=ROWS),
    ],
    "rms_norm": [
        Example((A, (6, 6), W, 1e-5), F.rms_norm, {"w": (6, 6)}),
        Example((A, (4,), W, 1e-5), F.rms_norm, {"w": (4,)}, after=ROWS),
    ],
    **{
        name: [
            Example((A, B), getattr(torch, name)),
            Example((A, W), getattr(torch, name), {"w": (4, 1, 1)}),
            Example((A, Value(2)), getattr(torch, name), before=ONE_POSITION),
        ]
        for name in ("add", "sub", "mul", "div", "maximum", "minimum")
    },
    "matmul": [Example((A, B), torch.matmul), Example((A, Value(2)), torch.matmul, after=SEQUENCES, before=TURNED)],
    "bmm": [Example((A, Value(2)), torch.bmm, after=SEQUENCES, before=TURNED)],
    "cat": [Example(((A, B), 1), torch.cat), Example(((A, B), 2), torch.cat)],
    "stack": [Example(((A, B), 1), torch.stack)],
    "index_select": [
        Example((A, 1, W), torch.index_select, {"w": torch.tensor([3, 1, 2])}),
        Example((A, -1, W), torch.index_select, {"w": torch.tensor([3, 1])}),
    ],
    "mean": [Example((A, (2, 3)), torch.mean), Example((A, (-1,), True), torch.mean)],
    "sum": [Example((A, (2, 3)), torch.sum), Example((A, (1,)), torch.sum)],
    "amax": [Example((A, (2, 3)), torch.amax), Example((A, (-1,), True), torch.amax)],
    "view": [Example((A, (-1, 4, 36)), lambda x, shape: x.view(shape))],
    "reshape": [Example((A, (-1, 144)), torch.reshape), Example((A, (-1, 2, 2, 36)), torch.reshape)],
    "unflatten": [Example((A, 1, (2, 2)), torch.unflatten), Example((A, 2, (2, 3)), torch.unflatten)],
    "squeeze": [Example((Value(2), (2, 3)), torch.squeeze, before=ONE_POSITION)],
    "unsqueeze": [Example((A, 1), torch.unsqueeze), Example((A, -1), torch.unsqueeze)],
    "transpose": [Example((A, 1, 2), torch.transpose)],
    "permute": [Example((A, (0, 2, 3, 1)), torch.permute)],
    "t": [Example((A,), torch.t, after=ROWS)],
    "select": [Example((A, 2, 1), torch.select), Example((A, 1, 2), torch.select)],
    "slice": [
        Example((A, 2, 1, 3), lambda x, _, start, end: x[:, :, start:end]),
        Example((A, 1, 1, 3), lambda x, _, start, end: x[:, start:end]),
    ],
    "expand": [Example((Value(2), (-1, 4, 5, 6)), lambda x, size: x.expand(size), before=ONE_POSITION)],
    "pad": [Example((A, (1, 1), "constant", 0.5), F.pad), Example((A, (0, 0, 0, 0, 1, 0)), F.pad)],
    "chunk": [Example((A, 2, 1), torch.chunk)],
    "split": [Example((A, 2, 1), torch.split)],
    "softmax": [Example((A, 1), torch.softmax), Example((A, 2), torch.softmax)],
    "log_softmax": [Example((A, 1), torch.log_softmax), Example((A, 2), torch.log_softmax)],
    "scaled_dot_product_attention": [Example((A, B, A), F.scaled_dot_product_attention)],
    "pixel_shuffle": [Example((A, 2), F.pixel_shuffle)],
    "prelu": [Example((A, W), F.prelu, {"w": (4,)})],
    "embedding": [
        Example((W, SHIFT), lambda w, index: F.embedding(index, w), {"w": (5, 3), "shift": torch.tensor([[4, 0]])})
    ],
    "gru": [recurrent(nn.GRU, 3, Named("h"))],
    "rnn_tanh": [recurrent(nn.RNN, 1, Named("h"))],
    "rnn_relu": [recurrent(partial(nn.RNN, nonlinearity="relu"), 1, Named("h"))],
    "lstm": [recurrent(nn.LSTM, 4, (Named("h"), Named("h")))],
    "zeros": [Example(((2, 3),), torch.zeros)],
    "getitem": [Example(((A, B), 1), operator.getitem)],
    "size": [Example((A, 1), lambda x, axis: x.shape[axis])],
    "int_add": [Example((7, 3), operator.add)],
    "int_sub": [Example((7, 3), operator.sub)],
    "int_mul": [Example((7, 3), operator.mul)],
    "int_floordiv": [Example((7, 3), operator.floordiv)],
    "log_sigmoid": [Example((A,), F.logsigmoid)],
    "to": [Example((A,), lambda x, dtype: x.to(dtype), kwargs=(("dtype", "int64"),))],
    "contiguous": [Example((A,), lambda x: x.contiguous())],
}  # fmt: skip


def test_every_example_is_of_a_row():
    assert set(EXAMPLES) <= {row.name for row in OPERATIONS}


def examples(row):
    if row.elementwise and row.name not in EXAMPLES:
        found = getattr(torch, row.name, None) or getattr(F, row.name)
        return [Example((A, *MORE.get(row.name, ())), found)]
    return EXAMPLES[row.name]


CASES = pytest.mark.parametrize(
    "row,example",
    [pytest.param(row, case, id=f"{row.name}-{i}") for row in OPERATIONS for i, case in enumerate(examples(row))],
)


class Case:
    """An example as a graph: two layers, perhaps a node, the operation, and a size, for which no unit must stay."""

    def __init__(self, row, example, seed=0):
        self.row, self.generator = row, torch.Generator().manual_seed(seed)
        module, positions = example.after
        self.kind = next(kind for kind in LAYER_TYPES if kind.module is module)
        self.input_shape = (3, *positions)
        self.kernel = (1,) * self.kind.spatial
        shapes = {"weight": (4, 3, *self.kernel), "bias": (4,)}
        tensors = {f"{name}.{role}": self.random(*shape) - 0.5 for name in "ab" for role, shape in shapes.items()}
        for name, given in example.tensors.items():
            tensors[name] = given if isinstance(given, torch.Tensor) else self.random(*given)
        nodes = [Node(self.kind.op, (Value(-1), Named(f"{x}.weight"), Named(f"{x}.bias"))) for x in "ab"]
        nodes += [example.before] if example.before else []
        self.at = len(nodes)
        nodes += [Node(row.name, example.args, example.kwargs), Node("size", (Value(self.at), 0))]
        self.nodes, self.tensors = tuple(nodes), tensors
        two, three = ([self.input(n), *self.results(tensors, self.input(n))] for n in (2, 3))
        self.graph = Graph(self.nodes, tensors, tuple(map(_symbolic_shape, two, three)))

    def random(self, *shape):
        """Numbers between 0.1 and 1.1, which every operation takes."""
        return torch.rand(shape, generator=self.generator) + 0.1

    def input(self, n):
        return torch.randn(n, *self.input_shape, generator=self.generator)

    def results(self, tensors, x):
        """Results of all nodes but the last, for tensors of these values."""
        with torch.no_grad():
            return list(GraphNetwork(self.nodes[:-1], tensors).results(self.nodes[:-1], x))

    def with_constants(self, outputs):
        """Tensors with which the two layers compute these constants, and what the rule makes of them."""
        tensors = dict(self.tensors)
        for name, constants in outputs.items():
            reads = torch.from_numpy(np.isnan(constants))
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"] * self.kind.over_outputs(reads, (4, 3, *self.kernel))
            tensors[f"{name}.bias"] = tensors[f"{name}.bias"].where(reads, torch.from_numpy(constants).float())
        node = self.nodes[self.at]
        none = {layer_name(node): np.full(len(tensors["op.bias"]), np.nan)} if is_layer(node) else {}
        return tensors, propagate(replace(self.graph, tensors=tensors), outputs | none)[self.at]

    def computed(self, values, tensors):
        """The operation alone, given the results of the nodes before it."""

        def lookup(leaf):
            if isinstance(leaf, Value):
                return values[leaf.index]
            return tensors[leaf.name] if isinstance(leaf, Named) else leaf

        args, kwargs = arguments(self.nodes[self.at], lookup)
        return args, self.row.function(*args, **kwargs)


def _symbolic_shape(two, three):
    if not isinstance(two, torch.Tensor):
        return None
    return tuple(a if a == b else "batch" for a, b in zip(two.shape, three.shape, strict=True))


@CASES
def test_a_row_computes_what_torchs_function_does(row, example):
    case = Case(row, example)
    args, found = case.computed(case.results(case.tensors, case.input(2)), case.tensors)
    kwargs = arguments(Node(row.name, (), example.kwargs), lambda leaf: leaf)[1]
    torch.testing.assert_close(found, example.reference(*args, **kwargs), equal_nan=True)


@CASES
def test_the_units_of_a_row_reach_no_entry_but_their_own(row, example):
    """Where a unit that need not stay changes, no entry of the result does but those of the unit."""
    case = Case(row, example)
    tracking = Tracking(case.graph)
    units, axes, node = tracking.units, tracking.values[case.at], case.nodes[case.at]
    for axis, along in axes.items():
        shape = case.graph.shape(case.at)
        assert 0 <= axis < len(shape) and along.shape == (shape[axis],)
    values = case.results(case.tensors, case.input(2))[: case.at]
    result = case.computed(values, case.tensors)[1]

    def roots(*several):
        return {int(unit) for followed in several for along in followed.values() for unit in units.roots(along)}

    read = {index: tracking.values[index] for index in node.values()}
    named = {name: tracking.tensors[name] for name in node.named()}
    free = roots(*read.values(), *named.values()) - units.fixed()
    # All that a layer computes depends on a unit that its weight reads: pruning sets those weights to zero. Statistics
    # depend on all units: only those that are 0 go.
    for unit in free & roots(axes) if is_layer(node) else free if not row.statistics else ():
        others = [_changed(x, _entries(units, read.get(index, {}), unit)) for index, x in enumerate(values)]
        tensors = {name: _changed(x, _entries(units, named.get(name, {}), unit)) for name, x in case.tensors.items()}
        again = case.computed(others, tensors)[1]
        if isinstance(result, torch.Tensor):
            apart = ~_of(result, _entries(units, axes, unit))
            torch.testing.assert_close(again[apart], result[apart], equal_nan=True)
        else:
            torch.testing.assert_close(again, result)


def _entries(units, axes, unit):
    """Which entries along each followed axis are of the unit."""
    return {axis: torch.from_numpy(units.roots(along) == unit) for axis, along in axes.items()}


def _of(x, entries):
    """Which elements of a tensor are of a unit, by those of its axes."""
    found = torch.zeros(x.shape, dtype=torch.bool)
    for axis, own in entries.items():
        found |= own.reshape([-1 if other == axis else 1 for other in range(x.dim())])
    return found


def _changed(x, entries):
    return torch.where(_of(x, entries), 0.5 * x + 0.2, x) if entries else x


@CASES
@pytest.mark.parametrize("known", [[np.nan, 0.0, np.nan, 0.0], [np.nan, 0.0, 0.4, 0.7]], ids=["zeros", "numbers"])
def test_constants_of_a_row_are_what_it_computes(row, example, known):
    case = Case(row, example)
    tensors, found = case.with_constants({"a": np.array(known), "b": np.array([np.nan, 0.5, np.nan, 0.0])})
    if found is None:
        return
    axis, constants = found
    for n in (2, 3):
        result = case.results(tensors, case.input(n))[case.at]
        assert result.shape[axis] == len(constants)
        for entry, value in zip(result.movedim(axis, 0), constants, strict=True):
            if not np.isnan(value):
                torch.testing.assert_close(entry, torch.full_like(entry, value), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("row", [row for row in OPERATIONS if row.constants], ids=lambda row: row.name)
def test_a_rule_for_constants_knows_some(row):
    known = {name: np.array([np.nan, 0.0, 0.5, 0.0]) for name in "ab"}
    assert any(Case(row, example).with_constants(known)[1] is not None for example in examples(row))


@pytest.mark.parametrize("row", [row for row in OPERATIONS if row.per_example], ids=lambda row: row.name)
def test_examples_of_a_per_example_operation_do_not_see_each_other(row):
    for example in examples(row):
        case = Case(row, example)
        values = case.results(case.tensors, case.input(3))[: case.at]
        together = case.computed(values, case.tensors)[1]
        alone = [case.computed([value[i : i + 1] for value in values], case.tensors)[1] for i in range(3)]
        torch.testing.assert_close(together, torch.cat(alone), equal_nan=True)


@pytest.mark.parametrize("row", [row for row in OPERATIONS if row.elementwise], ids=lambda row: row.name)
def test_an_elementwise_operation_does_to_one_element_what_it_does_to_all(row):
    x = torch.linspace(0.1, 3, 24).reshape(2, 3, 4)
    whole = row.function(x, *MORE.get(row.name, ()))
    alone = [row.function(element.reshape(1), *MORE.get(row.name, ())) for element in x.flatten()]
    torch.testing.assert_close(whole, torch.cat(alone).reshape(x.shape))


@pytest.mark.parametrize("row", [row for row in OPERATIONS if row.monotone], ids=lambda row: row.name)
def test_a_monotone_operation_keeps_the_order(row):
    assert row.elementwise
    assert (row.function(torch.linspace(-20, 20, 4001)).diff() >= 0).all()
