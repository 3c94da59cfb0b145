r"""Integers to bytes: one range-coded stream, with models that are integers themselves.

Everything that a file holds beyond its header goes through one coder (constriction's range coder), so that no
section is padded. A symbol's probability comes from a table of small integers which the file carries, quantised
to half-octaves: :math:`f \in \{0\} \cup \{\lfloor 2^{4 + c/2} \rfloor : c = 0 \dots 30\}`, five bits an entry. Against
the exact frequencies this costs about 0.01 bits a symbol. Probabilities are ratios of integers below 2^53, which every
machine with IEEE arithmetic computes alike.
"""

import math
from collections.abc import Iterator, Sequence

import constriction
import numpy as np

from .errors import CompressedFileError

# Entry c of a table stands for this frequency; entry 0 for a symbol that does not occur.
_FREQUENCIES = np.array([0, *(math.isqrt(2 ** (8 + c)) for c in range(31))], dtype=np.int64)
# Symbols of one table: codes are at most 24 bits wide, but a table of 2^16 is already longer than any layer needs.
_MOST_SYMBOLS = 1 << 16
_UNIFORM_BITS = 12
# Symbols are coded so many at a time: what is needed beside the codes themselves stays small.
_PART = 1 << 20


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _PART, count)) for start in range(0, count, _PART))


def frequencies(codes: np.ndarray, size: int, lowest: int = 0) -> np.ndarray:
    """How often each of the integers from ``lowest`` up to ``lowest + size - 1`` occurs, ``(size,)``."""
    counts = np.zeros(size, dtype=np.int64)
    for part in _parts(len(codes)):
        counts += np.bincount(codes[part] - lowest, minlength=size)
    return counts


class Encoder:
    """Collects symbols; :meth:`data` returns them as bytes."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()

    def uniform(self, codes: np.ndarray, bits: int, lowest: int = 0) -> None:
        """Integers from ``lowest`` on, each of ``bits`` bits; up to 24."""
        for shift in range(0, bits, _UNIFORM_BITS):
            width = min(_UNIFORM_BITS, bits - shift)
            for part in _parts(len(codes)):
                digits = ((codes[part] - lowest) >> shift) & ((1 << width) - 1)
                self._coder.encode(digits.astype(np.int32), _uniform_model(width))

    def table(self, codes: np.ndarray, size: int, lowest: int = 0) -> None:
        """Integers from ``lowest`` up to ``lowest + size - 1``, after the table of their frequencies."""
        entries = _entries(frequencies(codes, size, lowest))
        self.uniform(entries, 5)
        if np.count_nonzero(entries) > 1:
            model = _table_model(entries)
            for part in _parts(len(codes)):
                self._coder.encode((codes[part] - lowest).astype(np.int32), model)

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

    def uniform(self, count: int, bits: int, lowest: int = 0) -> np.ndarray:
        """``count`` integers from ``lowest`` on, of ``bits`` bits, int64."""
        result = np.zeros(count, dtype=np.int64)
        self._bits += bits * count
        for shift in range(0, bits, _UNIFORM_BITS):
            model = _uniform_model(min(_UNIFORM_BITS, bits - shift))
            for part in _parts(count):
                result[part] |= self._decode(model, part.stop - part.start).astype(np.int64) << shift
        result += lowest
        return result

    def table(self, count: int, size: int, lowest: int = 0) -> np.ndarray:
        """``count`` integers from ``lowest`` up to ``lowest + size - 1``, int64."""
        if not 0 < size <= _MOST_SYMBOLS:
            raise CompressedFileError(f"the file claims a table of {size} symbols")
        entries = self.uniform(size, 5)
        present = np.flatnonzero(entries)
        if len(present) == 0:
            raise CompressedFileError("the file holds a table without symbols")
        if len(present) == 1:
            return np.full(count, lowest + present[0], dtype=np.int64)
        model, result = _table_model(entries), np.empty(count, dtype=np.int64)
        for part in _parts(count):
            result[part] = self._decode(model, part.stop - part.start)
        claimed = _FREQUENCIES[entries]
        probabilities = np.maximum(claimed, 1) / claimed.sum()
        self._bits -= float((frequencies(result, size) * np.log2(probabilities)).sum())
        result += lowest
        return result


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
