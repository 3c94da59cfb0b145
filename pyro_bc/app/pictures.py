"""Pictures in a folder per class, as torchvision's ``ImageFolder`` has them, decoded where they are needed.

``root/<class>/*.png``; or ``root/train/<class>/…`` with ``root/test/<class>/…``, ``root/val/<class>/…`` or both: then
the latter is what choices are made on. Classes are numbered in the order of their names. One picture of colour makes
all of them pictures of colour; an alpha channel is left out.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.streamed import Inputs, Streamed
from ..errors import DataError
from ..runtime.files import readable
from .examples import Examples, fits_memory, in_memory

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")

# Folders of parts, by their names.
_TRAIN, _TEST, _HELD = ("train", "training"), ("test", "testing"), ("val", "valid", "validation")

# Modes of Pillow with 8 bits a channel, without and with colour.
_GREY, _COLOUR = ("1", "L", "LA", "La"), ("P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV")

# A picture of more pixels is refused before it is decoded.
_MOST_PIXELS = 50_000_000

# Pillow's readers that are asked, whatever a file is called: others run programs (EPS), or know no limits.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")

R = TypeVar("R")


def is_picture_folder(root: Path) -> bool:
    """Whether a folder holds folders, one for each class or each part."""
    return root.is_dir() and any(entry.is_dir() and not entry.name.startswith(".") for entry in root.iterdir())


def read_pictures(root: Path, size: int | None = None, input_shape: Sequence[int] = ()) -> Examples:
    """Pictures as floats in [0, 1], ``(N, 1 or 3, height, width)``; those of a large set are decoded when asked for.

    :param size: height and width that pictures are brought to, by scaling the shorter side and cutting the middle out
        of the other; None where they are all of one size.
    :param input_shape: that of a network that exists, which says size and channels; empty where there is none yet.
    :raises DataError: where there are no such folders, no two classes, or a picture is damaged, too large, of another
        depth or size.
    """
    folders = _parts(root)
    names = _class_names(folders["train"])
    files = [
        (path, number, part)
        for part, folder in folders.items()
        for path, number in _files(folder, names, part == "train")
    ]
    paths = [path for path, _, _ in files]
    sizes, shape = _common_shape(root, paths, size, input_shape)
    lazy = Streamed(partial(_decoded, paths, shape), torch.arange(len(paths)), shape)
    x: Inputs = in_memory(lazy) if fits_memory([lazy.shape]) else lazy
    y = torch.tensor([number for _, number, _ in files])
    train, test, held = (_rows(files, part) for part in ("train", "test", "held out"))
    what = f"{'grey' if shape[0] == 1 else 'colour'} pictures of {_times(shape[1:])} pixels, in [0, 1]"
    if set(sizes) != {shape[1:]}:
        what += ", scaled and their middle cut out"
    rows = torch.cat([train, held])
    found = Examples(what, x.index_select(0, rows), y[rows], classes=names, held_out=len(held))
    return replace(found, test_x=x.index_select(0, test), test_y=y[test]) if len(test) else found


def _parts(root: Path) -> dict[str, Path]:
    """Folders of the training part, and where there are some those of the test part and of what is held out."""
    inner = {entry.name.lower(): entry for entry in sorted(root.iterdir()) if is_picture_folder(entry)}
    train, test, held = (
        next((inner[name] for name in names if name in inner), None) for names in (_TRAIN, _TEST, _HELD)
    )
    if train is None:
        return {"train": root}
    if test is None:  # what is there for choices is what errors are measured on
        test, held = held, None
    found = {"train": train, "test": test, "held out": held}
    return {part: folder for part, folder in found.items() if folder is not None}


def _rows(files: Sequence[tuple[Path, int, str]], part: str) -> Tensor:
    return torch.tensor([row for row, (_, _, own) in enumerate(files) if own == part], dtype=torch.long)


def _common_shape(
    root: Path, paths: Sequence[Path], size: int | None, input_shape: Sequence[int]
) -> tuple[list[tuple[int, int]], tuple[int, int, int]]:
    """Heights and widths of the files, and the shape that all pictures get."""
    headers = _in_threads(_header, paths)
    sizes = [own for own, _ in headers]
    if size is not None and size < 1:
        raise DataError(f"--picture-size is a number of pixels, at least 1, not {size}")
    if input_shape:
        if len(input_shape) != 3 or input_shape[0] not in (1, 3):
            raise DataError(
                f"'{root}' holds pictures of 1 or 3 channels, but the network takes inputs {tuple(input_shape)}"
            )
        channels, height, width = input_shape
        return sizes, (channels, height, width)
    channels = 3 if any(mode in _COLOUR for _, mode in headers) else 1
    if size is not None:
        return sizes, (channels, size, size)
    for path, own in zip(paths, sizes, strict=True):
        if own != sizes[0]:
            raise DataError(
                f"pictures are of different sizes: '{paths[0]}' has {_times(sizes[0])} pixels, '{path}' {_times(own)}; "
                f"bring them to one size with --picture-size"
            )
    return sizes, (channels, *sizes[0])


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."))
    loose = next((entry for entry in sorted(folder.iterdir()) if entry.suffix.lower() in ENDINGS), None)
    if loose is not None:
        raise DataError(f"'{loose}' lies in no folder of a class; pictures are <class>/<name>, one folder a class")
    if len(names) < 2:
        raise DataError(f"'{folder}' holds {len(names)} folder(s) of a class; there must be two classes or more")
    return names


def _files(folder: Path, names: Sequence[str], is_training: bool) -> list[tuple[Path, int]]:
    """Files of pictures and their classes.

    :param names: of the classes, of which each must be there in the training part.
    """
    own = [] if is_training else [entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."]
    for name in own:
        if name not in names:
            raise DataError(f"'{folder}' holds a class '{name}' that the training pictures do not have")
    found: list[tuple[Path, int]] = []
    for number, name in enumerate(names):
        paths = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in ENDINGS)
        if is_training and not paths:
            raise DataError(f"'{folder / name}' holds no pictures ({', '.join(ENDINGS)})")
        found += [(path, number) for path in paths]
    if not found:
        raise DataError(f"'{folder}' holds no pictures of the training part's classes")
    return found


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A context with a picture, of which no more than the header has been looked at.

    :raises DataError: where it is none, or turns out to be damaged inside.
    """
    with readable(path, "is not a readable picture", DataError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is odd about a picture that can be read, or said again by an error
        with Image.open(path, formats=_FORMATS) as picture:
            yield picture


def _header(path: Path) -> tuple[tuple[int, int], str]:
    """Height and width, and Pillow's mode, without decoding."""
    with _opened(path) as picture:
        (width, height), mode = picture.size, picture.mode
    if width * height > _MOST_PIXELS:
        raise DataError(f"'{path}' has {width:,} x {height:,} pixels; at most {_MOST_PIXELS:,} are read")
    if mode not in (*_GREY, *_COLOUR):
        raise DataError(f"'{path}' has more than 8 bits a channel (mode {mode}): convert it to 8 bits")
    return (height, width), mode


def _decoded(paths: Sequence[Path], shape: tuple[int, int, int], rows: Tensor) -> Tensor:
    chosen = [paths[row] for row in rows.tolist()]
    pictures = np.stack(_in_threads(partial(_picture, shape=shape), chosen)) if chosen else np.empty((0, *shape))
    return torch.from_numpy(pictures).float() / 255


def _picture(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    channels, height, width = shape
    with _opened(path) as opened:
        picture = opened.convert("L" if channels == 1 else "RGB")
    if picture.size != (width, height):
        scale = max(width / picture.width, height / picture.height)
        across, along = (max(1, round(side * scale)) for side in picture.size)
        if across * along > _MOST_PIXELS:
            raise DataError(
                f"'{path}' of {_times((picture.height, picture.width))} pixels is too long to be brought to "
                f"{_times((height, width))}: cut something out of it"
            )
        left, top = (across - width) // 2, (along - height) // 2
        picture = picture.resize((across, along), Image.Resampling.BILINEAR)
        picture = picture.crop((left, top, left + width, top + height))
    return np.array(picture, dtype=np.uint8).reshape(height, width, channels).transpose(2, 0, 1)


def _in_threads(function: Callable[[Path], R], items: Sequence[Path]) -> list[R]:
    """What a function gives for each item; decoding and reading leave other threads their turn."""
    if len(items) < 4:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, items, chunksize=32))


def _times(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides))
