r"""Integers to bytes: one range-coded stream, with models that are integers themselves.

Everything that a file holds beyond its header goes through one coder (constriction's range coder), so that no
section is padded. Two models of integers:

``table``
    A symbol's probability comes from a table of small integers which the file carries, quantised to half-octaves:
    :math:`f \in \{0\} \cup \{\lfloor 2^{4 + c/2} \rfloor : c = 0 \dots 30\}`, five bits an entry. Against the exact
    frequencies this costs about 0.01 bits a symbol. For any number of symbols.
``adaptive``
    An integer v is a row of bits: 1 where it is not 0, else 0 and no more; 1 where it is negative; then, for m = 1, 2,
    … up to 15, 1 where :math:`|v| > m`, until the first 0. Where all fifteen are 1, :math:`r = |v| - 15` follows in
    binary, its d digits behind the first 1 announced by d ones and a 0. Signs, and all of r, have probability 1/2.
    Every other bit has a probability of being 1 that starts at 1/2 and is learned from the same bit of the integers
    before (Krichevsky and Trofimov 1981), counted anew for each tensor: :math:`p = (2 n_1 + 1) / (2 n + 2)` after n
    such bits, :math:`n_1` of them 1. Where integers come in classes, such as the frequency of a cosine coefficient,
    the first bit is counted by class, too, and the layer's probability stands for four bits seen before: :math:`p_c =
    (n_{c1} (2n + 2) + 4 (2 n_1 + 1)) / ((n_c + 4)(2n + 2))`. Nothing but the integers is stored, which is what small
    layers need, and reading it takes Python a microsecond or two a bit, which large ones do not.

``contextual``
    The adaptive model for integers in rows and columns, whose classes are what came before. Where c of the n integers
    seen in a column, or so far in the row, were not 0, its density is the logarithm to base 2, rounded down, of
    :math:`\lfloor (2n + 2)/(2c + 1) \rfloor`, at most 6. The class is 21 times the column's density, plus 3 times the
    row's, plus the magnitude of the integer to the left, at most 2 (0 where there is none).

Decoding is the same on every machine. Probabilities are ratios of integers below 2^53, rounded to IEEE doubles. The n
symbols of a model share the 2^24 parts of the coder's range: symbol i begins at :math:`i + \lfloor s\,(p_0 + \dots +
p_{i-1}) \rfloor` with :math:`s = (2^{24} - n) / (p_0 + \dots + p_{n-1})`, sums from the left, every sum, quotient and
product rounded to a double; of the adaptive model, symbol 0 has probability 1 - p. Integers that are uniform have
:math:`2^{24 - b}` parts each, of b bits at a time, 12 at most, the lowest first.

The coder (constriction's range coder) reads little-endian 32-bit words, zeros behind the last. Its state is 64 bits
each of *lower* (0 at first), *range* (2^64 - 1) and *point* (two words, the first the higher). A symbol is that whose
part holds :math:`\lfloor (point - lower) / (range >> 24) \rfloor`; then *lower* grows by :math:`(range >> 24)` times
its first part and *range* becomes :math:`(range >> 24)` times the number of its parts. Where *range* is then below
2^32, all three move 32 bits up, and *point* takes in a word. All modulo 2^64. ``tests/reference_decoder.py`` is this in
a hundred lines.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import constriction
import numpy as np

from ..errors import CompressedFileError

# Entry c of a table stands for this frequency; entry 0 for a symbol that does not occur.
_FREQUENCIES = np.array([0, *(math.isqrt(2 ** (8 + c)) for c in range(31))], dtype=np.int64)

# Symbols of one table: codes are at most 24 bits wide, but a table of 2^16 is already longer than any layer needs.
_MOST_SYMBOLS = 1 << 16

_UNIFORM_BITS = 12

# Symbols are coded so many at a time: what is needed beside the codes themselves stays small.
_PART = 1 << 20

# Bits of the adaptive model about a magnitude; beyond, magnitudes are large and none is like the other.
_UNARY = 15

# Digits of what is left of a magnitude: codes are at most 25 bits wide.
_MOST_DIGITS = 26

_HALF = 0.5

# Bits more than the data has: zeros at its end are left out.
_SLACK = 1 << 12

# How many decisions of a class the layer's own probability counts for.
_BELIEF = 4


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

    def adaptive(self, codes: np.ndarray, classes: np.ndarray | None = None) -> None:
        """Any integers, below 2^25 in magnitude, with probabilities that are learned on the way.

        :param classes: of each integer, from 0 on, which the decoder knows too.
        """
        decisions, probabilities = _decisions(codes, classes)
        if len(decisions):
            self._coder.encode(decisions, constriction.stream.model.Bernoulli(perfect=False), probabilities)

    def contextual(self, codes: np.ndarray) -> None:
        """Integers ``(rows, columns)`` as of :meth:`adaptive`, in contexts of what came before in row and column."""
        self.adaptive(codes.reshape(-1), _contexts(codes))

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
        self._even = 8 * len(data) + _SLACK

    def take_bits(self) -> float:
        """Information content, in bits, of what was decoded since the last call."""
        bits, self._bits = self._bits, 0.0
        return bits

    def _decode(self, model: Any, *count: int) -> Any:
        try:
            return self._coder.decode(model, *count)
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

    def adaptive(self, count: int, classes: np.ndarray | None = None) -> np.ndarray:
        """``count`` integers, int64; ``classes`` as they were encoded with."""
        counts, result = _Counts(), np.zeros(count, dtype=np.int64)
        for index, kind in enumerate(_kinds(count, classes)):
            result[index] = self._integer(counts, kind)
        return result

    def contextual(self, rows: int, columns: int) -> np.ndarray:
        """``(rows, columns)`` integers, int64, in contexts of what came before."""
        counts, contexts = _Counts(), _Contexts(columns)
        result = np.zeros((rows, columns), dtype=np.int64)
        for row in range(rows):
            contexts.begin()
            for column in range(columns):
                code = self._integer(counts, contexts.at(row, column))
                contexts.add(column, code)
                result[row, column] = code
        return result

    def _integer(self, counts: "_Counts", kind: int) -> int:
        if not counts.add_zero(kind, self._bit(counts.of_zero(kind))):
            return 0
        negative, magnitude = self._even_bit(), 1
        while magnitude <= _UNARY and counts.add(magnitude, self._bit(counts.probability(magnitude))):
            magnitude += 1
        if magnitude > _UNARY:
            digits = 0
            while self._even_bit():
                digits += 1
                if digits > _MOST_DIGITS:
                    raise CompressedFileError("the file holds an integer that is too large")
            rest = 1
            for _ in range(digits):
                rest = 2 * rest + self._even_bit()
            magnitude += rest - 1
        return -magnitude if negative else magnitude

    def _even_bit(self) -> int:
        """A decision as likely as not; there are no more of them than the data has bits."""
        self._even -= 1
        if self._even < 0:
            raise CompressedFileError("the file's numbers go on where its data has ended")
        return self._bit(_HALF)

    def _bit(self, probability: float) -> int:
        bit = self._decode(constriction.stream.model.Bernoulli(probability, perfect=False))
        self._bits -= math.log2(probability if bit else 1 - probability)
        return int(bit)


class _Counts:
    """How often each decision of the adaptive model was yes, and how often it was taken."""

    def __init__(self) -> None:
        self.yes, self.all = [0] * (_UNARY + 1), [0] * (_UNARY + 1)
        self.by_class: dict[int, tuple[int, int]] = {}

    def probability(self, decision: int) -> float:
        return (2 * self.yes[decision] + 1) / (2 * self.all[decision] + 2)

    def add(self, decision: int, bit: int) -> int:
        self.yes[decision] += bit
        self.all[decision] += 1
        return bit

    def of_zero(self, kind: int) -> float:
        """Probability that an integer of this class is not zero; −1 is that of integers without classes."""
        if kind < 0:
            return self.probability(0)
        yes, seen = self.by_class.get(kind, (0, 0))
        layer = 2 * self.all[0] + 2
        return (yes * layer + _BELIEF * (2 * self.yes[0] + 1)) / ((seen + _BELIEF) * layer)

    def add_zero(self, kind: int, bit: int) -> int:
        if kind >= 0:
            yes, seen = self.by_class.get(kind, (0, 0))
            self.by_class[kind] = (yes + bit, seen + 1)
        return self.add(0, bit)


class _Contexts:
    """Classes of integers in rows and columns, by what came before."""

    def __init__(self, columns: int) -> None:
        self.in_columns = [0] * columns
        self.in_row = self.left = 0

    def begin(self) -> None:
        """Begin a row."""
        self.in_row = self.left = 0

    def at(self, row: int, column: int) -> int:
        """The class of the integer that comes next."""
        down = ((2 * row + 2) // (2 * self.in_columns[column] + 1)).bit_length() - 1
        along = ((2 * column + 2) // (2 * self.in_row + 1)).bit_length() - 1
        return 21 * min(down, 6) + 3 * min(along, 6) + self.left

    def add(self, column: int, code: int) -> None:
        """Take in an integer."""
        self.left = min(abs(code), 2)
        if code:
            self.in_columns[column] += 1
            self.in_row += 1


def _kinds(count: int, classes: np.ndarray | None) -> list[int]:
    return [-1] * count if classes is None else classes.tolist()


def _decisions(codes: np.ndarray, classes: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The decisions that integers are made of, in their order, and the probability of 1 that each has by those before.

    What :class:`_Counts` counts as it goes is counted here of all integers at once: they are known.
    """
    magnitudes = np.abs(codes.astype(np.int64))
    nonzero = magnitudes > 0
    large = np.flatnonzero(magnitudes > _UNARY)
    digits = np.frexp((magnitudes[large] - _UNARY).astype(np.float64))[1] - 1
    each = 1 + np.where(nonzero, 1 + np.minimum(magnitudes, _UNARY), 0)
    each[large] += 2 * digits + 1
    starts = np.cumsum(each) - each
    decisions = np.zeros(int(each.sum()), dtype=np.int32)
    probabilities = np.full(len(decisions), _HALF)
    decisions[starts] = nonzero
    probabilities[starts] = _of_zero(nonzero, classes)
    starts = starts[nonzero] + 1
    decisions[starts] = codes[nonzero] < 0
    left = magnitudes[nonzero]
    for above in range(1, _UNARY + 1):
        starts, left = starts[left >= above], left[left >= above]
        decisions[starts + above] = left > above
        probabilities[starts + above] = _learned(left > above)
    starts = starts[left > _UNARY] + _UNARY + 1
    for start, rest, count in zip(starts, magnitudes[large] - _UNARY, digits, strict=True):
        bits = [1] * count + [0] + [int(rest) >> shift & 1 for shift in reversed(range(count))]
        decisions[start : start + len(bits)] = bits
    return decisions, probabilities


