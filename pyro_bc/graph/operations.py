"""The operations that a graph may hold: a closed list, one row each."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from . import constant_rules, unit_rules, vocabulary
from .constant_rules import ConstantRule
from .forms import Rule
from .functions import getitem, of_schema, on_integers, on_tensors
from .layer_types import lookup
from .rules import RULES
from .unit_rules import UnitRule


@dataclass(frozen=True)
class Operation:
    """One operation: everything that the package knows of it.

    :param code: its number in a file, which never changes; a new operation takes the next one.
    :param name: as in ``torch.ops.aten``, with the overload where it is but one of them (``max.dim``).
    :param function: what computes it, and nothing but it, whatever a file asks for.
    :param units: which units the axes of its result have; an operation without a rule of its own fixes what it reads.
    :param constants: which entries of its result are constant where some of its argument's are; None: not known.
    :param result: shape and type of its result and what it takes to compute it, told before it is computed.
    :param elementwise: whether it keeps every element in its place, and does to one what it does to all.
    :param statistics: whether it adds up all entries of a followed axis, so that only those that are 0 may go.
    :param monotone: whether a larger element never becomes the smaller one, so that it may follow a maximum.
    :param per_example: whether examples do not see each other, with the batch in the first dimension.
    :param creates: whether it makes a tensor of numbers alone, which is to be where the input is.
    """

    code: int
    name: str
    function: Callable[..., Any]
    result: Rule
    units: UnitRule = unit_rules.unknown
    constants: ConstantRule | None = None
    elementwise: bool = False
    statistics: bool = False
    monotone: bool = False
    per_example: bool = False
    creates: bool = False


def _row(code: int, name: str, function: Callable[..., Any] | None = None, **rest: Any) -> Operation:
    return Operation(code, name, on_tensors(name) if function is None else function, RULES[name], **rest)


def _elementwise(code: int, name: str, **rest: Any) -> Operation:
    rules: Any = {"units": unit_rules.elementwise, "constants": constant_rules.through_elementwise}
    return _row(code, name, elementwise=True, **{**rules, **rest})


def _of_schemas(names: Mapping[int, str], **rest: Any) -> tuple[Operation, ...]:
    """A row for each of ATen's overloads in a group of the vocabulary."""
    return tuple(Operation(code, name, of_schema(name), RULES[name], **rest) for code, name in names.items())


_ON_INTEGERS: dict[str, Any] = {"int_mod": operator.mod, "int_max": torch.sym_max, "int_min": torch.sym_min}

_ELEMENTWISE: dict[str, Any] = {"elementwise": True, "per_example": True, "units": unit_rules.elementwise}

