"""Log-likelihoods under drawn weights, as exact as float64 is, from models left as they were."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_bc
from pyro_bc.posterior.guides import posterior_of
from pyro_bc.posterior.predictive import observed_sites, predict


class Fixed(nn.Module):
    """Logits that do not depend on the layer, as far as its weights are 0."""

    def __init__(self, logits):
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.layer = nn.Linear(1, len(logits))
        self.logits = torch.tensor(logits)

    def forward(self, x):
        return self.layer(self.norm(x)) + self.logits


def fixed(logits, likelihood=None):
    pyro.clear_param_store()
    model = pyro_bc.BayesianNetwork(Fixed(logits), pyro_bc.StandardNormal(), num_data=4, likelihood=likelihood)
    guide = pyro_bc.FactorizedGuide(model)
    x = torch.rand(4, 1)
    y = torch.zeros(4, dtype=torch.long) if likelihood is None else torch.tensor([0.0, 1.0, 1.0, 0.0])
    guide(x, y)
    return model, guide, {name: torch.zeros_like(q.mean) for name, q in guide.posterior().items()}, x, y


@pytest.mark.parametrize("margin", [0.5, 20.0, 60.0])
def test_a_class_that_is_nearly_certain_has_not_quite_probability_one(margin):
    model, _, draw, x, y = fixed([margin, 0.0, 0.0])
    found = predict(model, draw, (x, y))["log_likelihood", "y"]
    expected = -math.log1p(2 * math.exp(-margin))
    assert found.dtype == torch.float64 and found.tolist() == pytest.approx([expected] * 4, rel=1e-6)
    unlikely = predict(model, draw, (x, torch.ones(4, dtype=torch.long)))["log_likelihood", "y"]
    assert unlikely.tolist() == pytest.approx([expected - margin] * 4, rel=1e-5)


def test_yes_and_no():
    model, _, draw, x, y = fixed([30.0], pyro_bc.likelihoods.Bernoulli())
    found = predict(model, draw, (x, y))
    assert found["log_likelihood", "y"].tolist() == pytest.approx([-30.0, *[-math.exp(-30.0)] * 2, -30.0], rel=1e-6)
    assert found["posterior_predictive", "y"].tolist() == [1.0] * 4


def test_the_models_mode_and_batch_statistics_are_left_alone():
    model, _, draw, x, y = fixed([1.0, 0.0])
    model.train()
    before = model.net.norm.running_mean.clone()
    assert list(observed_sites(model, draw, x, y)) == ["y"]
    assert model.training and model.net.norm.training and torch.equal(model.net.norm.running_mean, before)


def test_observed_sites_of_a_model_by_hand():
    def model(x, y=None):
        weight = pyro_bc.StandardNormal().sample("fc", (1, 2))
        with pyro.plate("data", 3):
            pyro.sample("first", dist.Normal((x @ weight.T).squeeze(-1), 1.0), obs=y)
            pyro.sample("second", dist.Normal(0.0, 1.0), obs=2 * y)

    x, y = torch.rand(3, 2), torch.rand(3)
    guide = pyro_bc.FactorizedGuide(model)
    guide(x, y)
    values = observed_sites(model, posterior_of(guide).centre(), x, y)
    assert torch.equal(values["first"]["value"], y) and torch.equal(values["second"]["value"], 2 * y)
