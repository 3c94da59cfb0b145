"""What a network may take for one example, and for being loaded."""

from dataclasses import dataclass, replace

from ..errors import ExcessError


@dataclass(frozen=True)
class Cost:
    """What a program takes.

    :param multiplications: as :class:`Limits` counts them.
    :param memory: bytes of the tensors, and of the results that live at the same time.
    :param pieces: tensors in lists of results.
    """

    multiplications: int = 0
    memory: int = 0
    pieces: int = 0


@dataclass(frozen=True)
class Limits:
    """How much a network from a file may take, for being read and for one example of a prediction.

    The defaults are such that a file of less than 10 kB takes neither more than 1 GiB nor more than 10 seconds of one
    core, beside what torch itself does. What is honest and large, a convolution of few channels over pictures of 224
    pixels or a network of 100 million weights, is far below. Raise them for what you trust.

    :param multiplications: of float32 numbers within products of matrices; other work counts as what takes as long, a
        number that an exponential is taken of as 288 for example, and a step of a recurrent cell as at least 524,288.
    :param memory: bytes of all results and tensors that live at the same time.
    :param pieces: tensors that operations such as ``chunk`` take apart into.
    :param multiplications_per_byte: more of them for each byte of the file.
    :param memory_per_byte: likewise.
    :param pieces_per_byte: likewise.
    """

    multiplications: int = 1 << 36
    memory: int = 1 << 29
    pieces: int = 1 << 16
    multiplications_per_byte: int = 1 << 19
    memory_per_byte: int = 1 << 12
    pieces_per_byte: int = 1 << 4

    def of_file(self, size: int) -> "Limits":
        """The limits of a file of so many bytes, on which nothing depends any more."""
        return replace(
            self,
            multiplications=self.multiplications + size * self.multiplications_per_byte,
            memory=self.memory + size * self.memory_per_byte,
            pieces=self.pieces + size * self.pieces_per_byte,
            multiplications_per_byte=0,
            memory_per_byte=0,
            pieces_per_byte=0,
        )

    def check(self, cost: Cost) -> None:
        """:raises ExcessError: where something costs more; says how much, and what the limit is."""
        for name, unit in (("multiplications", "multiplications"), ("memory", "bytes"), ("pieces", "pieces")):
            needed, allowed = getattr(cost, name), getattr(self, name)
            if needed > allowed:
                raise ExcessError(f"it takes {needed:,} {unit}, and the limit is {allowed:,} (limits=… raises it)")
