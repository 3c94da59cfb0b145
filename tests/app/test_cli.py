"""The command as a user runs it, in processes of its own: digits to a file, the file evaluated, every refusal."""

import io
import json
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch
from helpers import command

import pyro_bc
from pyro_bc.app import cli
from pyro_bc.app.cli import main, parser
from pyro_bc.file.contents import Contents
from pyro_bc.file.format import encode
from pyro_bc.graph.nodes import Named, Node, Value
from pyro_bc.quantisation.fixed_point import FixedPoint

SHORT = ("--net", "lenet-300-100", "--data", "digits", "--pretrain-epochs", "30", "--epochs", "25")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "gnj"
    done = command("run", *SHORT, "--prior", "gnj", "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def test_run_writes_what_it_promises_and_evaluate_agrees_exactly(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert sorted(p.name for p in finished.iterdir()) == [
        ".lock",
        "checkpoint",
        "dense.safetensors",
        "metrics.json",
        "network.pbc",
        "plots",
        "posterior.nc",
        "report.html",
        "report.md",
        "run.json",
    ]
    assert metrics["dense"]["parameters"] == 64 * 300 + 300 * 100 + 100 * 10 + 410
    assert metrics["file_bytes"] == (finished / "network.pbc").stat().st_size
    assert metrics["compression"]["maximum"] == pytest.approx(4 * 50_610 / metrics["file_bytes"], abs=1e-3)
    assert metrics["compressed"]["error_percent"] < metrics["dense"]["error_percent"] + 5
    done = command("evaluate", finished / "network.pbc", "--data", "digits", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "error_percent": metrics["compressed"]["error_percent"],
        "n": 360,
        "file_bytes": metrics["file_bytes"],
        "measured_on": "test set",
    }


