"""The types of layers whose weights may have a posterior: one row each.

Everything that depends on a layer's type (which axis of its weight counts outputs, where groups lie, what a scale
multiplies, how its output is computed from mean and variance) is read off its row.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class LayerType:
    """One type of layer, a linear map of its input whose weight is one tensor.

    :param op: its operation in a graph, as in ``torch.ops.aten``.
    :param module: torch's module.
    :param function: torch's function ``(input, weight, bias, …)``.
    :param spatial: dimensions of its kernel; 0 for a fully connected layer.
    :param output_axis: of the weight, which counts outputs or filters.
    :param input_axis: of the weight, which counts inputs or channels.
    :param group_axis: of the weight, which counts groups: one of the two.
    :param arguments: names of the operation's arguments behind weight and bias, as torch's module has them.
    :param is_transposed: whether an input is spread over outputs, fewer of which meet at the edges.
    :param is_lookup: whether its input are indices of the entries that an output is the one of.
    :param zero_row: the entry of the weight's first dimension that is 0 whatever is learned; None for none.
    """

    op: str
    module: type[nn.Module]
    function: Callable[..., Tensor]
    spatial: int = 0
    output_axis: int = 0
    input_axis: int = 1
    group_axis: int = 0
    arguments: tuple[str, ...] = ()
    is_transposed: bool = False
    is_lookup: bool = False
    zero_row: int | None = None

    def held(self, weight: Tensor) -> Tensor:
        """The weight with 0 in what is always 0; a tensor of its shape."""
        if self.zero_row is None:
            return weight
        rows = torch.arange(weight.shape[0], device=weight.device) != self.zero_row
        return weight * rows.to(weight.dtype).reshape(-1, *[1] * (weight.dim() - 1))

    @property
    def groups_rows(self) -> bool:
        """Whether its groups are the rows of a table."""
        return self.is_lookup and self.group_axis == self.input_axis

    @property
    def scales_outputs(self) -> bool:
        """Whether a group's scale multiplies an output, bias included, instead of an input."""
        return self.group_axis == self.output_axis

    def over_groups(self, value: Tensor, weight_shape: Sequence[int]) -> Tensor:
        """A tensor of one entry per group, ``(groups,)``, shaped for broadcasting against the weight.

        Where there are fewer groups than entries of the axis, a group is as many neighbours as fit.
        """
        size = weight_shape[self.group_axis]
        if size != len(value):
            value = value.repeat_interleave(size // len(value))
        behind = len(weight_shape) - 1 - self.group_axis
        return value.reshape(-1, *[1] * behind) if behind else value

    def over_outputs(self, value: Tensor, weight_shape: Sequence[int]) -> Tensor:
        """A tensor of one entry per output, ``(out,)``, shaped for broadcasting against the weight."""
        behind = len(weight_shape) - 1 - self.output_axis
        return value.reshape(-1, *[1] * behind)

    def by_output(self, weight: Tensor) -> Tensor:
        """The weight with outputs in its first dimension and inputs in its second."""
        return weight.movedim((self.output_axis, self.input_axis), (0, 1))

    def dense_shape(self, weight_shape: Sequence[int]) -> tuple[int, int]:
        """Outputs and inputs."""
        return weight_shape[self.output_axis], weight_shape[self.input_axis]

    def rows(self, weight: Tensor, groups: int = 1) -> Tensor:
        """The weight as the matrix that each output multiplies its inputs with, ``(out, inputs of a group · kernel)``.

        Inputs in the order of channels, then of the kernel; outputs of one group are neighbours.
        """
        if self.is_transposed and groups > 1:  # the second dimension counts the outputs of one group
            return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flatten(1)
        return self.by_output(weight).flatten(1)

    def from_rows(self, rows: Tensor, weight_shape: Sequence[int], groups: int = 1) -> Tensor:
        """The weight whose :meth:`rows` these are."""
        if not self.output_axis:
            return rows.reshape(tuple(weight_shape))
        inputs, outputs, *kernel = weight_shape
        return rows.reshape(groups, outputs, inputs // groups, *kernel).transpose(1, 2).reshape(tuple(weight_shape))

    def fan_in(self, weight_shape: Sequence[int]) -> int:
        """How many weights an output is the sum of."""
        return math.prod(weight_shape) // weight_shape[self.output_axis]


LINEAR = LayerType("linear", nn.Linear, F.linear, group_axis=1)


def lookup(index: Tensor, weight: Tensor, bias: None = None, padding_idx: int | None = None) -> Tensor:
    """Rows of a table, ``F.embedding`` with the arguments in a layer's order.

    :param index: integers, any shape.
    :param weight: ``(rows, features)``.
    :param bias: None, which a table has none of.
    :param padding_idx: the row that training leaves alone; it changes nothing here.
    """
    if not isinstance(weight, Tensor) or not isinstance(index, Tensor) or bias is not None:
        raise TypeError("lookup takes two tensors, and adds nothing")
    return F.embedding(index, weight)


LOOKUP = LayerType(
    "lookup", nn.Embedding, lookup, output_axis=1, input_axis=0, group_axis=1, arguments=("padding_idx",),
    is_lookup=True,
)  # fmt: skip


def _convolution(op: str, module: type[nn.Module], function: Callable[..., Tensor], spatial: int) -> LayerType:
    return LayerType(op, module, function, spatial, arguments=("stride", "padding", "dilation", "groups"))


def _transposed(op: str, module: type[nn.Module], function: Callable[..., Tensor], spatial: int) -> LayerType:
    arguments = ("stride", "padding", "output_padding", "groups", "dilation")
    return LayerType(op, module, function, spatial, 1, 0, 1, arguments, is_transposed=True)


#: all of them; the first of as many dimensions is that of a weight of which no more is known.
LAYER_TYPES: tuple[LayerType, ...] = (
    LINEAR,
    _convolution("conv1d", nn.Conv1d, F.conv1d, 1),
    _convolution("conv2d", nn.Conv2d, F.conv2d, 2),
    _convolution("conv3d", nn.Conv3d, F.conv3d, 3),
    _transposed("conv_transpose1d", nn.ConvTranspose1d, F.conv_transpose1d, 1),
    _transposed("conv_transpose2d", nn.ConvTranspose2d, F.conv_transpose2d, 2),
    _transposed("conv_transpose3d", nn.ConvTranspose3d, F.conv_transpose3d, 3),
    LOOKUP,
)
_BY_OPERATION = {row.op: row for row in LAYER_TYPES}


def layer_type(op: str) -> LayerType:
    """The type whose operation this is."""
    return _BY_OPERATION[op]


def layer_type_of_shape(weight_shape: Sequence[int]) -> LayerType:
    """The type that a weight of this shape has, where it does not say more: ``(out, in)`` or ``(out, in, *kernel)``."""
    return next((row for row in LAYER_TYPES if row.spatial == len(weight_shape) - 2), LINEAR)
