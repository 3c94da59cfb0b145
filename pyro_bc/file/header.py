"""The header of a file: a network's graph or chain, and the description of its tensors, as bytes and back."""

import keyword
import math
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from ..errors import CompressedFileError
from ..graph.layer_types import layer_type
from ..graph.nodes import LAYERS, Named, Node, Value
from ..graph.operations import BY_CODE, operation
from ..quantisation.grids import MOST_ADAPTIVE, MOST_SIDE, is_grid
from .chain import KNOWN, MOST, MOST_STEPS, PLAIN, Chain, Layer, Pruned, prune
from .contents import DTYPES, Contents, Input
from .tensors import (
    ADAPTIVE,
    BIT_BY_BIT,
    BUFFER,
    COSINES,
    FLOATS,
    MOST_LISTED,
    NUMBERS,
    ROWS,
    SELECTION,
    SINCE_4,
    SINCE_5,
    TYPED,
    Plan,
    bit_by_bit,
)

# What a file may claim: more is refused before anything is allocated.
_MOST_PARAMETERS, MOST_NODES, _MOST_TENSORS = 1 << 28, 1 << 14, 1 << 14

# So that a small file cannot claim much: numbers that any file may hold, and how many more for each of its bytes, of
# all kinds and of those that are coded adaptively.
_FREE, _PER_BYTE, _ADAPTIVE_PER_BYTE = 1 << 16, 1 << 10, 1 << 8

_KEYWORD = re.compile("[a-z_]{1,32}")

_NONE, _INTEGER, _FLOAT, _TEXT, _TUPLE, _RESULT, _TENSOR = range(7)

_CONSTANTS = (None, False, True)

#: what integers of a type go from and to, where a file could say more.
_RANGES = {torch.bool: (0, 1), torch.int8: (-128, 127), torch.uint8: (0, 255), torch.int16: (-32768, 32767)}

_CHAIN_KINDS = (NUMBERS, ADAPTIVE, COSINES)


def zigzag(value: int) -> int:
    """A signed integer as an unsigned one: 0, −1, 1, −2, … are 0, 1, 2, 3, …"""
    return 2 * value if value >= 0 else -2 * value - 1


def unzigzag(value: int) -> int:
    """The inverse of :func:`zigzag`."""
    return value // 2 if value % 2 == 0 else -(value + 1) // 2


