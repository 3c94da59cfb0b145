"""The files that records are claimed with are as small as claimed, and make the errors that are claimed."""

import json
from pathlib import Path

import pytest
from helpers import command

import pyro_bc
from pyro_bc.file.compressed import read_sections

RECORDS = sorted((Path(__file__).parents[2] / "analyses" / "results" / "records").glob("*.pbc"))


@pytest.mark.parametrize("file", RECORDS, ids=lambda file: file.stem)
def test_a_record_file_is_what_its_figures_say(file):
    claimed = json.loads(file.with_suffix(".json").read_text())
    small = pyro_bc.read(file)
    assert claimed["file_bytes"] == claimed["test"]["file_bytes"] == file.stat().st_size
    assert list(small.architecture) == claimed["architecture"] and list(small.bits) == claimed["bits"]
    assert small.dense_parameters == claimed["dense"]["parameters"]
    assert small.to_bytes() == file.read_bytes()
    figures = small.compression(file.stat().st_size)
    assert claimed["compression"] == {name: round(value, 3) for name, value in vars(figures).items()}
    assert read_sections(file.read_bytes())[1]["header"] < 40


@pytest.mark.parametrize("file", RECORDS, ids=lambda file: file.stem)
def test_evaluating_a_record_file_in_a_new_process_gives_its_error(file, mnist_folder):
    claimed = json.loads(file.with_suffix(".json").read_text())["test"]
    done = command("evaluate", file, "--data", "mnist", "--data-dir", mnist_folder.parent, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == claimed
