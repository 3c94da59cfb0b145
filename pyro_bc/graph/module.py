"""A graph that runs: an ``nn.Module`` that needs no class of the user's."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

from .layer_types import layer_type
from .nodes import Named, Node, Value, arguments, is_layer, last_reads, layer_arguments, layer_groups, layer_name
from .operations import operation


@contextmanager
def evaluating(net: nn.Module) -> Iterator[nn.Module]:
    """A context in which a network is in evaluation mode; each of its modules returns to the mode that it had."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield net
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def same_statistics(net: Any) -> Iterator[None]:
    """A context that leaves the running statistics of a network as they are, whatever its modules do in training mode.

    :param net: of anything else than a module nothing is kept.
    """
    buffers = net.buffers() if isinstance(net, nn.Module) else ()
    held = [(buffer, buffer.clone()) for buffer in buffers if buffer.dim() < 2]  # others are frozen weights
    try:
        yield
    finally:
        for buffer, value in held:
            buffer.copy_(value)


class GraphNetwork(nn.Module):
    """Runs a graph: a network in evaluation mode that needs no class but this one.

    Input and output are those of the network that the graph was read from. Its layers are modules of torch's under
    their old names, so that it can be made Bayesian again.

    :param buffers: names of the floating point tensors that are no parameters.
    :param inputs: names of the inputs, where there are several: they go in by position or by name.
    """

    def __init__(
        self,
        nodes: tuple[Node, ...],
        tensors: Mapping[str, Tensor],
        buffers: frozenset[str] = frozenset(),
        inputs: tuple[str, ...] = (),
    ):
        super().__init__()
        self._nodes = nodes
        self._inputs = inputs
        self._layers = _layers(nodes)
        built: set[str] = set()
        for name, node in self._layers.items():
            bias = tensors[node.args[2].name] if len(node.args) > 2 and node.args[2] is not None else None
            owner, last = self._owner(name)
            owner.add_module(last, _layer_module(node, tensors[node.args[1].name], bias))
            built.update(replace(node, args=node.args[1:]).named())
        for name, tensor in tensors.items():
            owner, last = self._owner(name)
            if name not in built and tensor.is_floating_point() and name not in buffers:
                owner.register_parameter(last, nn.Parameter(tensor.clone()))
            elif name not in built:
                owner.register_buffer(last, tensor.clone())
        self._done = last_reads(nodes)
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

    def forward(self, *tensors: Tensor, **named: Tensor) -> Tensor:
        return self.run(self._nodes, *self._in_order(tensors, named))

    def _in_order(self, tensors: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The inputs by their positions."""
        if not named:
            return tensors
        missing = [name for name in self._inputs[len(tensors) :] if name not in named]
        if missing or len(named) + len(tensors) != max(1, len(self._inputs)):
            takes = ", ".join(self._inputs) or "one tensor"
            raise TypeError(f"the network's inputs are {takes}; not {', '.join(named)}")
        return (*tensors, *(named[name] for name in self._inputs[len(tensors) :] or named))

    def run(self, nodes: tuple[Node, ...], *inputs: Tensor) -> Tensor:
        """The output of this network's nodes, or of the same ones with other literals."""
        left = len(nodes)
        for result in self.results(nodes, *inputs):
            left -= 1
            if left:
                del result  # which would else live until the next one is there
        return result

    def results(self, nodes: tuple[Node, ...], *inputs: Tensor) -> Iterator[Any]:
        """What each node of :meth:`run` comes to, one after the other."""
        results: dict[int, Any] = {-1 - position: x for position, x in enumerate(inputs)}

        def lookup(leaf: Any) -> Any:
            if isinstance(leaf, Value):
                return results[leaf.index]
            return attrgetter(leaf.name)(self) if isinstance(leaf, Named) else leaf

        for index, node in enumerate(nodes):
            if is_layer(node) and layer_name(node) in self._layers:
                results[index] = self.get_submodule(layer_name(node))(lookup(node.args[0]))
            else:
                args, kwargs = arguments(node, lookup)
                if operation(node.op).creates:  # where the input is, wherever that was when the network was read
                    kwargs["device"] = inputs[0].device
                results[index] = operation(node.op).function(*args, **kwargs)
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
        named = replace(node, args=node.args[1:]).named()
        # A bias of this name that the layer does not add would become the module's.
        expected = [f"{name}.weight", *[f"{name}.bias"] * (f"{name}.bias" in uses)]
        if named == expected and all(uses[tensor] == alike[node.op, node.args[1:]] for tensor in named):
            layers[name] = node
    return layers


def _layer_module(node: Node, weight: Tensor, bias: Tensor | None) -> nn.Module:
    kind, given = layer_type(node.op), layer_arguments(node)
    make: Any = kind.module
    outputs, inputs = kind.dense_shape(weight.shape)
    if kind.spatial:
        groups = layer_groups(node)
        # The second dimension of the weight counts those of one group.
        inputs, outputs = (inputs * groups, outputs) if kind.input_axis else (inputs, outputs * groups)
        layer = make(inputs, outputs, tuple(weight.shape[2:]), bias=bias is not None, device="meta", **given)
    elif kind.is_lookup:
        layer = make(inputs, outputs, device="meta", **given)
    else:
        layer = make(inputs, outputs, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.clone())
    if bias is not None or not kind.is_lookup:
        layer.bias = None if bias is None else nn.Parameter(bias.clone())
    return layer
