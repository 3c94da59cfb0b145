r"""The file format ``.pbc``: a compressed network to bytes and back.

Byte layout, versions 3 to 6; integers are unsigned LEB128 varints, signed ones zigzag-coded, floats
little-endian IEEE:

==============  ====================================================================================
bytes           content
==============  ====================================================================================
3               ``PBC``
1               version: 6 where there are several inputs; else 5 where there are tensors of kinds 8 and 9; else 4
                where something is in the file that version 3 does not know (an input that is not float32, tensors of
                kinds 6 and 7); else 3
4               CRC-32 (little-endian) of everything after it
varint          form of the header: 0 for a graph, as follows here; from 1 on for a chain, see below. Version 2 knows
                graphs only and leaves this out
varint          parameters of the dense network, for the compression figures
varint, …       number of dimensions of one input, and each of them (0 where unknown)
varint          from version 4 on: type of the input, its position in :data:`~pyro_bc.file.contents.DTYPES`
varint, …       from version 6 on: length of the input's name, and that many bytes of UTF-8; number of further inputs,
                at most 63, and for each of them its name in the same way, number of dimensions of one, each of them,
                and its type
varint          number of nodes, then each node of the graph (:mod:`pyro_bc.graph.read`): a varint, its code in
                :data:`~pyro_bc.graph.operations.OPERATIONS`; a varint, two times the number of arguments, plus 1 where
                there are keyword arguments; the arguments; where there are any, the number of keyword
                arguments and for each its name, as an argument, and its value.
                0 where the file leaves the graph out; instead of nodes there is then a CRC-32
                (little-endian) of the dictionary, a varint, and that many bytes: number of nodes and nodes
                as above, deflated (RFC 1951) with a preset dictionary, the nodes of the dense network's
                graph as they would be written with numbers of 8 fraction bits that are all 0
rest            one range-coded stream (:mod:`pyro_bc.file.coder`) with the tensors' codes, in their order
==============  ====================================================================================

An argument is a byte ``16 · kind + payload``, where a payload of 15 means that a varint follows that takes its place:

* 0 a constant: payload 0 None, 1 False, 2 True;
* 1 an integer, zigzag;
* 2 a float64: 8 bytes follow;
* 3 text: that many bytes of UTF-8 follow;
* 4 a tuple of that many arguments;
* 5 the result of the node that many nodes before this one, where the input precedes the first, the second input
  precedes that, and so on;
* 6 a tensor, counted from the first; one that has not occurred before is described here (payload = number of tensors
  so far): a byte ``16 · kind + dimensions``, each of them, and

  - kind 0, numbers: zigzag fraction bits, zigzag lowest code, varint number of codes. The stream holds the codes, row
    by row: where there are at most 4,096 different codes, one bit whether a table is used, else uniform;
  - kind 1, the same, but the numbers are integers;
  - kind 3, as kind 0, for numbers that training leaves alone (statistics of a normalisation);
  - kind 4, numbers, coded adaptively: zigzag fraction bits. The stream holds the codes, row by row;
  - kind 5, as kind 4, but the codes are cosine coefficients (:mod:`pyro_bc.quantisation.cosine`), in the adaptive
    model's
    classes by their frequency: behind the fraction bits a varint, number of dimensions of the grid, and each of them;
  - kind 2, ascending indices below a varint that follows, the dimension being how many there are. The stream holds
    for each number below it whether it is among them, with a table of two symbols.

  - kind 6, float32 numbers as they are: a varint, twice the number n of different ones where these are at most 256,
    else 0, plus 1 for numbers that training leaves alone; then n bit patterns in ascending order, four bytes each
    (little-endian). The stream holds their positions in that list with a table of n symbols (nothing where n is 1); or,
    where n is 0, first the upper 16 bits of all patterns, uniform, and then the lower 16;
  - kind 7, as kind 1 behind a varint, the integers' type as for the input.
  - kind 8, numbers whose rows (entries of the first dimension) have steps of their own: zigzag fraction bits. The
    stream holds, adaptively, how many quarters of an octave each row's step is larger than :math:`2^{-t}`, as a
    difference from the row before (0 before the first), and then the codes row by row in contexts
    (:mod:`pyro_bc.file.coder`, ``contextual``);
  - kind 9, the same with the codes as of kind 0, whose lowest code and number of codes follow.

  The weight (second argument) of a fully connected layer, a convolution (operations 0, 1, 2 and 400; 90, 401 and 402,
  transposed ones) or a table (403) is followed by two varints, outputs and inputs of the dense one; 0 and 0 for a
  further part of the layer before it, which pruning took apart.

A chain (:mod:`pyro_bc.file.chain`) has a header of its own. Form 1 says it in full: parameters of the dense network;
number of dimensions of one input, and each of them; number of steps, at most 1,024, and each of them: a byte that is 0
for a fully connected layer, 1 for a convolution (2 more where there is no bias), or 4 and the position of another
operation in :data:`~pyro_bc.file.chain.PLAIN`; behind that of a layer a varint, its outputs before pruning, and for a
convolution one byte each for kernel, stride and padding. Forms from 2 on are the chains in
:data:`~pyro_bc.file.chain.KNOWN`. Then follow, for all forms, the outputs left of every layer, and of every tensor, in
the order of use, a varint: three times its zigzag fraction bits, plus 0 for kind 0 (lowest code and number of codes
follow as above), 1 for kind 4, 2 for kind 5 with the chain's own grid: a convolution's kernel, or the positions that a
fully connected layer reads behind a flattening.

The class of a coefficient is the sum of its indices in the grid, whose last entry is the tensor's last. A number is
``(lowest + symbol) · 2^-fraction_bits``; in a row whose step is k quarters larger, times :math:`2^{k/4}`, the product
of a power of two and one of the doubles 1, 1.189207115002721, 1.4142135623730951 and 1.681792830507429. The integer
transform of kind 5 is in :mod:`pyro_bc.quantisation.cosine`.
Nothing in the
file is executed or unpickled: operations are those of a fixed list, applied to tensors of the file and to the input.
Before any of them runs all are looked at (:mod:`pyro_bc.graph.arguments`): names, kinds and ranges of arguments, and
whether they come to one tensor that depends on the input. Shapes, types, and indices that the file holds are followed
through the program by rules (:mod:`pyro_bc.graph.outline`), without running it; the output keeps the examples in front.

Limits, beyond which a file is refused before anything is allocated: 2^14 nodes and tensors, 2^28 numbers in all (for
kind 2, those selected from), of which kinds 4, 5 and 8, and the steps of rows, at most 2^20; and of a file of n bytes
behind its checksum 2^16 + 1,024 n numbers, 2^16 + 256 n of kinds 4, 5 and 8 and of rows, so that a hundred bytes never
take more than a few megabytes. (A writer adds zero bytes at the end where a file would be shorter: they read as the
end of the data does.) Grids have up to 1,024 a side and codes that
:func:`~pyro_bc.quantisation.cosine.fits_integers`; an inflated graph has up to 2^20 bytes, fraction bits are within
±160, codes below 2^25, keywords of lower-case letters and underscores. Integers that are coded adaptively have no more
signs and digits than the data has bits, and 2^12. What the network computes for one input has up to 2^28 numbers an
operation, and pieces of a tensor are up to 4,096. Work, memory and pieces in all, to read the file and to predict for
one input, are limited by its size (:class:`~pyro_bc.graph.limits.Limits`).
"""

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..errors import CompressedFileError, ExcessError, UnsupportedNetworkError
from ..graph.arguments import Call, check_program
from ..graph.forms import Form
from ..graph.layer_types import layer_type
from ..graph.limits import Limits
from ..graph.nodes import Graph, Named, Node, is_layer, layer_arguments, layer_groups, leaves, replace_leaves
from ..graph.outline import outline, outline_of_two
from ..quantisation.fixed_point import FixedPoint
from ..runtime.devices import on_cpu
from .chain import Chain, find_chain, prune
from .coder import Decoder, Encoder
from .contents import DTYPES, Contents, Input, Integers, Numbers, Stored, form
from .header import MOST_NODES, HeaderReader, HeaderWriter, bytes_needed
from .tensors import SINCE_4, SINCE_5, Plan, decode_tensor, decoding_cost, encode_tensor, plans_of

