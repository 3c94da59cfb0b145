"""Inputs and targets in files of numpy's or of safetensors; those of a large set stay where they are until asked for.

``.npy`` holds inputs; ``.npz`` and ``.safetensors`` hold ``x``, and where they are known targets ``y``, and likewise
``test_x`` and ``test_y``, and ``val_x`` and ``val_y``, on which choices are made (or ``x_train``, ``y_train``, …);
where there is no test part, ``val_x`` is it, as for pictures. Bytes (uint8) of three or four dimensions are pictures:
they become floats in [0, 1], ``(N, channels, height, width)``, whether channels come first, last or not at all. Other
integers are the network's own, such as tokens, or numbers, which the network decides.
"""

import struct
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from ..data.streamed import Inputs, Streamed, followed_by
from ..errors import DataError
from ..runtime.files import readable
from .examples import Examples, fits_memory, in_memory

ENDINGS = (".npy", ".npz", ".safetensors")

# A packed archive may inflate to so many bytes, or so many times its own size: packed pictures are a third of theirs.
_INFLATED, _TIMES = 1 << 30, 32

# Under which names parts are found.
_NAMES = {
    "x": ("x", "train_x", "x_train", "inputs"),
    "y": ("y", "train_y", "y_train", "targets"),
    "test_x": ("test_x", "x_test"),
    "test_y": ("test_y", "y_test"),
    "val_x": ("val_x", "x_val", "valid_x", "x_valid"),
    "val_y": ("val_y", "y_val", "valid_y", "y_valid"),
}


def read_arrays(path: Path) -> Examples:
    """What a file holds.

    :raises DataError: where it is damaged, holds no such parts, or they do not go together.
    """
    arrays = _arrays(path)
    parts: dict[str, Any] = {
        part: next((arrays[name] for name in names if name in arrays), None) for part, names in _NAMES.items()
    }
    if parts["x"] is None:
        raise DataError(
            f"'{path}' holds no inputs 'x', but {', '.join(arrays) or 'nothing'}: save inputs as x, targets as y, and "
            f"where there is a test part test_x and test_y"
        )
    for part in ("", "test_", "val_"):
        x, y = parts[f"{part}x"], parts[f"{part}y"]
        if x is not None and (x.ndim < 2 or not len(x)):
            raise DataError(f"'{path}': {part}x has shape {tuple(x.shape)}, not (examples, …)")
        if y is not None and (x is None or not y.ndim or len(y) != len(x)):
            inputs = 0 if x is None else len(x)
            raise DataError(f"'{path}': {part}y are {len(y) if y.ndim else 0} targets, of {inputs} inputs")
    if parts["test_x"] is None:
        parts |= {"test_x": parts["val_x"], "test_y": parts["val_y"], "val_x": None, "val_y": None}
    x = parts["x"]
    for name in ("test_x", "val_x"):
        other = parts[name]
        if other is not None and (x.shape[1:] != other.shape[1:] or x.dtype != other.dtype):
            raise DataError(f"'{path}': x holds {_told(x)}, but {name} {_told(other)}")
    given = {name: parts[name] for name in ("x", "test_x", "val_x") if parts[name] is not None}
    is_small = fits_memory([own.shape for own in given.values()])
    inputs_of = {name: _inputs(path, own, is_small) for name, own in given.items()}
    targets, test_targets, held_targets = (
        None if parts[own] is None else _numbers(parts[own]) for own in ("y", "test_y", "val_y")
    )
    own_x, held_out = inputs_of["x"], inputs_of.get("val_x")
    if held_out is not None:
        kinds = {None if own is None else own.shape[1:] for own in (targets, held_targets)}
        if len(kinds) > 1:
            raise DataError(f"'{path}': y and val_y are not targets of one kind")
        own_x = followed_by(own_x, held_out)
        if targets is not None and held_targets is not None:
            targets = torch.cat([targets, held_targets])
    count = 0 if held_out is None else len(held_out)
    return Examples(_what(x, own_x), own_x, targets, inputs_of.get("test_x"), test_targets, held_out=count)


def _what(array: Any, x: Inputs) -> str:
    sizes = " x ".join(map(str, x.shape[1:]))
    if _are_pictures(array):
        return f"pictures of {sizes}, in [0, 1]"
    return f"{'numbers' if x.is_floating_point() else 'integers'}, {sizes} of an example"


