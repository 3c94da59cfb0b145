"""Files appear whole or not at all, on full and read-only disks too, and a folder belongs to one run."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from pyro_bc.errors import OutputError, UsageError
from pyro_bc.inference.checkpoint import save_checkpoint
from pyro_bc.inspection import netcdf as writer
from pyro_bc.inspection.netcdf import Content, Variable, write_content
from pyro_bc.runtime.files import (
    check_room,
    check_target,
    content_of,
    is_empty,
    only_run_in,
    readable,
    replacing,
    write_atomically,
)


@contextmanager
def mounted(folder, options):
    """A file system of its own, where this machine lets us make one."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("failing", ["replace", "fsync", "chmod"])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, failing):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OutputError, match="file' cannot be written: No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_is_raised_inside_leaves_the_old_file_too(tmp_path):
    write_atomically(tmp_path / "file", b"old")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "file") as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert (tmp_path / "file").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_what_is_no_file_is_not_replaced_by_one(tmp_path):
    other, link, loop, folder = (tmp_path / name for name in ("other", "link", "loop", "folder"))
    other.write_bytes(b"old"), link.symlink_to(other), loop.symlink_to(loop), folder.mkdir()
    (tmp_path / "nothing").symlink_to(tmp_path / "none")
    for path, message in (
        (link, "symbolic link"), (loop, "symbolic link"), (tmp_path / "nothing", "symbolic link"),
        (folder, "Is a directory"), ("/dev/null", "device or a pipe"), (other / "file", "Not a directory"),
    ):  # fmt: skip
        for write in (check_target, lambda path: write_atomically(path, b"new")):
            with pytest.raises(OutputError, match=f"cannot be written: .*{message}"):
                write(path)
    assert other.read_bytes() == b"old" and link.is_symlink() and not (tmp_path / "none").exists()
    assert len(list(tmp_path.iterdir())) == 5
    check_target(other), check_target(tmp_path / ("ö" * 120))
    assert other.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 5


