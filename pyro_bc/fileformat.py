r"""The file format ``.pbc``: a compressed network to bytes and back.

Byte layout, version 3; integers are unsigned LEB128 varints, signed ones zigzag-coded, floats little-endian IEEE:

==============  ====================================================================================
bytes           content
==============  ====================================================================================
3               ``PBC``
1               version, 3
4               CRC-32 (little-endian) of everything after it
varint          form of the header: 0 for a graph, as follows here; from 1 on for a chain, see below. Version 2 knows
                graphs only and leaves this out
varint          parameters of the dense network, for the compression figures
varint, …       number of dimensions of one input, and each of them (0 where unknown)
varint          number of nodes, then each node of the graph (:mod:`pyro_bc.graph`): a varint, index into
                :data:`~pyro_bc.graph.OPERATIONS`; a varint, two times the number of arguments, plus 1 where
                there are keyword arguments; the arguments; where there are any, the number of keyword
                arguments and for each its name, as an argument, and its value.
                0 where the file leaves the graph out; instead of nodes there is then a CRC-32
                (little-endian) of the dictionary, a varint, and that many bytes: number of nodes and nodes
                as above, deflated (RFC 1951) with a preset dictionary, the nodes of the dense network's
                graph as they would be written with numbers of 8 fraction bits that are all 0
rest            one range-coded stream (:mod:`pyro_bc.codec`) with the tensors' codes, in their order
==============  ====================================================================================

An argument is a byte ``16 · kind + payload``, where a payload of 15 means that a varint follows that takes its place:

* 0 a constant: payload 0 None, 1 False, 2 True;
* 1 an integer, zigzag;
* 2 a float64: 8 bytes follow;
* 3 text: that many bytes of UTF-8 follow;
* 4 a tuple of that many arguments;
* 5 the result of the node that many nodes before this one, where the input precedes the first;
* 6 a tensor, counted from the first; one that has not occurred before is described here (payload = number of tensors
  so far): a byte ``16 · kind + dimensions``, each of them, and

  - kind 0, numbers: zigzag fraction bits, zigzag lowest code, varint number of codes. The stream holds the codes, row
    by row: where there are at most 4,096 different codes, one bit whether a table is used, else uniform;
  - kind 1, the same, but the numbers are integers;
  - kind 3, as kind 0, for numbers that training leaves alone (statistics of a normalisation);
  - kind 4, numbers, coded adaptively: zigzag fraction bits. The stream holds the codes, row by row;
  - kind 5, as kind 4, but the codes are cosine coefficients (:mod:`pyro_bc.cosine`), in the adaptive model's
    classes by their frequency: behind the fraction bits a varint, number of dimensions of the grid, and each of them;
  - kind 2, ascending indices below a varint that follows, the dimension being how many there are. The stream holds
    for each number below it whether it is among them, with a table of two symbols.

  The weight of a fully connected layer or convolution is followed by the shape of the dense one, outputs and inputs.

A chain (:mod:`pyro_bc.chain`) has a header of its own. Form 1 says it in full: number of dimensions of one input and
each of them; number of steps and each of them, a byte that is 0 for a fully connected layer, 1 for a convolution (2
more where there is no bias), or 4 and the position of another operation in :data:`~pyro_bc.chain.PLAIN`; behind that of
a layer a varint, its outputs before pruning, and for a convolution one byte each for kernel, stride and padding. Form 2
and on are the chains in :data:`~pyro_bc.chain.KNOWN`. Then follow, for all forms, the outputs left of every layer, and
of every tensor, in the order of use, a varint: three times its zigzag fraction bits, plus 0 for kind 0 (lowest code and
number of codes follow as above), 1 for kind 4, 2 for kind 5 with the chain's own grid: a convolution's kernel, or the
positions that a fully connected layer reads behind a flattening.

A number is ``(lowest + symbol) · 2^-fraction_bits``. Nothing in the file is executed or unpickled: operations are those
of a fixed list, applied to tensors of the file and to the input.
"""

