"""What a file holds: the network's graph, and its tensors as they are stored."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import UnsupportedNetworkError
from ..graph.forms import Form
from ..graph.layer_types import LayerType, layer_type
from ..graph.nodes import Node, is_layer
from ..graph.outline import form_of
from ..quantisation.fixed_point import FixedPoint


@dataclass(frozen=True)
class Selection:
    """Ascending indices, which inputs a layer still reads.

    :param indices: ``(n,)``, int64.
    :param size: of the dimension that they select from.
    """

    indices: Tensor
    size: int


@dataclass(frozen=True)
class Integers:
    """A tensor of integers or truth values, stored as it is.

    :param codes: int64, any shape.
    :param dtype: of the tensor itself.
    """

    codes: Tensor
    dtype: torch.dtype = torch.int64


@dataclass(frozen=True)
class Floats:
    """A tensor of float32 numbers, stored as they are: every one in its own precision, also what is infinite.

    :param numbers: float32, any shape.
    """

    numbers: Tensor
    bits: ClassVar[int] = 32
    grid: ClassVar[tuple[int, ...]] = ()

    @property
    def codes(self) -> Tensor:
        """The numbers' bit patterns, int64, unsigned."""
        return self.numbers.contiguous().view(torch.int32).long() & 0xFFFFFFFF

    def values(self) -> Tensor:
        """The numbers themselves."""
        return self.numbers


#: what numbers are stored as.
Numbers = FixedPoint | Floats

#: a tensor of the file.
Stored = Numbers | Selection | Integers


@dataclass(frozen=True)
class StoredLayer:
    """A fully connected layer or convolution as it is stored.

    :param name: the layer's name; ``layer1``, ``layer2``, … in a network read from a file.
    :param dense_shape: outputs and inputs (filters and channels) before pruning; 0 and 0 of a further part of the layer
        before it, which pruning took apart (``FURTHER_PART``).
    :param weight: codes of shape ``(out_left, in_left)`` or ``(out_left, in_left, *kernel)``.
    :param bias: codes of shape ``(out_left,)``, or None.
    :param type: of the layer.
    """

    name: str
    dense_shape: tuple[int, int]
    weight: Numbers
    bias: Numbers | None
    type: LayerType

    @property
    def dense_groups(self) -> int:
        """Inputs of a fully connected layer, or filters of a convolution, before pruning."""
        return self.dense_shape[0 if self.type.scales_outputs else 1]

    @property
    def groups_left(self) -> int:
        """Inputs of a fully connected layer, or filters of a convolution, that are left."""
        return self.weight.codes.shape[self.type.group_axis]


#: what stands for the dense shape of a part of a layer, behind the first one's, which is the whole layer's.
FURTHER_PART = (0, 0)


@dataclass(frozen=True)
class WholeLayer:
    """A layer of the network before compression, with all that pruning made of it.

    :param parts: as they are stored: one, or several of a grouped convolution whose groups became unequal.
    """

    parts: tuple[StoredLayer, ...]

    @property
    def name(self) -> str:
        """That of its first part."""
        return self.parts[0].name

    @property
    def layer_type(self) -> LayerType:
        """The layer's type."""
        return self.parts[0].type

    @property
    def dense_shape(self) -> tuple[int, int]:
        """Outputs and inputs (filters and channels of a group) before pruning."""
        return self.parts[0].dense_shape

    @property
    def dense_groups(self) -> int:
        """Inputs of a fully connected layer, or filters of a convolution, before pruning."""
        return self.parts[0].dense_groups

    @property
    def groups_left(self) -> int:
        """Inputs of a fully connected layer, or filters of a convolution, that are left."""
        return sum(part.groups_left for part in self.parts)

    @property
    def shape_left(self) -> tuple[int, int]:
        """Outputs and inputs that are left; of several parts the most inputs."""
        shapes = [part.type.dense_shape(part.weight.codes.shape) for part in self.parts]
        return sum(outputs for outputs, _ in shapes), max(inputs for _, inputs in shapes)

    @property
    def bits(self) -> int:
        """Bits of its weights, sign included; of several parts the most."""
        return max(part.weight.bits for part in self.parts)

    @property
    def bias_bits(self) -> int | None:
        """Likewise of its biases; None where there are none."""
        return max((part.bias.bits for part in self.parts if part.bias is not None), default=None)

    @property
    def nonzero(self) -> int:
        """How many of its weights are not 0."""
        return sum(int(part.weight.codes.count_nonzero()) for part in self.parts)


