"""What tests/test_devices.py runs where torch has a second device: results as JSON.

A process of its own, since a device once registered stays.
"""

import contextlib
import copy
import json
import os
import shutil
import sys
import warnings
from pathlib import Path
from unittest import mock

import accelerator
import pyro
import torch
from distributed_worker import Stop, message, stop
from pyro.infer import SVI, TraceMeanField_ELBO
from torch import nn

import pyro_bc
from pyro_bc.app.datasets import load_dataset
from pyro_bc.app.job import run
from pyro_bc.app.networks import NETWORKS
from pyro_bc.app.settings import Settings
from pyro_bc.file.onnx import to_int8
from pyro_bc.inference import fit as fitting
from pyro_bc.inspection import diagnostics
from pyro_bc.posterior.judged import judge
from pyro_bc.runtime.random_state import random_state

DEVICE = accelerator.NAME
N = 64
PRIORS = {"gnj": pyro_bc.GroupNormalJeffreys(), "ghs": pyro_bc.GroupHorseshoe(), "svd": pyro_bc.LogUniform()}


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.block(self.embed(x.squeeze(1))).mean(1))


def dense():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 3))


def convolutional():
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    return nn.Sequential(*layers)


NETS = {"dense": dense, "convolutional": convolutional, "attention": Attention}
#: every network, and every prior.
FITS = [("dense", "svd"), ("convolutional", "ghs"), ("attention", "gnj")]


def data(device):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(N, 1, 8, 8, generator=generator, device="cpu")
    y = (x.mean((1, 2, 3)) > 0.5).long() + (x[:, 0, 0, 0] > 0.5).long()
    return x.to(device), y.to(device)


class Reseeded(list):
    """Batches before which all generators start anew, so that noise is the same on both devices."""

    def __iter__(self):
        torch.manual_seed(7)
        return super().__iter__()


def batches(device):
    return list(pyro_bc.data.Batches(*data(device), 16, shuffle=False))


def fresh(net, prior, device):
    pyro.clear_param_store()
    torch.manual_seed(0)
    model = pyro_bc.BayesianNetwork(NETS[net]().to(device), PRIORS[prior], num_data=N)
    return model, pyro_bc.FactorizedGuide(model)


def fit(model, guide, loader, epochs=4, **options):
    return pyro_bc.fit(model, guide, loader, epochs=epochs, seed=0, progress=False, learning_rate=1e-2, **options)


def fitted(net, prior, device):
    model, guide = fresh(net, prior, device)
    history = fit(model, guide, batches(device)).history
    return model, guide, history


def state(*modules):
    return {f"{i}.{name}": value for i, module in enumerate(modules) for name, value in module.state_dict().items()}


def kinds(*modules):
    return sorted({value.device.type for value in state(*modules).values()})


def difference(a, b):
    """The largest difference between two states, as a part of the largest number of its tensor (at least 1)."""
    assert a.keys() == b.keys()
    pairs = [(a[name].cpu().double(), b[name].cpu().double()) for name in a]
    return max(float((x - y).abs().max() / y.abs().max().clamp(min=1)) for x, y in pairs)


def fits():
    """Networks and priors, fitted on both devices from the same start."""
    found = {}
    for net, prior in FITS:
        results = []
        for device in ("cpu", DEVICE):
            model, guide = fresh(net, prior, device)
            x, y = data(device)
            guide(x[:16], y[:16])
            if results:  # initial values are drawn, too
                guide.load_state_dict(results[0]["start"])
            start = copy.deepcopy(guide.state_dict())
            fit(model, guide, Reseeded(batches(device)), epochs=2)
            data_of_file = pyro_bc.compress(model, guide).to_bytes()
            results.append(
                {"start": start, "end": state(model, guide), "file": len(data_of_file), "on": kinds(model, guide)}
            )
        found[f"{net}-{prior}"] = {
            "difference": difference(results[1]["end"], results[0]["end"]),
            "bytes": [result["file"] for result in results],
            "on": [result["on"] for result in results],
        }
    return found


