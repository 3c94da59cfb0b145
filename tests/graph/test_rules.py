"""A rule says what torch says: the shape and type of every operation's result, told without computing it."""

import numpy as np
import pytest
import torch

from pyro_bc.errors import UnsupportedNetworkError
from pyro_bc.graph.arguments import named_arguments
from pyro_bc.graph.forms import Form, Made, Misfit, joint
from pyro_bc.graph.nodes import DTYPE_NAMES, DTYPES_BY_NAME, Node, Value
from pyro_bc.graph.operations import OPERATIONS, Operation
from pyro_bc.graph.outline import form_of

from .test_operations import Case, examples

SIZES = (-3, -2, -1, 0, 1, 2, 3, 4, 6)
TYPES = (torch.float32, torch.int64, torch.bool, torch.float64, torch.int32, torch.uint8, torch.complex64)


def nearly(args: tuple, generator: np.random.Generator) -> tuple:
    """These arguments with some of them changed: a size, a type, a number, or how many there are."""

    def number():
        return int(generator.choice(SIZES))

    def changed(argument, often):
        if generator.random() > often:
            return argument
        if isinstance(argument, torch.Tensor):
            shape, kind = list(argument.shape), generator.random()
            if shape and kind < 0.55:
                shape[int(generator.integers(len(shape)))] = int(generator.choice([0, 1, 1, 2, 3, 4, 6, 8]))
            elif kind < 0.75:
                shape = [*shape, 2] if generator.random() < 0.5 else shape[1:]
            dtype = TYPES[int(generator.integers(len(TYPES)))] if kind > 0.85 else argument.dtype
            return torch.empty(shape, dtype=dtype, device="meta")
        if isinstance(argument, list):
            entries, kind = [changed(entry, often) for entry in argument], generator.random()
            return entries[1:] if kind < 0.1 else [*entries, number()] if kind < 0.15 else entries
        if type(argument) is int:
            return number()
        if type(argument) is bool:
            return not argument
        return [number(), 1.5, None, True][int(generator.integers(4))] if generator.random() < 0.3 else argument

    changes = tuple(changed(argument, 1.2 / max(1, len(args))) for argument in args)
    return changes if generator.random() < 0.9 else changes[: int(generator.integers(0, len(args) + 1))]


def without_storage(argument):
    if isinstance(argument, list | tuple):
        return [without_storage(part) for part in argument]
    return argument.to("meta") if isinstance(argument, torch.Tensor) else argument


def drawn(row: Operation, count: int):
    """Arguments of an operation: those of its examples, and many that are nearly those."""
    generator = np.random.default_rng(row.code)
    for example in examples(row):
        case = Case(row, example)
        args = case.computed(case.results(case.tensors, case.input(2)), case.tensors)[0]
        args = tuple(without_storage(argument) for argument in args)
        kwargs = dict(example.kwargs)
        if row.name == "to":
            args, kwargs = args[:1], {"dtype": torch.int64}
        yield args, kwargs
        for _ in range(count):
            yield nearly(args, generator), kwargs


def made_of(row: Operation, args: tuple, kwargs: dict) -> Made:
    """What the row's rule says of such arguments.

    :raises UnsupportedNetworkError: where they are none of the operation's.
    :raises Misfit: where they do not fit together.
    """
    tensors: list = []

    def named(leaf):
        if isinstance(leaf, list | tuple):
            return tuple(map(named, leaf))
        if isinstance(leaf, torch.Tensor):
            tensors.append(leaf)
            return Value(len(tensors) - 1)
        return DTYPE_NAMES[leaf] if isinstance(leaf, torch.dtype) else leaf

    node = Node(row.name, named(args), tuple((key, named(value)) for key, value in kwargs.items()))
    given = named_arguments(node)

    def formed(leaf):
        if isinstance(leaf, tuple):
            return tuple(map(formed, leaf))
        return form_of(tensors[leaf.index]) if isinstance(leaf, Value) else leaf

    found = {key: formed(value) for key, value in given.items()}
    return row.result(found | {key: DTYPES_BY_NAME[found[key]] for key in ("dtype", "out_dtype") if found.get(key)})