@dataclass(frozen=True)
class Input:
    """One of several inputs of a network.

    :param name: under which it may go in.
    :param shape: of one of a batch.
    :param dtype: one of :data:`DTYPES`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    :param nodes: the network's graph.
    :param tensors: by name, those that the nodes use, in the order of their first use.
    :param dense_shapes: outputs and inputs of every layer before pruning, by the name of its weight.
    :param dense_parameters: parameters of the network before compression, biases included.
    :param input_shape: shape of one input, or empty where unknown.
    :param buffers: names of the tensors that are no parameters.
    :param input_dtype: of the input.
    :param input_name: of the input, where there are several.
    :param further_inputs: those behind the first.
    """

    nodes: tuple[Node, ...]
    tensors: Mapping[str, Stored]
    dense_shapes: Mapping[str, tuple[int, int]]
    dense_parameters: int
    input_shape: tuple[int, ...]
    buffers: frozenset[str]
    input_dtype: torch.dtype = field(default=torch.float32, kw_only=True)
    input_name: str = field(default="", kw_only=True)
    further_inputs: tuple[Input, ...] = field(default=(), kw_only=True)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """All inputs."""
        return (Input(self.input_name, self.input_shape, self.input_dtype), *self.further_inputs)

    @property
    def layers(self) -> tuple[StoredLayer, ...]:
        """Fully connected layers and convolutions, in the order of the graph."""
        layers = {}
        for node in self.nodes:
            if is_layer(node):
                weight, bias = self.tensors[node.args[1].name], None
                if len(node.args) > 2 and node.args[2] is not None:
                    bias = self.tensors[node.args[2].name]
                name = node.args[1].name
                assert isinstance(weight, Numbers) and (bias is None or isinstance(bias, Numbers))
                own = name.removesuffix(".weight")
                layers[name] = StoredLayer(own, self.dense_shapes[name], weight, bias, layer_type(node.op))
        return tuple(layers.values())

    @property
    def whole_layers(self) -> tuple[WholeLayer, ...]:
        """The same, those that pruning took apart as the one layer that they were."""
        found: list[list[StoredLayer]] = []
        for layer in self.layers:
            if found and layer.dense_shape == FURTHER_PART:
                found[-1].append(layer)
            else:
                found.append([layer])
        return tuple(WholeLayer(tuple(parts)) for parts in found)


#: types of integers and inputs that a file may hold, by their number in it.
DTYPES = (torch.float32, torch.int64, torch.bool, torch.int32, torch.int16, torch.int8, torch.uint8)

# What integers of a file stay below.
_MOST_INTEGER = 1 << 24


def integers_of(name: str, tensor: Tensor) -> Integers:
    """A tensor of integers or truth values as a file holds it.

    :raises UnsupportedNetworkError: where a file cannot hold it.
    """
    if tensor.dtype not in DTYPES:
        raise UnsupportedNetworkError(f"tensor '{name}' of type {tensor.dtype} cannot be stored in a file")
    codes = tensor.long()
    if codes.numel() and int(codes.abs().max()) >= _MOST_INTEGER:
        raise UnsupportedNetworkError(f"tensor '{name}' holds integers of {_MOST_INTEGER:,} and more: a file has none")
    return Integers(codes, tensor.dtype)


def form(stored: Stored) -> Form:
    """Shape and type of the tensor itself, without making its numbers of their codes."""
    return Form(tuple(stored.codes.shape)) if isinstance(stored, Numbers) else form_of(values(stored))


def values(stored: Stored) -> Tensor:
    """The tensor itself: float32 numbers, indices (int64), or integers or truth values of their dtype."""
    if isinstance(stored, Selection):
        return stored.indices
    return stored.codes.to(stored.dtype) if isinstance(stored, Integers) else stored.values()
