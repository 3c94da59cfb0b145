"""fit trains any Pyro model of inputs and targets, with the size of its data from its plates."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.nn import PyroModule
from torch import nn

import pyro_bc
from pyro_bc.errors import CheckpointError, UsageError

N, PRIOR = 120, pyro_bc.GroupHorseshoe(0.1)


def data():
    x = torch.randn(N, 5, generator=torch.Generator().manual_seed(1))
    return x, x[:, 0] - 2 * x[:, 1]


def by_hand(x, y=None):
    weight = PRIOR.sample("fc", (1, 5))
    noise = pyro.sample("noise", dist.HalfCauchy(1.0))
    with pyro.plate("data", N, subsample=x):
        pyro.sample("y", dist.Normal(F.linear(x, weight).squeeze(-1), noise), obs=y)


class AsModule(PyroModule):
    """The same with a parameter of its own, which is trained as well."""

    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(3.0))

    def forward(self, x, y=None):
        weight = PRIOR.sample("fc", (1, 5))
        with pyro.plate("data", N, subsample=x):
            pyro.sample("y", dist.Normal(F.linear(x, weight).squeeze(-1) + self.offset, 0.3), obs=y)


def fit(model, guide, epochs=150, **options):
    loader = pyro_bc.data.Batches(*data(), 40)
    return pyro_bc.fit(model, guide, loader, epochs=epochs, progress=False, learning_rate=2e-2, **options).history


@pytest.mark.parametrize("model", [by_hand, AsModule()], ids=["function", "module"])
def test_a_model_written_by_hand_is_trained_pruned_and_exported(model, tmp_path):
    guide = pyro_bc.FactorizedGuide(model)
    history = fit(model, guide, log_learning_rate=3e-2)
    assert history[-1].loss < history[0].loss - 0.5 and math.isnan(history[-1].error)
    weight = pyro_bc.summarize(guide)["fc"].weight_mean[0]
    assert torch.allclose(weight, torch.tensor([1.0, -2.0, 0.0, 0.0, 0.0]), atol=0.15)
    if model is not by_hand:
        assert abs(float(model.offset)) < 0.15
    net = nn.Sequential()
    net.add_module("fc", nn.Linear(5, 1, bias=False))
    if model is by_hand:
        small = pyro_bc.compress(model, guide, net=net)
        assert small.architecture == (2,)
    data_tree = pyro_bc.to_inference_data(guide, *data(), draws=5, history=history)
    assert data_tree.posterior.attrs["kl_weight"] == 1.0 and np.isnan(data_tree.sample_stats["error"].values).all()


def test_the_bound_is_the_one_of_pyros_own_loop():
    guide = pyro_bc.FactorizedGuide(by_hand)
    (record,) = fit(by_hand, guide, epochs=1, kl_warmup_epochs=0, kl_weight=1.0)
    x, y = data()
    svi = SVI(by_hand, guide, pyro.optim.Adam({"lr": 0.0}), TraceMeanField_ELBO())
    with pyro_bc.local_reparameterization():
        losses = [svi.evaluate_loss(x, y) / N for _ in range(50)]
    assert record.loss > np.mean(losses) - 1  # after three steps it is about where it was
    assert record.kl == pytest.approx(np.mean(losses) - record.negative_log_likelihood, rel=0.5)


def test_it_resumes(tmp_path):
    class Stop(Exception):
        pass

    def stop(record):
        if record.epoch == 2:
            raise Stop

    whole = AsModule()
    expected = fit(whole, pyro_bc.FactorizedGuide(whole), epochs=4)
    pyro.clear_param_store()
    with pytest.raises(Stop):
        model = AsModule()
        fit(model, pyro_bc.FactorizedGuide(model), epochs=4, checkpoint=tmp_path / "c", after_epoch=stop)
    pyro.clear_param_store()
    model = AsModule()
    with pytest.raises(CheckpointError):
        fit(model, pyro_bc.FactorizedGuide(model), epochs=4, checkpoint=tmp_path / "c")
    pyro.clear_param_store()
    found = fit(model, pyro_bc.FactorizedGuide(model), epochs=4, checkpoint=tmp_path / "c", resume=True)
    assert [r.loss for r in found] == [r.loss for r in expected] and torch.equal(model.offset, whole.offset)


def with_parameter(x, y=None):
    offset = pyro.param("offset", torch.tensor(0.0))
    by_hand(x, None if y is None else y + offset)


def local_latents(x, y=None):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def nothing_observed(x, y=None):
    PRIOR.sample("fc", (1, 5))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (with_parameter, "the parameter 'offset' is in no module"),
        (local_latents, "site 'z' is in a plate"),
        (nothing_observed, "observes nothing"),
        (lambda x: None, "cannot be run|takes 1 positional argument"),
    ],
)
def test_what_cannot_be_trained_is_said_before_any_step(model, message):
    with pytest.raises(UsageError, match=message):
        fit(model, pyro_bc.FactorizedGuide(model))
