"""What a user's files hold, and how it becomes training, held-out and test examples."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..data.streamed import Inputs, Streamed
from ..errors import DataError, UsageError
from .datasets import Dataset
from .observed import likelihood_named, targets_for, usual_likelihood

# Part of the examples that errors are measured on where a file has none for that, and of what is left that choices are
# made on; and how many at most.
_PART, _MOST = 0.1, 5000

# Inputs by which a set is known again.
_KNOWN_BY = 64

# Sets that are no larger, in numbers, are held in memory: 1 GiB.
_IN_MEMORY = 2**28


@dataclass(frozen=True)
class Examples:
    """Inputs and targets as they were read.

    :param what: they are, in words, such as ``grey pictures of 8 x 8``.
    :param y: None where there are none; class numbers are integers.
    :param test_x: None where the files have no part for that.
    :param classes: names, where classes have some.
    :param columns: names, where inputs are columns.
    :param categories: columns of a table that held texts, and the texts of each.
    :param target: name of a table's target column.
    :param held_out: examples at the end of ``x`` that the user put aside for choices; the rest is in any order.
    """

    what: str
    x: Inputs
    y: Tensor | None
    test_x: Inputs | None = None
    test_y: Tensor | None = None
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    categories: tuple[tuple[str, tuple[str, ...]], ...] = ()
    target: str = ""
    held_out: int = 0


def _are_one_hot(y: Tensor) -> bool:
    """Whether targets are classes as rows of a 1 among zeros."""
    return y.dim() == 2 and y.shape[1] > 1 and bool(((y == 0) | (y == 1)).all()) and bool((y.sum(1) == 1).all())


def dataset_of(name: str, found: Examples, likelihood: str | None) -> Dataset:
    """Examples with their parts: in a fixed mixed order, and a tenth split off where there are none to measure on.

    :param name: of what was read, for errors, and beside figures.
    :param likelihood: by its name; None for what targets look like.
    :raises DataError: where there are too few, or targets are not what the likelihood takes.
    """
    if found.test_x is not None and (found.y is None) != (found.test_y is None):
        raise DataError(f"'{name}' holds targets of one part, but not of the other")
    _check_count(name, len(found.x), 2 if found.test_x is None else 1)
    y = torch.zeros(len(found.x), dtype=torch.long) if found.y is None else found.y
    if likelihood is None and _are_one_hot(y):
        raise DataError(
            f"'{name}': targets are rows with a single 1, which may be classes or numbers: give --likelihood "
            f"soft-categorical for classes, bernoulli for labels, or normal for numbers"
        )
    chosen = usual_likelihood(y) if likelihood is None else likelihood_named(likelihood)
    y = targets_for(chosen, _one_each(y), f"'{name}'")
    x, own = found.x, len(found.x) - found.held_out
    order = torch.cat([mixed(y[:own]), own + mixed(y[own:])])
    if found.test_x is None:
        count = min(_MOST, max(1, int(_PART * len(x))))
        order, test = order[:-count], order[-count:]
        test_x, test_y, test_part = x.index_select(0, test), y[test], "test data that were split off"
        split_from = _digest(found)
    else:
        _check_count(name, len(found.test_x), 1)
        test_x, test_part, split_from = found.test_x, "test set", ""
        test_y = torch.zeros(len(test_x), dtype=torch.long) if found.test_y is None else found.test_y
        test_y = targets_for(chosen, _one_each(test_y), f"'{name}', test part")
    has_classes = found.y is not None and not y.is_floating_point()
    classes = max(len(found.classes), int(max(y.max(), test_y.max())) + 1) if has_classes else 0
    most = max(1000, _IN_MEMORY // math.prod(x.shape[1:]))  # held-out examples are read at once
    return Dataset(
        Path(name).absolute().stem, x.index_select(0, order), y[order], test_x, test_y, classes,
        held_out=found.held_out or min(_MOST, most, max(1, int(_PART * len(order)))), likelihood=chosen,
        test_part=test_part,
        what=found.what, has_targets=found.y is not None, class_names=found.classes, columns=found.columns,
        categories=found.categories, target=found.target, is_own=True, split_from=split_from,
        put_aside=found.held_out,
    )  # fmt: skip


def _digest(found: Examples) -> str:
    """A hash by which examples are known again: of how many there are, all their targets and some of their inputs."""
    some = torch.linspace(0, len(found.x) - 1, min(len(found.x), _KNOWN_BY)).long()
    y = torch.zeros(len(found.x)) if found.y is None else found.y
    told = hashlib.sha256()
    for part in (found.x.index_select(0, some)[:], y):
        told.update(part.double().contiguous().numpy().tobytes())
    return told.hexdigest()[:16]


def mixed(y: Tensor, seed: int = 0) -> Tensor:
    """A fixed random order any part of which has about as much of every class as the whole: ``(N,)``.

    :param y: class numbers ``(N,)``; with other targets the order is random.
    """
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    if y.is_floating_point() or y.dim() != 1:
        return order
    # The k-th of a class's n comes at (k + 1/2) / n of the way.
    by_class = order[y[order].argsort(stable=True)]
    _, counts = y[by_class].unique_consecutive(return_counts=True)
    place = torch.cat([(torch.arange(int(n)) + 0.5) / int(n) for n in counts]) if len(y) else torch.zeros(0)
    return by_class[place.argsort(stable=True)]


def fits_memory(shapes: Sequence[Sequence[int]]) -> bool:
    """Whether inputs of these shapes, a set's parts, are to be held in memory."""
    return sum(int(torch.Size(shape).numel()) for shape in shapes) <= _IN_MEMORY


def in_memory(x: Streamed) -> Tensor:
    """All examples, read part by part."""
    whole = torch.empty(x.shape, dtype=x.dtype)
    start = 0
    for part in x.split(1000):
        whole[start : start + len(part)] = part
        start += len(part)
    return whole


def _one_each(y: Tensor) -> Tensor:
    """Targets ``(N, 1)`` as ``(N,)``."""
    return y.squeeze(-1) if y.dim() == 2 and y.shape[1] == 1 else y


def _check_count(name: str, count: int, least: int) -> None:
    if count < least:
        raise DataError(f"'{name}' holds {count} example(s); there must be some to learn from and some to measure on")


def check_option(name: str, option: str, value: object, takes: str) -> None:
    """:raises UsageError: where an option is given that data of a kind do not take."""
    if value is not None:
        raise UsageError(f"--{option} is for {takes}; '{name}' is none")
