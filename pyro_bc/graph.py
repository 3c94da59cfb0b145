r"""A network as a graph of tensor operations, read from any ``nn.Module`` by ``torch.export``.

The graph is what can be made smaller and written to a file without the user's classes: a tuple of frozen
:class:`Node` values, each one of the operations in :data:`OPERATIONS` applied to the network's input, to earlier
nodes, to named tensors (weights, buffers) and to literals. It is run as it is by :class:`GraphNetwork`.
"""

import operator
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UnsupportedNetworkError


@dataclass(frozen=True)
class Value:
    """What node ``index`` computed; index −1 is the network's input."""

    index: int


@dataclass(frozen=True)
class Named:
    """The tensor of this name."""

    name: str


@dataclass(frozen=True)
class Node:
    """One operation of the graph.

    :param op: its name in :data:`OPERATIONS`.
    :param args: :class:`Value`, :class:`Named`, ``None``, bool, int, float, str, or tuples of them.
    :param kwargs: pairs of name and argument.
    """

    op: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...] = ()

    def values(self) -> list[int]:
        """Indices of the nodes whose results this one uses."""
        return [leaf.index for leaf in leaves((self.args, self.kwargs)) if isinstance(leaf, Value)]

    def named(self) -> list[str]:
        """Names of the tensors that it uses."""
        return [leaf.name for leaf in leaves((self.args, self.kwargs)) if isinstance(leaf, Named)]


@dataclass(frozen=True)
class Graph:
    """A network; the last node is its output.

    :param nodes: in the order in which they run.
    :param tensors: weights and buffers by name, detached.
    :param shapes: shape of every node's result, of the input first; a dimension that depends on the batch size is
        a string. None for what is no tensor.
    :param buffers: names of the tensors that training leaves alone.
    """

    nodes: tuple[Node, ...]
    tensors: Mapping[str, Tensor]
    shapes: tuple[tuple[Any, ...] | None, ...]
    buffers: frozenset[str] = frozenset()

    def shape(self, index: int) -> tuple[Any, ...] | None:
        """Shape of a node's result, or of the input (−1)."""
        return self.shapes[index + 1]


#: operations that are layers, where their weight is a tensor of the network.
LAYERS = ("linear", "conv1d", "conv2d")
# Operations that keep every element in its place: what they do to one they do to all.
ELEMENTWISE = (
    "relu", "tanh", "sigmoid", "gelu", "silu", "softplus", "elu", "leaky_relu", "relu6", "hardtanh", "hardsigmoid",
    "hardswish", "selu", "mish", "celu", "log_sigmoid", "neg", "abs", "exp", "log", "sqrt", "rsqrt", "square", "pow",
    "clamp", "contiguous", "clone", "erf", "sin", "cos",
)  # fmt: skip
#: operations by name, as in ``torch.ops.aten``; the order is that of the file format, and only grows at the end.
OPERATIONS: tuple[str, ...] = (
    "linear", "conv2d", "conv1d", "max_pool2d", "flatten", "batch_norm", "add", "cat", "index_select", "sub", "mul",
    "div", "avg_pool2d", "adaptive_avg_pool2d", "mean", "view", "reshape", "transpose", "permute", "squeeze",
    "unsqueeze", "unflatten", "select", "slice", "layer_norm", "softmax", "scaled_dot_product_attention", "expand",
    "pad", "matmul", "bmm", "sum", "amax", "max_pool1d", "avg_pool1d", "adaptive_avg_pool1d", "group_norm",
    "log_softmax", "upsample_nearest2d", "adaptive_max_pool2d", "gru", "lstm", "zeros", "getitem", "size", "int_add",
    "int_sub", "int_mul", "int_floordiv", "maximum", "minimum", "prelu", "rms_norm", "chunk", "split", "stack",
    "embedding", "pixel_shuffle", "instance_norm", "t",
    *ELEMENTWISE,
)  # fmt: skip
_ON_NUMBERS: dict[Any, str] = {
    operator.add: "int_add",
    operator.sub: "int_sub",
    operator.mul: "int_mul",
    operator.floordiv: "int_floordiv",
    operator.getitem: "getitem",
}
# What a graph may ask for, since one may come from a file: pieces of a tensor, and integers.
_MOST_PIECES, _MOST_INTEGER = 4096, 1 << 62
# Spatial convolutions and pools by another name than their ATen packet's.
_ALIASES = {
    "sym_size": "size",
    "_log_softmax": "log_softmax",
    "_softmax": "softmax",
    "adaptive_max_pool2d": "adaptive_max_pool2d",
}
_IDENTITIES = {"dropout", "alias", "detach", "lift_fresh_copy", "feature_dropout", "alpha_dropout"}
_DTYPES = {torch.float32: "float32", torch.int64: "int64", torch.bool: "bool"}
_TYPES = {name: dtype for dtype, name in _DTYPES.items()}
_PLACEMENT = {"device", "pin_memory", "layout", "memory_format"}


