"""``pyro-bc run`` on a user's network and data: one command, a file that takes raw inputs, a report; each refusal."""

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pandas
import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file

import pyro_bc
from pyro_bc.app import examples
from pyro_bc.app.cli import main
from pyro_bc.app.own_data import load_data
from pyro_bc.app.own_network import network

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
SECTION = README.split("## Your own network and pictures")[1].split("\n## ")[0]
CODES = re.findall(r"```python\n(.*?)```", SECTION, flags=re.DOTALL)

NETWORKS = """
from torch import nn

def table():
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))

def two():
    return nn.Linear(3, 2)

class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.start, self.up, self.down, self.head = nn.Linear(3, 6), nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 1)

    def forward(self, x):
        x = self.start(x)
        return self.head(x + self.down(self.up(x).relu()))
"""


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr("pyro_bc.app.metrics._OPERATIONS", 1e6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """README's network and pictures, as written; others, and a table whose columns have very different units."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "net.py").write_text(NETWORKS)
    (folder / "my_net.py").write_text(CODES[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(CODES[1], {})
    x = np.random.default_rng(0).normal(size=(600, 3))
    price = 3e5 + 1e5 * np.maximum(x[:, 0], 0) - 5e4 * x[:, 1]
    pandas.DataFrame({"a": x[:, 0] * 1e4, "b": 5 + x[:, 1], "c": x[:, 2] / 1e3, "price": price}).to_csv(
        folder / "table.csv", index=False
    )
    return folder


def run(folder, *words, out):
    return main(["run", *map(str, words), "--out", str(folder / out)])


# Six epochs are no training to its end, and whether that shows in the errors is the machine's rounding's.
@pytest.mark.filterwarnings("ignore:the rise is counted from a network")
def test_own_pictures_and_an_own_network_become_a_file_and_a_report(folder, capsys, monkeypatch):
    (command,) = re.findall(r"```\npyro-bc run (.*) --out .*\n```", SECTION)
    monkeypatch.chdir(folder)
    words = [*command.split(), "--epochs", 5, "--pretrain-epochs", 6]
    assert run(folder, *words, out="pictures-out") == 0
    said = capsys.readouterr()
    found = json.loads((folder / "pictures-out" / "metrics.json").read_text())
    inputs = found["inputs"]
    assert inputs["examples"] == {"train": 1295, "held_out": 323, "test": 179}
    assert inputs["classes"] == [f"digit {label}" for label in range(10)]
    assert "1,295 training, 323 held-out and 179 test examples of 10 classes; grey pictures of 8 x 8 pixels" in said.err
    assert inputs["normalisation"] == {"input_mean": [0.25], "input_deviation": [0.5]}
    assert found["dense"]["error_percent"] < 30 and found["compressed"]["error_percent"] < 40  # chance is 90
    file = folder / "pictures-out" / "network.pbc"
    data = load_data(str(folder / "pictures"))
    wrong = (pyro_bc.load(file)(data.test_x).argmax(1) != data.test_y).sum()  # raw pictures in [0, 1]
    assert 100 * int(wrong) / 179 == pytest.approx(found["compressed"]["error_percent"])
    assert main(["evaluate", str(file), "--data", str(folder / "pictures"), "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert evaluated == {
        "error_percent": found["compressed"]["error_percent"],
        "n": 179,
        "file_bytes": file.stat().st_size,
        "measured_on": "test data that were split off",
    }
    page = (folder / "pictures-out" / "report.html").read_text()
    assert "normalised inside the network" in page and "Calibration" in page
    (folder / "pictures" / "digit 5").rename(
        folder / "pictures" / "digit five"
    )  # classes of other names are other classes
    assert main(["evaluate", str(file), "--data", str(folder / "pictures")]) == 2
    assert "other classes than" in capsys.readouterr().err
    (folder / "pictures" / "digit five").rename(folder / "pictures" / "digit 5")


def test_a_regression_speaks_of_its_own_metric_streams_and_resumes(folder, capsys, monkeypatch):
    words = (
        "--net", f"{folder}/net.py:table", "--prior", "gnj", "--data", folder / "table.csv", "--epochs", 30,
        "--pretrain-epochs", 60, "--pretrain-learning-rate", 0.01, "--kl-weight", 0.1, "--learning-rate", 0.01,
    )  # fmt: skip
    assert run(folder, *words, out="table-out") == 0
    assert "RMSE" in capsys.readouterr().out
    out = folder / "table-out"
    found = json.loads((out / "metrics.json").read_text())
    assert found["metric"] == "RMSE" and found["inputs"]["columns"] == ["a", "b", "c"]
    assert 0 < found["compressed"]["rmse"] < 3e4 and found["dense"]["rmse"] < 3e4  # the prices' deviation is 77,000
    text = (out / "report.md").read_text() + (out / "report.html").read_text()
    assert "error %" not in text and "Calibration" not in text and "RMSE" in text
    assert main(["report", str(out)]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(out / "network.pbc"), "--data", str(folder / "table.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rmse"] == pytest.approx(found["compressed"]["rmse"])
    # A dense network of that run is one for the next, of arrays that are read when asked for.
    data = load_data(str(folder / "table.csv"))
    np.savez(folder / "table.npz", x=data.train_x, y=data.train_y, test_x=data.test_x, test_y=data.test_y)
    monkeypatch.setattr(examples, "_IN_MEMORY", 10)
    monkeypatch.setattr("pyro_bc.app.report.write_report", lambda folder, metrics: None)  # nobody looks at these
    again = (
        "--net", f"{folder}/net.py:table", "--prior", "gnj", "--data", folder / "table.npz", "--epochs", 2,
        "--kl-weight", 0.1, "--weights", out / "dense.safetensors", "--likelihood", "gaussian",
    )  # fmt: skip
    assert run(folder, *again, out="again") == 0
    second = json.loads((folder / "again" / "metrics.json").read_text())
    assert second["dense"]["rmse"] == pytest.approx(found["dense"]["rmse"], rel=1e-5)
    file = (folder / "again" / "network.pbc").read_bytes()
    (folder / "again" / "metrics.json").unlink()
    assert run(folder, *again, "--resume", out="again") == 0
    assert (folder / "again" / "network.pbc").read_bytes() == file
    assert main(["compress", f"{folder}/net.py:table", "--weights", str(out / "dense.safetensors"), "--data",
                 str(folder / "table.csv"), "--out", str(folder / "small")]) == 0  # fmt: skip
    small = json.loads((folder / "small" / "metrics.json").read_text())
    assert small["metric"] == "RMSE" and small["dense"]["rmse"] == pytest.approx(found["dense"]["rmse"], rel=1e-5)


def test_channels_that_cross_layers_are_pruned_where_it_is_asked_for(folder, capsys):
    words = (
        "--net", f"{folder}/net.py:Residual", "--prior", "gnj", "--residual-width", "ghs", "--data",
        folder / "table.csv", "--epochs", 2, "--pretrain-epochs", 2
    )  # fmt: skip
    assert run(folder, *words, out="width") == 0
    found = json.loads((folder / "width" / "metrics.json").read_text())
    assert list(found["thresholds"]) == ["net.start", "net.up", "net.down", "net.head", "residual.0"]
    assert "--residual-width ghs" in (folder / "width" / "report.html").read_text()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--data", "{f}/table.csv", "--net", "{f}/net.py:two"), "does not fit targets of shape"),
        (("--data", "{f}/table.csv", "--net", "{f}/my_net.py:Net"), "cannot be run on inputs"),
        (("--data", "{f}/table.csv", "--net", "{f}/net.py:three"), "it has table, two"),
        (("--data", "{f}/table.csv", "--net", "lenet-300-100"), "built for a number of classes"),
        (("--data", "{f}/table.csv", "--net", "{f}/net.py:table", "--target", "cost"), "no column 'cost'"),
        (("--data", "{f}/table.csv", "--net", "{f}/net.py:table", "--likelihood", "categorical"), "holds no classes"),
        (("--data", "{f}/table.csv", "--net", "{f}/net.py:table", "--likelihood", "cauchy"), "unknown likelihood"),
        (("--data", "{f}/table.csv", "--net", "{f}/net.py:table", "--affine", "0.5"), "move pictures"),
        (("--data", "{f}/table.csv", "--net", "{f}/net.py:table", "--teacher-share", "0.5"), "probabilities of"),
        (
            ("--data", "{f}/table.csv", "--net", "{f}/net.py:table", "--weights", "{f}/no.safetensors"),
            "holds no '0.weight'",
        ),
        (("--data", "{f}/inputs.npy", "--net", "{f}/net.py:table"), "no targets to train with"),
        (("--data", "{f}/pictures", "--net", "{f}/net.py:table"), "cannot be run on inputs"),
        (("--data", "digits", "--net", "lenet-300-100", "--residual-width", "ghs"), "no channels that cross layers"),
        (("--data", "{f}/table.csv", "--net", "{f}/net.py:table", "--residual-width", "svd"), "there are gnj, ghs"),
        (("--data", "{f}/nowhere", "--net", "{f}/net.py:table"), "unknown data"),
        (("--data", "digits", "--net", "{f}/my_net.py:Net", "--likelihood", "normal"), "classes: leave out"),
        (("--data", "{f}/table.csv", "--net", "{f}/net.py:table", "--device", "nowhere"), "cannot be used"),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_is_written(folder, capsys, words, message):
    np.save(folder / "inputs.npy", np.zeros((20, 3), np.float32))
    save_file({"weight": torch.zeros(2)}, folder / "no.safetensors")
    given = [str(word).format(f=folder) for word in words]
    assert run(folder, "--prior", "ghs", "--max-error-rise", 1, *given, out="refused") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0] and lines[0].startswith("pyro-bc: ")
    assert not (folder / "refused").exists()


def test_new_data_are_measured_whole_in_the_classes_of_the_run(tmp_path, capsys):
    """Their numbers are those of the run, though new data have some of its classes only; expected by hand."""
    torch.manual_seed(0)
    (tmp_path / "net.py").write_text("from torch import nn\n\n\ndef table():\n    return nn.Linear(3, 3)\n")
    x = torch.randn(200, 3)
    y = x.argmax(1)

    def written(name, x, y):
        rows = [[*map(str, row.tolist()), "abc"[int(own)]] for row, own in zip(x, y, strict=True)]
        (tmp_path / name).write_text("\n".join(",".join(row) for row in [["p", "q", "r", "class"], *rows]))
        return str(tmp_path / name)

    def evaluated(data):
        assert main(["evaluate", str(tmp_path / "out" / "network.pbc"), "--data", data, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    own = written("own.csv", x, y)
    words = ("--net", f"{tmp_path}/net.py:table", "--prior", "ghs", "--data", own, "--epochs", 30)
    assert run(tmp_path, *words, out="out") == 0
    capsys.readouterr()
    assert (evaluated(own)["n"], evaluated(own)["measured_on"]) == (20, "test data that were split off")
    new = torch.randn(60, 3)
    of_two = new[new.argmax(1) > 0]
    found = evaluated(written("new.csv", of_two, of_two.argmax(1)))
    assert found["n"] == len(of_two) and "not those of the run" in found["measured_on"]
    net = pyro_bc.load(tmp_path / "out" / "network.pbc")
    wrong = (net(of_two).argmax(1) != of_two.argmax(1)).float().mean().item()
    assert found["error_percent"] == pytest.approx(100 * wrong, abs=1e-4)
    (tmp_path / "out" / "metrics.json").unlink()
    assert evaluated(own)["n"] == 200 and "no metrics.json" in evaluated(own)["measured_on"]


def test_a_network_that_was_trained_on_what_is_held_out_is_said_to_be(tmp_path, capsys):
    torch.manual_seed(0)
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\ndef table():\n"
        "    return nn.Sequential(nn.Linear(12, 200), nn.ReLU(), nn.Linear(200, 2))\n"
    )
    parts = {name: torch.randn(count, 12) for name, count in (("x", 300), ("val_x", 60), ("test_x", 200))}
    labels = {name.replace("x", "y"): (x[:, 0] + 2 * torch.randn(len(x)) > 0).long() for name, x in parts.items()}
    np.savez(tmp_path / "set.npz", **parts, **labels)
    net = network(f"{tmp_path}/net.py:table")((12,), 2)
    x, y = torch.cat([parts["x"], parts["val_x"]]), torch.cat([labels["y"], labels["val_y"]])
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    words = ("--net", f"{tmp_path}/net.py:table", "--weights", tmp_path / "net.safetensors", "--prior", "gnj")
    words = (*words, "--data", tmp_path / "set.npz", "--epochs", 2, "--max-error-rise", 30)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run(tmp_path, *words, out="out") == 0
    said = capsys.readouterr().err
    assert "300 training, 60 held-out and 200 test examples" in said
    assert "error % 0.00 on the 60 held-out examples by which the target is judged, but" in said
    assert "on the test set: was it trained on them, too?" in said


def test_new_tables_may_lack_some_of_a_columns_texts(tmp_path, capsys):
    (tmp_path / "net.py").write_text("from torch import nn\n\n\ndef table():\n    return nn.Linear(4, 1)\n")
    draws = np.random.default_rng(0)
    frame = pandas.DataFrame({"size": draws.normal(size=300), "colour": draws.choice(["blue", "green", "red"], 300)})
    frame["price"] = frame["size"] + 3.0 * (frame["colour"] == "red") + 0.1 * draws.normal(size=300)
    frame.to_csv(tmp_path / "own.csv", index=False)
    words = ("--net", f"{tmp_path}/net.py:table", "--prior", "ghs", "--data", tmp_path / "own.csv", "--epochs", 20)
    assert run(tmp_path, *words, out="out") == 0
    new = frame[frame["colour"] != "blue"][["price", "colour", "size"]]  # in another order, too
    new.to_csv(tmp_path / "new.csv", index=False)
    file = tmp_path / "out" / "network.pbc"
    capsys.readouterr()
    assert main(["evaluate", str(file), "--data", str(tmp_path / "new.csv"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    x = np.stack([new["size"], np.zeros(len(new)), new["colour"] == "green", new["colour"] == "red"], 1)
    given = pyro_bc.load(file)(torch.from_numpy(x).float()).detach().squeeze(1).numpy()
    assert found["n"] == len(new)
    assert found["rmse"] == pytest.approx(float(np.sqrt(np.mean((given - new["price"]) ** 2))), rel=1e-4)
    written = (str(tmp_path / name) for name in ("net.onnx", "new.csv"))
    assert main(["export", str(file), "--onnx", next(written), "--data", next(written), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["n"] == len(new) and again["rmse"]["onnx"] == pytest.approx(found["rmse"], rel=1e-4)
    frame.replace({"colour": {"red": "violet"}}).to_csv(tmp_path / "other.csv", index=False)
    assert main(["evaluate", str(file), "--data", str(tmp_path / "other.csv")]) == 2
    assert "'colour' holds 'violet', which the table of the run had not" in capsys.readouterr().err


@pytest.mark.parametrize("y", [torch.ones(80, dtype=torch.long), torch.full((80,), 2.5)], ids=["class", "number"])
def test_targets_that_are_all_the_same_are_refused_at_once(tmp_path, capsys, y):
    (tmp_path / "net.py").write_text("from torch import nn\n\n\ndef table():\n    return nn.Linear(3, 3)\n")
    np.savez(tmp_path / "data.npz", x=torch.randn(80, 3), y=y)
    words = ("--net", f"{tmp_path}/net.py:table", "--prior", "ghs", "--data", tmp_path / "data.npz")
    assert run(tmp_path, *words, out="out") == 2
    assert "training targets of" in (said := capsys.readouterr().err) and "are the same (" in said
    assert not (tmp_path / "out").exists()


def test_what_has_no_posterior_is_stored_as_trained_and_evaluate_knows_the_runs_likelihood(tmp_path, capsys):
    torch.manual_seed(0)
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\ndef normed():\n"
        "    return nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 1))\n"
    )
    x = torch.randn(200, 3)
    np.savez(tmp_path / "counts.npz", x=x.numpy(), y=torch.poisson(x[:, 0].exp()).numpy())
    words = ("--net", f"{tmp_path}/net.py:normed", "--data", tmp_path / "counts.npz", "--likelihood", "poisson")
    assert run(tmp_path, *words, "--prior", "learned", "--pretrain-epochs", 5, "--epochs", 12, out="out") == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    capsys.readouterr()
    file = str(tmp_path / "out" / "network.pbc")
    assert main(["evaluate", file, "--data", str(tmp_path / "counts.npz"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rmse"] == pytest.approx(metrics["compressed"]["rmse"], rel=1e-6)
    dense = safetensors.torch.load_file(tmp_path / "out" / "dense.safetensors")
    before = [value for name, value in dense.items() if name.endswith("1.weight") and value.dim() == 1]
    stored = [own.values() for name, own in pyro_bc.read(file).tensors.items() if own.values().shape == (8,)]
    assert before and not any(torch.equal(before[0], own) for own in stored)


def test_tied_weights_go_from_the_command_to_a_file(tmp_path):
    torch.manual_seed(0)
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\nclass Tied(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.e, self.o = nn.Embedding(9, 6), nn.Linear(6, 9)\n        self.o.weight = self.e.weight\n\n"
        "    def forward(self, x):\n        return self.o(self.e(x).mean(1))\n"
    )
    x = torch.randint(9, (200, 4))
    np.savez(tmp_path / "words.npz", x=x.numpy(), y=x[:, 0].numpy())
    words = ("--net", f"{tmp_path}/net.py:Tied", "--data", tmp_path / "words.npz", "--epochs", 2)
    assert run(tmp_path, *words, "--pretrain-epochs", 2, "--kl-weight", 0.01, out="out") == 0
