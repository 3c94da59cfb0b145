"""CIFAR-10's archives as arrays: the two original formats, and JPEG files in a folder per class.

Every reader returns ``(train_x, train_y, test_x, test_y)``: pictures uint8 ``(N, 3, 32, 32)``, class numbers int64.
"""

import io
import pickle
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import DataError

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

_PYTHON = ([f"data_batch_{number}" for number in range(1, 6)], ["test_batch"])

_BINARY = ([f"data_batch_{number}.bin" for number in range(1, 6)], ["test_batch.bin"])

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def read_python(path: Path) -> Arrays:
    """``cifar-10-python.tar.gz``, or its folder ``cifar-10-batches-py``."""
    return _batches(path, _PYTHON, _python_batch)


def read_binary(path: Path) -> Arrays:
    """``cifar-10-binary.tar.gz``, or its folder ``cifar-10-batches-bin``."""
    return _batches(path, _BINARY, _binary_batch)


def read_jpeg(path: Path) -> Arrays:
    """A tar archive, or a folder, with ``train/<class>/*.jpg`` and ``test/<class>/*.jpg``.

    Files lie in the order of their classes: pictures come in a fixed random order, so that any part of them holds
    every class.
    """
    pictures: dict[str, list[tuple[str, int, np.ndarray]]] = {"train": [], "test": []}
    for name, data in _files(path):
        parts = Path(name).parts
        if len(parts) < 3 or not name.endswith(".jpg"):
            continue
        part, label = parts[-3:-1]
        if part in pictures and label in CLASSES:
            pictures[part].append((name, CLASSES.index(label), _picture(path, name, data)))
    arrays: list[np.ndarray] = []
    for part, found in pictures.items():
        if {label for _, label, _ in found} != set(range(len(CLASSES))):
            raise DataError(f"'{path}' does not hold {part}/<class>/*.jpg for each of {', '.join(CLASSES)}")
        found.sort(key=lambda item: item[0])
        order = np.random.default_rng(0).permutation(len(found))
        arrays += [np.stack([found[i][2] for i in order]), np.array([found[i][1] for i in order])]
    return arrays[0], arrays[1], arrays[2], arrays[3]


def _picture(path: Path, name: str, data: bytes) -> np.ndarray:
    try:
        picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises on damaged files
        raise DataError(f"'{name}' in '{path}' is not a readable picture ({error})") from None
    if picture.shape != (32, 32, 3):
        raise DataError(f"'{name}' in '{path}' has {picture.shape[1]} x {picture.shape[0]} pixels, not 32 x 32")
    return picture.transpose(2, 0, 1)


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of all files in a folder or tar archive."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file():
                yield file.relative_to(path).as_posix(), file.read_bytes()
        return
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None:
                    yield member.name, content.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"'{path}' is not a readable archive ({error}); replace it with the original") from None


def _batches(
    path: Path, names: tuple[list[str], list[str]], read: Callable[[bytes], tuple[np.ndarray, np.ndarray]]
) -> Arrays:
    found = {Path(name).name: data for name, data in _files(path) if Path(name).name in {*names[0], *names[1]}}
    missing = [name for name in (*names[0], *names[1]) if name not in found]
    if missing:
        raise DataError(f"'{path}' does not hold {', '.join(missing)}; replace it with the original")
    arrays: list[np.ndarray] = []
    for part in names:
        try:
            batches = [read(found[name]) for name in part]
        except (ValueError, LookupError, TypeError, AttributeError, EOFError, pickle.UnpicklingError) as error:
            raise DataError(f"'{path}' does not hold CIFAR-10's batches ({error})") from None
        if any(len(x) != len(y) for x, y in batches):
            raise DataError(f"'{path}' does not hold a class for each of its pictures")
        arrays += [np.concatenate(side) for side in zip(*batches, strict=True)]
    return arrays[0], arrays[1], arrays[2], arrays[3]


def _binary_batch(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Records of one byte, the class, and 3,072 of the picture."""
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, 3073)
    return records[:, 1:].reshape(-1, 3, 32, 32), _labels(records[:, 0])


def _python_batch(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    batch = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
    return np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32), _labels(np.asarray(batch[b"labels"]))


def _labels(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.int64)
    for value in values[(values < 0) | (values >= len(CLASSES))]:
        raise ValueError(f"a class is {value}")
    return values


class _ArraysOnly(pickle.Unpickler):
    """Unpickles what CIFAR-10's batches are made of, and runs nothing else that a file might ask for."""

    def find_class(self, module: str, name: str) -> object:
        if (module.replace("_core", "core"), name) == ("numpy.core.multiarray", "_reconstruct"):
            return np.empty(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # bytes, as Python 2's protocols have them
            return str.encode
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
