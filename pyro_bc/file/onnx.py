"""Compressed networks as ONNX: in float32, and in int8 of the very codes that a file holds.

A weight on a grid is integers and a step, which is what ``DequantizeLinear`` reads: nothing is quantised a second time.
What an int8 product cannot multiply with is computed from the codes when a session starts, and multiplied in float32:
codes of more than 8 bits, and cosine coefficients, whose integer transform (:mod:`pyro_bc.quantisation.cosine`) is
written in ONNX's integers.

Needs the extra ``pip install 'pyro-bc[onnx]'``; imported where it is used.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ExportError
from ..graph.module import GraphNetwork
from ..graph.onnx import OnnxNetwork as OnnxNetwork
from ..graph.onnx import exported, innermost, onnx_packages, quietly
from ..graph.onnx import to_onnx as to_onnx
from ..quantisation.cosine import BASIS_BITS, NUMBER_BITS, integer_basis
from ..quantisation.fixed_point import FixedPoint
from ..runtime.files import write_atomically
from ..runtime.inputs import tensors_of
from ..runtime.messages import first_line
from .exact_onnx import exact_nodes
from .packed_onnx import pack as pack

# What has weights of its own that no runtime computes with in integers.
_NORMS = {"LayerNormalization", "BatchNormalization", "InstanceNormalization", "GroupNormalization"}

# Codes up to here are multiplied in int8; with one more bit, sums of products with bytes leave 16 bits, which some
# processors add them in, unless both are unsigned.
_SAFE_BITS, _MOST_BITS = 7, 8


def to_int8(net: Any, path: str | os.PathLike[str], calibration: Iterable[Any]) -> dict[str, str]:
    """Write a network as an ONNX file that computes in int8, activations in the ranges that calibration inputs take.

    A compressed network's weights are the codes of its file with their steps as scales. Where a step is a power of two,
    dequantised weights are those of :meth:`~pyro_bc.CompressedNetwork.network` bit for bit; where rows have finer
    steps, within one unit in the last place. What has no codes of at most 8 bits keeps its numbers and is multiplied in
    float32: it is stored as codes all the same, and computed of them when a session starts. Biases of products are
    integers of 32 bits at the step of their sums.

    :param net: a compressed network (:func:`~pyro_bc.compress`, :func:`~pyro_bc.read`); or an ONNX file of floats,
        whose weights are rounded to int8 per channel, since it holds no codes.
    :param path: an existing file is replaced, whole or not at all.
    :param calibration: batches of typical inputs, of the training set; a few hundred inputs are enough. Several inputs
        are a tuple or a dictionary.
    :returns: by the name of each weight, what a product takes it as: ``int8`` or ``float32``; empty for an ONNX file.
    :raises ExportError: where the extra is not installed, or ONNX Runtime cannot quantise the network.
    """
    onnx, _ = onnx_packages()
    batches = list(calibration)
    if not batches:
        raise ExportError("to_int8 needs inputs to calibrate on: calibration=[x], of the training set")
    if isinstance(net, str | os.PathLike):
        model = _calibrated(onnx.load(str(net)), batches, [], per_channel=True)
        write_atomically(path, model.SerializeToString())
        return {}
    forms = [(tuple(x.shape[1:]), x.dtype) for x in tensors_of(batches[0])]
    model, _ = exported(net, forms, _as_it_is)
    places = _places(model, net.tensors)
    weights = [place for place in places.values() if place.is_weight and place.name not in net.buffers]
    kinds = {place.name: "int8" if place.fits else "float32" for place in weights}
    for name, place in places.items():
        if place.fits:
            _dequantised(model, name, place)
    model = _calibrated(model, batches, _in_floats(model))
    for tensor in list(model.graph.initializer):
        if tensor.name in places and places[tensor.name].is_weight:
            _computed(model, tensor, places[tensor.name])
    model.graph.ClearField("value_info")
    write_atomically(path, model.SerializeToString())
    return kinds


def _as_it_is(net: GraphNetwork, *example: Tensor) -> GraphNetwork:
    return net


@dataclass(frozen=True)
class _Place:
    """Where a model has a tensor of a file.

    :param is_turned: whether it is the transpose of the file's.
    :param is_weight: whether it is no vector.
    :param fits: whether it is only multiplied with where integers can be.
    """

    name: str
    stored: FixedPoint
    is_turned: bool
    is_weight: bool
    fits: bool

    @property
    def codes(self) -> np.ndarray:
        codes = self.stored.codes.numpy()
        return codes.T if self.is_turned else codes


def _places(model: Any, stored: Mapping[str, Any]) -> dict[str, _Place]:
    """The float tensors of a model that are on a file's grids, by name.

    The exporter renames and turns over: a tensor is known by its numbers.
    """
    onnx, _ = onnx_packages()
    known: dict[Any, tuple[str, bool]] = {}
    for name, tensor in stored.items():
        if isinstance(tensor, FixedPoint) and tensor.codes.numel():
            numbers = tensor.values().numpy()
            if numbers.ndim == 2:
                known.setdefault(_content(numbers.T), (name, True))
            known[_content(numbers)] = name, False
    readers: dict[str, list[tuple[Any, int]]] = {}
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            readers.setdefault(name, []).append((node, at))
    places = {}
    for tensor in model.graph.initializer:
        found = known.get(_content(onnx.numpy_helper.to_array(tensor)))
        if found is not None:
            own = stored[found[0]]
            axis = None if own.rows is None else int(found[1])
            fits = own.bits <= _MOST_BITS and not own.grid
            fits = fits and all(_multiplies(node, at, axis) for node, at in readers.get(tensor.name, []))
            places[tensor.name] = _Place(found[0], own, found[1], len(tensor.dims) > 1, fits)
    return places


def _content(numbers: np.ndarray) -> tuple[Any, ...]:
    return numbers.dtype, numbers.shape, hashlib.sha256(np.ascontiguousarray(numbers).data).digest()


def _multiplies(node: Any, at: int, axis: int | None) -> bool:
    """Whether an input of a node is a weight that integers can be multiplied with, one step for all or each output.

    :param axis: of the weight that has steps of its own.
    """
    turned = any(own.name == "transB" and own.i for own in node.attribute)
    outputs = {"Conv": 0, "Gemm": 0 if turned else 1, "MatMul": 1}
    return at == 1 and node.op_type in outputs and axis in (None, outputs[node.op_type])


def _dequantised(model: Any, name: str, place: _Place) -> None:
    """Put integers of 8 bits with their steps in the place of a tensor."""
    onnx, _ = onnx_packages()
    codes, shift = place.codes, 0
    if place.stored.bits > _SAFE_BITS:
        codes, shift = codes + 128, 128
    kind = np.uint8 if shift else np.int8
    steps = place.stored.steps().float().numpy()
    parts = {"codes": codes.astype(kind), "step": steps, "zero": np.full(steps.shape, shift, kind)}
    _replace(model, name, parts)
    axis = {} if place.stored.rows is None else {"axis": int(place.is_turned)}
    model.graph.node.insert(
        0,
        onnx.helper.make_node("DequantizeLinear", [f"{name}.{part}" for part in parts], [name], f"{name}.all", **axis),
    )


def _computed(model: Any, tensor: Any, place: _Place) -> None:
    """Put what computes a tensor of its codes, when a session starts, in its place."""
    onnx, _ = onnx_packages()
    stored, name = place.stored, tensor.name
    kind = next(kind for kind in (np.int8, np.int16, np.int32, np.int64) if stored.bits <= 8 * np.dtype(kind).itemsize)
    nodes: list[Any] = []
    parts = {"codes": stored.codes.numpy().astype(kind)}

    def then(operation: str, *inputs: str, **given: Any) -> str:
        result = f"{name}.{len(nodes)}"
        nodes.append(onnx.helper.make_node(operation, inputs, [result], result, **given))
        return result

    def part(key: str, value: np.ndarray) -> str:
        parts[key] = value
        return f"{name}.{key}"

    result, bits = f"{name}.codes", stored.fraction_bits
    if stored.grid:
        bits += NUMBER_BITS
        result = then("Cast", result, to=onnx.TensorProto.INT64)
        result = then("Reshape", result, part("grids", np.array([-1, *stored.grid])))
        held = 0
        for dim, size in enumerate(stored.grid, 1):
            places = list(range(1 + len(stored.grid)))
            places[dim], places[-1] = places[-1], places[dim]
            basis = then("Cast", part(f"basis{size}", integer_basis(size).numpy().astype(np.int32)), to=7)
            result = then("Transpose", result, perm=places)
            result = then("MatMul", result, basis)
            result = then("Transpose", result, perm=places)
            shift = held + BASIS_BITS - NUMBER_BITS
            result = then("Add", result, part(f"half{shift}", np.array(1 << shift - 1)))
            whole = part(f"whole{shift}", np.array(1 << shift))
            result = then("Sub", result, then("Mod", result, whole))  # to the next lower multiple, below 0 as above
            result = then("Div", result, whole)
            held = NUMBER_BITS
        result = then("Reshape", result, part("shape", np.array(stored.codes.shape)))
    result = then("Cast", result, to=onnx.TensorProto.DOUBLE)
    steps = replace(stored, fraction_bits=bits).steps().numpy()
    steps = steps.reshape(-1, *[1] * (stored.codes.dim() - 1)) if steps.ndim else steps
    result = then("Mul", result, part("step", steps))
    if place.is_turned:
        result = then("Transpose", result)
    nodes.append(onnx.helper.make_node("Cast", [result], [name], f"{name}.all", to=onnx.TensorProto.FLOAT))
    _replace(model, name, parts)
    for node in reversed(nodes):
        model.graph.node.insert(0, node)


def _replace(model: Any, name: str, parts: Mapping[str, np.ndarray]) -> None:
    """Put tensors called ``<name>.<part>`` in the place of a tensor of a model."""
    onnx, _ = onnx_packages()
    kept = [tensor for tensor in model.graph.initializer if tensor.name != name]
    kept += [onnx.numpy_helper.from_array(np.ascontiguousarray(own), f"{name}.{key}") for key, own in parts.items()]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _in_floats(model: Any) -> list[str]:
    """Nodes that read floats of the model itself, as no bias of a product: none of them is rounded."""
    onnx, _ = onnx_packages()
    floats = {own.name for own in model.graph.initializer if own.data_type == onnx.TensorProto.FLOAT}
    floats -= {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.input}
    found = []
    for node in model.graph.node:
        read = node.input[:2] if node.op_type in ("Conv", "Gemm") else node.input
        if floats.intersection(read) or node.op_type in _NORMS:
            found.append(node.name)
    return found


def _calibrated(model: Any, batches: Sequence[Any], floats: Sequence[str], per_channel: bool = False) -> Any:
    """A model whose activations are bytes in the ranges that inputs show; weights too, unless integers already.

    :param floats: names of the nodes that stay as they are.
    """
    onnx, _ = onnx_packages()
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    names = [own.name for own in model.graph.input]

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> Any:
            batch = next(self.batches, None)
            if batch is None:
                return None
            return {name: x.cpu().numpy() for name, x in zip(names, tensors_of(batch), strict=True)}

    with tempfile.TemporaryDirectory() as folder, quietly():
        given, prepared, quantised = (Path(folder) / f"{name}.onnx" for name in ("given", "prepared", "int8"))
        given.write_bytes(model.SerializeToString())
        as_it_is = not per_channel  # what ONNX Runtime makes of constants is on no grid
        try:
            try:
                quant_pre_process(str(given), str(prepared), skip_optimization=as_it_is)
            except Exception:  # it tells the shapes of some operations only, and the quantiser needs none
                quant_pre_process(str(given), str(prepared), skip_optimization=as_it_is, skip_symbolic_shape=True)
            excluded = [*floats, *_infinite(prepared, Reader().get_next())]
            excluded += exact_nodes(onnx.load(str(prepared)).graph)
            quantize_static(
                str(prepared), str(quantised), Reader(), per_channel=per_channel, weight_type=QuantType.QInt8,
                activation_type=QuantType.QUInt8, nodes_to_exclude=excluded,
                extra_options={"QDQDisableWeightAdjustForInt32Bias": as_it_is},
            )  # fmt: skip
        except Exception as error:  # whatever the quantiser raises
            reason = first_line(innermost(error))
            raise ExportError(f"the network cannot be quantised to int8: {reason}") from error
        return onnx.load(str(quantised))


def _infinite(file: Path, inputs: Mapping[str, Any]) -> list[str]:
    """Nodes of an ONNX file that read or give what is not finite, such as a mask's minus infinity: it has no range."""
    onnx, runtime = onnx_packages()
    model = onnx.load(str(file))
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{number}"
    onnx.save(model, str(file))
    there = {own.name for own in model.graph.output}
    wanted = [name for node in model.graph.node for name in node.output if name and name not in there]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = zip((own.name for own in session.get_outputs()), session.run(None, inputs), strict=True)
    tensors = {own.name: onnx.numpy_helper.to_array(own) for own in model.graph.initializer} | dict(found)
    endless = {
        name
        for name, own in tensors.items()
        if own.dtype.kind == "f" and not bool(torch.from_numpy(own).isfinite().all())
    }
    return [node.name for node in model.graph.node if endless.intersection((*node.input, *node.output))]
