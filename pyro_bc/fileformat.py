r"""The file format ``.pbc``: a compressed network to bytes and back.

Byte layout, version 1; integers are unsigned LEB128 varints, signed ones zigzag-coded, floats little-endian IEEE:

==============  ====================================================================================
bytes           content
==============  ====================================================================================
3               ``PBC``
1               version, 1
4               CRC-32 (little-endian) of everything after it
varint          parameters of the dense network, for the compression figures
varint, …       number of dimensions of one input, and each of them (0 where unknown)
varint          number of steps, then each step: one tag byte and its fields

                * 0 normalize: varint n, n float32 means, n float32 standard deviations
                * 1 flatten
                * 2 activation: varint, index into :data:`pyro_bc.chain.ACTIVATIONS`
                * 3 linear: varints inputs and outputs of the dense layer, inputs and outputs left; then
                  fixed-point fields of the weights, a byte 1 or 0 for a bias, those of the bias if 1.
                  Fixed-point fields: zigzag fraction bits, zigzag lowest code, varint number of codes
rest            one range-coded stream (:mod:`pyro_bc.codec`): which inputs of the first layer are read
                (a table of two symbols, where any is pruned); then of each layer the bias codes, uniform,
                and the weight codes, row by row: with a table where there are at most 4,096 different
                codes, uniform otherwise
==============  ====================================================================================

A weight is ``(lowest + symbol) · 2^-fraction_bits``. Nothing in the file is executed or unpickled.
"""

import math
import struct
import zlib
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .chain import ACTIVATIONS, ActivationStep, FlattenStep, LinearStep, NormalizeStep, Step
from .codec import Decoder, Encoder
from .errors import CompressedFileError
from .precision import FixedPoint

_MAGIC, _VERSION = b"PBC", 1
_TABLE_SYMBOLS = 4096
# What a file may claim: more is refused before anything is allocated.
_MOST_PARAMETERS, _MOST_STEPS = 1 << 28, 1 << 12


@dataclass(frozen=True)
class StoredLayer:
    """A fully connected layer as it is stored.

    :param dense_shape: ``(out, in)`` before pruning.
    :param weight: codes of shape ``(out_left, in_left)``.
    :param bias: codes of shape ``(out_left,)``, or None.
    """

    dense_shape: tuple[int, int]
    weight: FixedPoint
    bias: FixedPoint | None

    @property
    def parameters(self) -> int:
        """Weights and biases that are left."""
        return self.weight.codes.numel() + (0 if self.bias is None else self.bias.codes.numel())

    @property
    def total_bits(self) -> int:
        """Bits of all fixed-point numbers of the layer, before entropy coding."""
        bias = 0 if self.bias is None else self.bias.codes.numel() * self.bias.bits
        return self.weight.codes.numel() * self.weight.bits + bias


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    :param chain: the network's steps; linear steps are in the order of ``layers``.
    :param layers: its fully connected layers.
    :param inputs: indices of the first layer's inputs that are read; None for all of them.
    :param dense_parameters: parameters of the network before compression, biases included.
    :param input_shape: shape of one input, or empty where unknown.
    """

    chain: tuple[Step, ...]
    layers: tuple[StoredLayer, ...]
    inputs: Tensor | None
    dense_parameters: int
    input_shape: tuple[int, ...]


def encode(contents: Contents) -> bytes:
    """The file's bytes; the same contents always give the same bytes."""
    header = _Writer()
    header.varint(contents.dense_parameters)
    header.varint(len(contents.input_shape))
    for size in contents.input_shape:
        header.varint(size)
    header.varint(len(contents.chain))
    layers = iter(contents.layers)
    for step in contents.chain:
        _write_step(header, step, layers)
    coder = Encoder()
    if contents.inputs is not None:
        read = np.zeros(contents.layers[0].dense_shape[1], dtype=np.int64)
        read[contents.inputs.numpy()] = 1
        coder.table(read, 2)
    for layer in contents.layers:
        if layer.bias is not None:
            lowest, size = _range(layer.bias)
            coder.uniform(layer.bias.codes.numpy() - lowest, _uniform_bits(size))
        lowest, size = _range(layer.weight)
        symbols = layer.weight.codes.flatten().numpy() - lowest
        if size <= _TABLE_SYMBOLS:
            coder.table(symbols, size)
        else:
            coder.uniform(symbols, _uniform_bits(size))
    body = bytes(header.data) + coder.data()
    return _MAGIC + bytes([_VERSION]) + struct.pack("<I", zlib.crc32(body)) + body


