"""Log-probabilities and errors against scipy, impossible targets are named, learned noise is that of the data."""

import inspect
import math
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from scipy import integrate, special, stats
from torch import nn
from torch.distributions import kl_divergence

import pyro_bc
from pyro_bc import BayesianNetwork, FactorizedGuide, StandardNormal
from pyro_bc.data import Batches
from pyro_bc.errors import UsageError
from pyro_bc.inference.elbo import elbo_terms
from pyro_bc.model.likelihoods import (
    Bernoulli,
    Categorical,
    Likelihood,
    NegativeBinomial,
    Normal,
    Poisson,
    SoftCategorical,
)


def test_categorical_log_probabilities_are_log_softmax():
    logits, y = 3 * torch.randn(7, 5), torch.tensor([0, 4, 2, 1, 3, 0, 2])
    density = Categorical()(logits)
    assert density.batch_shape == (7,)
    expected = special.log_softmax(logits.double().numpy(), -1)[np.arange(7), y.numpy()]
    np.testing.assert_allclose(density.log_prob(y).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_categorical_error_is_per_cent_of_wrong_labels():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.5], [0.0, -1.0, 3.0], [1.0, 0.0, 0.0]])
    error = Categorical().error(logits, torch.tensor([0, 1, 0, 2]))
    assert error.tolist() == [0.0, 0.0, 100.0, 100.0]
    assert Categorical().summary(error.mean().item()) == 50.0


@pytest.mark.parametrize("shape", [(6,), (6, 1)], ids=str)
def test_bernoulli_log_probabilities_and_errors(shape):
    logits = torch.tensor([-3.0, -0.1, 0.1, 2.0, 30.0, -30.0]).reshape(shape)
    y = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    density = Bernoulli()(logits)
    assert density.batch_shape == (6,)
    signed = np.where(y.numpy() > 0, 1, -1) * logits.double().numpy().reshape(-1)
    np.testing.assert_allclose(density.log_prob(y).numpy(), special.log_expit(signed), rtol=1e-5, atol=1e-6)
    assert Bernoulli().error(logits, y).tolist() == [100.0, 0.0, 0.0, 100.0, 0.0, 0.0]


@pytest.mark.parametrize("shape", [(5,), (5, 1)], ids=str)
def test_normal_is_scaled_by_its_precision(shape):
    outputs, y = torch.randn(5), torch.randn(5)
    likelihood = Normal(concentration=2.0, rate=0.5)
    conditioned = poutine.condition(likelihood, data={"precision": torch.tensor(4.0)})
    trace = poutine.trace(conditioned).get_trace(outputs.reshape(shape))
    density = trace.nodes["_RETURN"]["value"]
    assert density.batch_shape == (5,)
    expected = stats.norm(outputs.double().numpy(), 0.5).logpdf(y.double().numpy())
    np.testing.assert_allclose(density.log_prob(y).numpy(), expected, rtol=1e-5, atol=1e-6)
    trace.compute_log_prob()
    prior = stats.gamma(2.0, scale=1 / 0.5).logpdf(4.0)
    assert trace.nodes["precision"]["log_prob"].item() == pytest.approx(prior, rel=1e-5)


def test_normal_error_is_squared_and_its_summary_the_root():
    outputs, y = torch.tensor([[1.0], [2.0], [-1.0]]), torch.tensor([0.0, 2.0, 3.0])
    error = Normal().error(outputs, y)
    assert error.tolist() == [1.0, 0.0, 16.0]
    assert Normal().summary(error.mean().item()) == pytest.approx(math.sqrt(17 / 3))


