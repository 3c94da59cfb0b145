"""The compressed network computes what the posterior mean does; its figures count what they say; refusals are clear."""

import pytest
import torch
from test_fileformat import random_network
from torch import nn

import pyro_bc
from pyro_bc.chain import LinearStep, Normalize
from pyro_bc.compressed import CompressedNetwork
from pyro_bc.errors import CompressedFileError, EmptyNetworkError, UnsupportedNetworkError, UsageError
from pyro_bc.fileformat import StoredLayer
from pyro_bc.precision import FixedPoint


def fitted(net: nn.Module, prior=None, inputs=(4,), log_variance=-6.0):
    """A model and a guide whose posterior is the network's own weights."""
    model = pyro_bc.BayesianNetwork(net, prior or pyro_bc.GroupNormalJeffreys(), num_data=8)
    guide = pyro_bc.FactorizedGuide(model, init_log_variance=log_variance)
    guide(torch.rand(2, *inputs), torch.tensor([0, 1]))
    return model, guide


def kill(guide, site: str, index: list[int]) -> None:
    """Give groups of a normal-Jeffreys layer a huge dropout rate, and their weights the prior."""
    with torch.no_grad():
        loc, log_variance = guide.parameters_of(f"{site}.scale")
        loc[index], log_variance[index] = 1e-4, 0.0
        loc, log_variance = guide.parameters_of(f"{site}.weight")
        loc[:, index], log_variance[:, index] = 1e-4, 0.0


def test_compress_keeps_the_output_of_the_posterior_mean(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(Normalize([0.5], [0.5]), nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    model, guide = fitted(net, inputs=(1, 2, 3), log_variance=-14.0)
    kill(guide, "net.2", [1, 4])
    kill(guide, "net.4", [0])
    small = pyro_bc.compress(model, guide)
    assert small.architecture == (4, 4) and small.inputs.tolist() == [0, 2, 3, 5] and small.input_shape == (1, 2, 3)
    small.save(tmp_path / "net.pbc")
    x = torch.rand(50, 1, 2, 3)
    with torch.no_grad():
        for name, dead in (("2", [1, 4]), ("4", [0])):
            z, _ = guide.parameters_of(f"net.{name}.scale")
            net.get_submodule(name).weight *= z
            net.get_submodule(name).weight[:, dead] = 0
        assert torch.allclose(pyro_bc.load(tmp_path / "net.pbc")(x), net(x), atol=0.02)


def test_the_figures_are_their_definitions():
    weight = FixedPoint(torch.tensor([[3, 0], [-4, 1]]), 2)  # 3 bits, 4 codes
    bias = FixedPoint(torch.tensor([0, 100]), 5)  # 8 bits, 2 codes
    network = CompressedNetwork(
        (LinearStep("1"),), (StoredLayer((4, 5), weight, bias),), torch.tensor([0, 3]), 24, (), {}
    )
    figures = network.compression(file_bytes=10)
    assert (figures.pruning, figures.maximum) == (24 / 6, 9.6)
    assert figures.fast_prediction == pytest.approx(32 * 24 / (4 * 3 + 2 * 8))
    assert figures.nonzero_percent == pytest.approx(100 * 4 / 24)
    assert network.compression().maximum == 4 * 24 / len(network.to_bytes())


def test_explicit_thresholds_prune_and_can_prune_everything():
    model, guide = fitted(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    assert pyro_bc.compress(model, guide, thresholds={"0": 1e9, "2": 1e9}).architecture == (4, 3)
    with pytest.raises(EmptyNetworkError, match="layer '2'"):
        pyro_bc.compress(model, guide, thresholds={"0": 1e9, "2": -1e9})


def test_arguments_that_do_not_fit_are_refused():
    model, guide = fitted(nn.Sequential(nn.Linear(4, 2)))
    with pytest.raises(UsageError, match=r"'fc9'.*layers are 0"):
        pyro_bc.compress(model, guide, thresholds={"fc9": 0.0})
    with pytest.raises(UsageError, match="posterior, paper"):
        pyro_bc.compress(model, guide, precision="float")
    other = nn.Sequential()
    other.add_module("other", nn.Linear(4, 2))
    with pytest.raises(UsageError, match="layers are other"):
        pyro_bc.compress(model, guide, net=other)


def test_a_model_written_by_hand_needs_the_network_that_it_computes(tmp_path):
    prior = pyro_bc.GroupNormalJeffreys()

    def model(x):
        return nn.functional.linear(x, prior.sample("fc", (2, 4)))

    guide = pyro_bc.FactorizedGuide(model, init_log_variance=-14.0)
    guide(torch.rand(3, 4))
    with pytest.raises(UsageError, match=r"needs net=.*fc"):
        pyro_bc.compress(model, guide)
    net = nn.Sequential()
    net.add_module("fc", nn.Linear(4, 2, bias=False))
    small = pyro_bc.compress(model, guide, net=net)
    small.save(tmp_path / "hand.pbc")
    x = torch.rand(9, 4)
    z, w = (guide.parameters_of(f"fc.{role}")[0] for role in ("scale", "weight"))
    assert torch.allclose(pyro_bc.load(tmp_path / "hand.pbc")(x), x @ (z * w).T, atol=0.01)


def test_a_prior_that_nobody_knows_is_not_taken_for_a_deterministic_layer():
    import pyro
    import pyro.distributions as dist

    def model(x):
        weight = pyro.sample("fc.weight", dist.Laplace(torch.zeros(2, 4), 1.0).to_event(2))
        other = pyro_bc.StandardNormal().sample("out", (2, 2))
        return nn.functional.linear(nn.functional.linear(x, weight), other)

    guide = pyro_bc.FactorizedGuide(model)
    guide(torch.rand(3, 4))
    net = nn.Sequential()
    net.add_module("fc", nn.Linear(4, 2, bias=False))
    net.add_module("out", nn.Linear(2, 2, bias=False))
    with pytest.raises(UsageError, match=r"'fc\.weight'"):
        pyro_bc.compress(model, guide, net=net)


def test_networks_that_are_no_chain_are_refused():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return x + self.fc(x)

    model, guide = fitted(Residual())
    with pytest.raises(UnsupportedNetworkError, match="only chains"):
        pyro_bc.compress(model, guide)


def test_missing_files_and_half_written_ones(tmp_path, monkeypatch):
    with pytest.raises(CompressedFileError, match="cannot be read"):
        pyro_bc.load(tmp_path / "none.pbc")
    import os

    path = tmp_path / "net.pbc"
    random_network(1).save(path)
    before = path.read_bytes()

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        random_network(2).save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["net.pbc"]