_MAGIC, _VERSION, _OLDEST = b"PBC", 6, 2

_MOST_INPUTS = 64

# Bytes of a graph once inflated.
_MOST_GRAPH = 1 << 20


@on_cpu
def encode(contents: Contents, dense: Graph | None = None) -> bytes:
    """The file's bytes; the same contents always give the same bytes.

    :param dense: the dense network's graph, if the file is to leave out what follows from it where that is shorter.
    :raises UnsupportedNetworkError: where cosine coefficients are more or larger than a file takes.
    """
    plans = plans_of(contents.tensors, contents.buffers)
    kinds = {plan.kind for plan in plans.values()}
    several = len(contents.inputs) > 1
    plain = contents.input_dtype == torch.float32 and not several and not kinds.intersection((*SINCE_4, *SINCE_5))
    version = 6 if several else 5 if kinds.intersection(SINCE_5) else 3 if plain else 4
    headers = []
    chain = _chain(contents, plans)
    if chain is not None:
        headers.append(HeaderWriter(contents, plans))
        headers[-1].chain(*chain)
    if chain is None or dense is not None:
        headers.append(_graph_header(contents, plans, dense, typed=not plain))
    coder = Encoder()
    for name, tensor in contents.tensors.items():
        encode_tensor(coder, tensor, plans[name])
    body = bytes(min((header.data for header in headers), key=len)) + coder.data()
    body += b"\0" * (bytes_needed(plans.values()) - len(body))  # which say no more than the end of the data does
    return _MAGIC + bytes([version]) + struct.pack("<I", zlib.crc32(body)) + body


