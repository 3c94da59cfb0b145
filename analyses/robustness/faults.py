"""What can go wrong around a run: folders, disks, links, streams, clocks, names. Each is one line, and nothing is lost.

    python analyses/robustness/faults.py --seconds 100

Every fault is brought about as a user would meet it, and the command is run. It must say what is wrong in one line that
names the place, end with 2, and leave every file that was there as it was; what can be seen at the start must be seen
before anything is trained. A run that was stopped is resumed, and must come to the same bytes as one that was not.
Some need root (file systems of a megabyte); they are left out, and said, where that is not to be had. Results are kept
in ``analyses/results/faults.json``, so that a later call goes on with what was not tried yet; ``--again NAME`` tries
one anew.
"""

import argparse
import importlib
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # children of a process with threads have none
sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "tests")]

from common import RESULTS
from crashes import check_whole, outcome
from programs import program
from runtime.test_files import mounted

from pyro_bc.app.cli import main as called
from pyro_bc.errors import CompressedFileError
from pyro_bc.file.compressed import CompressedNetwork

STATE = RESULTS / "faults.json"

RUN = ("run", "--net", "lenet-300-100", "--prior", "gnj", "--data", "digits", "--widths", "8-8", "--epochs", "3",
       "--pretrain-epochs", "1", "--train-limit", "100", "--development")  # fmt: skip


@dataclass
class Place:
    """Where a fault is tried.

    :param folder: an empty one.
    :param run: of a finished run, which nothing may change.
    """

    folder: Path
    run: Path

    @property
    def network(self) -> Path:
        """A compressed network."""
        return self.run / "network.pbc"

    def unfinished(self, name: str = "out") -> Path:
        """A run that was stopped after its training."""
        out = self.folder / name
        out.mkdir()
        for file in ("run.json", "dense.safetensors", "checkpoint"):
            shutil.copyfile(self.run / file, out / file)
        return out


@dataclass
class Done:
    """What a command came to."""

    code: int
    printed: str
    said: list[str]


@dataclass
class Told:
    """What a fault came to, in words, and what is wrong with that."""

    line: str
    wrong: list[str] = field(default_factory=list)


Fault = Callable[[Place], Iterator[Any] | Told]
FAULTS: dict[str, tuple[str, Fault]] = {}


def fault(group: str, name: str) -> Callable[[Fault], Fault]:
    def add(function: Fault) -> Fault:
        FAULTS[name] = group, function
        return function

    return add


class Running:
    """The command in a process of its own, which is a child of this one: all that it imports is imported."""

    def __init__(self, *argv: str | Path, cwd: Path | None = None, file_size: int | None = None):
        self.streams = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115  read at its end
        self.pid = os.fork()
        if not self.pid:
            code = 1
            try:
                for number, stream in enumerate(self.streams, 1):
                    os.dup2(stream.fileno(), number)
                os.chdir(cwd or Path.cwd())
                if file_size is not None:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
                code = called([str(word) for word in argv])
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush(), sys.stderr.flush()
                os._exit(code)

    def end(self, seconds: float = math.inf) -> Done | None:
        """What it came to; None where it has not ended in so many seconds, and was killed."""
        ends = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, 0 if seconds == math.inf else os.WNOHANG)
            if pid:
                break
            if time.monotonic() > ends:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                return None
            time.sleep(0.02)
        texts = []
        for stream in self.streams:
            stream.seek(0)
            texts.append(stream.read().decode(errors="backslashreplace"))
        return Done(os.waitstatus_to_exitcode(status), texts[0], texts[1].splitlines())


def command(
    *argv: str | Path, env: dict[str, str | None] | None = None, cwd: Path | None = None, file_size: int | None = None,
    shell: str = "", before: str = "",
) -> Done:  # fmt: skip
    """The command as a user calls it: ``python -m pyro_bc`` where the environment or a shell's line are what is tried.

    :param env: other variables of the environment; None for one that is not there.
    :param file_size: bytes that a file may have.
    :param shell: what follows the command in a shell's line.
    :param before: what a shell does first.
    """
    if not (env or shell or before):
        done = Running(*argv, cwd=cwd, file_size=file_size).end()
        assert done is not None
        return done
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **(env or {})}
    variables = {name: value for name, value in variables.items() if value is not None}
    words = [sys.executable, "-m", "pyro_bc", *map(str, argv)]
    if shell or before:
        # What the words are is no part of the line.
        words = ["bash", "-o", "pipefail", "-c", f'{before} "$@" {shell}', "bash", *words]
    done = subprocess.run(words, capture_output=True, env=variables, cwd=cwd, timeout=600)
    printed, said = (text.decode(errors="backslashreplace") for text in (done.stdout, done.stderr))
    return Done(done.returncode, printed, said.splitlines())


