r"""A network as a graph of tensor operations, read from any ``nn.Module`` by ``torch.export``.

The graph is what can be made smaller and written to a file without the user's classes: a tuple of frozen
:class:`Node` values, each one of the operations in :data:`OPERATIONS` applied to the network's input, to earlier
nodes, to named tensors (weights, buffers) and to literals. It is run as it is by :class:`GraphNetwork`.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedNetworkError
from ..runtime.messages import first_line
from .exported import UnknownOperationError, graph_of, simpler, writes_in_place
from .folding import weights_of_layers
from .module import GraphNetwork, evaluating
from .nodes import Graph, is_layer, layer_name


def read_graph(net: nn.Module, example: Tensor) -> Graph:
    """The graph that a network computes in evaluation mode; dropout falls away.

    :param net: the network, of one input and one output; it is not changed.
    :param example: a batch of inputs, ``(batch, …)``; its values do not matter.
    :raises UnsupportedNetworkError: where the network has no fixed graph, or an operation that a file cannot hold;
        it is named, with the module that holds it.
    """
    example = example[:1].expand(2, *example.shape[1:]).contiguous()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused kernels hide the layers
    try:
        with warnings.catch_warnings(), torch.no_grad(), evaluating(net):
            warnings.simplefilter("ignore")
            program = torch.export.export(
                net, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
            )
            graph = _read(program, net, example)
            if any(is_layer(node) and layer_name(node) == "weight" for node in graph.nodes):
                raise UnsupportedNetworkError(
                    "the network is a single layer, without a name for it; put it into an nn.Sequential"
                )
    except UnsupportedNetworkError:
        raise
    except Exception as error:  # whatever a user's forward, or torch.export, raises
        reason = first_line(error)
        if reason.startswith("Constraints violated"):
            reason = "its forward fixes the batch size, as len(x) does; write x.shape[0], or -1 in a view"
        raise UnsupportedNetworkError(
            f"the network cannot be read as a fixed graph of one input, for any batch size: {reason}"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return graph


def _read(program: Any, net: nn.Module, example: Tensor) -> Graph:
    """The program as a graph that computes what the network does.

    An operation that no graph holds, and what is written into a part of a tensor, is first replaced by what torch
    itself says that it consists of.
    """
    kept = weights_of_layers(net)
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
            if _computes(net, graph, example):
                return graph
            if not writes_in_place(program):
                raise UnsupportedNetworkError(
                    "the network computes something else when it is traced; does it use randomness?"
                )
            simplified = simpler(program, unknown)
        program = simplified


def _computes(net: nn.Module, graph: Graph, example: Tensor) -> bool:
    """Whether network and graph are one for random inputs of another batch size."""
    if example.is_floating_point():
        x = torch.rand(3, *example.shape[1:], dtype=example.dtype).to(example.device)
    else:
        x = torch.cat([example, example])[:3]
    expected = net(x)
    found = GraphNetwork(graph.nodes, graph.tensors, graph.buffers).to(example.device)(x)
    largest = float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max())
    return torch.allclose(expected, found, rtol=1e-3, atol=1e-4 * largest, equal_nan=True)