def _chain(contents: Contents, plans: Mapping[str, Plan]) -> tuple[Chain, tuple[int, ...]] | None:
    """The chain that the contents are, if they are one and a chain's header can say how its tensors are coded."""
    numbers = {name: tensor for name, tensor in contents.tensors.items() if isinstance(tensor, FixedPoint)}
    if contents.buffers or len(numbers) < len(contents.tensors) or contents.input_dtype != torch.float32:
        return None
    if contents.further_inputs:
        return None
    if any(tensor.rows is not None for tensor in numbers.values()):
        return None
    shapes = {name: plan.shape for name, plan in plans.items()}
    found = find_chain(contents.nodes, shapes, contents.dense_shapes, contents.input_shape)
    if found is None:
        return None
    grids = prune(*found).grids
    fit = all(t.grid in ((), grids.get(f"tensor{number}", ())) for number, t in enumerate(numbers.values()))
    return found if fit else None


def _graph_header(contents: Contents, plans: Mapping[str, Plan], dense: Graph | None, typed: bool) -> HeaderWriter:
    header = HeaderWriter(contents, plans)
    header.varint(0)
    header.varint(contents.dense_parameters)
    header.sizes(contents.input_shape)
    if typed:
        header.varint(DTYPES.index(contents.input_dtype))
    if contents.further_inputs:
        header.name(contents.input_name)
        header.varint(len(contents.further_inputs))
        for own in contents.further_inputs:
            header.input(own)
    if dense is None:
        header.nodes()
        return header
    dictionary = _dictionary(dense)
    nodes = HeaderWriter(contents, plans)
    nodes.nodes()
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_FIXED, dictionary)
    deflated = deflate.compress(bytes(nodes.data)) + deflate.flush()
    header.varint(0)
    header.data += struct.pack("<I", zlib.crc32(dictionary))
    header.varint(len(deflated))
    header.data += deflated
    return header


