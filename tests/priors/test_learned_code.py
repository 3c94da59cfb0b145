"""A code's weights are codes times steps; its ELBO is likelihood minus code length; plain SVI fits it."""

import math

import pyro
import pytest
import torch
from helpers import set_up
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

import pyro_bc
from pyro_bc import BayesianNetwork, FactorizedGuide, GroupHorseshoe, GroupNormalJeffreys, LearnedCode
from pyro_bc.errors import ImproperPriorError, UnsupportedNetworkError, UsageError
from pyro_bc.inference.elbo import elbo_terms
from pyro_bc.priors.learned_code import Code
from pyro_bc.quantisation.cosine import to_cosines

X, Y = torch.rand(4, 1, 3, 4), torch.tensor([0, 1, 2, 0])


def small(prior=None):
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3))
    return net, *set_up(net, X, LearnedCode() if prior is None else prior, Y, num_data=50)


def codes_of(model):
    """The codes of a network's tensors, by their sites."""
    return {
        f"net.{name}.{role}": getattr(layer, f"{role}_code")
        for name, layer in model.net.named_modules()
        for role in ("weight", "bias")
        if getattr(layer, f"{role}_code", None) is not None
    }


def test_the_guide_starts_at_the_networks_weights():
    net, model, guide = small()
    codes = codes_of(model)
    assert list(codes) == ["net.1.weight", "net.1.bias", "net.3.weight", "net.3.bias"]
    for name, parameter in net.named_parameters():
        assert torch.allclose(
            codes[f"net.{name}"].decoded(guide.posterior()[f"net.{name}"].centre), parameter, atol=1e-6
        )
    centres = {name: q.centre for name, q in guide.posterior().items()}
    assert torch.allclose(pyro.poutine.condition(model, data=centres)(X), net(X), atol=1e-5)


@pytest.mark.parametrize("elbo", [Trace_ELBO(), TraceMeanField_ELBO()], ids=lambda elbo: type(elbo).__name__)
def test_the_elbo_is_the_scaled_likelihood_minus_the_code_length(elbo):
    net, model, guide = small()
    pyro.set_rng_seed(1)
    loss = elbo.differentiable_loss(model, guide, X, Y)
    pyro.set_rng_seed(1)
    terms = elbo_terms(model, guide, X, Y)
    pyro.set_rng_seed(1)
    drawn = {name: q.centre + torch.rand_like(q.centre) - 0.5 for name, q in guide.posterior().items()}
    codes = codes_of(model)
    nats = {name: -codes[name].density().log_prob(code).sum() for name, code in drawn.items()}
    weights = {name.removeprefix("net."): codes[name].decoded(code) for name, code in drawn.items()}
    outputs = torch.func.functional_call(net, weights, (X,))
    nll = 50 / 4 * nn.functional.cross_entropy(outputs, Y, reduction="sum")
    assert loss.item() == pytest.approx((nll + sum(nats.values())).item(), rel=1e-5)
    assert terms.log_likelihood.item() == pytest.approx(-nll.item(), rel=1e-5)
    assert {name: value.item() for name, value in terms.kl.items()} == pytest.approx(
        {name: value.item() for name, value in nats.items()}, rel=1e-4
    )


def test_codes_of_a_grid_are_cosine_coefficients_and_grids_are_found_with_the_first_batch():
    net, model, guide = small()
    code = codes_of(model)["net.1.weight"]
    centre = guide.posterior()["net.1.weight"].centre
    assert code.grid == (3, 4) and len(code.logits) == 3 + 4 - 1
    assert torch.allclose(centre, to_cosines(net[1].weight, (3, 4)) / code.log_step.exp(), atol=1e-5)
    assert code.density().batch_shape == (5, 12)
    assert codes_of(small(LearnedCode(grids=None))[1])["net.1.weight"].grid == ()
    assert codes_of(small(LearnedCode(grids={"1.weight": (12,)}))[1])["net.1.weight"].grid == (12,)


def test_a_layer_alone_is_coded_over_its_kernel():
    layer = pyro_bc.BayesianConv2d(2, 3, 5, prior=LearnedCode())
    assert layer.weight_code.grid == (5, 5) and layer.bias_code.grid == ()
    assert pyro_bc.BayesianLinear(4, 3, prior=LearnedCode()).weight_code.grid == ()


def test_svi_shortens_the_code_as_a_pyro_user_would_run_it():
    _, model, guide = small()
    x, y = torch.rand(50, 1, 3, 4), torch.zeros(50).long()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    first = svi.evaluate_loss(x, y)
    steps = {name: code.log_step.item() for name, code in codes_of(model).items()}
    for _ in range(150):
        svi.step(x, y)
    assert svi.evaluate_loss(x, y) < 0.5 * first
    left = sum(int(q.centre.round().count_nonzero()) for q in guide.posterior().values())
    assert left < 40  # of 83; one class needs none
    assert all(code.log_step.item() != steps[name] for name, code in codes_of(model).items())  # they are learned, too


