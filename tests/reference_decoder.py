"""A second reader of ``.pbc`` files, written from the format's description alone: Python's integers, no library.

Slow, and without any check of what a file claims: it is what another language would need to hold, and what the
package's own reader is compared with. Ratios are fractions, so that nothing depends on how floats are rounded but
where the format says so.
"""

import math
import struct
import zlib
from fractions import Fraction

PRECISION = 24
LAYERS = (0, 1, 2, 90, 400, 401, 402, 403)  # linear, convolutions, transposed ones, tables
FREQUENCIES = [0, *(math.isqrt(2 ** (8 + c)) for c in range(31))]


def to_double(ratio: Fraction) -> Fraction:
    """The IEEE double nearest to a ratio."""
    return Fraction(ratio.numerator / ratio.denominator)  # Python divides integers correctly rounded


def bounds(probabilities: list[Fraction]) -> list[int]:
    """Where each symbol begins in 24 bits, and the end: sums, and their product with the scale, rounded to doubles."""
    scale = to_double(Fraction(2**PRECISION - len(probabilities)) / total(probabilities))
    begin, sum_so_far = [], Fraction(0)
    for number, probability in enumerate(probabilities):
        begin.append(math.floor(to_double(sum_so_far * scale)) + number)
        sum_so_far = to_double(sum_so_far + probability)
    return [*begin, 2**PRECISION]


def total(probabilities: list[Fraction]) -> Fraction:
    result = Fraction(0)
    for probability in probabilities:
        result = to_double(result + probability)
    return result