def decode(data: bytes) -> tuple[Contents, dict[str, float]]:
    """A file's contents, and how many bytes each of its sections takes (fractions, by information content).

    :raises CompressedFileError: where ``data`` is not a whole, undamaged ``.pbc`` file.
    """
    if data[:3] != _MAGIC or len(data) < 8:
        raise CompressedFileError("this is not a .pbc file")
    if data[3] != _VERSION:
        raise CompressedFileError(
            f"the file has format version {data[3]}; this pyro_bc reads version {_VERSION}: update it"
        )
    body = data[8:]
    if zlib.crc32(body) != struct.unpack("<I", data[4:8])[0]:
        raise CompressedFileError("the file is damaged: its checksum does not fit its content")
    reader = _Reader(body)
    dense_parameters = reader.varint()
    input_shape = tuple(reader.varint() for _ in range(reader.at_most(8)))
    chain: list[Step] = []
    plans: list[_LayerPlan] = []
    for _ in range(reader.at_most(_MOST_STEPS)):
        chain.append(_read_step(reader, plans))
    if not plans or sum(plan.inputs_left * plan.outputs_left for plan in plans) > _MOST_PARAMETERS:
        raise CompressedFileError("the file claims no layer, or more parameters than this format allows")
    if dense_parameters < 1 or any(a.outputs_left != b.inputs_left for a, b in pairwise(plans)):
        raise CompressedFileError("the file's layers do not fit together")
    sections = {"header": 8.0 + reader.position}
    coder = Decoder(body[reader.position :])
    inputs = None
    first = plans[0]
    if first.inputs_left < first.dense_shape[1]:
        inputs = torch.from_numpy(np.flatnonzero(coder.table(first.dense_shape[1], 2)))
        if len(inputs) != first.inputs_left:
            raise CompressedFileError("the file's inputs do not fit its first layer")
    sections["inputs"] = coder.take_bits() / 8
    layers = []
    for number, plan in enumerate(plans, 1):
        bias = None
        if plan.bias is not None:
            codes = coder.uniform(plan.outputs_left, _uniform_bits(plan.bias.size)) + plan.bias.lowest
            bias = FixedPoint(torch.from_numpy(codes), plan.bias.fraction_bits)
        sections[f"layer {number} biases"] = coder.take_bits() / 8
        count = plan.inputs_left * plan.outputs_left
        size = plan.weight.size
        symbols = coder.table(count, size) if size <= _TABLE_SYMBOLS else coder.uniform(count, _uniform_bits(size))
        codes = (symbols + plan.weight.lowest).reshape(plan.outputs_left, plan.inputs_left)
        sections[f"layer {number} weights"] = coder.take_bits() / 8
        layers.append(
            StoredLayer(plan.dense_shape, FixedPoint(torch.from_numpy(codes), plan.weight.fraction_bits), bias)
        )
    return Contents(tuple(chain), tuple(layers), inputs, dense_parameters, input_shape), sections


@dataclass(frozen=True)
class _Numbers:
    """Fixed-point fields of a header: step, and the range of the codes."""

    fraction_bits: int
    lowest: int
    size: int


@dataclass(frozen=True)
class _LayerPlan:
    dense_shape: tuple[int, int]
    inputs_left: int
    outputs_left: int
    weight: _Numbers
    bias: _Numbers | None