def test_settled_steps_are_powers_of_two_and_leave_the_tensor():
    values = torch.randn(4, 6)
    code = Code(values)
    codes = code.encoded(values)
    stored = code.stored(codes)
    codes = codes * code.settle_()
    assert torch.allclose(code.decoded(codes), values, atol=1e-6)
    exponent = code.log_step / math.log(2)
    assert exponent.item() == pytest.approx(-code.fraction_bits, abs=1e-5) and code.is_settled
    again = code.stored(codes)
    assert torch.equal(stored.codes, again.codes) and stored.fraction_bits == again.fraction_bits
    assert torch.allclose(again.values(), code.decoded(codes.round()), atol=1e-6)
    copy = Code(values)
    copy.load_state_dict(code.state_dict())
    assert copy.is_settled


@pytest.mark.parametrize("prior", [GroupNormalJeffreys(weights=LearnedCode()), GroupHorseshoe(weights=LearnedCode())])
def test_scales_multiply_what_codes_stand_for(prior):
    net, model, guide = small(prior)
    draw = {name: site.sample() for name, site in guide.posterior().items()}
    layer = prior.scale({role: draw[f"net.3.{role}"] for role in prior.roles})
    assert layer.shape == (5,)
    assert prior.scale({role: draw[f"net.1.{role}"] for role in prior.roles}).shape == (1,)  # one grid is one group
    codes = codes_of(model)
    first = prior.scale({role: draw[f"net.1.{role}"] for role in prior.roles})
    weights = {name.removeprefix("net."): code.decoded(draw[name]) for name, code in codes.items()}
    weights["1.weight"], weights["3.weight"] = first * weights["1.weight"], layer * weights["3.weight"]
    expected = torch.func.functional_call(net, weights, (X,))
    assert torch.allclose(pyro.poutine.condition(model, data=draw)(X), expected, atol=1e-5)


def test_likelihoods_with_sites_are_fitted_too():
    net = nn.Sequential(nn.Linear(3, 1))
    model = BayesianNetwork(net, LearnedCode(), num_data=64, likelihood=pyro_bc.likelihoods.Normal())
    guide = FactorizedGuide(model)
    x = torch.randn(64, 3)
    loader = pyro_bc.data.Batches(x, x[:, 0], 32)
    history = pyro_bc.fit(
        model, guide, loader, epochs=60, code_learning_rate=0.3, kl_weight=0.3, progress=False
    ).history
    assert "precision" in guide.families and history[-1].error < 0.5 * history[0].error


def test_a_learned_code_may_be_given_to_some_layers():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    model = BayesianNetwork(net, lambda name, _: LearnedCode() if name == "0" else GroupHorseshoe(), num_data=64)
    guide = FactorizedGuide(model)
    x = torch.randn(64, 6)
    y = (x[:, 0] > 0).long()
    pyro_bc.fit(
        model, guide, pyro_bc.data.Batches(x, y, 32), epochs=60, kl_weight=0.1, code_learning_rate=0.2,
        learning_rate=1e-2, log_learning_rate=3e-2, progress=False,
    )  # fmt: skip
    summary = pyro_bc.summarize(guide)
    assert summary["net.0"].codes and not summary["net.2"].codes and summary["net.2"].statistic.shape == (8,)
    small = pyro_bc.compress(model, guide)
    assert (small.network()(x).argmax(1) != y).float().mean() < 0.1


def test_a_tensor_of_zeros_has_a_step():
    code = Code(torch.zeros(3))
    assert code.log_step.isfinite() and code.encoded(torch.zeros(3)).abs().max() == 0


def test_what_cannot_be_is_refused():
    net = nn.Sequential(nn.Linear(6, 2))
    with pytest.raises(UsageError, match=r"0\.weights"):
        BayesianNetwork(net, LearnedCode(grids={"0.weights": (2, 3)}), num_data=4)
    for grid in ((4,), (0, 3)):
        with pytest.raises(UsageError, match="does not fit"):
            BayesianNetwork(net, LearnedCode(grids={"0.weight": grid}), num_data=4)
    with pytest.raises(UsageError, match="grids is 'auto'"):
        LearnedCode(grids="none")
    with pytest.raises(UnsupportedNetworkError, match="no layer"):
        BayesianNetwork(nn.Flatten(), LearnedCode(), num_data=4)
    with pytest.raises(ImproperPriorError, match="give it to a layer"):
        LearnedCode().sample("fc1", (3, 2))
    for nested in (GroupHorseshoe(), "normal"):
        with pytest.raises(UsageError, match="prior for weights without groups"):
            GroupNormalJeffreys(weights=nested)
