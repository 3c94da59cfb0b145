r"""The integers of an ONNX file in as many bits as they need, unpacked in the graph when a session starts.

An ONNX file holds integers in whole bytes, a compressed network's codes need less: few bits, and most codes of many
networks are 0. Here a tensor of integers is either bit planes, b bits each, the highest of them of weight
:math:`-2^{b-1}`; or, where that is shorter, the planes of those that are not 0 and of the gaps between them. Two
functions in ONNX's own operations, ``Planes`` and ``Sparse``, make the tensor of them. They read constants alone, so
that ONNX Runtime computes them once, when it opens the file, and predicts as from the file that was packed.

Needs the extra ``pip install 'pyro-bc[onnx]'``; imported where it is used.
"""

import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import ExportError
from ..graph.onnx import onnx_packages
from ..runtime.files import write_atomically

# Fewer bytes do not pay for the nodes; more numbers would take too much memory to unpack (some 40 bytes each).
_FEWEST_BYTES, _MOST_NUMBERS = 128, 1 << 21

_DOMAIN = "pyro_bc"

# Gaps between codes that are not 0 have as many bits.
_GAP_BITS = range(2, 13)


def pack(onnx_file: str | os.PathLike[str], path: str | os.PathLike[str]) -> int:
    """Write an ONNX file anew with its integers packed; what it computes is the same to the last bit.

    For ONNX Runtime: other runtimes may not compute with the operations on bits before they predict.

    :param onnx_file: what :func:`~pyro_bc.file.onnx.to_int8` wrote, or another with a graph of opset 18 or later.
    :param path: an existing file is replaced, whole or not at all.
    :returns: the new file's size in bytes.
    :raises ExportError: where the extra is not installed, or the graph is of an earlier opset.
    """
    onnx, _ = onnx_packages()
    model = onnx.load(str(onnx_file))
    opset = max((own.version for own in model.opset_import if own.domain in ("", "ai.onnx")), default=0)
    if opset < 18:
        raise ExportError(f"'{onnx_file}' is of ONNX's opset {opset}, whose integers have no bits; 18 and later do")
    writer = _Writer(model, opset)
    for tensor in list(model.graph.initializer):
        if tensor.data_type in writer.types and 0 < math.prod(tensor.dims) <= _MOST_NUMBERS:
            writer.pack(tensor)
    writer.finish()
    _shorten(model)
    data = model.SerializeToString()
    write_atomically(path, data)
    return len(data)


class _Writer:
    """What is put in the place of a model's integers: tensors, and nodes in front of all others."""

    def __init__(self, model: Any, opset: int) -> None:
        self.onnx = onnx_packages()[0]
        self.model, self.opset = model, opset
        kinds = self.onnx.TensorProto
        self.types = {kinds.INT8, kinds.UINT8, kinds.INT16, kinds.INT32, kinds.INT64}
        self.nodes: list[Any] = []
        self.used: set[str] = set()

    def pack(self, tensor: Any) -> None:
        numbers = self.onnx.numpy_helper.to_array(tensor)
        shift = 128 if numbers.dtype == np.uint8 else 0  # codes of 8 bits, around their zero
        codes = numbers.astype(np.int64).ravel() - shift
        if max(int(codes.max()), -int(codes.min())) >= 1 << 30:
            return
        dense = _bits(codes)
        sparse = min((_sparse(codes, bits) for bits in _GAP_BITS), key=lambda pair: sum(map(_size, pair)))
        least = min(_size((codes, dense)), sum(map(_size, sparse)) + 60)
        if least + _FEWEST_BYTES >= numbers.nbytes:
            return
        self.model.graph.initializer.remove(tensor)
        shape = self.constant(f"{tensor.name}.shape", np.array(numbers.shape, dtype=np.int64))
        if least == _size((codes, dense)):
            result = self.planes(f"{tensor.name}.codes", codes, dense, shape)
        else:
            parts = []
            for key, (own, bits) in zip(("gaps", "codes"), sparse, strict=True):
                length = self.constant(f"length{len(own)}", np.array([len(own)], dtype=np.int64))
                parts.append(self.planes(f"{tensor.name}.{key}", own, bits, length))
            result = self.call("Sparse", f"{tensor.name}.all", *parts, shape)
        if shift:
            result = self.node("Add", f"{tensor.name}.signed", result, self.constant("shift", np.array(128, np.int32)))
        self.node("Cast", tensor.name, result, to=tensor.data_type)

    def planes(self, name: str, codes: np.ndarray, bits: int, shape: str) -> str:
        """A node that gives integers from their planes."""
        planes = np.packbits((codes[None] >> np.arange(bits)[:, None] & 1).astype(np.uint8), axis=1)
        weights = 1 << np.arange(bits, dtype=np.int32)
        weights[-1] *= -1
        given = self.constant(f"{name}.planes", planes), self.constant(f"weights{bits}", weights[:, None])
        return self.call("Planes", name, *given, shape)

    def constant(self, name: str, value: np.ndarray) -> str:
        if name not in self.used:
            self.used.add(name)
            self.model.graph.initializer.append(self.onnx.numpy_helper.from_array(value, name))
        return name

    def node(self, operation: str, result: str, *inputs: str, domain: str = "", **given: Any) -> str:
        self.nodes.append(self.onnx.helper.make_node(operation, inputs, [result], domain=domain, **given))
        return result

    def call(self, function: str, result: str, *inputs: str) -> str:
        return self.node(function, result, *inputs, domain=_DOMAIN)

    def finish(self) -> None:
        called = {node.op_type for node in self.nodes if node.domain == _DOMAIN}
        if called:
            self.model.opset_import.append(self.onnx.helper.make_opsetid(_DOMAIN, 1))
            self.model.functions.extend(own for own in _functions(self.opset) if own.name in called)
        kept = list(self.model.graph.node)
        del self.model.graph.node[:]
        self.model.graph.node.extend([*self.nodes, *kept])


