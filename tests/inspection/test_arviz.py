"""What ArviZ gets is the posterior: shapes, names, moments, log-likelihoods, in memory and from the file."""

import json
import math
import os
import subprocess

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import fitted as fitted_net
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from scipy import stats
from torch import nn

import pyro_bc
from pyro_bc.errors import UsageError
from pyro_bc.inspection.arviz import layer_posteriors

PRIORS = [pyro_bc.GroupNormalJeffreys(), pyro_bc.GroupHorseshoe(), pyro_bc.LogUniform(), pyro_bc.StandardNormal()]


def problem(n=60):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 1, 6, 6, generator=generator)
    return x, (x.mean((1, 2, 3)) > 0).long()


def fitted(prior=None, epochs=3, log_variance=-4.0):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    return fitted_net(net, *problem(), prior, batch=30, epochs=epochs, log_variance=log_variance)[1:]


def test_several_guides_are_one_posterior_and_a_part_of_them_predicts_nothing():
    def model(x, y=None):
        weight = pyro_bc.GroupHorseshoe(0.1).sample("fc1", (1, 4))
        noise = pyro.sample("noise", dist.Beta(1.0, 1.0))
        with pyro.plate("d", len(x)):
            pyro.sample("y", dist.Normal(nn.functional.linear(x, weight).squeeze(-1), noise), obs=y)

    x = torch.randn(30, 4)
    guide = AutoGuideList(model)
    guide.append(pyro_bc.FactorizedGuide(pyro.poutine.block(model, hide=["noise"])))
    guide.append(AutoNormal(pyro.poutine.block(model, expose=["noise"])))
    guide(x, x[:, 0])
    for part in (guide, guide[0]):
        assert "fc1.scale" in pyro_bc.to_inference_data(part, draws=5).posterior
    with pytest.raises(UsageError, match="one part of several"):
        pyro_bc.to_inference_data(guide[0], x, x[:, 0], draws=5)
    data = pyro_bc.to_inference_data(guide, x, x[:, 0], draws=5)
    assert data.log_likelihood["y"].shape == (1, 5, 30) and data.posterior["noise"].shape == (1, 5)
    assert bool(((data.posterior["noise"] > 0) & (data.posterior["noise"] < 1)).all())
    net = nn.Sequential()
    net.add_module("fc1", nn.Linear(4, 1, bias=False))
    assert pyro_bc.compress(model, guide, net=net, thresholds={"fc1": 1e3}).architecture == (4,)
    with pytest.raises(UsageError, match="no layers"):
        pyro_bc.compress(model, guide[1], net=net)
    with pytest.raises(UsageError, match="fit takes a FactorizedGuide"):
        pyro_bc.fit(model, guide[1], [(x, x[:, 0])], epochs=1)
    with pytest.raises(UsageError, match="another model"):
        pyro_bc.fit(model, guide[0], [(x, x[:, 0])], epochs=1)


def test_models_with_a_plate_of_all_points_deterministic_sites_and_factors_are_exported():
    x = torch.randn(40, 3)
    y = (x[:, 0] > 0).float()
    prior = pyro_bc.GroupHorseshoe(0.1)

    def model(x, y=None):
        weight = prior.sample("fc1", (1, 3))
        pyro.factor("penalty", -weight.abs().sum())
        logits = pyro.deterministic("logits", nn.functional.linear(x, weight).squeeze(-1))
        with pyro.plate("d", 40):
            pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)

    guide = pyro_bc.FactorizedGuide(model)
    guide(x, y)
    data = pyro_bc.to_inference_data(guide, x, y, draws=20)
    assert list(data.log_likelihood) == list(data.observed_data) == ["y"]
    assert np.allclose(data.observed_data["y"], y)
    assert data.log_likelihood["y"].shape == (1, 20, 40) and bool((data.log_likelihood["y"] < 0).all())


def test_models_of_other_arguments_than_two_are_exported():
    prior = pyro_bc.GroupHorseshoe(0.1)

    def grouped(x, group, y=None):
        weight = prior.sample("fc1", (1, 3))
        with pyro.plate("d", len(x)):
            pyro.sample("y", dist.Normal(nn.functional.linear(x, weight).squeeze(-1) + group, 0.1), obs=y)

    def unsupervised(x):
        weight = prior.sample("fc1", (1, 3))
        with pyro.plate("d", len(x)):
            pyro.sample("x", dist.Normal(x.mean(-1) * weight.sum(), 0.1), obs=x[:, 0])

    x = torch.randn(20, 3)
    for model, args in ((grouped, (x, torch.arange(20.0), x[:, 0])), (unsupervised, (x,))):
        guide = pyro_bc.FactorizedGuide(model)
        guide(*args)
        data = pyro_bc.to_inference_data(guide, *args, draws=4, weights=True)
        (observed,) = data.log_likelihood
        weight = torch.tensor(data.posterior["fc1.weight"].values[0, 3])
        draw = {
            site: torch.tensor(data.posterior[site].values[0, 3]) for site in guide.families if "weight" not in site
        }
        draw["fc1.weight"] = torch.tensor(data.posterior["fc1.unscaled_weight"].values[0, 3])
        trace = pyro.poutine.trace(pyro.poutine.condition(model, draw)).get_trace(*args)
        expected = trace.nodes[observed]["fn"].log_prob(trace.nodes[observed]["value"])
        assert np.allclose(data.log_likelihood[observed].values[0, 3], expected, atol=1e-4)
        scale = torch.tensor(data.posterior["fc1.scale"].values[0, 3])
        assert torch.allclose(weight, scale * draw["fc1.weight"], rtol=1e-5)
        assert "fc1.scale" in pyro_bc.to_inference_data(guide, draws=2).posterior


