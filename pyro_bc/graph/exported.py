"""What ``torch.export`` makes of a network, as the nodes of a graph."""

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
import torch.fx
from torch import Tensor

from ..errors import UnsupportedNetworkError
from .folding import Constants, content
from .functions import ON_NUMBERS
from .layers_alone import layers_alone
from .nodes import DTYPE_NAMES, LAYERS, Graph, Named, Node, Value, without_dead_code
from .operations import BY_NAME
from .products import products_as_layers
from .recurrent import layers_apart

# Operations of a graph by another name than their ATen packet's.
_ALIASES = {
    "sym_size": "size",
    "_log_softmax": "log_softmax",
    "_softmax": "softmax",
    "_to_copy": "to",
    "type_as": "to",
    "_unsafe_view": "view",
    "concat": "cat",
    "concatenate": "cat",
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "clip": "clamp",
    "multiply": "mul",
    "subtract": "sub",
    "divide": "div",
    "true_divide": "div",
    "absolute": "abs",
    "negative": "neg",
    "__and__": "bitwise_and",
    "__or__": "bitwise_or",
    "__xor__": "bitwise_xor",
    "dense_dim": "size",
    "numpy_T": "t",
}

_IDENTITIES = {
    *("dropout", "alias", "detach", "lift_fresh_copy", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"),
    *("native_dropout", "lift_fresh", "lift", "positive", "requires_grad", "resolve_conj", "resolve_neg"),
}

_CHECKS = {
    *("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range_for_size", "sym_constrain_range"),
    *("_assert_async", "_functional_assert_async", "_functional_assert_scalar"),
}

_PLACEMENT = {"device", "pin_memory", "layout", "memory_format"}

# Operations that make several tensors of one, each of which is a slice of it or an entry.
_PIECES = {"split", "split_with_sizes", "chunk", "unbind", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes"}


class UnknownOperationError(UnsupportedNetworkError):
    """A network has operations that no graph holds.

    :param operations: ATen's overloads, or whatever else they are.
    """

    def __init__(self, message: str, operations: Iterable[Any] = ()) -> None:
        super().__init__(message)
        self.operations = set(operations)


def graph_of(program: Any, kept: set[str]) -> Graph:
    """The graph of an exported program of a :class:`~pyro_bc.graph.interface.OneOutput`.

    :param kept: names of the tensors that nothing is folded of (:mod:`~pyro_bc.graph.folding`).
    :raises UnknownOperationError: where there are operations that no graph holds.
    :raises UnsupportedNetworkError: where there is no graph of the input and one output.
    """
    changed = [_own_name(name) for name in program.graph_signature.buffers_to_mutate.values()]
    if changed:
        raise UnsupportedNetworkError(
            f"the network changes its buffer '{changed[0]}' as it predicts, which a file cannot: change it only where "
            f"self.training"
        )
    _drop_checks(program.graph)
    reader = _Reader(program, kept)
    (result,) = reader.read(program.graph_module, reader.placed)
    output = reader.reference(result) if isinstance(result, torch.fx.Node) else result
    if reader.unknown:
        raise UnknownOperationError(next(iter(reader.unknown.values())), set(reader.unknown))
    if not isinstance(output, Value) or output.index < 0:
        raise UnsupportedNetworkError("the network's output is its input, or does not depend on it")
    nodes, shapes = reader.nodes[: output.index + 1], (reader.inputs[0], *reader.shapes[: output.index + 1])
    buffers = frozenset(reader.tensors).difference(reader.parameters)
    graph = Graph(tuple(nodes), reader.tensors, shapes, buffers, tuple(reader.inputs[1:]), frozenset(reader.folded))
    return layers_alone(layers_apart(products_as_layers(without_dead_code(graph))))


def simpler(program: Any, operations: set[Any]) -> Any:
    """The program with some operations replaced by what torch says that they consist of, and nothing written in place.

    None where torch says it of none of them.
    """
    known = torch.export.default_decompositions()
    rules = {op: known[op] for op in operations if op in known}
    others = torch._decomp.decomposition_table
    rules |= {op: others[op] for op in operations if op in others and op not in rules}
    composite = [op for op in operations if _is_composite(op)]
    return program.run_decompositions(rules) if rules or composite or not operations else None


def _is_composite(operation: Any) -> bool:
    return isinstance(operation, torch._ops.OpOverload) and operation._can_decompose()


def writes_in_place(program: Any) -> bool:
    """Whether anything is written into a tensor that the program has already."""
    return any(_writes_in_place(node) for node in program.graph.nodes if node.op == "call_function")


def _drop_checks(graph: torch.fx.Graph) -> None:
    """Leave out what says what holds of sizes and types, and what only such checks need."""
    for node in reversed(graph.nodes):
        if _is_check(node):
            graph.erase_node(node)
    graph.eliminate_dead_code()


class _Reader:
    """Reads an exported program node by node, that of regions which it runs as a whole included."""

    def __init__(self, program: Any, kept: set[str]) -> None:
        signature = program.graph_signature
        names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        names |= signature.inputs_to_lifted_tensor_constants
        state = {**program.state_dict, **program.constants}
        tensors = {name: state[name].detach().cpu() for name in names.values()}
        names = {placeholder: _own_name(name) for placeholder, name in names.items()}
        self.tensors = {_own_name(name): tensor for name, tensor in tensors.items()}
        self.parameters = {_own_name(name) for name in signature.inputs_to_parameters.values()}
        self.inputs: list[Any] = []
        #: tensors of the network that a folded one is computed from.
        self.folded: set[str] = set()
        self.nodes: list[Node] = []
        self.shapes: list[Any] = []
        self.references: dict[torch.fx.Node, Any] = {}
        self.constants = Constants(kept)
        self.unknown: dict[Any, str] = {}
        self._named: dict[tuple[Any, ...], str] = {}

        def placed(node: torch.fx.Node) -> None:
            if node.name in names:
                self.references[node] = Named(names[node.name])
                is_own = node.name not in signature.inputs_to_lifted_tensor_constants
                self.constants.add(node, self.tensors[names[node.name]], names[node.name] if is_own else None)
            else:
                self.inputs.append(_shape(node))
                self.references[node] = Value(-len(self.inputs))

        self.placed = placed

    def read(self, module: Any, placed: Callable[[torch.fx.Node], None]) -> tuple[Any, ...]:
        """Read what a module of the program computes; its results.

        :param placed: says what a placeholder stands for.
        """
        for node in module.graph.nodes:
            if node.op == "placeholder":
                placed(node)
            elif node.op == "get_attr":
                attribute = getattr(module, str(node.target))
                if isinstance(attribute, Tensor):
                    self.constants.add(node, attribute.detach().cpu())
            elif node.op == "output":
                results = node.args[0]
                return tuple(results) if isinstance(results, list | tuple) else (results,)
            elif not _is_check(node):
                self._call(node, module)
        raise UnsupportedNetworkError("the network has no output")

    def _call(self, node: torch.fx.Node, module: Any) -> None:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return self._region(node, module)
        if self.constants.computed(node):
            return None
        if node.op == "call_function" and _packet(node) in _PIECES and _slices(node) is not None:
            return None  # each piece is read where it is used
        self.references[node] = self._operation(node)
        if _writes_in_place(node):  # later uses of what was overwritten mean the new value
            self.references[node.args[0]] = self.references[node]  # type: ignore[index]
            self.constants.forget(node.args[0])  # type: ignore[arg-type]
        return None

    def _region(self, node: torch.fx.Node, module: Any) -> None:
        """A part of the network that runs with or without gradients, or in a precision: the operations in it."""
        name = str(node.target)
        at = next((i for i, a in enumerate(node.args) if isinstance(a, torch.fx.Node) and a.op == "get_attr"), None)
        is_plain = name == "wrap_with_set_grad_enabled" or (name == "wrap_with_autocast" and not node.args[2])
        if at is None or not is_plain:
            self.unknown.setdefault(node.target, f"the operation '{name}' cannot be compressed or stored in a file")
            self.references[node] = ()
            return
        given = iter(node.args[at + 1 :])

        def placed(inner: torch.fx.Node) -> None:
            outer = next(given)
            if isinstance(outer, torch.fx.Node) and outer in self.constants:
                self.constants.alias(inner, outer)
            if not isinstance(outer, torch.fx.Node):
                self.constants.add(inner, outer)
            elif outer in self.references:
                self.references[inner] = self.references[outer]

        part = getattr(module, str(node.args[at].target))  # type: ignore[union-attr]
        self.references[node] = self.read(part, placed)

    def reference(self, node: torch.fx.Node, name: str = "") -> Any:
        """What a node's result is called: a tensor's name, a node of the graph, or a literal.

        :param name: for a layer's weight or bias, what it is to be called where it is computed.
        """
        if node in self.references:
            return self.references[node]
        if node not in self.constants:  # pieces that are used all at once
            self.references[node] = self._operation(node)
            return self.references[node]
        if not self.constants.may_fold(node, bool(name) or _row_name(node) is None):
            self.references[node] = self._operation(node)
            return self.references[node]
        value = self.constants.value(node)
        if not isinstance(value, Tensor):
            return _literal(value)
        return self._named_constant(node, value, name)

    def _named_constant(self, node: torch.fx.Node, value: Tensor, name: str) -> Any:
        key = content(value.detach())
        sources = self.constants.sources(node)
        if key not in self._named or sources:
            name = name or f"constants.of_{node.name}"
            while name in self.tensors:
                name = f"{name.rpartition('.')[0]}_.{name.rpartition('.')[2]}"
            self.tensors[name] = value.detach().clone()
            self._named[key] = name
            self.folded |= sources.keys()
            if self.parameters.intersection(sources):
                self.parameters.add(name)
        return Named(self._named[key])

    def _operation(self, node: torch.fx.Node) -> Any:
        """Add a node's operation to the graph; what its result is called."""
        if node.target is ON_PIECES and isinstance(node.args[0], torch.fx.Node):
            pieces = node.args[0]
            whole = self.references.get(pieces)
            if isinstance(whole, tuple):  # of a region: its results
                result = whole[node.args[1]]  # type: ignore[index]
                return self.reference(result) if isinstance(result, torch.fx.Node) else result
            slices = _slices(pieces) if whole is None else None
            if slices is not None:
                op, more = slices[node.args[1]]  # type: ignore[index]
                return self._add(Node(op, (self.reference(pieces.args[0]), *more)), node)  # type: ignore[arg-type]
            if _packet(pieces) in _FIRST_IS_ENOUGH or _is_of_all_places(pieces):
                if node.args[1] == 0 or not node.users:
                    return self.reference(pieces)
                return self._unknown(pieces)
        name = _row_name(node)
        if name is None:
            return self._unknown(node)
        if name in _IDENTITIES:
            return self.reference(node.args[0])  # type: ignore[arg-type]
        return _REWRITTEN.get(name, _Reader._plain)(self, node, name)

    def _plain(self, node: torch.fx.Node, name: str) -> Any:
        args, kwargs = _with_types_by_name(node)
        owner = _module(node) if name in LAYERS else ""
        names = ("", f"{owner}.weight", f"{owner}.bias")[: len(args)] if owner else ()
        arguments = tuple(self._argument(argument, own) for argument, own in zip_longest(args, names, fillvalue=""))
        kept = {key: value for key, value in kwargs.items() if key not in _PLACEMENT}
        options = tuple((key, self._argument(value)) for key, value in kept.items())
        return self._add(Node(name, arguments, options), node)

    def _slice(self, node: torch.fx.Node, name: str) -> Any:
        x, *bounds = (self._argument(argument) for argument in node.args)
        if tuple(bounds[1:]) in ((0, None), (None, None), ()):
            return x
        return self._add(Node(name, (x, *bounds)), node)

    def _to(self, node: torch.fx.Node, name: str) -> Any:
        source: Any = node.args[0]
        dtype = node.meta["val"].dtype
        if source.meta["val"].dtype == dtype:
            return self.reference(source)
        return self._add(Node(name, (self.reference(source),), (("dtype", _literal(dtype)),)), node)

    def _clamp_one_side(self, node: torch.fx.Node, name: str) -> Any:
        x, bound = (self._argument(argument) for argument in node.args)
        return self._add(Node("clamp", (x, bound) if name == "clamp_min" else (x, None, bound)), node)

    def _subtracted_from(self, node: torch.fx.Node, name: str) -> Any:
        x, other, *alpha = (self._argument(argument) for argument in (*node.args, *node.kwargs.values()))
        if alpha not in ([], [1]):
            x = self._add(Node("mul", (x, alpha[0])), node)
        return self._add(Node("add", (self._add(Node("neg", (x,)), node), other)), node)

    def _batch_norm(self, node: torch.fx.Node, name: str) -> Any:
        """Of statistics that were kept, as it is where nothing is written in place."""
        x, *rest = (self._argument(argument) for argument in node.args)
        return self._add(Node("batch_norm", (x, *rest[:4], False, *rest[4:], False)), node)

    def _shaped_as(self, node: torch.fx.Node, name: str) -> Any:
        sizes = tuple(size if isinstance(size, int) else -1 for size in _shape(node) or ())
        if sizes.count(-1) > 1:
            return self._unknown(node)
        return self._add(Node("reshape", (self.reference(node.args[0]), sizes)), node)  # type: ignore[arg-type]

    def _largest(self, node: torch.fx.Node, name: str) -> Any:
        """Of adaptive pooling to one place: a maximum over all, which is followed through and written as ONNX."""
        if not _is_of_all_places(node):
            return self._plain(node, name)
        sizes: Any = node.args[1]
        dims = tuple(range(-len(sizes), 0))
        numbers = next(user for user in node.users if user.args[1] == 0)
        return self._add(Node("amax", (self._argument(node.args[0]), dims, True)), numbers)

    def _copied(self, node: torch.fx.Node, name: str) -> Any:
        """What is written over a tensor, which has its shape and type afterwards."""
        source: Any = node.args[1]
        written, found = source.meta["val"], node.meta["val"]
        if written.dtype != found.dtype or _shape(source) != _shape(node):
            return self._unknown(node)
        return self.reference(source)

    def _joined(self, node: torch.fx.Node, name: str) -> Any:
        """Without the parts that are known to be empty, such as what a cache held before."""
        parts: Any = node.args[0]
        kept = [part for part in parts if not self._is_empty(part)]
        if len(kept) == 1:
            return self.reference(kept[0])
        return self._add(Node(name, (self._argument(kept), *map(self._argument, node.args[1:]))), node)

    def _is_empty(self, part: torch.fx.Node) -> bool:
        value = part.meta.get("val")
        return part in self.constants and isinstance(value, Tensor) and 0 in value.shape

    def _expand_as(self, node: torch.fx.Node, name: str) -> Any:
        before, after = (_shape(part) or () for part in node.args)  # type: ignore[arg-type]
        new = len(after) - len(before)
        sizes = tuple(-1 if axis >= new and before[axis - new] == size else size for axis, size in enumerate(after))
        if not all(isinstance(size, int) for size in sizes):
            return self._plain(node, name)
        return self._add(Node("expand", (self.reference(node.args[0]), sizes)), node)  # type: ignore[arg-type]

    def _add(self, node: Node, source: torch.fx.Node) -> Value:
        self.nodes.append(node)
        self.shapes.append(_shape(source))
        return Value(len(self.nodes) - 1)

    def _argument(self, tree: Any, name: str = "") -> Any:
        if isinstance(tree, tuple | list):
            return tuple(self._argument(branch) for branch in tree)
        return self.reference(tree, name) if isinstance(tree, torch.fx.Node) else _literal(tree)

    def _unknown(self, node: torch.fx.Node) -> None:
        """Note an operation that no graph holds, and go on, to find all of them."""
        where = f" in module '{_module(node)}'" if _module(node) else ""
        self.unknown.setdefault(
            node.target,
            f"the operation '{_packet(node)}'{where}{_source(node)} cannot be compressed or stored in a file",
        )


#: the operation that takes one of several results.
ON_PIECES = next(function for function, name in ON_NUMBERS.items() if name == "getitem")

# What gives several results, of which a graph's own operation gives the first.
_FIRST_IS_ENOUGH = {"_native_batch_norm_legit_no_training", "native_dropout"}

_REWRITTEN: Mapping[str, Callable[[_Reader, torch.fx.Node, str], Any]] = {
    "slice": _Reader._slice,
    "to": _Reader._to,
    "clamp_min": _Reader._clamp_one_side,
    "clamp_max": _Reader._clamp_one_side,
    "rsub": _Reader._subtracted_from,
    "_native_batch_norm_legit_no_training": _Reader._batch_norm,
    "expand_as": _Reader._expand_as,
    "cat": _Reader._joined,
    "reshape_as": _Reader._shaped_as,
    "view_as": _Reader._shaped_as,
    "copy": _Reader._copied,
    **{f"adaptive_max_pool{n}d": _Reader._largest for n in (1, 2, 3)},
}


def _is_of_all_places(node: torch.fx.Node) -> bool:
    """Whether this is an adaptive pooling to the largest of all places, and nobody asks which it was."""
    if not _packet(node).startswith("adaptive_max_pool"):
        return False
    sizes: Any = node.args[1]
    return set(sizes) == {1} and not any(user.args[1] == 1 and user.users for user in node.users)


def _row_name(node: torch.fx.Node) -> str | None:
    """The name of a node's operation in a graph; None where it has none."""
    if node.target in ON_NUMBERS:
        return ON_NUMBERS[node.target]
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    packet = _packet(node)
    name = packet.removesuffix("_") if _writes_in_place(node) else packet
    name = _ALIASES.get(name, name)
    overload = node.target._overloadname
    full = name if overload == "default" else f"{name}.{overload}"
    for found in (full, name):
        if (found in BY_NAME and (found == full or found not in _OF_ONE_OVERLOAD)) or found in _REWRITTEN:
            return found
    return name if name in _IDENTITIES else None


# Operations whose rows are of single overloads.
_OF_ONE_OVERLOAD = {name for name, row in BY_NAME.items() if 91 < row.code < 400}


def _slices(node: torch.fx.Node) -> list[tuple[str, tuple[Any, ...]]] | None:
    """The pieces that a node cuts its first argument into, as operations; None where their sizes are not known."""
    if _packet(node) not in _PIECES or not all(isinstance(a, torch.fx.Node | int | list | tuple) for a in node.args):
        return None
    pieces, whole = node.meta["val"], node.args[0].meta["val"]  # type: ignore[union-attr]
    by_entry = _packet(node) == "unbind"
    dim = node.args[1 if by_entry else 2] if len(node.args) > (1 if by_entry else 2) else node.kwargs.get("dim", 0)
    dim %= whole.dim()
    if by_entry:
        return [("select", (dim, entry)) for entry in range(len(pieces))]
    sizes = [piece.shape[dim] for piece in pieces]
    if not all(isinstance(size, int) for size in (*sizes, whole.shape[dim])):
        return None
    ends = [sum(sizes[: position + 1]) for position in range(len(sizes))]
    return [("slice", (dim, end - size, end)) for end, size in zip(ends, sizes, strict=True)]


def _with_types_by_name(node: torch.fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A node's arguments, a type of numbers among them by its keyword, and left out where it changes nothing."""
    args, kwargs = list(node.args), dict(node.kwargs)
    if isinstance(node.target, torch._ops.OpOverload):
        for position, argument in enumerate(node.target._schema.arguments[: len(args)]):
            if "ScalarType" in str(argument.real_type):
                kwargs[argument.name] = args[position]
                args = args[:position]  # what follows are options of no consequence
                break
        first: Any = args[0] if args else None
        value = first.meta.get("val") if isinstance(first, torch.fx.Node) else None
        same = isinstance(value, Tensor) and value.is_floating_point() and kwargs.get("dtype", 0) in (value.dtype, None)
        if same and _packet(node) in _OF_THE_ARGUMENTS_TYPE:
            del kwargs["dtype"]
    return tuple(args), {key: value for key, value in kwargs.items() if value is not None or key != "dtype"}


# Operations whose result has their argument's type where nothing else is said.
_OF_THE_ARGUMENTS_TYPE = {"softmax", "log_softmax", "sum", "mean", "cumsum", "cumprod", "prod", "linalg_vector_norm"}


def _literal(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        if value not in DTYPE_NAMES:
            raise UnsupportedNetworkError(f"the network computes in {value}, which no file holds")
        return DTYPE_NAMES[value]
    if isinstance(value, list | tuple):
        return tuple(map(_literal, value))
    return None if isinstance(value, int) and value >= 2**62 else value  # to the end, as torch.export writes it


def _shape(node: torch.fx.Node) -> tuple[Any, ...] | None:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    return tuple(size if isinstance(size, int) else str(size) for size in value.shape)


def _packet(node: torch.fx.Node) -> str:
    return getattr(getattr(node.target, "overloadpacket", None), "__name__", str(node.target))


def _is_check(node: torch.fx.Node) -> bool:
    """Whether a node computes nothing, but says what holds of its arguments."""
    return _packet(node) in _CHECKS


def _writes_in_place(node: torch.fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.name.endswith("_") and not schema.name.endswith("__")


def _module(node: torch.fx.Node) -> str:
    """The path of the module of the network that computes a node; empty for the network itself."""
    modules = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path not in ("", "net")]
    return _own_name(modules[-1]) if modules else ""


def _own_name(name: str) -> str:
    """What a tensor or module of a :class:`~pyro_bc.graph.interface.OneOutput` is called in the network itself."""
    return name.removeprefix("net.")


def _source(node: torch.fx.Node) -> str:
    """Where the user wrote what a node computes, as far as torch.export has noted it."""
    lines = re.findall(r'File "(.+?)", line (\d+), in .*\n\s*(.*)', node.meta.get("stack_trace") or "")
    own = [line for line in lines if not line[0].startswith(str(Path(torch.__file__).parent))]
    if not own:
        return ""
    file, number, code = own[-1]
    return f" ({Path(file).name}, line {number}: {code.strip()})"
