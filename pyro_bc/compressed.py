r"""The compressed network and its file, ``.pbc``.

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
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .chain import ACTIVATIONS, ActivationStep, FlattenStep, LinearStep, NormalizeStep, Step, build, read_chain
from .checkpoint import write_atomically
from .codec import Decoder, Encoder
from .errors import CompressedFileError, UsageError
from .guides import FactorizedGuide
from .nn import BayesianNetwork
from .posterior import LayerPosterior, summarize
from .precision import NOISE_RATIO, FixedPoint, to_fixed_point
from .pruning import PrunedLayer, shrink
from .thresholds import Threshold, choose_threshold

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
class Compression:
    """The three figures that are reported together (Louizos et al. 2017, table 2); biases count.

    :param pruning: dense parameters over parameters left.
    :param fast_prediction: 32 bits times dense parameters over the bits of the fixed-point network.
    :param maximum: dense float32 bytes over the bytes of the file.
    :param nonzero_percent: parameters left that are not zero, in percent of the dense ones.
    """

    pruning: float
    fast_prediction: float
    maximum: float
    nonzero_percent: float


@dataclass(frozen=True)
class CompressedNetwork:
    """A pruned network in fixed-point numbers: what :func:`compress` returns and a ``.pbc`` file holds.

    :param chain: the network's steps; linear steps are in the order of ``layers``.
    :param layers: its fully connected layers.
    :param inputs: indices of the first layer's inputs that are read; None for all of them.
    :param dense_parameters: parameters of the network before compression, biases included.
    :param input_shape: shape of one input, or empty where unknown.
    :param thresholds: by layer, how it was pruned; empty for a network read from a file.
    """

    chain: tuple[Step, ...]
    layers: tuple[StoredLayer, ...]
    inputs: Tensor | None
    dense_parameters: int
    input_shape: tuple[int, ...]
    thresholds: Mapping[str, Threshold]

    @property
    def architecture(self) -> tuple[int, ...]:
        """Inputs that each layer has left: ``(278, 98, 13)`` for a LeNet-300-100, as the paper counts them."""
        return tuple(layer.weight.codes.shape[1] for layer in self.layers)

    @property
    def bits(self) -> tuple[int, ...]:
        """Bits of each layer's weights, sign included."""
        return tuple(layer.weight.bits for layer in self.layers)

    def compression(self, file_bytes: int | None = None) -> Compression:
        """The compression figures.

        :param file_bytes: size of the file; None to encode and count.
        """
        size = len(self.to_bytes()) if file_bytes is None else file_bytes
        nonzero = 0
        for layer in self.layers:
            nonzero += int(layer.weight.codes.count_nonzero())
            nonzero += 0 if layer.bias is None else int(layer.bias.codes.count_nonzero())
        return Compression(
            pruning=self.dense_parameters / sum(layer.parameters for layer in self.layers),
            fast_prediction=32 * self.dense_parameters / sum(layer.total_bits for layer in self.layers),
            maximum=4 * self.dense_parameters / size,
            nonzero_percent=100 * nonzero / self.dense_parameters,
        )

    def network(self) -> nn.Module:
        """The network as an ``nn.Module`` in evaluation mode, with the stored numbers as float32 weights."""
        names = [step.name for step in self.chain if isinstance(step, LinearStep)]
        linears = {
            name: (layer.weight.values(), None if layer.bias is None else layer.bias.values())
            for name, layer in zip(names, self.layers, strict=True)
        }
        return build(self.chain, linears, self.inputs)

    def to_bytes(self) -> bytes:
        """The file's content; the same network always gives the same bytes."""
        header = _Writer()
        header.varint(self.dense_parameters)
        header.varint(len(self.input_shape))
        for size in self.input_shape:
            header.varint(size)
        header.varint(len(self.chain))
        layers = iter(self.layers)
        for step in self.chain:
            _write_step(header, step, layers)
        coder = Encoder()
        if self.inputs is not None:
            read = np.zeros(self.layers[0].dense_shape[1], dtype=np.int64)
            read[self.inputs.numpy()] = 1
            coder.table(read, 2)
        for layer in self.layers:
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

    @staticmethod
    def from_bytes(data: bytes) -> "CompressedNetwork":
        """:raises CompressedFileError: where ``data`` is not a whole, undamaged ``.pbc`` file."""
        return read_sections(data)[0]

    def save(self, path: str | os.PathLike) -> int:
        """Write the file, whole or not at all; an existing one is replaced.

        :returns: the file's size in bytes.
        """
        data = self.to_bytes()
        write_atomically(path, data)
        return len(data)


