"""A compressed network arranged for prediction: the same numbers, sooner and in less memory.

Small layers leave little to compute, so that what remains is reading and writing memory, and Python between the
operations. Against these, without gradients and on the CPU: activations come behind the pooling that follows them
(fewer elements), pooling by two is maxima of neighbours, the graph runs as one generated function, and a large batch
goes through in parts whose activations stay in the processor's cache.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

import torch
import torch.fx
from torch import Tensor

from ..errors import UnsupportedNetworkError
from .arguments import STATISTICS_OF_THE_BATCH, check_program, named_arguments
from .forms import Form
from .layer_types import LAYER_TYPES, layer_type
from .limits import Limits
from .module import GraphNetwork
from .nodes import LAYERS, Named, Node, Value, arguments, is_layer, layer_name, leaves
from .operations import function, operation
from .outline import BATCHES, form_of, outline_of_two

#: largest activation of a part of a batch, in numbers; a few megabytes.
PART = 2**20

#: arguments that name dimensions; where one leaves them open, all are meant.
_DIMENSIONS = ("dim", "dims", "dim0", "dim1", "start_dim", "end_dim")

_PLAIN = {row.module for row in LAYER_TYPES}


class PredictionNetwork(GraphNetwork):
    """A :class:`~pyro_bc.graph.module.GraphNetwork` that predicts fast: under ``torch.no_grad()`` on the CPU.

    Otherwise, and once its layers have been replaced (a Bayesian network made of it), it is that network.

    :param limits: on what one example of a shape may take, looked at when the first of that shape goes in; None for a
        network of one's own.
    """

    def __init__(self, *args: Any, limits: Limits | None = None) -> None:
        super().__init__(*args)
        self._limits = limits
        self._function: Callable[..., Tensor] | None = None
        self._parts: dict[tuple[Any, ...], int | None] = {}

    def forward(self, *tensors: Tensor, **named: Tensor) -> Tensor:
        """The network's output.

        :raises UnsupportedNetworkError: where inputs do not fit.
        :raises ExcessError: where an example takes more than the limits say.
        """
        inputs = self._in_order(tensors, named)
        x = inputs[0]
        if torch.compiler.is_compiling() or not all(x.dim() for x in inputs) or not self._has_plain_layers():
            return super().forward(*inputs)
        kind = tuple((x.dtype, *x.shape[1:]) for x in inputs)
        if kind not in self._parts:
            self._parts[kind] = self._part(inputs)
        if torch.is_grad_enabled() or len(inputs) > 1 or x.device.type != "cpu" or not len(x):
            return super().forward(*inputs)
        if self._function is None:
            self._function = _function(arranged(self._nodes), self._layers)
        part = self._parts[kind]
        if part is None or len(x) <= part:
            return self._function(self, x)
        return torch.cat([self._function(self, piece) for piece in x.split(part)])

    def _has_plain_layers(self) -> bool:
        return all(type(self.get_submodule(name)) in _PLAIN for name in self._layers)

    def _part(self, inputs: tuple[Tensor, ...]) -> int | None:
        """Examples of one part; None where they may depend on each other.

        :raises UnsupportedNetworkError: where inputs do not fit.
        :raises ExcessError: where an example takes more than the limits say.
        """
        names = dict.fromkeys(name for node in self._nodes for name in node.named())
        tensors = {name: form_of(attrgetter(name)(self)) for name in names}
        one = [Form(tuple(x.shape[1:]), x.dtype) for x in inputs]
        try:
            found = outline_of_two(check_program(self._nodes), one, tensors, self._limits)
        except UnsupportedNetworkError as error:
            other = next((x.dtype for x in inputs if x.is_floating_point() and x.dtype != torch.float32), None)
            if other is None or any(tensor.dtype == other for tensor in tensors.values()):
                raise
            raise UnsupportedNetworkError(f"the network takes float32, not {other}: give x.float() ({error})") from None
        shapes: list[Any] = [(BATCHES[0], *one[0].shape)]
        for node, shape in zip(self._nodes, found.shapes(), strict=True):
            if not keeps_examples_apart(node, shapes) or shape is None or shape[:1] != BATCHES[:1]:
                return None
            shapes.append(shape)
        return max(1, BATCHES[0] * PART // max(map(math.prod, shapes)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_function": None}  # generated functions cannot be pickled


def keeps_examples_apart(node: Node, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether an operation, with the arguments that it has here, makes of each example what it makes of it alone.

    :param shapes: of the results of the nodes before it, behind that of the network's input; the batch comes first.
    """
    first = node.args[0] if node.args else None
    # What else is computed from the batch, a layer's weight for instance, has seen all of it.
    if not operation(node.op).per_example or not isinstance(first, Value) or len(node.values()) != 1:
        return False
    ndim, given = len(shapes[first.index + 1]), named_arguments(node)
    if node.op in LAYERS and ndim < layer_type(node.op).spatial + 2:  # a single example, whose channels come first
        return False
    if node.op == "pad" and len(leaves(node.args[1:2])) >= 2 * ndim:  # of the batch, too
        return False
    dims = [leaf for name in _DIMENSIONS if name in given for leaf in leaves(given[name] or (0,))]
    return all(dim % ndim for dim in dims) and not any(given.get(name) for name in STATISTICS_OF_THE_BATCH)


