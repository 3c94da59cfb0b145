"""The model's ELBO is likelihood minus code length; weights are codes times steps; plain SVI fits it."""

import math

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_bc.errors import UnsupportedNetworkError, UsageError
from pyro_bc.model.likelihoods import Normal
from pyro_bc.priors.learned_code import CellGuide, RateNetwork
from pyro_bc.quantisation.cosine import to_cosines


def small(grids=None, **options):
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3))
    model = RateNetwork(net, num_data=50, grids=grids or {"1.weight": (3, 4)}, **options)
    return net, model, CellGuide(model)


def test_the_guide_starts_at_the_networks_weights():
    net, model, guide = small()
    weights = model.weights(dict(zip(guide.names, guide.codes, strict=True)))
    for name, parameter in net.named_parameters():
        assert torch.allclose(weights[name], parameter, atol=1e-6)
    x = torch.rand(4, 1, 3, 4)
    assert torch.allclose(model(x, codes=dict(zip(guide.names, guide.codes, strict=True))), net(x), atol=1e-5)


def test_the_elbo_is_the_scaled_likelihood_minus_the_weighted_code_length():
    _, model, guide = small()
    x, y = torch.rand(4, 1, 3, 4), torch.tensor([0, 1, 2, 0])
    pyro.set_rng_seed(1)
    loss = Trace_ELBO().differentiable_loss(model, guide, x, y, 0.3)
    pyro.set_rng_seed(1)
    codes = {
        name: centre + torch.rand_like(centre) - 0.5 for name, centre in zip(guide.names, guide.codes, strict=True)
    }
    nats = -sum(model.prior(name).log_prob(code).sum() for name, code in codes.items())
    with torch.no_grad():
        outputs = torch.func.functional_call(model.net, model.weights(codes), (x,))
    nll = 50 / 4 * nn.functional.cross_entropy(outputs, y, reduction="sum")
    assert loss.item() == pytest.approx((nll + 0.3 * nats).item(), rel=1e-5)


def test_rounded_codes_change_the_outputs_and_not_the_divergence():
    _, model, guide = small()
    x, y = torch.rand(4, 1, 3, 4), torch.tensor([0, 1, 2, 0])

    def loss(codes, kl_weight):
        pyro.set_rng_seed(2)
        return Trace_ELBO().differentiable_loss(model, guide, x, y, kl_weight, codes).item()

    rounded = guide.rounded()
    assert all(torch.equal(code, code.round()) for code in rounded.values())
    assert loss(rounded, 2.0) - loss(rounded, 1.0) == pytest.approx(loss(None, 2.0) - loss(None, 1.0), rel=1e-4)
    assert loss(rounded, 1.0) != pytest.approx(loss(None, 1.0), rel=1e-4)
    expected = torch.func.functional_call(model.net, model.weights(rounded), (x,))
    assert torch.equal(model(x, codes=rounded), expected)


def test_the_gradient_passes_straight_through_rounding():
    _, _, guide = small()
    weights = torch.arange(60.0).reshape(5, 12)
    (gradient,) = torch.autograd.grad((guide.rounded()["1.weight"] * weights).sum(), guide.codes[0])
    assert torch.equal(gradient, weights)


def test_snapped_steps_are_powers_of_two_and_leave_the_weights():
    _, model, guide = small()
    before = model.weights(dict(zip(guide.names, guide.codes, strict=True)))
    model.snap_steps_(guide)
    after = model.weights(dict(zip(guide.names, guide.codes, strict=True)))
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    exponents = model.steps().log2()
    assert torch.allclose(exponents, exponents.round(), atol=1e-5) and not model.log_steps.requires_grad


def test_codes_of_a_grid_are_cosine_coefficients():
    net, model, guide = small()
    step = model.steps()[0]
    assert torch.allclose(guide.codes[0], to_cosines(net[1].weight, (3, 4)) / step, atol=1e-5)
    assert model.prior("1.weight").batch_shape == (5, 12) and len(model.logits[0]) == 3 + 4 - 1


def test_svi_shortens_the_code_as_a_pyro_user_would_run_it():
    _, model, guide = small()
    x, y = torch.rand(50, 1, 3, 4), torch.zeros(50).long()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    first = svi.evaluate_loss(x, y)
    for _ in range(150):
        svi.step(x, y)
    assert svi.evaluate_loss(x, y) < 0.5 * first
    assert sum(int(code.round().count_nonzero()) for code in guide.codes) < 40  # of 83; one class needs none


def test_other_likelihoods_bring_their_sites():
    model = RateNetwork(nn.Sequential(nn.Linear(3, 1)), num_data=8, likelihood=Normal())
    trace = pyro.poutine.trace(model).get_trace(torch.rand(4, 3), torch.rand(4))
    assert "precision" in trace.nodes and "net.0.weight" in trace.nodes


def test_a_tensor_of_zeros_has_a_step():
    net = nn.Sequential(nn.Linear(2, 2))
    nn.init.zeros_(net[0].bias)
    model = RateNetwork(net, num_data=4)
    assert model.steps().isfinite().all() and model.initial_codes("0.bias").abs().max() == 0


def test_what_cannot_be_is_refused():
    net = nn.Sequential(nn.Linear(6, 2))
    for wrong in (0, 2.5, True):
        with pytest.raises(UsageError, match="num_data"):
            RateNetwork(net, num_data=wrong)
    with pytest.raises(UsageError, match=r"0\.weights"):
        RateNetwork(net, num_data=4, grids={"0.weights": (2, 3)})
    for grid in ((4,), (0, 3)):
        with pytest.raises(UsageError, match="does not fit"):
            RateNetwork(net, num_data=4, grids={"0.weight": grid})
    with pytest.raises(UnsupportedNetworkError, match="no parameters"):
        RateNetwork(nn.Flatten(), num_data=4)
    assert math.isfinite(RateNetwork(net, num_data=4).steps().sum().item())
