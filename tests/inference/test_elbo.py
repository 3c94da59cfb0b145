"""The ELBO's parts add up to Pyro's own ELBO under local reparameterization, draw by draw, values and gradients."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from scipy import special, stats
from torch import nn
from torch.distributions import kl_divergence

from pyro_bc import (
    BayesianNetwork,
    FactorizedGuide,
    GroupHorseshoe,
    GroupNormalJeffreys,
    LogUniform,
    StandardNormal,
    local_reparameterization,
)
from pyro_bc.errors import UsageError
from pyro_bc.inference.elbo import elbo_terms
from pyro_bc.model.likelihoods import Bernoulli, Categorical, Normal
from pyro_bc.priors.base import bias_prior

PRIORS = [GroupNormalJeffreys(), GroupHorseshoe(0.1), LogUniform(), StandardNormal()]
GRID = pytest.mark.parametrize("prior", PRIORS, ids=lambda p: type(p).__name__)
BATCH, NUM_DATA = 6, 60
TARGETS = {
    Categorical: torch.tensor([0, 1, 2, 0, 1, 2]),
    Bernoulli: torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.0]),
    Normal: torch.tensor([0.3, -1.0, 0.2, 2.0, 0.0, 1.0]),
}


def setup(prior, likelihood=Categorical, log_variance: float = -3.0):
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3 if likelihood is Categorical else 1))
    model = BayesianNetwork(net, prior, num_data=NUM_DATA, likelihood=likelihood())
    guide = FactorizedGuide(model, init_log_variance=log_variance)
    x, y = torch.randn(BATCH, 4), TARGETS[likelihood]
    guide(x, y)
    return model, guide, x, y


@pytest.mark.parametrize("likelihood", TARGETS, ids=lambda c: c.__name__)
@GRID
def test_loss_and_gradients_are_those_of_trace_mean_field_elbo(prior, likelihood):
    model, guide, x, y = setup(prior, likelihood)
    parameters = dict(guide.named_parameters())
    pyro.set_rng_seed(5)
    ours = elbo_terms(model, guide, x, y).loss()
    our_gradients = torch.autograd.grad(ours, parameters.values())
    pyro.set_rng_seed(5)
    with local_reparameterization():
        pyros = TraceMeanField_ELBO().differentiable_loss(model, guide, x, y)
    their_gradients = torch.autograd.grad(pyros, parameters.values())
    assert ours.item() == pytest.approx(pyros.item(), rel=1e-6)
    for name, mine, theirs in zip(parameters, our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5, msg=name)
        assert theirs.abs().max() > 0, name  # of parameters that do matter


@GRID
def test_loss_has_the_expectation_of_the_elbo_of_drawn_weights(prior):
    n = 80
    model, guide, x, y = setup(prior)
    pyro.enable_validation(False)
    with torch.no_grad():
        ours = np.array([elbo_terms(model, guide, x, y).loss().item() for _ in range(n)])
        drawn = np.array([TraceMeanField_ELBO().loss(model, guide, x, y) for _ in range(n)])
    error = math.hypot(ours.std(), drawn.std()) / math.sqrt(n)
    assert abs(ours.mean() - drawn.mean()) < 4.5 * error


@GRID
def test_kl_of_every_site_is_the_divergence_of_guide_and_prior(prior):
    model, guide, x, y = setup(prior, Normal)
    terms = elbo_terms(model, guide, x, y)
    densities = {"precision": dist.Gamma(torch.tensor(1.0), torch.tensor(0.1))}
    for layer, shape in {"net.0": (5, 4), "net.2": (1, 5)}.items():
        densities |= {f"{layer}.{role}": fn for role, fn in prior.sites(shape).items()}
        densities[f"{layer}.bias"] = bias_prior(shape[0])
    assert set(terms.kl) == set(densities)
    for name, q in guide.posterior().items():
        expected = kl_divergence(q.to_event(q.loc.dim()), densities[name])
        assert terms.kl[name].shape == expected.shape == ()
        assert terms.kl[name].item() == pytest.approx(expected.item(), rel=1e-5), name
    assert terms.total_kl().item() == pytest.approx(sum(value.item() for value in terms.kl.values()), rel=1e-5)


def test_kl_of_normal_and_log_normal_sites_is_the_papers_formula():
    tau = 0.1
    model, guide, x, y = setup(GroupHorseshoe(tau))
    terms = elbo_terms(model, guide, x, y)

    def parameters(site):
        q = guide.posterior()[site]
        return q.loc.double().numpy(), 2 * np.log(q.scale.double().numpy())

    loc, log_variance = parameters("net.0.weight")
    expected = 0.5 * np.sum(np.exp(log_variance) + loc**2 - log_variance - 1)
    assert terms.kl["net.0.weight"].item() == pytest.approx(expected, rel=1e-5)
    for site, theta in (("net.0.local_a", 1.0), ("net.0.global_a", tau**2)):
        loc, log_variance = parameters(site)
        entropy = 0.5 * (loc + log_variance + 1 + math.log(2) - math.log(theta))
        expected = np.sum(np.exp(loc + 0.5 * np.exp(log_variance)) / theta - entropy)
        assert terms.kl[site].item() == pytest.approx(expected, rel=1e-4)
    for site in ("net.0.local_b", "net.0.global_b"):
        loc, log_variance = parameters(site)
        entropy = 0.5 * (-loc + log_variance + 1 + math.log(2))
        expected = np.sum(np.exp(-loc + 0.5 * np.exp(log_variance)) - entropy)
        assert terms.kl[site].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kl_weight", [0.0, 0.25, 1.0, 3.0])
def test_the_kl_weight_multiplies_the_kl_alone(kl_weight):
    model, guide, x, y = setup(GroupNormalJeffreys())
    terms = elbo_terms(model, guide, x, y)
    expected = kl_weight * sum(value.item() for value in terms.kl.values()) - terms.log_likelihood.item()
    assert terms.loss(kl_weight).item() == pytest.approx(expected, rel=1e-5)
    assert terms.loss().item() == terms.loss(1.0).item()


def test_a_scaled_guide_weighs_the_kl_in_pyros_elbo():
    model, guide, x, y = setup(GroupHorseshoe())
    losses = []
    for own in (guide, pyro.poutine.scale(guide, 0.25)):
        pyro.set_rng_seed(3)
        with local_reparameterization():
            losses.append(TraceMeanField_ELBO().loss(model, own, x, y))
    kl = elbo_terms(model, guide, x, y).total_kl().item()
    assert losses[0] - losses[1] == pytest.approx(0.75 * kl, rel=1e-4)


@GRID
def test_log_likelihood_is_that_of_the_returned_outputs_times_n_over_b(prior):
    model, guide, x, y = setup(prior)
    terms = elbo_terms(model, guide, x, y)
    assert terms.outputs.shape == (BATCH, 3)
    log_p = special.log_softmax(terms.outputs.detach().double().numpy(), -1)[np.arange(BATCH), y.numpy()]
    assert terms.log_likelihood.item() == pytest.approx(NUM_DATA / BATCH * log_p.sum(), rel=1e-5)


def test_log_likelihood_without_variance_is_the_networks():
    model, guide, x, y = setup(StandardNormal(), log_variance=-30.0)
    terms = elbo_terms(model, guide, x, y)
    loss = nn.functional.cross_entropy(model.skeleton(x), y, reduction="sum")
    assert terms.log_likelihood.item() == pytest.approx(-NUM_DATA / BATCH * loss.item(), rel=1e-4)


def test_a_subsampled_global_model_written_by_hand_is_scaled_too():
    data = torch.tensor([1.0, -0.5, 2.0, 0.3])

    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 20, subsample=x):
            pyro.sample("x", dist.Normal(mu, 2.0), obs=x)
        return mu

    guide = FactorizedGuide(model, init_log_variance=-1.0)
    guide(data)
    terms = elbo_terms(model, guide, data)
    mu = terms.outputs.item()
    expected = 5 * np.sum(-0.5 * ((data.double().numpy() - mu) / 2) ** 2 - math.log(2 * math.sqrt(2 * math.pi)))
    assert terms.log_likelihood.item() == pytest.approx(expected, rel=1e-5)
    assert set(terms.kl) == {"mu"}


def test_the_kl_follows_a_scaled_model():
    model, guide, x, y = setup(GroupHorseshoe(0.1))
    plain = elbo_terms(model, guide, x, y)
    pyro.set_rng_seed(5)
    scaled = elbo_terms(poutine.scale(model, scale=0.1), guide, x, y)
    pyro.set_rng_seed(5)
    with local_reparameterization():
        pyros = TraceMeanField_ELBO().loss(poutine.scale(model, scale=0.1), poutine.scale(guide, scale=0.1), x, y)
    assert scaled.total_kl().item() == pytest.approx(0.1 * plain.total_kl().item(), rel=1e-5)
    assert scaled.loss().item() == pytest.approx(pyros, rel=1e-5)


def test_a_site_without_a_closed_form_has_one_draws_divergence():
    def model(x):
        mu = pyro.sample("mu", dist.StudentT(3.0, 0.0, 1.0))
        pyro.sample("x", dist.Normal(mu, 1.0).expand([len(x)]).to_event(1), obs=x)

    guide = FactorizedGuide(model, init_log_variance=-1.0)
    x = torch.ones(3)
    guide(x)
    q = guide.posterior()["mu"]
    loc, scale = float(q.loc), float(q.scale)
    grid = np.linspace(loc - 9 * scale, loc + 9 * scale, 20_001)
    density = stats.norm(loc, scale)
    exact = np.trapezoid(density.pdf(grid) * (density.logpdf(grid) - stats.t(3).logpdf(grid)), grid)
    with torch.no_grad():
        found = np.array([float(elbo_terms(model, guide, x).kl["mu"]) for _ in range(4000)])
    assert abs(found.mean() - exact) < 4.5 * found.std() / math.sqrt(4000)


def test_a_site_without_any_divergence_is_named():
    class NoDensity(dist.StudentT):
        def log_prob(self, value):
            raise NotImplementedError("no density here")

    def model(x):
        mu = pyro.sample("mu", NoDensity(3.0, 0.0, 1.0))
        with poutine.mask(mask=False):
            pyro.sample("x", dist.Normal(mu, 1.0).expand([len(x)]).to_event(1), obs=x)

    guide = FactorizedGuide(model, init_loc_fn=lambda site: torch.zeros(()))
    guide(torch.ones(3))
    with pytest.raises(UsageError, match="site 'mu' has no KL"):
        elbo_terms(model, guide, torch.ones(3))


def test_masked_data_count_for_nothing():
    net = BayesianNetwork(nn.Linear(3, 2), StandardNormal(), num_data=4)
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])

    def model(x, y):
        logits = net.net(x)
        with pyro.plate("data", 4), poutine.mask(mask=torch.tensor([True, False, False, False])):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    guide = FactorizedGuide(model)
    guide(x, y)
    pyro.set_rng_seed(0)
    ours = elbo_terms(model, guide, x, y).loss().item()
    pyro.set_rng_seed(0)
    with local_reparameterization():
        assert ours == pytest.approx(TraceMeanField_ELBO().loss(model, guide, x, y), rel=1e-5)


def test_other_guides_and_plated_sites_are_refused_with_a_way_out():
    model, guide, x, y = setup(StandardNormal())
    with pytest.raises(UsageError, match="TraceMeanField_ELBO"):
        elbo_terms(model, poutine.scale(guide, scale=0.5), x, y)

    def plated():
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(UsageError, match="'z' is in a plate"):
        elbo_terms(plated, FactorizedGuide(plated))