def arranged(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """The same nodes with monotone activations behind the max pooling that alone reads them."""
    result = list(nodes)
    readers: list[list[int]] = [[] for _ in nodes]
    for at, node in enumerate(nodes):
        for index in {value for value in node.values() if value >= 0}:
            readers[index].append(at)
    for index in range(len(result)):
        node = result[index]
        if operation(node.op).monotone and len(readers[index]) == 1 and result[readers[index][0]].op == "max_pool2d":
            at = readers[index][0]
            pool = result[at]
            # The pooling takes the activation's place, and the other way round; who reads whom stays.
            result[index] = replace(pool, args=(node.args[0], *pool.args[1:]))
            result[at] = replace(node, args=(Value(index), *node.args[1:]))
    return tuple(result)


def _function(nodes: tuple[Node, ...], layers: Any) -> Callable[..., Tensor]:
    """A function of the module and its input that runs the nodes, without looking anything up."""
    graph = torch.fx.Graph()
    results: dict[int, Any] = {-1: graph.placeholder("x")}
    tensors: dict[str, Any] = {}

    def argument(leaf: Any) -> Any:
        if isinstance(leaf, Named):
            if leaf.name not in tensors:
                tensors[leaf.name] = graph.get_attr(leaf.name)
            return tensors[leaf.name]
        return results[leaf.index] if isinstance(leaf, Value) else leaf

    for index, node in enumerate(nodes):
        if is_layer(node) and layer_name(node) in layers:
            results[index] = graph.call_module(layer_name(node), (argument(node.args[0]),))
            continue
        args, kwargs = arguments(node, argument)
        if _is_pooling_by_two(node):
            results[index] = graph.call_function(pooled_by_two, args[:1])
        else:
            results[index] = graph.call_function(function(node.op), args, kwargs)
    graph.output(results[len(nodes) - 1])
    code = graph.python_code("self")
    names = dict(code.globals)
    exec(code.src, names)
    return names["forward"]


def _is_pooling_by_two(node: Node) -> bool:
    return node.op == "max_pool2d" and not node.kwargs and node.args[1:] in (((2, 2),), ((2, 2), ()), ((2, 2), (2, 2)))


def pooled_by_two(x: Tensor) -> Tensor:
    """``max_pool2d(x, 2)`` as maxima of neighbours, which a CPU computes several times faster.

    :param x: ``(…, height, width)``.
    """
    if x.numel() < 2**15:  # the fixed cost of five operations
        return torch.max_pool2d(x, 2)
    height, width = (size // 2 * 2 for size in x.shape[-2:])
    x = torch.maximum(x[..., 0:height:2, :], x[..., 1:height:2, :])
    return torch.maximum(x[..., 0:width:2], x[..., 1:width:2])
