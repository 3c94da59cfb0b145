"""CIFAR-10's archives as arrays: the two original formats, and JPEG files in a folder per class.

Every reader returns ``(train_x, train_y, test_x, test_y)``: pictures uint8 ``(N, 3, 32, 32)``, class numbers int64.
"""

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import DataError
from ..runtime.files import readable
from .archives import files_in
from .pickled import read_pickle

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

_PYTHON = ([f"data_batch_{number}" for number in range(1, 6)], ["test_batch"])

_BINARY = ([f"data_batch_{number}.bin" for number in range(1, 6)], ["test_batch.bin"])

#: endings of archives that are read.
PACKED = ("tar.gz", "tgz", "tar", "tar.xz", "tar.bz2", "zip")

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
    for name, data in files_in(path, _is_picture):
        part, label = Path(name).parts[-3:-1]
        pictures[part].append((name, CLASSES.index(label), _picture(path, name, data)))
    arrays: list[np.ndarray] = []
    for part, found in pictures.items():
        if {label for _, label, _ in found} != set(range(len(CLASSES))):
            raise DataError(f"'{path}' does not hold {part}/<class>/*.jpg for each of {', '.join(CLASSES)}")
        found.sort(key=lambda item: item[0])
        order = np.random.default_rng(0).permutation(len(found))
        arrays += [np.stack([found[i][2] for i in order]), np.array([found[i][1] for i in order])]
    return arrays[0], arrays[1], arrays[2], arrays[3]


def _is_picture(name: str) -> bool:
    parts = Path(name).parts
    return len(parts) > 2 and name.endswith(".jpg") and parts[-3] in ("train", "test") and parts[-2] in CLASSES


def _picture(path: Path, name: str, data: bytes) -> np.ndarray:
    """A picture, whose size is looked at before it is decoded: a kilobyte may claim gigabytes."""
    with readable(f"{name}' in '{path}", "is not a readable picture", DataError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
        if opened.size == (32, 32):
            return np.asarray(opened.convert("RGB")).transpose(2, 0, 1)
    raise DataError(f"'{name}' in '{path}' has {opened.width} x {opened.height} pixels, not 32 x 32")


def _batches(
    path: Path, names: tuple[list[str], list[str]], read: Callable[[bytes], tuple[np.ndarray, np.ndarray]]
) -> Arrays:
    all_names = [*names[0], *names[1]]
    found = {Path(name).name: data for name, data in files_in(path, lambda name: Path(name).name in all_names)}
    missing = [name for name in all_names if name not in found]
    if missing:
        raise DataError(f"'{path}' does not hold {', '.join(missing)}; replace it with the original")
    arrays: list[np.ndarray] = []
    for part in names:
        with readable(path, "does not hold CIFAR-10's batches", DataError):
            batches = [read(found[name]) for name in part]
        if any(len(x) != len(y) for x, y in batches):
            raise DataError(f"'{path}' does not hold a class for each of its pictures")
        arrays += [np.concatenate(side) for side in zip(*batches, strict=True)]
    return arrays[0], arrays[1], arrays[2], arrays[3]


def _binary_batch(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Records of one byte, the class, and 3,072 of the picture."""
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, 3073)
    return records[:, 1:].reshape(-1, 3, 32, 32), _labels(records[:, 0])


def _python_batch(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    batch = read_pickle(data)
    pictures = batch.get(b"data", batch.get("data")) if isinstance(batch, dict) else None
    labels = batch.get(b"labels", batch.get("labels")) if isinstance(batch, dict) else None
    if not isinstance(pictures, np.ndarray) or pictures.dtype != np.uint8:
        raise ValueError("its data are no array of bytes")
    if isinstance(labels, list) and all(type(label) is int and abs(label) < 1 << 31 for label in labels):
        labels = np.array(labels, dtype=np.int64)
    if not isinstance(labels, np.ndarray) or labels.ndim != 1:
        raise ValueError("its labels are no list of numbers")
    return pictures.reshape(-1, 3, 32, 32), _labels(labels)


def _labels(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.int64)
    for value in values[(values < 0) | (values >= len(CLASSES))]:
        raise ValueError(f"a class is {value}")
    return values