def _bits(codes: np.ndarray) -> int:
    """Bits of a signed integer that holds each of them."""
    return 1 + max(int(codes.max()).bit_length(), (-int(codes.min()) - 1).bit_length() if codes.min() < 0 else 0)


def _size(planes: tuple[np.ndarray, int]) -> int:
    return planes[1] * -(-len(planes[0]) // 8)


def _sparse(codes: np.ndarray, bits: int) -> tuple[tuple[np.ndarray, int], tuple[np.ndarray, int]]:
    """Gaps to the next code that is not 0, counted from 1, and these codes, each with its bits.

    A gap that so many bits do not hold passes codes that are 0.
    """
    largest = (1 << bits - 1) - 1
    places = np.flatnonzero(codes)
    gaps = np.diff(places, prepend=-1)
    passed = np.maximum(gaps - 1, 0) // largest
    ends = np.cumsum(passed + 1) - 1
    count = int(ends[-1]) + 1 if len(ends) else 1
    every = np.full(count, largest, dtype=np.int64)
    every[ends] = gaps - passed * largest
    values = np.zeros(count, dtype=np.int64)
    values[ends] = codes[places]
    return (every, bits), (values, _bits(values))


def _functions(opset: int) -> Iterator[Any]:
    """``Planes(planes, weights, shape)`` and ``Sparse(gaps, codes, shape)``, int32."""
    onnx, _ = onnx_packages()
    helper, kinds = onnx.helper, onnx.TensorProto
    opsets = [helper.make_opsetid("", opset)]

    def constant(name: str, numbers: Any, kind: int) -> Any:
        value = np.array(numbers, dtype=helper.tensor_dtype_to_np_dtype(kind))
        return helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(value))

    nodes = [
        constant("last", [-1], kinds.INT64),
        constant("first", [0], kinds.INT64),
        constant("one", 1, kinds.UINT8),
        constant("places", range(7, -1, -1), kinds.UINT8),
        helper.make_node("Unsqueeze", ["planes", "last"], ["bytes"]),
        helper.make_node("BitShift", ["bytes", "places"], ["shifted"], direction="RIGHT"),
        helper.make_node("BitwiseAnd", ["shifted", "one"], ["bits"]),
        helper.make_node("Cast", ["bits"], ["numbers"], to=kinds.INT32),
        helper.make_node("Flatten", ["numbers"], ["rows"], axis=1),
        helper.make_node("Mul", ["rows", "weights"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "first"], ["sums"], keepdims=0),
        helper.make_node("ReduceProd", ["shape"], ["count"]),
        helper.make_node("Slice", ["sums", "first", "count"], ["codes"]),
        helper.make_node("Reshape", ["codes", "shape"], ["result"]),
    ]
    yield helper.make_function(_DOMAIN, "Planes", ["planes", "weights", "shape"], ["result"], nodes, opsets)
    nodes = [
        constant("first", 0, kinds.INT64),
        constant("one", 1, kinds.INT64),
        helper.make_node("Cast", ["gaps"], ["steps"], to=kinds.INT64),
        helper.make_node("CumSum", ["steps", "first"], ["sums"]),
        helper.make_node("Sub", ["sums", "one"], ["places"]),
        helper.make_node("ReduceProd", ["shape"], ["count"]),
        helper.make_node(
            "ConstantOfShape", ["count"], ["zeros"], value=onnx.numpy_helper.from_array(np.zeros(1, dtype=np.int32))
        ),
        helper.make_node("ScatterElements", ["zeros", "places", "codes"], ["all"]),
        helper.make_node("Reshape", ["all", "shape"], ["result"]),
    ]
    yield helper.make_function(_DOMAIN, "Sparse", ["gaps", "codes", "shape"], ["result"], nodes, opsets)


def _shorten(model: Any) -> None:
    """Names of a letter or two for what is inside a graph, and no notes on its parts."""
    outside = {own.name for own in (*model.graph.input, *model.graph.output)}
    short: dict[str, str] = {"": ""} | {name: name for name in outside}

    def named(name: str) -> str:
        if name not in short:
            short[name] = _letters(len(short), outside)
        return short[name]

    for tensor in model.graph.initializer:
        tensor.name = named(tensor.name)
        tensor.ClearField("doc_string")
    for node in model.graph.node:
        node.ClearField("name")
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
        for names in (node.input, node.output):
            changed = [named(name) for name in names]
            del names[:]
            names.extend(changed)
    model.graph.ClearField("value_info")


def _letters(number: int, taken: set[str]) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 26)
        digits += chr(97 + digit)
    return digits if digits not in taken else f"{digits}_"