def _dictionary(dense: Graph) -> bytes:
    """The nodes of a network's graph, as they would be written if all of its numbers were 0, of kinds 0, 1 and 3."""
    tensors: dict[str, Stored] = {}
    for name, tensor in dense.tensors.items():
        zeros = torch.zeros((), dtype=torch.int64).expand(tensor.shape)
        tensors[name] = FixedPoint(zeros, 8) if tensor.is_floating_point() else Integers(zeros)
    types = {node.args[1].name: layer_type(node.op) for node in dense.nodes if is_layer(node)}
    shapes = {name: kind.dense_shape(dense.tensors[name].shape) for name, kind in types.items()}
    contents = Contents(dense.nodes, tensors, shapes, 1, (), dense.buffers)
    writer = HeaderWriter(contents, plans_of(tensors, dense.buffers, adaptive=False))
    writer.nodes()
    return bytes(writer.data)


def _inflated(reader: "HeaderReader", dense: Graph | None) -> "HeaderReader":
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
        nodes = inflate.decompress(deflated, _MOST_GRAPH)
    except zlib.error as error:
        raise CompressedFileError(f"the file's graph is damaged ({error})") from None
    if not inflate.eof:
        raise CompressedFileError("the file's graph is damaged, or larger than is allowed")
    return HeaderReader(nodes, len(reader.data), reader.version)


@on_cpu
def decode(
    data: bytes, dense: Callable[[tuple[Input, ...]], Graph] | None = None, limits: Limits | None = None
) -> tuple[Contents, dict[str, float]]:
    """A file's contents, and how many bytes each of its sections takes (fractions, by information content).

    :param dense: for a file that leaves the graph out, the dense network's graph, for inputs of given shapes and types.
    :param limits: on what it takes to read the file, and to predict for one input; None: the usual ones.
    :raises CompressedFileError: where ``data`` is not a whole, undamaged ``.pbc`` file, or asks for more.
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
    reader = HeaderReader(body, version=data[3])
    form = reader.varint() if data[3] > 2 else 0
    if form:
        input_shape, pruned, dense_parameters = reader.chain(form)
        outer, nodes = reader, pruned.nodes
        inputs: tuple[Input, ...] = (Input("", input_shape, torch.float32),)
    else:
        outer, nodes, dense_parameters, inputs, reader = _read_graph(reader, dense)
    limits = (limits or Limits()).of_file(len(data))
    try:
        limits.check(decoding_cost(reader.plans.values()))
    except ExcessError as error:
        raise CompressedFileError(f"the file asks for too much to be read: {error}") from None
    sections = {"header": 8.0 + outer.position}
    coder = Decoder(body[outer.position :])
    tensors: dict[str, Stored] = {}
    for name, plan in reader.plans.items():
        tensors[name] = decode_tensor(coder, plan)
        sections[name] = coder.take_bits() / 8
    contents = _with_layer_names(
        Contents(
            nodes,
            tensors,
            reader.dense_shapes,
            dense_parameters,
            inputs[0].shape,
            frozenset(reader.buffers),
            input_dtype=inputs[0].dtype,
            input_name=inputs[0].name,
            further_inputs=inputs[1:],
        )
    )
    _check(contents, _called(contents.nodes), limits)
    return contents, sections


def _called(nodes: tuple[Node, ...]) -> list[Call]:
    """The nodes with their arguments by name, all looked at."""
    try:
        return check_program(nodes)
    except UnsupportedNetworkError as error:
        raise CompressedFileError(f"the file asks for what no network does: {error}") from None


def _read_graph(
    reader: "HeaderReader", dense: Callable[[tuple[Input, ...]], Graph] | None
) -> tuple["HeaderReader", tuple[Node, ...], int, tuple[Input, ...], "HeaderReader"]:
    """What a header of form 0 says: the reader behind it, nodes, dense parameters, inputs, and the nodes' reader."""
    dense_parameters = reader.varint()
    input_shape = tuple(reader.at_most(1 << 24) for _ in range(reader.at_most(8)))
    dtype = DTYPES[reader.at_most(len(DTYPES) - 1)] if reader.version > 3 else torch.float32
    inputs = [Input("", input_shape, dtype)]
    if reader.version > 5:
        inputs[0] = Input(reader.name(), input_shape, dtype)
        inputs += [reader.input() for _ in range(reader.at_most(_MOST_INPUTS - 1))]
    outer, count = reader, reader.at_most(MOST_NODES)
    if not count:
        reader = _inflated(outer, dense(tuple(inputs)) if dense is not None else None)
        count = reader.at_most(MOST_NODES)
    reader.further_inputs = len(inputs) - 1
    nodes = tuple(reader.node(index) for index in range(count))
    if not nodes or dense_parameters < 1:
        raise CompressedFileError("the file claims an empty network")
    return outer, nodes, dense_parameters, tuple(inputs), reader