def test_who_may_read_a_file_is_as_it_was_or_as_for_any_new_one(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", b"new")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    (tmp_path / "file").chmod(0o600)
    write_atomically(tmp_path / "file", b"newer")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


def test_a_folder_that_has_no_room_is_said_with_both_numbers(tmp_path, monkeypatch):
    disk = shutil.disk_usage(tmp_path)
    check_room(tmp_path, disk.free // 2), check_room(tmp_path / "none", 1 << 60)
    with pytest.raises(OutputError, match=r"has room for [0-9,]+ bytes, and at least 1,152,921,504,606,846,976"):
        check_room(tmp_path, 1 << 60)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: type(disk)(0, 0, 0))  # some file systems do not say
    check_room(tmp_path, 1 << 60)


def test_a_file_without_end_is_read_up_to_its_limit_and_no_error_of_a_library_passes(tmp_path):
    message = r"'/dev/zero' is none \(it has more than 9 bytes\); take another"
    with pytest.raises(UsageError, match=message), readable("/dev/zero", "is none", UsageError, "take another"):
        content_of("/dev/zero", 9)
    with pytest.raises(UsageError, match=r"'x' is none \(RecursionError\)$"), readable("x", "is none", UsageError):
        raise RecursionError
    with pytest.raises(OutputError, match="own"), readable("x", "is none", UsageError):
        raise OutputError("own")


def test_a_lock_that_is_a_link_is_not_taken(tmp_path):
    (tmp_path / "other").write_bytes(b"kept")
    (tmp_path / ".lock").symlink_to(tmp_path / "other")
    with pytest.raises(OutputError, match=r"\.lock' is a symbolic link"), only_run_in(tmp_path):
        pass
    assert (tmp_path / "other").read_bytes() == b"kept"


def test_folders_that_are_missing_are_said(tmp_path):
    with pytest.raises(OutputError, match="No such file or directory"):
        write_atomically(tmp_path / "none" / "file", b"")


def netcdf(path):
    values = np.random.default_rng(0).normal(size=(1, 200, 2000)).astype(np.float32)
    variable = Variable("posterior", "x", ("chain", "draw", "i"), values.shape)
    coords = {"chain": np.arange(1), "draw": np.arange(200), "i": np.arange(2000)}
    write_content(
        path, Content({("posterior", "x"): variable}, coords, {}, lambda: iter([(0, {("posterior", "x"): values})]))
    )


WRITERS = {
    "bytes": lambda path: write_atomically(path, bytes(2**20)),
    "checkpoint": lambda path: save_checkpoint(path, {"a": torch.zeros(2**18)}, {}),
    "netcdf": netcdf,
}


@pytest.mark.parametrize(
    ("name", "size"),
    # HDF5 has written nothing, some blocks, or all but its tables when these are full.
    [("bytes", "512k"), ("checkpoint", "512k"), ("netcdf", "8k"), ("netcdf", "512k"), ("netcdf", "1476k")],
)
def test_a_full_disk_leaves_what_was_there(tmp_path, name, size):
    with mounted(tmp_path / "small", f"size={size}") as folder:
        (folder / "file").write_bytes(b"old")
        with pytest.raises(OutputError, match=r"file' cannot be written: No space left"):
            WRITERS[name](folder / "file")
        assert [(p.name, p.read_bytes()) for p in folder.iterdir()] == [("file", b"old")]


@pytest.fixture
def interruptible():
    """Python's own handler, which a shell's background jobs, that ignore Ctrl-C, do not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_while_hdf5_writes_is_not_lost_with_what_it_was_writing(tmp_path, monkeypatch, interruptible):
    (tmp_path / "file").write_bytes(b"old")
    writes = []
    plain = writer._Target.write

    def write(self, data):
        writes.append(1)
        if len(writes) == interrupted_at[0]:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, data)

    monkeypatch.setattr(writer._Target, "write", write)
    interrupted_at = [0]
    netcdf(tmp_path / "whole")
    count = len(writes)
    for interrupted_at[0] in range(1, count + 1, max(1, count // 7)):
        writes.clear()
        with pytest.raises(KeyboardInterrupt):
            netcdf(tmp_path / "file")
        assert sorted((p.name, p.name == "whole" or p.read_bytes()) for p in tmp_path.iterdir()) == [
            ("file", b"old"), ("whole", True),
        ]  # fmt: skip
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("name", WRITERS)
def test_a_disk_that_only_reads_is_said(tmp_path, name):
    with mounted(tmp_path / "fixed", "size=1m,ro") as folder:
        with pytest.raises(OutputError, match="Read-only file system"):
            WRITERS[name](folder / "file")
        with pytest.raises(OutputError, match="Read-only file system"), only_run_in(folder):
            pass


def test_a_folder_is_of_one_run_until_that_ends_or_is_killed(tmp_path):
    (tmp_path / "plots").mkdir()
    with only_run_in(tmp_path), pytest.raises(UsageError, match="another run is working in"), only_run_in(tmp_path):
        pass
    program = (
        "import sys, time; from pathlib import Path; from pyro_bc.runtime.files import *\n"
        "with only_run_in(Path(sys.argv[1])), replacing(Path(sys.argv[1]) / 'plots' / 'a.png') as file:\n"
        "    file.write_bytes(b'half'); print('in', flush=True); time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "in\n"
    with pytest.raises(UsageError, match="another run is working in"), only_run_in(tmp_path):
        pass
    assert len(list((tmp_path / "plots").iterdir())) == 1
    other.kill()
    other.wait()
    for _ in range(50):  # the kernel may take a moment
        try:
            with only_run_in(tmp_path):
                break
        except UsageError:
            time.sleep(0.1)
    assert list((tmp_path / "plots").iterdir()) == []  # the killed one's half file
    (tmp_path / "plots").rmdir()
    assert is_empty(tmp_path)