def checkpoints(folder):
    """A whole run on each device, and runs that stop half-way on one and go on on either."""
    whole, found = {}, {}
    for device in ("cpu", DEVICE):
        model, guide = fresh("convolutional", "ghs", device)
        history = fit(model, guide, batches(device), checkpoint=folder / f"whole-{device}").history
        whole[device] = state(model, guide), history, pyro_bc.compress(model, guide).to_bytes()
        model, guide = fresh("convolutional", "ghs", device)
        with contextlib.suppress(Stop):
            fit(model, guide, batches(device), checkpoint=folder / f"half-{device}", after_epoch=stop)
    for first in ("cpu", DEVICE):
        for second in ("cpu", DEVICE):
            model, guide = fresh("convolutional", "ghs", second)
            # All epochs are done: what is read is what was written.
            fit(model, guide, batches(second), checkpoint=folder / f"whole-{first}", resume=True)
            read = difference(state(model, guide), whole[first][0])
            same_file = pyro_bc.compress(model, guide).to_bytes() == whole[first][2]
            ends = []
            for _ in range(1 if first == second else 2):
                shutil.copy(folder / f"half-{first}", folder / "resumed")
                model, guide = fresh("convolutional", "ghs", second)
                history = fit(model, guide, batches(second), checkpoint=folder / "resumed", resume=True).history
                ends.append(state(model, guide))
            found[f"{first}-{second}"] = {
                "read": read,
                "same_file": same_file,
                "resumed": difference(ends[0], whole[first][0]),
                "again": difference(ends[0], ends[-1]),
                "losses": [record.loss for record in history],
                "losses_uninterrupted": [record.loss for record in whole[first][1]],
                "on": kinds(model, guide),
            }
    return found


def posteriors(folder):
    """What reads a posterior: on the device, and on the CPU where the same posterior was moved to."""
    model, guide, history = fitted("convolutional", "ghs", DEVICE)
    results = []
    for device in (DEVICE, "cpu"):
        model.to(device)
        guide.to(device)
        x, y = data(device)
        before = random_state(torch.device(device))
        draws = pyro_bc.to_inference_data(guide, draws=20, history=history)
        pyro_bc.save_inference_data(folder / f"{device}.nc", guide, draws=20, x=x, y=y, history=history)
        probabilities = diagnostics.sampled_probabilities(guide, x, draws=20)
        mean = diagnostics.mean_network(model, guide)
        results.append({
            "scale": draws.posterior["net.0.scale"].values.tolist(),
            "k": diagnostics.importance_ratios(guide, x, y, draws=30).k,
            "probabilities": probabilities.cpu().tolist(),
            "mean": mean(x).detach().cpu().tolist(),
            "calibration": diagnostics.calibration(probabilities, y).error,
            "agreement": {k: v.tolist() for k, v in diagnostics.compare_fits([guide, guide]).items()},
            "state_kept": all(torch.equal(before[k], v) for k, v in random_state(torch.device(device)).items()),
            "file": pyro_bc.compress(model, guide, batch_norm_loader=batches(device)).to_bytes().hex(),
        })  # fmt: skip
    return results


def files(folder):
    """A file written from the device; its network there, on the CPU and in ONNX; trained on; with the dense network."""
    model, guide, _ = fitted("convolutional", "gnj", DEVICE)
    small = pyro_bc.compress(model, guide)
    small.save(folder / "net.pbc")
    small.save(folder / "short.pbc", net=convolutional().to(DEVICE))
    net = pyro_bc.load(folder / "net.pbc")
    short = pyro_bc.load(folder / "short.pbc", net=convolutional().to(DEVICE))
    x = data("cpu")[0]
    with torch.no_grad():
        outputs = net(x)
        there = net.to(DEVICE)(x.to(DEVICE))
        difference_of_short = float((short(x) - outputs).abs().max())
    onnx = pyro_bc.onnx.to_onnx(net, folder / "net.onnx", (1, 8, 8))
    pyro.clear_param_store()
    again = pyro_bc.BayesianNetwork(net, PRIORS["gnj"], num_data=N)
    guide = pyro_bc.FactorizedGuide(again)
    fit(again, guide, batches(DEVICE))
    return {
        "there": there.device.type,
        "stays": next(net.parameters()).device.type,
        "difference": float((there.cpu() - outputs).abs().max()),
        "difference_of_short": difference_of_short,
        "onnx": onnx,
        "again": len(pyro_bc.compress(again, guide, dense=pyro_bc.read(folder / "net.pbc")).to_bytes()),
    }


