"""What is written appears whole or not at all, and a folder belongs to one run at a time."""

import errno
import json
import os
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

    Where anything is raised inside, or the machine stops, ``path`` is as it was.

    :raises OutputError: where the file cannot be written.
    """
    path = Path(path)
    temporary = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_SUFFIX, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"'{path}' cannot be written: {reason}. What was there before is unchanged") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


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
