"""Inside the handler pre-activations have the law that drawn weights give them, one example at a time, and every ELBO
keeps its expectation with far less gradient noise; whatever is no linear layer is drawn, never averaged."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
import torch.nn.functional as F
from pyro.infer import RenyiELBO, ReweightedWakeSleep, Trace_ELBO, TraceMeanField_ELBO
from scipy import special, stats
from torch import nn

from pyro_bc import (
    BayesianNetwork,
    FactorizedGuide,
    GroupHorseshoe,
    GroupNormalJeffreys,
    LogUniform,
    StandardNormal,
    bayesianize,
    local_reparameterization,
)
from pyro_bc.errors import UsageError
from pyro_bc.inference.deferred import Deferred, DeferredProduct
from pyro_bc.inference.elbo import elbo_terms
from pyro_bc.priors.normal_jeffreys import NormalJeffreys

PRIORS = [GroupNormalJeffreys(), GroupHorseshoe(0.1), LogUniform(), StandardNormal()]
GRID = pytest.mark.parametrize("prior", PRIORS, ids=lambda p: type(p).__name__)
FACTORS = ("local_a", "local_b", "global_a", "global_b")
INPUTS, OUTPUTS = 4, 3


def setup(prior, *, num_data: int = 10, log_variance: float = -2.0):
    """One linear layer and a guide with wide posteriors; ``x`` is (6, INPUTS)."""
    model = BayesianNetwork(nn.Linear(INPUTS, OUTPUTS), prior, num_data=num_data)
    guide = FactorizedGuide(model, init_log_variance=log_variance)
    x, y = torch.randn(6, INPUTS), torch.tensor([0, 1, 2, 2, 1, 0])
    guide(x, y)
    with torch.no_grad():
        for name, parameter in guide.named_parameters():
            parameter.add_((0.3 if name.startswith("log_variances") else 0.2) * torch.randn_like(parameter))
    return model, guide, x, y


def outputs_inside(model, guide, x) -> torch.Tensor:
    with local_reparameterization(), torch.no_grad():
        guide_trace = poutine.trace(guide).get_trace(x)
        return poutine.replay(poutine.uncondition(model), trace=guide_trace)(x)


def draw_weights(prior, guide, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Brute force with numpy: ``(n, OUTPUTS, INPUTS)`` weights and ``(n, OUTPUTS)`` biases."""
    rng = np.random.default_rng(7)

    def draw(role):
        q = guide.posterior()[f"net.{role}"]
        value = rng.normal(q.loc.double().numpy(), q.scale.double().numpy(), (n, *q.loc.shape))
        return np.exp(value) if role in FACTORS else value

    weight = draw("weight")
    if isinstance(prior, GroupNormalJeffreys):
        weight = weight * draw("scale")[:, None, :]
    if isinstance(prior, GroupHorseshoe):
        squared = (draw("global_a") * draw("global_b"))[:, None] * draw("local_a") * draw("local_b")
        weight = weight * np.sqrt(squared)[:, None, :]
    return weight, draw("bias")


