"""Tensors of a file: how each is described in the header, and its numbers in the range-coded stream."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import CompressedFileError, UnsupportedNetworkError
from ..graph.limits import Cost
from ..quantisation.cosine import fits_integers
from ..quantisation.cosine import frequencies as spatial_frequencies
from ..quantisation.fixed_point import FixedPoint
from ..quantisation.grids import MOST_ADAPTIVE, MOST_SIDE
from .coder import Decoder, Encoder, adaptive_bits, frequencies
from .contents import DTYPES, Floats, Integers, Selection, Stored

#: kinds of tensors, by their number in a file.
NUMBERS, INTEGERS, SELECTION, BUFFER, ADAPTIVE, COSINES, FLOATS, TYPED, ROWS, MANY_ROWS = range(10)

#: kinds of tensors that version 4 of the format added.
SINCE_4 = (FLOATS, TYPED)

#: kinds of tensors that version 5 added: rows with steps of their own, in contexts or, where they are many, by a table.
SINCE_5 = (ROWS, MANY_ROWS)

#: kinds that are decoded bit by bit, which a file may hold a limited number of.
BIT_BY_BIT = (ADAPTIVE, COSINES, ROWS)

# How much larger than the smallest a row's step may be, in parts of an octave.
_MOST_FINER = 1 << 9

# So few different numbers are listed, and then only told apart.
MOST_LISTED = 256

# More different codes than this are written as they are.
_TABLE_SYMBOLS = 4096

_MOST_OF_A_TENSOR = 1 << 16

# A number that is decoded bit by bit takes microseconds. Beyond so many of a file, a tensor's are only where that is at
# most this part of what they take otherwise.
_QUICK, _WORTH_WAITING = 1 << 16, 0.97

# Units of work (:class:`~pyro_bc.graph.limits.Limits`): of a number that is decoded bit by bit, of another, and of a
# multiplication of integers.
_BIT_BY_BIT, _SYMBOL, _INTEGER = 1 << 14, 1 << 8, 1


@dataclass(frozen=True)
class Plan:
    """A tensor's description in the header.

    ``limit`` is that of a selection's indices, ``listed`` the bit patterns of a tensor of few different numbers, and
    ``dtype`` the number of an integer's type.
    """

    kind: int
    shape: tuple[int, ...]
    fraction_bits: int = 0
    lowest: int = 0
    size: int = 0
    limit: int = 0
    grid: tuple[int, ...] = ()
    listed: tuple[int, ...] = ()
    dtype: int = 1


def bit_by_bit(plan: Plan) -> int:
    """How many of a tensor's numbers are decoded bit by bit: its codes, and the steps of its rows."""
    codes = math.prod(plan.shape) if plan.kind in BIT_BY_BIT else 0
    return codes + (plan.shape[0] if plan.kind in SINCE_5 else 0)


def decoding_cost(plans: Iterable[Plan]) -> Cost:
    """What it takes to decode tensors, and to make numbers of their codes."""
    work = memory = 0
    for plan in plans:
        numbers = plan.limit if plan.kind == SELECTION else math.prod(plan.shape)
        work += _BIT_BY_BIT * bit_by_bit(plan) + _SYMBOL * (numbers + min(plan.size, _TABLE_SYMBOLS))
        # Products of integers along every dimension of a grid, with a matrix that is computed.
        work += _INTEGER * numbers * sum(plan.grid) + _SYMBOL * sum(side**2 for side in plan.grid)
        memory += 8 * (3 + 2 * bool(plan.grid)) * numbers
    return Cost(work, memory)


