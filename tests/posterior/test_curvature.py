"""Curvature against brute force and exact Hessians; the guide that is made of it."""

import math

import pyro
import pytest
import torch
import torch.nn.functional as F
from helpers import two_layers, two_of_six
from torch import nn

import pyro_bc
from pyro_bc.errors import EmptyNetworkError, UsageError
from pyro_bc.graph.nodes import is_layer, layer_name
from pyro_bc.graph.read import read_graph
from pyro_bc.inspection.diagnostics import sampled_probabilities
from pyro_bc.posterior import curvature as curvature_module
from pyro_bc.posterior.curvature import collect
from pyro_bc.priors.kronecker_normal import KroneckerNormal

LAYERS = [
    (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (4, 8, 8)),
    (nn.Conv2d(4, 4, 3, padding="same", dilation=2, groups=4), (4, 5, 5)),
    (nn.Conv1d(3, 6, 3, padding=2, dilation=2), (3, 10)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (4, 4, 4)),
    (nn.ConvTranspose2d(3, 6, (2, 3), stride=(1, 2), dilation=(2, 1)), (3, 4, 4)),
    (nn.Conv3d(4, 6, (2, 3, 1), stride=(1, 2, 1), padding=(1, 0, 1), groups=2), (4, 3, 5, 2)),
    (nn.ConvTranspose1d(3, 4, 3, stride=2, padding=1, output_padding=1), (3, 4)),
    (nn.ConvTranspose3d(2, 3, (2, 3, 2), stride=(1, 2, 1), dilation=(2, 1, 1)), (2, 2, 3, 2)),
    (nn.Linear(7, 5), (4, 7)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=str)
def test_inputs_are_those_that_the_layer_multiplies(layer, shape, monkeypatch):
    """Mean square of an output without its bias = w A w, for every output, where all positions are looked at."""
    monkeypatch.setattr(curvature_module, "_POSITIONS", 10**6)
    net = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(5, *shape)
    net(x)
    graph = read_graph(net, x)
    found = collect(graph, pyro_bc.likelihoods.Categorical(), [x], progress=False).layers["0"]
    node = next(node for node in graph.nodes if is_layer(node) and layer_name(node) == "0")
    kind, groups = pyro_bc.graph.layer_types.layer_type(node.op), getattr(layer, "groups", 1)
    rows = kind.rows(layer.weight.detach(), groups)
    assert torch.equal(kind.from_rows(rows, layer.weight.shape, groups), layer.weight.detach())
    (inputs,) = found.of(bias=False)
    grouped = rows.unflatten(0, (groups, -1))
    squares = torch.einsum("gon,gnm,gom->go", grouped, inputs, grouped).flatten()
    with torch.no_grad():
        outputs = layer(x) - layer.bias.reshape(-1, *[1] * kind.spatial)
    expected = outputs.movedim(outputs.dim() - 1 - kind.spatial, 0).flatten(1).square().mean(1)
    assert torch.allclose(squares, expected, rtol=1e-4)
    (whole,) = found.of(bias=True)
    assert torch.allclose(whole[:, -1, -1], torch.ones(groups))


def test_outputs_are_the_fisher_information_of_each():
    """By an exact sum over the classes that a target may be, of a network with a nonlinearity."""
    torch.manual_seed(0)
    net = two_layers(6, 8, 3)
    x = torch.randn(400, 6)
    found = collect(
        read_graph(net, x), pyro_bc.likelihoods.Categorical(), [x] * 10, examples=4000, progress=False
    ).layers
    hidden = F.linear(x, net[0].weight, net[0].bias).detach().requires_grad_()
    logits = net[2](hidden.relu())
    logits.retain_grad()
    probabilities = logits.softmax(1).detach()
    exact = torch.zeros(8), torch.zeros(3)
    for target in range(3):
        gradients = torch.autograd.grad(logits.log_softmax(1)[:, target].sum(), (hidden, logits), retain_graph=True)
        for total, gradient in zip(exact, gradients, strict=True):
            total += (probabilities[:, target, None] * gradient.square()).mean(0)
    for name, expected in zip(("0", "2"), exact, strict=True):
        assert torch.allclose(found[name].outputs, expected, rtol=0.15, atol=1e-4)


def test_the_precision_of_a_linear_model_is_its_exact_hessian():
    x = torch.randn(300, 4)
    net = nn.Sequential(nn.Linear(4, 1))
    likelihood = pyro_bc.likelihoods.Normal()
    found = collect(read_graph(net, x), likelihood, [x], progress=False).layers["0"]
    precision = likelihood.concentration / likelihood.rate  # the noise's, at its prior mean
    hessian = precision * torch.cat([x, torch.ones(300, 1)], 1).T @ torch.cat([x, torch.ones(300, 1)], 1)
    (inputs,) = found.of(bias=True)
    assert torch.allclose(300 * precision * inputs[0], hessian, rtol=1e-4)
    assert float(found.outputs) == pytest.approx(precision, rel=0.3)  # of drawn targets


def test_a_wide_layer_comes_in_blocks(monkeypatch):
    monkeypatch.setattr(curvature_module, "_WIDEST", 4)
    net, (x, _) = two_layers(), two_of_six()
    blocks = collect(read_graph(net, x), pyro_bc.likelihoods.Categorical(), [x], progress=False).layers["0"]
    monkeypatch.setattr(curvature_module, "_WIDEST", 100)
    (whole,) = collect(read_graph(net, x), pyro_bc.likelihoods.Categorical(), [x], progress=False).layers["0"].inputs
    assert [part.shape[-1] for part in blocks.inputs] == [4, 3]
    assert torch.allclose(blocks.inputs[0], whole[:, :4, :4]) and torch.allclose(blocks.inputs[1], whole[:, 4:, 4:])
    model = pyro_bc.BayesianNetwork(net, pyro_bc.StandardNormal(), num_data=200)
    monkeypatch.setattr(curvature_module, "_WIDEST", 4)
    guide = pyro_bc.CurvatureGuide(model, [x], progress=False)
    assert pyro_bc.compress(model, guide, nats_per_bit=1e-3).to_bytes()


def test_a_kronecker_normal_is_the_normal_of_its_rows():
    torch.manual_seed(1)
    a = torch.randn(2, 5, 3)
    second = a.transpose(1, 2) @ a
    values, vectors = torch.linalg.eigh(second)
    cost = torch.tensor([2.0, 0.5, 1.0, 3.0])
    precision = cost[:, None] * values.repeat_interleave(2, 0) + 1
    q = KroneckerNormal(torch.randn(4, 3), [vectors], [precision])
    q.groups = 2
    exact = [
        torch.distributions.MultivariateNormal(q.loc[o], precision_matrix=cost[o] * second[o // 2] + torch.eye(3))
        for o in range(4)
    ]
    value = torch.randn(4, 3)
    assert torch.allclose(q.log_prob(value), sum(d.log_prob(value[o]) for o, d in enumerate(exact)), rtol=1e-4)
    assert torch.allclose(q.variance, torch.stack([d.variance for d in exact]), rtol=1e-4)
    draws = q.sample((20_000,))
    for o, d in enumerate(exact):
        assert torch.allclose(draws[:, o].T.cov(), d.covariance_matrix, atol=0.03)
    assert q.log_prob(draws[:3]).shape == (3,)


def test_the_guide_needs_no_labels_and_is_a_guide_of_pyros():
    torch.manual_seed(0)
    x, y = two_of_six()
    net = two_layers()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    for prior in (pyro_bc.StandardNormal(), pyro_bc.GroupHorseshoe(), pyro_bc.GroupNormalJeffreys()):
        pyro.clear_param_store()
        model = pyro_bc.BayesianNetwork(net, prior, num_data=len(x))
        guide = pyro_bc.CurvatureGuide(model, x.split(50), progress=False)
        for layer, summary in pyro_bc.summarize(guide).items():
            module = net.get_submodule(layer.removeprefix("net."))
            assert torch.allclose(summary.weight_mean, module.weight, atol=1e-6)
            assert torch.allclose(summary.bias_mean, module.bias, atol=1e-6)
        trace = pyro.poutine.trace(pyro.poutine.replay(model, pyro.poutine.trace(guide).get_trace(x, y)))
        assert math.isfinite(trace.get_trace(x, y).nodes["y"]["fn"].log_prob(y).sum())
        data = pyro_bc.to_inference_data(guide, x, y, draws=20, weights=True)
        assert data.log_likelihood["y"].shape == (1, 20, 200)
        small = pyro_bc.compress(model, guide)
        assert len(small.to_bytes()) < 300
        wrong, before = (float((n(x).argmax(1) != y).float().mean()) for n in (small.network(), net))
        assert wrong < before + 0.03


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "the loader gives none"),
        (["words"], "the inputs of a batch are a tensor"),
        ([torch.zeros(0, 6)], "gives none"),
    ],
)
def test_bad_loaders_are_named(loader, message):
    model = pyro_bc.BayesianNetwork(two_layers(), pyro_bc.StandardNormal(), num_data=10)
    with pytest.raises(UsageError, match=message):
        pyro_bc.CurvatureGuide(model, loader, progress=False)


