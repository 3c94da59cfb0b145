r"""Codes of a learned prior at a price of a bit, once their training is over.

What was trained with its codes stands where the prior that it was trained with has it, and a target seldom lies just
there. From there the curvature says how to go on (:mod:`pyro_bc.posterior.curvature`): codes are rounded once more, to
smaller ones of the same step, where the bits that they save are worth more than what that costs, and what is rounded
later makes up for it (:mod:`pyro_bc.quantisation.conditional`). Where codes are cosine coefficients,
:math:`v = T w`, so are the inputs' second moments, :math:`T A T^\top`, by which they are conditioned.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..file.contents import Stored
from ..graph.nodes import Node, layer_groups, layer_nodes
from ..posterior.summary import LayerPosterior
from ..quantisation.cosine import fits_integers, to_cosines
from ..quantisation.fixed_point import FixedPoint
from ..runtime.devices import on_cpu
from .rate import Priced, by_blocks, conditioned, costs_of, step_of
from .reading import Reading


def recoder(read: Reading, stored: Mapping[str, Stored], num_data: int) -> Callable[[float], Reading]:
    """What makes coarser codes of a network's, at a price of a bit in nats of the posterior.

    :param read: the posterior by its curvature of a network that computes with these codes.
    :param stored: its tensors as a file holds them, by name.
    :param num_data: size of the training set.
    :returns: the same reading, with codes for all layers that have them, and steps of what belongs to no layer.
    """
    nodes = layer_nodes(read.graph)
    layers = {}
    for name, own in read.names.items():
        weight, bias = (stored.get(f"{own}.{role}") for role in ("weight", "bias"))
        if own in nodes and isinstance(weight, FixedPoint):
            numbers = bias if isinstance(bias, FixedPoint) else None
            layers[own] = _Coded.of(read, name, nodes[own], weight, numbers, num_data)

    @on_cpu
    def at(nats_per_bit: float) -> Reading:
        posterior = dict(read.posterior)
        for name, layer in layers.items():
            posterior[name] = replace(posterior[name], codes=layer.rounded(posterior[name], nodes[name], nats_per_bit))
        steps = {name: step_of(num_data * known, nats_per_bit) for name, known in read.fitted.others.items()}
        # Codes are rounded, and what belongs to no layer will be: nothing is left that the curvature has to say.
        return replace(read, posterior=posterior, fitted=replace(read.fitted, curvature=None), steps=steps)

    return at


@dataclass(frozen=True)
class _Coded:
    """A layer's codes, and what they are rounded by; None where they stay what they are."""

    weight: FixedPoint
    bias: FixedPoint | None
    price: Priced | None

    @classmethod
    def of(
        cls, read: Reading, name: str, node: Node, weight: FixedPoint, bias: FixedPoint | None, num_data: int
    ) -> "_Coded":
        curvature = (read.fitted.curvature or {})[name]
        layer, groups = read.posterior[read.names[name]], layer_groups(node)
        has_bias = bias is not None and layer.bias_mean is not None
        kind = layer.layer_type
        # The rows of a transposed convolution are none of the tensor, and a wide layer's blocks may cut a grid.
        if kind.output_axis or weight.rows is not None or (weight.grid and len(curvature.inputs) > 1):
            return cls(weight, bias, None)
        inputs = [_on_grid(own, weight.grid, has_bias) for own in curvature.of(has_bias)]
        rows = kind.rows(weight.codes, groups).float() * 2.0**-weight.fraction_bits
        if has_bias and bias is not None:
            rows = torch.cat([rows, bias.values()[:, None]], 1)
        return cls(weight, bias, Priced(costs_of(curvature, num_data), by_blocks(inputs, has_bias), rows, has_bias))

    def rounded(self, layer: LayerPosterior, node: Node, nats_per_bit: float) -> dict[str, FixedPoint]:
        before = {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})
        if self.price is None:
            return before
        steps = torch.full((len(self.price.rows),), 2.0**-self.weight.fraction_bits)
        count = self.price.rows.shape[1] - self.price.has_bias
        # A code that was trained to be 0 is 0 for less than what would make up for others.
        zeros = self.price.rows == 0
        zeros[:, count:] = False
        codes, means = conditioned(self.price, self.price.rows, steps, nats_per_bit, zeros)
        weight = layer.layer_type.from_rows(codes[:, :count], self.weight.codes.shape, layer_groups(node)).contiguous()
        if self.weight.grid and not fits_integers(weight, self.weight.grid):
            return before
        found = {"weight": self.weight.with_codes(weight)}
        if self.bias is not None:
            moved = means[:, -1] if self.price.has_bias else self.bias.values()
            found["bias"] = self.bias.with_codes((moved.double() * 2.0**self.bias.fraction_bits).round().long())
        return found


def _on_grid(moments: Tensor, grid: tuple[int, ...], has_bias: bool) -> Tensor:
    """Second moments of cosine coefficients' inputs, ``(groups, n, n)``; that of the constant stays the last."""
    if not grid:
        return moments
    count = moments.shape[-1] - has_bias
    for _ in range(2):
        moved = to_cosines(moments[..., :count].contiguous(), grid)
        moments = torch.cat([moved, moments[..., count:]], -1).transpose(-1, -2)
    return moments
