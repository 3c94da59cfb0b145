"""Diagnostics against what they are by definition, on posteriors that are known."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import fitted, set_up
from scipy import stats
from torch import nn

import pyro_bc
from pyro_bc.app.datasets import load_dataset
from pyro_bc.errors import UsageError
from pyro_bc.inspection.diagnostics import (
    ImportanceRatios,
    _smoothed,
    calibration,
    compare_fits,
    error_percent,
    importance_ratios,
    leave_one_out,
    mean_network,
    pareto_k,
    sampled_probabilities,
)


def conjugate(scale=1.0):
    """One weight: y = w x + noise of known precision, whose posterior the guide has, or a narrower or wider one."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    x = torch.randn(30, 1)
    y = 0.7 * x[:, 0] + torch.randn(30)

    def model(x, y=None):
        weight = pyro_bc.StandardNormal().sample("fc", (1, 1))
        with pyro.plate("data", 30, subsample=x, dim=-1):
            pyro.sample("y", pyro.distributions.Normal((x @ weight.T).squeeze(-1), 1.0), obs=y)

    guide = pyro_bc.FactorizedGuide(model)
    guide(x, y)
    precision = 1 + float((x**2).sum())
    with torch.no_grad():
        guide.locs.fc.weight.fill_(float((x[:, 0] * y).sum()) / precision)
        guide.log_variances.fc.weight.fill_(2 * math.log(scale) - math.log(precision))
    return guide, x, y


def test_the_exact_posterior_has_constant_ratios_and_a_narrow_one_a_heavy_tail():
    exact = importance_ratios(*conjugate(), draws=400)
    assert np.ptp(exact.log_ratios) < 1e-3 and exact.k == 0
    narrow = importance_ratios(*conjugate(0.3), draws=2000)
    assert narrow.k > 0.7 and "above 0.7" in narrow.message
    wide = importance_ratios(*conjugate(1.5), draws=2000)
    assert wide.k < 0.5 and "close" in wide.message


def test_a_part_of_the_data_stands_for_all_and_a_tempered_kl_is_undone():
    guide, x, y = conjugate(1.5)
    x, y = x[:10].repeat(3, 1), y[:10].repeat(3)
    whole, part = importance_ratios(guide, x, y, draws=30), importance_ratios(guide, x[:10], y[:10], draws=30)
    assert np.allclose(whole.log_ratios, part.log_ratios, atol=1e-3)
    tempered = importance_ratios(guide, x, y, draws=30, kl_weight=0.5)
    once = importance_ratios(guide, x.repeat(2, 1), y.repeat(2), draws=30)  # 60 points stand for 30 all the same
    assert np.allclose(once.log_ratios, whole.log_ratios, atol=1e-3)
    likelihood = tempered.log_ratios - whole.log_ratios  # one more of it
    draws = []
    torch.manual_seed(0)
    q = guide.posterior()["fc.weight"]
    for _ in range(30):
        w = float(q.sample())
        draws.append(stats.norm.logpdf(y.numpy(), w * x[:, 0].numpy()).sum())
    assert np.allclose(likelihood, draws, rtol=1e-3)


def test_the_shape_of_a_pareto_tail_is_found():
    for shape in (0.3, 0.9):
        ratios = stats.genpareto.rvs(shape, size=40_000, random_state=1)
        assert pareto_k(np.log(ratios)) == pytest.approx(shape, abs=0.15)


@pytest.mark.filterwarnings("error")
def test_points_without_a_tail_have_weights_and_others_stay_as_arviz_has_them():
    noise = np.random.default_rng(0)
    ratios = noise.normal(size=(4, 200))
    # A point that every draw is sure of, to the last bit, with tails that underflow; and one that one draw outweighs.
    ratios[1] = -np.sort(noise.exponential(size=200)) * 1e-17
    ratios[1, :60] = -6e-17
    ratios[2, 7] = 1e4
    weights, k = _smoothed(ratios)
    assert np.isfinite(k[[0, 3]]).all() and k[1] <= 0 and k[2] == np.inf
    assert np.allclose(np.exp(weights).sum(1), 1) and weights[2, 7] == 0 and np.allclose(weights[1], -np.log(200))
    alone, alone_k = _smoothed(ratios[[0, 3]])
    assert np.allclose(weights[[0, 3]], alone) and np.allclose(k[[0, 3]], alone_k)