def closed_form(prior, guide, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance across the outputs of one example, from the first two moments of the scales."""
    q = {name.removeprefix("net."): fn for name, fn in guide.posterior().items()}
    q = {role: (fn.loc.double().numpy(), fn.scale.double().numpy() ** 2) for role, fn in q.items()}
    mean, variance = q["weight"]
    z, zz = np.ones(INPUTS), np.ones((INPUTS, INPUTS))  # E[z_i], E[z_i z_j]
    if isinstance(prior, GroupNormalJeffreys):
        z = q["scale"][0]
        zz = np.outer(z, z) + np.diag(q["scale"][1])
    if isinstance(prior, GroupHorseshoe):  # log z_i = (sum of four logs) / 2; the layer's two are common to all i
        loc = 0.5 * sum(q[role][0] for role in FACTORS)
        local = 0.25 * (q["local_a"][1] + q["local_b"][1])
        common = 0.25 * (q["global_a"][1] + q["global_b"][1])
        log_covariance = np.diag(local) + common
        z = np.exp(loc + 0.5 * np.diag(log_covariance))
        zz = np.outer(z, z) * np.exp(log_covariance)
    covariance = np.einsum("i,j,ij,ki,lj->kl", x, x, zz - np.outer(z, z), mean, mean)
    covariance += np.diag(x**2 * np.diag(zz) @ variance.T + q["bias"][1])
    return mean @ (x * z) + q["bias"][0], covariance


def covariance_error(draws: np.ndarray) -> np.ndarray:
    """Standard error of every entry of the sample covariance."""
    centred = draws - draws.mean(0)
    return np.einsum("ni,nj->nij", centred, centred).std(0) / math.sqrt(len(draws))


@GRID
def test_pre_activations_have_the_mean_and_covariance_of_drawn_weights(prior):
    n = 60_000
    model, guide, _, _ = setup(prior)
    x = torch.tensor([0.7, -1.1, 0.4, 1.6])
    # Rows with equal inputs: were any noise shared between them, their sample covariance would come out too small.
    local = outputs_inside(model, guide, x.expand(n, -1)).double().numpy()
    weight, bias = draw_weights(prior, guide, n)
    brute = weight @ x.double().numpy() + bias
    mean, covariance = closed_form(prior, guide, x.double().numpy())
    deviation = np.sqrt(np.diag(covariance))
    off_diagonal = covariance[~np.eye(OUTPUTS, dtype=bool)]
    if isinstance(prior, (GroupNormalJeffreys, GroupHorseshoe)):
        assert np.abs(off_diagonal).max() > 0.02 * deviation.max() ** 2  # or the comparison below were idle
    for draws in (brute, local):
        assert np.all(np.abs(draws.mean(0) - mean) < 5 * deviation / math.sqrt(n))
        assert np.all(np.abs(np.cov(draws.T) - covariance) < 5 * covariance_error(draws))
    error = np.hypot(covariance_error(local), covariance_error(brute))
    assert np.all(np.abs(np.cov(local.T) - np.cov(brute.T)) < 5 * error)
    for k in range(OUTPUTS):  # the whole law, not its first moments only
        assert stats.ks_2samp(local[:10_000, k], brute[:10_000, k]).pvalue > 1e-3


@GRID
def test_equal_rows_are_independent_where_drawn_weights_would_make_them_equal(prior):
    _, guide, _, _ = setup(prior)
    q = {name.removeprefix("net."): fn for name, fn in guide.posterior().items()}
    weight = prior.weight({role: Deferred.of(q[role]) for role in prior.roles})
    bias, x = Deferred.of(q["bias"]), torch.tensor([0.7, -1.1, 0.4, 1.6]).expand(2, -1)
    n = 3000
    pairs = torch.stack([F.linear(x, weight, bias)[:, 0] for _ in range(n)])  # (n, 2)
    assert abs(np.corrcoef(pairs.T.numpy())[0, 1]) < 5 / math.sqrt(n)
    drawn = F.linear(x, weight.draw(), bias.draw())
    assert torch.allclose(drawn[0], drawn[1])


@GRID
def test_three_dimensional_inputs_share_scales_within_an_example_only(prior):
    n = 30_000
    _, guide, _, _ = setup(prior)
    x = torch.tensor([[0.7, -1.1, 0.4, 1.6], [-0.5, 0.3, 1.2, -0.9]])
    weight = draw_local_weight(prior, guide)
    local = F.linear(x.expand(n, -1, -1), *weight).double().numpy()  # (n, 2, OUTPUTS)
    assert local.shape == (n, 2, OUTPUTS)
    for position in range(2):
        mean, covariance = closed_form(prior, guide, x[position].double().numpy())
        draws = local[:, position]
        assert np.all(np.abs(draws.mean(0) - mean) < 5 * np.sqrt(np.diag(covariance) / n))
        assert np.all(np.abs(np.cov(draws.T) - covariance) < 5 * covariance_error(draws))
    single = F.linear(x[0], *weight)
    assert single.shape == (OUTPUTS,)


def draw_local_weight(prior, guide):
    q = {name.removeprefix("net."): fn for name, fn in guide.posterior().items()}
    return prior.weight({role: Deferred.of(q[role]) for role in prior.roles}), Deferred.of(q["bias"])


def exact_elbo(prior, model, guide, x, y, n: int = 40_000) -> tuple[float, float]:
    """-ELBO by brute force over weights, and the standard error of its likelihood part."""
    weight, bias = draw_weights(prior, guide, n)
    logits = np.einsum("nki,bi->nbk", weight, x.double().numpy()) + bias[:, None]
    log_p = special.log_softmax(logits, -1)[:, np.arange(len(y)), y.numpy()]
    log_likelihood = model.num_data / len(y) * log_p.sum(1)
    densities = {f"net.{role}": fn for role, fn in prior.sites((OUTPUTS, INPUTS)).items()}
    densities["net.bias"] = dist.Normal(torch.zeros(OUTPUTS), 1.0).to_event(1)
    kl = sum(
        torch.distributions.kl_divergence(q.to_event(q.loc.dim()), densities[name]).item()
        for name, q in guide.posterior().items()
    )
    return kl - log_likelihood.mean(), log_likelihood.std() / math.sqrt(n)


@pytest.mark.parametrize("elbo", [TraceMeanField_ELBO, Trace_ELBO], ids=lambda e: e.__name__)
@GRID
def test_elbo_inside_equals_that_of_drawn_weights_in_expectation(prior, elbo):
    n = 90
    model, guide, x, y = setup(prior)
    exact, exact_error = exact_elbo(prior, model, guide, x, y)
    pyro.enable_validation(False)
    with local_reparameterization(), torch.no_grad():
        inside = np.array([elbo().loss(model, guide, x, y) for _ in range(n)])
    assert abs(inside.mean() - exact) < 4.5 * math.hypot(exact_error, inside.std() / math.sqrt(n))
    with torch.no_grad():
        outside = np.array([elbo().loss(model, guide, x, y) for _ in range(n)])
    assert abs(outside.mean() - exact) < 4.5 * math.hypot(exact_error, outside.std() / math.sqrt(n))
    assert inside.std() < outside.std()


@pytest.mark.parametrize("elbo", [TraceMeanField_ELBO, Trace_ELBO], ids=lambda e: e.__name__)
@GRID
def test_kl_inside_is_the_closed_form_without_noise(prior, elbo):
    def model(x):
        F.linear(x, prior.sample("net", (OUTPUTS, INPUTS)))

    guide = FactorizedGuide(model, init_log_variance=-1.0)
    x = torch.randn(6, INPUTS)
    guide(x)
    expected = TraceMeanField_ELBO().loss(model, guide, x)  # nothing is observed: the KL alone
    with local_reparameterization():
        assert [elbo().loss(model, guide, x) for _ in range(2)] == pytest.approx([expected, expected], rel=1e-6)


@pytest.mark.parametrize("prior", [GroupNormalJeffreys(), StandardNormal()], ids=lambda p: type(p).__name__)
def test_gradient_noise_on_a_batch_of_128_is_far_lower(prior, capsys):
    model = BayesianNetwork(nn.Linear(10, 3), prior, num_data=1280)
    guide = FactorizedGuide(model, init_log_variance=-3.0)
    x, y = torch.rand(128, 10), torch.randint(3, (128,))  # positive, as pixels and rectified units are
    guide(x, y)
    elbo = TraceMeanField_ELBO()(model, guide)

    def gradients(n: int = 80) -> torch.Tensor:
        return torch.stack([torch.autograd.grad(elbo(x, y), guide.locs.net.weight)[0] for _ in range(n)])

    pyro.enable_validation(False)
    outside = gradients()
    with local_reparameterization():
        inside = gradients()
    ratio = (outside.var(0).mean() / inside.var(0).mean()).item()
    with capsys.disabled():
        print(f"\ngradient noise, weights drawn / local, {type(prior).__name__}: {ratio:.0f}")
    assert ratio > 20
    error = ((outside.var(0) + inside.var(0)) / len(inside)).sqrt()
    assert ((outside.mean(0) - inside.mean(0)).abs() < 5 * error).all()  # of one and the same gradient


EXPRESSIONS = {
    "scale times weight": lambda x, z, w, b: F.linear(x, z * w, b),
    "weight times scale": lambda x, z, w, b: F.linear(x, w * z, bias=b),
    "torch.mul and keywords": lambda x, z, w, b: F.linear(x, weight=torch.mul(z, w), bias=b),
    "method": lambda x, z, w, b: F.linear(input=x, weight=z.mul(w), bias=b),
    "matmul": lambda x, z, w, b: x @ (z * w).T + b.reshape(1, -1).squeeze(0),
    "matrix product": lambda x, z, w, b: torch.matmul(x, (z * w).t()) + b,
    "transposed": lambda x, z, w, b: torch.mm(x, (w * z).transpose(0, 1)) + b,
    "einsum": lambda x, z, w, b: torch.einsum("bi,oi->bo", x, z * w) + b,
    "einsum, weight first": lambda x, z, w, b: torch.einsum("oi,bi->bo", z * w, x) + b,
    "scale with a dimension more": lambda x, z, w, b: F.linear(x, z[None] * w, b),
    "unsqueezed scale": lambda x, z, w, b: F.linear(x, w * z.unsqueeze(0), b),
    "viewed scale": lambda x, z, w, b: F.linear(x, z.view(1, -1) * w, b),
    "halves": lambda x, z, w, b: F.linear(x, 0.5 * (z * (w * 2)), b),
    "a quotient": lambda x, z, w, b: F.linear(x, z * (-w / torch.tensor(-1.0)), b),
    "a factor of each weight": lambda x, z, w, b: F.linear(x, z * (w * torch.ones(OUTPUTS, 1)), b),
    "transposed twice": lambda x, z, w, b: F.linear(x, z * w.T.mT, b),
    "viewed weight": lambda x, z, w, b: F.linear(x, z * w.view(1, OUTPUTS, INPUTS).reshape(OUTPUTS, INPUTS), b),
}
#: a bias that is added, not given to the layer, is one draw for the batch.
DRAWN_BIAS = {"matmul", "matrix product", "transposed", "einsum", "einsum, weight first"}


def plain_model(expression):
    def model(x):
        z = pyro.sample("net.scale", NormalJeffreys().expand([INPUTS]).to_event(1))
        w = pyro.sample("net.weight", dist.Normal(torch.zeros(OUTPUTS, INPUTS), 1.0).to_event(2))
        b = pyro.sample("net.bias", dist.Normal(torch.zeros(OUTPUTS), 1.0).to_event(1))
        return expression(x, z, w, b)

    return model


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_a_hand_written_product_is_handled_without_a_draw(name):
    n = 20_000
    model = plain_model(EXPRESSIONS[name])
    guide = FactorizedGuide(model, init_log_variance=-2.0)
    x = torch.tensor([0.7, -1.1, 0.4, 1.6])
    guide(x.expand(2, -1))
    with local_reparameterization(), torch.no_grad():
        guide_trace = poutine.trace(guide).get_trace(x.expand(n, -1))
        out = poutine.replay(model, trace=guide_trace)(x.expand(n, -1)).double().numpy()
    assert out[:, 0].std() > 0.1  # rows with equal inputs differ
    for site in ("scale", "weight"):
        assert guide_trace.nodes[f"net.{site}"]["value"]._draw is None
    bias = guide_trace.nodes["net.bias"]["value"]
    assert (bias._draw is None) == (name not in DRAWN_BIAS)
    if name in DRAWN_BIAS:  # one for all rows: without it they are as the others are
        q = guide.posterior()["net.bias"]
        out = out - bias.draw().numpy() + np.random.default_rng(1).normal(q.loc, q.scale, out.shape)
    mean, covariance = closed_form(GroupNormalJeffreys(), guide, x.double().numpy())
    assert np.all(np.abs(out.mean(0) - mean) < 5 * np.sqrt(np.diag(covariance) / n))
    assert np.all(np.abs(np.cov(out.T) - covariance) < 5 * covariance_error(out))


UNKNOWN = {
    "square of the weight": lambda x, z, w, b: F.linear(x, w * w, b),
    "absolute weight": lambda x, z, w, b: F.linear(x, (z * w).abs(), b),
    "clamped weight": lambda x, z, w, b: F.linear(x, (z * w).clamp(-9, 9), b),
    "sum of two": lambda x, z, w, b: x @ (w + z * w).T + b,
}


@pytest.mark.parametrize("expression", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_unknown_operations_draw_the_weight_once_and_pass_gradients(expression):
    model = plain_model(expression)
    guide = FactorizedGuide(model, init_log_variance=-2.0)
    x = torch.tensor([0.7, -1.1, 0.4, 1.6]).expand(5, -1)
    guide(x)
    with local_reparameterization():
        guide_trace = poutine.trace(guide).get_trace(x)
        values = [guide_trace.nodes[f"net.{role}"]["value"] for role in ("scale", "weight", "bias")]
        out = poutine.replay(model, trace=guide_trace)(x)
    assert torch.allclose(out, out[:1].expand_as(out), atol=1e-6)  # one draw for all rows
    z, w, b = (value.draw() for value in values)
    assert torch.allclose(out, expression(x, z, w, b), atol=1e-6)  # the same draw
    assert not torch.allclose(w, guide.locs.net.weight, atol=0.05)
    loc, log_variance = guide.locs.net.weight, guide.log_variances.net.weight
    gradient = torch.autograd.grad(out.sum(), (w, loc, log_variance))
    # w = loc + exp(log_variance / 2) noise: the loc has the draw's gradient, the log-variance (w - loc) / 2 of it
    assert gradient[0].abs().min() > 0
    assert torch.allclose(gradient[1], gradient[0])
    assert torch.allclose(gradient[2], gradient[0] * (w - loc) / 2, atol=1e-5)


@pytest.mark.parametrize("use", [lambda h, w: F.linear(h, w.T), lambda h, w: h @ w], ids=["linear", "matmul"])
def test_a_tied_decoder_keeps_local_noise(use):
    """The weight's transpose: outputs have the mean and variance of drawn weights, and no row is like another."""
    loc, scale = torch.randn(3, 4), 0.1 + torch.rand(3, 4)
    h = torch.tensor([0.5, -1.0, 2.0]).expand(20_000, 3)
    weight = Deferred.of(dist.Normal(loc, scale))
    out = use(h, weight)
    assert weight._draw is None
    assert torch.allclose(out.mean(0), h[0] @ loc, atol=0.05)
    assert torch.allclose(out.var(0), h[0].square() @ scale.square(), rtol=0.05)


@pytest.mark.parametrize("use", [lambda h, w: F.linear(h, w.T), lambda h, w: h @ w, lambda h, w: (w.T * 2).T.sum()])
def test_a_transposed_product_that_no_rule_covers_is_drawn(use, monkeypatch):
    monkeypatch.setattr("pyro_bc.inference.deferred._SAID", set())
    scale = Deferred.of(dist.Normal(torch.ones(4), 0.5))
    weight = Deferred.of(dist.Normal(torch.zeros(3, 4), 1.0))
    weight.site = "net.weight"
    h, product = torch.randn(5, 3), scale * weight
    with pytest.warns(UserWarning, match=r"'net.weight' is drawn once"):
        out = use(h, product)
    assert torch.equal(out, use(h, scale.draw() * weight.draw()))


def test_a_weight_that_has_to_be_drawn_is_named_once(monkeypatch):
    monkeypatch.setattr("pyro_bc.inference.deferred._SAID", set())
    model = plain_model(UNKNOWN["square of the weight"])
    guide = FactorizedGuide(model)
    x = torch.ones(2, INPUTS)
    guide(x)
    with local_reparameterization(), pytest.warns(UserWarning) as said:
        for _ in range(3):
            poutine.replay(model, trace=poutine.trace(guide).get_trace(x))(x)
    assert len(said) == 1 and "'net.weight' is drawn once for the whole batch" in str(said[0].message)


def test_other_bounds_and_vectorized_particles_are_refused():
    model, guide, x, y = setup(StandardNormal())
    with local_reparameterization():
        for elbo in (RenyiELBO(alpha=0.5, num_particles=2), ReweightedWakeSleep()):
            with pytest.raises(UsageError, match=f"{type(elbo).__name__} inside local_reparameterization"):
                elbo.loss_and_grads(model, guide, x, y)
        for elbo in (Trace_ELBO, TraceMeanField_ELBO):
            with pytest.raises(UsageError, match="vectorized particles"):
                elbo(num_particles=3, vectorize_particles=True).loss(model, guide, x, y)
            assert math.isfinite(elbo(num_particles=3).loss(model, guide, x, y))


@pytest.mark.parametrize("elbo", [TraceMeanField_ELBO, Trace_ELBO], ids=lambda e: e.__name__)
@pytest.mark.parametrize(
    "noise", [dist.HalfCauchy(1.0), dist.HalfNormal(1.0), dist.Exponential(2.0)], ids=lambda d: type(d).__name__
)
def test_noise_whose_kl_has_no_closed_form_is_one_draws_and_never_deferred(noise, elbo):
    """Whatever its name: a noise called ``net.scale`` belongs to no layer, as there is no ``net.weight``."""
    x = torch.randn(8, INPUTS)
    y = x[:, 0]

    def model(x, y=None):
        w = StandardNormal().sample("fc", (1, INPUTS))
        deviation = pyro.sample("net.scale", noise)
        assert type(deviation) is torch.Tensor
        with pyro.plate("data", 8):
            pyro.sample("y", dist.Normal(F.linear(x, w).squeeze(-1), deviation), obs=y)

    guide = FactorizedGuide(model, init_log_variance=-2.0)
    guide(x, y)
    n = 500
    pyro.enable_validation(False)
    drawn = np.array([Trace_ELBO().loss(model, guide, x, y) for _ in range(n)])
    with local_reparameterization(), torch.no_grad():
        losses = np.array([elbo().loss(model, guide, x, y) for _ in range(n)])
        terms = np.array([float(elbo_terms(model, guide, x, y).loss()) for _ in range(n)])
    for found in (losses, terms):
        assert abs(found.mean() - drawn.mean()) < 4.5 * math.hypot(found.std(), drawn.std()) / math.sqrt(n)


def test_a_sum_of_a_deferred_weight_has_the_law_of_the_sum():
    loc, scale = torch.randn(3, 4), 0.1 + torch.rand(3, 4)
    sums = np.array([Deferred.of(dist.Normal(loc, scale)).sum().item() for _ in range(4000)])
    law = stats.norm(loc.double().sum().item(), scale.double().square().sum().sqrt().item())
    assert stats.kstest(sums, law.cdf).pvalue > 1e-3


def test_elbo_inside_is_right_where_the_weight_is_drawn():
    x, y = torch.randn(6, INPUTS), torch.tensor([0, 1, 2, 2, 1, 0])
    linear = plain_model(lambda x, z, w, b: x @ (z * w).T + b)

    def model(x, y=None):
        logits = linear(x)
        with pyro.plate("data", 6), poutine.scale(scale=10 / 6):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    model.num_data = 10
    guide = FactorizedGuide(model, init_log_variance=-2.0)
    guide(x, y)
    exact, exact_error = exact_elbo(GroupNormalJeffreys(), model, guide, x, y)
    with local_reparameterization(), torch.no_grad():
        losses = np.array([Trace_ELBO().loss(model, guide, x, y) for _ in range(200)])
    assert abs(losses.mean() - exact) < 4.5 * math.hypot(exact_error, losses.std() / math.sqrt(200))


def test_draws_are_made_once_and_products_multiply_them():
    z = Deferred.of(dist.Normal(torch.ones(4), 0.5))
    w = Deferred.of(dist.Normal(torch.zeros(3, 4), 1.0))
    product = z * w
    assert isinstance(product, DeferredProduct) and product.shape == (3, 4) and product.dtype == torch.float32
    assert z._draw is None and w._draw is None
    value = product.draw()
    assert type(value) is torch.Tensor
    assert value is product.draw() and z.draw() is z.draw()
    assert torch.equal(value, z.draw() * w.draw())
    assert torch.equal(product + 0, value) and torch.equal((z + 0) * (w + 0), value)


def test_roots_and_products_of_log_normals_have_the_law_of_the_root_of_the_product():
    n = 20_000
    parts = [(0.3, 0.4), (-0.2, 0.7), (5.0, 0.2), (-5.0, 0.3)]
    a, b, s_a, s_b = (Deferred.of(dist.LogNormal(torch.full((1,), m), torch.full((1,), s))) for m, s in parts)
    scale = ((s_a * s_b) * (a * b)).sqrt()
    assert isinstance(scale, Deferred) and scale._draw is None
    draws = scale.per_example(torch.ones(n, 1))[:, 0].double().numpy()
    rng = np.random.default_rng(3)
    brute = np.sqrt(np.prod([np.exp(rng.normal(m, s, n)) for m, s in parts], 0))
    assert stats.ks_2samp(draws, brute).pvalue > 1e-3
    law = stats.lognorm(s=0.5 * math.sqrt(sum(s**2 for _, s in parts)), scale=math.exp(0.5 * sum(m for m, _ in parts)))
    assert stats.kstest(draws, law.cdf).pvalue > 1e-3


def test_sites_outside_of_layers_are_drawn_as_usual():
    def model(x):
        weight = StandardNormal().sample("net", (OUTPUTS, INPUTS))
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
        lone = pyro.sample("weight", dist.Normal(0.0, 1.0))  # a role, but of no layer
        return F.linear(x, weight) + offset + lone

    guide = FactorizedGuide(model, init_log_variance=0.0)
    x = torch.randn(6, INPUTS)
    guide(x)
    with local_reparameterization():
        guide_trace = poutine.trace(guide).get_trace(x)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(x)
    for trace in (guide_trace, model_trace):
        trace.compute_log_prob()
        for name in ("offset", "weight"):
            site = trace.nodes[name]
            assert type(site["value"]) is torch.Tensor
            law = guide.posterior()[name] if trace is guide_trace else dist.Normal(0.0, 1.0)
            assert site["log_prob"].item() == pytest.approx(law.log_prob(site["value"].detach()).item(), abs=1e-5)
    assert isinstance(guide_trace.nodes["net.weight"]["value"], Deferred)
    assert guide_trace.nodes["net.weight"]["log_prob"].item() == 0
    kl = torch.distributions.kl_divergence(guide.posterior()["net.weight"], dist.Normal(torch.zeros(3, 4), 1.0)).sum()
    assert model_trace.nodes["net.weight"]["log_prob"].item() == pytest.approx(-kl.item(), rel=1e-5)


def test_an_observed_weight_stays_what_it_is():
    model, guide, x, _ = setup(StandardNormal())
    weight, bias = torch.randn(OUTPUTS, INPUTS), torch.randn(OUTPUTS)
    conditioned = poutine.condition(model, data={"net.weight": weight, "net.bias": bias})
    with local_reparameterization():
        guide_trace = poutine.trace(poutine.block(guide, hide=["net.weight", "net.bias"])).get_trace(x)
        out = poutine.replay(conditioned, trace=guide_trace)(x)
    assert torch.allclose(out, x @ weight.T + bias, atol=1e-6)


def test_a_layer_that_is_used_twice_gets_fresh_noise():
    _, guide, x, _ = setup(StandardNormal())
    weight, bias = draw_local_weight(StandardNormal(), guide)
    assert (F.linear(x, weight, bias) != F.linear(x, weight, bias)).all()


def test_nothing_is_deferred_after_the_context():
    model, guide, x, y = setup(GroupNormalJeffreys())
    with local_reparameterization():
        guide(x, y)
    trace = poutine.trace(guide).get_trace(x, y)
    assert all(type(trace.nodes[name]["value"]) is torch.Tensor for name in guide.families)
    rows = poutine.replay(poutine.uncondition(model), trace=trace)(x[:1].expand(4, -1))
    assert torch.allclose(rows, rows[:1].expand_as(rows))


def log_normals(n: int):
    return (Deferred.of(dist.LogNormal(torch.zeros(4), torch.ones(4))) for _ in range(n))


def test_a_site_times_itself_is_no_product_of_independent_variables():
    a, b = log_normals(2)
    for product, expected in ((a.sqrt() * a, lambda: a.draw() ** 1.5), ((a * b) * a, lambda: a.draw() ** 2 * b.draw())):
        assert type(product) is torch.Tensor  # drawn
        assert torch.allclose(product, expected())


def test_products_and_roots_draw_what_their_parts_draw():
    a, b = log_normals(2)
    root = (a * b).sqrt()
    assert torch.allclose(root.draw(), (a.draw() * b.draw()).sqrt())
    weight = Deferred.of(dist.Normal(torch.zeros(3, 4), torch.ones(3, 4)))
    assert torch.allclose((root * weight).draw(), root.draw() * weight.draw())


def test_a_bias_that_is_a_product_is_drawn():
    weight = Deferred.of(dist.Normal(torch.zeros(3, 2), torch.ones(3, 2)))
    z, b = (Deferred.of(dist.Normal(torch.full((3,), 5.0), torch.full((3,), 1e-3))) for _ in range(2))
    assert torch.allclose(F.linear(torch.zeros(2, 2), weight, z * b), torch.full((2, 3), 25.0), atol=0.1)


CONVOLUTIONS = [
    nn.Conv2d(2, 3, 3, stride=2, padding=1),
    nn.Conv2d(2, 3, (2, 3), padding="same", dilation=(1, 2), padding_mode="reflect"),
    nn.Conv2d(2, 4, 1, groups=2, bias=False),
    nn.Conv2d(2, 2, 3, groups=2),
    nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular"),
    nn.Conv1d(2, 4, 2, stride=2, dilation=2, groups=2),
]


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize(
    "prior", [GroupNormalJeffreys(), GroupHorseshoe(0.1), LogUniform()], ids=lambda p: type(p).__name__
)
def test_convolutions_have_the_mean_and_variance_of_drawn_filters(prior, layer):
    """At every position, for filters drawn by numpy and put through torch's own layer; the bias is scaled with them."""
    n = 20_000
    torch.manual_seed(2)
    model = bayesianize(nn.Sequential(layer), prior)
    x = torch.randn(1, 2, 6) if isinstance(layer, nn.Conv1d) else torch.randn(1, 2, 5, 6)
    guide = FactorizedGuide(model, init_log_variance=-2.0)
    guide(x)
    with torch.no_grad():
        for name, parameter in guide.named_parameters():
            parameter.add_((0.3 if name.startswith("log_variances") else 0.2) * torch.randn_like(parameter))
    with local_reparameterization(), torch.no_grad():
        trace = poutine.trace(guide).get_trace(x)
        local = poutine.replay(model, trace=trace)(x.expand(n, *x.shape[1:]))

    rng = np.random.default_rng(3)
    q = guide.posterior()

    def draw(role):
        site = q[f"0.{role}"]
        value = torch.from_numpy(rng.normal(site.loc.numpy(), site.scale.numpy(), (n, *site.loc.shape))).float()
        return value.exp() if role in FACTORS else value

    filters = layer.out_channels
    if isinstance(prior, GroupHorseshoe):
        scale = (draw("global_a") * draw("global_b"))[:, None] * draw("local_a") * draw("local_b")
        scale = scale.sqrt()
    else:
        scale = draw("scale") if isinstance(prior, GroupNormalJeffreys) else torch.ones(n, filters)
    weight = draw("weight") * scale.reshape(n, filters, *[1] * (layer.weight.dim() - 1))
    bias = draw("bias") * scale if layer.bias is not None else torch.zeros(n, filters)
    # Every draw of the filters as torch's own layer computes it: linear in weight and bias, so by unit inputs.
    columns = []
    with torch.no_grad():
        layer.bias = None
        for i in range(layer.weight[0].numel()):
            layer.weight.zero_()
            layer.weight.view(filters, -1)[:, i] = 1.0
            columns.append(layer(x)[0].flatten(1))  # (filters, positions)
    brute = torch.einsum("nfi,ifp->nfp", weight.flatten(2), torch.stack(columns)) + bias[:, :, None]
    local = local.flatten(2)
    assert local.shape == brute.shape
    error = 6 / math.sqrt(n)
    deviation = brute.std(0)
    assert ((local.mean(0) - brute.mean(0)).abs() < 1.5 * error * deviation + 1e-6).all()
    # The fourth moment bounds how well a variance is known.
    kurtosis = ((brute - brute.mean(0)) ** 4).mean(0) / deviation.clamp(min=1e-6) ** 4
    assert (
        ((local.std(0) / deviation.clamp(min=1e-6)).square() - 1).abs().le(1.5 * error * kurtosis.sqrt() + 0.01).all()
    )
    # One draw of a filter's scale for all its positions, another for each example.
    moments = prior.moments({role: q[f"0.{role}"] for role in prior.roles})
    assert torch.allclose(moments[0], weight.mean(0), atol=6 * float(weight.std(0).max()) / math.sqrt(n))
    assert torch.allclose(moments[1], weight.var(0), rtol=0.35, atol=1e-3)
    if layer.bias is not None:
        mean, variance = prior.bias_moments({role: q[f"0.{role}"] for role in (*prior.roles, "bias")})
        assert torch.allclose(mean, bias.mean(0), atol=6 * float(bias.std(0).max()) / math.sqrt(n))
        assert torch.allclose(variance, bias.var(0), rtol=0.35, atol=1e-3)


def test_a_filters_scale_is_shared_by_its_positions_and_not_by_examples():
    torch.manual_seed(0)
    model = bayesianize(nn.Sequential(nn.Conv2d(1, 2, 1)), GroupNormalJeffreys())
    guide = FactorizedGuide(model, init_log_variance=-20.0)
    x = torch.ones(4_000, 1, 3, 3)
    guide(x[:1])
    with torch.no_grad():
        guide.parameters_of("0.scale")[1].fill_(0.0)  # only the scale is uncertain
        with local_reparameterization():
            trace = poutine.trace(guide).get_trace(x)
            y = poutine.replay(model, trace=trace)(x).flatten(2)
    assert (y - y.mean(2, keepdim=True)).abs().max() < 0.05 * y.std()
    independent = np.corrcoef(y[:-1, 0, 0], y[1:, 0, 0])[0, 1], np.corrcoef(y[:, 0, 0], y[:, 1, 0])[0, 1]
    assert np.abs(independent).max() < 0.08


def test_a_filters_bias_that_is_not_scaled_is_added_behind():
    """A convolution written by hand as ``conv2d(x, z * w, b)``."""
    torch.manual_seed(0)

    def model(x):
        z = pyro.sample("c.scale", NormalJeffreys((2,)).to_event(1))
        w = pyro.sample("c.weight", dist.Normal(torch.zeros(2, 1, 1, 1), 1.0).to_event(4))
        b = pyro.sample("c.bias", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        return F.conv2d(x, z.reshape(-1, 1, 1, 1) * w, b)

    guide = FactorizedGuide(model, init_log_variance=-20.0)
    x = torch.ones(2_000, 1, 2, 2)
    guide(x)
    with torch.no_grad():
        guide.parameters_of("c.scale")[1].fill_(0.0)
        guide.parameters_of("c.bias")[0].fill_(100.0)
        with local_reparameterization():
            y = poutine.replay(model, trace=poutine.trace(guide).get_trace(x))(x)
    w, z = (guide.parameters_of(f"c.{role}")[0] for role in ("weight", "scale"))
    assert torch.allclose(y.mean((0, 2, 3)), 100 + z.detach() * w.detach().flatten(), atol=0.2)
    assert (y.std((0, 2, 3)) < 2 * w.abs().flatten() + 0.1).all()