def is_layer(node: Node) -> bool:
    """Whether a node is a fully connected layer or convolution with a weight of its own."""
    bias = node.args[2] if len(node.args) > 2 else None
    return (
        node.op in LAYERS
        and len(node.args) > 1
        and isinstance(node.args[1], Named)
        and (bias is None or isinstance(bias, Named))
    )


def layer_name(node: Node) -> str:
    """The name of a layer, from that of its weight."""
    return node.args[1].name.removesuffix(".weight")


def layer_groups(node: Node) -> int:
    """``groups`` of a convolution; 1 for a fully connected layer."""
    return node.args[6] if len(node.args) > 6 else 1


def leaves(tree: Any) -> list[Any]:
    """Everything in nested tuples, in order."""
    if isinstance(tree, tuple):
        return [leaf for branch in tree for leaf in leaves(branch)]
    return [tree]


def replace_leaves(tree: Any, change: Callable[[Any], Any]) -> Any:
    """Nested tuples with every leaf changed."""
    if isinstance(tree, tuple):
        return tuple(replace_leaves(branch, change) for branch in tree)
    return change(tree)


def _on_integers(op: str, compute: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def checked(a: Any, b: Any) -> Any:
        # Lists can be added and multiplied, too, and Python's integers grow without end.
        if not (isinstance(a, int | torch.SymInt) and isinstance(b, int | torch.SymInt)):
            raise TypeError(f"{op} takes integers")
        result = compute(a, b)
        if isinstance(result, int) and abs(result) > _MOST_INTEGER:
            raise OverflowError(f"{op} comes to more than is allowed")
        return result

    checked.__name__ = op
    return checked


def getitem(pieces: Any, index: Any) -> Any:
    """One of several results."""
    if not (isinstance(pieces, list | tuple) and isinstance(index, int)):
        raise TypeError("getitem takes several results and a number")
    return pieces[index]


def _on_tensors(op: str) -> Callable[..., Any]:
    aten = getattr(torch.ops.aten, op)

    def checked(*args: Any, **kwargs: Any) -> Any:
        # ATen's operations of the same names on lists, text and plain numbers are none of a network's.
        first = args[:1] if op not in ("cat", "stack") or not args else args[0]
        if not first or not all(isinstance(x, Tensor) for x in first):
            exponent = op == "pow" and len(args) > 1 and isinstance(args[1], Tensor)
            if not exponent or not isinstance(first[0], int | float):
                raise TypeError(f"{op} takes a tensor")
        if op in ("split", "chunk") and _pieces(op, *args, **kwargs) > _MOST_PIECES:
            raise OverflowError(f"{op} makes more than {_MOST_PIECES} pieces")
        return aten(*args, **kwargs)

    checked.__name__ = op
    return checked


def _pieces(op: str, x: Tensor, size: Any, dim: int = 0) -> int:
    if not isinstance(size, int):
        return len(size)  # the size of each
    return size if op == "chunk" else x.shape[dim] // max(1, size)


def _functions() -> dict[str, Callable[..., Any]]:
    table: dict[str, Callable[..., Any]] = {op: _on_tensors(op) for op in OPERATIONS if hasattr(torch.ops.aten, op)}
    table |= {op: _on_integers(op, compute) for compute, op in _ON_NUMBERS.items()}
    return table | {"getitem": getitem, "size": torch.ops.aten.sym_size.int, "zeros": torch.ops.aten.zeros}


def function(op: str) -> Callable[..., Any]:
    """What computes an operation: nothing but it, on tensors (``int_…`` on integers), whatever a file asks for."""
    return _FUNCTIONS[op]


_FUNCTIONS = _functions()


def arguments(node: Node, lookup: Callable[[Any], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments of a node's operation, what it refers to looked up."""
    args = tuple(_as_list(replace_leaves(argument, lookup)) for argument in node.args)
    kwargs = {key: _as_list(replace_leaves(value, lookup)) for key, value in node.kwargs}
    if "dtype" in kwargs:
        kwargs["dtype"] = _TYPES[kwargs["dtype"]]
    return args, kwargs


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """A context in which a network is in evaluation mode; each of its modules returns to the mode that it had."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


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
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
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
        name = _operation(node)
        arguments, options = (_arguments(part, references) for part in (tuple(node.args), node.kwargs))
        if name == "slice":  # to the end, as torch.export writes it
            arguments = tuple(None if isinstance(a, int) and a >= 2**62 else a for a in arguments)
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
    return without_dead_code(Graph(tuple(nodes), tensors, tuple(shapes), buffers))


def _shape(node: Any) -> tuple[Any, ...] | None:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    return tuple(size if isinstance(size, int) else str(size) for size in value.shape)


def _writes_in_place(node: Any) -> bool:
    return hasattr(node.target, "_schema") and node.target._schema.name.endswith("_")


def _operation(node: Any) -> str:
    if node.target in _ON_NUMBERS:
        return _ON_NUMBERS[node.target]
    packet = getattr(getattr(node.target, "overloadpacket", None), "__name__", str(node.target))
    name = packet.removesuffix("_") if _writes_in_place(node) else packet
    name = _ALIASES.get(name, name)
    if name in OPERATIONS or name in _IDENTITIES:
        return name
    modules = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
    where = f" in module '{modules[-1]}'" if modules else ""
    raise UnsupportedNetworkError(f"the operation '{packet}'{where} cannot be compressed or stored in a file")


def _arguments(tree: Any, references: Mapping[Any, Any]) -> Any:
    if isinstance(tree, Mapping):
        kept = {key: value for key, value in tree.items() if key not in _PLACEMENT}
        return tuple((key, _arguments(value, references)) for key, value in kept.items())
    if isinstance(tree, tuple | list):
        return tuple(_arguments(branch, references) for branch in tree)
    if isinstance(tree, torch.fx.Node):
        return references[tree]
    return _DTYPES.get(tree, tree) if isinstance(tree, torch.dtype) else tree


def without_dead_code(graph: Graph) -> Graph:
    """Only the nodes and tensors that the output depends on."""
    used = {len(graph.nodes) - 1}
    for index in reversed(range(len(graph.nodes))):
        if index in used:
            used.update(graph.nodes[index].values())
    kept = [index for index in range(len(graph.nodes)) if index in used]
    return select_nodes(graph, kept)


def select_nodes(graph: Graph, kept: list[int]) -> Graph:
    """The graph with only these nodes, renumbered, and the tensors that they use."""
    new = {-1: -1} | {index: position for position, index in enumerate(kept)}

    def renumber(leaf: Any) -> Any:
        return Value(new[leaf.index]) if isinstance(leaf, Value) else leaf

    nodes = []
    for index in kept:
        node = graph.nodes[index]
        nodes.append(Node(node.op, replace_leaves(node.args, renumber), replace_leaves(node.kwargs, renumber)))
    names = dict.fromkeys(name for node in nodes for name in node.named())
    shapes = (graph.shapes[0], *(graph.shapes[index + 1] for index in kept))
    return Graph(tuple(nodes), {name: graph.tensors[name] for name in names}, shapes, graph.buffers.intersection(names))


def _verify(net: nn.Module, graph: Graph, example: Tensor) -> None:
    """Run network and graph on random inputs of another batch size: what was read must be what is computed."""
    x = torch.rand(3, *example.shape[1:], dtype=example.dtype) if example.is_floating_point() else example
    x = x.to(example.device)
    expected = net(x)
    found = GraphNetwork(graph.nodes, graph.tensors, graph.buffers).to(example.device)(x)
    largest = float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max())
    if not torch.allclose(expected, found, rtol=1e-3, atol=1e-4 * largest, equal_nan=True):
        raise UnsupportedNetworkError("the network computes something else when it is traced; does it use randomness?")


class GraphNetwork(nn.Module):
    """Runs a graph: a network in evaluation mode that needs no class but this one.

    Input and output are those of the network that the graph was read from. Its layers are modules of torch's under
    their old names, so that it can be made Bayesian again.

    :param buffers: names of the floating point tensors that are no parameters.
    """

    def __init__(self, nodes: tuple[Node, ...], tensors: Mapping[str, Tensor], buffers: frozenset[str] = frozenset()):
        super().__init__()
        self._nodes = nodes
        self._layers = _layers(nodes)
        built: set[str] = set()
        for name, node in self._layers.items():
            bias = tensors[node.args[2].name] if len(node.args) > 2 and node.args[2] is not None else None
            owner, last = self._owner(name)
            owner.add_module(last, _layer_module(node, tensors[node.args[1].name], bias))
            built.update(node.named())
        for name, tensor in tensors.items():
            owner, last = self._owner(name)
            if name not in built and tensor.is_floating_point() and name not in buffers:
                owner.register_parameter(last, nn.Parameter(tensor.clone()))
            elif name not in built:
                owner.register_buffer(last, tensor.clone())
        # Results that no later node reads are freed, as a network written by hand does.
        readers = {index: position for position, node in enumerate(nodes) for index in node.values()}
        self._done: list[list[int]] = [[] for _ in nodes]
        for index, position in readers.items():
            self._done[position].append(index)
        self.eval()

    def _owner(self, path: str) -> tuple[nn.Module, str]:
        """The module that holds what a dotted path names, made where there is none, and the last part of the path."""
        owner: nn.Module = self
        *parents, name = path.split(".")
        for parent in parents:
            if parent not in owner._modules:
                owner.add_module(parent, nn.Module())
            owner = getattr(owner, parent)
        return owner, name

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self._nodes, x)

    def run(self, nodes: tuple[Node, ...], x: Tensor) -> Tensor:
        """The output of this network's nodes, or of the same ones with other literals."""
        return deque(self.results(nodes, x), maxlen=1).pop()

    def results(self, nodes: tuple[Node, ...], x: Tensor) -> Iterator[Any]:
        """What each node of :meth:`run` comes to, one after the other."""
        results: dict[int, Any] = {-1: x}

        def lookup(leaf: Any) -> Any:
            if isinstance(leaf, Value):
                return results[leaf.index]
            return attrgetter(leaf.name)(self) if isinstance(leaf, Named) else leaf

        for index, node in enumerate(nodes):
            if is_layer(node) and layer_name(node) in self._layers:
                results[index] = self.get_submodule(layer_name(node))(lookup(node.args[0]))
            else:
                args, kwargs = arguments(node, lookup)
                if node.op == "zeros":  # where the input is, wherever that was when the network was read
                    kwargs["device"] = x.device
                results[index] = function(node.op)(*args, **kwargs)
            yield results[index]
            for finished in self._done[index]:
                del results[finished]

    def extra_repr(self) -> str:
        return " -> ".join(node.op for node in self._nodes)


def _layers(nodes: tuple[Node, ...]) -> dict[str, Node]:
    """The layers that can be modules: ``<name>.weight`` and perhaps ``<name>.bias``, used alike wherever they are."""
    uses = Counter(name for node in nodes for name in node.named())
    alike = Counter((node.op, node.args[1:]) for node in nodes if is_layer(node))
    layers: dict[str, Node] = {}
    for node in nodes:
        if not is_layer(node):
            continue
        name = layer_name(node)
        named = node.named()
        as_a_module = named in ([f"{name}.weight"], [f"{name}.weight", f"{name}.bias"])
        if as_a_module and all(uses[tensor] == alike[node.op, node.args[1:]] for tensor in named):
            layers[name] = node
    return layers


def _layer_module(node: Node, weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer: Any
    if node.op == "linear":
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    else:
        given = dict(zip(("stride", "padding", "dilation"), node.args[3:6], strict=False))
        kind: Any = nn.Conv1d if node.op == "conv1d" else nn.Conv2d
        groups = layer_groups(node)
        channels, kernel = (weight.shape[1] * groups, weight.shape[0]), tuple(weight.shape[2:])
        layer = kind(*channels, kernel, groups=groups, bias=bias is not None, device="meta", **given)
    layer.weight = nn.Parameter(weight.clone())
    layer.bias = None if bias is None else nn.Parameter(bias.clone())
    return layer


def _as_list(argument: Any) -> Any:
    return list(argument) if isinstance(argument, tuple) else argument