def test_masks_several_observed_sites_and_event_dimensions_keep_their_shapes():
    x = torch.randn(12, 3)
    y = torch.stack([x[:, 0], x[:, 1]], 1)
    mask = torch.arange(12) % 3 > 0

    def model(x, y=None):
        weight = pyro_bc.StandardNormal().sample("fc1", (2, 3))
        extra = pyro.sample("fc1.offset", dist.Normal(torch.zeros(2), 1.0).to_event(1))  # no role of a layer
        with pyro.plate("d", 12):
            with pyro.poutine.mask(mask=mask):
                mean = pyro.deterministic("mean", nn.functional.linear(x, weight) + extra, event_dim=1)
                pyro.sample("y", dist.Normal(mean, 0.5).to_event(1), obs=y)
            pyro.sample("sign", dist.Bernoulli(logits=x[:, 2]), obs=(x[:, 2] > 0).float())
        with pyro.plate("others", 5):
            pyro.sample("z", dist.Normal(extra.sum(), 1.0), obs=torch.arange(5.0))

    guide = pyro_bc.FactorizedGuide(model)
    guide(x, y)
    data = pyro_bc.to_inference_data(guide, x, y, draws=6, weights=True)
    assert {name: data.log_likelihood[name].dims[2:] for name in data.log_likelihood} == {
        "y": ("point",), "sign": ("point",), "z": ("z.0",),
    }  # fmt: skip
    assert data.posterior["mean"].dims[2:] == ("point", "mean.1") and data.posterior["fc1.offset"].shape == (1, 6, 2)
    expected = stats.norm(data.posterior["mean"].values[0], 0.5).logpdf(y.numpy()).sum(-1) * mask.numpy()
    assert np.allclose(data.log_likelihood["y"].values[0], expected, atol=1e-4)
    assert np.allclose(data.observed_data["y"], y) and data.observed_data["y"].dims == ("point", "y.1")
    assert data.posterior_predictive["z"].shape == (1, 6, 5)


def test_targets_of_several_entries_have_dimensions_of_their_own():
    x, _ = problem(12)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    y = x.flatten(1)[:, :3]
    model = pyro_bc.BayesianNetwork(net, num_data=12, likelihood=pyro_bc.likelihoods.Normal())
    guide = pyro_bc.FactorizedGuide(model)
    pyro_bc.fit(model, guide, pyro_bc.data.Batches(x, y, 6), epochs=2, progress=False)
    data = pyro_bc.to_inference_data(guide, x, y, draws=7)
    assert data.log_likelihood["y"].shape == (1, 7, 12)
    assert data.posterior_predictive["y"].shape == (1, 7, 12, 3)
    assert np.allclose(data.observed_data["y"], y) and data.posterior["precision"].shape == (1, 7, 3)


