r"""Rounding that conditions on the posterior, with the length of the code in the loop.

Where the entries of a row w are correlated under the posterior, rounding one of them says something of the others. Let
the row's precision be :math:`P = c A` and U the upper Cholesky factor of :math:`A^{-1}`. Entries are rounded one after
the other; rounding entry j to q costs

.. math:: \tfrac12\, c\, (w_j - q)^2 / U_{jj}^2 \quad\text{nats},

the price of that value under the entry's posterior given those rounded before, and the mean of those not yet rounded
moves by :math:`-(w_j - q)\, U_{jk} / U_{jj}`, k > j (optimal brain surgeon, Hassibi and Stork 1993; column by column as
Frantar et al. 2022, 2210.17323). q is what costs least together with its code: nats plus :math:`\lambda` times its
bits, 0 always among the candidates (Conzelmann and Bamler 2025). At high rate the best step of a row is
:math:`\Delta^2 = 6 \lambda / (\ln 2 \cdot \tfrac12 c\, m)`, m the geometric mean of :math:`1 / U_{jj}^2`: one
:math:`\lambda`, in nats per bit, sets all steps of a network. A mean-field posterior is the diagonal case: entries are
told nothing by each other.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .fixed_point import STEPS_PER_OCTAVE

# Entries that are rounded before the others are moved, all at once.
_BLOCK = 64

# Part of the mean of A's diagonal that is added to it.
_FLOOR = 0.01

# Densities of rows and columns that are told apart (file/coder.py, contextual), and magnitudes that are.
_DENSITIES, _MAGNITUDES = 7, 64

# How many integers of a context the layer's own probability counts for.
_BELIEF = 4


class CodeLengths:
    """Lengths, in bits, that integers in rows and columns have in the contexts of a file, estimated from such integers.

    :param codes: ``(rows, columns)``, as they were rounded before.
    """

    def __init__(self, codes: Tensor):
        present = codes != 0
        by_row = _density(present.sum(1), codes.shape[1])[:, None]
        by_column = _density(present.sum(0), codes.shape[0])[None]
        context = (_DENSITIES * by_row + by_column).flatten()
        seen = torch.bincount(context, minlength=_DENSITIES**2).double()
        yes = torch.bincount(context, present.flatten().double(), minlength=_DENSITIES**2)
        own = (present.sum() + 0.5) / (present.numel() + 1)
        probability = ((yes + _BELIEF * own) / (seen + _BELIEF))[context].reshape(codes.shape)
        #: of a 0, and of the decision that an integer is none with its sign, ``(rows, columns)``.
        self.zero, self.nonzero = -torch.log2(1 - probability).float(), 1 - torch.log2(probability).float()
        magnitudes = codes.abs().flatten().clamp(max=_MAGNITUDES)
        counts = torch.bincount(magnitudes, minlength=_MAGNITUDES + 1).double()
        at_least = counts.flip(0).cumsum(0).flip(0)
        more = (at_least[2:] + 0.5) / (at_least[1:-1] + 1)  # that a magnitude is above 1, 2, …
        bits = torch.zeros(_MAGNITUDES + 1, dtype=torch.float64)
        bits[2:] = -torch.log2(more).cumsum(0)
        bits[1:-1] -= torch.log2(1 - more)
        #: of the magnitude of an integer that is not 0, ``(magnitudes,)``.
        self.magnitude = bits.float()

    def total(self, codes: Tensor) -> float:
        """Bits of all integers, ``(rows, columns)``."""
        magnitudes = codes.abs()
        rest = self.nonzero + self.magnitude[magnitudes.clamp(max=_MAGNITUDES)]
        return float(torch.where(magnitudes == 0, self.zero, rest).sum())


def _density(present: Tensor, size: int) -> Tensor:
    ratio = (2 * size + 2) / (2 * present.double() + 1)
    return ratio.log2().floor().long().clamp(0, _DENSITIES - 1)


@dataclass(frozen=True)
class Factor:
    """The upper Cholesky factor of an inverse second moment, for entries in the order in which they are rounded.

    :param order: of the entries, ``(groups, n)``.
    :param upper: U, ``(groups, n, n)``.
    """

    order: Tensor
    upper: Tensor


def factorised(inputs: Tensor, bias: bool = False) -> Factor:
    """The factor of one block of a layer's second moments, ``(groups, n, n)``.

    Entries of large second moments are rounded first, a bias last, since it can make up for all of them.

    :param bias: whether the last entry is one.
    """
    diagonal = inputs.diagonal(dim1=-2, dim2=-1)
    key = diagonal.clone()
    if bias:
        key[:, -1] = -1
    order = key.argsort(dim=-1, descending=True, stable=True)
    index = order.unsqueeze(-1)
    permuted = inputs.take_along_dim(index, -2).take_along_dim(index.transpose(-1, -2), -1).double()
    floor = _FLOOR * diagonal.double().mean(-1).clamp_min(1e-12)
    permuted.diagonal(dim1=-2, dim2=-1).add_(floor.unsqueeze(-1))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(permuted))
    return Factor(order, torch.linalg.cholesky(inverse, upper=True).float())


def steps_of(cost: Tensor, factor: Factor, nats_per_bit: float) -> Tensor:
    """Exponents e of the rows' best steps, 2^(e / STEPS_PER_OCTAVE), ``(rows,)`` integers.

    :param cost: precision c of each row, ``(rows,)``; rows of one group are neighbours.
    """
    log_m = -2 * factor.upper.diagonal(dim1=-2, dim2=-1).log().mean(-1)  # (groups,)
    by_row = log_m.repeat_interleave(len(cost) // len(log_m))
    log_step = 0.5 * (math.log(6 * nats_per_bit / (math.log(2) * 0.5)) - cost.log() - by_row)
    return (STEPS_PER_OCTAVE * log_step / math.log(2)).round().long()


def round_rows(
    rows: Tensor, cost: Tensor, factor: Factor, steps: Tensor, nats_per_bit: float, lengths: CodeLengths
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of a block of rows, where the rows are then, and the nats that rounding to the codes costs.

    :param rows: posterior means, ``(rows, n)``; rows of one group are neighbours.
    :param cost: precision c of each row, ``(rows,)``.
    :param steps: of each row, ``(rows,)``.
    :returns: integers ``(rows, n)``; the conditional means to which they were rounded, of the same shape; the nats of
        each row, ``(rows,)``.
    """
    groups = len(factor.order)
    of_group = torch.arange(groups).repeat_interleave(len(rows) // groups)
    order = factor.order[of_group]
    values = rows.take_along_dim(order, 1).clone()
    codes = torch.zeros(rows.shape, dtype=torch.long)
    nats = torch.zeros(len(rows))
    upper = factor.upper
    for start in range(0, rows.shape[1], _BLOCK):
        stop = min(start + _BLOCK, rows.shape[1])
        errors = torch.zeros(len(rows), stop - start)
        for j in range(start, stop):
            pivot = upper[:, j, j][of_group]
            price = 0.5 * cost / pivot.square()
            codes[:, j] = cheapest(values[:, j], price, steps, nats_per_bit, lengths, order[:, j])
            error = values[:, j] - codes[:, j] * steps
            nats += price * error.square()
            errors[:, j - start] = error / pivot
            if j + 1 < stop:
                values[:, j + 1 : stop] -= errors[:, j - start, None] * upper[:, j, j + 1 : stop][of_group]
        if stop < rows.shape[1]:
            moves = torch.bmm(errors.unflatten(0, (groups, -1)), upper[:, start:stop, stop:])
            values[:, stop:] -= moves.flatten(0, 1)
    return torch.zeros_like(codes).scatter_(1, order, codes), torch.zeros_like(rows).scatter_(1, order, values), nats


def cheapest_entries(values: Tensor, price: Tensor, steps: Tensor, nats_per_bit: float, lengths: CodeLengths) -> Tensor:
    """The code of each value that costs least, nats and bits together, ``(rows, columns)``.

    :param values: all of them, ``(rows, columns)``.
    :param price: nats of a squared error of 1, of their shape.
    :param steps: of each row, ``(rows, 1)``.
    """
    return _cheapest(values, price, steps, nats_per_bit, lengths.zero, lengths.nonzero, lengths.magnitude)


def cheapest(
    values: Tensor, price: Tensor, steps: Tensor, nats_per_bit: float, lengths: CodeLengths, column: Tensor
) -> Tensor:
    """Likewise of one value of each row, ``(rows,)``; so are ``price`` and ``steps``.

    :param column: where each value stands in its row.
    """
    zero, nonzero = (table.gather(1, column[:, None])[:, 0] for table in (lengths.zero, lengths.nonzero))
    return _cheapest(values, price, steps, nats_per_bit, zero, nonzero, lengths.magnitude)


def _cheapest(
    values: Tensor, price: Tensor, steps: Tensor, nats_per_bit: float, zero: Tensor, nonzero: Tensor, magnitude: Tensor
) -> Tensor:
    low = (values / steps).floor()
    costs = []
    for code in (low, low + 1):
        bits = nonzero + magnitude[code.abs().long().clamp(max=_MAGNITUDES)]
        cost = price * (values - code * steps).square() + nats_per_bit * bits
        costs.append(torch.where(code == 0, torch.inf, cost))
    nearest = torch.where(costs[1] < costs[0], low + 1, low)
    least = torch.minimum(*costs)
    return torch.where(price * values.square() + nats_per_bit * zero <= least, 0.0, nearest).long()
