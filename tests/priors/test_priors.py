"""Moments and statistics against brute-force weights and scipy; sites as documented; layers found by their names."""

import json
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from scipy import optimize, stats

import pyro_bc
from pyro_bc import GroupHorseshoe, GroupNormalJeffreys, LearnedCode, LogUniform, StandardNormal
from pyro_bc.errors import UsageError
from pyro_bc.graph.layer_types import LAYER_TYPES
from pyro_bc.inspection.arviz import layer_posteriors
from pyro_bc.priors.base import (
    _KNOWN,
    ROLES,
    Prior,
    base_distribution,
    bias_prior,
    described_prior,
    find_layers,
    group_dim,
    recognised_prior,
)
from pyro_bc.priors.normal_jeffreys import CONSTANT, NormalJeffreys

PRIORS = [
    GroupNormalJeffreys(), GroupHorseshoe(0.02), LogUniform(), StandardNormal(),
    GroupNormalJeffreys(weights=LogUniform()), GroupHorseshoe(0.02, weights=LogUniform()),
]  # fmt: skip
SHAPES = [(3, 4), (3, 2, 5), (3, 2, 2, 2)]
FACTORS = ("local_a", "local_b", "global_a", "global_b")


def role_shapes(prior: Prior, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The documented sites, written down by hand: groups are inputs of a matrix, filters of a kernel."""
    groups = (shape[1],) if len(shape) == 2 else (shape[0],)
    if isinstance(prior, GroupNormalJeffreys):
        return {"scale": groups, "weight": shape}
    if isinstance(prior, GroupHorseshoe):
        return {"local_a": groups, "local_b": groups, "global_a": (), "global_b": (), "weight": shape}
    return {"weight": shape}


def random_guide(prior: Prior, shape: tuple[int, ...]) -> dict[str, dist.Distribution]:
    """A variational distribution of every role with wide, distinct parameters."""
    q = {}
    for role, role_shape in role_shapes(prior, shape).items():
        family = dist.LogNormal if role in FACTORS else dist.Normal
        q[role] = family(0.5 * torch.randn(role_shape), 0.1 + 0.3 * torch.rand(role_shape))
    return q


def combine(prior: Prior, values: dict[str, np.ndarray], weight_dim: int) -> np.ndarray:
    """w = z w̃ with numpy, for values that carry one leading dimension of draws."""
    weight = values["weight"]
    if isinstance(prior, GroupNormalJeffreys):
        z = values["scale"]
    elif isinstance(prior, GroupHorseshoe):
        layer = np.sqrt(values["global_a"] * values["global_b"])
        z = layer[:, None] * np.sqrt(values["local_a"] * values["local_b"])
    else:
        return weight
    return weight * (z[:, None, :] if weight_dim == 2 else z.reshape(*z.shape, *[1] * (weight_dim - 1)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_moments_are_those_of_brute_force_draws_of_the_weight(prior, shape):
    n = 60_000
    q = random_guide(prior, shape)
    draws = combine(prior, {role: fn.sample((n,)).double().numpy() for role, fn in q.items()}, len(shape))
    mean, variance = prior.moments(q)
    assert mean.shape == variance.shape == shape
    centred = draws - draws.mean(0)
    second, fourth = (centred**2).mean(0), (centred**4).mean(0)
    mean_error = np.abs(mean.numpy() - draws.mean(0)) / np.sqrt(second / n)
    variance_error = np.abs(variance.numpy() - second) / np.sqrt((fourth - second**2) / n)
    assert mean_error.max() < 5 and variance_error.max() < 5  # in standard errors


@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_moments_do_not_change_with_event_dimensions(prior):
    q = random_guide(prior, (3, 4))
    wrapped = {role: fn.to_event(fn.loc.dim()) for role, fn in q.items()}
    for plain, event in zip(prior.moments(q), prior.moments(wrapped), strict=True):
        assert torch.equal(plain, event)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_sample_makes_the_documented_sites_and_multiplies_them(prior, shape):
    values = {role: fn.sample() for role, fn in random_guide(prior, shape).items()}
    data = {f"fc1.{role}": value for role, value in values.items()}  # two of the priors cannot be sampled
    model = poutine.condition(prior.sample, data=data)
    trace = poutine.trace(model).get_trace("fc1", shape)
    sites = {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}
    expected = role_shapes(prior, shape)
    assert list(sites) == [f"fc1.{role}" for role in prior.roles] == [f"fc1.{role}" for role in expected]
    for role, role_shape in expected.items():
        fn = sites[f"fc1.{role}"]["fn"]
        assert fn.batch_shape == () and fn.event_shape == role_shape, role
    by_hand = combine(prior, {role: value[None].numpy() for role, value in values.items()}, len(shape))[0]
    np.testing.assert_allclose(trace.nodes["_RETURN"]["value"].numpy(), by_hand, rtol=1e-5)
    assert set(prior.roles) <= ROLES


@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_every_site_has_the_density_of_the_paper(prior):
    value = torch.tensor([0.3, 1.7, 2.5, 0.9])
    x = value.double().numpy()
    inverse_gamma = stats.invgamma(0.5).logpdf(x).sum()
    log_uniform = isinstance(getattr(prior, "weights", prior), LogUniform)
    expected = {
        "scale": -(np.log(x) + CONSTANT).sum(),
        "local_a": stats.gamma(0.5, scale=1.0).logpdf(x).sum(),
        "local_b": inverse_gamma,
        "global_a": stats.gamma(0.5, scale=0.02**2).logpdf(x[0]),
        "global_b": stats.invgamma(0.5).logpdf(x[0]),
        "weight": -(np.log(x) + CONSTANT).sum() if log_uniform else stats.norm.logpdf(x).sum(),
    }
    for role, fn in prior.sites((1, 4)).items():
        at = value.reshape(1, 4) if role == "weight" else value if role in ("scale", "local_a", "local_b") else value[0]
        assert fn.log_prob(at).item() == pytest.approx(expected[role], rel=1e-5), role
    assert bias_prior(4).log_prob(value).item() == pytest.approx(stats.norm.logpdf(x).sum(), rel=1e-5)


@pytest.mark.parametrize("global_scale", [1e-5, 0.02, 3.0])
def test_horseshoe_scales_are_half_cauchy_with_the_given_layer_scale(global_scale):
    n = 20_000
    fns = {role: fn.expand((n,)) for role, fn in GroupHorseshoe(global_scale).sites((2, 3)).items()}
    draws = {role: fn.sample().double().numpy() for role, fn in fns.items()}
    layer = np.sqrt(draws["global_a"] * draws["global_b"])
    assert stats.kstest(layer, stats.halfcauchy(scale=global_scale).cdf).pvalue > 1e-3
    local = np.sqrt(draws["local_a"] * draws["local_b"])
    for group in range(3):
        assert stats.kstest(local[:, group], stats.halfcauchy.cdf).pvalue > 1e-3


def test_horseshoe_scale_posterior_is_the_law_of_the_product_of_its_factors():
    prior, n = GroupHorseshoe(0.02), 20_000
    q = random_guide(prior, (2, 3))
    scale = prior.group_scale(q)
    a, b, s_a, s_b = (q[role].sample((n,)).double().reshape(n, -1).numpy() for role in FACTORS)
    z = np.sqrt(a * b * s_a * s_b)
    for group in range(3):
        law = stats.lognorm(s=scale.scale[group].item(), scale=math.exp(scale.loc[group].item()))
        assert stats.kstest(z[:, group], law.cdf).pvalue > 1e-3


def test_horseshoe_statistic_is_the_negative_log_mode_of_the_scale():
    prior = GroupHorseshoe(0.02)
    q = random_guide(prior, (2, 3))
    statistic = prior.statistic(q)
    loc = 0.5 * sum(q[role].loc for role in FACTORS)  # of log z, per group
    variance = 0.25 * sum(q[role].scale ** 2 for role in FACTORS)
    assert torch.allclose(statistic, variance - loc, atol=1e-6)
    for group in range(3):
        law = stats.lognorm(s=math.sqrt(variance[group].item()), scale=math.exp(loc[group].item()))
        mode = optimize.minimize_scalar(lambda z, law=law: -law.pdf(z), bounds=(1e-6, 10), method="bounded")
        assert statistic[group].item() == pytest.approx(-math.log(mode.x), abs=1e-3)


@pytest.mark.parametrize("prior,role", [(GroupNormalJeffreys(), "scale"), (LogUniform(), "weight")], ids=str)
def test_dropout_rates_are_log_variance_over_squared_mean(prior, role):
    q = random_guide(prior, (3, 4))
    loc, scale = q[role].loc.double().numpy(), q[role].scale.double().numpy()
    np.testing.assert_allclose(prior.statistic(q).numpy(), np.log(scale**2 / loc**2), rtol=1e-4, atol=1e-5)
    assert prior.statistic(q).shape == loc.shape


def test_standard_normal_has_nothing_to_prune():
    q = random_guide(StandardNormal(), (3, 4))
    assert StandardNormal().statistic(q) is None and StandardNormal().group_scale(q) is None


@pytest.mark.parametrize("prior", [*PRIORS, GroupHorseshoe(1e-5), GroupHorseshoe(3.0)], ids=repr)
@pytest.mark.parametrize("with_bias", [True, False])
def test_find_layers_returns_the_prior_that_made_the_sites(prior, with_bias):
    densities = {f"block.fc1.{role}": fn for role, fn in prior.sites((3, 4)).items()}
    if with_bias:
        densities["block.fc1.bias"] = bias_prior(3)
    ((name, (found, sites, kind)),) = find_layers(densities).items()
    assert name == "block.fc1" and type(found) is type(prior) and kind.op == "linear"
    assert sites == {key.removeprefix("block.fc1."): fn for key, fn in densities.items()}
    if isinstance(prior, GroupHorseshoe):
        assert found.global_scale == pytest.approx(prior.global_scale, rel=1e-5)
    assert type(prior).recognise(sites) == found
    if hasattr(prior, "weights"):
        assert found.weights == prior.weights


@pytest.mark.parametrize(
    "prior", [*PRIORS, LearnedCode(), GroupNormalJeffreys(weights=LearnedCode(grids=None))], ids=repr
)
def test_a_description_gives_an_equal_prior_back(prior):
    assert described_prior(json.loads(json.dumps(prior.description()))) == prior


def test_a_description_of_an_unknown_prior_is_refused():
    with pytest.raises(UsageError, match="'Spike' is not known"):
        described_prior({"type": "Spike"})


@pytest.mark.parametrize("prior", PRIORS, ids=repr)
@pytest.mark.parametrize("kind", LAYER_TYPES, ids=lambda kind: kind.op)
def test_densities_know_their_prior_and_type_and_start_with_a_scale_of_one(prior, kind):
    shape = (5, 6, 2, 2)[: 2 + kind.spatial]
    densities = prior.densities(shape, layer=kind, bias=True)
    layers = find_layers({f"fc.{role}": fn for role, fn in densities.items()})
    assert layers["fc"].prior is prior and layers["fc"].type is kind
    values = prior.initial_values(densities)
    scale = prior.scale(values)
    if scale is not None:
        assert scale.shape == (shape[kind.group_axis],)
        assert torch.allclose(scale, torch.ones_like(scale), atol=0.1)
    assert prior.weight(values, kind).shape == shape
    q = random_guide(prior, shape)
    if kind.group_axis == group_dim(shape):
        assert all(moment.shape == shape for moment in prior.moments(q, kind))


def test_weights_under_scales_have_a_statistic_of_their_own():
    q = random_guide(GroupHorseshoe(), (3, 4))
    under, alone = GroupHorseshoe(weights=LogUniform()), LogUniform()
    assert torch.equal(under.weight_statistic(q), alone.statistic(q))
    assert torch.equal(under.statistic(q), GroupHorseshoe().statistic(q))
    assert GroupHorseshoe().weight_statistic(q) is None and alone.weight_statistic(q) is None


def test_find_layers_keeps_order_and_leaves_out_what_is_no_layer():
    densities = {"precision": dist.Gamma(1.0, 1.0), "weight": dist.Normal(0.0, 1.0)}  # no layer name
    for layer, prior in zip("dbcaef", PRIORS, strict=True):
        densities |= {f"{layer}.{role}": fn for role, fn in prior.sites((3, 4)).items()}
    densities["norm.bias"] = bias_prior(3)  # no weight
    densities["d.offset"] = dist.Normal(0.0, 1.0)  # no role
    densities |= {"other.scale": dist.Normal(0.0, 1.0), "other.weight": dist.Normal(torch.zeros(3, 4), 1.0)}
    layers = find_layers(densities)
    assert list(layers) == ["d", "b", "c", "a", "e", "f"]
    assert [type(prior) for prior, _, _ in layers.values()] == [type(prior) for prior in PRIORS]
    assert list(layers["d"][1]) == ["scale", "weight"]


def test_a_model_of_plain_sample_statements_is_found():
    def model(x):
        z = pyro.sample("fc1.scale", NormalJeffreys().expand([4]).to_event(1))
        w = pyro.sample("fc1.weight", dist.Normal(0.0, 1.0).expand([3, 4]).to_event(2))
        b = pyro.sample("fc1.bias", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        return torch.nn.functional.linear(x, z * w, b)

    trace = poutine.trace(poutine.condition(model, data={"fc1.scale": torch.ones(4)})).get_trace(torch.ones(2, 4))
    densities = {name: site["fn"] for name, site in trace.nodes.items() if site["type"] == "sample"}
    ((name, (prior, sites, _)),) = find_layers(densities).items()
    assert name == "fc1" and prior == GroupNormalJeffreys() and list(sites) == ["scale", "weight", "bias"]


def test_base_distribution_strips_events_and_masks_only():
    normal = dist.Normal(torch.zeros(3, 4), 1.0)
    assert base_distribution(normal.mask(torch.ones(3, 4, dtype=torch.bool)).to_event(2)) is normal
    log_normal = dist.LogNormal(torch.zeros(3), 1.0)  # has a base_dist of its own
    assert base_distribution(log_normal.to_event(1)) is log_normal


@pytest.mark.parametrize("global_scale", [0.0, -1e-5, math.inf, math.nan])
def test_a_horseshoe_without_a_scale_is_refused(global_scale):
    with pytest.raises(UsageError, match="global_scale"):
        GroupHorseshoe(global_scale)


def test_a_prior_of_the_users_own_is_found_with_its_roles():
    class Laplace(Prior):
        roles = ("laplace_scale", "weight")

        def sites(self, weight_shape):
            return {
                "laplace_scale": dist.Gamma(1.0, 1.0),
                "weight": dist.Laplace(0.0, 1.0).expand(weight_shape).to_event(2),
            }

        @classmethod
        def recognise(cls, sites):
            return cls() if "laplace_scale" in sites else None

        def weight(self, values):
            return values["weight"]

        def group_scale(self, q):
            return None

        def statistic(self, q):
            return None

    assert "laplace_scale" in ROLES
    found = find_layers({f"fc.{role}": fn for role, fn in Laplace().sites((2, 3)).items()})
    assert isinstance(found["fc"][0], Laplace)


def test_the_most_specific_prior_is_recognised_and_an_ambiguity_is_an_error(monkeypatch):
    monkeypatch.setattr("pyro_bc.priors.base._KNOWN", list(_KNOWN))

    class Finer(GroupHorseshoe):
        roles = GroupHorseshoe.roles

        @classmethod
        def recognise(cls, sites):
            return cls(0.3) if "global_a" in sites else None

    sites = GroupHorseshoe(0.01).sites((3, 4))
    assert type(recognised_prior(sites)) is Finer

    class Other(Prior):
        roles = ("weight",)
        sites = group_scale = statistic = None

        @classmethod
        def recognise(cls, sites):
            return cls() if "global_a" in sites else None

    with pytest.raises(UsageError, match="recognised by Finer and by Other"):
        recognised_prior(sites)


def test_parameters_of_a_hand_written_prior_survive_the_export():
    def model(x):
        densities = GroupHorseshoe(0.01).sites((1, 4))
        values = {role: pyro.sample(f"fc.{role}", fn) for role, fn in densities.items()}
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ GroupHorseshoe().weight(values)[0], 1.0), obs=x[:, 0])

    guide = pyro_bc.FactorizedGuide(model)
    guide(torch.randn(10, 4))
    again = layer_posteriors(pyro_bc.to_inference_data(guide, draws=3))["fc"].prior
    assert type(again) is GroupHorseshoe and again.global_scale == pytest.approx(0.01, rel=1e-6)


def test_sites_that_only_look_like_a_prior_are_no_layer():
    not_gamma = {role: dist.LogNormal(0.0, 1.0) for role in FACTORS} | {"weight": dist.Normal(torch.zeros(2, 3), 1.0)}
    assert find_layers({f"fc.{role}": fn for role, fn in not_gamma.items()}) == {}
    assert find_layers({"fc.weight": dist.HalfNormal(torch.ones(2, 3))}) == {}
