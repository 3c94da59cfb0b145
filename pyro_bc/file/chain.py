"""Chains: networks whose every operation reads the one before it, described in a byte or two each.

A general graph names every argument of every operation. In a chain of layers, activations and pools nearly all of that
follows from the operations' order, and where the chain is that of a well-known network (:data:`KNOWN`), only the
widths that pruning left remain to be said.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..graph.nodes import Named, Node, Value, is_layer

#: operations without weights, by their code in a file; the arguments behind the first are those of ``torch.ops.aten``.
PLAIN: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("relu", ()),
    ("max_pool2d", ((2, 2), (2, 2))),
    ("flatten", (1,)),
    ("tanh", ()),
    ("sigmoid", ()),
    ("gelu", ()),
    ("silu", ()),
    ("avg_pool2d", ((2, 2), (2, 2))),
    ("adaptive_avg_pool2d", ((1, 1),)),
)

#: largest kernel, stride and padding; a file holds them in a byte each.
MOST = 127

#: steps of a chain in a file.
MOST_STEPS = 1 << 10


@dataclass(frozen=True)
class Layer:
    """A layer of a chain, before pruning.

    :param outputs: units or filters.
    :param kernel: side of a square convolution's kernel; 0 for a fully connected layer.
    """

    outputs: int
    kernel: int = 0
    stride: int = 1
    padding: int = 0
    bias: bool = True


@dataclass(frozen=True)
class Chain:
    """A dense network.

    :param input_shape: of one input, ``(channels, height, width)`` or ``(features,)``.
    :param steps: :class:`Layer`, or the position of an operation in :data:`PLAIN`.
    """

    input_shape: tuple[int, ...]
    steps: tuple[Layer | int, ...]


@dataclass(frozen=True)
class Pruned:
    """A chain with the widths that pruning left.

    :param nodes: its graph; tensors are ``tensor0``, ``tensor1``, … in the order of their use.
    :param shapes: of every tensor.
    :param grids: of every weight, sizes of the spatial grid in its last entries; empty where there is none.
    :param dense_shapes: outputs and inputs of every layer before pruning, by the name of its weight.
    :param dense_parameters: weights and biases before pruning.
    """

    nodes: tuple[Node, ...]
    shapes: dict[str, tuple[int, ...]]
    grids: dict[str, tuple[int, ...]]
    dense_shapes: dict[str, tuple[int, int]]
    dense_parameters: int


_RELU, _POOL, _FLATTEN = 0, 1, 2

#: chains that a file names by their position.
KNOWN: tuple[Chain, ...] = (
    Chain((1, 28, 28), (_FLATTEN, Layer(300), _RELU, Layer(100), _RELU, Layer(10))),  # LeNet-300-100
    Chain(
        (1, 28, 28),
        (Layer(20, 5), _RELU, _POOL, Layer(50, 5), _RELU, _POOL, _FLATTEN, Layer(500), _RELU, Layer(10)),
    ),  # LeNet-5-Caffe
    Chain((1, 8, 8), (_FLATTEN, Layer(300), _RELU, Layer(100), _RELU, Layer(10))),  # LeNet-300-100, digits
)


def prune(chain: Chain, widths: tuple[int, ...]) -> Pruned:
    """The graph of a chain whose layers have these outputs left.

    :raises ValueError: where layers and shapes do not fit together.
    """
    nodes: list[Node] = []
    shapes: dict[str, tuple[int, ...]] = {}
    grids: dict[str, tuple[int, ...]] = {}
    dense_shapes: dict[str, tuple[int, int]] = {}
    parameters = 0
    left = iter(widths)
    dense, spatial = chain.input_shape[0], chain.input_shape[1:]
    width, grid = dense, tuple[int, ...]()
    for step in chain.steps:
        last = Value(len(nodes) - 1)
        if isinstance(step, int):
            op, args = PLAIN[step]
            nodes.append(Node(op, (last, *args)))
            if op == "flatten":
                positions = math.prod(spatial)
                dense, width, grid, spatial = dense * positions, width * positions, spatial, ()
            elif op == "adaptive_avg_pool2d":
                spatial = (1, 1)
            elif op.endswith("pool2d"):
                spatial = tuple(size // 2 for size in spatial)
            continue
        if spatial if not step.kernel else len(spatial) != 2:
            raise ValueError("a layer of the chain does not fit its input")
        outputs = next(left, 0)
        if not 1 <= outputs <= step.outputs:
            raise ValueError("the chain's layers have impossible widths")
        weight = Named(f"tensor{len(shapes)}")
        kernel = (step.kernel,) * 2 if step.kernel else ()
        shapes[weight.name] = (outputs, width, *kernel)
        grids[weight.name] = kernel or grid
        dense_shapes[weight.name] = (step.outputs, dense)
        parameters += step.outputs * (dense * math.prod(kernel) + step.bias)
        bias = None
        if step.bias:
            bias = Named(f"tensor{len(shapes)}")
            shapes[bias.name] = (outputs,)
        tail: tuple[Any, ...] = ()
        if step.kernel:
            spatial = tuple((size + 2 * step.padding - step.kernel) // step.stride + 1 for size in spatial)
            if (step.stride, step.padding) != (1, 0):
                tail = ((step.stride,) * 2, (step.padding,) * 2)
        if any(size < 1 for size in spatial):
            raise ValueError("the chain's pictures become empty")
        nodes.append(Node("conv2d" if step.kernel else "linear", (last, weight, bias, *tail)))
        dense, width, grid = step.outputs, outputs, ()
    if next(left, None) is not None:
        raise ValueError("the chain has more widths than layers")
    return Pruned(tuple(nodes), shapes, grids, dense_shapes, parameters)


def find_chain(
    nodes: tuple[Node, ...],
    shapes: Mapping[str, tuple[int, ...]],
    dense_shapes: Mapping[str, tuple[int, int]],
    input_shape: tuple[int, ...],
) -> tuple[Chain, tuple[int, ...]] | None:
    """The chain that a pruned graph is, with the widths left; None where it is none, or would not be read back."""
    steps: list[Layer | int] = []
    widths: list[int] = []
    renamed: dict[str, str] = {}
    plain: list[Node] = []
    for node in nodes:
        rest = node.args[1:]
        if is_layer(node):
            names = [argument.name for argument in rest if isinstance(argument, Named)]
            if any(name in renamed for name in names):
                return None
            renamed |= {name: f"tensor{len(renamed) + i}" for i, name in enumerate(names)}
            weight = shapes[names[0]]
            kernel = weight[2] if len(weight) > 2 else 0
            stride, padding = 1, 0
            if len(rest) == 4 and all(isinstance(part, tuple) for part in rest[2:]):
                stride, padding = rest[2][0], rest[3][0]
            steps.append(Layer(dense_shapes[names[0]][0], kernel, stride, padding, len(names) == 2))
            widths.append(weight[0])
            weight_and_bias = [Named(renamed[name]) for name in names]
            bias = weight_and_bias[1] if len(names) == 2 else None
            plain.append(Node(node.op, (node.args[0], weight_and_bias[0], bias, *rest[2:]), node.kwargs))
        elif (node.op, rest) in PLAIN:
            steps.append(PLAIN.index((node.op, rest)))
            plain.append(node)
        else:
            return None
    fits = all(isinstance(s, int) or max(s.kernel, s.stride, s.padding) <= MOST for s in steps)
    if not (fits and len(input_shape) in (1, 3) and widths and len(steps) <= MOST_STEPS):
        return None
    chain = Chain(input_shape, tuple(steps))
    try:
        pruned = prune(chain, tuple(widths))
    except ValueError:
        return None
    same = (
        pruned.nodes == tuple(plain)
        and pruned.shapes == {renamed[name]: tuple(shape) for name, shape in shapes.items() if name in renamed}
        and len(renamed) == len(shapes)
        and pruned.dense_shapes == {renamed[name]: tuple(shape) for name, shape in dense_shapes.items()}
    )
    return (chain, tuple(widths)) if same else None
