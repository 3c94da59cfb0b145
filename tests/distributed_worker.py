"""What tests/test_processes.py runs under torchrun: each process writes what it saw as JSON."""

import contextlib
import json
import shutil
import sys
from pathlib import Path
from unittest import mock

import pyro
import torch
import torch.distributed as distributed
from helpers import fresh as fresh_net
from helpers import two_layers
from helpers import two_of_six as data
from torch import nn

import pyro_bc
from pyro_bc.app.dense import dense_network
from pyro_bc.errors import PyroBCError
from pyro_bc.inference import fit as fitting
from pyro_bc.inference import shrinking
from pyro_bc.inference.schedule import Schedule, trained_parameters
from pyro_bc.inference.step import FlatParameters, eager_step
from pyro_bc.runtime import processes

N, BATCH = 200, 25


def fresh(seed=0):
    torch.manual_seed(seed)
    return fresh_net(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)))


def groups_of(model, guide):
    return [trained.parameters for trained in trained_parameters(model, guide, Schedule())]


def coded(seed=0):
    torch.manual_seed(seed)
    return fresh_net(two_layers(), pyro_bc.GroupNormalJeffreys(weights=pyro_bc.LearnedCode()))


def wide(seed=0):
    torch.manual_seed(seed)
    return fresh_net(two_layers(30, 24), num_data=300)


def train_wide(model, guide, **options):
    """A fit that groups leave after its thirteenth epoch: thirty inputs, of which the first two say the class."""
    x = torch.randn(300, 30, generator=torch.Generator().manual_seed(0))
    loader = pyro_bc.data.Batches(x, (x[:, 0] + 0.5 * x[:, 1] > 0).long(), 75)
    settings = {"learning_rate": 2e-2, "log_learning_rate": 0.3, "kl_weight": 1.0}
    return pyro_bc.fit(model, guide, loader, epochs=20, progress=False, **settings, **options)


def train(model, guide, loader=None, epochs=20, **options):
    loader = pyro_bc.data.Batches(*data(), BATCH) if loader is None else loader
    return pyro_bc.fit(model, guide, loader, epochs=epochs, progress=False, learning_rate=1e-2, **options)


def numbers(model, guide):
    return {
        name: value.double().flatten().tolist()
        for module in (model, guide)
        for name, value in module.state_dict().items()
    }


class Stop(Exception):
    pass


def stop(record, epoch=2):
    if record.epoch == epoch:
        raise Stop


