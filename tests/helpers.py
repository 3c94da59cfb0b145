"""What several tests need: the command in processes of its own, which begin where all imports are done."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from multiprocessing.connection import wait
from pathlib import Path

# A server imports once what the command imports, and each command is a child of it: a process like any other, but for
# the seconds that imports take. Nothing was computed in the server, so that no thread or random state comes along.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["pyro_bc.app.cli", "arviz", "matplotlib.figure", "sklearn.datasets"])


class Command:
    """The command ``pyro-bc`` with these arguments, in a process that has begun; used as ``subprocess.Popen`` is."""

    def __init__(self, *arguments: str | Path):
        self._printed = [tempfile.NamedTemporaryFile("w+") for _ in range(2)]  # noqa: SIM115  closed at its end
        names = [file.name for file in self._printed]
        self._process = _SERVER.Process(target=_run, args=([str(argument) for argument in arguments], names))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; what it printed, and what it said on the standard error stream.

        :raises subprocess.TimeoutExpired: where it takes longer.
        """
        if not wait([self._process.sentinel], timeout):
            raise subprocess.TimeoutExpired("pyro-bc", timeout)
        self._process.join()
        printed = tuple(file.read() for file in self._printed)
        for file in self._printed:
            file.close()
        return printed


def _run(arguments: list[str], outputs: list[str]) -> None:
    """The command, its streams those files."""
    for stream, name in enumerate(outputs, 1):
        os.dup2(os.open(name, os.O_WRONLY), stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from pyro_bc.app import cli

    sys.exit(cli.main(arguments))


def command(*arguments: str | Path) -> subprocess.CompletedProcess:
    """What the command ``pyro-bc`` with these arguments came to."""
    process = Command(*arguments)
    printed, said = process.communicate(timeout=600)
    return subprocess.CompletedProcess(["pyro-bc", *map(str, arguments)], process.returncode, printed, said)
