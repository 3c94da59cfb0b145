"""Looking through a NetCDF file that somebody else made, in a process of its own.

HDF5's library takes what is in a file for granted: on a damaged one it may loop or crash, where no Ctrl-C reaches it, a
kilobyte may stand for a terabyte of the same number, and a file may ask for the content of others. So a child reads it
first, all of it, under limits; this module is its program, too, and knows nothing of the package.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# Processor seconds for what is small, and bytes that are read in one; and what a file may inflate to: so many bytes, or
# so many times its own size.
_SECONDS, _BYTES_A_SECOND = 5, 1 << 23
_INFLATED, _TIMES = 1 << 30, 32

_WRONG = 3


def check_netcdf(path: str | os.PathLike[str]) -> None:
    """Look whether HDF5 reads all of a file, from which nothing else is read.

    :raises ValueError: where it does not, or the file holds more than could be in it.
    """
    seconds = _SECONDS + os.stat(path).st_size // _BYTES_A_SECOND
    # -P: what lies beside this file is not to be taken for a module of Python's.
    program = [sys.executable, "-P"] if sys.version_info >= (3, 11) else [sys.executable]
    program += ["-c", _program(), os.fspath(path), str(seconds)]
    done = subprocess.run(program, stdin=subprocess.DEVNULL, capture_output=True, env={**os.environ, "PYTHONUTF8": "1"})
    if done.returncode == _WRONG:
        raise ValueError(done.stdout.decode(errors="replace").strip())
    if done.returncode:
        raise ValueError(f"HDF5 does not come to its end, or ends with {done.returncode}")


def _program() -> str:
    return Path(__file__).read_text(encoding="utf-8")


def _look_through(path: str) -> None:
    """:raises Exception: whatever HDF5 does; :raises ValueError: where there is more than could be."""
    import h5py

    left = max(_INFLATED, _TIMES * os.stat(path).st_size)
    with h5py.File(path, "r") as file:
        groups: list[Any] = [file]
        seen = 0
        while groups:
            group = groups.pop()
            seen += 1
            if seen > 10_000:
                raise ValueError("it has groups without end")
            _read_attributes(group)
            for name in group:
                link = group.get(name, getlink=True)
                if not isinstance(link, h5py.HardLink):
                    raise ValueError("it points to what is elsewhere")
                entry = group[name]
                if isinstance(entry, h5py.Group):
                    groups.append(entry)
                elif isinstance(entry, h5py.Dataset):
                    if entry.external or entry.is_virtual:
                        raise ValueError("it asks for what is in other files")
                    left -= entry.nbytes
                    if left < 0:
                        raise ValueError("it inflates to far more than it has")
                    _read_attributes(entry)
                    entry[()]


def _read_attributes(entry: Any) -> None:
    for name in entry.attrs:
        entry.attrs[name]


def _limit(seconds: int) -> None:
    """A limit on the processor's time; on memory there is that of what is counted."""
    try:
        import resource
    except ImportError:  # a system without it
        return
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    _limit(int(sys.argv[2]))
    try:
        _look_through(sys.argv[1])
    except Exception as error:
        print((str(error) or type(error).__name__).splitlines()[0][:500])
        sys.stdout.flush()
        os._exit(_WRONG)
    os._exit(0)
