"""Data by their name: a set of ours, or a user's folder or file.

==========================  ============================================================================
what lies at the path       how it is read
==========================  ============================================================================
a folder of folders         pictures by class (:mod:`~pyro_bc.app.pictures`)
``.npy .npz .safetensors``  inputs, and targets where they are known (:mod:`~pyro_bc.app.arrays`)
``.csv .tsv .parquet``      a table with a target column (:mod:`~pyro_bc.app.columns`)
a folder of idx files       MNIST and its like (:mod:`~pyro_bc.app.idx`)
CIFAR-10's batches          in a folder or an archive, Python's or binary (:mod:`~pyro_bc.app.cifar`)
==========================  ============================================================================

Where there is no part to measure errors on, a tenth of the examples, 5,000 at most, is split off: always the same, and
of every class a tenth.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from ..errors import DataError
from . import arrays, columns, pictures
from .cifar import CLASSES, PACKED, Arrays, read_binary, read_python
from .datasets import DATASETS, Dataset, load_dataset
from .examples import Examples, check_option, dataset_of
from .idx import find_idx, read_idx
from .observed import LIKELIHOODS, likelihood_named, usual_likelihood

_TABLES, _PICTURES = "a table, .csv or .parquet", "a folder of pictures by class"


def load_data(
    name: str,
    folder: str | os.PathLike[str] | None = None,
    *,
    likelihood: str | None = None,
    target: str | None = None,
    picture_size: int | None = None,
    input_shape: Sequence[int] = (),
    categories: Mapping[str, Sequence[str]] | None = None,
) -> Dataset:
    """A data set of ours by its name, or a user's by its path.

    :param name: of ``pyro_bc.app.datasets.DATASETS``, or a path as above.
    :param folder: of the original files of one of ours.
    :param likelihood: of the targets, by a name of :data:`~pyro_bc.app.observed.LIKELIHOODS`; None for classes where
        they are integers or texts, and numbers with normal noise where they are floats.
    :param target: name of a table's target column.
    :param picture_size: height and width that a folder's pictures are brought to.
    :param input_shape: that of a network that exists; empty where there is none yet.
    :param categories: the texts that columns of another table held, by the column's name, whose numbers this one's
        are to have.
    :raises DataError: where there is no such set, file or column, or it does not hold that.
    :raises UsageError: where an option is given that has no meaning for it.
    """
    if likelihood is not None:
        likelihood_named(likelihood)
    if name in DATASETS:
        check_option(name, "target", target, _TABLES)
        check_option(name, "picture-size", picture_size, _PICTURES)
        return _with_likelihood(load_dataset(name, folder), likelihood)
    path = Path(name)
    if not path.exists():
        raise DataError(
            f"unknown data '{name}'; there are {', '.join(DATASETS)}, and your own: the path of a folder of pictures "
            f"by class, or of a file, {', '.join((*arrays.ENDINGS, *columns.ENDINGS))}"
        )
    if path.suffix not in columns.ENDINGS:
        check_option(name, "target", target, _TABLES)
    found = _idx(path) or _cifar(path)
    if found is None and pictures.is_picture_folder(path):
        found = pictures.read_pictures(path, picture_size, input_shape)
    else:
        check_option(name, "picture-size", picture_size, _PICTURES)
    if path.suffix in columns.ENDINGS:
        is_class = None if likelihood is None else likelihood_named(likelihood) == LIKELIHOODS["categorical"]()
        found = columns.read_columns(path, target, is_class, categories)
    elif path.suffix in arrays.ENDINGS:
        found = arrays.read_arrays(path)
    if found is None:
        raise DataError(
            f"unknown data '{name}': it is no folder of pictures by class, and no file that ends in "
            f"{', '.join((*arrays.ENDINGS, *columns.ENDINGS))}"
        )
    return dataset_of(name, found, likelihood)


def _with_likelihood(data: Dataset, likelihood: str | None) -> Dataset:
    if likelihood is None or likelihood_named(likelihood) == usual_likelihood(data.train_y):
        return data
    raise DataError(f"the targets of {data.name} are classes: leave out --likelihood {likelihood}")


def _idx(path: Path) -> Examples | None:
    found = find_idx(path) if path.is_dir() else {}
    if not found:
        return None
    missing = [key for key in ("train_x", "train_y", "test_x", "test_y") if key not in found]
    if missing not in ([], ["test_x", "test_y"]):
        raise DataError(f"'{path}' holds {', '.join(file.name for file in found.values())}, but no {missing[0]} beside")
    parts = {key: read_idx(file) for key, file in found.items()}
    for part in ("train", "test"):
        x, y = parts.get(f"{part}_x"), parts.get(f"{part}_y")
        if x is not None and y is not None and (x.dim() != 3 or y.dim() != 1 or len(x) != len(y)):
            raise DataError(
                f"'{path}': pictures of shape {tuple(x.shape)} and classes {tuple(y.shape)} are no {part} part"
            )
    x, test_x = (parts[key].unsqueeze(1).float() / 255 if key in parts else None for key in ("train_x", "test_x"))
    y, test_y = (parts[key].long() if key in parts else None for key in ("train_y", "test_y"))
    assert x is not None
    return Examples(f"pictures of {x.shape[2]} x {x.shape[3]}, in [0, 1]", x, y, test_x, test_y)


def _cifar(path: Path) -> Examples | None:
    reader = _cifar_reader(path)
    if reader is None:
        return None
    x, y, test_x, test_y = (torch.from_numpy(part) for part in reader(path))
    return Examples(
        "colour pictures of 32 x 32, in [0, 1]", x.float() / 255, y, test_x.float() / 255, test_y, classes=CLASSES
    )


def _cifar_reader(path: Path) -> Callable[[Path], Arrays] | None:
    readers = {"data_batch_1": read_python, "data_batch_1.bin": read_binary}
    if path.is_dir():
        return next((reader for name, reader in readers.items() if (path / name).is_file()), None)
    if not path.name.endswith(tuple(f".{ending}" for ending in PACKED)):
        return None
    return read_binary if "bin" in path.name else read_python
