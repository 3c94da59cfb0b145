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
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: a row's step is two to the power of a whole number of these.
STEPS_PER_OCTAVE = 4

# Entries that are rounded before the others are moved, all at once.
_BLOCK = 64

# Part of the mean of A's diagonal that is added to it, and of the rows' mean precision that every row has at least.
_FLOOR, _LEAST = 0.01, 1e-4

#: code lengths in bits, of the shape of some magnitudes.
Bits = Callable[[Tensor], Tensor]


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
    rows: Tensor, cost: Tensor, factor: Factor, steps: Tensor, nats_per_bit: float, bits: Bits
) -> tuple[Tensor, Tensor]:
    """Codes of a block of rows, and the nats that rounding to them costs.

    :param rows: posterior means, ``(rows, n)``; rows of one group are neighbours.
    :param cost: precision c of each row, ``(rows,)``.
    :param steps: of each row, ``(rows,)``.
    :param bits: length of a code by its magnitude.
    :returns: integers ``(rows, n)`` and the nats of each row, ``(rows,)``.
    """
    groups = len(factor.order)
    of_group = torch.arange(groups).repeat_interleave(len(rows) // groups)
    order = factor.order[of_group]
    values = rows.take_along_dim(order, 1).clone()
    codes = torch.zeros(rows.shape, dtype=torch.long)
    nats = torch.zeros(len(rows))
    upper = factor.upper
    step = steps[:, None]
    zero_bits = nats_per_bit * bits(torch.zeros((), dtype=torch.long))
    for start in range(0, rows.shape[1], _BLOCK):
        stop = min(start + _BLOCK, rows.shape[1])
        errors = torch.zeros(len(rows), stop - start)
        for j in range(start, stop):
            pivot = upper[:, j, j][of_group]
            scale = 0.5 * cost / pivot.square()
            value = values[:, j]
            low = (value[:, None] / step).floor()
            candidates = torch.cat([low, low + 1], 1)
            priced = scale[:, None] * (value[:, None] - candidates * step).square()
            priced = priced + nats_per_bit * bits(candidates.abs().long())
            best, which = priced.min(1)
            code = candidates.gather(1, which[:, None])[:, 0]
            code = torch.where(scale * value.square() + zero_bits <= best, 0.0, code)
            error = value - code * steps
            nats += scale * error.square()
            codes[:, j] = code.long()
            errors[:, j - start] = error / pivot
            if j + 1 < stop:
                values[:, j + 1 : stop] -= errors[:, j - start, None] * upper[:, j, j + 1 : stop][of_group]
        if stop < rows.shape[1]:
            moves = torch.bmm(errors.unflatten(0, (groups, -1)), upper[:, start:stop, stop:])
            values[:, stop:] -= moves.flatten(0, 1)
    return torch.zeros_like(codes).scatter_(1, order, codes), nats