class Stream:
    """The range decoder: 64 bits of state, 32-bit words."""

    def __init__(self, data: bytes) -> None:
        data += bytes(-len(data) % 4)
        self.words = list(struct.unpack(f"<{len(data) // 4}I", data))[::-1]
        self.lower, self.range = 0, 2**64 - 1
        self.point = self.word() << 32 | self.word()

    def word(self) -> int:
        return self.words.pop() if self.words else 0

    def symbol(self, begins: list[int]) -> int:
        scale = self.range >> PRECISION
        quantile = (self.point - self.lower) % 2**64 // scale
        assert quantile < 2**PRECISION
        symbol = max(number for number in range(len(begins) - 1) if begins[number] <= quantile)
        self.lower = (self.lower + scale * begins[symbol]) % 2**64
        self.range = scale * (begins[symbol + 1] - begins[symbol])
        if self.range < 2**32:
            self.lower, self.range = self.lower << 32 & (2**64 - 1), self.range << 32
            self.point = (self.point << 32 | self.word()) & (2**64 - 1)
        return symbol

    def bit(self, yes: Fraction) -> int:
        yes = to_double(yes)
        return self.symbol(bounds([to_double(1 - yes), yes]))

    def uniform(self, count: int, bits: int, lowest: int = 0) -> list[int]:
        result = [lowest] * count
        for shift in range(0, bits, 12):
            width = min(12, bits - shift)
            begins = [number << (PRECISION - width) for number in range(2**width + 1)]
            for position in range(count):
                result[position] += self.symbol(begins) << shift
        return result

    def table(self, count: int, size: int, lowest: int = 0) -> list[int]:
        entries = [FREQUENCIES[entry] for entry in self.uniform(size, 5)]
        if sum(entry > 0 for entry in entries) == 1:
            return [lowest + next(i for i, entry in enumerate(entries) if entry)] * count
        begins = bounds([to_double(Fraction(entry, sum(entries))) for entry in entries])
        return [lowest + self.symbol(begins) for _ in range(count)]

    def contextual(self, rows: int, columns: int) -> list[int]:
        in_columns, codes = [0] * columns, []

        def density(seen: int, present: int) -> int:
            return min(6, ((2 * seen + 2) // (2 * present + 1)).bit_length() - 1)

        def classes():
            for row in range(rows):
                in_row = 0
                for column in range(columns):
                    left = min(2, abs(codes[-1])) if column else 0
                    yield 21 * density(row, in_columns[column]) + 3 * density(column, in_row) + left
                    in_columns[column] += codes[-1] != 0
                    in_row += codes[-1] != 0

        self.adaptive(classes(), codes)
        return codes

    def adaptive(self, classes, result: list[int] | None = None) -> list[int]:
        yes, seen, by_class = [0] * 16, [0] * 16, {}
        half = Fraction(1, 2)

        def learned(decision: int) -> int:
            bit = self.bit(Fraction(2 * yes[decision] + 1, 2 * seen[decision] + 2))
            yes[decision] += bit
            seen[decision] += 1
            return bit

        def not_zero(kind: int | None) -> int:
            if kind is None:
                return learned(0)
            ones, all_seen = by_class.get(kind, (0, 0))
            layer = 2 * seen[0] + 2
            bit = self.bit(Fraction(ones * layer + 4 * (2 * yes[0] + 1), (all_seen + 4) * layer))
            by_class[kind] = ones + bit, all_seen + 1
            yes[0] += bit
            seen[0] += 1
            return bit

        result = [] if result is None else result
        for kind in classes:
            value = 0
            if not_zero(kind):
                negative, value = self.bit(half), 1
                while value <= 15 and learned(value):
                    value += 1
                if value > 15:
                    digits = 0
                    while self.bit(half):
                        digits += 1
                    rest = 1
                    for _ in range(digits):
                        rest = 2 * rest + self.bit(half)
                    value = 15 + rest
                value = -value if negative else value
            result.append(value)
        return result


class File:
    """Reads the header; :attr:`tensors` has the codes of every tensor, :attr:`values` its numbers as fractions."""

    def __init__(self, data: bytes) -> None:
        assert data[:3] == b"PBC" and data[3] in (2, 3, 4, 5, 6)
        self.data, self.position = data[8:], 0
        assert zlib.crc32(self.data) == struct.unpack("<I", data[4:8])[0]
        self.described: list[dict] = []
        self.version = data[3]
        form = self.varint() if data[3] > 2 else 0
        if form:
            self.chain(form)
        else:
            self.graph()
        stream = Stream(self.data[self.position :])
        self.tensors = [codes_of(stream, tensor) for tensor in self.described]
        self.values = [values_of(codes, t) for codes, t in zip(self.tensors, self.described, strict=True)]

    def byte(self) -> int:
        self.position += 1
        return self.data[self.position - 1]

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def signed(self) -> int:
        return unzigzag(self.varint())

    def graph(self) -> None:
        self.dense_parameters = self.varint()
        self.input_shape = [self.varint() for _ in range(self.varint())]
        self.input_type = self.varint() if self.version > 3 else 0
        self.further_inputs = []
        if self.version > 5:
            self.input_name = self.name()
            for _ in range(self.varint()):
                name = self.name()
                self.further_inputs.append((name, [self.varint() for _ in range(self.varint())], self.varint()))
        for _ in range(self.varint()):
            operation, count = self.varint(), self.varint()
            for position in range(count // 2):
                kind, _ = self.argument()
                if position == 1 and operation in LAYERS and kind == 6:  # outputs and inputs of the dense layer
                    self.varint(), self.varint()
            for _ in range(2 * self.varint() if count % 2 else 0):
                self.argument()

    def name(self) -> str:
        length = self.varint()
        self.position += length
        return self.data[self.position - length : self.position].decode()

    def argument(self) -> tuple[int, int]:
        byte = self.byte()
        kind, payload = byte >> 4, byte & 15
        payload = self.varint() if payload == 15 else payload
        if kind == 2:
            self.position += 8
        elif kind == 3:
            self.position += payload
        elif kind == 4:
            for _ in range(payload):
                self.argument()
        elif kind == 6 and payload == len(self.described):
            self.described.append(self.tensor())
        return kind, payload

    def tensor(self) -> dict:
        byte = self.byte()
        kind, shape = byte >> 4, [self.varint() for _ in range(byte & 15)]
        if kind == 2:
            return {"kind": kind, "shape": shape, "limit": self.varint()}
        if kind == 6:
            listed = self.varint() // 2
            self.position += 4 * listed
            patterns = struct.unpack(f"<{listed}I", self.data[self.position - 4 * listed : self.position])
            return {"kind": kind, "shape": shape, "listed": patterns}
        if kind == 7:
            self.varint()  # which type
        found = {"kind": kind, "shape": shape, "bits": self.signed()}
        if kind == 5:
            found["grid"] = [self.varint() for _ in range(self.varint())]
        elif kind not in (4, 8):
            found |= {"lowest": self.signed(), "size": self.varint()}
        return found

    def chain(self, form: int) -> None:
        relu, pool, flatten = 0, 1, 2
        if form == 1:
            self.dense_parameters = self.varint()
            self.input_shape = [self.varint() for _ in range(self.varint())]
            steps = []
            for _ in range(self.varint()):
                code = self.byte()
                if code >= 4:
                    steps.append(code - 4)
                    continue
                outputs = self.varint()
                kernel, stride, padding = (self.byte(), self.byte(), self.byte()) if code & 1 else (0, 1, 0)
                steps.append((outputs, kernel, stride, padding, not code & 2))
        else:
            lenet_300_100 = [flatten, (300, 0, 1, 0, 1), relu, (100, 0, 1, 0, 1), relu, (10, 0, 1, 0, 1)]
            lenet_5 = [(20, 5, 1, 0, 1), relu, pool, (50, 5, 1, 0, 1), relu, pool, flatten, (500, 0, 1, 0, 1), relu,
                       (10, 0, 1, 0, 1)]  # fmt: skip
            self.input_shape = [1, 8, 8] if form == 4 else [1, 28, 28]
            steps = lenet_5 if form == 3 else lenet_300_100
        channels, *space = self.input_shape
        grid: list[int] = []
        widths = [self.varint() for step in steps if isinstance(step, tuple)][::-1]
        for step in steps:
            if step == flatten:
                channels, grid, space = channels * math.prod(space), space, []
            elif step == 8:  # adaptive_avg_pool2d
                space = [1, 1]
            elif step in (pool, 7):
                space = [size // 2 for size in space]
            elif isinstance(step, tuple):
                _, kernel, stride, padding, bias = step
                width = widths.pop()
                square = [kernel, kernel] if kernel else []
                self.described.append({"shape": [width, channels, *square], "grid": square or grid})
                if bias:
                    self.described.append({"shape": [width], "grid": []})
                if kernel:
                    space = [(size + 2 * padding - kernel) // stride + 1 for size in space]
                channels, grid = width, []
        for tensor in self.described:
            bits, kind = divmod(self.varint(), 3)
            tensor |= {"kind": (0, 4, 5)[kind], "bits": unzigzag(bits)}
            if kind == 0:
                tensor |= {"lowest": self.signed(), "size": self.varint()}


def unzigzag(value: int) -> int:
    return value // 2 if value % 2 == 0 else -(value + 1) // 2


def codes_of(stream: Stream, tensor: dict) -> list[int]:
    count, kind = math.prod(tensor["shape"]), tensor["kind"]
    if kind == 2:
        return [index for index, read in enumerate(stream.table(tensor["limit"], 2)) if read]
    if kind in (8, 9):
        steps = stream.adaptive([None] * tensor["shape"][0])
        tensor["rows"] = [sum(steps[: row + 1]) for row in range(len(steps))]
    if kind == 8:
        return stream.contextual(tensor["shape"][0], count // tensor["shape"][0])
    if kind in (4, 5):
        grid = tensor["grid"] if kind == 5 else []
        cells = math.prod(grid)
        return stream.adaptive([sum(place(i % cells, grid)) if grid else None for i in range(count)])
    if kind == 6:
        listed = tensor["listed"]
        if listed:
            return [listed[i] for i in (stream.table(count, len(listed)) if len(listed) > 1 else [0] * count)]
        upper = stream.uniform(count, 16)
        return [65536 * high + low for high, low in zip(upper, stream.uniform(count, 16), strict=True)]
    size, lowest = tensor["size"], tensor["lowest"]
    if 1 < size <= 4096 and stream.uniform(1, 1)[0]:
        return stream.table(count, size, lowest)
    return stream.uniform(count, (size - 1).bit_length(), lowest)


def place(cell: int, grid: list[int]) -> list[int]:
    """Indices of a cell in a grid, in C order."""
    found = []
    for size in reversed(grid):
        cell, index = divmod(cell, size)
        found.append(index)
    return found[::-1]


def values_of(codes: list[int], tensor: dict) -> list[Fraction]:
    if tensor["kind"] == 6:
        numbers = [struct.unpack("<f", struct.pack("<I", code))[0] for code in codes]
        return [Fraction(number) if math.isfinite(number) else number for number in numbers]
    if tensor["kind"] in (1, 2, 7):
        return [Fraction(code) for code in codes]
    bits = tensor["bits"]
    if tensor["kind"] == 5:
        codes, bits = inverse_cosines(codes, tensor["grid"]), bits + 16
    if tensor["kind"] in (8, 9):
        fine = [1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429]
        wide = len(codes) // len(tensor["rows"])
        steps = [Fraction(fine[row % 4]) * Fraction(2) ** (row // 4 - bits) for row in tensor["rows"]]
        return [Fraction(code) * steps[at // wide] for at, code in enumerate(codes)]
    return [Fraction(code) / Fraction(2) ** bits for code in codes]


def inverse_cosines(codes: list[int], grid: list[int]) -> list[int]:
    held = 0
    for dim, size in enumerate(grid):
        scale = [math.sqrt((2 - (k == 0)) / size) * 2**24 for k in range(size)]
        inner = math.prod(grid[dim + 1 :])
        rows = [
            [round(scale[k] * math.cos(math.pi * ((2 * j + 1) * k % (4 * size)) / (2 * size))) for k in range(size)]
            for j in range(size)
        ]
        shift = held + 8
        result = []
        for cell in range(len(codes)):
            j = cell // inner % size
            first = cell - j * inner
            total = sum(rows[j][k] * codes[first + k * inner] for k in range(size))
            result.append(total + (1 << shift - 1) >> shift)
        codes, held = result, 16
    return codes