def refused(done: Done, *names: str, lines: int = 1) -> Told:
    """One line that names these, and exit code 2.

    :param lines: that the command may say in all; it says some while it trains.
    """
    told = Told(done.said[-1] if done.said else "(nothing was said)")
    if done.code != 2:
        told.wrong.append(f"exit code {done.code}")
    if not told.line.startswith("pyro-bc: ") or len(done.said) > lines:
        told.wrong.append(f"{len(done.said)} lines: {done.said[:3]}")
    told.wrong += [f"{name!r} is not named" for name in names if name not in told.line]
    return told


def as_before(told: Told, ok: bool, what: str) -> Told:
    if not ok:
        told.wrong.append(what)
    return told


def completes(out: Path, run: Path, told: Told, **options: Any) -> Told:
    """Resume what was stopped: it must come to what an uninterrupted run came to."""
    check_whole(out)
    done = command(*RUN, "--out", out, "--resume", **options)
    if done.code:
        told.wrong.append(f"resumed: {done.said[-1:]}")
    elif outcome(out) != outcome(run):
        told.wrong.append("resumed: other bytes or figures")
    elif list(out.rglob("*.partial")):
        told.wrong.append("resumed: what was half-written is still there")
    return told


# The output folder


def out_is(name: str, make: Callable[[Place], str | Path], *names: str) -> None:
    def tried(place: Place) -> Told:
        out = make(place)
        told = refused(command(*RUN, "--out", out, cwd=place.folder), *names)
        return as_before(told, not list(place.folder.rglob("dense.safetensors")), "a network was trained first")

    fault("output folder", name)(tried)


def _file(place: Place) -> Path:
    (place.folder / "file").write_text("text")
    return place.folder / "file"


def _link(place: Place, target: Path) -> Path:
    (place.folder / "link").symlink_to(target)
    return place.folder / "link"


out_is("is a file", _file, "/file' is no folder")
out_is("lies under a file", lambda place: _file(place) / "out", "/file/out' cannot be written: Not a directory")
out_is("lies in /proc", lambda place: "/proc/out", "'/proc/out' cannot be written")
out_is("is a device", lambda place: "/dev/null", "'/dev/null' is no folder")
out_is("is a link to nothing", lambda place: _link(place, place.folder / "none"), "link' is a symbolic link to nothing")
out_is("is a link to itself", lambda place: _link(place, place.folder / "link"), "link")
out_is("is a link to a finished run", lambda place: _link(place, place.run), "is not empty")
out_is("has a name of 300 letters", lambda place: place.folder / ("a" * 300), "File name too long")


@fault("output folder", "is a link to an empty folder: a run")
def _through_link(place: Place) -> Told:
    (place.folder / "inner").mkdir()
    (place.folder / "out").symlink_to(place.folder / "inner")
    return finished(place, place.folder / "out")


@fault("output folder", "is on a file system that only reads")
def _only_reads(place: Place) -> Told:
    with mounted(place.folder / "fixed", "size=1m,ro") as fixed:
        return refused(command(*RUN, "--out", fixed / "out"), "Read-only file system", str(fixed))


@fault("output folder", "has no room for a checkpoint")
def _no_room(place: Place) -> Told:
    with mounted(place.folder / "small", "size=64k") as small:
        told = refused(command(*RUN, "--out", small / "out"), str(small), "has room for")
        return as_before(told, not list(small.rglob("dense*")), "a network was trained first")


# While a run writes


def limited(size: int) -> None:
    @fault("while a run writes", f"files end at {size:,} bytes; then resumed")
    def tried(place: Place) -> Told:
        out = place.folder / "out"
        told = refused(command(*RUN, "--out", out, file_size=size), "cannot be written: File too large", lines=9)
        return completes(out, place.run, told)