import math
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .chain import KNOWN, MOST, PLAIN, Chain, Layer, Pruned, find_chain, prune
from .codec import Decoder, Encoder, adaptive_bits, frequencies
from .cosine import frequencies as spatial_frequencies
from .errors import CompressedFileError, UnsupportedNetworkError
from .graph import OPERATIONS, Graph, GraphNetwork, Named, Node, Value, is_layer, replace_leaves
from .precision import FixedPoint

_MAGIC, _VERSION, _OLDEST = b"PBC", 3, 2
_TABLE_SYMBOLS = 4096
# The adaptive model takes Python a few microseconds a number; tables cost layers that are larger nothing.
_MOST_ADAPTIVE = 1 << 16
#: cosine coefficients that a tensor may hold, since they are always coded so.
MOST_COSINES = 1 << 20
_NUMBERS, _INTEGERS, _SELECTION, _BUFFER, _ADAPTIVE, _COSINES = range(6)
# What a file may claim: more is refused before anything is allocated.
_MOST_PARAMETERS, _MOST_NODES, _MOST_TENSORS, _MOST_HEADER = 1 << 28, 1 << 16, 1 << 16, 1 << 24
_NONE, _INTEGER, _FLOAT, _TEXT, _TUPLE, _RESULT, _TENSOR = range(7)
_CONSTANTS = (None, False, True)
_CHAIN_KINDS = (_NUMBERS, _ADAPTIVE, _COSINES)


@dataclass(frozen=True)
class Selection:
    """Ascending indices, which inputs a layer still reads.

    :param indices: ``(n,)``, int64.
    :param size: of the dimension that they select from.
    """

    indices: Tensor
    size: int


@dataclass(frozen=True)
class Integers:
    """A tensor of integers, stored as it is.

    :param codes: int64, any shape.
    """

    codes: Tensor


#: a tensor of the file.
Stored = FixedPoint | Selection | Integers