def _range(numbers: FixedPoint) -> tuple[int, int]:
    """Lowest code, and how many codes there are up to the highest."""
    lowest = int(numbers.codes.min())
    return lowest, int(numbers.codes.max()) - lowest + 1


def _uniform_bits(size: int) -> int:
    return (size - 1).bit_length()


class _Writer:
    def __init__(self) -> None:
        self.data = bytearray()

    def varint(self, value: int) -> None:
        while value >= 0x80:
            self.data.append(value & 0x7F | 0x80)
            value >>= 7
        self.data.append(value)

    def signed(self, value: int) -> None:
        self.varint(2 * value if value >= 0 else -2 * value - 1)

    def numbers(self, numbers: FixedPoint) -> None:
        lowest, size = _range(numbers)
        self.signed(numbers.fraction_bits)
        self.signed(lowest)
        self.varint(size)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def take(self, count: int) -> bytes:
        if self.position + count > len(self.data):
            raise CompressedFileError("the file ends within its header")
        self.position += count
        return self.data[self.position - count : self.position]

    def varint(self) -> int:
        value = 0
        for shift in range(0, 42, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise CompressedFileError("the file's header holds a number that is too large")

    def at_most(self, limit: int) -> int:
        value = self.varint()
        if value > limit:
            raise CompressedFileError(f"the file's header claims {value} entries where {limit} are allowed")
        return value

    def signed(self) -> int:
        value = self.varint()
        return value // 2 if value % 2 == 0 else -(value + 1) // 2

    def numbers(self) -> _Numbers:
        numbers = _Numbers(self.signed(), self.signed(), self.varint())
        if not (abs(numbers.fraction_bits) <= 160 and abs(numbers.lowest) < 1 << 24 and 0 < numbers.size <= 1 << 25):
            raise CompressedFileError("the file's header holds fixed-point numbers out of range")
        return numbers


def _write_step(header: _Writer, step: Step, layers: Any) -> None:
    if isinstance(step, NormalizeStep):
        header.data.append(0)
        header.varint(len(step.mean))
        std = step.std * (len(step.mean) if len(step.std) == 1 else 1)
        header.data += struct.pack(f"<{2 * len(step.mean)}f", *step.mean, *std)
    elif isinstance(step, FlattenStep):
        header.data.append(1)
    elif isinstance(step, ActivationStep):
        header.data.append(2)
        header.varint(list(ACTIVATIONS).index(step.kind))
    else:
        layer = next(layers)
        outputs_left, inputs_left = layer.weight.codes.shape
        header.data.append(3)
        for value in (layer.dense_shape[1], layer.dense_shape[0], inputs_left, outputs_left):
            header.varint(value)
        header.numbers(layer.weight)
        header.data.append(layer.bias is not None)
        if layer.bias is not None:
            header.numbers(layer.bias)


def _read_step(reader: _Reader, plans: list[_LayerPlan]) -> Step:
    tag = reader.take(1)[0]
    if tag == 0:
        n = reader.at_most(1 << 12)
        values = struct.unpack(f"<{2 * n}f", reader.take(8 * n))
        if n == 0 or not all(map(math.isfinite, values)) or not all(values[n:]):
            raise CompressedFileError("the file's input normalisation is not finite")
        return NormalizeStep(values[:n], values[n:])
    if tag == 1:
        return FlattenStep()
    if tag == 2:
        return ActivationStep(list(ACTIVATIONS)[reader.at_most(len(ACTIVATIONS) - 1)])
    if tag == 3:
        inputs, outputs, inputs_left, outputs_left = (reader.at_most(1 << 24) for _ in range(4))
        if not (0 < inputs_left <= inputs and 0 < outputs_left <= outputs):
            raise CompressedFileError("the file's header holds a layer of impossible size")
        weight = reader.numbers()
        bias = reader.numbers() if reader.take(1)[0] else None
        plans.append(_LayerPlan((outputs, inputs), inputs_left, outputs_left, weight, bias))
        return LinearStep(str(len(plans)))
    raise CompressedFileError(f"the file's header holds an unknown step {tag}")
