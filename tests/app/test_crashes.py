"""A run that is killed, interrupted, or meets a full disk continues to what it would have come to; two do not mix."""

import signal
import subprocess
import time

import pytest
from crashes import Tally, arguments, check_whole, outcome, torment
from helpers import Command, command
from runtime.test_files import mounted


def start(name, folder):
    return Command(*arguments(name, folder))


@pytest.fixture(scope="module", params=["elbo"])
def reference(request, tmp_path_factory):
    """A run that is left alone: its name, folder and duration. The other kinds are in the analysis."""
    folder = tmp_path_factory.mktemp("reference") / request.param
    started = time.monotonic()
    process = start(request.param, folder)
    _, said = process.communicate()
    assert process.returncode == 0, said
    return request.param, folder, time.monotonic() - started


def test_killed_runs_resume_to_the_same_file_and_figures(tmp_path, reference):
    name, folder, seconds = reference
    tally = Tally()
    torment(name, tmp_path, folder, 1, seconds, 1, tally, start)
    assert tally.finished >= 1 and sum(tally.interrupted.values()) == 1


def wait_for(process, file):
    while not file.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def test_while_a_run_works_in_a_folder_no_other_can(tmp_path, reference):
    name, folder, _ = reference
    first = start(name, tmp_path / "out")
    wait_for(first, tmp_path / "out" / "checkpoint")
    first.send_signal(signal.SIGSTOP)  # alive, but not done before the other comes
    second = start(name, tmp_path / "out")
    _, said = second.communicate()
    assert second.returncode == 2 and "another run is working in" in said and said.count("\n") == 1
    first.send_signal(signal.SIGCONT)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate()
    assert first.returncode == 130 and "continue with --resume" in said.splitlines()[-1]
    check_whole(tmp_path / "out")
    third = start(name, tmp_path / "out")
    assert third.communicate() and third.returncode == 0
    assert outcome(tmp_path / "out") == outcome(folder)


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(tmp_path, reference):
    name, folder, _ = reference
    with mounted(tmp_path / "small", "size=2m") as small:
        process = start(name, small / "out")
        _, said = process.communicate()
        assert process.returncode == 2
        assert "cannot be written: No space left on device" in said.splitlines()[-1]
        check_whole(small / "out")
        subprocess.run(["mount", "-o", "remount,size=100m", str(small)], check=True)
        process = start(name, small / "out")
        assert process.communicate() and process.returncode == 0
        assert outcome(small / "out") == outcome(folder)


def test_a_target_that_only_reads_is_one_line(tmp_path):
    with mounted(tmp_path / "fixed", "size=1m,ro") as fixed:
        done = command("run", "--net", "lenet-300-100", "--prior", "ghs", "--data", "digits", "--out", fixed / "out")
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Read-only file system" in done.stderr
