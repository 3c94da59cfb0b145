"""Tables with a target column, from CSV or Parquet, as numbers.

Numbers stay as they are, in their units; truth values become 0 and 1; a column of texts becomes a column of 0 and 1 for
each of them (one of two where there are two), in the order of the texts. Nothing is filled in: a missing value is an
error. Classes are numbered in the order of the targets' values, unless these are 0, 1, 2, … themselves.
"""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..runtime.files import readable
from .examples import Examples

ENDINGS = (".csv", ".tsv", ".parquet")

# The target, where nobody names it, is the column of such a name, or the last.
_TARGETS = ("target", "label", "class", "y")

# More different texts than that are no categories.
_MOST_CATEGORIES = 100

# Characters of a first line; and of a table of Parquet, where nothing else bounds them, values and bytes in all, and
# rows that are inflated before they are counted.
_MOST_OF_A_LINE, _MOST_CELLS, _MOST_BYTES, _ROWS_AT_ONCE = 1 << 24, 1 << 29, 1 << 32, 1 << 10


def read_columns(
    path: Path, target: str | None, is_class: bool | None, categories: Mapping[str, Sequence[str]] | None = None
) -> Examples:
    """What a table holds: inputs ``(rows, columns)``, and targets.

    :param target: name of its column; None for one that is called target, label, class or y, or the last.
    :param is_class: whether targets are to be classes; None where their values say it.
    :param categories: texts of the columns of another table whose columns of numbers these are to be.
    :raises DataError: where the file is damaged, has no such column, or values are missing, or neither numbers nor
        categories, or texts that the other table has not.
    """
    frame = _frame(path)
    if len(frame.columns) < 2 or not len(frame):
        raise DataError(f"'{path}' holds {len(frame):,} rows of {len(frame.columns)} columns: too few to learn from")
    unnamed = [at for at, column in enumerate(frame.columns, 1) if str(column).startswith("Unnamed: ")]
    if unnamed and path.suffix != ".parquet":
        raise DataError(
            f"'{path}': column {unnamed[0]} has no name in the first line; is it a count of rows, which says nothing "
            f"of new ones? Leave it out (pandas: to_csv(…, index=False)), or give it a name"
        )
    name = _target_of(path, frame, target)
    for column in frame.columns:
        missing = int(frame[column].isna().sum())
        if missing:
            raise DataError(
                f"'{path}': {missing:,} of {len(frame):,} values of column '{column}' are missing, the first in row "
                f"{int(np.argmax(frame[column].isna().to_numpy())) + 1}: fill them in, or leave rows or column out"
            )
    y, classes = _targets(path, name, frame[name], is_class)
    columns: list[str] = []
    values: list[np.ndarray] = []
    levels: dict[str, tuple[str, ...]] = {}
    for column in frame.columns:
        if column == name:
            continue
        own, label = frame[column], str(column)
        if _is_text(own):
            levels[label] = _levels(path, label, own, (categories or {}).get(label))
            encoded = _shown(label, levels[label], own)
        else:
            encoded = [(label, _single(path, label, own))]
        columns += [of for of, _ in encoded]
        values += [numbers for _, numbers in encoded]
    x = torch.from_numpy(np.stack(values, 1))
    shown = ", ".join(columns[:5]) + (", …" if len(columns) > 5 else "")
    return Examples(
        f"{len(columns)} columns of numbers ({shown}) and the target {name}",
        x,
        y,
        classes=classes,
        columns=tuple(columns),
        categories=tuple(levels.items()),
        target=str(name),
    )


def _frame(path: Path) -> Any:
    import pandas  # half a second, and only tables need it

    with readable(path, f"is not a readable {path.suffix} file", DataError):
        if path.suffix == ".parquet":
            return _of_parquet(path)
        with path.open(encoding="utf-8-sig") as file:
            head = file.readline(_MOST_OF_A_LINE)
        separator = max("\t;,", key=head.count)
        frame = pandas.read_csv(path, sep=separator, encoding="utf-8-sig", skipinitialspace=True, low_memory=False)
    if all(_is_number(str(column)) for column in frame.columns):
        raise DataError(f"'{path}' has no names in its first line, but numbers: give the columns names")
    return frame