def _with_layer_names(contents: Contents) -> Contents:
    """Layers named ``layer1``, ``layer2``, … instead of by the numbers of their tensors."""
    names: dict[str, str] = {}
    count = 0
    for node in contents.nodes:
        if is_layer(node) and node.args[1].name not in names:
            count += 1
            layer = f"layer{count}"
            names[node.args[1].name] = f"{layer}.weight"
            if len(node.args) > 2 and node.args[2] is not None:
                names.setdefault(node.args[2].name, f"{layer}.bias")

    def rename(leaf: Any) -> Any:
        return Named(names.get(leaf.name, leaf.name)) if isinstance(leaf, Named) else leaf

    nodes = tuple(
        Node(node.op, replace_leaves(node.args, rename), replace_leaves(node.kwargs, rename)) for node in contents.nodes
    )
    tensors = {names.get(name, name): tensor for name, tensor in contents.tensors.items()}
    shapes = {names.get(name, name): shape for name, shape in contents.dense_shapes.items()}
    buffers = frozenset(names.get(name, name) for name in contents.buffers)
    return replace(contents, nodes=nodes, tensors=tensors, dense_shapes=shapes, buffers=buffers)


def _check(contents: Contents, calls: Sequence[Call], limits: Limits) -> None:
    """Follow the network through without running it, as far as the shape of its input is known: all must fit.

    :param limits: of this file.
    """
    tensors = {name: form(stored) for name, stored in contents.tensors.items()}
    try:
        _check_layers(contents)
        if contents.input_shape:
            outline_of_two(calls, [Form(own.shape, own.dtype) for own in contents.inputs], tensors, limits)
        else:
            outline(calls, (), tensors, 1, limits)
    except ExcessError as error:
        raise CompressedFileError(f"the file asks for too much for a prediction: {error}") from None
    except ValueError as error:
        raise CompressedFileError(f"the file's layers do not fit together: {error}") from None


def _check_layers(contents: Contents) -> None:
    """:raises ValueError: where a layer's weight or bias is none, or torch would make no module of it."""
    for node in filter(is_layer, contents.nodes):
        kind = layer_type(node.op)
        for position, tensor in enumerate(node.args[1:3]):
            stored = None if tensor is None else contents.tensors[tensor.name]
            dims = kind.spatial + 2 if position == 0 else 1
            if stored is not None and not (isinstance(stored, Numbers) and stored.codes.dim() == dims):
                raise ValueError(f"a {'bias' if position else 'weight'} of {node.op} is none")
        given, weight = layer_arguments(node), contents.tensors[node.args[1].name]
        assert isinstance(weight, Numbers)
        shape = weight.codes.shape
        if shape[0] % layer_groups(node):
            raise ValueError(f"{shape[0]} channels of {node.op} are not as many in each of {layer_groups(node)} groups")
        if given.get("padding") == "same" and set(leaves(given["stride"])) != {1}:
            raise ValueError(f"a result of the same size has a stride of 1 in {node.op}")
        if given.get("padding_idx") is not None and not -shape[0] <= given["padding_idx"] < shape[0]:
            raise ValueError(f"{node.op} has no row {given['padding_idx']:,}")
