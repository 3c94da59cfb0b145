"""The compressed network computes what the posterior mean does; its figures count what they say; refusals are clear."""

import contextlib
import dataclasses
import subprocess
import sys
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import random_network, set_up
from pyro.nn import PyroModule
from torch import nn

import pyro_bc
from pyro_bc.app.networks import Normalize
from pyro_bc.errors import CompressedFileError, EmptyNetworkError, UnsupportedNetworkError, UsageError
from pyro_bc.file.compressed import CompressedNetwork
from pyro_bc.file.contents import Selection
from pyro_bc.graph.nodes import Named, Node, Value
from pyro_bc.quantisation.fixed_point import FixedPoint


def fitted(net: nn.Module, prior=None, inputs=(4,), log_variance=-6.0):
    """A model and a guide whose posterior is the network's own weights."""
    return set_up(net, torch.rand(2, *inputs), prior, num_data=8, init_log_variance=log_variance)


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
    assert small.architecture == (4, 4) and small.input_shape == (1, 2, 3)
    assert small.tensors["2_inputs"].indices.tolist() == [0, 2, 3, 5] and small.tensors["2_inputs"].size == 6
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
        nodes=(
            Node("index_select", (Value(-1), -1, Named("fc_inputs"))),
            Node("linear", (Value(0), Named("fc.weight"), Named("fc.bias"))),
        ),
        tensors={"fc_inputs": Selection(torch.tensor([0, 3]), 5), "fc.weight": weight, "fc.bias": bias},
        dense_shapes={"fc.weight": (4, 5)},
        dense_parameters=24,
        input_shape=(5,),
        buffers=frozenset(),
        thresholds={},
    )
    figures = network.compression(file_bytes=10)
    assert (figures.pruning, figures.maximum) == (24 / 6, 9.6)
    assert figures.fast_prediction == pytest.approx(32 * 24 / (4 * 3 + 2 * 8))
    assert figures.nonzero_percent == pytest.approx(100 * 4 / 24)
    # A buffer is no parameter: with one of more numbers than the network has, all figures but the file's are the same.
    offset = FixedPoint(torch.arange(1, 101), 5)
    nodes = (Node("sub", (Value(-1), Named("mean"))), *network.nodes)
    with_buffer = dataclasses.replace(
        network, nodes=nodes, tensors={"mean": offset, **network.tensors}, buffers=frozenset(["mean"])
    )
    assert with_buffer.compression(file_bytes=10) == figures
    assert network.compression().maximum == 4 * 24 / len(network.to_bytes())


def test_a_compressed_network_is_trained_on_and_compressed_again(tmp_path):
    """From the file, against the figures of the network before both; what was a buffer stays one."""
    torch.manual_seed(0)
    net = nn.Sequential(Normalize([0.5], [0.5]), nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 3))
    model, guide = fitted(net, inputs=(1, 8, 8), log_variance=-14.0)
    kill(guide, "net.4", list(range(100, 110)))
    first = pyro_bc.compress(model, guide)
    first.save(tmp_path / "first.pbc")
    stored, loaded = pyro_bc.read(tmp_path / "first.pbc"), pyro_bc.load(tmp_path / "first.pbc")
    trained = {name for name, _ in loaded.named_parameters()}
    assert trained == {"layer1.weight", "layer1.bias", "layer2.weight", "layer2.bias"}
    model, guide = fitted(loaded, inputs=(1, 8, 8), log_variance=-14.0)
    kill(guide, "net.layer2", [0, 1])
    second = pyro_bc.compress(model, guide, dense=stored)
    assert first.architecture == (4, 134) and second.architecture == (4, 132)
    assert second.dense_parameters == first.dense_parameters == sum(p.numel() for p in net.parameters())
    assert [layer.dense_groups for layer in second.layers] == [4, 144]
    with pytest.raises(UsageError, match="not the compression"):
        pyro_bc.compress(model, guide, dense=second)


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


