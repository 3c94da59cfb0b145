r"""A network as a graph of tensor operations, read from any ``nn.Module`` by ``torch.export``.

The graph is what can be made smaller and written to a file without the user's classes: a tuple of frozen
:class:`Node` values, each one of the operations in :data:`OPERATIONS` applied to the network's input, to earlier
nodes, to named tensors (weights, buffers) and to literals. It is run as it is by :class:`GraphNetwork`.
"""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedNetworkError
from ..runtime.messages import first_line
from .functions import ON_NUMBERS
from .layers_alone import layers_alone
from .module import GraphNetwork, evaluating
from .nodes import DTYPE_NAMES, Graph, Named, Node, Value, is_layer, layer_name, without_dead_code
from .operations import BY_NAME
from .products import products_as_layers
from .recurrent import layers_apart

# Spatial convolutions and pools by another name than their ATen packet's.
_ALIASES = {
    "sym_size": "size",
    "_log_softmax": "log_softmax",
    "_softmax": "softmax",
    "_to_copy": "to",
    "numpy_T": "t",
    "adaptive_max_pool2d": "adaptive_max_pool2d",
}

_IDENTITIES = {"dropout", "alias", "detach", "lift_fresh_copy", "feature_dropout", "alpha_dropout"}

_CHECKS = {"_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range_for_size"}

_PLACEMENT = {"device", "pin_memory", "layout", "memory_format"}


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
            graph = _read(program)
            if any(is_layer(node) and layer_name(node) == "weight" for node in graph.nodes):
                raise UnsupportedNetworkError(
                    "the network is a single layer, without a name for it; put it into an nn.Sequential"
                )
            _verify(net, graph, example)
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


def _read(program: Any) -> Graph:
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names |= signature.inputs_to_lifted_tensor_constants
    if len(signature.user_inputs) != 1 or len(signature.user_outputs) != 1:
        raise UnsupportedNetworkError(
            f"the network has {len(signature.user_inputs)} inputs and {len(signature.user_outputs)} outputs; one of "
            f"each is needed"
        )
    state = {**program.state_dict, **program.constants}
    tensors = {name: state[name].detach().cpu() for name in names.values()}
    references: dict[Any, Any] = {}
    nodes: list[Node] = []
    shapes: list[tuple[Any, ...] | None] = []
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name in names:
                references[node] = Named(names[node.name])
            else:
                references[node] = Value(-1)
                shapes.insert(0, _shape(node))
            continue
        if node.op == "output":
            (result,) = node.args[0]
            output = references[result]
            continue
        if _is_check(node):
            continue
        name = _operation(node)
        arguments, options = (_arguments(part, references) for part in (tuple(node.args), node.kwargs))
        if name == "slice":  # to the end, as torch.export writes it
            arguments = tuple(None if isinstance(a, int) and a >= 2**62 else a for a in arguments)
        if name == "to":
            options = (("dtype", DTYPE_NAMES.get(node.meta["val"].dtype, str(node.meta["val"].dtype))),)
            arguments = arguments[:1]
            if node.args[0].meta["val"].dtype == node.meta["val"].dtype:
                references[node] = arguments[0]
                continue
        if name in _IDENTITIES or (name == "slice" and arguments[2:] in ((0, None), (None, None), ())):
            references[node] = arguments[0]
            continue
        if _writes_in_place(node):  # later uses of what was overwritten mean the new value
            references[node.args[0]] = Value(len(nodes))
        references[node] = Value(len(nodes))
        nodes.append(Node(name, arguments, options))
        shapes.append(_shape(node))
    if not isinstance(output, Value) or output.index < 0:
        raise UnsupportedNetworkError("the network's output is its input, or does not depend on it")
    buffers = frozenset(names.values()).difference(signature.inputs_to_parameters.values())
    nodes, shapes = nodes[: output.index + 1], shapes[: output.index + 2]
    graph = without_dead_code(Graph(tuple(nodes), tensors, tuple(shapes), buffers))
    return layers_alone(layers_apart(products_as_layers(graph)))


def _shape(node: Any) -> tuple[Any, ...] | None:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    return tuple(size if isinstance(size, int) else str(size) for size in value.shape)


def _is_check(node: Any) -> bool:
    """Whether a node computes nothing, but says what holds of its arguments."""
    return getattr(getattr(node.target, "overloadpacket", None), "__name__", "") in _CHECKS


def _writes_in_place(node: Any) -> bool:
    return hasattr(node.target, "_schema") and node.target._schema.name.endswith("_")


def _operation(node: Any) -> str:
    if node.target in ON_NUMBERS:
        return ON_NUMBERS[node.target]
    packet = getattr(getattr(node.target, "overloadpacket", None), "__name__", str(node.target))
    name = packet.removesuffix("_") if _writes_in_place(node) else packet
    name = _ALIASES.get(name, name)
    if name in BY_NAME or name in _IDENTITIES:
        return name
    modules = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
    where = f" in module '{modules[-1]}'" if modules else ""
    raise UnsupportedNetworkError(
        f"the operation '{packet}'{where}{_source(node)} cannot be compressed or stored in a file"
    )


def _source(node: Any) -> str:
    """Where the user wrote what a node computes, as far as torch.export has noted it."""
    lines = re.findall(r'File "(.+?)", line (\d+), in .*\n\s*(.*)', node.meta.get("stack_trace") or "")
    own = [line for line in lines if not line[0].startswith(str(Path(torch.__file__).parent))]
    if not own:
        return ""
    file, number, code = own[-1]
    return f" ({Path(file).name}, line {number}: {code.strip()})"


def _arguments(tree: Any, references: Mapping[Any, Any]) -> Any:
    if isinstance(tree, Mapping):
        kept = {key: value for key, value in tree.items() if key not in _PLACEMENT}
        return tuple((key, _arguments(value, references)) for key, value in kept.items())
    if isinstance(tree, tuple | list):
        return tuple(_arguments(branch, references) for branch in tree)
    if isinstance(tree, torch.fx.Node):
        return references[tree]
    return DTYPE_NAMES.get(tree, tree) if isinstance(tree, torch.dtype) else tree


def _verify(net: nn.Module, graph: Graph, example: Tensor) -> None:
    """Run network and graph on random inputs of another batch size: what was read must be what is computed."""
    x = torch.rand(3, *example.shape[1:], dtype=example.dtype) if example.is_floating_point() else example
    x = x.to(example.device)
    expected = net(x)
    found = GraphNetwork(graph.nodes, graph.tensors, graph.buffers).to(example.device)(x)
    largest = float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max())
    if not torch.allclose(expected, found, rtol=1e-3, atol=1e-4 * largest, equal_nan=True):
        raise UnsupportedNetworkError(
            "the network computes something else when it is traced; does it use randomness, or write into a part of a "
            "tensor (h[:, :4] *= 2)?"
        )