@dataclass(frozen=True)
class StoredLayer:
    """A fully connected layer or convolution as it is stored.

    :param name: the layer's name; ``layer1``, ``layer2``, … in a network read from a file.
    :param dense_shape: outputs and inputs (filters and channels) before pruning.
    :param weight: codes of shape ``(out_left, in_left)`` or ``(out_left, in_left, *kernel)``.
    :param bias: codes of shape ``(out_left,)``, or None.
    """

    name: str
    dense_shape: tuple[int, int]
    weight: FixedPoint
    bias: FixedPoint | None

    @property
    def dense_groups(self) -> int:
        """Inputs of a fully connected layer, or filters of a convolution, before pruning."""
        return self.dense_shape[1 if self.weight.codes.dim() == 2 else 0]

    @property
    def groups_left(self) -> int:
        """Inputs of a fully connected layer, or filters of a convolution, that are left."""
        return self.weight.codes.shape[1 if self.weight.codes.dim() == 2 else 0]


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    :param nodes: the network's graph.
    :param tensors: by name, those that the nodes use, in the order of their first use.
    :param dense_shapes: outputs and inputs of every layer before pruning, by the name of its weight.
    :param dense_parameters: parameters of the network before compression, biases included.
    :param input_shape: shape of one input, or empty where unknown.
    :param buffers: names of the tensors that are no parameters.
    """

    nodes: tuple[Node, ...]
    tensors: Mapping[str, Stored]
    dense_shapes: Mapping[str, tuple[int, int]]
    dense_parameters: int
    input_shape: tuple[int, ...]
    buffers: frozenset[str]

    @property
    def layers(self) -> tuple[StoredLayer, ...]:
        """Fully connected layers and convolutions, in the order of the graph."""
        layers = {}
        for node in self.nodes:
            if is_layer(node):
                weight, bias = self.tensors[node.args[1].name], None
                if len(node.args) > 2 and node.args[2] is not None:
                    bias = self.tensors[node.args[2].name]
                name = node.args[1].name
                assert isinstance(weight, FixedPoint) and (bias is None or isinstance(bias, FixedPoint))
                layers[name] = StoredLayer(name.removesuffix(".weight"), self.dense_shapes[name], weight, bias)
        return tuple(layers.values())


def encode(contents: Contents, dense: Graph | None = None) -> bytes:
    """The file's bytes; the same contents always give the same bytes.

    :param dense: the dense network's graph, if the file is to leave out what follows from it.
    """
    header = _Writer(contents)
    chain = _chain(contents) if dense is None else None
    if chain is not None:
        header.chain(*chain)
        return _file(header)
    header.varint(0)
    header.varint(contents.dense_parameters)
    header.varint(len(contents.input_shape))
    for size in contents.input_shape:
        header.varint(size)
    if dense is None:
        header.nodes()
    else:
        dictionary = _dictionary(dense)
        nodes = _Writer(contents)
        nodes.nodes()
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_FIXED, dictionary)
        deflated = deflate.compress(bytes(nodes.data)) + deflate.flush()
        header.varint(0)
        header.data += struct.pack("<I", zlib.crc32(dictionary))
        header.varint(len(deflated))
        header.data += deflated
    return _file(header)


def _chain(contents: Contents) -> tuple[Chain, tuple[int, ...]] | None:
    """The chain that the contents are, if they are one and a chain's header can say how its tensors are coded."""
    stored = contents.tensors
    numbers = {name: tensor for name, tensor in stored.items() if isinstance(tensor, FixedPoint)}
    if contents.buffers or len(numbers) < len(stored):
        return None
    shapes = {name: tuple(tensor.codes.shape) for name, tensor in numbers.items()}
    found = find_chain(contents.nodes, shapes, contents.dense_shapes, contents.dense_parameters, contents.input_shape)
    if found is None:
        return None
    grids = prune(*found).grids
    fit = all(t.grid in ((), grids.get(f"tensor{number}", ())) for number, t in enumerate(numbers.values()))
    return found if fit else None


def _file(header: "_Writer") -> bytes:
    coder = Encoder()
    for tensor in header.contents.tensors.values():
        _encode_tensor(coder, tensor)
    body = bytes(header.data) + coder.data()
    return _MAGIC + bytes([_VERSION]) + struct.pack("<I", zlib.crc32(body)) + body


def _dictionary(dense: Graph) -> bytes:
    """The nodes of a network's graph, as they would be written if all of its numbers were 0."""
    tensors: dict[str, Stored] = {}
    for name, tensor in dense.tensors.items():
        zeros = torch.zeros((), dtype=torch.int64).expand(tensor.shape)
        tensors[name] = FixedPoint(zeros, 8) if tensor.is_floating_point() else Integers(zeros)
    weights = [node.args[1].name for node in dense.nodes if is_layer(node)]
    shapes = {name: (dense.tensors[name].shape[0], dense.tensors[name].shape[1]) for name in weights}
    writer = _Writer(Contents(dense.nodes, tensors, shapes, 1, (), dense.buffers))
    writer.nodes()
    return bytes(writer.data)


def _inflated(reader: "_Reader", dense: Graph | None) -> "_Reader":
    """A reader of the nodes of a file that leaves its graph out."""
    checksum = struct.unpack("<I", reader.take(4))[0]
    deflated = reader.take(reader.varint())
    if dense is None:
        raise CompressedFileError(
            "the file leaves the network's graph out: load it with net=…, an instance of the class it was made from"
        )
    dictionary = _dictionary(dense)
    if zlib.crc32(dictionary) != checksum:
        raise CompressedFileError(
            "the file leaves the network's graph out, and the one given with net=… is not the one it was made from"
        )
    inflate = zlib.decompressobj(-15, dictionary)
    try:
        nodes = inflate.decompress(deflated, _MOST_HEADER)
    except zlib.error as error:
        raise CompressedFileError(f"the file's graph is damaged ({error})") from None
    if not inflate.eof:
        raise CompressedFileError("the file's graph is damaged, or larger than is allowed")
    return _Reader(nodes)