def test_a_users_module_may_have_the_network_under_a_name_of_its_own():
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))

    class TwoTargets(PyroModule):
        def __init__(self):
            super().__init__()
            self.inner = PyroModule("inner")
            self.inner.net = pyro_bc.bayesianize(net, pyro_bc.StandardNormal())

        def forward(self, x, y=None, z=None):
            outputs = self.inner.net(x)
            with pyro.plate("data", 9, subsample=x):
                pyro.sample("y", dist.Normal(outputs[:, 0], 1.0), obs=y)
                pyro.sample("z", dist.Bernoulli(logits=outputs[:, 1]), obs=z)

    model, x = TwoTargets(), torch.randn(9, 4)
    guide = pyro_bc.FactorizedGuide(model, init_log_variance=-14.0)
    guide(x, torch.ones(9), torch.ones(9))
    small = pyro_bc.compress(model, guide, net=net)
    assert small.architecture == (4, 6) and torch.allclose(small.network()(x), net(x), atol=0.01)


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


def test_networks_without_a_fixed_graph_are_refused():
    class Conditional(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x) if bool((x > 0).all()) else x

    model, guide = fitted(Conditional())
    with pytest.raises(UnsupportedNetworkError, match="fixed graph"):
        pyro_bc.compress(model, guide)


