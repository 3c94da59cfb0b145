r"""Integers to bytes: one range-coded stream, with models that are integers themselves.

Everything that a file holds beyond its header goes through one coder (constriction's range coder), so that no
section is padded. A symbol's probability comes from a table of small integers which the file carries, quantised
to half-octaves: :math:`f \in \{0\} \cup \{\lfloor 2^{4 + c/2} \rfloor : c = 0 \dots 30\}`, five bits an entry. Against
the exact frequencies this costs about 0.01 bits a symbol. Probabilities are ratios of integers below 2^53, which every
machine with IEEE arithmetic computes alike.
"""

import math
from collections.abc import Sequence

import constriction
import numpy as np

from .errors import CompressedFileError

# Entry c of a table stands for this frequency; entry 0 for a symbol that does not occur.
_FREQUENCIES = np.array([0, *(math.isqrt(2 ** (8 + c)) for c in range(31))], dtype=np.int64)
# Symbols of one table: codes are at most 24 bits wide, but a table of 2^16 is already longer than any layer needs.
_MOST_SYMBOLS = 1 << 16
_UNIFORM_BITS = 12


class Encoder:
    """Collects symbols; :meth:`data` returns them as bytes."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()

    def uniform(self, symbols: np.ndarray, bits: int) -> None:
        """Integers in [0, 2^bits), each of ``bits`` bits; up to 24."""
        for shift in range(0, bits, _UNIFORM_BITS):
            part = min(_UNIFORM_BITS, bits - shift)
            digits = (np.asarray(symbols, dtype=np.int64) >> shift) & ((1 << part) - 1)
            self._coder.encode(digits.astype(np.int32), _uniform_model(part))

    def table(self, symbols: np.ndarray, size: int) -> None:
        """Integers in [0, size), after the table of their frequencies."""
        counts = np.bincount(symbols, minlength=size)
        entries = _entries(counts)
        self.uniform(entries, 5)
        if np.count_nonzero(entries) > 1:
            self._coder.encode(np.asarray(symbols, dtype=np.int32), _table_model(entries))

    def data(self) -> bytes:
        """All symbols so far, as bytes without the final zeros that a decoder adds by itself."""
        words = self._coder.get_compressed().astype("<u4").tobytes()
        return words.rstrip(b"\0")


class Decoder:
    """Reads what :class:`Encoder` wrote, in the same order."""

    def __init__(self, data: bytes) -> None:
        padded = data + b"\0" * (-len(data) % 4)
        self._coder = constriction.stream.queue.RangeDecoder(np.frombuffer(padded, dtype="<u4").astype(np.uint32))
        self._bits = 0.0

    def take_bits(self) -> float:
        """Information content, in bits, of what was decoded since the last call."""
        bits, self._bits = self._bits, 0.0
        return bits

    def _decode(self, model, count: int) -> np.ndarray:
        try:
            return self._coder.decode(model, count)
        except AssertionError as error:
            raise CompressedFileError(f"the file's data does not fit its header ({error})") from None

    def uniform(self, count: int, bits: int) -> np.ndarray:
        """``count`` integers in [0, 2^bits), int64."""
        result = np.zeros(count, dtype=np.int64)
        self._bits += bits * count
        for shift in range(0, bits, _UNIFORM_BITS):
            part = min(_UNIFORM_BITS, bits - shift)
            result |= self._decode(_uniform_model(part), count).astype(np.int64) << shift
        return result

    def table(self, count: int, size: int) -> np.ndarray:
        """``count`` integers in [0, size), int64."""
        if not 0 < size <= _MOST_SYMBOLS:
            raise CompressedFileError(f"the file claims a table of {size} symbols")
        entries = self.uniform(size, 5)
        present = np.flatnonzero(entries)
        if len(present) == 0:
            raise CompressedFileError("the file holds a table without symbols")
        if len(present) == 1:
            return np.full(count, present[0], dtype=np.int64)
        symbols = self._decode(_table_model(entries), count).astype(np.int64)
        frequencies = np.maximum(_FREQUENCIES[entries], 1)
        self._bits -= float(np.log2(frequencies[symbols] / _FREQUENCIES[entries].sum()).sum())
        return symbols


def _uniform_model(bits: int):
    return constriction.stream.model.Uniform(1 << bits)


def _entries(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """The nearest table entry of every count, scaled so that the largest fits; 0 only where the count is 0."""
    counts = np.asarray(counts, dtype=np.int64)
    largest = max(int(counts.max()), 1)
    scale = min(1.0, 2**15 / largest)
    entries = np.rint(2 * np.log2(np.maximum(counts * scale, 1))).astype(np.int64) + 1
    return np.where(counts > 0, np.clip(entries, 1, len(_FREQUENCIES) - 1), 0)


def _table_model(entries: np.ndarray):
    frequencies = _FREQUENCIES[entries].astype(np.float64)
    return constriction.stream.model.Categorical(frequencies / frequencies.sum(), perfect=False)
