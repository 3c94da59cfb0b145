"""The job's parts: error counted exactly, the report's figures those of the metrics."""

import html
import sys

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from pyro_bc import read
from pyro_bc.app.datasets import load_dataset
from pyro_bc.app.dense import load_weights
from pyro_bc.app.job import run
from pyro_bc.app.networks import NETWORKS, lenet_300_100
from pyro_bc.app.report import findings
from pyro_bc.app.settings import Settings
from pyro_bc.app.tables import markdown
from pyro_bc.errors import CheckpointError, UsageError
from pyro_bc.inference.checkpoint import load_checkpoint
from pyro_bc.inspection.diagnostics import error_percent


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """As many draws are exported and predict as of a network that is large."""
    monkeypatch.setattr("pyro_bc.app.metrics._OPERATIONS", 1e6)


@pytest.fixture
def no_pages(monkeypatch):
    """Runs of which nobody looks at the pictures."""
    monkeypatch.setattr("pyro_bc.app.report.write_report", lambda folder, metrics: None)


@pytest.mark.parametrize("prior", ["gnj", "ghs", "svd", "learned", "ghs+learned"])  # all densities, alone and together
def test_every_prior_goes_from_digits_to_a_report(tmp_path, request, prior):
    few = {"epochs": 4, "pretrain_epochs": 20, "kl_weight": 0.02}
    settings = Settings.of("lenet-300-100", prior, "digits", **few, development=True, widths="")
    with_pages = prior in ("ghs", "learned")  # of every kind of precision one is drawn
    if not with_pages:
        request.getfixturevalue("no_pages")
    metrics = run(settings, tmp_path / "out", progress=False)
    assert metrics["measured_on"] == "held-out training data" and metrics["n"] == 180
    assert metrics["compressed"]["error_percent"] < 25  # chance is 90
    text = markdown(metrics)
    assert text == (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "out" / "report.html").exists() is with_pages
    assert f"{metrics['file_bytes']:,} bytes" in text and f"| {metrics['compressed']['error_percent']:.2f} |" in text
    coded = "learned" in prior
    assert set(metrics["other_precision"]) == (set() if coded else {"paper"})
    assert metrics["precision"] == ("learned" if coded else "posterior")
    course, table = metrics["course"], metrics["sensitivity"]
    assert course["measured_on"] == table["measured_on"] == "held-out training data" and course["n"] == 180
    assert course["epoch"] == [1, 2, 3, 4] and len(course["held_out_error"]) == len(course["file_bytes"]) == 4
    assert course["held_out_error"][-1] == pytest.approx(metrics["compressed"]["error_percent"], abs=3)
    assert {row["layer"] for row in table["rows"]} == {"fc1", "fc2", "fc3"}
    error, _, worst = max((row["error"], row["loss"], row["layer"]) for row in table["rows"] if row["is_chosen"])
    costs = error > table["mean"]["error"]
    assert (f"layer {worst} costs most" if costs else "no layer costs anything") in text


@pytest.mark.usefixtures("no_pages")
def test_finetuning_continues_with_what_was_left_against_the_dense_network(tmp_path, without_report):
    base = {"epochs": 15, "pretrain_epochs": 20, "kl_weight": 1.0, "development": True}
    with without_report():
        plain = run(Settings.of("lenet-300-100", "ghs", "digits", **base), tmp_path / "plain", progress=False)
    said: list[str] = []
    again = Settings.of("lenet-300-100", "ghs", "digits", **base, finetune_epochs=15, finetune_kl_weight=0.0)
    metrics = run(again, tmp_path / "again", progress=False, say=said.append)
    assert any("-".join(map(str, plain["architecture"])) in line for line in said)
    assert metrics["dense"] == plain["dense"]
    assert all(a <= b for a, b in zip(metrics["architecture"], plain["architecture"], strict=True))
    # Without a KL the training fits the data only: its likelihood is higher.
    name = "negative_log_likelihood_per_example"
    assert metrics["loss_nats"][name] < plain["loss_nats"][name]
    assert "15 epochs of what was left, KL weight 0" in markdown(metrics)
    # Without a KL the draws come to be all alike, which leave-one-out cannot use: JSON has no NaN for it.
    written = (tmp_path / "again" / "metrics.json").read_text()
    assert (
        "NaN" not in written and "Infinity" not in written and "Leave-one-out" in findings(metrics["diagnostics"])[-1]
    )
    # Interrupted after the second training: the same file again.
    file = (tmp_path / "again" / "network.pbc").read_bytes()
    (tmp_path / "again" / "metrics.json").unlink()
    resumed = run(again, tmp_path / "again", resume=True, progress=False)
    assert (tmp_path / "again" / "network.pbc").read_bytes() == file
    assert resumed["training_seconds"] == metrics["training_seconds"]


