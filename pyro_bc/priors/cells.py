r"""Densities for a posterior that is as wide as a quantiser's step, and for a prior that is a code.

A weight that will be stored as an integer code is known no better than to the cell that rounds to that code. Its
posterior is uniform over a cell, :class:`Cell`. Against a prior that is smoothed by the same cell,
:class:`LaplaceCells`,

.. math:: \mathrm{KL}(q\|p) = \mathbb{E}_{v \sim q}\left[-\log P(v - \tfrac12 < V < v + \tfrac12)\right],

which at the integers is the length of the code that an entropy coder with the prior's probabilities gives it: the KL
is the rate (Ballé et al. 2017, 1611.01704, section 2; Oktay et al. 2020, 1906.06624, section 3, for weights). Values
are in units of the step.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

# A probability below this costs 30 bits: more than any code takes, and far from where float32 has no logarithm.
_LEAST = 1e-9


class Cell(TorchDistribution):
    """Uniform over a cell of width 1 around a centre, drawn with a reparameterized gradient.

    :param centre: any shape.

    >>> Cell(torch.tensor([0.0, 2.0])).log_prob(torch.tensor([0.3, 2.0]))
    tensor([0., 0.])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real
    has_rsample = True

    def __init__(self, centre: Tensor):
        self.centre = centre
        super().__init__(centre.shape, torch.Size(), validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "Cell":
        return Cell(self.centre.expand(batch_shape))

    @property
    def mean(self) -> Tensor:
        return self.centre

    @property
    def variance(self) -> Tensor:
        return torch.full_like(self.centre, 1 / 12)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.centre.shape
        return self.centre + torch.rand(shape, dtype=self.centre.dtype, device=self.centre.device) - 0.5

    def icdf(self, level: Tensor) -> Tensor:
        """Quantiles, in the shape that ``level`` and the centres broadcast to."""
        return self.centre + level - 0.5

    def log_prob(self, value: Tensor) -> Tensor:
        """0 wherever draws and codes are; it is not checked that ``value`` lies in the cell."""
        return torch.zeros_like(value)


class LaplaceCells(TorchDistribution):
    r"""A mixture of Laplace densities at zero, smoothed by a cell of width 1.

    :math:`p(v) = \sum_k \pi_k \, [F_k(v + \tfrac12) - F_k(v - \tfrac12)]` with the distribution function :math:`F_k` of
    a Laplace density of scale :math:`b_k`. A narrow component is the probability of a zero, the others say how large
    what is left may be.

    :param log_scales: :math:`\log b_k`, ``(classes, components)``.
    :param logits: of :math:`\pi_k`, same shape.
    :param membership: to which class each of the batch's last entries belongs, the same for all that come before them:
        ``(classes, cells)``, a 1 in each column; None where there is one class.
    :param shape: batch shape.

    >>> p = LaplaceCells(torch.zeros(1, 1), torch.zeros(1, 1), shape=(3,))
    >>> p.log_prob(torch.arange(3.0)).exp()
    tensor([0.3935, 0.1917, 0.0705])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real

    def __init__(self, log_scales: Tensor, logits: Tensor, membership: Tensor | None = None, shape: Sequence[int] = ()):
        self.log_scales, self.logits, self.membership = log_scales, logits, membership
        super().__init__(torch.Size(shape), torch.Size(), validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "LaplaceCells":
        return LaplaceCells(self.log_scales, self.logits, self.membership, batch_shape)

    def _by_cell(self, *tables: Tensor) -> tuple[Tensor, ...]:
        """Tables of ``(classes, components)`` as ``(components, cells)`` each.

        A product with ones and zeros: a compiler then computes a table's entries once, instead of for every code.
        """
        table = torch.cat(tables, 1)
        membership = table.new_ones(1, 1) if self.membership is None else self.membership
        return (table.T @ membership).split(tables[0].shape[1])

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        scales, probabilities = (t.T for t in self._by_cell(self.log_scales.exp(), self.logits.softmax(-1)))
        rows = math.prod(shape) // len(scales)
        scales, probabilities = (table.expand(rows, *table.shape) for table in (scales, probabilities))
        chosen = torch.distributions.Categorical(probabilities).sample()
        scale = scales.gather(-1, chosen[..., None])[..., 0].reshape(shape)
        noise = torch.rand(shape, dtype=scale.dtype, device=scale.device) - 0.5
        return torch.distributions.Laplace(torch.zeros_like(scale), scale).sample() + noise

    def log_prob(self, value: Tensor) -> Tensor:
        """:returns: the logarithm of the cell's probability around ``value``, of its shape; at least −20.7."""
        rates = (-self.log_scales).exp()  # 1/b of each component
        halves, sides = torch.exp(-0.5 * rates), torch.sinh(0.5 * rates)
        tables = self._by_cell(rates, halves, sides, self.logits.softmax(-1))
        v = value.abs().reshape(-1, tables[0].shape[1])
        holds_zero = v < 0.5
        total: Any = 0.0
        for rate, half, side, probability in zip(*tables, strict=True):
            tail = torch.exp(-v * rate)
            # The cell that holds 0 has 1 - exp(-1/2b) cosh(v/b). Both branches are computed, so neither may overflow.
            around = 1 - 0.5 * half * (tail + 1 / torch.maximum(tail, half))
            total = total + torch.where(holds_zero, around, tail * side) * probability
        return total.clamp_min(_LEAST).log().reshape(value.shape)
