"""What is written appears whole or not at all, and a folder belongs to one run at a time."""

import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import OutputError, PyroBCError, UsageError, printable
from .messages import first_line

_SUFFIX = ".partial"

_LOCK = ".lock"

# A run's settings and figures have some kilobytes.
_MOST_JSON = 1 << 26


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A context that writes a file under a temporary name in the same folder; at its end that is renamed to ``path``.

    Where anything is raised inside, or the machine stops, ``path`` is as it was. Who may read a file that was there may
    read the new one.

    :raises OutputError: where the file cannot be written, or something else is in its place: a device, or a link, which
        may lead to what nobody meant.
    """
    path, temporary = Path(path), None
    try:
        _check_place(path)
        temporary = _new_file(path)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        if path.exists():
            os.chmod(temporary, stat.S_IMODE(path.stat().st_mode))
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"'{path}' cannot be written: {reason}. What was there before is unchanged") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def check_target(path: str | os.PathLike[str]) -> None:
    """Look whether a file can be written, before anything is computed for it; nothing is left of the look.

    :raises OutputError: where it cannot.
    """
    try:
        _check_place(Path(path))
        _new_file(Path(path)).unlink()
    except OSError as error:
        raise OutputError(f"'{path}' cannot be written: {error.strerror or error}") from None


def _check_place(path: Path) -> None:
    """:raises OSError: where there is something else than a file, which a new file would take the place of."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a symbolic link: name the file itself, or take the link away")
    if path.is_dir():
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is a device or a pipe, and no file")


def _new_file(target: Path) -> Path:
    """An empty file with a name of its own beside another; who may read it is as for any new file."""
    path = target.parent / f".{target.name[:32]}.{os.urandom(8).hex()}{_SUFFIX}"
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return path


def check_temporary() -> None:
    """Look whether there is a folder for temporary files, which torch and its exporter need.

    :raises OutputError: where there is none.
    """
    try:
        tempfile.gettempdir()
    except OSError as error:
        raise OutputError(f"{error.strerror or error}: name one that can be written with $TMPDIR") from None


def check_room(folder: Path, size: int) -> None:
    """Look whether so many bytes can be written into a folder.

    :raises OutputError: where there is less room; some file systems do not say how much they have.
    """
    try:
        disk = shutil.disk_usage(folder)
    except OSError:
        return
    if disk.total and disk.free < size:
        raise OutputError(
            f"'{folder}' has room for {disk.free:,} bytes, and at least {size:,} will be written: free some, or choose "
            f"another folder"
        )


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a whole file or none.

    :raises OutputError: where it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """A context that no other process can be in for the same folder; one that was killed leaves it free.

    Temporary files that a killed one left are removed.

    :raises UsageError: where another process is in it.
    :raises OutputError: where the folder cannot be written.
    """
    import filelock  # only runs need it

    if (folder / _LOCK).is_symlink():  # what it points to would be emptied
        raise OutputError(f"'{folder / _LOCK}' is a symbolic link, where a run writes a file; move it out of the way")
    lock = filelock.FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise UsageError(
            f"another run is working in '{folder}'; wait for it to end, or choose another folder"
        ) from None
    except OSError as error:
        raise OutputError(f"'{folder}' cannot be written: {error.strerror or error}") from None
    try:
        for left in folder.rglob(f".*{_SUFFIX}"):
            if left.is_symlink() or left.is_file():
                left.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def content_of(path: str | os.PathLike[str], most: int) -> bytes:
    """The content of a file that somebody else made.

    :param most: bytes that it may have; a device has more.
    :raises OSError: where it has more, or cannot be read.
    """
    with Path(path).open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes")
    return content


@contextmanager
def readable(path: str | os.PathLike[str], fault: str, wrong: type[PyroBCError], advice: str = "") -> Iterator[None]:
    """A context that reads a file that somebody else made, by a library which raises what it likes where it is damaged.

    :param fault: what is to be said of the file then, such as "is not a readable picture".
    :param wrong: the error where it is none; our own errors pass.
    :param advice: what to do then.
    """
    try:
        yield
    except PyroBCError:
        raise
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        end = f"; {advice}" if advice else ""
        raise wrong(f"'{path}' {fault} ({printable(reason)}){end}") from None


def read_object(path: Path, wrong: type[PyroBCError], advice: str) -> dict[str, Any]:
    """What a JSON file holds, an object.

    :param wrong: the error where it cannot be read, is no JSON, or holds something else.
    :param advice: what to do then.
    """
    try:
        found = json.loads(content_of(path, _MOST_JSON))
        if isinstance(found, dict):
            return found
        reason = f"it holds a {type(found).__name__}"
    except OSError as error:
        reason = error.strerror or str(error)
    except (ValueError, RecursionError) as error:  # also of text that is none, and of lists in lists without end
        reason = first_line(error)
    raise wrong(f"'{path}' is damaged ({reason}); {advice}")


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but the lock of :func:`only_run_in`."""
    return all(entry.name == _LOCK for entry in folder.iterdir())
