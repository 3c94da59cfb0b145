"""Numbers on a grid: integer codes times a step that is a power of two."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .cosine import NUMBER_BITS, decode_cosines

_PART = 1 << 20

#: rows' own steps are powers of two to a whole number of these parts.
STEPS_PER_OCTAVE = 4
# 2^(k/4), the same doubles on every machine.
_FINE = (1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429)


@dataclass(frozen=True)
class FixedPoint:
    """Numbers on a grid.

    :param codes: integers (int64), of the tensor's shape.
    :param fraction_bits: t; the step is :math:`2^{-t}`, and negative t is allowed.
    :param grid: where the codes are cosine coefficients (:mod:`pyro_bc.quantisation.cosine`), sizes of the
        spatial grid in the tensor's last entries; empty where they are the numbers themselves.
    :param rows: where every row (entry of the first dimension) has a step of its own, how many quarters of an octave it
        is larger than :math:`2^{-t}`, ``(rows,)`` integers, not negative.
    """

    codes: Tensor
    fraction_bits: int
    grid: tuple[int, ...] = ()
    rows: Tensor | None = None

    def with_codes(self, codes: Tensor, rows: Tensor | None = None) -> "FixedPoint":
        """The same steps for other codes.

        :param rows: indices of the rows that are left, where some are not.
        """
        own = self.rows if self.rows is None or rows is None else self.rows[rows]
        return replace(self, codes=codes, rows=own)

    @property
    def bits(self) -> int:
        """Bits of a signed integer that holds every code, at least 1."""
        low, high = int(self.codes.min()), int(self.codes.max())
        return max(1, 1 + max(high.bit_length(), (-low - 1).bit_length() if low < 0 else 0))

    def values(self) -> Tensor:
        """The numbers themselves, float32, of the shape of ``codes``; the same on every machine.

        A code of up to 24 bits is exact; where there is a grid, what its integer transform comes to is rounded.
        """
        codes, fraction_bits = self.codes, self.fraction_bits
        if self.grid:
            codes, fraction_bits = decode_cosines(codes, self.grid), fraction_bits + NUMBER_BITS
        if self.rows is not None:
            return replace(self, codes=codes, fraction_bits=fraction_bits)._with_rows()
        result = torch.empty(self.codes.shape, device=self.codes.device, dtype=torch.float32)
        flat = codes.reshape(-1)
        for start in range(0, len(flat), _PART):  # in float64 a part at a time: layers may be large
            part = slice(start, start + _PART)
            result.view(-1)[part] = flat[part].double() * 2.0**-fraction_bits
        return result

    def steps(self) -> Tensor:
        """What the codes are multiples of, float64: of every row, ``(rows,)``, or of all, ``()``."""
        device = self.codes.device
        if self.rows is None:
            return torch.tensor(2.0**-self.fraction_bits, dtype=torch.float64, device=device)
        octaves, fine = self.rows // STEPS_PER_OCTAVE, self.rows % STEPS_PER_OCTAVE
        table = torch.tensor(_FINE, dtype=torch.float64, device=device)
        return torch.ldexp(table[fine.to(device)], (octaves - self.fraction_bits).to(device))

    def _with_rows(self) -> Tensor:
        return (self.codes.double() * self.steps().reshape(-1, *[1] * (self.codes.dim() - 1))).float()