class OfTwo(nn.Module):
    """Numbers and kinds of a table."""

    def __init__(self):
        super().__init__()
        self.kinds, self.read, self.norm = nn.Embedding(5, 3), nn.Linear(7, 8), nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, numbers, kinds):
        return self.head(self.norm(self.read(torch.cat([numbers, self.kinds(kinds)], 1)).relu()))


@pytest.mark.parametrize("named", [False, True])
def test_several_inputs_are_collected_from_and_trained_on(named):
    torch.manual_seed(0)
    x = {"numbers": torch.randn(64, 4), "kinds": torch.randint(0, 5, (64,))}
    loader = [({k: v[at : at + 32] for k, v in x.items()}, torch.randint(0, 3, (32,))) for at in (0, 32)]
    if not named:
        loader = [(tuple(part.values()), y) for part, y in loader]
    net = OfTwo()
    model = pyro_bc.BayesianNetwork(net, pyro_bc.StandardNormal(), num_data=100_000)
    guide = pyro_bc.CurvatureGuide(model, loader, progress=False)
    read = torch.cat([x["numbers"], net.kinds(x["kinds"])], 1).detach()
    assert torch.allclose(guide.curvature["net.read"].of(bias=False)[0][0], read.T @ read / 64, atol=1e-5)
    small = pyro_bc.compress(model, guide, nats_per_bit=1e-5, batch_norm_loader=loader)
    expected = net.train()(**x)  # with the statistics of these inputs
    assert (small.network()(*x.values()) - expected).abs().mean() < 0.1 * expected.abs().mean()
    trained = pyro_bc.compress(model, guide, nats_per_bit=1e-3, epochs=1, loader=loader, progress=False)
    assert trained.network()(*x.values()).isfinite().all()