def plans_of(
    tensors: Mapping[str, Stored], buffers: frozenset[str] = frozenset(), adaptive: bool = True
) -> dict[str, Plan]:
    """How every tensor is described and coded, by name.

    :param buffers: those that are no parameters, which are described so.
    :param adaptive: whether numbers may be coded adaptively where that is shorter, as far as a file may hold such.
    :raises UnsupportedNetworkError: where cosine coefficients are more or larger than a file takes.
    """
    cosines = {name: t for name, t in tensors.items() if isinstance(t, FixedPoint) and t.grid}
    for name, coefficients in cosines.items():
        if not fits_integers(coefficients.codes, coefficients.grid):
            raise UnsupportedNetworkError(
                f"the cosine coefficients of '{name}' are larger than a file can hold exactly: take a larger step, or "
                f"leave its grid out"
            )
    rows = sum(len(t.rows) for t in tensors.values() if isinstance(t, FixedPoint) and t.rows is not None)
    left = MOST_ADAPTIVE - rows - sum(tensor.codes.numel() for tensor in cosines.values())
    if left < 0 or any(max(tensor.grid) > MOST_SIDE for tensor in cosines.values()):
        raise UnsupportedNetworkError(
            f"a file takes at most {MOST_ADAPTIVE:,} cosine coefficients and rows, over grids of at most {MOST_SIDE} a "
            f"side; leave a grid out"
        )
    plans = {}
    quick = _QUICK
    for name, tensor in tensors.items():
        plans[name] = _plan(tensor, name in buffers, left if adaptive else 0, quick)
        if plans[name].kind in (ADAPTIVE, ROWS):
            left -= math.prod(plans[name].shape)
            quick -= math.prod(plans[name].shape)
    return plans


def _plan(tensor: Stored, buffer: bool, most_adaptive: int, quick: int) -> Plan:
    if isinstance(tensor, Selection):
        return Plan(SELECTION, (len(tensor.indices),), limit=tensor.size)
    shape = tuple(tensor.codes.shape)
    if isinstance(tensor, Floats):
        # That a number is trained is one more bit of a length that is at most the number of those listed.
        different = tensor.codes.unique()
        return Plan(
            FLOATS, shape, int(buffer), listed=tuple(different.tolist()) if len(different) <= MOST_LISTED else ()
        )
    lowest, size = _range(tensor.codes)
    if isinstance(tensor, Integers):
        kind = INTEGERS if tensor.dtype == torch.int64 else TYPED
        return Plan(kind, shape, 0, lowest, size, dtype=DTYPES.index(tensor.dtype))
    if tensor.rows is not None:
        kind = ROWS if tensor.codes.numel() <= most_adaptive else MANY_ROWS
        return Plan(kind, shape, tensor.fraction_bits, lowest, size)
    if tensor.grid:
        return Plan(COSINES, shape, tensor.fraction_bits, grid=tensor.grid)
    fits = not buffer and tensor.codes.numel() <= min(_MOST_OF_A_TENSOR, most_adaptive)
    part = 1.0 if tensor.codes.numel() <= quick else _WORTH_WAITING
    if fits and _adaptive_is_shorter(tensor.codes.flatten().numpy(), size, lowest, part):
        return Plan(ADAPTIVE, shape, tensor.fraction_bits)
    return Plan(BUFFER if buffer else NUMBERS, shape, tensor.fraction_bits, lowest, size)