def codes(folder):
    """Codes on both devices, and each one's checkpoint read on the other."""
    results, starts = [], []

    def start(device):
        pyro.clear_param_store()
        torch.manual_seed(0)
        model = pyro_bc.BayesianNetwork(dense().to(device), pyro_bc.LearnedCode(), num_data=N)
        guide = pyro_bc.FactorizedGuide(model)
        guide(*data(device))
        starts.append(copy.deepcopy(guide.state_dict()))
        guide.load_state_dict(starts[0])  # initial values are drawn, too
        return model, guide

    def go(model, guide, device, **options):
        loader = Reseeded(batches(device))
        return pyro_bc.fit(model, guide, loader, epochs=4, kl_weight=0.1, seed=0, progress=False, **options)

    for device, other in (("cpu", DEVICE), (DEVICE, "cpu")):
        model, guide = start(device)
        history = go(model, guide, device, checkpoint=folder / f"codes-{device}").history
        file = pyro_bc.compress(model, guide).to_bytes()
        pyro_bc.save_inference_data(folder / f"codes-{device}.nc", guide, draws=5, weights=True)
        moved, moved_guide = start(device)
        moved.to(other), moved_guide.to(other)
        go(moved, moved_guide, other, checkpoint=folder / f"codes-{device}", resume=True)
        results.append({
            "loss": history[-1].loss, "file": file.hex(), "on": kinds(model, guide), "moved": kinds(moved, moved_guide),
            "read": difference(state(moved, moved_guide), state(model, guide)),
        })  # fmt: skip
    return results


def moved_later(folder):
    """A model made on the CPU, and moved: before the guide has seen data, and after."""
    found = {}
    model, guide = fresh("convolutional", "ghs", "cpu")
    model.to(DEVICE).to(torch.float32)  # the second changes nothing
    fit(model, guide, batches(DEVICE))
    found["before"] = kinds(model, guide)
    model, guide, _ = fitted("convolutional", "ghs", "cpu")
    model.to(DEVICE), guide.to(DEVICE)
    fit(model, guide, batches(DEVICE))
    found["after"] = kinds(model, guide)
    found["bytes"] = len(pyro_bc.compress(model, guide).to_bytes())
    return found


def by_hand(folder):
    """Pyro's own loop; a model written by hand under torch's default device, as Pyro users have it."""
    model, guide = fresh("convolutional", "gnj", DEVICE)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 1e-2}), TraceMeanField_ELBO())
    x, y = data(DEVICE)
    with pyro_bc.local_reparameterization():
        losses = [svi.step(x, y) for _ in range(30)]
    drawn = pyro.infer.Predictive(model, guide=guide, num_samples=3)(x)["y"].device.type
    torch.set_default_device(DEVICE)
    try:
        pyro.clear_param_store()
        prior = pyro_bc.GroupHorseshoe()

        def written(x, y=None):
            w = prior.sample("fc", (3, 64))
            logits = x.flatten(1) @ w.T
            with pyro.plate("data", N, subsample=x):
                pyro.sample("y", pyro.distributions.Categorical(logits=logits), obs=y)
            return logits

        written_guide = pyro_bc.FactorizedGuide(written)
        svi = SVI(written, written_guide, pyro.optim.ClippedAdam({"lr": 1e-2}), TraceMeanField_ELBO())
        with pyro_bc.local_reparameterization():
            written_losses = [svi.step(x, y) for _ in range(30)]
        pyro.clear_param_store()
        model = pyro_bc.BayesianNetwork(dense(), pyro_bc.LearnedCode(), num_data=N)
        cells = pyro_bc.FactorizedGuide(model)
        pyro_bc.fit(model, cells, batches(DEVICE), epochs=2, progress=False)
        small = pyro_bc.compress(model, cells)
        data_of_file = small.to_bytes()
        loaded = pyro_bc.CompressedNetwork.from_bytes(data_of_file).network()
        shapes = list(loaded(x.cpu()).shape)
        pyro.clear_param_store()
        model = pyro_bc.BayesianNetwork(convolutional(), PRIORS["gnj"], num_data=N)
        guide = pyro_bc.FactorizedGuide(model)
        fit(model, guide, pyro_bc.data.Batches(x, y, 16))
        resumed, resumed_guide = fresh("convolutional", "ghs", DEVICE)
        fit(resumed, resumed_guide, batches(DEVICE), checkpoint=folder / "half-cpu", resume=True)
        net = pyro_bc.compress(model, guide).network()
        onnx = pyro_bc.onnx.to_onnx(net, folder / "default.onnx", (1, 8, 8))
    finally:
        torch.set_default_device("cpu")
    return {
        "losses": losses,
        "drawn": drawn,
        "written_losses": written_losses,
        "written_on": kinds(written_guide),
        "loaded_on": kinds(loaded),
        "same_bytes": pyro_bc.CompressedNetwork.from_bytes(data_of_file).to_bytes() == data_of_file,
        "shapes": shapes,
        "on_by_default": kinds(model, guide),
        "onnx": onnx,
    }


