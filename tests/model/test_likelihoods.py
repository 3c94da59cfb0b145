"""Log-probabilities and errors against scipy, impossible targets are named, learned noise is that of the data."""

import math

import numpy as np
import pyro
import pyro.poutine as poutine
import pytest
import torch
from scipy import special, stats
from torch import nn

from pyro_bc import BayesianNetwork, FactorizedGuide, StandardNormal
from pyro_bc.errors import UsageError
from pyro_bc.inference.elbo import elbo_terms
from pyro_bc.model.likelihoods import Bernoulli, Categorical, Normal, SoftCategorical


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
        (Bernoulli(), (4, 1), torch.tensor([0.0, 1.0, 2.0, 1.0]), "0 or 1"),
        (Bernoulli(), (4,), torch.tensor([0.0, 0.5, 1.0, 1.0]), "0 or 1"),
        (Bernoulli(), (4,), torch.zeros(4, 1), r"\(4,\) does not fit targets of shape \(4, 1\)"),
        (Bernoulli(), (4, 2), torch.zeros(4), r"\(4, 2\) does not fit targets.*one output per example"),
        (Normal(), (4, 2), torch.zeros(4), r"\(4, 2\) does not fit targets.*one output per example"),
        (Normal(), (4, 1), torch.zeros(4, 1), r"\(4, 1\) does not fit targets of shape \(4, 1\)"),
        (Normal(), (4, 1), torch.zeros(5), r"\(4, 1\) does not fit targets of shape \(5,\)"),
    ],
)
def test_check_names_targets_that_cannot_have_come_from_the_density(likelihood, outputs, targets, message):
    with pytest.raises(UsageError, match=message):
        likelihood.check(torch.zeros(outputs), targets)


@pytest.mark.parametrize(
    "likelihood,outputs", [(Categorical(), (40, 3)), (Bernoulli(), (40, 1)), (Bernoulli(), (40,)), (Normal(), (40, 1))]
)
def test_what_the_density_draws_passes_its_own_check(likelihood, outputs):
    outputs = torch.zeros(outputs)
    y = likelihood(outputs).sample()
    assert likelihood.check(outputs, y) is None and y.shape == (40,)
    assert likelihood.error(outputs, y).shape == (40,)
    if not isinstance(likelihood, Normal):
        assert 0 < y.float().mean() < y.max()  # and it is not one value for all


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


def test_several_outputs_and_other_dtypes_are_refused():
    with pytest.raises(UsageError, match="one output"):
        Normal().check(torch.zeros(4, 3), torch.zeros(4, 3))
    with pytest.raises(UsageError, match="floating-point"):
        Bernoulli().check(torch.zeros(4), torch.ones(4, dtype=torch.long))


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