def message(call):
    try:
        call()
    except PyroBCError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def gradient(rank):
    """The gradient that this rank's half of the data and noise of its own give, and what the average makes of it."""
    model, guide = fresh()
    x, y = data()
    guide(x, y)
    with FlatParameters(groups_of(model, guide)) as flat:
        half = slice(rank * N // 2, (rank + 1) * N // 2)
        torch.manual_seed(10 + rank)
        eager_step(model, guide, flat)(x[half], y[half], 0.7)
        gradients = [vector.grad for vector in flat.vectors]
        processes.average_(gradients)
        return [gradient.tolist() for gradient in gradients]


class Later:
    """Batches of which one is spoilt, after the first epoch, in which fit looks at all of them."""

    def __init__(self, x, spoilt, y):
        self.times = 0
        self.good, self.bad = (x[:BATCH], y[:BATCH]), (spoilt[:BATCH], y[:BATCH])

    def __iter__(self):
        self.times += 1  # the first times are looks before the first epoch
        return iter([self.good, self.bad if self.times > 3 else self.good])

    def __len__(self):
        return 2


def main(folder):
    distributed.init_process_group("gloo")
    fitting._BETWEEN_CHECKPOINTS = 0  # each epoch is written
    rank = processes.rank()
    found = {"gradient": gradient(rank)}

    seen = [x[:, 0] for x, _ in pyro_bc.data.Batches(torch.arange(float(N))[:, None], torch.zeros(N), BATCH)]
    found["seen"] = torch.cat(seen).tolist()

    model, guide = fresh(seed=rank)  # the first process's start is everyone's
    history = train(model, guide).history
    found |= {"trained": numbers(model, guide), "history": [record.loss for record in history]}
    found |= {"kl": history[-1].kl, "noise": torch.rand(3).tolist()}

    model, guide = fresh()
    torch.manual_seed(8)
    train(model, guide, epochs=1, seed=None)
    found["unseeded_noise"] = torch.rand(3).tolist()

    model, guide = fresh()
    found["whole"] = [record.loss for record in train(model, guide, epochs=4).history]
    found["whole_end"] = numbers(model, guide)
    with mock.patch("pyro_bc.inference.step.compile_graph", lambda traced, inputs, options: traced):
        found["traced"] = [record.loss for record in train(*fresh(), epochs=4, compile=True).history]
    checkpoint = folder / "checkpoint"
    with contextlib.suppress(Stop):
        train(*fresh(), epochs=4, checkpoint=checkpoint, after_epoch=stop)
    processes.from_first(lambda: shutil.copy(checkpoint, folder / "half"))
    model, guide = fresh(seed=9 + rank)
    resumed = train(model, guide, epochs=4, checkpoint=checkpoint, resume=True).history
    found |= {"resumed": [record.loss for record in resumed], "resumed_end": numbers(model, guide)}

    shrinking.WORK = 0  # small networks shrink, too
    model, guide = wide(seed=rank)
    found["weights"] = [record.weights_trained for record in train_wide(model, guide).history]
    found["shrunk"] = numbers(model, guide)
    with contextlib.suppress(Stop):
        train_wide(*wide(), checkpoint=folder / "shrunk", after_epoch=lambda record: stop(record, 17))
    model, guide = wide(seed=9 + rank)
    train_wide(model, guide, checkpoint=folder / "shrunk", resume=True)
    found["shrunk_resumed"] = numbers(model, guide)

    model, guide = coded(seed=rank)
    train(model, guide, epochs=6, kl_weight=0.3)
    found |= {"coded": numbers(model, guide), "coded_bytes": list(pyro_bc.compress(model, guide).to_bytes())}
    for epoch in (2, 4):  # before codes are rounded, and after
        with contextlib.suppress(Stop):
            train(
                *coded(), epochs=6, kl_weight=0.3, checkpoint=folder / "coded", resume=epoch > 2,
                after_epoch=lambda record, epoch=epoch: stop(record, epoch),
            )  # fmt: skip
    model, guide = coded(seed=9 + rank)
    train(model, guide, epochs=6, kl_weight=0.3, checkpoint=folder / "coded", resume=True)
    found["coded_resumed"] = numbers(model, guide)

    x, y = data()
    pyro.clear_param_store()
    torch.manual_seed(0)
    model = pyro_bc.BayesianNetwork(two_layers(), pyro_bc.StandardNormal(), num_data=N)
    guide = pyro_bc.CurvatureGuide(model, [x[rank * N // 2 : (rank + 1) * N // 2]], progress=False)
    found["curvature"] = {layer: own.inputs[0].tolist() for layer, own in guide.curvature.items()}
    own_loader = pyro_bc.data.Batches(x, y, BATCH)
    found["rounded"] = [
        list(pyro_bc.compress(model, guide, epochs=epochs, loader=own_loader, progress=False).to_bytes())
        for epochs in (0, 3)
    ]
    torch.manual_seed(rank)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    own_loader = pyro_bc.data.Batches(x, y, BATCH)
    dense_network(net, pyro_bc.likelihoods.Categorical(), own_loader, 20, 1e-2, folder / "dense", False)
    found["dense"] = numbers(net, net)
    found["dense_error"] = float((net(x).argmax(1) != y).float().mean())
    found["exists"] = message(lambda: train(*fresh(), epochs=4, checkpoint=checkpoint))
    uneven = pyro_bc.data.Batches(x[:100], y[:100], BATCH // (1 + rank))
    found["uneven"] = message(lambda: train(*fresh(), uneven))
    spoilt = x.clone()
    if rank == 1:
        spoilt[:, 2] = torch.nan
    found["spoilt"] = message(lambda: train(*fresh(), pyro_bc.data.Batches(spoilt, y, BATCH)))

    found["not_finite"] = message(lambda: train(*fresh(), Later(x, spoilt, y)))

    (folder / f"{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