def _learned(bits: np.ndarray) -> np.ndarray:
    """Probability of 1 that each decision has by those before it."""
    yes = np.cumsum(bits, dtype=np.int64) - bits
    return (2 * yes + 1) / (2 * np.arange(len(bits)) + 2)


def _of_zero(bits: np.ndarray, classes: np.ndarray | None) -> np.ndarray:
    """The same of the first decision, which is counted by class where integers have one."""
    if classes is None:
        return _learned(bits)
    count = np.arange(len(bits))
    layer, before = 2 * count + 2, np.cumsum(bits, dtype=np.int64) - bits
    order = np.argsort(classes, kind="stable")
    first = np.searchsorted(classes[order], classes[order])  # where a class begins
    sorted_before = np.concatenate([[0], np.cumsum(bits[order], dtype=np.int64)])
    yes, seen = np.empty_like(count), np.empty_like(count)
    yes[order] = sorted_before[:-1] - sorted_before[first]
    seen[order] = count - first
    return (yes * layer + _BELIEF * (2 * before + 1)) / ((seen + _BELIEF) * layer)


def _contexts(codes: np.ndarray) -> np.ndarray:
    """Classes of all integers ``(rows, columns)`` by what came before each, one by one as :class:`_Contexts` has it."""
    present = (codes != 0).astype(np.int64)
    rows, columns = (np.arange(size) for size in codes.shape)
    down = (2 * rows[:, None] + 2) // (2 * (present.cumsum(0) - present) + 1)
    along = (2 * columns + 2) // (2 * (present.cumsum(1) - present) + 1)
    left = np.zeros_like(present)
    left[:, 1:] = np.minimum(np.abs(codes[:, :-1]), 2)
    density = [np.minimum(np.frexp(ratio.astype(np.float64))[1] - 1, 6) for ratio in (down, along)]
    return (21 * density[0] + 3 * density[1] + left).reshape(-1)


