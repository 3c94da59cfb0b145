"""A parameter that several modules have, or that is in no layer, has one posterior, wherever it is read."""

import copy
import pickle

import pyro
import pytest
import torch
import torch.nn.functional as F
from helpers import set_up
from torch import nn

import pyro_bc
from pyro_bc import GroupNormalJeffreys, LearnedCode, LogUniform, StandardNormal
from pyro_bc.graph.onnx import to_onnx
from pyro_bc.inference.elbo import elbo_terms
from pyro_bc.inference.straight_through import settle_codes_
from pyro_bc.inspection.diagnostics import mean_network
from pyro_bc.priors.divergence import divergence


class Language(nn.Module):
    """Words and places, a residual branch, and a head that may be the words' table."""

    def __init__(self, tied=True, padding=None):
        super().__init__()
        self.words, self.places = nn.Embedding(11, 6, padding_idx=padding), nn.Embedding(5, 6)
        self.register_buffer("order", torch.arange(5))
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.head = nn.Linear(6, 11, bias=False)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, x):
        h = self.words(x) + self.places(self.order)
        return self.head(h + self.down(torch.tanh(self.up(h))))[:, -1]


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.shift = nn.Parameter(torch.randn(5, 6) * 0.4), nn.Parameter(torch.randn(5) * 0.1)

    def forward(self, x):
        return F.linear(x, self.weight, self.shift)


class Written(nn.Module):
    """Weights that are no module's: a layer class of the user's, products either way round, a convolution."""

    def __init__(self):
        super().__init__()
        self.own = Own()
        self.w, self.v = nn.Parameter(torch.randn(5, 5) * 0.4), nn.Parameter(torch.randn(8, 5) * 0.4)
        self.kernel, self.shift = nn.Parameter(torch.randn(4, 1, 3) * 0.4), nn.Parameter(torch.randn(4) * 0.1)
        self.place = nn.Parameter(torch.randn(1, 6))
        self.out = nn.Parameter(torch.randn(24, 3) * 0.4)

    def forward(self, x):
        h = torch.tanh(self.own(x + self.place))
        h = torch.tanh(torch.tanh(h @ self.w) @ self.v.T)
        return torch.relu(F.conv1d(h.unsqueeze(1), self.kernel, self.shift)).flatten(1) @ self.out


class Bags(nn.Module):
    """Sums and means of a table's rows, one with a row of padding."""

    def __init__(self):
        super().__init__()
        self.sums, self.means = nn.EmbeddingBag(11, 4, mode="sum", padding_idx=0), nn.EmbeddingBag(7, 6)
        self.largest, self.out = nn.EmbeddingBag(7, 4, mode="max"), nn.Linear(14, 3)

    def forward(self, x):
        few = x.clamp(0, 6)
        return self.out(torch.cat([self.sums(x), self.means(few), self.largest(few)], 1))


def language(**options):
    return Language(**options), torch.randint(11, (12, 5))


def written(**options):
    return Written(**options), torch.randn(12, 6)


CASES = {
    "untied": lambda: language(tied=False, padding=2),
    "tied": language,
    "tied, padded": lambda: language(padding=2),
    "written": written,
    "bags": lambda: (Bags(), torch.randint(11, (12, 5))),
}
LEFT = "ignore:left deterministic"


def centres(guide):
    return {name: q.centre.round() if hasattr(q, "centre") else q.mean for name, q in guide.posterior().items()}


@pytest.mark.filterwarnings(LEFT)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("prior", [GroupNormalJeffreys(), LogUniform(), LearnedCode()], ids=lambda p: type(p).__name__)
def test_masked_pruned_stored_and_exported_networks_compute_the_same(tmp_path, case, prior):
    net, x = CASES[case]()
    model, guide = set_up(net, x, prior, num_data=12)
    settle_codes_(guide)
    with torch.no_grad():  # one group of each layer becomes nothing
        for name in guide.families:
            if name.endswith(".scale"):
                guide.parameters_of(name)[0][1] = 1e-9
    thresholds = None
    if not isinstance(prior, LearnedCode):
        thresholds = {layer.name: 15.0 for layer in pyro_bc.compress(model, guide).layers}
    small = pyro_bc.compress(model, guide, thresholds=thresholds, noise_ratio=1e-8)
    small.save(tmp_path / "net.pbc")
    with torch.no_grad():
        expected = pyro.poutine.condition(model, data=centres(guide))(x)
        found = pyro_bc.load(tmp_path / "net.pbc")(x)
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
    if isinstance(prior, GroupNormalJeffreys):
        dense = sum(parameter.numel() for parameter in net.parameters())
        assert sum(t.codes.numel() for t in small.tensors.values() if hasattr(t, "bits")) < 0.9 * dense
    if isinstance(prior, GroupNormalJeffreys) and case in ("tied, padded", "written"):
        assert to_onnx(small, tmp_path / "net.onnx") < 1e-5
    if "padded" in case or case == "untied":
        (words,) = [layer for layer in small.layers if layer.weight.codes.shape[0] == 11][:1]
        assert not words.weight.codes[2].any()