@pytest.mark.parametrize("options,message", [({"draws": 10}, "25"), ({"kl_weight": 0.0}, "without a KL")])
def test_ratios_that_say_nothing_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        importance_ratios(*conjugate(), **options)


def test_messages_follow_k():
    ratios = np.zeros(100)
    assert "correct what is left" in ImportanceRatios(0.2, ratios).message
    assert "slowly" in ImportanceRatios(0.6, ratios).message
    assert "one of 100 draws outweighs all" in ImportanceRatios(math.inf, ratios).message


def test_calibration_by_hand():
    # Ten predictions of confidence 0.8, six right; five of 0.55, all right.
    probabilities = torch.tensor([[0.8, 0.2]] * 10 + [[0.45, 0.55]] * 5)
    y = torch.tensor([0] * 6 + [1] * 4 + [1] * 5)
    found = calibration(probabilities, y, bins=10)
    assert found.error == pytest.approx((10 * 0.2 + 5 * 0.45) / 15)
    assert found.count[8] == 10 and found.accuracy[8] == pytest.approx(0.6) and np.isnan(found.confidence[0])
    certain = calibration(torch.eye(3), torch.arange(3))
    assert certain.error == 0 and certain.count[-1] == 3


def test_probabilities_that_are_true_are_calibrated():
    torch.manual_seed(0)
    probabilities = torch.randn(50_000, 4).mul(2).softmax(1)
    y = torch.distributions.Categorical(probabilities).sample()
    assert calibration(probabilities, y).error < 0.01
    assert calibration((probabilities**3) / (probabilities**3).sum(1, keepdim=True), y).error > 0.1


@pytest.mark.parametrize(
    "probabilities,y,message",
    [(torch.randn(3, 2), torch.zeros(3), "softmax"), (torch.ones(3, 2) / 2, torch.zeros(4), "shape|are"),
     (torch.full((3, 2), torch.nan), torch.zeros(3), "softmax")],
)  # fmt: skip
def test_calibration_of_what_is_no_probabilities_is_refused(probabilities, y, message):
    with pytest.raises(UsageError, match=message):
        calibration(probabilities, y)


def digits(seed=0, epochs=30, prior=None):
    pyro.set_rng_seed(seed)
    data = load_dataset("digits")
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))
    options = {"epochs": epochs, "learning_rate": 5e-3, "kl_weight": 0.05, "seed": seed}
    return data, *fitted(net, data.train_x, data.train_y, prior, batch=128, **options)[:2]


def test_probabilities_of_drawn_and_of_mean_weights():
    data, model, guide = digits()
    sampled = sampled_probabilities(guide, data.test_x, draws=20)
    assert torch.allclose(sampled.sum(1), torch.ones(len(sampled)), atol=1e-5)
    net = mean_network(model, guide)
    q = guide.posterior()
    expected = q["net.1.scale"].mean * q["net.1.weight"].mean
    assert torch.allclose(net.get_submodule("1").weight, expected)
    # Averaged over few draws or taken at the mean, most answers are the same.
    assert (sampled.argmax(1) == net(data.test_x).argmax(1)).float().mean() > 0.9
    unpruned = pyro_bc.compress(model, guide, thresholds={"1": 1e9, "3": 1e9}, noise_ratio=1e-6).network()
    assert torch.allclose(unpruned(data.test_x), net(data.test_x), atol=2e-2)