def decode(data: bytes, dense: Callable[[tuple[int, ...]], Graph] | None = None) -> tuple[Contents, dict[str, float]]:
    """A file's contents, and how many bytes each of its sections takes (fractions, by information content).

    :param dense: for a file that leaves the graph out, the dense network's graph, for inputs of a given shape.
    :raises CompressedFileError: where ``data`` is not a whole, undamaged ``.pbc`` file.
    """
    if data[:3] != _MAGIC or len(data) < 8:
        raise CompressedFileError("this is not a .pbc file")
    if not _OLDEST <= data[3] <= _VERSION:
        advice = "update it" if data[3] > _VERSION else "it was written by a version before the first release"
        raise CompressedFileError(
            f"the file has format version {data[3]}; this pyro_bc reads versions {_OLDEST} to {_VERSION}: {advice}"
        )
    body = data[8:]
    if zlib.crc32(body) != struct.unpack("<I", data[4:8])[0]:
        raise CompressedFileError("the file is damaged: its checksum does not fit its content")
    reader = _Reader(body)
    form = reader.varint() if data[3] > 2 else 0
    if form:
        input_shape, pruned = reader.chain(form)
        outer, nodes, dense_parameters = reader, pruned.nodes, pruned.dense_parameters
    else:
        outer, nodes, dense_parameters, input_shape, reader = _read_graph(reader, dense)
    sections = {"header": 8.0 + outer.position}
    coder = Decoder(body[outer.position :])
    tensors: dict[str, Stored] = {}
    for name, plan in reader.plans.items():
        tensors[name] = _decode_tensor(coder, plan)
        sections[name] = coder.take_bits() / 8
    contents = _with_layer_names(
        Contents(nodes, tensors, reader.dense_shapes, dense_parameters, input_shape, frozenset(reader.buffers))
    )
    _check(contents)
    return contents, sections


def _read_graph(
    reader: "_Reader", dense: Callable[[tuple[int, ...]], Graph] | None
) -> tuple["_Reader", tuple[Node, ...], int, tuple[int, ...], "_Reader"]:
    """What a header of form 0 says: the reader behind it, nodes, dense parameters, input shape, reader of the nodes."""
    dense_parameters = reader.varint()
    input_shape = tuple(reader.at_most(1 << 24) for _ in range(reader.at_most(8)))
    outer, count = reader, reader.at_most(_MOST_NODES)
    if not count:
        reader = _inflated(outer, dense(input_shape) if dense is not None else None)
        count = reader.at_most(_MOST_NODES)
    nodes = tuple(reader.node(index) for index in range(count))
    if not nodes or dense_parameters < 1:
        raise CompressedFileError("the file claims an empty network")
    return outer, nodes, dense_parameters, input_shape, reader


def _with_layer_names(contents: Contents) -> Contents:
    """Layers named ``layer1``, ``layer2``, … instead of by the numbers of their tensors."""
    names: dict[str, str] = {}
    for node in contents.nodes:
        if is_layer(node) and node.args[1].name not in names:
            layer = f"layer{len([name for name in names.values() if name.endswith('.weight')]) + 1}"
            names[node.args[1].name] = f"{layer}.weight"
            if len(node.args) > 2 and node.args[2] is not None:
                names.setdefault(node.args[2].name, f"{layer}.bias")

    def rename(leaf: Any) -> Any:
        return Named(names.get(leaf.name, leaf.name)) if isinstance(leaf, Named) else leaf

    nodes = tuple(replace(node, args=replace_leaves(node.args, rename)) for node in contents.nodes)
    tensors = {names.get(name, name): tensor for name, tensor in contents.tensors.items()}
    shapes = {names.get(name, name): shape for name, shape in contents.dense_shapes.items()}
    buffers = frozenset(names.get(name, name) for name in contents.buffers)
    return replace(contents, nodes=nodes, tensors=tensors, dense_shapes=shapes, buffers=buffers)


