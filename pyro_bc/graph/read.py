r"""A network as a graph of tensor operations, read from any ``nn.Module`` by ``torch.export``.

The graph is what can be made smaller and written to a file without the user's classes: a tuple of frozen
:class:`Node` values, each one of the operations in :data:`OPERATIONS` applied to the network's input, to earlier
nodes, to named tensors (weights, buffers) and to literals. It is run as it is by :class:`GraphNetwork`.
"""

import contextlib
import io
import logging
import traceback
import warnings
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedNetworkError, printable
from ..runtime.inputs import Batch, forms, names_of, random_like, tensors_of
from ..runtime.messages import first_line
from .arguments import check_program
from .exported import UnknownOperationError, graph_of, simpler, writes_in_place
from .folding import weights_of_layers
from .forms import Form
from .interface import OneOutput, Output
from .module import GraphNetwork, evaluating
from .nodes import Graph, is_layer, layer_name
from .outline import form_of, outline_of_two


def read_graph(net: nn.Module, example: Batch, output: Output = None) -> Graph:
    """The graph that a network computes in evaluation mode; dropout falls away.

    :param net: the network; it is not changed.
    :param example: a batch of inputs, ``(batch, …)``, or a tuple or a dictionary of several; numbers do not matter.
    :param output: which of several outputs is the network's: its name or position; None for the only one, or
        ``logits``. Others fall away.
    :raises UnsupportedNetworkError: where the network has no fixed graph, or an operation that a file cannot hold;
        it is named, with the module that holds it.
    """
    names = names_of(example)
    tensors = tuple(x[:1].expand(2, *x.shape[1:]).contiguous() for x in tensors_of(example))
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused kernels hide the layers
    try:
        with warnings.catch_warnings(), torch.no_grad(), evaluating(net):
            warnings.simplefilter("ignore")
            whole = OneOutput(net, names, output)
            dynamic = (tuple({0: torch.export.Dim.DYNAMIC} for _ in tensors),)
            program = _exported(whole, tensors, dynamic)
            graph = _read(program, whole, random_like(tensors, 3))
            if any(is_layer(node) and layer_name(node) == "weight" for node in graph.nodes):
                raise UnsupportedNetworkError(
                    "the network is a single layer, without a name for it; put it into an nn.Sequential"
                )
    except UnsupportedNetworkError:
        raise
    except Exception as error:  # whatever a user's forward, or torch.export, raises
        raise UnsupportedNetworkError(
            f"the network cannot be read as a fixed graph of its inputs, for any batch size: {_reason(error)}"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return graph


def _exported(net: OneOutput, tensors: tuple[Tensor, ...], dynamic: Any) -> Any:
    """What ``torch.export`` makes of a network, without what it prints."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            try:
                return torch.export.export(net, tensors, dynamic_shapes=dynamic, strict=False)
            except Exception as error:
                if not _fixes_batch_size(error):
                    raise
            # The best order of an einsum's products is found for numbers, and would hold for one batch size alone.
            with torch.backends.opt_einsum.flags(enabled=False):
                return torch.export.export(net, tensors, dynamic_shapes=dynamic, strict=False)
    finally:
        logger.setLevel(level)


def _fixes_batch_size(error: Exception) -> bool:
    return str(error).startswith("Constraints violated")


def _reason(error: Exception) -> str:
    """Why a network cannot be read, and the line of its own code where that was found."""
    frames = [(frame.filename, frame.lineno, frame.line) for frame in traceback.extract_tb(error.__traceback__)]
    own = [frame for frame in frames if not frame[0].startswith(_NOT_THE_USERS)]
    where = f" ({Path(own[-1][0]).name}, line {own[-1][1]}: {printable((own[-1][2] or '').strip())})" if own else ""
    if _fixes_batch_size(error):
        return "its forward fixes the batch size, as len(x) does; write x.shape[0], or -1 in a view"
    calls = [frame.f_locals.values() for frame, _ in traceback.walk_tb(error.__traceback__)]
    if any(isinstance(value, nn.utils.rnn.PackedSequence) for values in calls for value in values):
        return f"{PACKED}{where}"
    if "data-dependent" in str(error):
        return f"its forward decides by the numbers in a tensor{where}"
    return f"{first_line(error)}{where}"


#: why a recurrent layer over packed sequences cannot be read.
PACKED = "packed sequences have no fixed shape: give the layer padded ones, and mask its outputs"

# Folders whose code is no user's network.
_NOT_THE_USERS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]), "<")

# What a network was read as, by the network and the form of its inputs.
_KNOWN: "weakref.WeakKeyDictionary[nn.Module, dict[Any, Graph]]" = weakref.WeakKeyDictionary()


def graph_of_same(net: nn.Module, example: Batch, output: Output = None) -> Graph:
    """As :func:`read_graph`, of a network that only its training changes: it is traced once for inputs of one form.

    :param net: its parameters and buffers are those of now; its forward is what it was.
    :param example: as for :func:`read_graph`.
    :param output: likewise.
    """
    known = _KNOWN.setdefault(net, {})
    form = (forms(example), output)
    graph = _as_it_is_now(known[form], net) if form in known else None
    if graph is None:
        graph = read_graph(net, example, output)
        graph = known[form] = _as_it_is_now(graph, net) or graph  # whose tensors are the network's, and no copies
    return graph


def _as_it_is_now(graph: Graph, net: nn.Module) -> Graph | None:
    """The graph with the tensors that its network has now; None where some were computed from them."""
    if graph.folded:
        return None
    own = dict(net.named_parameters(remove_duplicate=False)) | dict(net.named_buffers(remove_duplicate=False))
    tensors = dict(graph.tensors)
    for name, tensor in graph.tensors.items():
        value = own.get(graph.origins.get(name, name))
        if value is None:
            continue
        value = value.detach().cpu()
        tensors[name] = value.T.contiguous() if name in graph.turned else value
        if tensors[name].shape != tensor.shape or tensors[name].dtype != tensor.dtype:
            return None
    return replace(graph, tensors=tensors)


def _read(program: Any, net: OneOutput, examples: tuple[Tensor, ...]) -> Graph:
    """The program as a graph that computes what the network does.

    An operation that no graph holds, and what is written into a part of a tensor, is first replaced by what torch
    itself says that it consists of.
    """
    kept = weights_of_layers(net.net)
    unknown: set[Any] = set()
    first: UnknownOperationError | None = None
    while True:
        try:
            graph = graph_of(program, kept)
        except UnknownOperationError as error:
            first, known = first or error, unknown
            unknown = unknown | error.operations
            simplified = None if unknown == known else simpler(program, unknown)
            if simplified is None:
                raise first from None
        else:
            if _computes(net, graph, examples):
                forms = [Form(tuple(x.shape[1:]), x.dtype) for x in examples]
                outline_of_two(check_program(graph.nodes), forms, {n: form_of(t) for n, t in graph.tensors.items()})
                return graph
            if not writes_in_place(program):
                raise UnsupportedNetworkError(
                    "the network computes something else when it is traced; does it use randomness? F.dropout needs "
                    "training=self.training"
                )
            simplified = simpler(program, unknown)
        program = simplified


def _computes(net: nn.Module, graph: Graph, examples: tuple[Tensor, ...]) -> bool:
    """Whether network and graph are one for inputs of another batch size."""
    expected = net(*(x.clone() for x in examples))  # which it may write into
    network = GraphNetwork(graph.nodes, graph.tensors, graph.buffers).to(examples[0].device)
    found = network(*examples)
    largest = float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max())
    return torch.allclose(expected, found, rtol=1e-3, atol=1e-4 * largest, equal_nan=True)