@pytest.mark.parametrize(
    "likelihood,outputs,targets,message",
    [
        (Categorical(), (4, 3), torch.tensor([0, 1, 3, 2]), r"labels lie in \[0, 3\], but the network has 3 outputs"),
        (Categorical(), (4, 3), torch.tensor([0, 1, -1, 2]), r"labels lie in \[-1, 2\]"),
        (Categorical(), (4, 3), torch.tensor([0.0, 1.0, 2.0, 0.0]), r"class numbers.*not torch.float32"),
        (Categorical(), (4, 3), torch.zeros(3, dtype=torch.long), r"of shape \(4,\), not torch.int64 of shape \(3,\)"),
        (Categorical(), (4, 3), torch.zeros(4, 3, dtype=torch.long), r"of shape \(4, 3\)"),
        (Categorical(), (4, 3, 5), torch.zeros(4, 5, dtype=torch.long), r"give Categorical\(class_dim=1\)"),
        (Bernoulli(), (4, 1), torch.tensor([0.0, 1.0, 2.0, 1.0]), "0 or 1"),
        (Bernoulli(), (4,), torch.tensor([0.0, 0.5, 1.0, 1.0]), "0 or 1"),
        (Bernoulli(), (4,), torch.zeros(4, 1), r"\(4,\) does not fit targets of shape \(4, 1\)"),
        (Bernoulli(), (4, 2), torch.zeros(4), r"\(4, 2\) does not fit targets.*need shape"),
        (Normal(), (4, 2), torch.zeros(4), r"\(4, 2\) does not fit targets.*need shape"),
        (Normal(), (4, 1), torch.zeros(4, 1), r"\(4, 1\) does not fit targets of shape \(4, 1\)"),
        (Normal(), (4, 1), torch.zeros(5), r"\(4, 1\) does not fit targets of shape \(5,\)"),
    ],
)
def test_check_names_targets_that_cannot_have_come_from_the_density(likelihood, outputs, targets, message):
    with pytest.raises(UsageError, match=message):
        likelihood.check(torch.zeros(outputs), targets)


@dataclass(frozen=True)
class Case:
    """A likelihood, the shape of a network's outputs for it, and what no target of it is."""

    likelihood: Likelihood
    outputs: tuple[int, ...]
    impossible: torch.Tensor


N = 40

#: what every likelihood promises is tested for each of these: a new one joins by its case.
CASES = [
    Case(Categorical(), (N, 3), torch.full((N,), 3)),
    Case(SoftCategorical(), (N, 3), torch.full((N, 3), 0.5)),
    Case(Bernoulli(), (N, 1), torch.full((N,), 2.0)),
    Case(Bernoulli(), (N,), torch.full((N,), 0.5)),
    Case(Normal(), (N, 1), torch.zeros(N, 1)),
    Case(Normal(2.0, 3.0), (N,), torch.zeros(N - 1)),
    Case(Normal(), (N, 2), torch.full((N, 2), torch.nan)),
    Case(Bernoulli(), (N, 3), torch.zeros(N)),
    Case(Categorical(), (N, 5, 3), torch.full((N, 5), 3)),
    Case(Categorical(class_dim=1), (N, 3, 2, 2), torch.zeros(N, 3, dtype=torch.long)),
    Case(SoftCategorical(), (N, 4, 3), torch.zeros(N, 3)),
    Case(Poisson(), (N, 1), torch.full((N,), 1.5)),
    Case(Poisson(), (N, 2), torch.full((N, 2), -1.0)),
    Case(NegativeBinomial(), (N,), torch.full((N,), torch.inf)),
    Case(NegativeBinomial(2.0, 1.0), (N, 3), torch.zeros(N, 3, dtype=torch.long)),
]

LIKELIHOODS = pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{type(case.likelihood).__name__}-{case.outputs}"
)


def test_every_likelihood_has_a_case():
    found = {value for name, value in vars(pyro_bc.likelihoods).items() if isinstance(value, type) and name[0] != "_"}
    concrete = {kind for kind in found if issubclass(kind, Likelihood) and not inspect.isabstract(kind)}
    assert {type(case.likelihood) for case in CASES} == concrete


@LIKELIHOODS
def test_what_the_density_draws_passes_its_own_check(case):
    outputs = torch.zeros(case.outputs)
    y = case.likelihood(outputs).sample()
    assert case.likelihood.check(outputs, y) is None
    error = case.likelihood.error(outputs, y)
    assert error.shape == (N,) and (error >= 0).all()
    assert math.isfinite(case.likelihood.summary(error.mean().item())) and case.likelihood.metric
    assert y.float().std(0).min() > 0  # and it is not one value for all