def test_leave_one_out_is_arvizs():
    import arviz as az

    data, _, guide = digits()
    guide.kl_weight = 1.0
    exported = pyro_bc.to_inference_data(guide, data.train_x[:50], data.train_y[:50], draws=100)
    found = leave_one_out(exported)
    expected = az.loo(exported, reff=1.0, pointwise=True)
    elpd = expected.elpd_loo if hasattr(expected, "elpd_loo") else expected.elpd  # ArviZ before 1, and since
    assert found.elpd == pytest.approx(elpd) and found.points == 50
    assert found.unreliable == int((expected.pareto_k > 0.7).sum())
    other = pyro_bc.to_inference_data(
        digits(prior=pyro_bc.GroupHorseshoe())[2], data.train_x[:50], data.train_y[:50], draws=100
    )
    table = az.compare({"normal-Jeffreys": exported, "horseshoe": other})
    assert set(table.index) == {"normal-Jeffreys", "horseshoe"}


class KnownNoise(pyro_bc.likelihoods.Normal):
    """A regression with noise of deviation 1."""

    def __call__(self, outputs):
        return dist.Normal(outputs.squeeze(-1), 1.0)


@pytest.mark.parametrize("kl_weight", [1.0, 0.2])
def test_leaving_a_point_out_knows_the_weight_of_the_kl(kl_weight):
    """Against the exact posteriors without each point, of a linear regression with orthogonal inputs."""
    n, d = 120, 4
    x = torch.linalg.qr(torch.randn(n, d, generator=torch.Generator().manual_seed(1)))[0] * n**0.5
    y = x[:, 0] + torch.randn(n, generator=torch.Generator().manual_seed(2))
    net = nn.Sequential(nn.Linear(d, 1, bias=False))
    model, guide = set_up(net, x, pyro_bc.StandardNormal(), y, num_data=n)
    model.likelihood = KnownNoise()

    def exact(keep):
        precision = torch.eye(d) + x[keep].T @ x[keep] / kl_weight
        return torch.linalg.solve(precision, x[keep].T @ y[keep] / kl_weight), torch.linalg.inv(precision)

    mean, covariance = exact(torch.arange(n) >= 0)
    with torch.no_grad():
        loc, log_variance = guide.parameters_of("net.0.weight")
        loc.copy_(mean), log_variance.copy_(covariance.diagonal().log())
    guide.kl_weight = kl_weight
    found = leave_one_out(pyro_bc.to_inference_data(guide, x, y, draws=4000))
    expected = 0.0
    for i in range(n):
        mean, covariance = exact(torch.arange(n) != i)
        spread = (1 + x[i] @ covariance @ x[i]).sqrt()
        expected += dist.Normal(x[i] @ mean, spread).log_prob(y[i]).item()
    assert found.elpd == pytest.approx(expected, abs=0.25)


def test_fits_that_agree_have_an_r_hat_of_one():
    guides = [digits(seed, epochs=3)[2] for seed in (0, 1)]
    same = compare_fits([guides[0], guides[0]])
    assert set(same) == {"net.1", "net.3"} and same["net.1"].shape == (64,)
    assert np.nanmax(np.abs(same["net.1"] - 1)) < 0.1
    other = compare_fits(guides)
    assert np.nanmax(other["net.1"]) > 1.1
    assert compare_fits([digits(prior=pyro_bc.LogUniform(), epochs=1)[2]] * 2) == {}


def test_one_fit_agrees_with_nothing():
    with pytest.raises(UsageError, match="two fits"):
        compare_fits([digits(epochs=1)[2]])


def test_error_percent_counts_every_wrong_answer_once():
    x = torch.eye(4).repeat(30, 1)
    y = torch.arange(4).repeat(30)
    y[:7] = (y[:7] + 1) % 4
    for batch_size in (7, 60, 1000):
        assert error_percent(nn.Identity(), x, y, batch_size) == 100 * 7 / 120