def test_models_that_have_no_curvature_are_named():
    with pytest.raises(UsageError, match="of a BayesianNetwork"):
        pyro_bc.CurvatureGuide(lambda x: x, [torch.ones(2, 6)])
    model = pyro_bc.BayesianNetwork(two_layers(), pyro_bc.LearnedCode(), num_data=10)
    with pytest.raises(UsageError, match="is a learned code"):
        pyro_bc.CurvatureGuide(model, [torch.ones(2, 6)], progress=False)


@pytest.mark.parametrize(
    "likelihood",
    [pyro_bc.likelihoods.NegativeBinomial(), pyro_bc.likelihoods.Poisson(), pyro_bc.likelihoods.Normal(),
     pyro_bc.likelihoods.SoftCategorical()],
    ids=lambda likelihood: type(likelihood).__name__,
)  # fmt: skip
def test_a_price_is_found_for_likelihoods_without_a_closed_form_too(likelihood):
    x, _ = two_of_six()
    model = pyro_bc.BayesianNetwork(
        two_layers(outputs=2), pyro_bc.StandardNormal(), num_data=200, likelihood=likelihood
    )
    guide = pyro_bc.CurvatureGuide(model, [x], progress=False)
    small = pyro_bc.compress(model, guide)
    assert small.to_bytes() == pyro_bc.compress(model, guide).to_bytes()
    outputs, expected = small.network()(x), model.skeleton(x).detach()
    assert float((outputs - expected).abs().mean()) < 0.3 * float(expected.abs().max())


def test_a_price_at_which_nothing_is_left_is_named():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(200, 5)
    model = pyro_bc.BayesianNetwork(net, pyro_bc.StandardNormal(), num_data=200)
    guide = pyro_bc.CurvatureGuide(model, [x], progress=False)
    with pytest.raises(EmptyNetworkError, match=r"at 1000 nats a bit .* lower nats_per_bit"):
        pyro_bc.compress(model, guide, nats_per_bit=1000)
    with pytest.raises(EmptyNetworkError, match=r"one prediction for all inputs .* less than 100 nats"):
        pyro_bc.compress(model, guide, divergence=100)


def test_a_large_bias_beside_a_fine_step_is_stored_as_it_is():
    net = two_layers()
    with torch.no_grad():
        net[2].bias.copy_(torch.tensor([3e5, -2e5]))
    x, _ = two_of_six()
    model = pyro_bc.BayesianNetwork(
        net, pyro_bc.StandardNormal(), num_data=200, likelihood=pyro_bc.likelihoods.Normal()
    )
    guide = pyro_bc.CurvatureGuide(model, [x], progress=False)
    outputs = pyro_bc.compress(model, guide, nats_per_bit=1e-9).network()(x)
    assert torch.allclose(outputs, net(x).detach(), rtol=1e-5)