@LIKELIHOODS
def test_examples_are_independent_and_what_is_impossible_is_refused(case):
    outputs = torch.randn(case.outputs)
    density = case.likelihood(outputs)
    y = density.sample()
    with poutine.block(), poutine.condition(data=dict.fromkeys(("precision", "total_count"), torch.tensor(2.0))):
        whole = case.likelihood(outputs).log_prob(y)
        parts = [case.likelihood(outputs[i : i + 1]).log_prob(y[i : i + 1]) for i in range(N)]
    assert whole.shape == (N,)
    torch.testing.assert_close(whole, torch.cat(parts))
    with pytest.raises(UsageError):
        case.likelihood.check(outputs, case.impossible)


@LIKELIHOODS
def test_a_network_learns_under_it(case):
    """From targets of its own density at known outputs: the loss falls, and the error below that of a constant."""
    pyro.clear_param_store()
    x = torch.randn(N, 4)
    outputs = math.prod(case.outputs[1:])
    truth = x @ torch.randn(4, outputs, generator=torch.Generator().manual_seed(1))
    truth = truth if "RMSE" in case.likelihood.metric else 8 * truth
    with poutine.condition(data=dict.fromkeys(("precision", "total_count"), torch.tensor(100.0))):
        y = case.likelihood(truth.reshape(case.outputs)).sample()
    shaped = nn.Flatten(0) if len(case.outputs) == 1 else nn.Unflatten(1, case.outputs[1:])
    net = nn.Sequential(nn.Linear(4, outputs), shaped)
    model = BayesianNetwork(net, StandardNormal(), num_data=N, likelihood=case.likelihood)
    guide = FactorizedGuide(model, init_log_variance=-6.0)
    fit = {"epochs": 80, "learning_rate": 0.1, "kl_weight": 0.01, "progress": False}
    history = pyro_bc.fit(model, guide, Batches(x, y, 20), **fit).history
    assert history[-1].loss < history[0].loss
    # Counts scatter around their rates.
    bar = 0.7 if isinstance(case.likelihood, Poisson | NegativeBinomial) else 0.5
    assert history[-1].error < bar * history[0].error


@pytest.mark.parametrize("sigma", [0.1, 0.7])
def test_learned_noise_is_that_of_a_linear_regression(sigma):
    n, steps = 300, 400
    x = torch.linspace(-1, 1, n)[:, None]
    y = 1.5 * x[:, 0] - 0.5 + sigma * torch.randn(n)
    model = BayesianNetwork(nn.Linear(1, 1), StandardNormal(), num_data=n, likelihood=Normal())
    guide = FactorizedGuide(model, init_log_variance=-5.0)
    guide(x, y)
    pyro.enable_validation(False)
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.01 ** (step / steps)
        optimizer.zero_grad()
        elbo_terms(model, guide, x, y).loss().backward()
        optimizer.step()
    design = np.stack([x[:, 0].double().numpy(), np.ones(n)], 1)
    _, (squares,), *_ = np.linalg.lstsq(design, y.double().numpy(), rcond=None)
    # Given the line, the precision's posterior is Gamma(1 + n/2, 0.1 + squares/2); its relative deviation is 0.08.
    exact = (1 + n / 2) / (0.1 + squares / 2)
    learned = guide.median()["precision"].item()
    assert learned == pytest.approx(exact, rel=0.06)
    assert learned**-0.5 == pytest.approx(sigma, rel=0.15)


def test_what_does_not_fit_is_told_what_to_do():
    with pytest.raises(UsageError, match=r"need shape \(4,\); give targets.squeeze\(-1\)"):
        Normal().check(torch.zeros(4, 1), torch.zeros(4, 1))
    with pytest.raises(UsageError, match=r"give targets.squeeze\(-1\)"):
        Categorical().check(torch.zeros(4, 3), torch.zeros(4, 1).long())
    with pytest.raises(UsageError, match="NaN"):
        Normal().check(torch.zeros(4), torch.tensor([0.0, 1.0, torch.nan, 2.0]))
    with pytest.raises(UsageError, match=r"give targets.float\(\)"):
        Normal().check(torch.zeros(4), torch.ones(4, dtype=torch.long))
    with pytest.raises(UsageError, match="floating-point"):
        Bernoulli().check(torch.zeros(4), torch.ones(4, dtype=torch.long))
    with pytest.raises(UsageError, match="counts"):
        Poisson().check(torch.zeros(4), torch.full((4,), 0.5))