for _size in (10_000, 100_000, 300_000, 450_000):
    limited(_size)


def filling(size: str) -> None:
    @fault("while a run writes", f"the disk is full at {size}; then resumed")
    def tried(place: Place) -> Told:
        with mounted(place.folder / "small", f"size={size}") as small:
            out = small / "out"
            told = refused(command(*RUN, "--out", out), "cannot be written: No space left", lines=9)
            subprocess.run(["mount", "-o", "remount,size=50m", str(small)], check=True)
            return completes(out, place.run, told)


for _text in ("300k", "700k", "1100k"):
    filling(_text)


@fault("while a run writes", "two runs in one folder at the same time")
def _two(place: Place) -> Told:
    out = place.folder / "out"
    both = [Running(*RUN, "--out", out) for _ in range(2)]
    first, second = sorted((own.end() or Done(1, "", []) for own in both), key=lambda done: done.code)
    told = as_before(refused(second, str(out)), first.code == 0, "none of them ended well")
    return as_before(told, outcome(out) == outcome(place.run), "other bytes or figures")


@fault("while a run writes", "killed at eight random moments; then resumed")
def _killed(place: Place) -> Told:
    started, generator, out, kills = time.monotonic(), random.Random(0), place.folder / "out", 0
    assert Running(*RUN, "--out", place.folder / "alone").end()
    whole = time.monotonic() - started
    while kills < 8:
        resume = ["--resume"] if (out / "run.json").exists() else []
        if Running(*RUN, "--out", out, *resume).end(generator.uniform(0.1, 0.9) * whole):
            shutil.rmtree(out)  # it came to its end: another one
            continue
        kills += 1
        check_whole(out) if out.exists() else []
    return completes(out, place.run, Told(f"killed {kills} times, every file whole after each"))


# Links in a run's folder


def linked(name: str) -> None:
    @fault("links", f"resumed where {name} is a link into another run")
    def tried(place: Place) -> Told:
        out = place.unfinished()
        (out / name).unlink(missing_ok=True)
        (out / name).symlink_to(place.run / name)
        return refused(command(*RUN, "--out", out, "--resume"), f"{name}' is a symbolic link")


for _name in (".lock", "network.pbc", "plots"):
    linked(_name)


@fault("links", "a report whose picture is a link to a file elsewhere")
def _picture(place: Place) -> Told:
    copy = shutil.copytree(place.run, place.folder / "run")
    other = _file(place)
    picture = copy / "plots" / "architecture.png"
    picture.unlink()
    picture.symlink_to(other)
    told = refused(command("report", copy), "architecture.png' cannot be written: it is a symbolic link")
    return as_before(told, other.read_text() == "text", "the file elsewhere was written")


def exported(name: str, make: Callable[[Place], str | Path], *names: str) -> None:
    @fault("links", f"exported to {name}")
    def tried(place: Place) -> Told:
        return refused(command("export", place.network, "--onnx", make(place)), *names)


exported("a device", lambda place: "/dev/full", "'/dev/full' cannot be written: it is a device")
exported("a folder", lambda place: place.folder, "cannot be written: Is a directory")
exported(
    "a folder that is missing", lambda place: place.folder / "none" / "x.onnx", "x.onnx' cannot be written: No such"
)
exported(
    "a link to nothing", lambda place: _link(place, place.folder / "none"), "link' cannot be written: it is a symbolic"
)
exported("a link to another run's table", lambda place: _link(place, place.run / "report.md"), "it is a symbolic link")
exported("the network itself", lambda place: place.network, "are one file")


@fault("links", "a network that is read through a link to itself")
def _loop(place: Place) -> Told:
    return refused(command("inspect", _link(place, place.folder / "link")), "link")


# The environment


def finished(place: Place, out: Path, **options: Any) -> Told:
    """A whole run, and what is said."""
    done = command(*RUN, "--out", out, **options)
    told = Told(f"a run as any other; {len(done.said)} lines were said")
    if done.code:
        return Told(done.said[-1], [f"exit code {done.code}"])
    return as_before(told, outcome(out) == outcome(place.run), "other bytes or figures")


@fault("environment", "HOME is not set")
def _no_home(place: Place) -> Told:
    return finished(place, place.folder / "out", env={"HOME": None})