def as_forms(result):
    if isinstance(result, list | tuple):
        return tuple(map(as_forms, result))
    return Form(tuple(result.shape), result.dtype) if isinstance(result, torch.Tensor) else result


def compared(row: Operation, args: tuple, kwargs: dict) -> str:
    try:
        made = made_of(row, args, kwargs)
    except UnsupportedNetworkError:
        return "no arguments"
    except Misfit:
        made = None
    found = [torchs(row, args, kwargs, device) for device in ("cpu", "meta")]
    if made is None:  # without storage, torch does not look at all that it looks at when it computes
        return "both refuse" if found[0] is None or empty(args) else "rule refuses"
    if found == [None, None]:
        return "torch refuses"
    return "same" if made.result in found else f"differ: {made.result} {found}"


def torchs(row: Operation, args: tuple, kwargs: dict, device: str):
    """What torch says; None where it refuses."""
    more = {"device": device} if row.creates else {}
    try:
        return as_forms(row.function(*(placed(argument, device) for argument in args), **kwargs, **more))
    except (RuntimeError, ValueError, TypeError, IndexError, OverflowError, ZeroDivisionError, AssertionError):
        return None


def placed(argument, device: str):
    if isinstance(argument, list | tuple):
        return [placed(part, device) for part in argument]
    return torch.zeros_like(argument, device=device) if isinstance(argument, torch.Tensor) else argument


def empty(argument) -> bool:
    if isinstance(argument, list | tuple):
        return any(map(empty, argument))
    return isinstance(argument, torch.Tensor) and argument.numel() == 0


# Where torch computes something of arguments that do not fit together, or of a mode that there is none of.
TORCH_LOOKS_AT_LESS = {"scaled_dot_product_attention", "grid_sampler"}


@pytest.mark.parametrize("row", OPERATIONS, ids=lambda row: row.name)
def test_a_rule_says_what_torch_says(row):
    outcomes = [compared(row, args, kwargs) for args, kwargs in drawn(row, 4)]
    expected = {"same", "both refuse", "torch refuses", "no arguments"}
    assert set(outcomes) <= (expected | {"rule refuses"} if row.name in TORCH_LOOKS_AT_LESS else expected), outcomes
    assert outcomes[0] == "same"


@pytest.mark.parametrize("row", OPERATIONS, ids=lambda row: row.name)
def test_more_examples_cost_no_less(row):
    """Work and memory are not below zero, and grow with the batch."""
    for example in examples(row):
        case, costs = Case(row, example), []
        for batch in (2, 3, 5):
            args = case.computed(case.results(case.tensors, case.input(batch)), case.tensors)[0]
            args, kwargs = (args[:1], {"dtype": torch.int64}) if row.name == "to" else (args, dict(example.kwargs))
            made = made_of(row, tuple(without_storage(argument) for argument in args), kwargs)
            costs.append((made.work, made.memory))
        assert all(0 <= a <= b for a, b in zip(costs[0], costs[1], strict=True)), costs
        assert all(a <= b for a, b in zip(costs[1], costs[2], strict=True)), costs


@pytest.mark.parametrize(
    "values,dtype",
    [
        ((Form((2,), torch.int32), Form((), torch.int64)), torch.int32),
        ((Form((2,), torch.int32), Form((), torch.float64)), torch.float64),
        ((Form((2,), torch.bool), 2), torch.int64),
        ((Form((2,), torch.float16), 1.5), torch.float16),
        ((Form((2,), torch.uint8), Form((1,), torch.int8)), torch.int16),
        ((Form((), torch.float64), Form((3,), torch.float32)), torch.float32),
        ((Form((2,), torch.int64), 1.5), torch.float32),
        ((Form((), torch.float32), Form((2,), torch.complex64)), torch.complex64),
        ((True, 2), torch.int64),
    ],
)
def test_types_meet_as_torchs_do(values, dtype):
    tensors = [torch.zeros(v.shape, dtype=v.dtype) if isinstance(v, Form) else v for v in values]
    assert joint(*values) == joint(*reversed(values)) == dtype == torch.result_type(*tensors)