def test_densities_of_several_entries_are_sums_over_them():
    outputs = torch.randn(6, 3, 4, dtype=torch.double)
    labels = torch.randint(4, (6, 3))
    by_entry = special.log_softmax(outputs.numpy(), -1)[np.arange(6)[:, None], np.arange(3), labels.numpy()]
    np.testing.assert_allclose(Categorical()(outputs).log_prob(labels), by_entry.sum(1))
    pixels = outputs.movedim(-1, 1)
    np.testing.assert_allclose(Categorical(class_dim=1)(pixels).log_prob(labels), by_entry.sum(1))
    error = Categorical(class_dim=1).error(pixels, labels)
    np.testing.assert_allclose(error, 100 * (outputs.argmax(-1) != labels).double().mean(1), rtol=1e-6)
    counts = torch.randint(9, (6, 2)).double()
    logs = torch.randn(6, 2, dtype=torch.double)
    expected = stats.poisson(logs.exp().numpy()).logpmf(counts.numpy()).sum(1)
    np.testing.assert_allclose(Poisson()(logs).log_prob(counts), expected)
    r = torch.tensor([2.0, 0.7], dtype=torch.double)
    with poutine.condition(data={"total_count": r}):
        density = NegativeBinomial()(logs)
    probability = r / (r + logs.exp())
    expected = stats.nbinom(r.numpy(), probability.numpy()).logpmf(counts.numpy()).sum(1)
    np.testing.assert_allclose(density.log_prob(counts), expected)
    np.testing.assert_allclose(density.mean, logs.exp())


def test_a_taught_likelihood_is_the_expected_one_over_the_teachers_classes():
    outputs = torch.randn(5, 3, dtype=torch.double)
    targets = torch.rand(5, 3, dtype=torch.double)
    targets /= targets.sum(-1, keepdim=True)
    density = SoftCategorical()(outputs)
    one_by_one = sum(targets[:, c] * Categorical()(outputs).log_prob(torch.full((5,), c)) for c in range(3))
    assert torch.allclose(density.log_prob(targets), one_by_one)
    labels = torch.tensor([0, 1, 2, 1, 0])
    hard = nn.functional.one_hot(labels, 3).double()
    assert torch.allclose(density.log_prob(hard), Categorical()(outputs).log_prob(labels))
    assert torch.equal(SoftCategorical().error(outputs, hard), Categorical().error(outputs, labels))
    draws = density.sample((2000,))
    assert torch.allclose(draws.mean(0), outputs.softmax(-1), atol=0.06)


@pytest.mark.parametrize(
    "targets", [torch.tensor([0, 1]), torch.zeros(2, 3), torch.tensor([[1.5, -0.5, 0.0], [1.0, 0.0, 0.0]])]
)
def test_what_are_no_probabilities_is_refused(targets):
    with pytest.raises(UsageError, match="probabilities"):
        SoftCategorical().check(torch.zeros(2, 3), targets)


def test_a_noise_has_its_kl_in_closed_form_whatever_weighs_it():
    q, p = dist.LogNormal(torch.tensor(0.3), torch.tensor(0.7)), dist.Gamma(torch.tensor(1.5), torch.tensor(0.4))

    def term(z):
        of_guide = stats.lognorm.logpdf(np.exp(z), 0.7, scale=np.exp(0.3))
        return stats.norm.pdf(z, 0.3, 0.7) * (of_guide - stats.gamma.logpdf(np.exp(z), 1.5, scale=2.5))

    assert float(kl_divergence(q, p)) == pytest.approx(integrate.quad(term, -7, 8)[0], abs=1e-5)
    x = torch.randn(20, 3)
    for likelihood in (Normal(), NegativeBinomial()):
        model = BayesianNetwork(nn.Linear(3, 1), StandardNormal(), num_data=20, likelihood=likelihood)
        guide, found = FactorizedGuide(model), []
        guide(x, torch.ones(20))
        for seed in range(2):  # of one draw, the noise's part would be another with each
            losses = []
            for own in (guide, poutine.scale(guide, 0.2)):
                pyro.set_rng_seed(seed)
                losses.append(TraceMeanField_ELBO().loss(model, own, x, torch.ones(20)))
            found.append((losses[0] - losses[1]) / 0.8)
        assert found[0] == pytest.approx(found[1], abs=1e-3)