def _told(array: Any) -> str:
    return f"{array.dtype} of shape {tuple(array.shape)}"


def _are_pictures(array: Any) -> bool:
    return array.dtype == np.uint8 and array.ndim in (3, 4)


def _arrays(path: Path) -> Mapping[str, Any]:
    """Arrays by their names, on the disk where the file's format allows it."""
    with readable(path, f"is not a readable {path.suffix} file of numbers", DataError):
        if path.suffix == ".npy":
            found = {"x": np.load(path, mmap_mode="r", allow_pickle=False)}
        elif path.suffix == ".npz":
            found = {name.removesuffix(".npy"): array for name, array in _of_archive(path).items()}
        else:
            with safetensors.safe_open(path, framework="pt") as file:  # tensors of a file that is mapped into memory
                found = {name: _of_tensor(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        found = {name: _checked(array) for name, array in found.items()}
    return found


def _of_tensor(tensor: Tensor) -> Any:
    return (tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).numpy()


def _of_archive(path: Path) -> dict[str, Any]:
    """Arrays of a ``.npz`` file; those that are stored as they are stay on the disk."""
    found: dict[str, Any] = {}
    most = max(_INFLATED, _TIMES * path.stat().st_size)
    with np.load(path, allow_pickle=False) as loaded, zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        for name in loaded.files:
            member = members.get(f"{name}.npy") or members[name]
            is_stored = member.compress_type == zipfile.ZIP_STORED and member.file_size > 2**20
            most -= 0 if is_stored else member.file_size  # zipfile gives no more than a member says
            if most < 0:
                raise DataError(f"'{path}' inflates to far more than it has; numpy.savez writes what is read in parts")
            found[name] = _mapped(path, archive, member) if is_stored else loaded[name]
    return found


def _mapped(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Any:
    with path.open("rb") as file:
        file.seek(member.header_offset)
        header = file.read(30)
        start = member.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        file.seek(start)
        shape, is_fortran, dtype = _header(file)
        offset = file.tell()
    if dtype.hasobject:
        raise ValueError("it holds objects")
    return np.memmap(path, dtype, "r", offset, shape, "F" if is_fortran else "C")


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, Any]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def _checked(array: Any) -> Any:
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        hint = ": number the classes 0, 1, 2, …" if getattr(getattr(array, "dtype", None), "kind", "") in "US" else ""
        raise ValueError(f"an array of {getattr(array, 'dtype', type(array).__name__)} holds no numbers{hint}")
    return array


def _inputs(path: Path, array: Any, is_small: bool) -> Inputs:
    """Inputs as a network takes them, read where the set is small."""
    shape = tuple(array.shape[1:])
    if _are_pictures(array):
        shape = (1, *shape) if array.ndim == 3 else shape
        is_last = shape[2] in (1, 3) and shape[0] not in (1, 3)
        shape = (shape[2], shape[0], shape[1]) if is_last else shape
    is_floating = array.dtype.kind == "f" or _are_pictures(array)
    dtype = torch.float32 if is_floating else torch.int64
    lazy = Streamed(partial(_rows, path, array, shape), torch.arange(len(array)), shape, dtype)
    return in_memory(lazy) if is_small else lazy


def _rows(path: Path, array: Any, shape: tuple[int, ...], rows: Tensor) -> Tensor:
    chosen = _numbers(array[rows.numpy()])
    if _are_pictures(array):
        if chosen.dim() == 4 and tuple(chosen.shape[1:]) != shape:
            chosen = chosen.movedim(-1, 1)
        return chosen.reshape(len(rows), *shape).float() / 255
    if chosen.is_floating_point():
        chosen = chosen.float()
        is_finite = chosen.flatten(1).isfinite().all(1)
        if not bool(is_finite.all()):
            row = int(rows[~is_finite][0])
            raise DataError(f"'{path}': inputs hold NaN or infinite numbers, the first in row {row}; clean the data")
    return chosen


def _numbers(array: Any) -> Tensor:
    """An array as a tensor: floats as they are, integers and truth values as int64."""
    if array.dtype.kind == "f":
        wide = np.float64 if array.dtype.itemsize > 4 else np.float32
        return torch.from_numpy(np.array(array, dtype=wide))
    return torch.from_numpy(np.array(array, dtype=np.int64))
