"""A Bayesian copy computes what the network computes, under documented site names, and scales its likelihood by N/B."""

import warnings
from collections import OrderedDict

import numpy as np
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import Predictive
from pyro.nn import PyroSample
from scipy import special
from torch import nn

from pyro_bc import (
    BayesianLinear,
    BayesianNetwork,
    FactorizedGuide,
    GroupHorseshoe,
    GroupNormalJeffreys,
    LogUniform,
    StandardNormal,
    bayesianize,
    check,
)
from pyro_bc.errors import ImproperPriorError, PyroBCError, UnsupportedNetworkError, UsageError
from pyro_bc.model.likelihoods import Normal

PRIORS = [GroupNormalJeffreys(), GroupHorseshoe(0.1), LogUniform(), StandardNormal()]
GRID = pytest.mark.parametrize("prior", PRIORS, ids=lambda p: type(p).__name__)


def test_a_bias_that_is_frozen_alone_is_said():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    net[0].bias.requires_grad_(False)
    with pytest.warns(UserWarning, match="is frozen is no more where its layer becomes Bayesian: 0. Freeze the w"):
        bayesianize(net, StandardNormal())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bayesianize(net, StandardNormal(), deterministic=["0"])
        net[0].requires_grad_(False)
        bayesianize(net, StandardNormal())


def test_several_draws_of_weights_at_once_are_refused():
    model = BayesianNetwork(nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2)), StandardNormal(), num_data=3)
    guide, x = FactorizedGuide(model), torch.tensor([0, 1, 4])
    guide(x, torch.zeros(3, dtype=torch.long))
    with pytest.raises(UsageError, match="one draw of them"):  # a table would look up the wrong axis
        Predictive(model, guide=guide, num_samples=7, parallel=True)(x)