def _check(contents: Contents) -> None:
    """Build the network without storage, and run it where the shape of its input is known: all must fit together."""
    try:
        shapes = {name: _without_storage(stored) for name, stored in contents.tensors.items()}
        network = GraphNetwork(contents.nodes, shapes)
        if contents.input_shape:
            network(torch.empty(2, *contents.input_shape, device="meta"))
    except Exception as error:  # whatever torch raises on what a damaged file asks for
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CompressedFileError(f"the file's layers do not fit together: {reason}") from None


def _without_storage(stored: Stored) -> Tensor:
    if isinstance(stored, FixedPoint):
        return torch.empty(stored.codes.shape, device="meta")
    return values(stored).to("meta")


def values(stored: Stored) -> Tensor:
    """The tensor itself: float32 numbers, or indices or integers (int64)."""
    if isinstance(stored, Selection):
        return stored.indices
    return stored.codes if isinstance(stored, Integers) else stored.values()


@dataclass(frozen=True)
class _Plan:
    """A tensor's description in the header. ``limit`` is that of a selection's indices."""

    kind: int
    shape: tuple[int, ...]
    fraction_bits: int = 0
    lowest: int = 0
    size: int = 0
    limit: int = 0
    grid: tuple[int, ...] = ()


def _plan(tensor: Stored) -> _Plan:
    if isinstance(tensor, Selection):
        return _Plan(_SELECTION, (len(tensor.indices),), limit=tensor.size)
    lowest, size = _range(tensor.codes)
    shape = tuple(tensor.codes.shape)
    if isinstance(tensor, Integers):
        return _Plan(_INTEGERS, shape, 0, lowest, size)
    if tensor.grid:
        if tensor.codes.numel() > MOST_COSINES:
            raise UnsupportedNetworkError(
                f"a tensor of {tensor.codes.numel():,} cosine coefficients is too large for a file, which takes "
                f"{MOST_COSINES:,}; leave its grid out"
            )
        return _Plan(_COSINES, shape, tensor.fraction_bits, grid=tensor.grid)
    if _adaptive_is_shorter(tensor.codes.flatten().numpy(), size, lowest):
        return _Plan(_ADAPTIVE, shape, tensor.fraction_bits)
    return _Plan(_NUMBERS, shape, tensor.fraction_bits, lowest, size)


