"""The command on several processes, as torchrun starts them: one run, one folder, and what happens when one is lost."""

import os
import socket
import sys
import time
from subprocess import PIPE, Popen

import pytest

from pyro_bc.inference.checkpoint import load_checkpoint

FEW = ["--net", "lenet-300-100", "--prior", "ghs", "--data", "digits", "--widths", "20-10", "--pretrain-epochs", "2"]


def started(rank, count, port, out, *options):
    own = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = os.environ | {name: str(value) for name, value in own.items()}
    command = [sys.executable, "-m", "pyro_bc", "run", *FEW, *options, "--out", str(out)]
    return Popen(command, env=environment, stdout=PIPE, stderr=PIPE, text=True)


@pytest.fixture
def port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_a_lost_process_is_one_line_and_a_checkpoint_is_there(tmp_path, port):
    out = tmp_path / "out"
    options = ("--epochs", "400", "--train-limit", "400")
    # The second is on a machine that does not see the first one's folder.
    first, second = (started(rank, 2, port, out if rank == 0 else tmp_path / "other", *options) for rank in (0, 1))
    while not (out / "checkpoint").exists():
        assert first.poll() is None and second.poll() is None, (first.communicate(), second.communicate())
        time.sleep(0.05)
    second.kill()
    _, said = first.communicate()
    assert first.returncode == 2
    assert said.splitlines()[-1].startswith("pyro-bc: another process of this run does not answer any more; continue")
    assert second.communicate() == ("", "") and not (tmp_path / "other").exists()
    history = load_checkpoint(out / "checkpoint")[1]["history"]
    assert 0 < len(history) < 400


def test_what_is_wrong_everywhere_is_said_once(tmp_path, port):
    both = [started(rank, 2, port, tmp_path, "--epochs", "1", "--resume") for rank in (0, 1)]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [2, 2]
    assert said[0].count("\n") == 1 and "holds no run to resume" in said[0] and said[1] == ""
