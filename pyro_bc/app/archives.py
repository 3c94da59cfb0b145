"""Files of a folder or an archive, one after the other: as many and as much as a data set has, however it is packed.

An archive of a few megabytes may claim, and inflate to, any size: what comes out is counted while it comes out.
"""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ..errors import DataError
from ..runtime.files import readable

# Of an archive, all that comes out of it, headers and padding included: CIFAR-10 has 186 MB, in 8 files or in 60,000.
_MOST_BYTES, _MOST_FILES = 1 << 29, 200_000

# Of one file.
_MOST_OF_A_FILE = 1 << 26

# What xz may need to unpack; its own tools write files that need up to 65 MiB.
_XZ_MEMORY = 1 << 27


def files_in(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of files in a folder, or in a tar or zip archive, packed or not.

    :param wanted: of a name, whether the file is one of those.
    :raises DataError: where it cannot be read, or has more files or bytes than any data set here.
    """
    what = "folder" if path.is_dir() else "archive"
    with readable(path, f"is not a readable {what}", DataError, "replace it with the original"):
        for name, content, size in _of_folder(path) if path.is_dir() else _of_archive(path):
            if not wanted(name):
                continue
            data = content(_MOST_OF_A_FILE + 1) if size <= _MOST_OF_A_FILE else b""
            if max(size, len(data)) > _MOST_OF_A_FILE:
                raise DataError(
                    f"'{name}' in '{path}' is larger than {_MOST_OF_A_FILE:,} bytes: it is not the original"
                )
            yield name, data


#: a file's name, what reads so many bytes of it, and how many it says that it has.
_File = tuple[str, Callable[[int], bytes], int]


def _of_folder(path: Path) -> Iterator[_File]:
    for file in sorted(path.rglob("*")):
        if file.is_file():
            with file.open("rb") as opened:
                yield file.relative_to(path).as_posix(), opened.read, file.stat().st_size


def _of_archive(path: Path) -> Iterator[_File]:
    if zipfile.is_zipfile(path):
        yield from _of_zip(path)
        return
    with path.open("rb") as packed:
        magic = packed.read(6)
        packed.seek(0)
        # As a stream: nothing is read that was not counted, a header that claims to be long included.
        counted: Any = _Counted(path, _unpacked(packed, magic))
        with tarfile.open(fileobj=counted, mode="r|") as archive:
            for count, member in enumerate(archive, 1):
                _check_count(path, count)
                if member.size > _MOST_BYTES:  # which is skipped by reading it
                    raise _too_large(path)
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None:
                    yield member.name, content.read, member.size


def _of_zip(path: Path) -> Iterator[_File]:
    left = _MOST_BYTES
    with zipfile.ZipFile(path) as archive:
        _check_count(path, len(archive.infolist()))
        for entry in archive.infolist():
            if entry.is_dir():
                continue
            left -= entry.file_size  # zipfile gives no more than an entry says
            if left < 0:
                raise _too_large(path)
            with archive.open(entry) as content:
                yield entry.filename, content.read, entry.file_size


def _check_count(path: Path, count: int) -> None:
    if count > _MOST_FILES:
        raise DataError(f"'{path}' holds more than {_MOST_FILES:,} files: it is not the original")


def _too_large(path: Path) -> DataError:
    return DataError(f"'{path}' inflates to more than {_MOST_BYTES:,} bytes: it is not the original")


def _unpacked(packed: IO[bytes], magic: bytes) -> Any:
    if magic.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=packed)
    if magic.startswith(b"BZh"):
        return bz2.BZ2File(packed)
    return io.BufferedReader(_Xz(packed)) if magic == b"\xfd7zXZ\x00" else packed


class _Counted:
    """A file that gives no more than an archive may have.

    :raises DataError: where there is more.
    """

    def __init__(self, path: Path, file: Any):
        self._path, self._file, self._left = path, file, _MOST_BYTES

    def read(self, size: int) -> bytes:
        data = bytes(self._file.read(size))
        self._left -= len(data)
        if self._left < 0:
            raise _too_large(self._path)
        return data


class _Xz(io.RawIOBase):
    """What a file of xz unpacks to, without as much memory as it asks for (``lzma.LZMAFile`` knows no limit)."""

    def __init__(self, packed: IO[bytes]):
        self._packed, self._inflate = packed, lzma.LZMADecompressor(memlimit=_XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._inflate.eof:
            more = self._packed.read(1 << 16) if self._inflate.needs_input else b""
            if self._inflate.needs_input and not more:
                raise EOFError("it ends too early")
            data = self._inflate.decompress(more, len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)
        return 0
