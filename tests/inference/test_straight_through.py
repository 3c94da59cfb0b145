"""Rounded codes change what the network computes and not the divergence; settling leaves the weights."""

import pyro
import pytest
import torch
from helpers import set_up
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn

import pyro_bc
from pyro_bc import GroupHorseshoe, GroupNormalJeffreys, LearnedCode, rounded_codes
from pyro_bc.inference.elbo import elbo_terms
from pyro_bc.inference.straight_through import rounded, settle_codes_

X, Y = torch.rand(4, 6), torch.tensor([0, 1, 2, 0])


def small(prior=None):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    return set_up(net, X, LearnedCode() if prior is None else prior, Y, num_data=50)


def decoded(model, guide, round_=False):
    weights = {}
    for name, layer in guide.layers.items():
        for role, site in layer.sites.items():
            centre = guide.posterior()[f"{name}.{role}"].centre
            weights[f"{name}.{role}"] = site.of_code.decoded(centre.round() if round_ else centre)
    return weights


def test_the_gradient_passes_straight_through_rounding():
    centre = torch.randn(5, 4, requires_grad=True)
    weights = torch.arange(20.0).reshape(5, 4)
    value = rounded(centre)
    assert torch.equal(value, centre.round())
    assert torch.equal(torch.autograd.grad((value * weights).sum(), centre)[0], weights)


def test_the_network_computes_with_rounded_codes_and_the_divergence_stays_that_of_the_cells():
    model, guide = small()
    n = 300

    def terms(inside):
        found = []
        for seed in range(n):
            pyro.set_rng_seed(seed)
            if inside:
                with rounded_codes():
                    found.append(elbo_terms(model, guide, X, Y))
            else:
                found.append(elbo_terms(model, guide, X, Y))
        return found

    plain, inside = terms(False), terms(True)
    assert len({t.log_likelihood.item() for t in inside}) == 1 and len({t.log_likelihood.item() for t in plain}) > 1
    centres = {name: q.centre.round() for name, q in guide.posterior().items()}
    assert torch.allclose(inside[0].outputs, pyro.poutine.condition(model, data=centres)(X))
    kl = [torch.stack([t.total_kl() for t in ts]) for ts in (plain, inside)]
    assert kl[1].mean().item() == pytest.approx(kl[0].mean().item(), abs=5 * kl[0].std().item() / n**0.5)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_pyros_own_elbos_see_the_same_inside_the_handler(elbo):
    model, guide = small()
    losses, own = [], []
    for seed in range(400):
        pyro.set_rng_seed(seed)
        with rounded_codes():
            losses.append(elbo().loss(model, guide, X, Y))
            own.append(elbo_terms(model, guide, X, Y).loss().item())
    losses, own = torch.tensor(losses), torch.tensor(own)
    assert losses.mean().item() == pytest.approx(own.mean().item(), abs=5 * own.std().item() / 20)


def test_gradients_reach_centres_through_the_likelihood_and_priors_through_the_divergence():
    model, guide = small()
    with rounded_codes():
        terms = elbo_terms(model, guide, X, Y)
    (centre,) = guide.parameters_of("net.0.weight")
    code = model.net[0].weight_code
    assert torch.autograd.grad(terms.log_likelihood, centre, retain_graph=True)[0].abs().max() > 0
    gradients = torch.autograd.grad(terms.total_kl(), [centre, code.log_scales, code.logits])
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_settling_leaves_the_weights_and_fixes_the_steps():
    model, guide = small()
    before = decoded(model, guide)
    settle_codes_(guide)
    after = decoded(model, guide)
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    state = {name: value.clone() for name, value in guide.state_dict().items()}
    settle_codes_(guide)
    assert all(torch.equal(state[name], value) for name, value in guide.state_dict().items())


@pytest.mark.parametrize("prior", [GroupNormalJeffreys(weights=LearnedCode()), GroupHorseshoe(weights=LearnedCode())])
def test_scales_go_into_the_codes_and_pruned_groups_become_zero(prior):
    model, guide = small(prior)
    last = guide.layers["net.2"]
    q = {role: guide.posterior()[f"net.2.{role}"] for role in last.sites}
    kept = torch.tensor([True, False, True, True, False])
    role = prior.roles[0]  # the scale itself, or one of its factors
    loc, log_variance = guide.parameters_of(f"net.2.{role}")
    with torch.no_grad():
        log_variance[~kept] = 8.0 if role == "scale" else 3.5
        loc[~kept] = 1e-3 if role == "scale" else -25.0
    q = {role: guide.posterior()[f"net.2.{role}"] for role in last.sites}
    expected = last.sites["weight"].of_code.decoded(q["weight"].centre) * torch.where(
        kept, prior.group_scale(q).mean, 0
    )
    settle_codes_(guide)
    assert torch.allclose(decoded_weight(guide, "net.2"), expected, atol=1e-5)
    assert pyro_bc.summarize(guide)["net.2"].statistic is None
    with rounded_codes():
        outputs = {elbo_terms(model, guide, X, Y).outputs.sum().item() for _ in range(3)}
    assert len(outputs) == 1  # scales multiply nothing any more


def decoded_weight(guide, layer):
    return guide.layers[layer].sites["weight"].of_code.decoded(guide.posterior()[f"{layer}.weight"].centre)