def bytes_needed(plans: Iterable[Plan]) -> int:
    """How many bytes, behind its checksum, a file with these tensors must have at least."""
    numbers = adaptive = 0
    for plan in plans:
        numbers += _numbers(plan)
        adaptive += bit_by_bit(plan)
    return max(0, -((_FREE - numbers) // _PER_BYTE), -((_FREE - adaptive) // _ADAPTIVE_PER_BYTE))


def _numbers(plan: Plan) -> int:
    return plan.limit if plan.kind == SELECTION else math.prod(plan.shape)


class HeaderWriter:
    """Writes what a file's contents are.

    :param plans: how each tensor is described (:func:`~pyro_bc.file.tensors.plans_of`).
    """

    def __init__(self, contents: Contents, plans: Mapping[str, Plan]) -> None:
        self.data = bytearray()
        self.contents = contents
        self.plans = plans
        self.numbers = {name: number for number, name in enumerate(contents.tensors)}
        self.described: set[str] = set()

    def varint(self, value: int) -> None:
        while value >= 0x80:
            self.data.append(value & 0x7F | 0x80)
            value >>= 7
        self.data.append(value)

    def signed(self, value: int) -> None:
        self.varint(zigzag(value))

    def tagged(self, kind: int, payload: int) -> None:
        self.data.append(16 * kind + min(payload, 15))
        if payload >= 15:
            self.varint(payload)

    def name(self, name: str) -> None:
        text = name.encode()
        self.varint(len(text))
        self.data += text

    def sizes(self, shape: tuple[int, ...]) -> None:
        self.varint(len(shape))
        for size in shape:
            self.varint(size)

    def nodes(self) -> None:
        self.varint(len(self.contents.nodes))
        for index, node in enumerate(self.contents.nodes):
            self.node(index, node)

    def node(self, index: int, node: Node) -> None:
        self.varint(operation(node.op).code)
        self.varint(2 * len(node.args) + bool(node.kwargs))
        for position, argument in enumerate(node.args):
            self.argument(index, argument)
            if position == 1 and node.op in LAYERS and isinstance(argument, Named):
                own = layer_type(node.op).dense_shape(self.plans[argument.name].shape)
                for size in self.contents.dense_shapes.get(argument.name, own):
                    self.varint(size)
        if node.kwargs:
            self.varint(len(node.kwargs))
            for key, argument in node.kwargs:
                self.argument(index, key)
                self.argument(index, argument)

    def input(self, own: Input) -> None:
        """Description of one of several inputs."""
        self.name(own.name)
        self.sizes(own.shape)
        self.varint(DTYPES.index(own.dtype))

    def argument(self, index: int, argument: Any) -> None:
        if argument is None or isinstance(argument, bool):
            self.tagged(0, _CONSTANTS.index(argument))
        elif isinstance(argument, int):
            self.tagged(_INTEGER, zigzag(argument))
        elif isinstance(argument, float):
            self.tagged(_FLOAT, 0)
            self.data += struct.pack("<d", argument)
        elif isinstance(argument, str):
            text = argument.encode()
            self.tagged(_TEXT, len(text))
            self.data += text
        elif isinstance(argument, tuple):
            self.tagged(_TUPLE, len(argument))
            for part in argument:
                self.argument(index, part)
        elif isinstance(argument, Value):
            self.tagged(_RESULT, index - argument.index)
        else:
            self.tagged(_TENSOR, self.numbers[argument.name])
            if argument.name not in self.described:
                self.described.add(argument.name)
                self.tensor(self.plans[argument.name])

    def tensor(self, plan: Plan) -> None:
        self.data.append(16 * plan.kind + len(plan.shape))
        for size in plan.shape:
            self.varint(size)
        if plan.kind == SELECTION:
            self.varint(plan.limit)
            return
        if plan.kind == FLOATS:
            self.varint(2 * len(plan.listed) + plan.fraction_bits)
            self.data += struct.pack(f"<{len(plan.listed)}I", *plan.listed)
            return
        if plan.kind == TYPED:
            self.varint(plan.dtype)
        self.signed(plan.fraction_bits)
        if plan.kind == COSINES:
            self.sizes(plan.grid)
        elif plan.kind not in (ADAPTIVE, ROWS):
            self.signed(plan.lowest)
            self.varint(plan.size)

    def chain(self, chain: Chain, widths: tuple[int, ...]) -> None:
        if chain in KNOWN and prune(chain, widths).dense_parameters == self.contents.dense_parameters:
            self.varint(2 + KNOWN.index(chain))
        else:
            self.varint(1)
            self.varint(self.contents.dense_parameters)
            self.sizes(chain.input_shape)
            self.varint(len(chain.steps))
            for step in chain.steps:
                self.step(step)
        for width in widths:
            self.varint(width)
        for plan in self.plans.values():
            self.varint(3 * zigzag(plan.fraction_bits) + _CHAIN_KINDS.index(plan.kind))
            if plan.kind == NUMBERS:
                self.signed(plan.lowest)
                self.varint(plan.size)

    def step(self, step: Layer | int) -> None:
        if isinstance(step, int):
            self.data.append(4 + step)
            return
        self.data.append((step.kernel > 0) + 2 * (not step.bias))
        self.varint(step.outputs)
        if step.kernel:
            self.data += bytes((step.kernel, step.stride, step.padding))


class HeaderReader:
    """Reads what :class:`HeaderWriter` wrote; whatever is impossible is a :class:`CompressedFileError`.

    :param file_bytes: of the whole file behind its checksum, where ``data`` is but a part of it, inflated.
    :param version: of the format.
    """

    def __init__(self, data: bytes, file_bytes: int | None = None, version: int = 6) -> None:
        self.data, self.position, self.version = data, 0, version
        size = len(data) if file_bytes is None else file_bytes
        self.most = min(_MOST_PARAMETERS, _FREE + _PER_BYTE * size)
        self.most_adaptive = min(MOST_ADAPTIVE, _FREE + _ADAPTIVE_PER_BYTE * size)
        self.plans: dict[str, Plan] = {}
        self.dense_shapes: dict[str, tuple[int, int]] = {}
        self.buffers: set[str] = set()
        self.parameters = self.adaptive = 0
        self.further_inputs = 0

    def take(self, count: int) -> bytes:
        if self.position + count > len(self.data):
            raise CompressedFileError("the file ends within its header")
        self.position += count
        return self.data[self.position - count : self.position]

    def varint(self) -> int:
        value = 0
        for shift in range(0, 63, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise CompressedFileError("the file's header holds a number that is too large")

    def at_most(self, limit: int) -> int:
        value = self.varint()
        if value > limit:
            raise CompressedFileError(f"the file's header claims {value} where at most {limit} is allowed")
        return value

    def signed(self) -> int:
        return unzigzag(self.varint())

    def node(self, index: int) -> Node:
        code = self.varint()
        if code not in BY_CODE:
            raise CompressedFileError(f"the file's header holds an operation that is not known here, {code}")
        op = BY_CODE[code].name
        count = self.at_most(127)
        args: list[Any] = []
        for position in range(count // 2):
            args.append(self.argument(index, 0))
            if position == 1 and op in LAYERS and isinstance(args[1], Named):
                self.layer(args[1])
        kwargs = []
        for _ in range(self.at_most(15) if count % 2 else 0):
            key, argument = self.argument(index, 0), self.argument(index, 0)
            # Keywords become part of a Python function that runs the network; "out" would write into tensors.
            if not isinstance(key, str) or not _KEYWORD.fullmatch(key) or keyword.iskeyword(key) or key == "out":
                raise CompressedFileError("the file's header holds a keyword that is none")
            kwargs.append((key, argument))
        return Node(op, tuple(args), tuple(kwargs))

    def layer(self, weight: Named) -> None:
        self.dense_shapes[weight.name] = (self.at_most(1 << 24), self.at_most(1 << 24))

    def name(self) -> str:
        """The name of an input."""
        text = self.take(self.at_most(64)).decode("utf-8", "replace")
        if not text.isidentifier():
            raise CompressedFileError("the file's header names an input as no input is named")
        return text

    def input(self) -> Input:
        """One of several inputs."""
        text = self.name()
        shape = tuple(self.at_most(1 << 24) for _ in range(self.at_most(8)))
        return Input(text, shape, DTYPES[self.at_most(len(DTYPES) - 1)])

    def argument(self, index: int, depth: int) -> Any:
        byte = self.take(1)[0]
        kind, payload = byte >> 4, byte & 15
        if payload == 15:
            payload = self.varint()
        if kind == 0 and payload < len(_CONSTANTS):
            return _CONSTANTS[payload]
        if kind == _INTEGER:
            return unzigzag(payload)
        if kind == _FLOAT:
            return struct.unpack("<d", self.take(8))[0]
        if kind == _TEXT and payload <= 64:
            return self.take(payload).decode("utf-8", "replace")
        if kind == _TUPLE and payload <= 4096 and depth < 4:
            return tuple(self.argument(index, depth + 1) for _ in range(payload))
        if kind == _RESULT and 0 < payload <= index + 1 + self.further_inputs:
            return Value(index - payload)
        if kind == _TENSOR and payload <= min(len(self.plans), _MOST_TENSORS):
            name = f"tensor{payload}"
            if payload == len(self.plans):
                self.plans[name] = self.tensor(name)
            return Named(name)
        raise CompressedFileError(f"the file's header holds an argument of kind {kind} that is not allowed there")

    def tensor(self, name: str) -> Plan:
        byte = self.take(1)[0]
        kind, dims = byte >> 4, byte & 15
        if kind == BUFFER:
            kind = NUMBERS
            self.buffers.add(name)
        shape = tuple(self.at_most(1 << 24) for _ in range(dims))
        added = 4 if kind in SINCE_4 else 5 if kind in SINCE_5 else 99
        if kind > COSINES and self.version < added:
            raise CompressedFileError("the file claims a tensor of an unknown kind")
        if kind == FLOATS:
            self.size(shape)
            listed, is_buffer = divmod(self.at_most(2 * MOST_LISTED + 1), 2)
            if is_buffer:
                self.buffers.add(name)
            patterns = struct.unpack(f"<{listed}I", self.take(4 * listed))
            if list(patterns) != sorted(set(patterns)):
                raise CompressedFileError("the file lists numbers out of order")
            return Plan(kind, shape, is_buffer, listed=patterns)
        dtype = self.at_most(len(DTYPES) - 1) if kind == TYPED else 1
        if not dtype:
            raise CompressedFileError("the file claims integers that are none")
        if kind in SINCE_5 and not dims:
            raise CompressedFileError("the file claims rows of a single number")
        if kind in BIT_BY_BIT:
            self.size(shape)
            fraction_bits = self.signed()
            grid = tuple(self.at_most(MOST_SIDE) for _ in range(self.at_most(3) if kind == COSINES else 0))
            return self.numbers(Plan(kind, shape, fraction_bits, grid=grid))
        if kind == SELECTION:
            limit = self.at_most(_MOST_PARAMETERS)
            if dims != 1 or not 0 < shape[0] <= limit:
                raise CompressedFileError("the file claims more indices than there are, or none")
            self.size((limit,))
            return Plan(kind, shape, limit=limit)
        self.size(shape)
        plan = self.numbers(Plan(kind, shape, self.signed(), self.signed(), self.varint(), dtype=dtype))
        least, most = _RANGES.get(DTYPES[dtype], (-(1 << 25), 1 << 25))
        if kind == TYPED and not (least <= plan.lowest and plan.lowest + plan.size - 1 <= most):
            raise CompressedFileError("the file claims integers beyond their type")
        return plan

    def size(self, shape: tuple[int, ...]) -> None:
        """Count a tensor in, and refuse it where it is empty or all of them would be too large."""
        self.parameters += math.prod(shape)
        if not all(shape) or self.parameters > self.most:
            raise CompressedFileError("the file claims a tensor of impossible size, or more numbers than it can hold")

    def numbers(self, plan: Plan) -> Plan:
        adaptive = plan.kind in BIT_BY_BIT
        self.adaptive += bit_by_bit(plan)
        if self.adaptive > self.most_adaptive:
            raise CompressedFileError("the file claims tensors that are too large for how they are coded")
        if plan.kind == COSINES and not is_grid(plan.shape, plan.grid):
            raise CompressedFileError("the file claims a tensor over a grid that does not fit it")
        in_range = adaptive or (abs(plan.lowest) < 1 << 25 and 0 < plan.size <= 1 << 25)
        if not (in_range and abs(plan.fraction_bits) <= 160):
            raise CompressedFileError("the file's header holds fixed-point numbers out of range")
        return plan

    def chain(self, form: int) -> tuple[tuple[int, ...], Pruned, int]:
        """A chain's header: input shape, network, dense parameters. Fills in plans and shapes as reading nodes does."""
        if form > 1 + len(KNOWN):
            raise CompressedFileError(f"the file's header has an unknown form, {form}")
        dense_parameters = 0
        if form > 1:
            chain = KNOWN[form - 2]
        else:
            dense_parameters = self.varint()
            input_shape = tuple(self.at_most(1 << 24) for _ in range(self.at_most(3)))
            if len(input_shape) not in (1, 3):
                raise CompressedFileError(f"the file claims a chain with inputs of {len(input_shape)} dimensions")
            chain = Chain(input_shape, tuple(self.step() for _ in range(self.at_most(MOST_STEPS))))
        widths = tuple(self.at_most(1 << 24) for step in chain.steps if isinstance(step, Layer))
        try:
            pruned = prune(chain, widths)
        except ValueError as error:
            raise CompressedFileError(f"the file's header is damaged: {error}") from None
        if not widths:
            raise CompressedFileError("the file claims an empty network")
        for name, shape in pruned.shapes.items():
            self.size(shape)
            value, kind = divmod(self.varint(), 3)
            plan = Plan(_CHAIN_KINDS[kind], shape, unzigzag(value))
            if plan.kind == NUMBERS:
                plan = replace(plan, lowest=self.signed(), size=self.varint())
            elif plan.kind == COSINES:
                plan = replace(plan, grid=pruned.grids.get(name, ()))
            self.plans[name] = self.numbers(plan)
        self.dense_shapes = pruned.dense_shapes
        return chain.input_shape, pruned, dense_parameters or pruned.dense_parameters

    def step(self) -> Layer | int:
        code = self.take(1)[0]
        if code >= 4:
            if code - 4 >= len(PLAIN):
                raise CompressedFileError(f"the file's header holds an unknown operation, {code - 4}")
            return code - 4
        outputs = self.at_most(1 << 24)
        kernel, stride, padding = self.take(3) if code & 1 else (0, 1, 0)
        if not stride or (code & 1 and not kernel) or max(kernel, stride, padding) > MOST:
            raise CompressedFileError("the file's header holds an impossible convolution")
        return Layer(outputs, kernel, stride, padding, not code & 2)
