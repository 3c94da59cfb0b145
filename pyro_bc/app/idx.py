"""Raw idx files of pictures and classes, packed by gzip or not, as MNIST and its like come."""

import gzip
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from ..errors import DataError
from ..runtime.files import readable

#: the four files of a set, without an ending: training pictures and classes, test pictures and classes.
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

_GZIP = b"\x1f\x8b"

# Of one file: the largest published set of this kind, of letters, has 550 million.
_MOST_BYTES = 1 << 31


@dataclass(frozen=True)
class Published:
    """What is known of a set of four files.

    :param url: where the originals are.
    :param md5s: of the originals, packed, in the order of :data:`FILES`.
    :param classes: examples of each class, of the training and of the test part.
    :param means: of all pixels in [0, 1], likewise.
    """

    url: str
    md5s: tuple[str, ...]
    classes: tuple[tuple[int, ...], tuple[int, ...]]
    means: tuple[float, float]

    def check(self, name: str, folder: Path, parts: list[Tensor]) -> None:
        """Whether files of other bytes hold the same, however they were packed.

        :param parts: what the four files hold.
        :raises DataError: where they do not.
        """
        for part, (counts, mean) in enumerate(zip(self.classes, self.means, strict=True)):
            x, y = parts[2 * part], parts[2 * part + 1]
            is_it = tuple(x.shape) == (sum(counts), 28, 28) and tuple(y.shape) == (sum(counts),)
            is_it = is_it and tuple(torch.bincount(y.flatten(), minlength=10).tolist()) == counts
            if not is_it or abs(float(x.float().mean()) / 255 - mean) > 5e-4:
                raise DataError(
                    f"the files in '{folder}' are damaged or not those of {name}: {FILES[2 * part]} and "
                    f"{FILES[2 * part + 1]} hold {tuple(x.shape)} and {tuple(y.shape)}. Replace them with the "
                    f"originals from {self.url}, or give no folder to have them downloaded; data of your own are "
                    f"--data '{folder}'"
                )


def read_idx(path: Path) -> Tensor:
    """An idx file of unsigned bytes, packed by gzip or not: magic number, sizes (big-endian), data.

    :raises DataError: where it is none.
    """
    with readable(path, "is not a readable IDX file", DataError), path.open("rb") as packed:
        is_packed = packed.read(2) == _GZIP
        packed.seek(0)
        file: IO[bytes] = gzip.GzipFile(fileobj=packed) if is_packed else packed  # type: ignore[assignment]
        magic = file.read(4)
        if magic[:3] != b"\0\0\x08":
            raise ValueError("it does not begin as one of unsigned bytes does")
        sizes = struct.unpack(f">{magic[3]}I", file.read(4 * magic[3]))
        count = math.prod(sizes)
        if count > _MOST_BYTES:
            raise ValueError(f"it says that it holds {count:,} bytes, where at most {_MOST_BYTES:,} are read")
        data = bytearray(file.read(count + 1))  # however much more a packed one inflates to
        if len(data) != count:
            raise ValueError(f"it holds {'more' if len(data) > count else 'less'} than the {count:,} bytes it says")
        found = torch.frombuffer(data, dtype=torch.uint8) if count else torch.empty(0, dtype=torch.uint8)
        found = found.reshape(sizes)
    return found


def names_of(file: str) -> tuple[str, ...]:
    """Names under which one of :data:`FILES` is found."""
    dotted = file.replace("-idx", ".idx")
    return f"{file}.gz", file, f"{dotted}.gz", dotted


def find_idx(folder: Path) -> dict[str, Path]:
    """The idx files in a folder: ``train_x``, ``train_y``, and ``test_x``, ``test_y`` where there are some.

    :raises DataError: where there are several for one of them.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        kind = re.search(r"(images|labels)[-.]idx([13])-ubyte(\.gz)?$", path.name)
        if kind is None or not path.is_file():
            continue
        part = "test" if re.search(r"t10k|test", path.name) else "train"
        key = f"{part}_{'x' if kind[1] == 'images' else 'y'}"
        if key in found:
            raise DataError(f"'{folder}' holds several files of {part} {kind[1]}: {found[key].name} and {path.name}")
        found[key] = path
    return found