def _adaptive_is_shorter(codes: np.ndarray, size: int, lowest: int, part: float) -> bool:
    """Whether it takes at most this part of what else would."""
    described = 8 * (1 + (lowest.bit_length() + 1) // 7 + 1 + size.bit_length() // 7)  # lowest code, number of codes
    other = described + min(_table_bits(codes, size, lowest), len(codes) * _uniform_bits(size))
    return adaptive_bits(codes) <= part * other


def _range(codes: Tensor) -> tuple[int, int]:
    """Lowest code, and how many codes there are up to the highest."""
    lowest = int(codes.min())
    return lowest, int(codes.max()) - lowest + 1


def _uniform_bits(size: int) -> int:
    return (size - 1).bit_length()


def _table_bits(codes: np.ndarray, size: int, lowest: int) -> float:
    """Length of codes behind the table of their frequencies; infinite where the table would be too large."""
    if size > _TABLE_SYMBOLS:
        return math.inf
    counts = frequencies(codes, size, lowest)
    present = counts[counts > 0]
    return 5 * size - float((present * np.log2(present / len(codes))).sum())


def encode_tensor(coder: Encoder, tensor: Stored, plan: Plan) -> None:
    """Write a tensor's numbers as its plan says."""
    if isinstance(tensor, Selection):
        read = np.zeros(tensor.size, dtype=np.int64)
        read[tensor.indices.numpy()] = 1
        coder.table(read, 2)
        return
    codes = tensor.codes.flatten().numpy()
    if plan.kind in SINCE_5:
        assert isinstance(tensor, FixedPoint) and tensor.rows is not None
        coder.adaptive(np.diff(tensor.rows.numpy(), prepend=0))
    if plan.kind == ROWS:
        coder.contextual(codes.reshape(plan.shape[0], -1))
        return
    if plan.kind == FLOATS:
        if not plan.listed:
            coder.uniform(codes >> 16, 16)
            coder.uniform(codes & 0xFFFF, 16)
        elif len(plan.listed) > 1:
            coder.table(np.searchsorted(plan.listed, codes), len(plan.listed))
        return
    if plan.kind in (ADAPTIVE, COSINES):
        coder.adaptive(codes, _classes(plan.shape, plan.grid))
        return
    lowest, size = plan.lowest, plan.size
    with_table = False
    if 1 < size <= _TABLE_SYMBOLS:
        with_table = _table_bits(codes, size, lowest) < len(codes) * _uniform_bits(size)
        coder.uniform(np.array([with_table]), 1)
    if with_table:
        coder.table(codes, size, lowest)
    else:
        coder.uniform(codes, _uniform_bits(size), lowest)


def decode_tensor(coder: Decoder, plan: Plan) -> Stored:
    """Read back what :func:`encode_tensor` wrote.

    :raises CompressedFileError: where the stream does not fit the plan.
    """
    if plan.kind == SELECTION:
        indices = np.flatnonzero(coder.table(plan.limit, 2))
        if len(indices) != plan.shape[0]:
            raise CompressedFileError("the file's indices are not as many as it says")
        return Selection(torch.from_numpy(indices), plan.limit)
    count = math.prod(plan.shape)
    rows = _decode_rows(coder, plan.shape[0]) if plan.kind in SINCE_5 else None
    if plan.kind == ROWS:
        read = coder.contextual(plan.shape[0], count // plan.shape[0])
        return FixedPoint(torch.from_numpy(read.reshape(plan.shape)), plan.fraction_bits, rows=rows)
    if plan.kind == FLOATS:
        if plan.listed:
            which = coder.table(count, len(plan.listed)) if len(plan.listed) > 1 else np.zeros(count, np.int64)
            patterns = np.array(plan.listed, dtype=np.int64)[which]
        else:
            high = coder.uniform(count, 16)
            patterns = high << 16 | coder.uniform(count, 16)
        return Floats(torch.from_numpy(patterns.astype(np.uint32).view(np.float32).reshape(plan.shape)))
    if plan.kind in (ADAPTIVE, COSINES):
        read = coder.adaptive(count, _classes(plan.shape, plan.grid))
        codes = torch.from_numpy(read.reshape(plan.shape))
        if plan.grid and not fits_integers(codes, plan.grid):
            raise CompressedFileError("the file's cosine coefficients are larger than is allowed")
        return FixedPoint(codes, plan.fraction_bits, plan.grid)
    with_table = 1 < plan.size <= _TABLE_SYMBOLS and bool(coder.uniform(1, 1)[0])
    bits, lowest = _uniform_bits(plan.size), plan.lowest
    read = coder.table(count, plan.size, lowest) if with_table else coder.uniform(count, bits, lowest)
    codes = torch.from_numpy(read.reshape(plan.shape))
    if plan.kind in (INTEGERS, TYPED):
        if plan.kind == TYPED and not torch.equal(codes, codes.to(DTYPES[plan.dtype]).long()):
            raise CompressedFileError("the file holds integers beyond their type")
        return Integers(codes, DTYPES[plan.dtype])
    return FixedPoint(codes, plan.fraction_bits, rows=rows)


def _decode_rows(coder: Decoder, count: int) -> Tensor:
    rows = np.cumsum(coder.adaptive(count))
    if len(rows) and not (rows.min() >= 0 and rows.max() <= _MOST_FINER):
        raise CompressedFileError("the file's rows have steps out of range")
    return torch.from_numpy(rows)


def _classes(shape: tuple[int, ...], grid: tuple[int, ...]) -> np.ndarray | None:
    """Classes of the codes of a tensor in the adaptive model: the frequencies of cosine coefficients."""
    if not grid:
        return None
    of_grid = spatial_frequencies(grid).numpy()
    return np.tile(of_grid, math.prod(shape) // len(of_grid))