def test_inspect_accounts_for_every_byte(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    done = command("inspect", finished / "network.pbc", "--json")
    description = json.loads(done.stdout)
    assert description["architecture"] == metrics["architecture"] and description["bits"] == metrics["bits"]
    assert description["input_shape"] == [1, 8, 8] and description["outputs"] == 10
    # The coder ends on a word of four bytes; its sections are information contents.
    assert sum(description["sections"].values()) == pytest.approx(metrics["file_bytes"], abs=12)
    plain = command("inspect", finished / "network.pbc").stdout
    assert "layer 3" in plain and f"{metrics['file_bytes']:,} bytes" in plain


def test_a_finished_run_is_not_run_again_nor_overwritten(finished):
    before = {p.name: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    refused = command("run", *SHORT, "--prior", "gnj", "--out", finished)
    assert refused.returncode == 2 and "--resume" in refused.stderr
    other = command("run", *SHORT, "--prior", "ghs", "--out", finished, "--resume")
    assert other.returncode == 2 and "prior 'gnj'" in other.stderr
    again = command("run", *SHORT, "--prior", "gnj", "--out", finished, "--resume", "--json")
    assert again.returncode == 0 and json.loads(again.stdout) == json.loads(before["metrics.json"])
    assert {p.name: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before


GOOD = {"--net": "lenet-300-100", "--prior": "gnj", "--data": "digits"}


@pytest.mark.parametrize(
    "changed,message",
    [
        ({"--net": "lenet-9000"}, "unknown network 'lenet-9000'; there are lenet-300-100"),
        ({"--prior": "spike"}, "unknown prior 'spike'; there are gnj, ghs, svd, normal"),
        (
            {"--data": "imagenet"},
            "unknown data 'imagenet'; there are digits, mnist, fashion-mnist, cifar-10, cifar-10-jpeg",
        ),
        ({"--data": "mnist", "--data-dir": "/nowhere"}, "data folder '/nowhere' does not exist"),
        ({"--precision": "float"}, "unknown precision rule 'float'; there are posterior, paper"),
        ({"--epochs": "0"}, "epochs and batch_size must be at least 1"),
        ({"--epochs": "many"}, "invalid int value: 'many'"),
        ({"--learning-rate": "nan"}, "learning rates must be positive"),
        ({"--threshold": "fc9=1"}, "a threshold is given for 'fc9', but the layers are fc1, fc2, fc3"),
        ({"--threshold": "fc1=high"}, "--threshold takes LAYER=VALUE"),
        ({"--batch-norm": "drop"}, "batch_norm is fold or keep, not 'drop'"),
        ({"--pretrain-learning-rate": "0"}, "learning rates must be positive"),
        ({"--pretrained": "/nowhere.safetensors"}, "'/nowhere.safetensors' is not a readable safetensors file"),
        ({"--train-limit": "9999"}, "the training set has 1,437 examples"),
        ({"--shift": "-1"}, "shifts at least 0"),
        ({"--batch-size": "0"}, "batch_size must be at least 1"),
        ({"--arithmetic": "fp8"}, "arithmetic is float32 or bf16"),
        ({"--resume": None}, "holds no run to resume"),
    ],
)
def test_bad_arguments_are_one_line_exit_2_and_no_folder(tmp_path, changed, message):
    out = tmp_path / "out"
    arguments = [part for pair in (GOOD | changed).items() for part in pair if part is not None]
    done = command("run", *arguments, "--out", out)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1 and done.stdout == ""
    assert not out.exists()


def test_a_damaged_original_names_the_file_and_both_ways_out(tmp_path):
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{name}-ubyte.gz").write_bytes(b"not mnist")
    out = tmp_path / "out"
    done = command("run", *GOOD_MNIST, "--data-dir", tmp_path, "--out", out)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "IDX" in done.stderr and "train-images-idx3-ubyte.gz" in done.stderr and "downloaded" in done.stderr
    assert not out.exists()


GOOD_MNIST = ("--net", "lenet-300-100", "--prior", "gnj", "--data", "mnist")


def test_a_network_that_died_writes_no_file(tmp_path):
    out = tmp_path / "out"
    brief = ("--epochs", "1", "--pretrain-epochs", "1", "--threshold", "fc2=-1e9")
    done = command("run", "--net", "lenet-300-100", "--prior", "gnj", "--data", "digits", *brief, "--out", out)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("pyro-bc: nothing is left of layer 'fc2'")
    assert not (out / "network.pbc").exists() and not (out / "metrics.json").exists()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    out = tmp_path / "out"
    wild = ("--epochs", "2", "--pretrain-epochs", "0", "--learning-rate", "1e30")
    done = command("run", "--net", "lenet-300-100", "--prior", "gnj", "--data", "digits", *wild, "--out", out)
    assert done.returncode == 2 and "not finite" in done.stderr.splitlines()[-1]
    assert not (out / "network.pbc").exists()


@pytest.mark.parametrize("subcommand", [("evaluate", "--data", "digits"), ("inspect",)])
@pytest.mark.parametrize("content,message", [(b"PK\x03\x04 something", "not a .pbc file"), (None, "cannot be read")])
def test_files_that_are_none_are_named(tmp_path, subcommand, content, message):
    path = tmp_path / "network.pbc"
    if content is not None:
        path.write_bytes(content)
    name, *rest = subcommand
    done = command(name, path, *rest)
    assert done.returncode == 2 and message in done.stderr and str(path) in done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""


def odd_files():
    """Networks without what inspect and evaluate tell of."""
    x = Value(-1)
    ones = FixedPoint(torch.ones(3, 64, dtype=torch.int64), 0)
    flat, layer = Node("flatten", (x, 1)), Node("linear", (Value(0), Named("w")))
    return {
        "no numbers": ([Node("relu", (x,))], {}),
        "no layers": ([flat, Node("mul", (Value(0), 2))], {}),
        "rows joined": ([flat, layer, Node("cat", ((Value(1), Value(1)), 1))], {"w": ones}),
    }


@pytest.mark.parametrize("nodes,tensors", odd_files().values(), ids=odd_files())
def test_networks_that_are_odd_are_inspected_and_evaluated_or_refused(tmp_path, capsys, nodes, tensors):
    path = tmp_path / "odd.pbc"
    path.write_bytes(
        encode(Contents(tuple(nodes), tensors, dict.fromkeys(tensors, (3, 64)), 100, (1, 8, 8), frozenset()))
    )
    assert main(["inspect", str(path)]) == 0 == main(["inspect", str(path), "--json"])
    capsys.readouterr()
    code = main(["evaluate", str(path), "--data", "digits"])
    said = capsys.readouterr()
    assert code == 0 or (code == 2 and said.err.count("\n") == 1 and str(path) in said.err)


@pytest.mark.parametrize("nodes", [[Node("sum", (Value(-1),))], [Node("cat", ((Value(-1), Value(-1)), 0))]])
def test_what_does_not_keep_its_examples_in_front_is_refused(tmp_path, capsys, nodes):
    path = tmp_path / "odd.pbc"
    path.write_bytes(encode(Contents(tuple(nodes), {}, {}, 100, (1, 8, 8), frozenset())))
    assert main(["inspect", str(path)]) == 2 == main(["evaluate", str(path), "--data", "digits"])
    said = capsys.readouterr().err
    assert said.count("\n") == 2 and said.count("does not keep its examples in front") == 2


def test_what_an_encoding_lacks_is_spelled_and_nothing_reaches_the_terminal(finished, tmp_path, monkeypatch):
    output, errors = (io.TextIOWrapper(io.BytesIO(), "ascii") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(sys, "stderr", errors)
    assert main(["inspect", str(finished / "network.pbc")]) == 0
    assert main(["inspect", str(tmp_path / "\x1b[31mö\udc80.pbc")]) == 2
    assert main(["run", *SHORT, "--prior", "gnj", "--out", str(finished), "--resume"]) == 0
    output.flush(), errors.flush()
    told, said = output.buffer.getvalue(), errors.buffer.getvalue()
    assert rb"64 \u2192 300 became" in told and b"| bits by rule |" in told
    assert b"\x1b" not in said and rb"\x1b[31m\xf6\udc80.pbc' cannot be read" in said


def test_streams_that_are_closed_full_or_not_read(finished, tmp_path, monkeypatch):
    network = str(finished / "network.pbc")

    class Unread(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    with open("/dev/full", "w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        patch.setattr(sys, "stderr", said := io.StringIO())
        assert main(["inspect", network]) == 2
        assert said.getvalue() == "pyro-bc: the standard output cannot be written: No space left on device\n"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Unread())
        assert main(["inspect", network]) == 141
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", told := io.StringIO())
        patch.setattr(sys, "stderr", None)
        assert main(["inspect", str(tmp_path / "none")]) == 2 and told.getvalue() == ""
        patch.setattr(sys, "stdout", None)
        assert main(["inspect", network]) == 0


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (["{f}/network.pbc"], "are one file, which would be replaced"),
        (["{t}/a.onnx", "--int8", "{t}/./a.onnx", "--data", "digits"], "are one file"),
        (["{t}/none/a.onnx"], "cannot be written: No such file"),
        (["/dev/null"], "cannot be written: it is a device"),
    ],
)
def test_where_nothing_can_be_exported_to_is_said_first(finished, tmp_path, capsys, places, message):
    places = [place.format(f=finished, t=tmp_path) for place in places]
    assert main(["export", str(finished / "network.pbc"), "--onnx", *places]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not list(tmp_path.iterdir())


def test_where_there_is_no_temporary_folder_or_memory_it_is_said(tmp_path, capsys, monkeypatch):
    def none():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    with monkeypatch.context() as patch:
        patch.setattr("tempfile.gettempdir", none)
        assert main(["run", *SHORT, "--prior", "gnj", "--out", str(tmp_path / "out")]) == 2
    assert "No usable temporary directory found in ['/tmp']: name one" in capsys.readouterr().err

    def much(args):
        raise MemoryError

    monkeypatch.setattr("pyro_bc.app.cli._inspect", much)
    assert main(["inspect", "x"]) == 2
    assert capsys.readouterr().err == "pyro-bc: this takes more memory than there is\n"


def test_a_file_is_not_evaluated_on_pictures_of_another_size(finished, mnist_folder):
    done = command("evaluate", finished / "network.pbc", "--data", "mnist", "--data-dir", mnist_folder)
    assert done.returncode == 2 and "(1, 8, 8)" in done.stderr and done.stderr.count("\n") == 1


def test_a_warning_is_one_line_once(capsys):
    with cli._warnings_as_lines():
        for number in (1, 1, 2):
            warnings.warn(f"number {number}", stacklevel=1)
    assert capsys.readouterr().err == "warning: number 1\nwarning: number 2\n"


def test_the_version_is_said():
    done = command("--version")
    assert done.returncode == 0 and done.stdout == f"pyro-bc {pyro_bc.__version__}\n"


@pytest.mark.parametrize(
    ("more", "prior"), [((), "ghs"), (("--prior", "gnj"), "gnj"), (("--objective", "rate"), "learned")]
)
def test_the_prior_is_ghs_where_nobody_names_one(tmp_path, monkeypatch, more, prior):
    seen = []
    monkeypatch.setattr("pyro_bc.app.cli.run", lambda settings, *_, **__: seen.append(settings.prior) or {})
    monkeypatch.setattr("pyro_bc.app.cli._tell", lambda *_: None)
    main(["run", "--net", "lenet-300-100", "--data", "digits", *more, "--out", str(tmp_path / "out")])
    assert seen == [prior]


def test_help_begins_with_what_every_run_needs():
    text = parser()._subparsers._group_actions[0].choices["run"].format_help()
    first, *others = re.split(r"\n\n(?=\S[^\n]*:\n)", text.partition("what every run needs:\n")[2])
    needed = {"--net", "--data", "--prior", "--out", "--resume", "--seed", "--max-error-rise", "--max-loss-rise"}
    assert set(re.findall(r"^  (--[\w-]+)", first, re.MULTILINE)) == {*needed, "--max-bytes"}
    headings = [part.partition(":\n")[0] for part in others]
    assert {"Bayesian training", "pruning and precision", "teacher", "dense network"} <= set(headings)