def wrong():
    """Data that are not where the network is."""
    x, y = data("cpu")
    there = data(DEVICE)
    found = {}
    model, guide = fresh("convolutional", "gnj", DEVICE)
    found["inputs"] = message(lambda: fit(model, guide, [(x, y)]))
    found["targets"] = message(lambda: fit(model, guide, [(there[0], y)]))
    found["later"] = message(lambda: fit(model, guide, [there, (x, there[1])]))
    found["later targets"] = message(lambda: fit(model, guide, [there, (there[0], y)]))
    found["other way"] = message(lambda: fit(*fresh("dense", "gnj", "cpu"), [there]))
    found["points"] = message(lambda: diagnostics.sampled_probabilities(guide, x, draws=2))
    coded = pyro_bc.BayesianNetwork(dense().to(DEVICE), pyro_bc.LearnedCode(), num_data=N)
    guide = pyro_bc.FactorizedGuide(coded)
    found["codes"] = message(lambda: pyro_bc.fit(coded, guide, [(x, y)], epochs=2, progress=False))
    return found


def small_and_normalised(picture_shape, classes):
    layers = nn.Conv2d(picture_shape[0], 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(72, classes))


@contextlib.contextmanager
def nobody_looks():
    """Runs of which neither pictures nor diagnostics are made."""
    with (
        mock.patch("pyro_bc.app.report.write_report", lambda folder, metrics: None),
        mock.patch("pyro_bc.app.job.diagnostics_of", lambda *args: {}),
    ):
        yield


@mock.patch("pyro_bc.app.metrics._OPERATIONS", 1e6)  # a few draws are exported and predict, as of a large network
def runs(folder):
    """The main jobs, stopped on the device when the dense network is trained, and resumed there and on the CPU."""
    NETWORKS["small"] = small_and_normalised
    base = {"epochs": 2, "pretrain_epochs": 6, "kl_weight": 0.02, "batch_size": 40, "train_limit": 400,
            "pretrain_learning_rate": 5e-3}  # fmt: skip
    coded = base | {"epochs": 8, "affine": 0.2, "passes": 2, "teacher_share": 0.7}
    jobs = {
        "keep": Settings.of("small", "ghs", "digits", **base, batch_norm="keep", thresholds={"0": 5.0}),
        "coded": Settings.of("lenet-300-100", "learned", "digits", **coded, widths="24-16", teacher="small"),
    }

    def stop_training(line):
        if "dense" in line:
            raise Stop

    found = {}
    for name, settings in jobs.items():
        with contextlib.suppress(Stop):
            run(settings, folder / name, progress=False, device=DEVICE, say=stop_training)
        shutil.copytree(folder / name, folder / f"{name}-cut")
        # Of one run that stayed there the report and the diagnostics are looked at.
        with nobody_looks() if name == "coded" else contextlib.nullcontext():
            whole = run(settings, folder / name, resume=True, progress=False, device=DEVICE)
        with nobody_looks():
            resumed = run(settings, folder / f"{name}-cut", resume=True, progress=False, device="cpu")
        evaluated = pyro_bc.load(folder / name / "network.pbc")
        test = load_dataset("digits")
        found[name] = {
            "error": whole["compressed"]["error_percent"],
            "evaluated": diagnostics.error_percent(evaluated, test.test_x, test.test_y),
            "dense": [metrics["dense"]["error_percent"] for metrics in (whole, resumed)],
            "resumed": resumed["compressed"]["error_percent"],
            "files": sorted(path.name for path in (folder / name).iterdir()),
        }
    settings = Settings.of("small", "ghs", "digits", **base | {"pretrain_epochs": 0})
    found["no such device"] = message(lambda: run(settings, folder / "none", progress=False, device="cuda"))
    found["not a device"] = message(lambda: run(settings, folder / "none", progress=False, device="gpu"))
    found["nothing written"] = not (folder / "none").exists()
    return found