@fault("environment", "HOME cannot be written, nor XDG_CACHE_HOME")
def _home(place: Place) -> Told:
    return finished(place, place.folder / "out", env={"HOME": "/proc/1", "XDG_CACHE_HOME": "/proc/1"})


@fault("environment", "TMPDIR is missing")
def _temporary(place: Place) -> Told:
    return finished(place, place.folder / "out", env={"TMPDIR": "/nonexistent"})


@fault("environment", "no folder for temporary files can be written")
def _no_temporary(place: Place) -> Told:
    shared = place.folder / "shared"
    shared.mkdir()
    read_only = " ".join(f"mount -t tmpfs -o ro,size=1m none {path};" for path in ("/tmp", "/var/tmp"))
    inside = f"mkdir -p /dev/shm/faults && mount --bind '{shared}' /dev/shm/faults; {read_only} cd /proc;"
    words = f'unshare -m bash -c "{inside} exec \\"\\$@\\"" bash'
    done = command(*RUN, "--out", "/dev/shm/faults/out", before=words)
    return refused(done, "No usable temporary directory", "$TMPDIR")


@fault("environment", "the encoding is ASCII")
def _ascii(place: Place) -> Told:
    options = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    return finished(place, place.folder / "out", env=options)


@fault("environment", "a mask that lets nobody else read")
def _mask(place: Place) -> Told:
    out = place.folder / "out"
    told = finished(place, out, before="umask 077;")
    readable = [file.name for file in out.rglob("*") if file.is_file() and file.stat().st_mode & 0o077]
    return as_before(told, not readable, f"others can read {readable}")


def streams(name: str, shell: str, code: int, line: str) -> None:
    @fault("environment", name)
    def tried(place: Place) -> Told:
        done = command("inspect", place.network, shell=shell)
        told = Told(done.said[-1] if done.said else "nothing is said")
        told = as_before(told, done.code == code, f"exit code {done.code}")
        return as_before(told, "\n".join(done.said) == line, f"{done.said}")


streams("the output is a full disk", ">/dev/full", 2,
        "pyro-bc: the standard output cannot be written: No space left on device")  # fmt: skip
streams("the output is closed", ">&-", 0, "")
streams("nobody reads the output", "| head -c 0", 141, "")
streams("the errors are closed", "2>&-", 0, "")


# Clocks


@fault("clock", "files are of the year 2100; then resumed")
def _future(place: Place) -> Told:
    out = place.unfinished()
    for file in out.iterdir():
        os.utime(file, (4.1e9, 4.1e9))
    return completes(out, place.run, Told("a run as any other"))


@fault("clock", "the clock jumps backwards by an hour at every look")
def _backwards(place: Place) -> Told:
    (place.folder / "sitecustomize.py").write_text(
        "import time\nstart, looks = time.time(), [0]\n"
        "def back():\n    looks[0] += 1\n    return start - 3600 * looks[0]\ntime.time = back\n"
    )
    path = f"{place.folder}:{Path(__file__).parents[2]}"
    return completes(place.unfinished(), place.run, Told("a run as any other"), env={"PYTHONPATH": path})


# Names


@fault("names", "an output folder with a line and an escape in its name")
def _escape(place: Place) -> Told:
    out = place.folder / "a\n\x1b[31mb"
    told = finished(place, out)
    again = command(*RUN, "--out", out)
    told.wrong += refused(again, r"a\n\x1b[31mb' exists and is not empty").wrong
    return as_before(told, not any("\x1b" in line for line in again.said), "an escape reaches the terminal")


@fault("names", "an output folder whose name is no text")
def _no_text(place: Place) -> Told:
    return finished(place, Path(os.fsdecode(os.fsencode(place.folder) + b"/\xff\xfe")))


@fault("names", "a column with an escape in its name")
def _column(place: Place) -> Told:
    (place.folder / "set.csv").write_text("a\x1b[31m,y\n1,0\n,1\n")
    done = command("evaluate", place.network, "--data", place.folder / "set.csv")
    return as_before(refused(done, r"\x1b[31m"), "\x1b" not in "".join(done.said), "an escape reaches the terminal")