def _adaptive_is_shorter(codes: np.ndarray, size: int, lowest: int) -> bool:
    if len(codes) > _MOST_ADAPTIVE:
        return False
    described = 8 * (1 + (lowest.bit_length() + 1) // 7 + 1 + size.bit_length() // 7)  # lowest code, number of codes
    return adaptive_bits(codes) <= described + min(_table_bits(codes, size, lowest), len(codes) * _uniform_bits(size))


def _range(codes: Tensor) -> tuple[int, int]:
    """Lowest code, and how many codes there are up to the highest."""
    lowest = int(codes.min())
    return lowest, int(codes.max()) - lowest + 1


def _uniform_bits(size: int) -> int:
    return (size - 1).bit_length()


def _table_bits(codes: np.ndarray, size: int, lowest: int) -> float:
    """Length of codes behind the table of their frequencies; infinite where the table would be too large."""
    if size > _TABLE_SYMBOLS:
        return math.inf
    counts = frequencies(codes, size, lowest)
    present = counts[counts > 0]
    return 5 * size - float((present * np.log2(present / len(codes))).sum())


def _encode_tensor(coder: Encoder, tensor: Stored) -> None:
    if isinstance(tensor, Selection):
        read = np.zeros(tensor.size, dtype=np.int64)
        read[tensor.indices.numpy()] = 1
        coder.table(read, 2)
        return
    lowest, size = _range(tensor.codes)
    codes = tensor.codes.flatten().numpy()
    if _plan(tensor).kind in (_ADAPTIVE, _COSINES):
        coder.adaptive(codes, _classes(tuple(tensor.codes.shape), getattr(tensor, "grid", ())))
        return
    with_table = False
    if 1 < size <= _TABLE_SYMBOLS:
        with_table = _table_bits(codes, size, lowest) < len(codes) * _uniform_bits(size)
        coder.uniform(np.array([with_table]), 1)
    if with_table:
        coder.table(codes, size, lowest)
    else:
        coder.uniform(codes, _uniform_bits(size), lowest)


def _decode_tensor(coder: Decoder, plan: _Plan) -> Stored:
    if plan.kind == _SELECTION:
        indices = np.flatnonzero(coder.table(plan.limit, 2))
        if len(indices) != plan.shape[0]:
            raise CompressedFileError("the file's indices are not as many as it says")
        return Selection(torch.from_numpy(indices), plan.limit)
    count = math.prod(plan.shape)
    if plan.kind in (_ADAPTIVE, _COSINES):
        read = coder.adaptive(count, _classes(plan.shape, plan.grid))
        return FixedPoint(torch.from_numpy(read.reshape(plan.shape)), plan.fraction_bits, plan.grid)
    with_table = 1 < plan.size <= _TABLE_SYMBOLS and bool(coder.uniform(1, 1)[0])
    bits, lowest = _uniform_bits(plan.size), plan.lowest
    read = coder.table(count, plan.size, lowest) if with_table else coder.uniform(count, bits, lowest)
    codes = torch.from_numpy(read.reshape(plan.shape))
    return Integers(codes) if plan.kind == _INTEGERS else FixedPoint(codes, plan.fraction_bits)


def _classes(shape: tuple[int, ...], grid: tuple[int, ...]) -> np.ndarray | None:
    """Classes of the codes of a tensor in the adaptive model: the frequencies of cosine coefficients."""
    return spatial_frequencies(shape, grid).flatten().numpy() if grid else None


class _Writer:
    def __init__(self, contents: Contents) -> None:
        self.data = bytearray()
        self.contents = contents
        self.numbers = {name: number for number, name in enumerate(contents.tensors)}
        self.described: set[str] = set()

    def varint(self, value: int) -> None:
        while value >= 0x80:
            self.data.append(value & 0x7F | 0x80)
            value >>= 7
        self.data.append(value)

    def signed(self, value: int) -> None:
        self.varint(2 * value if value >= 0 else -2 * value - 1)

    def tagged(self, kind: int, payload: int) -> None:
        self.data.append(16 * kind + min(payload, 15))
        if payload >= 15:
            self.varint(payload)

    def nodes(self) -> None:
        self.varint(len(self.contents.nodes))
        for index, node in enumerate(self.contents.nodes):
            self.node(index, node)

    def node(self, index: int, node: Node) -> None:
        self.varint(OPERATIONS.index(node.op))
        self.varint(2 * len(node.args) + bool(node.kwargs))
        for position, argument in enumerate(node.args):
            self.argument(index, argument)
            if position == 1 and is_layer(node):
                self.dense_shape(argument.name)
        if node.kwargs:
            self.varint(len(node.kwargs))
            for key, argument in node.kwargs:
                self.argument(index, key)
                self.argument(index, argument)

    def dense_shape(self, name: str) -> None:
        for size in self.contents.dense_shapes[name]:
            self.varint(size)

    def argument(self, index: int, argument: Any) -> None:
        if argument is None or isinstance(argument, bool):
            self.tagged(0, _CONSTANTS.index(argument))
        elif isinstance(argument, int):
            self.tagged(_INTEGER, 2 * argument if argument >= 0 else -2 * argument - 1)
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
                self.tensor(_plan(self.contents.tensors[argument.name]), argument.name in self.contents.buffers)

    def tensor(self, plan: _Plan, buffer: bool) -> None:
        self.data.append(16 * (_BUFFER if buffer and plan.kind == _NUMBERS else plan.kind) + len(plan.shape))
        for size in plan.shape:
            self.varint(size)
        if plan.kind == _SELECTION:
            self.varint(plan.limit)
            return
        self.signed(plan.fraction_bits)
        if plan.kind == _COSINES:
            self.varint(len(plan.grid))
            for size in plan.grid:
                self.varint(size)
        elif plan.kind != _ADAPTIVE:
            self.signed(plan.lowest)
            self.varint(plan.size)

    def chain(self, chain: Chain, widths: tuple[int, ...]) -> None:
        if chain in KNOWN:
            self.varint(2 + KNOWN.index(chain))
        else:
            self.varint(1)
            self.varint(len(chain.input_shape))
            for size in chain.input_shape:
                self.varint(size)
            self.varint(len(chain.steps))
            for step in chain.steps:
                self.step(step)
        for width in widths:
            self.varint(width)
        for tensor in self.contents.tensors.values():
            plan = _plan(tensor)
            zigzag = 2 * plan.fraction_bits if plan.fraction_bits >= 0 else -2 * plan.fraction_bits - 1
            self.varint(3 * zigzag + _CHAIN_KINDS.index(plan.kind))
            if plan.kind == _NUMBERS:
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


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0
        self.plans: dict[str, _Plan] = {}
        self.dense_shapes: dict[str, tuple[int, int]] = {}
        self.buffers: set[str] = set()
        self.parameters = 0

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
        value = self.varint()
        return value // 2 if value % 2 == 0 else -(value + 1) // 2

    def node(self, index: int) -> Node:
        op = OPERATIONS[self.at_most(len(OPERATIONS) - 1)]
        count = self.at_most(127)
        args: list[Any] = []
        for position in range(count // 2):
            args.append(self.argument(index, 0))
            if position == 1 and op in ("linear", "conv1d", "conv2d") and isinstance(args[1], Named):
                self.layer(args[1])
        kwargs = []
        for _ in range(self.at_most(15) if count % 2 else 0):
            key, argument = self.argument(index, 0), self.argument(index, 0)
            if not isinstance(key, str):
                raise CompressedFileError("the file's header holds a keyword that is no text")
            kwargs.append((key, argument))
        return Node(op, tuple(args), tuple(kwargs))

    def layer(self, weight: Named) -> None:
        self.dense_shapes[weight.name] = (self.at_most(1 << 24), self.at_most(1 << 24))

    def argument(self, index: int, depth: int) -> Any:
        byte = self.take(1)[0]
        kind, payload = byte >> 4, byte & 15
        if payload == 15:
            payload = self.varint()
        if kind == 0 and payload < len(_CONSTANTS):
            return _CONSTANTS[payload]
        if kind == _INTEGER:
            return payload // 2 if payload % 2 == 0 else -(payload + 1) // 2
        if kind == _FLOAT:
            return struct.unpack("<d", self.take(8))[0]
        if kind == _TEXT and payload <= 64:
            return self.take(payload).decode("utf-8", "replace")
        if kind == _TUPLE and payload <= 4096 and depth < 4:
            return tuple(self.argument(index, depth + 1) for _ in range(payload))
        if kind == _RESULT and 0 < payload <= index + 1:
            return Value(index - payload)
        if kind == _TENSOR and payload <= min(len(self.plans), _MOST_TENSORS):
            name = f"tensor{payload}"
            if payload == len(self.plans):
                self.plans[name] = self.tensor(name)
            return Named(name)
        raise CompressedFileError(f"the file's header holds an argument of kind {kind} that is not allowed there")

    def tensor(self, name: str) -> _Plan:
        byte = self.take(1)[0]
        kind, dims = byte >> 4, byte & 15
        if kind == _BUFFER:
            kind = _NUMBERS
            self.buffers.add(name)
        shape = tuple(self.at_most(1 << 24) for _ in range(dims))
        self.size(shape)
        if kind > _COSINES:
            raise CompressedFileError("the file claims a tensor of an unknown kind")
        if kind in (_ADAPTIVE, _COSINES):
            fraction_bits = self.signed()
            grid = tuple(self.at_most(1 << 12) for _ in range(self.at_most(3) if kind == _COSINES else 0))
            return self.numbers(_Plan(kind, shape, fraction_bits, grid=grid))
        if kind == _SELECTION:
            limit = self.at_most(_MOST_PARAMETERS)
            if dims != 1 or shape[0] > limit:
                raise CompressedFileError("the file claims more indices than there are")
            return _Plan(kind, shape, limit=limit)
        return self.numbers(_Plan(kind, shape, self.signed(), self.signed(), self.varint()))

    def size(self, shape: tuple[int, ...]) -> None:
        """Count a tensor in, and refuse it where it is empty or all of them would be too large."""
        self.parameters += math.prod(shape)
        if not all(shape) or self.parameters > _MOST_PARAMETERS:
            raise CompressedFileError("the file claims a tensor of impossible size")

    def numbers(self, plan: _Plan) -> _Plan:
        adaptive = plan.kind in (_ADAPTIVE, _COSINES)
        if adaptive and math.prod(plan.shape) > (MOST_COSINES if plan.grid else _MOST_ADAPTIVE):
            raise CompressedFileError("the file claims a tensor that is too large for how it is coded")
        if plan.kind == _COSINES and not _is_grid(plan.shape, plan.grid):
            raise CompressedFileError("the file claims a tensor over a grid that does not fit it")
        in_range = adaptive or (abs(plan.lowest) < 1 << 25 and 0 < plan.size <= 1 << 25)
        if not (in_range and abs(plan.fraction_bits) <= 160):
            raise CompressedFileError("the file's header holds fixed-point numbers out of range")
        return plan

    def chain(self, form: int) -> tuple[tuple[int, ...], Pruned]:
        """A chain's header; fills in plans and shapes as reading a graph's nodes does."""
        if form > 1 + len(KNOWN):
            raise CompressedFileError(f"the file's header has an unknown form, {form}")
        if form > 1:
            chain = KNOWN[form - 2]
        else:
            input_shape = tuple(self.at_most(1 << 24) for _ in range(self.at_most(3)))
            if len(input_shape) not in (1, 3):
                raise CompressedFileError(f"the file claims a chain with inputs of {len(input_shape)} dimensions")
            chain = Chain(input_shape, tuple(self.step() for _ in range(self.at_most(_MOST_NODES))))
        widths = tuple(self.at_most(1 << 24) for step in chain.steps if isinstance(step, Layer))
        try:
            pruned = prune(chain, widths)
        except ValueError as error:
            raise CompressedFileError(f"the file's header is damaged: {error}") from None
        if not widths:
            raise CompressedFileError("the file claims an empty network")
        for name, shape in pruned.shapes.items():
            self.size(shape)
            zigzag, kind = divmod(self.varint(), 3)
            fraction_bits = zigzag // 2 if zigzag % 2 == 0 else -(zigzag + 1) // 2
            plan = _Plan(_CHAIN_KINDS[kind], shape, fraction_bits)
            if plan.kind == _NUMBERS:
                plan = replace(plan, lowest=self.signed(), size=self.varint())
            elif plan.kind == _COSINES:
                plan = replace(plan, grid=pruned.grids.get(name, ()))
            self.plans[name] = self.numbers(plan)
        self.dense_shapes = pruned.dense_shapes
        return chain.input_shape, pruned

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


def _is_grid(shape: tuple[int, ...], grid: tuple[int, ...]) -> bool:
    """Whether a tensor's last entries are a whole number of grids."""
    cells = math.prod(grid)
    return bool(grid) and cells > 0 and math.prod(shape[1:]) % cells == 0