@mock.patch("pyro_bc.compression.target._EVALUATIONS", 3)  # a few of all networks
def judged(folder):
    """Targets, and all that judges or rounds by data that are there: networks of files are made on the CPU."""
    found, on = {}, batches(DEVICE)
    for net, prior, target in (
        ("dense", pyro_bc.LearnedCode(), pyro_bc.Target(max_bytes=300)),
        ("convolutional", PRIORS["gnj"], pyro_bc.Target(max_bytes=400)),
    ):
        model = pyro_bc.BayesianNetwork(NETS[net]().to(DEVICE), prior, num_data=N)
        guide = pyro_bc.FactorizedGuide(model)
        pyro_bc.fit(model, guide, on, target=target, held_out=on, epochs=2, learning_rate=1e-2, progress=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # so short a training
            reached = pyro_bc.compress_to(model, guide, target, on, on, progress=False)
        again = judge(reached.network.network(), model.likelihood, batches("cpu"))
        found[net] = {"found": [reached.found.error, reached.found.loss], "again": [again.error, again.loss]}
    by_curvature = pyro_bc.CurvatureGuide(model, on, progress=False)
    rounding = {"nats_per_bit": 1e-6, "loader": on, "epochs": 1, "progress": False}
    small = pyro_bc.compress(model, by_curvature, held_out=on, **rounding)
    started = pyro_bc.CurvatureGuide(model.cpu(), batches("cpu"), progress=False)
    here = {name: curvature.inputs[0] for name, curvature in started.curvature.items()}
    found["curvature"] = {
        "differences": [
            float((own.inputs[0] - here[name]).abs().max()) for name, own in by_curvature.curvature.items()
        ],
        "file": len(small.to_bytes()),
        "int8": to_int8(small, folder / "int8.onnx", [x for x, _ in on]),
    }
    return found


def loaders():
    x, y = data(DEVICE)
    teacher = convolutional().to(DEVICE).eval()
    found = set()
    for augment in (pyro_bc.data.Affine(), pyro_bc.data.ShiftAndFlip(1, True)):
        for batch in pyro_bc.data.Batches(x, y, 16, augment=augment):
            found |= {part.device.type for part in batch}
        for batch in pyro_bc.data.TaughtBatches(x, y, teacher, classes=3, augment=augment, passes=2):
            found |= {part.device.type for part in batch}
    return sorted(found)


if __name__ == "__main__":
    accelerator.register(Path(sys.argv[1]))
    folder = Path(sys.argv[2])
    fitting._BETWEEN_CHECKPOINTS = 0  # each epoch is written
    with accelerator.AsStrictAsAGpu():
        results = {
            "fits": fits(),
            "checkpoints": checkpoints(folder),
            "posteriors": posteriors(folder),
            "files": files(folder),
            "codes": codes(folder),
            "moved_later": moved_later(folder),
            "by_hand": by_hand(folder),
            "wrong": wrong(),
            "loaders": loaders(),
            "judged": judged(folder),
            "runs": runs(folder),
        }
    (folder / "results.json").write_text(json.dumps(results))
    sys.stdout.flush()
    os._exit(0)  # torch does not expect a device that came with a library to be gone at its end