@fault("names", "a class of pictures with an escape in its name")
def _class(place: Place) -> Told:
    for name in ("\x1b[31m", "b"):
        (place.folder / "set" / name).mkdir(parents=True)
        (place.folder / "set" / name / "\n.png").write_bytes(b"none")
    done = command("evaluate", place.network, "--data", place.folder / "set")
    return as_before(refused(done, r"\n.png"), "\x1b" not in "".join(done.said), "an escape reaches the terminal")


# Odd networks as ONNX


@fault("ONNX", "odd networks are written, or refused in one line")
def _onnx(place: Place) -> Told:

    counts, wrong, number, path = [0, 0], [], 0, place.folder / "x.pbc"
    while sum(counts) < 10:
        number += 1
        found, data = program(number)
        try:
            if not found.is_known or math.prod(found.shape) > 1000:
                continue
            CompressedNetwork.from_bytes(data)
        except CompressedFileError:
            continue
        path.write_bytes(data)
        done = command("export", path, "--onnx", place.folder / "x.onnx")
        counts[done.code > 0] += 1
        if done.code not in (0, 2) or (done.code == 2 and len(done.said) != 1):
            wrong.append(f"program {number}: {done.code}, {done.said[-1:]}")
        if done.code == 2 and (place.folder / "x.onnx").exists():
            wrong.append(f"program {number}: a file was written")
        (place.folder / "x.onnx").unlink(missing_ok=True)
    return Told(f"{counts[0]} written, {counts[1]} refused", wrong)


def tried(name: str, scratch: Path) -> dict[str, Any]:
    """Bring one fault about; what came of it."""
    group, function = FAULTS[name]
    run = scratch / "run"
    if not (run / "metrics.json").exists():
        done = command(*RUN, "--out", run)
        assert done.code == 0, done.said
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    folder = Path(tempfile.mkdtemp(dir=scratch))
    started = time.monotonic()
    try:
        told = function(Place(folder, run))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        skipped = "cannot be mounted" in str(error)
        told = Told(f"not tried: {error}" if skipped else f"{type(error).__name__}: {error}", [] if skipped else ["!"])
    if {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} != before:
        told.wrong.append("another run's files changed")
    shutil.rmtree(folder, ignore_errors=True)
    line = told.line.replace(str(folder), "…").replace(str(scratch), "…").removeprefix("pyro-bc: ")
    seconds = round(time.monotonic() - started, 1)
    return {"group": group, "line": line, "wrong": told.wrong, "seconds": seconds}


def page(results: dict[str, dict[str, Any]]) -> str:
    wrong = sum(bool(own["wrong"]) for own in results.values())
    lines = [
        "# Faults around a run",
        "",
        f"`python analyses/robustness/faults.py`: {len(results)} of {len(FAULTS)} faults tried, {wrong} not as they "
        "should be. Each was met by the command on digits. Right is one line with the place and exit code 2, "
        "or a run that comes to the same bytes and figures as one that was left alone; every file that was there is "
        "as it was.",
    ]
    for group in dict.fromkeys(group for group, _ in FAULTS.values()):
        lines += ["", f"| {group} | what is said | |", "|---|---|---|"]
        for name, (own, _) in FAULTS.items():
            if own == group and name in results:
                found = results[name]
                said = found["line"].replace("|", "\\|")
                lines.append(f"| {name} | {said} | {'; '.join(found['wrong']).replace('|', ' ') or 'right'} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=math.inf, help="of this call; a later one goes on")
    parser.add_argument("--again", action="append", default=[], help="a fault to try anew")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "pyro-bc-faults")
    args = parser.parse_args()
    results = json.loads(STATE.read_text()) if STATE.exists() else {}
    results = {name: own for name, own in results.items() if name in FAULTS and name not in args.again}
    args.scratch.mkdir(exist_ok=True)
    for name in ("arviz", "matplotlib.figure", "sklearn.datasets", "torch._dynamo", "torch.export._trace", "h5netcdf"):
        importlib.import_module(name)  # which every child needs, and has then
    ends = time.monotonic() + args.seconds
    for name in FAULTS:
        if name in results or time.monotonic() > ends:
            continue
        results[name] = tried(name, args.scratch)
        print(name, results[name], flush=True)
        STATE.write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "faults.md").write_text(page(results))
    left = [name for name in FAULTS if name not in results]
    print(f"{len(results)} tried, {sum(bool(own['wrong']) for own in results.values())} wrong, {len(left)} left")


if __name__ == "__main__":
    main()