def normalised(picture_shape, classes):
    return nn.Sequential(
        nn.Conv2d(picture_shape[0], 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1), nn.Flatten(),
        nn.Linear(8 * 36, classes),
    )  # fmt: skip


@pytest.mark.usefixtures("no_pages")
@pytest.mark.parametrize("batch_norm", ["fold", "keep"])
def test_batch_norm_is_folded_or_kept_on_the_way(tmp_path, monkeypatch, batch_norm):
    monkeypatch.setitem(NETWORKS, "normalised", normalised)
    few = {"epochs": 5, "pretrain_epochs": 15, "kl_weight": 0.02, "batch_size": 20, "train_limit": 821, "shift": 1}
    settings = Settings.of("normalised", "gnj", "digits", **few, batch_norm=batch_norm, development=True)
    metrics = run(settings, tmp_path / "out", progress=False)
    assert metrics["compressed"]["error_percent"] < 15  # chance is 90
    assert metrics["recipe"]["fit"]["batch_size"] == 20 and "moved by up to 1 pixel" in markdown(metrics)
    names = load_checkpoint(tmp_path / "out" / "checkpoint")[0]
    assert any("running_var" in name for name in names) is (batch_norm == "keep")
    small = read(tmp_path / "out" / "network.pbc")
    assert not any(node.op == "batch_norm" for node in small.nodes)


@pytest.mark.usefixtures("no_pages")
def test_a_pretrained_network_is_where_the_run_starts(tmp_path):
    torch.manual_seed(3)
    net = lenet_300_100((1, 8, 8))
    file = tmp_path / "net.safetensors"
    save_model(net, file)
    settings = Settings.of("lenet-300-100", "gnj", "digits", pretrained=str(file), epochs=1)
    metrics = run(settings, tmp_path / "out", progress=False)
    assert metrics["recipe"]["dense"]["epochs"] == 0
    data = load_dataset("digits")
    assert metrics["dense"]["error_percent"] == error_percent(net, data.test_x, data.test_y)
    assert torch.equal(load_checkpoint(tmp_path / "out" / "dense.safetensors")[0]["fc2.weight"], net.fc2.weight)
    weights = dict(net.state_dict())
    wrong = {
        "holds no 'fc2.bias'": {name: w for name, w in weights.items() if name != "fc2.bias"},
        r"'fc1.weight' has shape \(3, 4\).*\(300, 64\)": weights | {"fc1.weight": torch.zeros(3, 4)},
        "holds 'fc4.weight', which": weights | {"fc4.weight": torch.zeros(3, 4)},
    }
    for message, tensors in wrong.items():
        save_file(tensors, file)
        with pytest.raises(UsageError, match=message):
            run(settings, tmp_path / "other", progress=False)
    file.write_bytes(b"none")
    with pytest.raises(UsageError, match="not a readable safetensors file"):
        run(settings, tmp_path / "other", progress=False)
    # A pickle that takes from a list what is not in it: torch raises an IndexError.
    (tmp_path / "w.pth").write_bytes(b"\x80\x02]q\x00a.")
    with pytest.raises(UsageError, match=r"w\.pth' is no state_dict that torch\.load\(weights_only=True\) reads"):
        load_weights(net, tmp_path / "w.pth")
    assert not (tmp_path / "other").exists()


