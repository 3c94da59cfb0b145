"""What a user's network brings along (wrappers, masks, hooks, frozen layers) is kept, or said to be taken away."""

import copy

import pyro
import pytest
import torch
from helpers import fitted, set_up, two_layers, two_of_six
from torch import nn
from torch.nn.utils import parametrizations, prune

import pyro_bc
from pyro_bc.errors import UnsupportedNetworkError
from pyro_bc.model.layers import BayesianLinear

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


def at_start(model, x):
    """What the model computes with the weights that its guide starts from."""
    guide = pyro_bc.FactorizedGuide(model)
    guide(x, torch.zeros(len(x), dtype=torch.long))
    with torch.no_grad():
        return pyro.poutine.condition(model.eval(), data=guide.median())(x)


class Quiet(nn.Linear):
    """A subclass that computes as its parent does."""


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def normalised(net):
    parametrizations.weight_norm(net[0])
    return net


def masked(net):
    prune.l1_unstructured(net[0], "weight", 0.5)
    return net


def old_weight_norm(net):
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(net[0])
    return net


@pytest.mark.parametrize("change", [normalised, masked, old_weight_norm], ids=lambda f: f.__name__)
def test_what_computes_a_weight_is_taken_away_and_said(change):
    net = change(two_layers())
    expected = net(X)
    with pytest.warns(UserWarning, match=r"became plain weights.*: 0\.weight"):
        model = pyro_bc.BayesianNetwork(net, pyro_bc.StandardNormal(), num_data=8)
    assert torch.allclose(at_start(model, X), expected, atol=1e-6)
    assert torch.allclose(model.skeleton(X), expected, atol=1e-6)
    assert torch.equal(net(X), expected)  # the user's own stays as it was


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: torch.compile(net, backend="eager")])
def test_wrappers_are_taken_off(wrap):
    net = two_layers()
    model = pyro_bc.BayesianNetwork(wrap(net), pyro_bc.StandardNormal(), num_data=8)
    assert torch.allclose(at_start(model, X), net(X), atol=1e-6)
    assert [name for name, layer in model.named_modules() if isinstance(layer, BayesianLinear)] == ["net.0", "net.2"]


def test_a_subclass_that_computes_as_its_parent_is_its_parent():
    net = nn.Sequential(Quiet(6, 8), nn.ReLU(), nn.Linear(8, 2))
    model = pyro_bc.BayesianNetwork(net, num_data=8)
    assert isinstance(model.net[0], BayesianLinear)


def test_a_subclass_with_a_forward_of_its_own_has_a_posterior_over_what_it_multiplies_with():
    net = nn.Sequential(Doubled(6, 8), nn.Linear(8, 2))
    model = pyro_bc.BayesianNetwork(net, pyro_bc.StandardNormal(), num_data=8)
    assert not isinstance(model.net[0], BayesianLinear)
    assert torch.allclose(at_start(model, X), net(X), atol=1e-6)
    sites = pyro.poutine.trace(model).get_trace(X).nodes
    assert {"net.0.weight.weight", "net.0.weight.bias", "net.1.weight"} <= set(sites)


def test_hooks_of_layers_stay():
    net = two_layers()
    net[0].register_forward_pre_hook(lambda layer, args: (2 * args[0],))
    net[0].register_forward_hook(lambda layer, args, output: output + 1)
    net[2].register_forward_hook(lambda layer, args, kwargs, output: -output, with_kwargs=True)
    model, guide = set_up(net, X, pyro_bc.StandardNormal(), num_data=8, init_log_variance=-20.0)
    with torch.no_grad():
        found = pyro.poutine.condition(model, data=guide.median())(X)
    assert torch.allclose(found, net(X), atol=1e-5)
    assert torch.allclose(pyro_bc.compress(model, guide).network()(X), net(X), atol=1e-3)


def frozen_net():
    net = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2)
    )
    for index in (0, 1, 4):
        net[index].requires_grad_(False)
    return net


def test_what_is_frozen_stays_as_it_is_in_fit_and_in_svi():
    x, y = two_of_six()
    net = frozen_net()
    before = copy.deepcopy(net.state_dict())
    model, guide, _ = fitted(net, x, y, epochs=3, learning_rate=0.05)
    assert list(guide.layers) == ["net.3", "net.5"]
    svi_model, svi_guide = set_up(net, x, num_data=200)
    svi = pyro.infer.SVI(svi_model, svi_guide, pyro.optim.Adam({"lr": 0.05}), pyro.infer.TraceMeanField_ELBO())
    for _ in range(3):
        svi.step(x, y)
    for trained in (model, svi_model):
        state = trained.net.state_dict()
        for name in ("0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias"):
            assert torch.equal(state[name], before[name]), name
        assert not torch.equal(state["1.running_mean"], before["1.running_mean"])
    assert not torch.equal(guide.parameters_of("net.3.weight")[0], net[3].weight)
    small = pyro_bc.compress(model, guide)
    assert small.architecture[0] <= 6


def test_a_network_that_is_frozen_whole_is_told_so():
    with pytest.raises(UnsupportedNetworkError, match=r"all layers are frozen \(0, 2\): call requires_grad_"):
        pyro_bc.BayesianNetwork(two_layers().requires_grad_(False), num_data=8)


class Functional(nn.Module):
    """A network that multiplies with a layer's weight itself."""

    def __init__(self):
        super().__init__()
        self.fc, self.out = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.out(torch.relu(nn.functional.linear(x, self.fc.weight, self.fc.bias)))


@pytest.mark.parametrize("prior", [pyro_bc.GroupHorseshoe(), pyro_bc.GroupNormalJeffreys(), pyro_bc.LearnedCode()])
def test_a_weight_that_is_read_is_the_one_that_the_layer_multiplies_with(prior):
    net = Functional()
    model = pyro_bc.BayesianNetwork(net, prior, num_data=8)
    guide = pyro_bc.FactorizedGuide(model, init_log_variance=-20.0)
    guide(X, torch.zeros(8, dtype=torch.long))
    assert guide.layers["net.fc"].prior == prior
    with pyro_bc.local_reparameterization():
        trace = pyro.poutine.trace(guide).get_trace(X)
        outputs = pyro.poutine.replay(model, trace=trace)(X)
    spread = 1.0 if isinstance(prior, pyro_bc.LearnedCode) else 1e-2
    assert torch.allclose(outputs, net(X), atol=spread)
    value = trace.nodes["net.fc.weight"]["value"]
    assert isinstance(prior, pyro_bc.LearnedCode) or value._draw is None  # local noise: no weight was drawn
