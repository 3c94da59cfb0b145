"""What several tests need: small problems, models with their guides, set up or fitted, graphs, and the command."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from itertools import pairwise
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor, nn

import pyro_bc
from pyro_bc.file.compressed import CompressedNetwork
from pyro_bc.file.contents import Integers, Selection
from pyro_bc.graph.nodes import Named, Node, Value
from pyro_bc.inference.step import has_compiler
from pyro_bc.quantisation.fixed_point import FixedPoint

needs_compiler = pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler")


def two_of_six(n: int = 200) -> tuple[Tensor, Tensor]:
    """Six inputs, of which the first two say the class."""
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(3))
    return x, (x[:, 0] + 0.5 * x[:, 1] > 0).long()


def two_layers(inputs: int = 6, units: int = 8, outputs: int = 2) -> nn.Sequential:
    """Two layers and what is between them."""
    return nn.Sequential(nn.Linear(inputs, units), nn.ReLU(), nn.Linear(units, outputs))


def fresh(net: nn.Module, prior=None, num_data: int = 200, **guide_options):
    """A model and its guide, which has seen no data; normal-Jeffreys where no prior is given."""
    pyro.clear_param_store()
    prior = pyro_bc.GroupNormalJeffreys() if prior is None else prior
    model = pyro_bc.BayesianNetwork(net, prior, num_data=num_data)
    return model, pyro_bc.FactorizedGuide(model, **guide_options)


def set_up(net: nn.Module, x: Tensor, prior=None, y: Tensor | None = None, **options):
    """The same, the guide set up with data: it is at the network's own weights."""
    model, guide = fresh(net, prior, **options)
    guide(x, torch.zeros(len(x), dtype=torch.long) if y is None else y)
    return model, guide


def fitted(net: nn.Module, x: Tensor, y: Tensor, prior=None, batch: int = 50, log_variance: float | None = None, **fit):
    """A model and its guide after :func:`pyro_bc.fit`, and the history of the training."""
    options = {} if log_variance is None else {"init_log_variance": log_variance}
    model, guide = fresh(net, prior, num_data=len(x), **options)
    history = pyro_bc.fit(model, guide, pyro_bc.data.Batches(x, y, batch), progress=False, **fit).history
    return model, guide, history


ACTIVATIONS = ("relu", "tanh", "sigmoid", "gelu", "silu")


def train(net: nn.Module, x: Tensor, y: Tensor, steps: int, rate: float = 1e-2) -> None:
    """Train a network that classifies, on all data at once."""
    optimizer = torch.optim.Adam(net.parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()


def random_network(seed: int) -> CompressedNetwork:
    """A chain of layers, some without a bias, with inputs that are selected, and arguments of every kind."""
    rng = np.random.default_rng(seed)
    widths = rng.integers(1, 9, rng.integers(2, 5))
    nodes, tensors, dense = [Node("flatten", (Value(-1), 1))], {}, {}
    total = int(widths[0] + rng.integers(0, 5))
    if total > widths[0]:
        kept = np.sort(rng.permutation(total)[: widths[0]])
        tensors["l0_inputs"] = Selection(torch.from_numpy(kept), total)
        nodes.append(Node("index_select", (Value(0), -1, Named("l0_inputs"))))
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        spread = 10.0 ** rng.uniform(0, 6.5)
        codes = torch.from_numpy(np.rint(rng.laplace(0, spread, (outputs, inputs))).astype(np.int64))
        tensors[f"l{i}.weight"] = FixedPoint(codes.clamp(-(2**23), 2**23 - 1), int(rng.integers(-8, 30)))
        dense[f"l{i}.weight"] = (int(outputs + rng.integers(0, 5)), total if i == 0 else int(inputs + 3))
        arguments = [Value(len(nodes) - 1), Named(f"l{i}.weight")]
        if rng.random() < 0.7:
            tensors[f"l{i}.bias"] = FixedPoint(torch.from_numpy(rng.integers(-500, 500, outputs)), 4)
            arguments.append(Named(f"l{i}.bias"))
        nodes.append(Node("linear", tuple(arguments)))
        nodes.append(Node(str(rng.choice(ACTIVATIONS)), (Value(len(nodes) - 1),)))
    nodes.append(Node("gelu", (Value(len(nodes) - 1),), (("approximate", "tanh"),)))
    nodes.append(Node("elu", (Value(len(nodes) - 1), 0.75)))
    tensors["order"] = Integers(torch.from_numpy(rng.permutation(widths[-1])))
    nodes.append(Node("index_select", (Value(len(nodes) - 1), 1, Named("order"))))
    nodes.append(Node("sum", (Value(len(nodes) - 1), (1,), True)))
    return CompressedNetwork(tuple(nodes), tensors, dense, int(rng.integers(1, 10**9)), (1, total), frozenset(), {})


# A server imports once what the command imports, and each command is a child of it: a process like any other, but for
# the seconds that imports take. Nothing was computed in the server, so that no thread or random state comes along.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "pyro_bc.app.cli",
        "arviz",
        "matplotlib.figure",
        "sklearn.datasets",
        "torch._dynamo",
        "torch.export._trace",
        "h5netcdf",
    ]
)


class Command:
    """The command ``pyro-bc`` with these arguments, in a process that has begun; used as ``subprocess.Popen`` is."""

    def __init__(self, *arguments: str | Path):
        self._printed = [tempfile.NamedTemporaryFile("w+") for _ in range(2)]  # noqa: SIM115  closed at its end
        names = [file.name for file in self._printed]
        self._process = _SERVER.Process(target=_run, args=([str(argument) for argument in arguments], names))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; what it printed, and what it said on the standard error stream.

        :raises subprocess.TimeoutExpired: where it takes longer.
        """
        if not wait([self._process.sentinel], timeout):
            raise subprocess.TimeoutExpired("pyro-bc", timeout)
        self._process.join()
        printed = tuple(file.read() for file in self._printed)
        for file in self._printed:
            file.close()
        return printed


def _run(arguments: list[str], outputs: list[str]) -> None:
    """The command, its streams those files."""
    for stream, name in enumerate(outputs, 1):
        os.dup2(os.open(name, os.O_WRONLY), stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from pyro_bc.app import cli, metrics

    metrics._OPERATIONS = 1e6  # a few draws are exported and predict, as of a large network
    sys.exit(cli.main(arguments))


def command(*arguments: str | Path) -> subprocess.CompletedProcess:
    """What the command ``pyro-bc`` with these arguments came to."""
    process = Command(*arguments)
    printed, said = process.communicate(timeout=600)
    return subprocess.CompletedProcess(["pyro-bc", *map(str, arguments)], process.returncode, printed, said)