@pytest.mark.usefixtures("no_pages")
def test_one_seed_gives_one_file_and_another_seed_another(tmp_path):
    def file(seed, name):
        settings = Settings.of("lenet-300-100", "ghs", "digits", epochs=2, pretrain_epochs=2, seed=seed)
        run(settings, tmp_path / name, progress=False)
        return (tmp_path / name / "network.pbc").read_bytes()

    assert file(1, "a") == file(1, "b") != file(2, "c")


def test_folders_in_use_are_left_alone(tmp_path):
    settings = Settings.of("lenet-300-100", "gnj", "digits")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        run(settings, tmp_path)
    with pytest.raises(CheckpointError, match="no run to resume"):
        run(settings, tmp_path, resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError):
        run(settings, tmp_path / "file")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "mine.txt"]


def test_a_target_is_one_number_and_all_else_is_found(tmp_path, request, monkeypatch):
    monkeypatch.setattr("pyro_bc.compression.target._EVALUATIONS", 4)  # a few of all networks
    few = {"epochs": 10, "pretrain_epochs": 30, "max_error_rise": 5.0}
    settings = Settings.of("lenet-300-100", "ghs", "digits", **few)
    said: list[str] = []
    metrics = run(settings, tmp_path / "one", progress=False, say=said.append)
    target = metrics["target"]
    assert target["is_met"] and target["held_out"] == 287 and target["limit"] == 5
    assert target["found"]["file_bytes"] == metrics["file_bytes"] == (tmp_path / "one" / "network.pbc").stat().st_size
    assert target["found"]["error"] <= target["dense"]["error"] + 5 + 1e-3
    assert target["found"]["file_bytes"] < 0.2 * 4 * metrics["dense"]["parameters"]
    assert metrics["n"] == 360 and metrics["measured_on"] == "test set"
    assert metrics["course"]["n"] == 287 and "warning" not in metrics
    assert said[-1].startswith("Target: error at most 5 points above the dense network's. Kept on 287 held-out")
    assert said[-1] in markdown(metrics) and ", found while training" in markdown(metrics)
    page = (tmp_path / "one" / "report.html").read_text()
    assert "The target" in page and "--max-error-rise 5.0" in page
    # Stopped behind its sixth epoch: the same file.
    request.getfixturevalue("no_pages")
    stop = []

    def interrupt(epoch):
        stop.append(epoch)
        if len(stop) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "two", progress=False, after_epoch=interrupt)
    again = run(settings, tmp_path / "two", resume=True, progress=False)
    assert (tmp_path / "two" / "network.pbc").read_bytes() == (tmp_path / "one" / "network.pbc").read_bytes()
    for name in ("target", "course", "sensitivity"):
        assert again[name] == metrics[name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_error_rise": 1.0, "max_bytes": 100}, "one number, not"),
        ({"max_error_rise": 1.0, "kl_weight": 0.1}, "leave out kl-weight"),
        ({"max_bytes": -5}, "max_bytes must be at least 1"),
    ],
)
def test_a_target_that_makes_no_sense_is_refused_at_once(tmp_path, options, message):
    settings = Settings.of("lenet-300-100", "ghs", "digits", **options)
    with pytest.raises(UsageError, match=message):
        run(settings, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_compression_that_went_wrong_is_said_with_its_layer(tmp_path):
    settings = Settings.of(
        "lenet-300-100", "gnj", "digits", epochs=2, pretrain_epochs=20, kl_weight=0.0, thresholds={"fc2": -9.22}
    )
    said: list[str] = []
    metrics = run(settings, tmp_path / "out", progress=False, say=said.append)
    assert "layer 'fc2' alone makes it" in metrics["warning"] and f"warning: {metrics['warning']}" in said
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"Warning: {metrics['warning']}" in html.unescape(page) and "Layer by layer" in page
    assert metrics["course"]["measured_on"] == "training data"  # the test set is looked at once


def test_a_log_that_cannot_be_written_is_said_before_anything_is(tmp_path, monkeypatch):
    settings = Settings.of("lenet-300-100", "gnj", "digits")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match=r"pyro-bc\[tensorboard\]"):
        run(settings, tmp_path / "out", progress=False, log_dir=tmp_path / "log")
    assert list(tmp_path.iterdir()) == []