def adaptive_bits(codes: np.ndarray, classes: np.ndarray | None = None) -> float:
    """Code length of integers under the adaptive model.

    That of a decision whose probability is learned from its own past, (2 yes + 1) / (2 all + 2), depends only on how
    often it was yes in all, so that most of it is told without going through the integers one by one.
    """
    magnitudes = np.abs(codes.astype(np.int64))
    nonzero = magnitudes[magnitudes > 0]
    bits = float(len(nonzero))  # signs
    for above in range(1, _UNARY + 1):
        bits += _learned_bits(int((nonzero > above).sum()), int((nonzero >= above).sum()))
    digits = np.frexp(nonzero[nonzero > _UNARY] - _UNARY)[1] - 1
    bits += float((2 * digits + 1).sum())
    if classes is None:
        return bits + _learned_bits(len(nonzero), len(codes))
    yes = _of_zero(magnitudes > 0, classes)
    return bits - float(np.log2(np.where(magnitudes > 0, yes, 1 - yes)).sum())


def _learned_bits(yes: int, count: int) -> float:
    """Code length of as many decisions in any order: the Krichevsky–Trofimov estimator."""
    nats = math.lgamma(count + 1) + 2 * math.lgamma(0.5) - math.lgamma(yes + 0.5) - math.lgamma(count - yes + 0.5)
    return nats / math.log(2)


def _uniform_model(bits: int) -> Any:
    return constriction.stream.model.Uniform(1 << bits)


def _entries(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """The nearest table entry of every count, scaled so that the largest fits; 0 only where the count is 0."""
    counts = np.asarray(counts, dtype=np.int64)
    largest = max(int(counts.max()), 1)
    scale = min(1.0, 2**15 / largest)
    entries = np.rint(2 * np.log2(np.maximum(counts * scale, 1))).astype(np.int64) + 1
    return np.where(counts > 0, np.clip(entries, 1, len(_FREQUENCIES) - 1), 0)


def _table_model(entries: np.ndarray) -> Any:
    frequencies = _FREQUENCIES[entries].astype(np.float64)
    return constriction.stream.model.Categorical(frequencies / frequencies.sum(), perfect=False)
