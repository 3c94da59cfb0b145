"""The data sets of the analyses and the command, as tensors.

=================  =======================================================  ==========================
name               source                                                   train, validation, test
=================  =======================================================  ==========================
``digits``         scikit-learn, embedded: 8 × 8 pictures of digits         1,437 (180 held out), 360
``mnist``          the four original files, read from a folder or fetched   60,000 (5,000 held out), 10,000
``fashion-mnist``  likewise                                                 60,000 (5,000 held out), 10,000
``cifar-10``       the original archives, Python or binary, packed or not   50,000 (5,000 held out), 10,000
``cifar-10-jpeg``  JPEG files in a folder per class, in an archive or not   50,000 (5,000 held out), 10,000
=================  =======================================================  ==========================

Pictures are floats in [0, 1], ``(N, channels, height, width)``. The held-out part is the end of the training
set: whatever is chosen by looking (thresholds, epochs) is chosen there.

``cifar-10-jpeg`` is a lossy copy of CIFAR-10, "CIFAR-10 (JPEG copy)" wherever a figure comes from it.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..data.streamed import Inputs, followed_by
from ..errors import DataError, UsageError
from ..model.likelihoods import Categorical, Likelihood
from ..runtime.messages import first_line
from .cifar import PACKED, Arrays, read_binary, read_jpeg, read_python
from .idx import FILES, Published, names_of, read_idx

# Numbers in the inputs of a batch that is judged at once, at most.
_NUMBERS = 2**22


@dataclass(frozen=True)
class Dataset:
    """Inputs and targets, for training and for the final test.

    Of the sets above pictures ``(N, C, H, W)`` in [0, 1] and class numbers ``(N,)``.

    :param name: as it is written beside figures.
    :param train_x: ``(N, …)``, in memory or read when they are asked for; so is ``test_x``.
    :param classes: how many, 0 where targets are no class numbers.
    :param held_out: how many examples at the end of the training part choices are made on.
    :param put_aside: how many of them the user put aside for that; 0 where nobody did.
    :param likelihood: of targets given a network's outputs; its metric is what errors are.
    :param test_part: what the test part is.
    :param what: the inputs are, in words.
    :param has_targets: whether anyone knows the targets; they are 0 where not.
    :param class_names: where classes have names.
    :param columns: names, where inputs are columns.
    :param categories: columns of a table that held texts, and the texts of each.
    :param target: name of a table's target column.
    :param is_own: whether it is a user's, and none of the sets above.
    :param split_from: by what a user's examples are known again, where the test part was split off them; else empty.
    """

    name: str
    train_x: Inputs
    train_y: Tensor
    test_x: Inputs
    test_y: Tensor
    classes: int
    held_out: int
    likelihood: Likelihood = Categorical()  # noqa: RUF009 - it is frozen
    test_part: str = "test set"
    what: str = "pictures"
    has_targets: bool = True
    class_names: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    categories: tuple[tuple[str, tuple[str, ...]], ...] = ()
    target: str = ""
    is_own: bool = False
    split_from: str = ""
    put_aside: int = 0

    @property
    def picture_shape(self) -> tuple[int, ...]:
        """``(C, H, W)``, or whatever shape one input has."""
        return tuple(self.train_x.shape[1:])

    def development(self) -> "Dataset":
        """The same set for making choices: the end of the training part takes the test part's place."""
        n, held = len(self.train_x) - self.held_out, self.held_out
        return replace(
            self, train_x=self.train_x.narrow(0, 0, n), train_y=self.train_y[:n],
            test_x=self.train_x.narrow(0, n, held), test_y=self.train_y[n:], test_part="held-out training data",
        )  # fmt: skip

    def whole(self, test_part: str) -> "Dataset":
        """The same set with all its examples as the test part, of that name."""
        x = followed_by(self.train_x, self.test_x)
        return replace(self, test_x=x, test_y=torch.cat([self.train_y, self.test_y]), test_part=test_part)

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The test part in batches, each read when its turn comes; smaller ones of large inputs."""
        return self._in_batches(self.test_x, self.test_y)

    def train_batches(self, most: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The first training examples, likewise, in their order."""
        count = min(most, len(self.train_x))
        return self._in_batches(self.train_x.narrow(0, 0, count), self.train_y[:count])

    def _in_batches(self, x: Inputs, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        size = min(1000, max(1, _NUMBERS // math.prod(self.picture_shape)))
        return zip(x.split(size), y.split(size), strict=True)

    def to(self, device: str | torch.device) -> "Dataset":
        """The same set on a device.

        :raises UsageError: where torch has no such device here, or it holds no numbers.
        """
        try:
            parts = {name: getattr(self, name).to(device) for name in ("train_x", "train_y", "test_x", "test_y")}
        except (RuntimeError, AssertionError, ImportError) as error:  # no such device; not built in; a package it needs
            reason = first_line(error)
            raise UsageError(f"the device '{device}' cannot be used: {reason}") from None
        if parts["train_y"].is_meta:
            raise UsageError(f"the device '{device}' cannot be used: it holds shapes, but no numbers")
        return replace(self, **parts)

    def limited(self, examples: int) -> "Dataset":
        """The same set with the first so many training examples only; the test part stays whole."""
        if not 1 <= examples <= len(self.train_x):
            raise DataError(
                f"the training set has {len(self.train_x):,} examples; {examples:,} of them cannot be taken"
            )
        return replace(self, train_x=self.train_x.narrow(0, 0, examples), train_y=self.train_y[:examples])


_MNIST = Published(
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432",
     "9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c"),
    ((5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
     (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)),
    (0.1307, 0.1325),
)  # fmt: skip

_FASHION_MNIST = Published(
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe",
     "bef4ecab320f06d8554ea6380940ec79", "bb300cfdad3c16e7a12a480ee83cd310"),
    ((6000,) * 10, (1000,) * 10),
    (0.2860, 0.2868),
)  # fmt: skip


def _digits(folder: str | os.PathLike[str] | None) -> Dataset:
    from sklearn.datasets import load_digits  # a second to import, and only this set needs it
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    # Neighbours in the file come from one writer: a fixed shuffle, stratified by class, mixes them.
    split = train_test_split(x, y, test_size=360, stratify=y, random_state=0)
    train_x, test_x = (torch.tensor(part / 16, dtype=torch.float32).reshape(-1, 1, 8, 8) for part in split[:2])
    train_y, test_y = (torch.tensor(part, dtype=torch.long) for part in split[2:])
    return Dataset("digits", train_x, train_y, test_x, test_y, classes=10, held_out=180)


def _idx_set(name: str, source: Published) -> Callable[[str | os.PathLike[str] | None], Dataset]:
    def load(folder: str | os.PathLike[str] | None) -> Dataset:
        paths = [
            _find(name, names_of(file), source.url, md5, folder) for file, md5 in zip(FILES, source.md5s, strict=True)
        ]
        try:
            parts = [read_idx(path) for path in paths]
        except DataError as error:
            raise DataError(
                f"{error}. Replace it with the original from {source.url}, or give no folder to have it downloaded"
            ) from None
        if [hashlib.md5(path.read_bytes()).hexdigest() for path in paths] != list(source.md5s):
            source.check(name, paths[0].parent, parts)
        train_x, test_x = (parts[i].unsqueeze(1).float() / 255 for i in (0, 2))
        train_y, test_y = (parts[i].long() for i in (1, 3))
        return Dataset(name, train_x, train_y, test_x, test_y, classes=10, held_out=5000)

    return load


def _find(name: str, files: Sequence[str], url: str, md5: str, folder: str | os.PathLike[str] | None) -> Path:
    """A file in the user's folder, under one of its names; or in the cache, downloaded where it is not there.

    :param files: its names; the first is that of the original.
    :param md5: of the original, by which a download is verified.
    """
    folder = folder or os.environ.get("PYRO_BC_DATA")
    file = files[0]
    if folder is not None:
        base = Path(folder)
        if not base.is_dir():
            raise DataError(
                f"the data folder '{folder}' does not exist; name one that holds {file}, or none to download"
            )
        for path in (place / own for place in (base, base / name) for own in files):
            if path.is_file():
                return path
        raise DataError(
            f"'{folder}' does not hold {file} (looked in it and in {name}/); put the original file there, or give no "
            f"folder to have it downloaded"
        )
    import pooch  # only a download needs it

    try:
        return Path(
            pooch.retrieve(url + file, known_hash=f"md5:{md5}", fname=f"{name}-{file}", path=pooch.os_cache("pyro_bc"))
        )
    except Exception as error:
        reason = first_line(error)[:120]
        raise DataError(
            f"{file} of {name} could not be downloaded ({reason}); check the network, or give the folder that holds "
            f"the original file with --data-dir or $PYRO_BC_DATA"
        ) from None


def _cifar_10(folder: str | os.PathLike[str] | None) -> Dataset:
    md5 = "c58f30108f718f92721af3b95e74349a"
    file, url = "cifar-10-python.tar.gz", "https://www.cs.toronto.edu/~kriz/"
    kinds = {"cifar-10-batches-py": read_python, "cifar-10-batches-bin": read_binary, "cifar-10-binary": read_binary}
    readers = kinds | {f"cifar-10-binary.{packed}": read_binary for packed in PACKED}
    readers |= {f"cifar-10-python.{packed}": read_python for packed in PACKED}
    found = _find_one("cifar-10", readers, folder)
    if found is None:
        return _pictures("CIFAR-10", read_python(_find("cifar-10", (file,), url, md5, folder)))
    return _pictures("CIFAR-10", found)


def _cifar_10_jpeg(folder: str | os.PathLike[str] | None) -> Dataset:
    readers = {"cifar10-jpeg.tar.xz": read_jpeg, "cifar10-jpeg.tar.gz": read_jpeg, "train": _beside_train}
    found = _find_one("cifar10-jpeg", readers, folder)
    if found is None:
        raise DataError(
            "cifar-10-jpeg cannot be downloaded: give the folder that holds cifar10-jpeg.tar.xz, or train/<class>/*.jpg"
            " and test/<class>/*.jpg, with --data-dir or $PYRO_BC_DATA"
        )
    return _pictures("CIFAR-10 (JPEG copy)", found)


def _beside_train(path: Path) -> Arrays:
    return read_jpeg(path.parent)


def _find_one(
    name: str, readers: Mapping[str, Callable[[Path], Arrays]], folder: str | os.PathLike[str] | None
) -> Arrays | None:
    """What the first of these files and folders holds that is in the user's folder."""
    folder = folder or os.environ.get("PYRO_BC_DATA")
    if folder is None:
        return None
    base = Path(folder)
    if not base.is_dir():
        raise DataError(f"the data folder '{folder}' does not exist; name one that holds {next(iter(readers))}")
    for place in (base, base / name):
        for entry, read in readers.items():
            if (place / entry).exists():
                return read(place / entry)
    return None


def _pictures(name: str, arrays: Arrays) -> Dataset:
    train_x, test_x = (torch.from_numpy(part).float() / 255 for part in (arrays[0], arrays[2]))
    train_y, test_y = (torch.from_numpy(part) for part in (arrays[1], arrays[3]))
    return Dataset(name, train_x, train_y, test_x, test_y, classes=10, held_out=len(train_x) // 10)


_DATASETS: dict[str, Callable[[str | os.PathLike[str] | None], Dataset]] = {
    "digits": _digits,
    "mnist": _idx_set("mnist", _MNIST),
    "fashion-mnist": _idx_set("fashion-mnist", _FASHION_MNIST),
    "cifar-10": _cifar_10,
    "cifar-10-jpeg": _cifar_10_jpeg,
}

#: names that :func:`load_dataset` knows.
DATASETS = tuple(_DATASETS)


def load_dataset(name: str, folder: str | os.PathLike[str] | None = None) -> Dataset:
    """A data set by name.

    :param folder: where the original files lie, in it or in a folder named after the set; default
        ``$PYRO_BC_DATA``, or the user's cache after a download with verified checksums. Files there may be packed
        otherwise, or not at all: what they hold is looked at.
    :raises DataError: for an unknown name, a missing folder or file, one that holds something else, or no network.

    >>> load_dataset("digits").train_x.shape
    torch.Size([1437, 1, 8, 8])
    """
    if name not in _DATASETS:
        raise DataError(f"unknown data set '{name}'; there are {', '.join(DATASETS)}")
    return _DATASETS[name](folder)
