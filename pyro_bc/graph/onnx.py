"""Networks as ONNX in float32, for runtimes other than PyTorch.

Needs the extra ``pip install 'pyro-bc[onnx]'``; imported where it is used.
"""

import contextlib
import copy
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from ..errors import ExportError
from ..runtime.devices import on_cpu
from ..runtime.files import write_atomically
from ..runtime.messages import first_line
from .arguments import named_arguments
from .module import GraphNetwork
from .nodes import Node, Value, leaves, replace_leaves
from .whole_channels import with_whole_channels

#: how far ONNX Runtime may be from PyTorch, as a part of the largest output (at least of 1).
TOLERANCE = 1e-5


def innermost(error: BaseException) -> BaseException:
    """What an error came from: those of the exporter tell how to report them."""
    return error if error.__cause__ is None else innermost(error.__cause__)


def _as_the_exporter_can(net: GraphNetwork, *example: Tensor) -> GraphNetwork:
    """A network that computes the same in what the exporter can write.

    ONNX has no divisors of average pools; windows that reach beyond the edge (``ceil_mode``) are as they were: the
    export then says that outputs differ. How attention's result lies in memory is not what the exporter takes it for,
    and attention over more dimensions than examples, heads and places it does not take.
    """
    shapes = [getattr(result, "shape", ()) for result in net.results(net._nodes, *example)]
    nodes: list[Node] = []
    moved: dict[int, int] = {}

    def redirect(leaf: Any) -> Any:
        return Value(moved.get(leaf.index, leaf.index)) if isinstance(leaf, Value) else leaf

    for index, node in enumerate(net._nodes):
        is_attention = node.op == "scaled_dot_product_attention"
        dims = [len(shapes[leaf.index]) for leaf in leaves(node.args) if isinstance(leaf, Value) and leaf.index >= 0]
        node = replace(node, args=replace_leaves(node.args, redirect), kwargs=replace_leaves(node.kwargs, redirect))
        divisor = node.args[6] if node.op in ("avg_pool2d", "avg_pool3d") and len(node.args) > 6 else None
        if divisor is not None:
            nodes.append(replace(node, args=node.args[:6]))
            window = math.prod(node.args[1]) if isinstance(node.args[1], tuple) else node.args[1] ** 2
            node = Node("mul", (Value(len(nodes) - 1), window / divisor))
        if is_attention and max(dims, default=4) > 4 and _is_plain(node):
            own = named_arguments(node)
            scale = own["scale"] or shapes[net._nodes[index].args[0].index][-1] ** -0.5
            before = len(nodes)
            nodes += [
                Node("transpose", (own["key"], -2, -1)),
                Node("matmul", (own["query"], Value(before))),
                Node("mul", (Value(before + 1), scale)),
                Node("softmax", (Value(before + 2), -1)),
            ]
            node = Node("matmul", (Value(before + 3), own["value"]))
        elif is_attention:
            nodes.append(node)
            node = Node("contiguous", (Value(len(nodes) - 1),))
        moved[index] = len(nodes)
        nodes.append(node)
    return GraphNetwork(tuple(nodes), dict(net.state_dict()), frozenset(name for name, _ in net.named_buffers()))


def _is_plain(attention: Node) -> bool:
    """Whether every place sees every other, and the query is computed by a node."""
    own = named_arguments(attention)
    is_masked = own["attn_mask"] is not None or own["is_causal"] or own["enable_gqa"]
    return not is_masked and own["query"].index >= 0