def test_a_fit_may_start_from_it():
    torch.manual_seed(0)
    x, y = two_of_six()
    model = pyro_bc.BayesianNetwork(two_layers(), pyro_bc.GroupNormalJeffreys(), num_data=200)
    guide = pyro_bc.CurvatureGuide(model, [x], progress=False)
    start = guide.log_variances()
    for layer, own in guide.curvature.items():
        weight = guide.median()[f"{layer}.weight"]
        (a,) = own.of(bias=False)
        precision = 200 * own.softened[:, None] * a[0].diagonal()[None] + 1
        most = 0.3 * weight.square().mean()
        assert torch.allclose(start[f"{layer}.weight"].exp(), (1 / precision).clamp(max=float(most)), rtol=1e-4)
    pyro.clear_param_store()
    fit_guide = pyro_bc.FactorizedGuide(model, init_log_variance=start)
    fit_guide(x, y)
    _, log_variance = fit_guide.parameters_of("net.0.weight")
    assert torch.equal(log_variance.detach(), start["net.0.weight"])
    assert float(fit_guide.parameters_of("net.0.scale")[1].detach().max()) == -9
    pyro_bc.fit(model, fit_guide, pyro_bc.data.Batches(x, y, 50), epochs=2, progress=False)
    pyro.clear_param_store()
    with pytest.raises(UsageError, match="has shape"):
        pyro_bc.FactorizedGuide(model, init_log_variance={"net.0.weight": torch.zeros(2, 2)})(x, y)


def test_drawn_weights_of_a_network_that_is_sure_predict_as_its_means_do():
    torch.manual_seed(0)
    centres = 2 * torch.randn(4, 10)
    y = torch.arange(4).repeat(100)
    x = centres[y] + torch.randn(400, 10)
    net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
    assert loss < 1e-2
    model = pyro_bc.BayesianNetwork(net, pyro_bc.StandardNormal(), num_data=400)
    guide = pyro_bc.CurvatureGuide(model, [x], progress=False)
    new_y = torch.arange(4).repeat(250)
    new_x = centres[new_y] + torch.randn(1000, 10)
    right = [(p.argmax(1) == new_y).float().mean() for p in (net(new_x), sampled_probabilities(guide, new_x))]
    assert right[1] > right[0] - 0.02


def test_inputs_that_are_not_finite_are_refused():
    model = pyro_bc.BayesianNetwork(two_layers(), pyro_bc.StandardNormal(), num_data=10)
    with pytest.raises(UsageError, match="NaN"):
        pyro_bc.CurvatureGuide(model, [torch.randn(5, 6), torch.full((5, 6), math.nan)], progress=False)


class Placed(nn.Module):
    """Words with places: an embedding, a parameter and a normalisation beside a layer."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(12, 8)
        self.places = nn.Parameter(torch.randn(5, 8))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.norm(self.words(x) + self.places).mean(1))


def test_other_parameters_are_known_as_their_fisher_information_says():
    torch.manual_seed(0)
    net, x = Placed(), torch.randint(12, (3000, 5))
    found = collect(read_graph(net, x[:9]), pyro_bc.likelihoods.Categorical(), x.split(10), progress=False).others
    assert set(found) == {"places", "norm.weight", "norm.bias"}
    for name in ("places", "norm.weight"):
        exact = torch.zeros(())
        parameter = dict(net.named_parameters())[name]
        for row in range(60):
            log_p = (net(x[row : row + 1]) / curvature_module.TEMPERATURE).log_softmax(1)[0]
            for target in range(3):
                (gradient,) = torch.autograd.grad(log_p[target], parameter, retain_graph=True)
                exact += log_p[target].exp().detach() * gradient.square().mean() / 60
        assert found[name] == pytest.approx(float(exact), rel=0.3)


def test_other_parameters_are_stored_as_finely_as_they_are_known():
    torch.manual_seed(0)
    x = torch.randint(12, (500, 5))
    model = pyro_bc.BayesianNetwork(Placed(), pyro_bc.StandardNormal(), num_data=500)
    guide = pyro_bc.CurvatureGuide(model, x.split(50), progress=False)
    sizes = []
    for price in (1e-7, 1e-5, 1e-3):
        small = pyro_bc.compress(model, guide, nats_per_bit=price)
        sizes.append(len(small.to_bytes()))
        outputs, expected = small.network()(x), model.skeleton(x).detach()
        divergence = nn.functional.kl_div(
            outputs.log_softmax(1), expected.log_softmax(1), log_target=True, reduction="batchmean"
        )
        assert float(divergence) < 100 * price
    assert sizes[0] > 1.3 * sizes[1] > 1.3**2 * sizes[2]


def test_setting_it_up_moves_no_ones_noise():
    model = pyro_bc.BayesianNetwork(nn.Sequential(nn.Linear(4, 3)), num_data=20)
    before = torch.get_rng_state()
    guides = [pyro_bc.CurvatureGuide(model, [torch.ones(5, 4)], progress=False)]
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(7)
    guides.append(pyro_bc.CurvatureGuide(model, [torch.ones(5, 4)], progress=False))
    one, other = (guide.median()["net.0.weight"] for guide in guides)
    assert torch.equal(one, other)