class Residual(nn.Module):
    """A network with nested modules, a deterministic layer and a reused activation."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.block = nn.Sequential(OrderedDict(inner=nn.Linear(6, 6, bias=False), norm=nn.LayerNorm(6), act=nn.Tanh()))
        self.heads = nn.ModuleList([nn.Linear(6, 2), nn.Linear(6, 1)])

    def forward(self, x):
        x = self.first(x).relu()
        x = x + self.block(x)
        return torch.cat([head(x) for head in self.heads], -1)


LAYERS = {"first": True, "block.inner": False, "heads.0": True, "heads.1": True}  # name to whether it has a bias


def unit_scale_values(prior, net: nn.Module, prefix: str = "") -> dict[str, torch.Tensor]:
    """A value for every site that makes the Bayesian network the one it was made from."""
    values = {}
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Linear):
            path = ".".join(part for part in (prefix, name) if part)
            for role in prior.roles[:-1]:
                values[f"{path}.{role}"] = torch.ones(() if "global" in role else layer.in_features)
            values |= {f"{path}.{key}": value.detach() for key, value in layer.named_parameters()}
    return values


def sample_sites(trace) -> list[str]:
    return [name for name, site in trace.nodes.items() if site["type"] == "sample"]


@GRID
def test_the_copy_computes_what_the_network_computes(prior):
    net = Residual()
    nn.init.normal_(net.block.norm.weight)
    bayesian = bayesianize(net, prior)
    values = unit_scale_values(prior, net)
    x = torch.randn(5, 4)
    trace = poutine.trace(poutine.condition(bayesian, data=values)).get_trace(x)
    assert set(sample_sites(trace)) == set(values)
    assert torch.allclose(trace.nodes["_RETURN"]["value"], net(x), atol=1e-6)


@GRID
def test_sites_are_named_after_nested_modules(prior):
    bayesian = bayesianize(Residual(), prior)
    data = unit_scale_values(prior, Residual())
    trace = poutine.trace(poutine.condition(bayesian, data=data)).get_trace(torch.randn(5, 4))
    expected = []
    for layer, has_bias in LAYERS.items():
        expected += [f"{layer}.{role}" for role in prior.roles] + [f"{layer}.bias"] * has_bias
    assert sample_sites(trace) == expected


def test_the_original_is_not_changed():
    net = Residual()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    types = [type(module) for module in net.modules()]
    bayesian = bayesianize(net, GroupNormalJeffreys())
    with torch.no_grad():
        for parameter in bayesian.parameters():
            parameter.add_(1.0)
        bayesian.first.pretrained["weight"].add_(1.0)
    assert [type(module) for module in net.modules()] == types
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())


def test_weights_become_latent_and_all_else_stays_a_parameter():
    bayesian = bayesianize(Residual(), StandardNormal())
    assert {name for name, _ in bayesian.named_parameters()} == {"block.norm.weight", "block.norm.bias"}
    converted = {name for name, module in bayesian.named_modules() if isinstance(module, BayesianLinear)}
    assert converted == set(LAYERS)


def test_a_rule_decides_layer_by_layer():
    seen = {}

    def rule(name, layer):
        seen[name] = layer
        return {"first": GroupHorseshoe(0.3), "heads.0": LogUniform()}.get(name)

    net = Residual()
    bayesian = bayesianize(net, rule)
    assert list(seen) == list(LAYERS) and all(isinstance(layer, nn.Linear) for layer in seen.values())
    assert bayesian.first.prior == GroupHorseshoe(0.3) and bayesian.heads[0].prior == LogUniform()
    assert torch.equal(bayesian.block.inner.weight, net.block.inner.weight)  # deterministic, with its weight
    names = {name for name, _ in bayesian.named_parameters()}
    assert names == {"block.inner.weight", "block.norm.weight", "block.norm.bias", "heads.1.weight", "heads.1.bias"}
    x = torch.randn(5, 4)
    values = unit_scale_values(GroupHorseshoe(0.3), net.first, "first")
    values |= {f"heads.0.{key}": value.detach() for key, value in net.heads[0].named_parameters()}
    assert torch.allclose(poutine.condition(bayesian, data=values)(x), net(x), atol=1e-6)


@pytest.mark.parametrize(
    "net,prior",
    [
        (nn.Sequential(nn.ReLU(), nn.LayerNorm(3)), StandardNormal()),
        (nn.Linear(3, 2), lambda name, layer: None),
    ],
    ids=["no layer", "rule refuses all"],
)
def test_a_network_without_a_bayesian_layer_is_refused(net, prior):
    with pytest.raises(UnsupportedNetworkError, match=r"no layer to make Bayesian.*as one of .*Linear"):
        bayesianize(net, prior)


@GRID
def test_a_single_layer_can_be_used_by_itself(prior):
    layer = BayesianLinear(4, 3, bias=False, prior=prior)
    weight = torch.randn(3, 4)
    values = {role: torch.full(() if "global" in role else (4,), 1.0) for role in prior.roles[:-1]}
    z = torch.tensor([0.5, 1.0, 2.0, -1.0])
    if isinstance(prior, GroupNormalJeffreys):
        values["scale"] = z
        expected = weight * z
    elif isinstance(prior, GroupHorseshoe):
        values |= {"local_a": z**2, "global_b": torch.tensor(9.0)}
        expected = weight * z.abs() * 3
    else:
        expected = weight
    x = torch.randn(2, 5, 4)
    trace = poutine.trace(poutine.condition(layer, data=values | {"weight": weight})).get_trace(x)
    assert sample_sites(trace) == list(prior.roles)
    assert torch.allclose(trace.nodes["_RETURN"]["value"], x @ expected.T, atol=1e-5)


@pytest.mark.parametrize("num_data,batch", [(100, 8), (8, 8), (60_000, 3)])
def test_the_likelihood_of_a_batch_is_scaled_by_n_over_b(num_data, batch):
    net = nn.Linear(4, 3)
    model = BayesianNetwork(net, StandardNormal(), num_data=num_data)
    x, y = torch.randn(batch, 4), torch.randint(3, (batch,))
    conditioned = poutine.condition(model, data=unit_scale_values(StandardNormal(), net, "net"))
    trace = poutine.trace(conditioned).get_trace(x, y)
    trace.compute_log_prob()
    logits = net(x).detach().double().numpy()
    log_p = special.log_softmax(logits, -1)[np.arange(batch), y.numpy()]
    assert trace.nodes["y"]["log_prob_sum"].item() == pytest.approx(num_data / batch * log_p.sum(), rel=1e-4)
    weight = trace.nodes["net.weight"]
    log_prior = -0.5 * (weight["value"].double() ** 2 + np.log(2 * np.pi)).sum().item()
    assert weight["log_prob_sum"].item() == pytest.approx(log_prior, rel=1e-5)  # the prior is not scaled


def test_the_model_returns_outputs_and_draws_targets_where_none_are_given():
    net = nn.Linear(2, 3)
    model = BayesianNetwork(net, StandardNormal(), num_data=3000)
    x = torch.tensor([0.3, -0.8]).expand(3000, -1)
    conditioned = poutine.condition(model, data=unit_scale_values(StandardNormal(), net, "net"))
    trace = poutine.trace(conditioned).get_trace(x)
    assert torch.allclose(trace.nodes["_RETURN"]["value"], net(x), atol=1e-6)
    counts = torch.bincount(trace.nodes["y"]["value"], minlength=3).numpy()
    p = special.softmax(net(x[0]).detach().double().numpy())
    assert np.all(np.abs(counts - 3000 * p) < 5 * np.sqrt(3000 * p * (1 - p)))


@pytest.mark.parametrize("num_data", [0, -5, 2.0, "10", None])
def test_num_data_is_a_positive_integer(num_data):
    with pytest.raises(UsageError, match=f"positive integer, not {num_data!r}"):
        BayesianNetwork(nn.Linear(4, 3), StandardNormal(), num_data=num_data)


def test_the_default_prior_is_the_horseshoe_and_the_skeleton_the_network():
    net = Residual()
    model = BayesianNetwork(net, num_data=10)
    assert model.net.first.prior == GroupHorseshoe(1e-5)
    assert model.skeleton is not net
    assert all(torch.equal(a, b) for a, b in zip(model.skeleton.parameters(), net.parameters(), strict=True))
    assert {name for name, _ in model.named_parameters()} == {"net.block.norm.weight", "net.block.norm.bias"}


@pytest.mark.parametrize("prior", [GroupNormalJeffreys(), LogUniform()], ids=lambda p: type(p).__name__)
def test_an_improper_prior_cannot_be_sampled(prior):
    model = BayesianNetwork(nn.Linear(4, 3), prior, num_data=10)
    with pytest.raises(ImproperPriorError, match="improper") as error:
        Predictive(model, num_samples=2)(torch.randn(2, 4))
    assert isinstance(error.value, PyroBCError)


def test_the_prior_predictive_of_a_proper_prior_has_its_closed_form_variance():
    n = 600
    model = BayesianNetwork(nn.Linear(2, 1), StandardNormal(), num_data=10, likelihood=Normal())
    x = torch.tensor([[1.0, 2.0], [0.0, 0.5]])
    draws = Predictive(model, num_samples=n, return_sites=("_RETURN",))(x)["_RETURN"].squeeze(-1).numpy()
    gram = x.double().numpy() @ x.double().numpy().T + 1
    error = np.sqrt((np.outer(np.diag(gram), np.diag(gram)) + gram**2) / n)
    assert np.all(np.abs(np.cov(draws.T) - gram) < 5 * error)


def test_a_module_that_is_used_twice_is_one_layer_with_noise_of_its_own_in_each_place():
    shared = nn.Linear(3, 3)
    net = bayesianize(nn.Sequential(shared, nn.ReLU(), shared), StandardNormal())
    assert net[0] is net[2]
    values = {f"2.{key}": value.detach() for key, value in shared.named_parameters()}
    x = torch.randn(2, 3)
    trace = poutine.trace(poutine.condition(net, data=values)).get_trace(x)
    assert torch.allclose(trace.nodes["_RETURN"]["value"], shared(shared(x).relu()), atol=1e-6)
    assert len(trace.stochastic_nodes) + len(trace.observation_nodes) == 2


def test_a_weight_of_two_layers_stays_deterministic_where_one_of_them_does():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 2))
    net[2].weight = net[0].weight
    left = bayesianize(net, StandardNormal(), deterministic=["2"])
    assert left[0].weight is left[2].weight and isinstance(left[3], BayesianLinear)


@pytest.mark.parametrize(
    "choice",
    ["stem.*", "stem", nn.Conv1d, lambda name, module: name.startswith("stem.")],
    ids=["glob", "name", "type", "rule"],
)
def test_layers_stay_deterministic_by_name_type_or_rule(choice):
    net = nn.Sequential()
    net.add_module("stem", nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU(), nn.Conv1d(2, 2, 3)))
    net.add_module("head", nn.Sequential(nn.Flatten(), nn.Linear(8, 2)))
    result = bayesianize(net, StandardNormal(), deterministic=[choice])
    bayesian = [name for name, module in result.named_modules() if hasattr(module, "pretrained")]
    assert bayesian == ["head.1"]


def test_a_forward_that_finds_something_by_the_name_of_its_class_finds_it():
    class Registered(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return {f"{Registered}": self.layer}[str(self.__class__)](x)

    model = BayesianNetwork(Registered(), GroupHorseshoe(), num_data=2)
    assert model(torch.zeros(2, 4)).shape == (2, 3)


def test_dropout_is_switched_off():
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.5, batch_first=True)
    net = nn.Sequential(nn.Dropout(0.5), nn.Dropout1d(0.5), layer)
    result = bayesianize(net, StandardNormal()).train()
    values = {}
    for name, fn in poutine.trace(result).get_trace(torch.rand(2, 3, 4)).iter_stochastic_nodes():
        values[name] = 0.1 * torch.ones_like(fn["value"])
    conditioned = poutine.condition(result, data=values)
    x = torch.rand(2, 3, 4)
    assert torch.equal(conditioned(x), conditioned(x))
    assert net[0].p == layer.dropout.p == 0.5  # the network itself is as it was


def test_a_cell_with_a_projection_is_left_deterministic_and_a_warning_says_so():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.LSTM(4, 5, proj_size=2, batch_first=True)
            self.head = nn.Linear(2, 3)

        def forward(self, x):
            return self.head(self.cell(x)[0][:, -1])

    torch.manual_seed(0)
    net = Recurrent()
    with pytest.warns(UserWarning, match=r"left deterministic.*'cell' \(LSTM\)"):
        model = BayesianNetwork(net, StandardNormal(), num_data=10)
    assert {name.split(".")[1] for name, _ in model.named_parameters()} == {"cell"}
    values = {f"net.head.{key}": value.detach() for key, value in net.head.named_parameters()}
    x = torch.randn(2, 6, 4)
    trace = poutine.trace(poutine.condition(model, data=values)).get_trace(x)
    assert torch.allclose(trace.nodes["_RETURN"]["value"], net(x), atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BayesianNetwork(net, StandardNormal(), num_data=10, deterministic=["cell"])


def test_weights_of_another_dtype_are_refused_with_a_way_out():
    with pytest.raises(UsageError, match="float64"):
        bayesianize(nn.Linear(3, 3).double(), StandardNormal())


def test_the_skeleton_follows_deterministic_layers_as_they_are_trained():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    rule = lambda name, module: None if name == "2" else StandardNormal()  # noqa: E731
    model = BayesianNetwork(net, rule, num_data=5)
    with torch.no_grad():
        dict(model.named_parameters())["net.2.weight"].fill_(7.0)
    assert (model.skeleton[2].weight == 7).all() and torch.equal(model.skeleton[0].weight, net[0].weight)


def test_densities_keep_their_dtype_where_the_model_moves_under_another_default():
    torch.set_default_dtype(torch.float64)
    try:
        model = BayesianNetwork(nn.Linear(3, 2), GroupHorseshoe(), num_data=4)
    finally:
        torch.set_default_dtype(torch.float32)
    trace = poutine.trace(model.to("cpu")).get_trace(torch.randn(4, 3, dtype=torch.float64), torch.zeros(4).long())
    assert {trace.nodes[name]["value"].dtype for name in trace.stochastic_nodes} == {torch.float64}


def test_a_users_own_density_stays_where_the_model_moves():
    layer = BayesianLinear(3, 2, prior=StandardNormal())
    layer.weight = PyroSample(dist.Normal(7.0, 1e-3).expand([2, 3]).to_event(2))
    assert (layer.to(torch.float32).weight - 7).abs().max() < 0.1


class Turned(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x).T


def test_an_output_that_does_not_keep_its_examples_in_front_is_refused_in_one_line():
    model = BayesianNetwork(Turned(), num_data=8)
    with pytest.raises(UnsupportedNetworkError, match=r"of 8 it makes outputs of shape \(3, 8\), which say 3 targets$"):
        poutine.trace(model).get_trace(torch.rand(8, 4))  # Pyro adds a table of shapes, which says nothing more
    found = check(Turned(), torch.rand(8, 4))
    assert "does not keep its examples in front" in str(found)
