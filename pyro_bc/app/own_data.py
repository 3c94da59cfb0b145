"""A user's tensors: inputs, with or without targets, from a file of numpy's or of safetensors."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from ..errors import DataError
from .datasets import DATASETS, load_dataset

# Part of the examples that errors are measured on where a file has none for that, and how many at most.
_MEASURED, _MOST_MEASURED = 0.1, 5000


@dataclass(frozen=True)
class Examples:
    """Inputs, and targets where there are any.

    :param name: as it is written beside figures.
    :param measured_on: what the test part is.
    """

    name: str
    train_x: Tensor
    train_y: Tensor | None
    test_x: Tensor
    test_y: Tensor | None
    measured_on: str

    @property
    def classes(self) -> int | None:
        """Classes of the targets; None where there are no targets, or they are no class numbers."""
        if self.train_y is None or self.train_y.is_floating_point():
            return None
        return int(self.train_y.max()) + 1


def load_examples(name: str, folder: str | None = None) -> Examples:
    """A data set by its name, or a file of a user's.

    :param name: of ``pyro_bc.app.datasets.DATASETS``; or the path of a ``.npy`` file of inputs ``(examples, …)``,
        or of a ``.npz`` or ``.safetensors`` file with ``x`` and, if they are known, targets ``y``; ``test_x`` and
        ``test_y``, too, or the last tenth of the examples is what errors are measured on.
    :param folder: of a data set's original files.
    :raises DataError: where there is no such set or file, or it does not hold that.
    """
    path = Path(name)
    if path.suffix in (".npy", ".npz", ".safetensors"):
        return _of_tensors(path, _tensors(path))
    if name in DATASETS:
        data = load_dataset(name, folder)
        return Examples(data.name, data.train_x, data.train_y, data.test_x, data.test_y, "test set")
    raise DataError(
        f"unknown data '{name}'; there are {', '.join(DATASETS)}, and files of your own: .npy, .npz or .safetensors"
    )


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        found: Any = np.load(path, allow_pickle=False)
        arrays = {"x": found} if path.suffix == ".npy" else {key: found[key] for key in found.files}
        return {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in arrays.items()}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, safetensors.SafetensorError) as error:
        raise DataError(f"'{path}' is not a readable {path.suffix} file of numbers ({error})") from None


def _of_tensors(path: Path, tensors: dict[str, Tensor]) -> Examples:
    if "x" not in tensors:
        raise DataError(f"'{path}' holds no inputs 'x', but {', '.join(tensors) or 'nothing'}")
    for part in ("", "test_"):
        x, y = tensors.get(f"{part}x"), tensors.get(f"{part}y")
        if x is not None and (x.dim() < 2 or not len(x)):
            raise DataError(f"'{path}': {part}x has shape {tuple(x.shape)}, not (examples, …)")
        if y is not None and (x is None or len(y) != len(x)):
            raise DataError(f"'{path}': {part}y are {len(y)} targets, of {0 if x is None else len(x)} inputs")
    x, y = _inputs(tensors["x"]), _targets(tensors.get("y"))
    if "test_x" in tensors:
        test_x, test_y = _inputs(tensors["test_x"]), _targets(tensors.get("test_y"))
        return Examples(path.stem, x, y, test_x, test_y, "test set")
    held = min(_MOST_MEASURED, max(1, int(_MEASURED * len(x))))
    if len(x) <= held:
        raise DataError(f"'{path}' holds {len(x)} example; there must be some to collect from and some to measure on")
    test_y = None if y is None else y[-held:]
    return Examples(path.stem, x[:-held], None if y is None else y[:-held], x[-held:], test_y, "held-out data")


def _inputs(x: Tensor) -> Tensor:
    return x.float() if x.is_floating_point() else x


def _targets(y: Tensor | None) -> Tensor | None:
    return None if y is None else y.float() if y.is_floating_point() else y.long()
