"""A network that ends in what its likelihood applies is said to be one as soon as its guide is set up."""

import warnings

import pytest
import torch
from torch import nn

import pyro_bc
from pyro_bc.model.likelihoods import Bernoulli, Categorical, Normal, Poisson

X = torch.randn(8, 3)


@pytest.mark.parametrize(
    ("end", "likelihood", "takes"),
    [
        (nn.Softmax(-1), Categorical(), "logits"),
        (nn.Sigmoid(), Bernoulli(), "logits"),
        (nn.Softplus(), Poisson(), "logarithms of rates"),
        (nn.LogSoftmax(-1), Categorical(), None),
        (nn.Sigmoid(), Normal(), None),
        (nn.ReLU(), Categorical(), None),
    ],
)
def test_an_activation_that_comes_twice_is_said(end, likelihood, takes):
    is_class = isinstance(likelihood, Categorical)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3 if is_class else 1), end)
    model = pyro_bc.BayesianNetwork(net, num_data=8, likelihood=likelihood)
    y = torch.arange(8) % 2 if is_class else torch.ones(8)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        pyro_bc.FactorizedGuide(model)(X, y)
    found = [str(own.message) for own in said if "the network ends in" in str(own.message)]
    assert len(found) == (takes is not None)
    assert takes is None or f"takes {takes}, and applies it itself" in found[0]