@pytest.mark.parametrize("prior", PRIORS, ids=lambda prior: type(prior).__name__)
def test_draws_have_names_dims_and_the_moments_of_the_fit(prior):
    guide, history = fitted(prior)
    data = pyro_bc.to_inference_data(guide, draws=4000, weights=True, history=history)
    q = guide.posterior()
    assert set(q) <= set(data.posterior.data_vars)
    layers = pyro_bc.summarize(guide)
    for name, layer in layers.items():  # a weight in the posterior is the weight, a bias the bias
        drawn = {"weight": data.posterior[f"{name}.weight"], "bias": data.posterior[f"{name}.bias"]}
        for role, mean, variance in (
            ("weight", layer.weight_mean, layer.weight_variance), ("bias", layer.bias_mean, layer.bias_variance),
        ):  # fmt: skip
            error = 6 * variance.sqrt().numpy() / math.sqrt(4000)
            assert np.all(np.abs(drawn[role].mean(("chain", "draw")).values - mean.numpy()) < error)
    for name, site in q.items():
        layer, _, role = name.rpartition(".")
        if role == "bias":
            continue
        unscaled = role == "weight" and len(guide.layers[layer].prior.roles) > 1
        drawn = data.posterior[f"{layer}.unscaled_weight" if unscaled else name]
        assert drawn.shape == (1, 4000, *site.mean.shape)
        spread = site.stddev.numpy()
        assert np.all(np.abs(drawn.mean(("chain", "draw")).values - site.mean.numpy()) < 6 * spread / math.sqrt(4000))
        if isinstance(site, dist.Normal):
            assert np.allclose(drawn.std(("chain", "draw")).values, spread, rtol=0.15)
    assert data.posterior["net.0.weight"].dims[2:] == ("net.0.output", "net.0.input", "net.0.row", "net.0.column")
    assert data.posterior["net.3.bias"].dims[2:] == ("net.3.output",)
    for name, layer in layers.items():
        assert np.allclose(data.constant_data[f"{name}.weight_mean"], layer.weight_mean)
        assert np.allclose(data.constant_data[f"{name}.weight_variance"], layer.weight_variance)
        if layer.statistic is not None and not layer.per_weight:
            assert data.posterior[f"{name}.scale"].dims[2] == data.constant_data[f"{name}.statistic"].dims[0]
    assert data.sample_stats["loss"].values.tolist() == [record.loss for record in history]
    assert data.sample_stats["kl_by_layer"].dims == ("epoch", "site")
    assert type(prior).__name__ in data.posterior.attrs["prior"] and data.posterior.attrs["num_data"] == 60


def test_the_horseshoes_scale_is_the_product_of_its_factors():
    guide, _ = fitted(pyro_bc.GroupHorseshoe())
    posterior = pyro_bc.to_inference_data(guide, draws=50).posterior
    product = 1.0
    for role in ("global_a", "global_b", "local_a", "local_b"):
        values = posterior[f"net.0.{role}"].values.astype(np.float64)
        product = product * np.sqrt(values if values.ndim == 3 else values[:, :, None])
    assert np.allclose(posterior["net.0.scale"].values, product, rtol=1e-4)
    assert "net.0.weight" not in posterior


def test_the_prior_is_there_where_it_is_proper():
    guide, _ = fitted(pyro_bc.GroupHorseshoe(global_scale=0.5))
    data = pyro_bc.to_inference_data(guide, draws=4000, weights=True)
    assert stats.kstest(data.prior["net.3.unscaled_weight"].values[0, :, 0, 0], "norm").pvalue > 1e-3
    product = data.prior["net.3.unscaled_weight"] * data.prior["net.3.scale"]
    assert np.allclose(data.prior["net.3.weight"].values, product.values, rtol=1e-4)
    # The scale is the product of two half-Cauchy variables, 0.5 |C1| |C2|, whose logarithm has mean log 0.5.
    assert np.log(data.prior["net.3.scale"].values).mean() == pytest.approx(math.log(0.5), abs=0.15)
    data = pyro_bc.to_inference_data(fitted(pyro_bc.GroupNormalJeffreys())[0], draws=5)
    assert set(data.prior.data_vars) == {"net.3.bias"}  # a filter's bias is under its scale


def test_log_likelihoods_are_those_of_the_drawn_weights():
    guide, _ = fitted(pyro_bc.GroupNormalJeffreys())
    x, y = problem()
    data = pyro_bc.to_inference_data(guide, x, y, draws=20, weights=True)
    assert data.log_likelihood["y"].dims == ("chain", "draw", "point")
    for draw in (0, 19):
        values = {name: torch.tensor(data.posterior[name].values[0, draw]) for name in guide.posterior()}
        hidden = nn.functional.conv2d(x, values["net.0.weight"], values["net.0.bias"]).relu().flatten(1)
        logits = nn.functional.linear(hidden, values["net.3.weight"], values["net.3.bias"])
        expected = -nn.functional.cross_entropy(logits, y, reduction="none")
        assert np.allclose(data.log_likelihood["y"].values[0, draw], expected, atol=1e-4)
    assert data.observed_data["y"].values.tolist() == y.tolist()
    predicted = data.posterior_predictive["y"].values
    probability = np.exp(data.log_likelihood["y"].values.astype(np.float64)).mean()
    assert (predicted == y.numpy()).mean() == pytest.approx(probability, abs=0.1)


