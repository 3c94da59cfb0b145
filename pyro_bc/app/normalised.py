"""Means and deviations of inputs and targets, and a network that carries them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.streamed import Inputs, Streamed

# Examples from which a large set's means and deviations are found.
_ENOUGH = 4096


@dataclass(frozen=True)
class Scales:
    """Means and deviations, ``(columns,)``, ``(channels, 1, 1)``, or of one number for all.

    Rounded so that a file holds them in few bytes, which a network does not notice: deviations to powers of two, means
    to a quarter of that.
    """

    mean: Tensor
    deviation: Tensor

    @staticmethod
    def of(values: Inputs) -> "Scales":
        """Those of inputs ``(N, …)``: by column, by the channel of pictures, or of all numbers alike."""
        if isinstance(values, Streamed) and len(values) > _ENOUGH:
            values = values.index_select(0, torch.linspace(0, len(values) - 1, _ENOUGH).long())
        over = {1: (0,), 2: (0,), 4: (0, 2, 3)}.get(values.dim(), tuple(range(values.dim())))
        shape = [1 if dim in over else size for dim, size in enumerate(values.shape)][1:]
        first = values[:1].double()
        total = squares = torch.zeros(shape, dtype=torch.float64, device=first.device)
        start = first.mean(over, keepdim=True).squeeze(0)  # sums of squares around it keep their digits
        for part in values.split(1000):
            centred = part.double() - start
            total = total + centred.sum(over, keepdim=True).squeeze(0)
            squares = squares + centred.square().sum(over, keepdim=True).squeeze(0)
        count = len(values) * math.prod(values.shape[dim] for dim in over if dim)
        shift = total / count
        variance = squares / count - shift.square()
        return Scales(start + shift, variance.clamp(min=0).sqrt()).rounded()

    def without_mean(self) -> "Scales":
        """Deviations alone."""
        return Scales(torch.zeros_like(self.mean), self.deviation)

    def rounded(self) -> "Scales":
        """The same in numbers of few bits."""
        is_constant = self.deviation <= 1e-7 * self.mean.abs()
        deviation = torch.where(is_constant, 1.0, self.deviation).log2().round().exp2()
        step = deviation / 4
        return Scales((self.mean / step).round().mul(step).add(0.0).float(), deviation.float())  # no -0


class Normalised(nn.Module):
    """A network of numbers about 0 and 1, for inputs and outputs in their own units: both scales are in the file.

    Inputs and outputs as those of ``net``.

    :param inputs: means and deviations that inputs are brought from.
    :param outputs: those that outputs are brought to; None to leave these as they are.
    """

    def __init__(self, net: nn.Module, inputs: Scales, outputs: Scales | None = None):
        super().__init__()
        self.net = net
        self.input_mean: Tensor
        self.input_deviation: Tensor
        self.output_mean: Tensor | None
        self.output_deviation: Tensor | None
        self.register_buffer("input_mean", inputs.mean)
        self.register_buffer("input_deviation", inputs.deviation)
        self.register_buffer("output_mean", None if outputs is None else outputs.mean)
        self.register_buffer("output_deviation", None if outputs is None else outputs.deviation)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net((x - self.input_mean) / self.input_deviation)
        if self.output_mean is None or self.output_deviation is None:
            return y
        return y * self.output_deviation + self.output_mean

    def scales(self) -> dict[str, list[float]]:
        """The numbers, by their names."""
        return {name: value.flatten().tolist() for name, value in self.named_buffers(recurse=False)}


def normalised_like(net: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """The network inside a :class:`Normalised` where tensors by their names are those of one; else the network."""
    if "input_mean" not in weights or "input_mean" in net.state_dict():
        return net
    ends = [(weights.get(f"{end}_mean"), weights.get(f"{end}_deviation")) for end in ("input", "output")]
    inputs, outputs = (None if mean is None or own is None else Scales(mean, own) for mean, own in ends)
    return net if inputs is None else Normalised(net, inputs, outputs)
