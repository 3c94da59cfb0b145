"""The page of a run holds its figures and pictures, and nothing from elsewhere."""

import json
import re
import shlex
import shutil

import pytest
from helpers import command

from pyro_bc.app.cli import parser
from pyro_bc.app.job import run
from pyro_bc.app.report import _page, write_report
from pyro_bc.app.settings import Settings, as_json
from pyro_bc.app.settings import command as command_line
from pyro_bc.app.tables import markdown, watched_in_words
from pyro_bc.errors import PyroBCError, UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "run"
    settings = Settings.of("lenet-300-100", "ghs", "digits", epochs=8, pretrain_epochs=10, finetune_epochs=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro_bc.app.metrics._OPERATIONS", 1e6)  # a few draws predict, as of a large network
        run(settings, folder, progress=False)
    return folder


def test_the_page_has_the_figures_and_needs_nothing_else(folder):
    page = (folder / "report.html").read_text()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert f"{metrics['file_bytes']:,} bytes" in page
    assert f"{metrics['compressed']['error_percent']:.2f} %" in page and "Pareto k" in page
    assert "<script" not in page and not re.search(r"(src|href)=\"(?!data:)", page) and "@import" not in page
    pictures = re.findall(r'<img alt="([\w-]+)" src="data:image/png;base64,', page)
    expected = {
        "architecture",
        "file",
        "bits",
        "statistics-fc1",
        "pixels",
        "training",
        "watched",
        "kl",
        "groups_left",
        "forest",
    }
    assert expected <= set(pictures)
    assert {path.stem for path in (folder / "plots").iterdir()} >= set(pictures)


def test_parameters_that_folding_takes_away_are_said(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    assert "folded" not in markdown(metrics)
    metrics["dense"]["trained_parameters"] = metrics["dense"]["parameters"] + 100
    assert f"{metrics['dense']['parameters']:,} with batch normalisation folded" in markdown(metrics)


def test_the_thresholds_shown_are_those_that_pruned_the_full_network(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics["pruning_thresholds"]) == {"fc1", "fc2", "fc3"}
    assert (folder / "finetune.nc").exists()


def test_the_command_writes_the_same_page_again(folder):
    before = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    done = command("report", folder)
    assert done.returncode == 0 and done.stdout.strip() == str(folder / "report.html"), done.stderr
    assert (folder / "report.html").read_bytes() == before


def test_no_run_is_one_clear_line(tmp_path):
    done = command("report", tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no folder of a finished" in done.stderr
    with pytest.raises(UsageError, match=r"run\.json"):
        write_report(tmp_path)


def emptied(path):
    path.unlink()
    path.mkdir()


def as_file(path):
    shutil.rmtree(path)
    path.write_text("")


DAMAGED = {
    "no text": ("metrics.json", lambda path: path.write_bytes(b"\xff"), "'.*metrics.json' is damaged"),
    "a list": ("run.json", lambda path: path.write_text("[1]"), "'.*run.json' is damaged .it holds a list"),
    "lists in lists": ("metrics.json", lambda path: path.write_text("[" * 100_000), "is damaged"),
    "others' figures": ("metrics.json", lambda path: path.write_text("{}"), "not what this version .*KeyError"),
    "half a network": ("network.pbc", lambda path: path.write_bytes(path.read_bytes()[:99]), "checksum"),
    "half a posterior": ("posterior.nc", lambda path: path.write_bytes(path.read_bytes()[:999]), "ArviZ reads"),
    "text as a posterior": ("finetune.nc", lambda path: path.write_text("text"), "finetune.nc' is no posterior"),
    "a file in a folder's place": ("plots", as_file, "no folder, where a run writes a folder"),
    "a folder in a file's place": ("report.html", emptied, "no file, where a run writes a file"),
}


@pytest.mark.parametrize("name,damage,message", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_folder_is_one_error_and_nothing_in_it_is_changed(folder, tmp_path, name, damage, message):
    copy = shutil.copytree(folder, tmp_path / "copy")
    damage(copy / name)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(PyroBCError, match=message):
        write_report(copy)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_nothing_in_a_runs_files_reaches_the_page_as_markup(folder):
    evil = "<script>'\"&"

    def poisoned(tree):
        if isinstance(tree, dict):
            named = {evil + key if key in ("fit", "paper") else key: value for key, value in tree.items()}
            return {key: value if key == "metric" else poisoned(value) for key, value in named.items()}
        if isinstance(tree, list):
            return [poisoned(row) for row in tree] if all(isinstance(row, dict) for row in tree) else [evil]
        return evil if isinstance(tree, str) else tree

    metrics = poisoned(json.loads((folder / "metrics.json").read_text()))
    settings = poisoned(json.loads((folder / "run.json").read_text()))
    page = _page(metrics, settings, evil, {}, [(evil, evil, evil, b"", None)])
    assert "<script" not in page and page.count("&lt;script") > 10 and evil not in page


def test_the_command_line_shown_gives_the_settings_back():
    settings = Settings.of(
        "lenet-5-caffe", "gnj", "mnist", epochs=3, kl_weight=0.5, seed=4, thresholds={"conv1": 2.5}, development=True,
        batch_norm="keep",
    )  # fmt: skip
    line = command_line(json.loads(json.dumps(as_json(settings))))
    args = parser().parse_args([*shlex.split(line)[1:], "--out", "x"])
    assert (args.net, args.prior, args.data, args.epochs, args.kl_weight) == ("lenet-5-caffe", "gnj", "mnist", 3, 0.5)
    assert args.seed == 4 and args.threshold == ["conv1=2.5"] and args.development and args.batch_norm == "keep"
    assert "precision" not in line and "train-limit" not in line


@pytest.mark.parametrize(
    "metric,error,expected",
    [
        ("error %", 2.0, "no layer costs anything on 300 examples of training data"),
        ("error %", 2.5, "layer fc costs most: error % 2.50 beside 2.00, on 300 examples of training data"),
        ("RMSE", 2.000012, "layer fc costs most: RMSE 2 beside 2, on"),
        ("RMSE", 0.0012, "no layer costs anything"),
    ],
)
def test_a_layer_is_said_to_cost_most_where_one_costs_anything(metric, error, expected):
    row = {"layer": "fc", "groups": 3, "of": 4, "bits": 5, "code_bytes": 9.0, "error": error, "loss": 0.1}
    found = {
        "metric": metric, "rows": [row | {"is_chosen": True}], "mean": {"error": 2.0, "loss": 0.2}, "n": 300,
        "measured_on": "training data",
    }  # fmt: skip
    assert expected in watched_in_words({"sensitivity": found})[0]
