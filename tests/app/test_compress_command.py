"""``pyro-bc compress``: networks of ours and a user's, data with targets and without, and every refusal."""

import json
import re

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers import two_of_six

import pyro_bc
from pyro_bc.app.cli import main

NETWORK = """
import torch
from torch import nn

def small():
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))

class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        raise ValueError("no such thing")

def number():
    return 3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's module, its trained weights twice, and data."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_net.py").write_text(NETWORK)
    namespace: dict = {}
    exec(NETWORK, namespace)
    torch.manual_seed(0)
    x, y = two_of_six(600)
    net = namespace["small"]()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x[:500]), y[:500]).backward()
        optimizer.step()
    torch.save(net.state_dict(), folder / "net.pt")
    safetensors.torch.save_file(net.state_dict(), folder / "net.safetensors")
    np.savez(folder / "data.npz", x=x[:500], y=y[:500], test_x=x[500:], test_y=y[500:])
    np.save(folder / "inputs.npy", x)
    safetensors.torch.save_file({"x": x, "y": y}, folder / "data.safetensors")
    return folder


def run(folder, *words, out="out"):
    return main(["compress", *map(str, words), "--out", str(folder / out)])


def metrics(folder, out="out"):
    return json.loads((folder / out / "metrics.json").read_text())


def test_inputs_alone_make_a_small_file_and_a_report(folder, capsys):
    weights = folder / "net.pt"
    assert run(folder, f"{folder}/own_net.py:small", "--weights", weights, "--data", folder / "inputs.npy") == 0
    found = metrics(folder)
    file = folder / "out" / "network.pbc"
    assert found["file_bytes"] == file.stat().st_size < 4 * found["dense"]["parameters"]
    assert found["dense"]["error_percent"] == 0 and found["compressed"]["error_percent"] < 5
    assert "beside the dense network" in found["measured_on"]
    said = capsys.readouterr()
    assert "Without training" in said.out and "counted where it disagrees with the dense network, on the" in said.out
    assert "test examples without targets" in said.err and re.search(
        r"dense network: [\d,]+ parameters$", said.err, re.M
    )
    assert pyro_bc.load(file)(torch.zeros(3, 6)).shape == (3, 2)
    page = (folder / "out" / "report.html").read_text()
    assert "pyro-bc compress" in page and "Calibration" in page and "Layer by layer" in page
    assert {row["layer"] for row in found["sensitivity"]["rows"]} == set(found["thresholds"])
    assert main(["report", str(folder / "out")]) == 0 and (folder / "out" / "report.html").read_text() == page


def test_targets_train_on_and_say_the_error(folder, monkeypatch):
    monkeypatch.chdir(folder)
    own = ("own_net:small", "--weights", folder / "net.safetensors")
    assert run(folder, *own, "--data", folder / "data.npz", "--epochs", 3, "--json", out="trained") == 0
    found = metrics(folder, "trained")
    assert found["n"] == 100 and found["measured_on"] == "test set"
    assert found["compressed"]["error_percent"] <= found["dense"]["error_percent"] + 5
    assert "--epochs 3" in (folder / "trained" / "report.html").read_text()
    assert run(folder, *own, "--data", folder / "data.safetensors", out="held") == 0
    assert metrics(folder, "held")["measured_on"] == "test data that were split off"
    assert metrics(folder, "held")["n"] == 60


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing", "--data", "{f}/inputs.npy"], "unknown network 'nothing'"),
        (["{f}/own_net.py:smal", "--data", "{f}/inputs.npy"], "it has small"),
        (["{f}/other.py:small", "--data", "{f}/inputs.npy"], "there is no file"),
        (["no.such.module:small", "--data", "{f}/inputs.npy"], "could not be imported"),
        (["{f}/own_net.py:Broken", "--data", "{f}/inputs.npy"], "no such thing"),
        (["{f}/own_net.py:number", "--data", "{f}/inputs.npy"], "not an nn.Module"),
        (["{f}/own_net.py:small", "--data", "{f}/missing.npy"], "unknown data"),
        (["{f}/own_net.py:small", "--data", "{f}/own_net.py"], "unknown data"),
        (["{f}/own_net.py:small", "--data", "{f}/net.safetensors"], "holds no inputs 'x'"),
        (["{f}/own_net.py:small", "--data", "{f}/inputs.npy", "--epochs", "2"], "has no targets"),
        (["{f}/own_net.py:small", "--data", "{f}/inputs.npy", "--epochs", "-1"], "at least 0"),
        (["{f}/own_net.py:small", "--data", "digits"], "cannot be run on inputs"),
        (
            ["{f}/own_net.py:small", "--data", "{f}/inputs.npy", "--weights", "{f}/own_net.py"],
            "a dictionary of tensors",
        ),
        (["{f}/own_net.py:small", "--data", "{f}/inputs.npy", "--weights", "{f}/spoilt.pt"], "save net.state_dict()"),
        (["lenet-300-100", "--data", "digits"], "--weights is needed"),
        (["{f}/own_net.py:small", "--data", "{f}/inputs.npy", "--nats-per-bit", "-1"], "price of a bit"),
        (["{f}/own_net.py:small", "--data", "{f}/inputs.npy", "--divergence", "0"], "divergence"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_no_folder(folder, capsys, words, message):
    (folder / "spoilt.pt").write_bytes(b"no archive")
    assert run(folder, *(word.format(f=folder) for word in words), out="refused") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error and error.startswith("pyro-bc: ")
    assert not (folder / "refused").exists()


def test_a_folder_that_is_in_use_stays(folder, capsys):
    (folder / "used").mkdir()
    (folder / "used" / "mine").write_text("mine")
    assert run(folder, f"{folder}/own_net.py:small", "--data", folder / "inputs.npy", out="used") == 2
    assert (folder / "used" / "mine").read_text() == "mine" and "not empty" in capsys.readouterr().err


def test_data_that_do_not_fit_together_are_refused(folder, capsys):
    np.savez(folder / "odd.npz", x=np.zeros((5, 6), np.float32), y=np.zeros(4, np.int64))
    assert run(folder, f"{folder}/own_net.py:small", "--data", folder / "odd.npz", out="odd") == 2
    assert "4 targets, of 5 inputs" in capsys.readouterr().err
    np.savez(folder / "nan.npz", x=np.full((50, 6), np.nan, np.float32))
    assert run(folder, f"{folder}/own_net.py:small", "--data", folder / "nan.npz", out="odd") == 2
    assert "NaN" in capsys.readouterr().err