class Branches(nn.Module):
    """What no list of known architectures holds: residual, concatenation, depthwise, and a gate."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.side, self.mix = nn.Conv2d(6, 3, 1), nn.Conv2d(9, 4, 3, stride=2)
        self.gate, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = x + torch.tanh(self.depthwise(x))
        x = nn.functional.max_pool2d(torch.relu(self.mix(torch.cat([x, self.side(x)], 1))), 2)
        x = x.mean((2, 3))
        return self.head(x * torch.sigmoid(self.gate(x)))


def test_a_network_of_the_users_own_goes_through_the_file_without_its_class(tmp_path):
    torch.manual_seed(1)
    net = Branches()
    net.norm.running_mean.normal_()
    model, guide = fitted(net, inputs=(1, 9, 9), log_variance=-16.0)
    for name, scale in (("stem", [1.0, 1e-4, 1, 1, 1, 1]), ("mix", [1.0, 1, 1e-4, 1]), ("gate", [1e-4, 1, 1, 1])):
        with torch.no_grad():
            loc, log_variance = guide.parameters_of(f"net.{name}.scale")
            loc.copy_(torch.tensor(scale))
            log_variance[loc < 0.5] = 4.0
    small = pyro_bc.compress(model, guide, noise_ratio=1e-4)
    assert small.architecture[0] < 6 or small.architecture[3] < 4
    small.save(tmp_path / "net.pbc")
    x = torch.rand(5, 1, 9, 9)
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys, torch, pyro_bc; folder = sys.argv[1]; net = pyro_bc.load(folder + '/net.pbc'); "
        "torch.save(net(torch.load(folder + '/x.pt')).detach(), folder + '/y.pt')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    means = {name.removeprefix("net."): layer for name, layer in pyro_bc.summarize(guide).items()}
    with torch.no_grad():
        for name, layer in means.items():
            keep = small.thresholds[name].keeps(layer)
            net.get_submodule(name).weight.copy_(layer.weight_mean * layer.over_weights(keep))
            bias = layer.bias_mean * keep if layer.weight_mean.dim() > 2 else layer.bias_mean
            net.get_submodule(name).bias.copy_(bias)
    assert torch.allclose(torch.load(tmp_path / "y.pt"), net.eval()(x), atol=2e-3)


def test_a_file_can_leave_the_graph_to_the_users_class(tmp_path):
    torch.manual_seed(2)
    model, guide = fitted(Branches(), inputs=(1, 9, 9), log_variance=-9.0)
    with torch.no_grad():
        loc, log_variance = guide.parameters_of("net.stem.scale")
        loc[2], log_variance[2] = 1e-4, 4.0
    small = pyro_bc.compress(model, guide)
    whole, brief = small.save(tmp_path / "whole.pbc"), small.save(tmp_path / "brief.pbc", net=Branches())
    assert brief < whole - 50
    x = torch.rand(4, 1, 9, 9)
    expected = pyro_bc.load(tmp_path / "whole.pbc")(x)
    assert torch.equal(pyro_bc.load(tmp_path / "brief.pbc", net=Branches())(x), expected)
    assert torch.equal(pyro_bc.load(tmp_path / "whole.pbc", net=Branches())(x), expected)  # not needed, no harm
    with pytest.raises(CompressedFileError, match=r"brief\.pbc.*leaves the network's graph out: load it with net="):
        pyro_bc.load(tmp_path / "brief.pbc")
    with pytest.raises(CompressedFileError, match="is not the one it was made from"):
        pyro_bc.load(tmp_path / "brief.pbc", net=nn.Sequential(nn.Conv2d(1, 2, 3)))


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


@dataclasses.dataclass
class Tagged:
    logits: torch.Tensor
    hidden: torch.Tensor


class Tagger(nn.Module):
    """Two inputs, an embedding, and a dataclass of outputs."""

    def __init__(self):
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(7, 4), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, ids, mask):
        hidden = self.inner((self.table(ids) * mask[..., None]).mean(1)).relu()
        return Tagged(self.head(hidden), hidden)


@pytest.mark.parametrize("by_name", [False, True])
def test_a_batch_may_be_of_several_inputs(tmp_path, by_name):
    torch.manual_seed(0)
    net = Tagger()
    ids, mask, y = torch.randint(0, 7, (16, 5)), torch.rand(16, 5) < 0.7, torch.randint(0, 3, (16,))
    x = {"ids": ids, "mask": mask} if by_name else (ids, mask)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the table stays deterministic
        assert pyro_bc.check(net, x, y).ok
        model = pyro_bc.BayesianNetwork(net, num_data=16)
    guide = pyro_bc.FactorizedGuide(model)
    pyro_bc.fit(model, guide, [(x, y)], epochs=1, progress=False)
    small = pyro_bc.compress(model, guide)
    small.save(tmp_path / "net.pbc")
    loaded = pyro_bc.load(tmp_path / "net.pbc")
    assert [own.name for own in small.inputs] == ["ids", "mask"]
    with torch.no_grad():
        assert torch.equal(loaded(ids, mask), small.network()(ids=ids, mask=mask))
        assert loaded(ids, mask=mask).shape == (16, 3)
    with pytest.raises(UsageError, match="batch 2 has inputs of shape"):
        pyro_bc.fit(model, guide, [(x, y), ((mask, ids), y)], epochs=1, progress=False)


class Placed(nn.Module):
    """What is computed of the input is added to something that is not, and mixed over positions."""

    def __init__(self):
        super().__init__()
        self.embed, self.place = nn.Linear(3, 4), nn.Parameter(torch.randn(5, 4))
        self.block, self.head = nn.TransformerEncoderLayer(4, 2, 4, 0.0, batch_first=True), nn.Linear(4, 2)
        self.beside = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.block(self.embed(x) + self.place).mean(1)) + self.beside(x.mean(1))


def test_whatever_is_pruned_leaves_a_network_or_none():
    model = pyro_bc.BayesianNetwork(Placed().eval(), pyro_bc.GroupNormalJeffreys(), num_data=4)
    guide = pyro_bc.FactorizedGuide(model)
    guide(torch.rand(4, 5, 3), torch.randint(2, (4,)))
    scales = {name: p for name, p in guide.log_variances.named_parameters() if name.endswith("scale")}
    for part in ("nothing", "beside"):
        for _ in range(3):
            for name, scale in scales.items():
                scale.data = torch.where(torch.rand(scale.shape) < 0.6, 6.0, -9.0)
                if "embed" in name or "beside" in name:  # what reads the input
                    scale.data.fill_(-9.0 if part in name else 6.0)
            with contextlib.ExitStack() as stack:
                if part == "nothing":
                    stack.enter_context(pytest.raises(EmptyNetworkError, match="layer 'embed'"))
                assert "beside" in [layer.name for layer in pyro_bc.compress(model, guide).layers]


def test_a_table_tied_to_an_output_layer_with_a_bias_is_pruned_with_it():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.h, self.o = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9)
            self.o.weight = self.e.weight

        def forward(self, x):
            return self.o(self.h(self.e(x)).relu().mean(1))

    x = torch.randint(9, (5, 4))
    model, guide = set_up(Tied(), x, pyro_bc.GroupHorseshoe(), num_data=5)
    small = pyro_bc.compress(model, guide, thresholds={"h": 1e9, "o": 1e9})
    assert small.network()(x).shape == (5, 9)
