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
        bits = torch.zeros(_MAGNITUDES + 1, dtype=torch.float64, device=codes.device)
        bits[2:] = -torch.log2(more).cumsum(0)
        bits[1:-1] -= torch.log2(1 - more)
        bits[0] = math.inf  # 0 has no such decision
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
    # From the last entry to the first, A = V V' with V upper: then U is V's inverse.
    last_first = torch.linalg.cholesky(permuted.flip(-1, -2)).flip(-1, -2)
    identity = torch.eye(permuted.shape[-1], dtype=permuted.dtype)
    return Factor(order, torch.linalg.solve_triangular(last_first, identity, upper=True).float())


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
    groups, size = len(factor.order), rows.shape[1]
    order = factor.order[:, :, None]

    def columns(of_rows: Tensor) -> Tensor:  # (groups, n, rows of the group): what is read at once lies together
        grouped = of_rows.unflatten(0, (groups, -1)).transpose(1, 2)
        return grouped.take_along_dim(order, 1).contiguous()

    def whole(of_columns: Tensor) -> Tensor:
        places = order.expand(of_columns.shape)
        return torch.zeros_like(of_columns).scatter_(1, places, of_columns).transpose(1, 2).flatten(0, 1)

    values, zero, nonzero = columns(rows), columns(lengths.zero), columns(lengths.nonzero)
    steps = steps.unflatten(0, (groups, -1))
    pivots = factor.upper.diagonal(dim1=-2, dim2=-1)[:, :, None]
    price = 0.5 * cost.unflatten(0, (groups, 1, -1)) / pivots.square()
    codes = torch.zeros_like(values)
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        errors = torch.zeros_like(values[:, start:stop])
        for j in range(start, stop):
            own = values[:, j]
            code = _cheapest(own, price[:, j], steps, nats_per_bit, zero[:, j], nonzero[:, j], lengths.magnitude)
            error = torch.div(own - code * steps, pivots[:, j], out=errors[:, j - start])
            codes[:, j] = code
            if j + 1 < stop:
                values[:, j + 1 : stop] -= factor.upper[:, j, j + 1 : stop, None] * error[:, None]
        if stop < size:
            values[:, stop:].baddbmm_(factor.upper[:, start:stop, stop:].transpose(1, 2), errors, alpha=-1)
    nats = (price * (values - codes * steps[:, None]).square()).sum(1).flatten()
    return whole(codes).long(), whole(values), nats


def cheapest_entries(values: Tensor, price: Tensor, steps: Tensor, nats_per_bit: float, lengths: CodeLengths) -> Tensor:
    """The code of each value that costs least, nats and bits together, ``(rows, columns)``.

    :param values: all of them, ``(rows, columns)``.
    :param price: nats of a squared error of 1, of their shape.
    :param steps: of each row, ``(rows, 1)``.
    """
    return _cheapest(values, price, steps, nats_per_bit, lengths.zero, lengths.nonzero, lengths.magnitude).long()


def _cheapest(
    values: Tensor, price: Tensor, steps: Tensor, nats_per_bit: float, zero: Tensor, nonzero: Tensor, magnitude: Tensor
) -> Tensor:
    low = (values / steps).floor()
    both = torch.stack([low, low + 1])
    lengths = magnitude[both.abs().clamp_(max=_MAGNITUDES).long()].add_(nonzero)
    costs = (values - both * steps).square_().mul_(price).add_(lengths, alpha=nats_per_bit)
    nearest = torch.where(costs[1] < costs[0], both[1], low)
    keeps = price * values.square() + nats_per_bit * zero > torch.minimum(costs[0], costs[1])
    return nearest * keeps