class OnnxNetwork(nn.Module):
    """An ONNX file as a module, run by ONNX Runtime on the CPU.

    :param path: a file with one output, as :func:`to_onnx` writes it.
    :param threads: of ONNX Runtime; None for its choice.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None):
        super().__init__()
        runtime = onnx_packages()[1]
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def forward(self, *inputs: Tensor) -> Tensor:
        names = [own.name for own in self._session.get_inputs()]
        given = {name: x.detach().cpu().numpy() for name, x in zip(names, inputs, strict=True)}
        (outputs,) = self._session.run(None, given)
        return torch.from_numpy(outputs)


@on_cpu
def to_onnx(
    net: Any,
    path: str | os.PathLike[str],
    input_shape: tuple[int, ...] | None = None,
    input_dtype: torch.dtype = torch.float32,
) -> float:
    """Write a network as an ONNX file of any batch size, and compare the two on random inputs.

    The file's input is called ``input``, and where there are several they have the names that the network gives them.

    :param net: a compressed network (:func:`~pyro_bc.compress`, :func:`~pyro_bc.read`), which knows its input; or a
        module in evaluation mode, as :func:`~pyro_bc.load` gives it, on any device.
    :param path: an existing file is replaced, whole or not at all.
    :param input_shape: of one input of a module, e.g. ``(1, 28, 28)``.
    :param input_dtype: of a module's input.
    :returns: the largest difference between ONNX Runtime's outputs and PyTorch's.
    :raises ExportError: where the extra is not installed, an operation has no counterpart in ONNX, or the outputs
        differ by more than :data:`TOLERANCE`; nothing is written then.
    """
    onnx_packages()
    forms = [(input_shape, input_dtype)]
    if not isinstance(net, nn.Module):
        forms = [(own.shape, own.dtype) for own in net.inputs]
    if not forms[0][0]:
        raise ExportError("to_onnx needs the shape of one input: input_shape=(1, 28, 28)")
    model, difference = exported(net, forms)
    write_atomically(path, model.SerializeToString())
    return difference


def exported(
    net: Any, forms: Sequence[tuple[Any, torch.dtype]], arrange: Callable[..., GraphNetwork] = with_whole_channels
) -> tuple[Any, float]:
    """A network as a model of ONNX, and the largest difference of its outputs from PyTorch's.

    :param net: as for :func:`to_onnx`.
    :param forms: shape of one example, and type, of each input.
    :param arrange: how a graph is changed before.
    :raises ExportError: as :func:`to_onnx`.
    """
    names = ["input"]
    if not isinstance(net, nn.Module):
        names = [own.name for own in net.inputs] if len(forms) > 1 else names
        net = net.network()
    net = copy.deepcopy(net).cpu().eval()
    example = _random_inputs(2, forms)
    with torch.no_grad():
        net(*example)  # which looks at what a file's network may take, where its shape was not known before
    arranged = net
    if isinstance(net, GraphNetwork):
        arranged = _as_the_exporter_can(arrange(net, *example), *example)
    with quietly():
        try:
            program: Any = torch.onnx.export(
                arranged,
                example,
                dynamo=True,
                dynamic_shapes=_of_any_batch_size(arranged, len(example)),
                input_names=names,
                output_names=["output"],
                verbose=False,
            )
        except Exception as error:  # whatever the exporter raises
            reason = first_line(innermost(error))
            raise ExportError(f"the network cannot be written as ONNX: {reason}") from error
    model = program.model_proto
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output, model.graph):
        part.ClearField("metadata_props")  # where in which source each came from: more bytes than a small network
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "network.onnx"
        written.write_bytes(model.SerializeToString())
        difference = max(_difference(net, OnnxNetwork(written), _random_inputs(n, forms)) for n in (1, 5))
    return model, difference


def _of_any_batch_size(net: nn.Module, count: int) -> tuple[Any, ...]:
    """What the exporter is told of so many inputs; those of a graph come together."""
    each = tuple({0: torch.export.Dim.DYNAMIC} for _ in range(count))
    return (each,) if isinstance(net, GraphNetwork) else each


def _random_inputs(n: int, forms: Sequence[tuple[Any, torch.dtype]]) -> tuple[Tensor, ...]:
    """Inputs of a network; integers are 0 or 1, as every table has; the first is 1: no mask leaves out everything."""
    generator = torch.Generator("cpu").manual_seed(n)
    numbers = [torch.rand(n, *shape, generator=generator) for shape, _ in forms]
    types = [dtype for _, dtype in forms]
    for x, dtype in zip(numbers, types, strict=True):
        if not dtype.is_floating_point:
            x.reshape(n, -1)[:, :1] = 1.0
    return tuple(x if dtype.is_floating_point else (x > 0.5).to(dtype) for x, dtype in zip(numbers, types, strict=True))


def _difference(net: nn.Module, exported: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    with torch.no_grad():
        expected, found = net(*inputs), exported(*inputs)
    difference = float((expected - found).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise ExportError(f"ONNX Runtime computes something else: outputs differ by {difference:.2g}")
    return difference


def onnx_packages() -> tuple[Any, Any]:
    """``onnx`` and ``onnxruntime``.

    :raises ExportError: where the extra is not installed.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise ExportError(f"{error.name} is not installed; pip install 'pyro-bc[onnx]'") from None
    return onnx, onnxruntime


@contextlib.contextmanager
def quietly() -> Any:
    """Without the exporter's notes on packages that it could use; errors are raised."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "root")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
