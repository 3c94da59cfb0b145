"""Work that may end its process, one piece after the other in children: what a signal or the clock ended is known."""

import gc
import json
import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

#: seconds of the processor, however busy it is with others, that one piece may take, and bytes that it may ask for
#: beside what was there before.
SECONDS, MEMORY = 10, 2 << 30

# Bytes of earlier pieces of work that may be left.
_LEFT = 1 << 25

# Seconds in which nothing at all may happen.
_STANDING = 200


#: makes of a number what is to be watched, which says in one line what came of it.
Work = Callable[[int], Callable[[], str]]


@dataclass(frozen=True)
class Piece:
    """What came of one piece of work.

    :param number: which one.
    :param seconds: of the processor that it took.
    :param peak: bytes of memory that it took, beside what was there before.
    :param told: what the work said in one line; what begins with ``!`` should not be.
    """

    number: int
    seconds: float
    peak: int
    told: str


@dataclass
class Tally:
    """What was tried, and what was found; as JSON in a file, from which a later call goes on."""

    done: int = 0
    counts: Counter = field(default_factory=Counter)
    findings: list[list[Any]] = field(default_factory=list)
    slowest: float = 0.0
    peak: int = 0
    seconds: float = 0.0

    @staticmethod
    def of(file: Path) -> "Tally":
        """What a file holds; nothing tried where there is none."""
        saved = json.loads(file.read_text()) if file.exists() else {}
        return Tally(**{**saved, "counts": Counter(saved.get("counts", {}))})

    def add(self, piece: Piece, told: str, about: Callable[[], list[Any]]) -> None:
        """Count one piece of work.

        :param told: what it came to.
        :param about: what else is kept of one that should not have come to that.
        """
        self.done = piece.number + 1
        self.slowest, self.peak = max(self.slowest, piece.seconds), max(self.peak, piece.peak)
        self.counts[told] += 1
        if "!" in told:
            self.findings.append([piece.number, told, round(piece.seconds, 2), piece.peak >> 20, *about()])

    def save(self, file: Path) -> None:
        file.write_text(json.dumps(vars(self), indent=1) + "\n")


def each(numbers: range, work: Work, seconds: float, batch: int = 2000) -> Iterator[Piece]:
    """Do every piece of work, in order, until all are done or so much time has passed.

    A child of this process does one after the other; where it ends before its time, the piece that it was at is said to
    have ended it, and another child goes on behind it. What is made before the first call is there in every child.

    :param work: which is given every number.
    """
    torch.empty(2, 2, device="meta").relu().sum()  # what torch imports when it first computes without storage
    ends, done = time.monotonic() + seconds, numbers.start
    while done < numbers.stop and time.monotonic() < ends:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            code = 1
            try:
                os.close(reader)
                _child(range(done, min(numbers.stop, done + batch)), work, writer)
                code = 0
            finally:
                os._exit(code)
        os.close(writer)
        try:
            with os.fdopen(reader, errors="replace") as lines:
                for line in lines:
                    took, peak, told = line.rstrip("\n").split(";", 2)
                    yield Piece(done, float(took), int(peak), told)
                    done += 1
                    if time.monotonic() > ends:
                        os.kill(child, signal.SIGKILL)
                        return
        finally:
            _, status = os.waitpid(child, 0)
        if status:
            ended = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "an exception of ours"
            late = ended in ("SIGPROF", "SIGALRM")
            yield Piece(done, SECONDS if late else 0, 0, f"! longer than {SECONDS} s" if late else f"! {ended}")
            done += 1


def shown(pieces: Iterator[Piece], what: str, counted: Tally, count: int, state: Path) -> Iterator[Piece]:
    """Pieces of work one after the other, which whoever takes them adds to a tally; how far that is, and kept.

    :param what: they are.
    :param count: of all of them.
    :param state: file of the tally.
    """
    started, before = time.monotonic(), counted.seconds
    with Progress() as progress:
        bar = progress.add_task(what, total=count, completed=counted.done)
        for piece in pieces:
            yield piece
            progress.update(bar, completed=counted.done)
            if counted.done % 1000 == 0:
                counted.save(state)
    counted.seconds = before + time.monotonic() - started
    counted.save(state)


def _child(numbers: range, work: Work, writer: int) -> None:
    torch.set_num_threads(1)
    limit = memory("VmSize") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    usual = memory("VmRSS")
    for number in numbers:
        watched = work(number)
        if memory("VmRSS") > usual + _LEFT:  # what earlier errors hold would hide what this one takes
            gc.collect()
            usual = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on
        before, started = memory("VmRSS"), time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # whose default ends the process
        signal.alarm(_STANDING)
        told = watched()
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        taken = time.process_time() - started
        os.write(writer, f"{taken};{memory('VmHWM') - before};{told}\n".encode(errors="replace"))


def memory(key: str) -> int:
    """Bytes of this process's memory, by its name in Linux: ``VmRSS`` now, ``VmHWM`` at most."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(key))
    return 1024 * int(line.split()[1])