def _of_parquet(path: Path) -> Any:
    """A table of Parquet, of which a few bytes may stand for any number of rows: what it comes to is counted first."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"'{path}': Parquet is read by pyarrow: pip install 'pyro-bc[parquet]'") from None
    parts, left = [], _MOST_BYTES
    with parquet.ParquetFile(path) as file:
        cells = file.metadata.num_rows * file.metadata.num_columns
        if cells > _MOST_CELLS:
            raise DataError(f"'{path}' holds {cells:,} values; at most {_MOST_CELLS:,} are read")
        for part in file.iter_batches(_ROWS_AT_ONCE):
            left -= part.nbytes
            if left < 0:
                raise DataError(f"'{path}' inflates to more than {_MOST_BYTES:,} bytes: it holds more than numbers")
            parts.append(part)
        return pyarrow.Table.from_batches(parts, file.schema_arrow).to_pandas()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _target_of(path: Path, frame: Any, target: str | None) -> Any:
    names = list(frame.columns)
    if target is not None:
        if target not in names:
            raise DataError(f"'{path}' has no column '{target}'; it has {', '.join(map(str, names))}")
        return target
    usual = [column for column in names if str(column).lower() in _TARGETS]
    return usual[0] if len(usual) == 1 else names[-1]


def _is_text(column: Any) -> bool:
    return column.dtype.kind not in "iufb"


def _numbers_of(path: Path, name: str, column: Any) -> np.ndarray:
    values = np.array(column, dtype=np.float64)
    if not np.isfinite(values).all():
        raise DataError(f"'{path}': column '{name}' holds infinite numbers; clean the data")
    return values


def _single(path: Path, name: str, column: Any) -> np.ndarray:
    """A column of numbers in float32."""
    values = _numbers_of(path, name, column)
    single = values.astype(np.float32)
    if not np.isfinite(single).all() or np.abs(single - values).max() > 1e-3 * max(values.std(), 1e-300) > 0:
        raise DataError(
            f"'{path}': float32 cannot tell the numbers of column '{name}' apart, about {values.mean():g} and "
            f"{values.std():g} around it: subtract a number from them"
        )
    return single


def _levels(path: Path, name: str, column: Any, known: Sequence[str] | None) -> tuple[str, ...]:
    """The texts of a column in their order, those of another table where they are known from there."""
    if _are_dates(column):
        raise DataError(f"'{path}': column '{name}' holds dates or times: leave it out, or make numbers of them")
    levels = sorted(column.astype(str).unique())
    if known is not None:
        new = [level for level in levels if level not in known]
        if new:
            raise DataError(
                f"'{path}': column '{name}' holds '{new[0]}', which the table of the run had not: it had "
                f"{', '.join(known)}"
            )
        return tuple(known)
    if len(levels) > _MOST_CATEGORIES:
        raise DataError(
            f"'{path}': column '{name}' holds {len(levels):,} different texts, such as '{levels[0]}': at most "
            f"{_MOST_CATEGORIES} are categories; leave it out, or make numbers of it"
        )
    return tuple(levels)


def _shown(name: str, levels: Sequence[str], column: Any) -> list[tuple[str, np.ndarray]]:
    """A column of texts as columns of 0 and 1, with their names."""
    shown, texts = levels[1:] if len(levels) == 2 else levels, column.astype(str)
    return [(f"{name}={level}", (texts == level).to_numpy(dtype=np.float32)) for level in shown]


def _are_dates(column: Any) -> bool:
    """Whether a column holds dates or times, or texts that all look like some."""
    if column.dtype.kind in "mM" or isinstance(column.iloc[0], datetime.date | datetime.time):
        return True
    return bool(column.astype(str).str.fullmatch(r"\d{4}-\d\d-\d\d([ T]\d\d:.*)?").all())


def _targets(path: Path, name: Any, column: Any, is_class: bool | None) -> tuple[Tensor, tuple[str, ...]]:
    """Targets, and the names of classes where they are some."""
    is_text = _is_text(column)
    if is_class is None:
        is_class = column.dtype.kind != "f"
    if not is_class:
        if is_text:
            raise DataError(f"'{path}': target column '{name}' holds texts, such as '{column.iloc[0]}', not numbers")
        return torch.from_numpy(_numbers_of(path, name, column)), ()
    if not is_text and column.dtype.kind == "f" and not (column == column.round()).all():
        raise DataError(f"'{path}': target column '{name}' holds no classes, but numbers such as {column.iloc[0]:g}")
    levels = sorted(column.unique(), key=lambda value: str(value) if is_text else value)
    if column.dtype.kind in "iu" and levels == list(range(len(levels))):
        return torch.from_numpy(np.array(column, dtype=np.int64)), ()
    numbers = {level: number for number, level in enumerate(levels)}
    return torch.tensor([numbers[value] for value in column]), tuple(map(str, levels))
