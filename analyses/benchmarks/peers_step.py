"""Training steps over a dense one, all in turns within one run: ours, bayesian-torch, blitz, IVON.

    pip install --no-deps --target ../peers bayesian-torch blitz-bayesian-pytorch ivon-opt
    OMP_NUM_THREADS=1 PYTHONPATH=../peers taskset -c 1 python analyses/benchmarks/peers_step.py

Each is trained as its documentation shows, by Adam on cross-entropy and KL over the number of examples (IVON is its own
optimiser): bayesian-torch (0.5) with reparameterised and with flipout layers, blitz (0.2) with one sample of its
mixture's ELBO, ivon-opt (0.1) with one. Ours is ``pyro_bc.fit``, compiled, with exact local reparameterization: with a
standard normal prior, as bayesian-torch's, and with the group prior that prunes. Table:
``analyses/results/peers_step.md``.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyro
import torch
from torch import Tensor, nn

import pyro_bc
from pyro_bc.app.own_network import network

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from common import RESULTS
from training_step import _now, dense_step

BATCH, STEPS, NUM_DATA = 128, 200, 60_000
OURS = {"normal": pyro_bc.StandardNormal, "gnj": pyro_bc.GroupNormalJeffreys}


def bayesian_torch(kind: str) -> Callable[[nn.Module, Tensor, Tensor], Callable[[], None]]:
    def build(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
        from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn, get_kl_loss

        dnn_to_bnn(net, {
            "prior_mu": 0.0, "prior_sigma": 1.0, "posterior_mu_init": 0.0, "posterior_rho_init": -4.0, "type": kind,
            "moped_enable": True, "moped_delta": 0.05,
        })  # fmt: skip
        optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)

        def step() -> None:
            optimizer.zero_grad()
            (nn.functional.cross_entropy(net(x), y) + get_kl_loss(net) / NUM_DATA).backward()
            optimizer.step()

        return step

    return build


def blitz(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    from blitz.modules import BayesianConv2d, BayesianLinear
    from blitz.utils import variational_estimator

    for name, module in list(net.named_modules()):
        owner = net.get_submodule(name.rpartition(".")[0])
        if isinstance(module, nn.Linear):
            setattr(owner, name.rpartition(".")[2], BayesianLinear(module.in_features, module.out_features))
        elif isinstance(module, nn.Conv2d):
            size = module.in_channels, module.out_channels, module.kernel_size
            setattr(owner, name.rpartition(".")[2], BayesianConv2d(*size, stride=module.stride, padding=module.padding))
    net.__class__ = variational_estimator(type(type(net).__name__, (type(net),), {}))
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        net.sample_elbo(
            inputs=x, labels=y, criterion=nn.functional.cross_entropy, sample_nbr=1,
            complexity_cost_weight=1 / NUM_DATA,
        ).backward()  # fmt: skip
        optimizer.step()

    return step


def ivon(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    import ivon as package

    optimizer = package.IVON(net.parameters(), lr=0.1, ess=NUM_DATA)

    def step() -> None:
        with optimizer.sampled_params(train=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()

    return step


PEERS = {
    "dense": dense_step, "bayesian-torch, reparameterised": bayesian_torch("Reparameterization"),
    "bayesian-torch, flipout": bayesian_torch("Flipout"), "blitz": blitz, "IVON": ivon,
}  # fmt: skip


class InTurns:
    """A loader that times the step behind each batch it gave out, then does and times one step of every other."""

    def __init__(self, x: Tensor, y: Tensor, others: dict[str, Callable[[], None]]):
        self.x, self.y, self.others = x, y, others
        self.times: dict[str, list[float]] = {name: [] for name in ("ours", *others)}

    def __len__(self) -> int:
        return STEPS + STEPS // 10

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(len(self)):
            start = _now(self.x.device)
            yield self.x, self.y
            for name, step in {"ours": lambda: None, **self.others}.items():
                step()
                end = _now(self.x.device)
                if number >= STEPS // 10:
                    self.times[name].append(end - start)
                start = end


def measured(name: str, prior: str) -> dict[str, float]:
    """Milliseconds of every step, medians."""
    torch.manual_seed(0)
    x, y = torch.rand(BATCH, 1, 28, 28), torch.randint(10, (BATCH,))
    others = {way: build(network(name)((1, 28, 28), 10), x, y) for way, build in PEERS.items()}
    model = pyro_bc.BayesianNetwork(network(name)((1, 28, 28), 10), OURS[prior](), num_data=NUM_DATA)
    guide = pyro_bc.FactorizedGuide(model)
    loader = InTurns(x, y, others)
    pyro.clear_param_store()
    pyro_bc.fit(model, guide, loader, epochs=1, progress=False, compile=True, kl_weight=1.0)
    return {way: 1e3 * statistics.median(own) for way, own in loader.times.items()}


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    rows = [(net, prior, measured(net, prior)) for net in ("lenet-300-100", "lenet-5-caffe") for prior in OURS]
    lines = [
        "# Training steps over a dense one: ours and the peers'",
        "",
        f"`OMP_NUM_THREADS=1 taskset -c 1 python analyses/benchmarks/peers_step.py`, batch {BATCH}, torch "
        f"{torch.__version__}. Medians of {STEPS} steps in turns within one run, of the processor's time; all but the "
        "dense step's are over it.",
        "",
        f"| network | our prior | dense ms | ours, compiled | {' | '.join(list(PEERS)[1:])} |",
        f"|---|---|---|---|{'---|' * (len(PEERS) - 1)}",
    ]
    for net, prior, times in rows:
        ratios = [f"{times[way] / times['dense']:.2f}" for way in times if way != "dense"]
        lines.append(f"| {net} | {prior} | {times['dense']:.2f} | {' | '.join(ratios)} |")
    text = "\n".join([*lines, ""])
    (RESULTS / "peers_step.json").write_text(json.dumps(rows, indent=2) + "\n")
    (RESULTS / "peers_step.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
