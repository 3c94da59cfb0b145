"""README's examples, run as written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import command

import pyro_bc
from pyro_bc.app.datasets import load_dataset

README = Path(__file__).resolve().parents[2] / "README.md"


def example(number: int) -> str:
    """One of the Python examples."""
    codes = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(codes) == 7
    return codes[number]


def run_python(code: str, folder: Path) -> str:
    environment = os.environ | {"MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=600, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def first_four(tmp_path_factory):
    """The folder where the first three examples, and that without a training, ran one after the other, and what they
    printed."""
    folder = tmp_path_factory.mktemp("readme")
    return folder, run_python(example(0) + example(1) + example(2) + example(5), folder)


def test_the_ten_lines_run_and_give_a_small_network_that_works(first_four):
    folder, _ = first_four
    data = load_dataset("digits")
    net = pyro_bc.load(folder / "net.pbc")
    wrong = (net(data.test_x).argmax(1) != data.test_y).float().mean()
    assert wrong < 0.15
    assert (folder / "net.pbc").stat().st_size < 4 * 7_510 / 4


def test_the_rate_example_goes_on_from_there_to_a_tiny_file(first_four):
    folder, printed = first_four
    size = (folder / "tiny.pbc").stat().st_size
    assert f"{size} bytes" in printed.splitlines() and size < 4 * 1_810 / 8
    data, net = load_dataset("digits"), pyro_bc.load(folder / "tiny.pbc")
    assert (net(data.test_x).argmax(1) != data.test_y).float().mean() < 0.12


def test_a_network_is_small_without_a_training(first_four):
    folder, printed = first_four
    size = (folder / "curved.pbc").stat().st_size
    assert printed.splitlines()[-1] == f"{size} bytes" and size < 4 * 7_510 / 5
    data, net = load_dataset("digits"), pyro_bc.load(folder / "curved.pbc")
    assert (net(data.test_x).argmax(1) != data.test_y).float().mean() < 0.08


def test_a_target_is_kept(first_four):
    folder, printed = first_four
    size = (folder / "kept.pbc").stat().st_size
    assert f"{size} bytes" in printed and "True Judged" in printed and size < 4 * 7_510 / 8


def test_arviz_reads_the_posterior_of_the_main_job(tmp_path):
    words = ["run", "--net", "lenet-300-100", "--prior", "ghs", "--data", "digits", "--epochs", "2"]
    words += ["--pretrain-epochs", "2", "--out"]
    assert command(*words, tmp_path / "runs" / "digits").returncode == 0
    printed = run_python(example(6), tmp_path)
    assert "net.fc1.scale[20]" in printed and "elpd_loo" in printed