#: all of them; the order of the rows means nothing.
OPERATIONS: tuple[Operation, ...] = (
    _row(0, "linear", units=unit_rules.layer, per_example=True),
    _row(1, "conv2d", units=unit_rules.layer, per_example=True),
    _row(2, "conv1d", units=unit_rules.layer, per_example=True),
    _row(
        3,
        "max_pool2d",
        units=unit_rules.spatial,
        constants=constant_rules.through_pool,
        per_example=True,
    ),
    _row(
        4,
        "flatten",
        units=unit_rules.reshape,
        constants=constant_rules.through_reshape,
        per_example=True,
    ),
    _row(
        5,
        "batch_norm",
        units=unit_rules.batch_norm,
        constants=constant_rules.through_batch_norm,
        per_example=True,
    ),
    _row(6, "add", units=unit_rules.binary, constants=constant_rules.through_binary),
    _row(7, "cat", units=unit_rules.cat, constants=constant_rules.through_cat),
    _row(
        8,
        "index_select",
        units=unit_rules.index_select,
        constants=constant_rules.through_selection,
        per_example=True,
    ),
    _row(9, "sub", units=unit_rules.binary, constants=constant_rules.through_binary),
    _row(10, "mul", units=unit_rules.binary, constants=constant_rules.through_binary),
    _row(11, "div", units=unit_rules.binary, constants=constant_rules.through_binary),
    _row(
        12,
        "avg_pool2d",
        units=unit_rules.spatial,
        constants=constant_rules.through_pool,
        per_example=True,
    ),
    _row(
        13,
        "adaptive_avg_pool2d",
        units=unit_rules.spatial,
        constants=constant_rules.through_pool,
        per_example=True,
    ),
    _row(14, "mean", units=unit_rules.reduction, constants=constant_rules.through_mean),
    # A view is of neighbouring numbers, which those of a batch need not be; the numbers are the same.
    _row(
        15,
        "view",
        on_tensors("reshape"),
        units=unit_rules.reshape,
        constants=constant_rules.through_reshape,
    ),
    _row(16, "reshape", units=unit_rules.reshape, constants=constant_rules.through_reshape),
    _row(17, "transpose", units=unit_rules.permute, constants=constant_rules.through_moves),
    _row(18, "permute", units=unit_rules.permute, constants=constant_rules.through_moves),
    _row(19, "squeeze", units=unit_rules.reshape, constants=constant_rules.through_reshape),
    _row(20, "unsqueeze", units=unit_rules.reshape, constants=constant_rules.through_reshape),
    _row(21, "unflatten", units=unit_rules.reshape, constants=constant_rules.through_moves),
    _row(22, "select", units=unit_rules.select, constants=constant_rules.through_moves),
    _row(23, "slice", units=unit_rules.slice_, constants=constant_rules.through_moves),
    _row(
        24,
        "layer_norm",
        units=unit_rules.layer_norm,
        constants=constant_rules.through_layer_norm,
        statistics=True,
    ),
    _row(25, "softmax", units=unit_rules.mixes(lambda node, ndim: [node.args[1]])),
    _row(26, "scaled_dot_product_attention", units=unit_rules.attention),
    _row(27, "expand", units=unit_rules.expand, constants=constant_rules.through_moves),
    _row(28, "pad", units=unit_rules.pad, constants=constant_rules.through_moves, per_example=True),
    _row(29, "matmul"),
    _row(30, "bmm"),
    _row(31, "sum", units=unit_rules.reduction, constants=constant_rules.through_moves),
    _row(32, "amax", units=unit_rules.reduction, constants=constant_rules.through_mean),
    _row(
        33,
        "max_pool1d",
        units=unit_rules.spatial,
        constants=constant_rules.through_pool,
        per_example=True,
    ),
    _row(34, "avg_pool1d", units=unit_rules.spatial, constants=constant_rules.through_pool),
    _row(
        35,
        "adaptive_avg_pool1d",
        units=unit_rules.spatial,
        constants=constant_rules.through_pool,
    ),
    _row(36, "group_norm", units=unit_rules.group_norm, constants=constant_rules.through_group_norm, statistics=True),
    _row(37, "log_softmax", units=unit_rules.mixes(lambda node, ndim: [node.args[1]])),
    _row(38, "upsample_nearest2d", units=unit_rules.spatial, constants=constant_rules.through_pool),
    _row(39, "adaptive_max_pool2d"),
    _row(40, "gru", units=unit_rules.recurrent),
    _row(41, "lstm", units=unit_rules.recurrent),
    _row(42, "zeros", torch.ops.aten.zeros, units=unit_rules.zeros, creates=True),
    _row(43, "getitem", getitem, units=unit_rules.getitem),
    _row(44, "size", torch.ops.aten.sym_size.int, units=unit_rules.size),
    _row(45, "int_add", on_integers("int_add", operator.add)),
    _row(46, "int_sub", on_integers("int_sub", operator.sub)),
    _row(47, "int_mul", on_integers("int_mul", operator.mul)),
    _row(48, "int_floordiv", on_integers("int_floordiv", operator.floordiv)),
    _row(49, "maximum", units=unit_rules.binary, constants=constant_rules.through_binary),
    _row(50, "minimum", units=unit_rules.binary, constants=constant_rules.through_binary),
    _row(51, "prelu", units=unit_rules.prelu, constants=constant_rules.through_prelu),
    _row(52, "rms_norm", units=unit_rules.layer_norm, constants=constant_rules.through_layer_norm, statistics=True),
    _row(53, "chunk"),
    _row(54, "split"),
    _row(55, "stack"),
    _row(56, "embedding"),
    _row(57, "pixel_shuffle"),
    _row(58, "instance_norm", units=unit_rules.batch_norm, constants=constant_rules.through_batch_norm),
    _row(59, "t", units=unit_rules.permute, constants=constant_rules.through_moves),
    _elementwise(60, "relu", monotone=True, per_example=True),
    _elementwise(61, "tanh", monotone=True, per_example=True),
    _elementwise(62, "sigmoid", monotone=True, per_example=True),
    _elementwise(63, "gelu", per_example=True),
    _elementwise(64, "silu", per_example=True),
    _elementwise(65, "softplus", per_example=True),
    _elementwise(66, "elu", per_example=True),
    _elementwise(67, "leaky_relu", per_example=True),
    _elementwise(68, "relu6", monotone=True, per_example=True),
    _elementwise(69, "hardtanh", per_example=True),
    _elementwise(70, "hardsigmoid"),
    _elementwise(71, "hardswish"),
    _elementwise(72, "selu"),
    _elementwise(73, "mish"),
    _elementwise(74, "celu"),
    _elementwise(75, "log_sigmoid"),
    _elementwise(76, "neg"),
    _elementwise(77, "abs"),
    _elementwise(78, "exp"),
    _elementwise(79, "log"),
    _elementwise(80, "sqrt"),
    _elementwise(81, "rsqrt"),
    _elementwise(82, "square"),
    _elementwise(83, "pow"),
    _elementwise(84, "clamp"),
    _elementwise(85, "contiguous"),
    _elementwise(86, "clone"),
    _elementwise(87, "erf"),
    _elementwise(88, "sin"),
    _elementwise(89, "cos"),
    _elementwise(91, "to", constants=None, per_example=True),
    _row(90, "conv_transpose2d", units=unit_rules.layer, per_example=True),
    # Layers that came later have codes from 400 on.
    _row(400, "conv3d", units=unit_rules.layer, per_example=True),
    _row(403, "lookup", lookup, units=unit_rules.lookup),
    _row(404, "rnn_tanh", units=unit_rules.recurrent),
    _row(405, "rnn_relu", units=unit_rules.recurrent),
    _row(401, "conv_transpose1d", units=unit_rules.layer, per_example=True),
    _row(402, "conv_transpose3d", units=unit_rules.layer, per_example=True),
    *_of_schemas(
        vocabulary.ELEMENTWISE,
        constants=constant_rules.through_elementwise,
        **_ELEMENTWISE,
    ),
    *_of_schemas(vocabulary.CLASSIFYING, **_ELEMENTWISE),
    *_of_schemas(vocabulary.JOINT, units=unit_rules.joint),
    *_of_schemas(vocabulary.SPATIAL, units=unit_rules.spatial, constants=constant_rules.through_pool),
    *_of_schemas(vocabulary.REDUCING, units=unit_rules.reduction),
    *_of_schemas(vocabulary.ALONG, units=unit_rules.along),
    _row(262, "repeat", of_schema("repeat"), units=unit_rules.repeat, constants=constant_rules.through_repeat),
    _row(219, "flip", of_schema("flip"), units=unit_rules.along, constants=constant_rules.through_moves),
    *_of_schemas(vocabulary.OTHERS),
    *_of_schemas(vocabulary.CREATING, creates=True),
    *_of_schemas(vocabulary.LIKE, units=unit_rules.like),
    *(_row(code, name, on_integers(name, _ON_INTEGERS[name])) for code, name in vocabulary.ON_INTEGERS.items()),
)

#: rows by name, and by the code in a file.
BY_NAME = {row.name: row for row in OPERATIONS}
BY_CODE = {row.code: row for row in OPERATIONS}


def operation(name: str) -> Operation:
    """The row of the operation of this name."""
    return BY_NAME[name]


def function(name: str) -> Callable[..., Any]:
    """What computes the operation of this name."""
    return BY_NAME[name].function