def test_a_tied_weight_has_one_site_whose_kl_counts_once():
    net, x = language()
    model, guide = set_up(net, x, StandardNormal(), num_data=12)
    assert sorted(name for name in guide.families if name.endswith("weight")) == [
        "net.down.weight", "net.head.weight", "net.places.weight", "net.up.weight",
    ]  # fmt: skip
    y = torch.zeros(12, dtype=torch.long)
    terms = elbo_terms(model, guide, x, y)
    prior = pyro.poutine.trace(model).get_trace(x, y)
    assert set(terms.kl) == set(guide.families)
    for name, kl in terms.kl.items():
        density = prior.nodes[name]["fn"]
        q = guide.distribution(name).to_event(density.event_dim)
        assert torch.allclose(kl.sum(), divergence(name, q, density), rtol=1e-5)
    with torch.no_grad():
        values = pyro.poutine.trace(guide).get_trace(x, y)
        drawn = {name: values.nodes[name]["value"] for name in guide.families}
        other = copy.deepcopy(net)
        for name, value in drawn.items():
            other.get_parameter(name.removeprefix("net.")).copy_(value)
        assert torch.allclose(pyro.poutine.condition(model, data=drawn)(x), other(x), atol=1e-5)


def test_a_padded_row_stays_zero_in_draws_and_means():
    layer = pyro_bc.bayesianize(nn.Sequential(nn.Embedding(5, 3, padding_idx=1)), GroupNormalJeffreys())
    guide = pyro_bc.FactorizedGuide(layer, init_log_variance=0.0)
    x = torch.tensor([[1, 0, 1]])
    guide(x)
    assert not pyro.poutine.replay(layer, trace=pyro.poutine.trace(guide).get_trace(x))(x)[0, [0, 2]].any()
    with pyro_bc.local_reparameterization():
        drawn = pyro.poutine.replay(layer, trace=pyro.poutine.trace(guide).get_trace(x))(x)
    assert not drawn[0, [0, 2]].any() and drawn[0, 1].all()


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_a_bag_that_has_a_row_twice_has_the_variance_of_drawn_tables(mode):
    layer = pyro_bc.bayesianize(nn.Sequential(nn.EmbeddingBag(5, 3, mode=mode)), GroupNormalJeffreys())
    guide = pyro_bc.FactorizedGuide(layer, init_log_variance=-1.0)
    x = torch.tensor([[1, 2, 1, 1]])
    guide(x)
    many = x.expand(20_000, 4)
    with pyro_bc.local_reparameterization(), torch.no_grad():
        local = pyro.poutine.replay(layer, trace=pyro.poutine.trace(guide).get_trace(many))(many)
    q = guide.posterior()
    tables = q["0.scale"].sample((20_000,))[:, None] * q["0.weight"].sample((20_000,))
    drawn = tables[:, x[0]].sum(1) / (4 if mode == "mean" else 1)
    assert torch.allclose(local.mean(0), drawn.mean(0), atol=0.05 * float(drawn.std()))
    assert torch.allclose(local.std(0), drawn.std(0), rtol=0.05)


@pytest.mark.filterwarnings(LEFT)
def test_a_parameter_of_no_layer_is_one_where_the_network_multiplies_with_it():
    net, x = written()
    model = pyro_bc.BayesianNetwork(net, GroupNormalJeffreys(), num_data=12)
    guide = pyro_bc.FactorizedGuide(model)
    with pytest.warns(UserWarning, match="left deterministic.*'place'"):
        guide(x, torch.zeros(12).long())
    assert {name.rpartition(".")[0] for name in guide.families} == {
        "net.own.weight", "net.w", "net.v", "net.kernel", "net.out"
    }  # fmt: skip
    assert {name for name, _ in model.named_parameters()} == {"net.place"}
    groups = {name: guide.distribution(f"{name}.scale").mean.numel() for name in guide.layers}
    assert groups == {"net.own.weight": 6, "net.w": 5, "net.v": 5, "net.kernel": 4, "net.out": 24}
    means = centres(guide)
    with torch.no_grad():
        expected = pyro.poutine.condition(model, data=means)(x)
        assert torch.allclose(expected, net(x), atol=0.05 * float(expected.abs().max()))  # scales are about 1
        assert torch.allclose(mean_network(model, guide)(x), expected, atol=1e-5)
        for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(pyro.poutine.condition(again, data=means)(x), expected)
    with pyro_bc.local_reparameterization(), torch.no_grad():  # no draw of a whole weight, which would warn
        terms = elbo_terms(model, guide, x, torch.zeros(12).long())
    assert terms.outputs.shape == (12, 3)


@pytest.mark.filterwarnings(LEFT)
def test_names_rules_and_frozen_parameters_keep_what_is_written_as_it_is():
    net, x = written()
    net.v.requires_grad_(False)

    def rule(name, module):
        return None if name == "out" else StandardNormal()

    model = pyro_bc.BayesianNetwork(net, rule, num_data=12, deterministic=["own", "kernel"])
    guide = pyro_bc.FactorizedGuide(model)
    guide(x, torch.zeros(12).long())
    assert set(guide.families) == {"net.w.weight"}


@pytest.mark.filterwarnings(LEFT)
@pytest.mark.parametrize("case", ["tied", "written"])
def test_curvature_and_a_fit_go_all_the_way(case):
    net, x = CASES[case]()
    with torch.no_grad():
        y = net(x).argmax(-1)
    model = pyro_bc.BayesianNetwork(net, StandardNormal(), num_data=10**6)
    guide = pyro_bc.CurvatureGuide(model, [x], progress=False)
    small = pyro_bc.compress(model, guide, nats_per_bit=1e-6)
    with torch.no_grad():
        assert torch.allclose(small.network()(x), net(x), atol=0.05 * float(net(x).abs().max()))
    guide = pyro_bc.FactorizedGuide(model)
    loader = pyro_bc.data.Batches(x, y, 6)
    history = pyro_bc.fit(model, guide, loader, epochs=2, progress=False).history
    assert all(epoch.loss == epoch.loss for epoch in history)