def read_sections(data: bytes) -> tuple[CompressedNetwork, dict[str, float]]:
    """A file's network, and how many bytes each of its sections takes (fractions, by information content).

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
    return CompressedNetwork(tuple(chain), tuple(layers), inputs, dense_parameters, input_shape, {}), sections


def compress(
    model: Any,
    guide: FactorizedGuide,
    *,
    net: nn.Module | None = None,
    thresholds: Mapping[str, float] | None = None,
    precision: str = "posterior",
    noise_ratio: float = NOISE_RATIO,
) -> CompressedNetwork:
    """Prune what the posterior says is not needed, and round the rest as coarsely as it allows.

    :param model: the model that was fitted: a :class:`~pyro_bc.BayesianNetwork`, or any Pyro model whose sites
        are named ``<layer>.<role>``.
    :param guide: its fitted guide.
    :param net: the deterministic network that the model computes, with a ``nn.Linear`` for each layer of the same
        name; needed for models written by hand, since a Python function cannot be stored in a file.
    :param thresholds: explicit thresholds by layer name; the others are found automatically.
    :param precision: rule that sets the bits, ``posterior`` or ``paper`` (:mod:`pyro_bc.precision`).
    :param noise_ratio: rounding noise as a part of the posterior's variance, for the rule ``posterior``.
    :raises EmptyNetworkError: where a layer is left without any weight.
    :raises UnsupportedNetworkError: where the network is not a chain of known steps.
    :raises UsageError: where layers and network do not fit, or a threshold names no layer.
    """
    posterior = layer_posteriors(model, guide)
    if net is None:
        if not isinstance(model, BayesianNetwork):
            raise UsageError(
                "a model written by hand needs net=…, the nn.Module that it computes, with one nn.Linear per layer "
                f"({', '.join(posterior)})"
            )
        net = model.skeleton
    chain = read_chain(net)
    names = [step.name for step in chain if isinstance(step, LinearStep)]
    prefix = _prefix(model)
    for site in guide.families:
        layer = site.removeprefix(prefix).removesuffix(".weight")
        if site.endswith(".weight") and layer in names and layer not in posterior:
            raise UsageError(f"the prior over '{site}' is none that pyro_bc.priors knows: subclass Prior for it")
    for name in posterior:
        if name not in names:
            raise UsageError(f"the model has a layer '{name}', but the network's layers are {', '.join(names)}")
    for name in thresholds or {}:
        if name not in posterior:
            raise UsageError(f"a threshold is given for '{name}', but the layers are {', '.join(posterior)}")
    chosen = {name: choose_threshold(layer, (thresholds or {}).get(name)) for name, layer in posterior.items()}
    pruned = shrink(net, chain, posterior, chosen)
    first = pruned[0]
    all_inputs = net.get_submodule(first.name).in_features
    return CompressedNetwork(
        chain=chain,
        layers=tuple(_store(layer, net, precision, noise_ratio) for layer in pruned),
        inputs=None if len(first.inputs) == all_inputs else first.inputs,
        dense_parameters=sum(p.numel() for p in net.parameters()),
        input_shape=_input_shape(guide),
        thresholds=chosen,
    )


def _prefix(model: Any) -> str:
    """What stands before a layer's name in the network in the names of its sites."""
    return "net." if isinstance(model, BayesianNetwork) else ""


def layer_posteriors(model: Any, guide: FactorizedGuide) -> dict[str, LayerPosterior]:
    """Posterior summaries by the layer's name in the network (``fc1``, where the site is ``net.fc1.weight``)."""
    prefix = _prefix(model)
    posterior = {name.removeprefix(prefix): layer for name, layer in summarize(guide).items()}
    if not posterior:
        raise UsageError("the model has no layers: name the sites of each weight '<layer>.<role>' (see pyro_bc.priors)")
    return posterior


def _store(layer: PrunedLayer, net: nn.Module, precision: str, noise_ratio: float) -> StoredLayer:
    bias = None
    if layer.bias is not None:
        assert layer.bias_variance is not None
        bias = to_fixed_point(layer.bias, layer.bias_variance, None, precision, noise_ratio)
    weight = to_fixed_point(layer.weight, layer.variance, layer.mask, precision, noise_ratio)
    linear: Any = net.get_submodule(layer.name)
    return StoredLayer((linear.out_features, linear.in_features), weight, bias)


def _input_shape(guide: FactorizedGuide) -> tuple[int, ...]:
    assert guide.prototype_trace is not None
    arguments: Any = guide.prototype_trace.nodes["_INPUT"]["args"]
    return tuple(arguments[0].shape[1:]) if arguments and isinstance(arguments[0], Tensor) else ()


def read(path: str | os.PathLike) -> CompressedNetwork:
    """The compressed network in a ``.pbc`` file, with its codes, bits and figures.

    :raises CompressedFileError: where the file is missing, damaged, or not a ``.pbc`` file.
    """
    return CompressedNetwork.from_bytes(read_bytes(path))


def read_bytes(path: str | os.PathLike) -> bytes:
    """Content of a file; :raises CompressedFileError: where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CompressedFileError(f"'{path}' cannot be read: {error.strerror or error}") from None


def load(path: str | os.PathLike) -> nn.Module:
    """The network in a ``.pbc`` file, ready to use: an ``nn.Module`` in evaluation mode.

    It takes what the original took, input normalisation included: pictures as float tensors in [0, 1] of shape
    ``(N, C, H, W)`` for the shipped networks. Neither pickle nor the original class is needed.

    :raises CompressedFileError: where the file is missing, damaged, or not a ``.pbc`` file.
    """
    try:
        return read(path).network()
    except CompressedFileError as error:
        raise CompressedFileError(f"'{path}': {error}") from None


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
