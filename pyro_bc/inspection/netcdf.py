"""Variables and draws as netCDF, whole or not at all, a block of draws at a time."""

import io
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.files import replacing

BLOCK_NUMBERS = 1 << 22  # a block of draws has about so many numbers


@dataclass(frozen=True)
class Variable:
    """A variable of a group: its dimensions, and its values or, of draws, where they come from.

    :param values: the whole array; of draws ``None``.
    """

    group: str
    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: Any = np.float32
    values: np.ndarray | None = None

    @property
    def is_drawn(self) -> bool:
        return self.values is None


@dataclass(frozen=True)
class Content:
    """All that is exported: variables, coordinates, attributes, and the draws block by block."""

    variables: dict[tuple[str, str], Variable]
    coords: dict[str, np.ndarray]
    attributes: dict[str, Any]
    blocks: Callable[[], Iterator[tuple[int, dict[tuple[str, str], np.ndarray]]]]


def write_content(path: str | os.PathLike[str], content: Content) -> None:
    """Write variables and draws as netCDF, whole or not at all, a block of draws at a time."""
    import h5netcdf  # here, as reading HDF5 is no part of most programs

    with replacing(path) as temporary, _Target(temporary) as target:
        with h5netcdf.File(target, "w") as file:
            file.attrs.update(content.attributes)
            for variable in content.variables.values():
                _write(file, variable, content)
            for start, block in content.blocks():
                for (group, name), values in block.items():
                    target.check()
                    file[group][name][:, start : start + values.shape[1]] = values
        target.check()


class _Target(io.FileIO):
    """A file for HDF5, which ends the whole process, without an error, where it cannot write what it holds at the end.

    It is told that all is written; what was not, and why, says :meth:`check`. So does Ctrl-C, which HDF5 would lose.
    """

    def __init__(self, path: Path):
        super().__init__(path, "r+")
        self._failure: OSError | None = None
        self._interrupted = False
        self._before: Any = None

    def __enter__(self) -> "_Target":
        usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if usual and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._interrupt)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        try:
            super().__exit__(*error)
        finally:
            if self._before is not None:
                signal.signal(signal.SIGINT, self._before)
        if error[0] is None:
            self.check()  # an interrupt may have come after the last look

    def _interrupt(self, *_: Any) -> None:
        self._interrupted = True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        written = 0 if self._failure is None else len(view)
        try:
            while written < len(view):
                written += super().write(view[written:])
        except OSError as failure:
            self._failure = failure
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        if self._failure is None:
            try:
                return super().truncate(size)
            except OSError as failure:
                self._failure = failure
        return self.tell() if size is None else size

    def check(self) -> None:
        """:raises OSError: where not all could be written; :raises KeyboardInterrupt: where there was one."""
        if self._interrupted:
            raise KeyboardInterrupt
        if self._failure is not None:
            raise self._failure


def _write(file: Any, variable: Variable, content: Content) -> None:
    import h5py

    if variable.group not in file.groups:
        file.create_group(variable.group).attrs.update(content.attributes)
    group = file[variable.group]
    for dim, size in zip(variable.dims, variable.shape, strict=True):
        if dim not in group.dimensions:
            group.dimensions[dim] = size
            labels = content.coords[dim]
            if labels.dtype.kind == "U":
                group.create_variable(dim, (dim,), dtype=h5py.string_dtype())[...] = labels.astype(object)
            else:
                group.create_variable(dim, (dim,), data=labels)
    # A chunk has as many draws as a block of this variable alone.
    rows = max(1, min(variable.shape[1], BLOCK_NUMBERS // math.prod(variable.shape[2:]))) if variable.is_drawn else 0
    chunks = (1, rows, *variable.shape[2:]) if variable.is_drawn else None
    settings = {"compression": "gzip", "compression_opts": 1, "chunks": chunks} if chunks else {}
    group.create_variable(variable.name, variable.dims, variable.dtype, data=variable.values, **settings)
