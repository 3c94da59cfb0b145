"""Which arguments an operation takes, and whether a node's are such: looked at before anything is computed.

Names, kinds and defaults are those of torch's own schemas, so that a new operation needs no line here. What schemas
leave open is in the tables below, by an argument's name: how large an integer may be, which words there are, what has
one value in a network that only predicts, and which integers may be results of other nodes (sizes of a batch).
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch

from ..errors import UnsupportedNetworkError
from .nodes import DTYPES_BY_NAME, LAYERS, Named, Node, Value, leaves, reads_input
from .operations import function

_FAR, _MOST_NUMBERS, _SIDE = 1 << 24, 1 << 28, 1 << 16

#: what integers lie between, both included, by the name of the argument; of others, that of None.
_RANGES: Mapping[str | None, tuple[int, int]] = {
    None: (-(1 << 31), 1 << 31),
    "kernel_size": (1, _FAR),
    "stride": (1, _FAR),
    "dilation": (1, _SIDE),
    "padding": (0, _SIDE),
    "output_padding": (0, _SIDE),
    "groups": (1, _FAR),
    "num_groups": (1, _FAR),
    "num_layers": (1, 64),
    "divisor_override": (1, _FAR),
    "upscale_factor": (1, 1 << 12),
    "downscale_factor": (1, 1 << 12),
    "chunks": (1, 1 << 12),
    "split_size": (0, _FAR),
    "split_sizes": (0, _FAR),
    "normalized_shape": (1, _FAR),
    "output_size": (1, _FAR),
    "pad": (-_FAR, _FAR),
    "dim": (-16, 15),
    "dims": (-16, 15),
    "dim0": (-16, 15),
    "dim1": (-16, 15),
    "start_dim": (-16, 15),
    "end_dim": (-16, 15),
    "size": (-1, _MOST_NUMBERS),
    "sizes": (-1, _MOST_NUMBERS),
    "shape": (-1, _MOST_NUMBERS),
    "step": (1, _FAR),
    "repeats": (0, _MOST_NUMBERS),
    "n": (0, _MOST_NUMBERS),
    "m": (0, _MOST_NUMBERS),
    "s": (-1, _MOST_NUMBERS),
    # Positions in lists of ways; with any other torch computes nothing, and leaves in the result what was in memory.
    "interpolation_mode": (0, 2),
    "padding_mode": (0, 2),
    "compute_mode": (0, 2),
    # Beyond the end of a dimension means its end.
    "start": (-(1 << 63), (1 << 63) - 1),
    "end": (-(1 << 63), (1 << 63) - 1),
}

#: integers that may be results of other nodes, and so depend on how many examples there are.
_COMPUTED = {"a", "b", "size", "sizes", "shape", "output_size", "start", "end", "index", "repeats", "split_size"}

#: lists of sizes, which may not come to more numbers than any result has.
_SIZES = {"size", "sizes", "shape", "output_size", "repeats", "s"}

#: factors of an upsampling, which are positive and no larger.
_SCALES, _MOST_SCALE = {"scale_factors", "scales_h", "scales_w", "scales_d", "scales"}, 1 << 12

#: words, by the name of the argument.
_WORDS: Mapping[str, tuple[str, ...]] = {
    "approximate": ("none", "tanh"),
    "mode": ("constant", "reflect", "replicate", "circular"),
    "padding": ("valid", "same"),
    "rounding_mode": ("trunc", "floor"),
    "indexing": ("ij", "xy"),
    "norm": ("forward", "backward", "ortho"),
    "side": ("left", "right"),
    "ord": ("fro", "nuc"),
}

#: which indices a product runs over, of operations that take it as a text.
_EQUATION = re.compile(r"[A-Za-z,. ]{1,64}(->[A-Za-z. ]{0,32})?")

#: what has one value in a network that predicts the same twice.
_FIXED: Mapping[str, Any] = {"dropout_p": 0.0, "train": False}

#: tensors that are made for the batch: one of the file's own has a size that is not the batch's.
_OF_THE_BATCH = {"hx"}

#: flags under which an operation would write new statistics into tensors, and see the whole batch at once.
STATISTICS_OF_THE_BATCH = ("training", "use_input_stats")

# Overloads with such arguments belong to other ways of writing a network: packed sequences, named dimensions.
_FOREIGN = {"batch_sizes"}

_ON_INTEGERS = ("add", "sub", "mul", "floordiv", "mod", "max", "min")

#: operations of our own, as torch writes schemas.
_OWN: Mapping[str, str] = {
    "lookup": "own::lookup(Tensor index, Tensor weight, Tensor? bias=None, int? padding_idx=None) -> Tensor",
    "getitem": "own::getitem(Tensor[] pieces, int index) -> Tensor",
    **{f"int_{name}": f"own::int_{name}(int a, int b) -> int" for name in _ON_INTEGERS},
}

_TENSOR, _TENSORS, _INTEGER = "Tensor", "List[Tensor]", "int"


@dataclass(frozen=True)
class Parameter:
    """One argument as a schema has it.

    :param kind: ``Tensor``, ``int``, ``number`` (integer, float or truth value), ``float``, ``bool``, ``str``,
        ``ScalarType`` (a type's name); another one has no value in a graph but None.
    :param is_list: whether it is several of them.
    :param count: how many, where the schema says it; one of them then stands for all.
    :param is_optional: whether it may be None.
    :param has_default: whether it may be left out.
    :param default: what it is then.
    :param by_name: whether it may be given by its name only.
    :param has_gaps: whether some of a list may be None.
    """

    name: str
    kind: str
    is_list: bool
    count: int | None
    is_optional: bool
    has_default: bool
    default: Any
    by_name: bool
    has_gaps: bool = False


@dataclass(frozen=True)
class Signature:
    """One way of calling an operation.

    :param result: ``Tensor``, ``List[Tensor]`` or ``int``.
    """

    parameters: tuple[Parameter, ...]
    result: str

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """What arguments are where they are left out."""
        return {own.name: own.default for own in self.parameters if own.has_default or own.by_name}


@dataclass(frozen=True)
class Call:
    """A node with all of its arguments by the names that torch has for them, defaults included."""

    node: Node
    given: Mapping[str, Any]


@cache
def signatures(op: str) -> tuple[Signature, ...]:
    """The ways of calling an operation that a graph may hold: on tensors, without anything that is written into.

    :param op: its name in :data:`~pyro_bc.graph.operations.OPERATIONS`.
    """
    found = (_signature(schema) for schema in _schemas(function(op)))
    return tuple(signature for signature in found if signature is not None)


def _schemas(compute: Callable[..., Any]) -> list[Any]:
    if isinstance(compute, torch._ops.OpOverload):
        return [compute._schema]
    if hasattr(compute, "overload"):
        return [compute.overload._schema]
    if compute.__name__ in _OWN:
        return [torch._C.parse_schema(_OWN[compute.__name__])]
    packet = getattr(torch.ops.aten, compute.__name__)
    return [getattr(packet, name)._schema for name in packet.overloads() if not name.startswith("prim_")]


def _signature(schema: Any) -> Signature | None:
    """A schema as a signature; None where it is of no use in a graph."""
    returned = [str(result.real_type) for result in schema.returns]
    result = returned[0] if len(returned) == 1 else _TENSORS if set(returned) == {_TENSOR} else ""
    on_numbers = result == _INTEGER and not schema.name.startswith(("own::", "aten::sym_"))
    if result not in (_TENSOR, _TENSORS, _INTEGER) or on_numbers:
        return None
    parameters = []
    for argument in schema.arguments:
        kind = str(argument.real_type)
        is_optional = kind.startswith("Optional[")
        kind = kind[len("Optional[") : -1] if is_optional else kind
        is_list = kind.startswith("List[")
        kind = kind[len("List[") : -1] if is_list else kind
        has_gaps = kind.startswith("Optional[")
        kind = kind[len("Optional[") : -1] if has_gaps else kind
        writes = argument.alias_info is not None and argument.alias_info.is_write
        if argument.is_out or writes or argument.name in _FOREIGN or kind == "Dimname":
            return None
        default = argument.default_value if argument.has_default_value() else None
        own = argument.has_default_value(), tuple(default) if isinstance(default, list) else default
        others = argument.kwarg_only, has_gaps
        parameters.append(Parameter(argument.name, kind, is_list, argument.N, is_optional, *own, *others))
    return Signature(tuple(parameters), result)


def named_arguments(node: Node) -> dict[str, Any]:
    """A node's arguments by the names that torch has for them, defaults included.

    :raises UnsupportedNetworkError: where its operation takes none such.
    """
    signature, given = _called(node, None)
    return signature.defaults | given


def check_program(nodes: Sequence[Node]) -> list[Call]:
    """Look at all nodes of a network: arguments, what kind of result goes where, and whether it comes to an output.

    :param nodes: in the order in which they run; the last is the output.
    :returns: the same nodes with their arguments by name.
    :raises UnsupportedNetworkError: for the first that is not in order; nothing has been computed.
    """
    kinds: list[str] = []
    calls: list[Call] = []
    for number, node in enumerate(nodes):
        try:
            signature, given = _called(node, kinds)
        except UnsupportedNetworkError as error:
            raise UnsupportedNetworkError(f"operation {number + 1}, {node.op}: {error}") from None
        kinds.append(signature.result)
        calls.append(Call(node, signature.defaults | given))
    if not kinds or kinds[-1] != _TENSOR:
        raise UnsupportedNetworkError("the network's output is no tensor")
    if not reads_input(nodes):
        raise UnsupportedNetworkError("the network's output does not depend on its input")
    return calls


def _called(node: Node, kinds: Sequence[str] | None) -> tuple[Signature, dict[str, Any]]:
    """The signature that a node's arguments fit, and these by name.

    :param kinds: of the results of the nodes before it; None where they are not known, and any will do.
    """
    reasons: list[str] = []
    for signature in signatures(node.op):
        try:
            given = _by_name(signature, node)
            _check_values(signature, given, kinds)
        except _Refused as refused:
            reasons.append(str(refused))
            continue
        return signature, given
    raise UnsupportedNetworkError(" or ".join(dict.fromkeys(reasons)))


class _Refused(Exception):
    """Why arguments do not fit one signature."""


def _by_name(signature: Signature, node: Node) -> dict[str, Any]:
    if node.kwargs and node.op in LAYERS:
        raise _Refused("a layer takes no arguments by name")
    positional = [own for own in signature.parameters if not own.by_name]
    if len(node.args) > len(positional):
        raise _Refused(f"it takes {len(positional)} arguments, not {len(node.args)}")
    given = dict(zip((own.name for own in positional), node.args, strict=False))
    known = {own.name for own in signature.parameters}
    for name, value in node.kwargs:
        if name not in known or name in given:
            raise _Refused(f"it has no argument {name!r}" if name not in known else f"{name!r} is given twice")
        given[name] = value
    for own in signature.parameters:
        if own.name not in given and not (own.has_default or (own.by_name and own.is_optional)):
            raise _Refused(f"its argument {own.name!r} is missing")
    return given


def _check_values(signature: Signature, given: Mapping[str, Any], kinds: Sequence[str] | None) -> None:
    for own in signature.parameters:
        if own.name in given:
            _check_value(own, given[own.name], kinds)
    flag = any(given.get(name) is True for name in STATISTICS_OF_THE_BATCH)
    if flag and any(given.get(name) is not None for name in ("running_mean", "running_var")):
        raise _Refused("it would write the batch's statistics into the network")


def _check_value(own: Parameter, value: Any, kinds: Sequence[str] | None) -> None:
    name = own.name
    if value is None and own.is_optional:
        return
    if not own.is_list:
        _check_one(own, value, kinds)
    elif isinstance(value, tuple):
        for part in value:
            if part is not None or not own.has_gaps:
                _check_one(own, part, kinds)
        # Of a list of one, such as the dimensions of a sum, there may be more.
        if (own.count or 1) > 1 and len(value) not in (1, own.count) and not (own.has_default and not value):
            raise _Refused(f"{name!r} are {own.count} numbers, not {len(value)}")
        known = [part for part in value if type(part) is int and part > 0]
        if name in _SIZES and math.prod(known) > _MOST_NUMBERS:
            raise _Refused(f"{name!r} comes to more than {_MOST_NUMBERS:,} numbers")
    elif own.kind == _TENSOR and isinstance(value, Value):
        if kinds is not None and _kind(value, kinds) != _TENSORS:
            raise _Refused(f"{name!r} are several tensors")
    elif own.count is not None:
        _check_one(own, value, kinds)
    else:
        raise _Refused(f"{name!r} is a list")
    if name in _OF_THE_BATCH and any(isinstance(leaf, Named) for leaf in leaves(value)):
        raise _Refused(f"{name!r} is a tensor of the network's own, whose size is not the batch's")


def _check_one(own: Parameter, value: Any, kinds: Sequence[str] | None) -> None:
    """:raises _Refused: where a value is none of this kind, or out of its range."""
    name, kind, what = own.name, own.kind, type(value)
    if name in _FIXED and (what is not type(_FIXED[name]) or value != _FIXED[name]):
        raise _Refused(f"{name!r} is {_FIXED[name]!r} in a network that predicts, not {_told(value)}")
    if isinstance(value, Value):
        expected = _TENSOR if kind == _TENSOR else _INTEGER
        may_be = kind in (_TENSOR, "number") or (kind == "int" and name in _COMPUTED)
        fits = may_be and (kinds is None or _kind(value, kinds) == expected)
    elif kind == _TENSOR:
        fits = isinstance(value, Named)
    elif kind == "int":
        least, most = _RANGES.get(name, _RANGES[None])
        if what is int and not least <= value <= most:
            raise _Refused(f"{name!r} lies between {least:,} and {most:,}, and is {value:,}")
        fits = what is int
    elif kind == "number":
        fits = what in (int, float, bool) and not (what is int and abs(value) > 1 << 62)
    elif kind == "float":
        fits = what is float or (what is int and abs(value) <= 1 << 62)
        fits = fits and (name not in _SCALES or 0 < value <= _MOST_SCALE)
    elif kind == "bool":
        fits = what is bool
    elif kind == "str":
        fits = what is str and value in _WORDS.get(name, ())
        if name == "equation":
            fits = what is str and _EQUATION.fullmatch(value) is not None
        elif what is str and not fits:
            raise _Refused(f"{name!r} is one of {', '.join(_WORDS.get(name, ('nothing',)))}, not {_told(value)}")
    else:
        fits = kind == "ScalarType" and what is str and value in DTYPES_BY_NAME
    if not fits:
        raise _Refused(f"{name!r} cannot be {_told(value)}")


def _kind(value: Value, kinds: Sequence[str]) -> str:
    return _TENSOR if value.index < 0 else kinds[value.index]


def _told(value: Any) -> str:
    """An argument in an error message: short, and without anything that a terminal would act on."""
    if isinstance(value, Value):
        return "the input" if value.index < 0 else f"the result of operation {value.index + 1}"
    if isinstance(value, Named):
        return "a tensor of the network's own"
    if isinstance(value, tuple):
        return f"a list of {len(value)}"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