def test_the_file_holds_what_memory_does_and_arviz_reads_it(tmp_path, monkeypatch):
    guide, history = fitted(pyro_bc.GroupHorseshoe())
    x, y = problem()
    monkeypatch.setattr(pyro_bc.inspection.export, "BLOCK_NUMBERS", 1500)  # several blocks
    pyro_bc.save_inference_data(tmp_path / "posterior.nc", guide, x, y, draws=40, history=history, weights=True)
    expected = pyro_bc.to_inference_data(guide, x, y, draws=40, history=history, weights=True)
    found = az.from_netcdf(tmp_path / "posterior.nc")
    assert [path.name for path in tmp_path.iterdir()] == ["posterior.nc"]
    for group in ("posterior", "prior", "log_likelihood", "posterior_predictive", "prior_predictive", "observed_data",
                  "constant_data", "sample_stats"):  # fmt: skip
        assert set(found[group].data_vars) == set(expected[group].data_vars)
        for name in expected[group].data_vars:
            assert found[group][name].dims == expected[group][name].dims
            assert np.array_equal(found[group][name].values, expected[group][name].values)
    for name, layer in pyro_bc.summarize(guide).items():
        again = layer_posteriors(found)[name]
        assert torch.equal(again.weight_variance, layer.weight_variance)
        assert torch.equal(again.statistic, layer.statistic) and type(again.prior) is type(layer.prior)


def test_draws_are_the_same_for_a_seed_and_leave_the_generator_alone():
    guide, _ = fitted()
    torch.manual_seed(3)
    first = pyro_bc.to_inference_data(guide, draws=7).posterior["net.0.scale"].values
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), drawn)
    assert np.array_equal(pyro_bc.to_inference_data(guide, draws=7).posterior["net.0.scale"].values, first)
    assert not np.array_equal(pyro_bc.to_inference_data(guide, draws=7, seed=1).posterior["net.0.scale"].values, first)


def test_layers_can_be_chosen():
    data = pyro_bc.to_inference_data(fitted()[0], draws=3, layers=["net.3"])
    assert all(name.startswith("net.3.") for name in data.posterior.data_vars)
    assert all(name.startswith("net.3.") for name in data.constant_data.data_vars)


@pytest.mark.parametrize(
    "options,message",
    [({"draws": 0}, "draws"), ({"layers": ["net.1"]}, "no layer 'net.1'"), ({"x": torch.ones(2, 1, 6, 6)}, "both"),
     ({"x": torch.ones(2, 1, 6, 6), "y": torch.zeros(3)}, "one length")],
)  # fmt: skip
def test_bad_arguments_are_named_and_nothing_is_written(tmp_path, options, message):
    guide, _ = fitted()
    with pytest.raises(UsageError, match=message):
        pyro_bc.save_inference_data(tmp_path / "posterior.nc", guide, **options)
    assert not list(tmp_path.iterdir())


def test_a_model_written_by_hand_with_a_noise_site():
    def model(x, y=None):
        weight = pyro_bc.GroupHorseshoe().sample("fc", (1, 3))
        precision = pyro.sample("precision", dist.Gamma(torch.tensor(1.0), torch.tensor(1.0)))
        with pyro.plate("data", 40, subsample=x, dim=-1):
            pyro.sample("target", dist.Normal((x @ weight.T).squeeze(-1), precision.rsqrt()), obs=y)

    pyro.clear_param_store()
    torch.manual_seed(0)
    x = torch.randn(40, 3)
    y = x[:, 0] + 0.1 * torch.randn(40)
    guide = pyro_bc.FactorizedGuide(model)
    guide(x, y)
    data = pyro_bc.to_inference_data(guide, x, y, draws=6)
    assert data.posterior["precision"].dims == ("chain", "draw")
    assert data.log_likelihood["target"].shape == (1, 6, 40)


VERSION_1 = os.environ.get("PYRO_BC_ARVIZ_1", "")


@pytest.mark.skipif(not VERSION_1, reason="PYRO_BC_ARVIZ_1 names no Python with ArviZ 1, as .ci/run's does")
def test_arviz_1_opens_and_plots_the_file(tmp_path):
    guide, history = fitted(pyro_bc.GroupHorseshoe())
    pyro_bc.save_inference_data(tmp_path / "posterior.nc", guide, *problem(), draws=40, history=history)
    code = """
import json, sys, matplotlib
matplotlib.use("Agg")
import arviz as az
data = az.from_netcdf("posterior.nc")
names = ["net.3.scale"]
az.plot_forest(data, var_names=names).savefig("forest.png")
az.plot_dist(data, var_names=names, coords={"net.3.input": [0, 1]}).savefig("dist.png")
az.plot_ppc_dist(data, num_samples=5).savefig("ppc.png")
print(json.dumps([az.__version__, float(data.posterior["net.3.scale"].mean())]))
"""
    done = subprocess.run([VERSION_1, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found, mean = json.loads(done.stdout.splitlines()[-1])
    expected = float(az.from_netcdf(tmp_path / "posterior.nc").posterior["net.3.scale"].mean())
    assert found.startswith("1.") and mean == pytest.approx(expected, rel=1e-6)
    assert all((tmp_path / f"{name}.png").stat().st_size > 5000 for name in ("forest", "dist", "ppc"))
