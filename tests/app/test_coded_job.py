"""The job under a learned code, as a user runs it: digits to a tiny file; every refusal is one line."""

import json

import pytest
from helpers import command
from torch import nn

from pyro_bc import read
from pyro_bc.app.job import run
from pyro_bc.app.networks import NETWORKS
from pyro_bc.app.settings import Settings
from pyro_bc.errors import CheckpointError, UsageError

SHORT = {
    "epochs": 30, "pretrain_epochs": 30, "passes": 2, "development": True, "widths": "24-16",
}  # fmt: skip


def settings(**changes) -> Settings:
    return Settings.of("lenet-300-100", "learned", "digits", **SHORT | changes)


def test_the_command_makes_a_file_that_evaluates_to_what_it_says(tmp_path):
    out = tmp_path / "out"
    options = ["--epochs", "40", "--pretrain-epochs", "30", "--widths", "24-16"]
    what = ["--net", "lenet-300-100", "--objective", "rate", "--data", "digits", "--json"]
    done = command("run", *what, *options, "--out", out)
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)
    assert metrics == json.loads((out / "metrics.json").read_text())
    assert metrics["file_bytes"] == (out / "network.pbc").stat().st_size < 1300  # dense: 202,440
    assert metrics["compressed"]["error_percent"] < 15  # chance is 90
    evaluated = json.loads(command("evaluate", str(out / "network.pbc"), "--data", "digits", "--json").stdout)
    assert evaluated["error_percent"] == metrics["compressed"]["error_percent"]
    inspected = json.loads(command("inspect", str(out / "network.pbc"), "--json").stdout)
    assert inspected["sections"]["header"] < 40 and inspected["dense_architecture"] == [64, 300, 100]
    assert inspected["compression"]["maximum"] == metrics["compression"]["maximum"] > 150
    text = (out / "report.md").read_text()
    assert f"{metrics['file_bytes']:,} bytes" in text and "started from widths 24-16" in text
    page = (out / "report.html").read_text()
    assert f"{metrics['file_bytes']:,} bytes" in page and page.count("data:image/png") == 8
    assert "--prior learned" in page and "--widths 24-16" in page
    (out / "report.html").unlink()
    assert command("report", str(out)).returncode == 0 and (out / "report.html").read_text() == page
    assert sorted(path.name for path in (out / "plots").iterdir()) == [
        "architecture.png", "file.png", "groups_left.png", "kl.png", "pixels.png", "reliability.png",
        "training.png", "watched.png",
    ]  # fmt: skip


@pytest.fixture
def no_report(without_report):
    with without_report():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory, without_report):
    """A run that was left alone: its folder and metrics."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    with without_report():
        return folder, run(settings(), folder, progress=False)


def test_an_interrupted_run_gives_the_file_of_an_uninterrupted_one(tmp_path, whole, no_report):
    class Stopped(Exception):
        pass

    def stop(epoch):
        if epoch.epoch == 20:
            raise Stopped

    with pytest.raises(Stopped):
        run(settings(), tmp_path / "cut", progress=False, after_epoch=stop)
    with pytest.raises(CheckpointError, match="kl_weight"):
        run(settings(kl_weight=3.0), tmp_path / "cut", resume=True, progress=False)
    resumed = run(settings(), tmp_path / "cut", resume=True, progress=False)
    assert (tmp_path / "cut" / "network.pbc").read_bytes() == (whole[0] / "network.pbc").read_bytes()
    assert resumed["compressed"] == whole[1]["compressed"]
    again = run(settings(), tmp_path / "cut", resume=True, progress=False)
    assert again == json.loads((tmp_path / "cut" / "metrics.json").read_text())


def test_widths_of_another_file_and_another_teacher(tmp_path, whole, no_report):
    folder, first = whole
    file = folder / "network.pbc"
    changes = {
        "epochs": 5, "widths": None, "widths_from": str(file), "pretrain_epochs": 5, "affine": 0.0,
        "teacher_share": 1.0, "pretrained": str(folder / "dense.safetensors"), "teacher": "lenet-300-100",
    }  # fmt: skip
    second = run(settings(**changes), tmp_path / "second", progress=False)
    assert second["started_from"] == [len(layer.weight.codes) for layer in read(file).layers[:-1]]
    assert second["teacher"]["error_percent"] == second["dense"]["error_percent"]
    assert second["dense"]["parameters"] == first["dense"]["parameters"] == 50_610


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": "24-16-3"}, "300-100"),
        ({"widths": "24x16"}, "24x16"),
        ({"widths_from": "net.pbc"}, "not both"),
        ({"rounding": 1.5}, "rounding"),
        ({"teacher_share": -1.0}, "teacher-share"),
        ({"affine": -1.0}, "affine"),
        ({"passes": 0}, "passes"),
        ({"code_learning_rate": 0.0}, "learning rates"),
        ({"teacher": "lenet-6"}, "lenet-6"),
        ({"teacher_weights": "net.safetensors"}, "name it with teacher"),
        ({"thresholds": {"fc1": 1.0}}, "prunes nothing by a threshold"),
    ],
)
def test_impossible_settings_are_said_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        run(settings(**changes), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_the_objective_is_another_spelling_of_the_prior(tmp_path):
    options = ["--net", "lenet-300-100", "--data", "digits", "--out", str(tmp_path / "out"), "--objective", "rate"]
    done = command("run", *options, "--prior", "ghs")
    assert done.returncode == 2 and "leave out --prior ghs" in done.stderr and not (tmp_path / "out").exists()


def test_a_run_that_was_cut_while_the_teacher_learned_resumes_to_the_same_file(tmp_path, monkeypatch, no_report):
    changes = {"epochs": 3, "pretrain_epochs": 2, "teacher": "wider", "passes": 1, "affine": 0.0}
    monkeypatch.setitem(NETWORKS, "wider", lambda shape, classes: NETWORKS["lenet-300-100"](shape, classes))
    run(settings(**changes), tmp_path / "whole", progress=False)
    (tmp_path / "cut").mkdir()
    for name in ("run.json", "dense.safetensors"):
        (tmp_path / "cut" / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    run(settings(**changes), tmp_path / "cut", resume=True, progress=False)
    assert (tmp_path / "cut" / "network.pbc").read_bytes() == (tmp_path / "whole" / "network.pbc").read_bytes()


def normalised(picture_shape, classes):
    return nn.Sequential(
        nn.Conv2d(picture_shape[0], 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1), nn.Flatten(),
        nn.Linear(8 * 36, classes),
    )  # fmt: skip


def test_batch_norm_is_folded_and_the_dense_widths_are_a_start_too(tmp_path, monkeypatch, no_report):
    monkeypatch.setitem(NETWORKS, "normalised", normalised)
    options = SHORT | {"widths": None, "kl_weight": 0.05, "train_limit": 800, "teacher_share": 0.7}
    metrics = run(Settings.of("normalised", "learned", "digits", **options), tmp_path / "out", progress=False)
    assert metrics["started_from"] == [] and metrics["compressed"]["error_percent"] < 20
    assert not any(node.op == "batch_norm" for node in read(tmp_path / "out" / "network.pbc").nodes)
