"""Scales that layers share: one set of sites, counted once, which multiplies all that belongs to a channel."""

import copy
import pickle
from contextlib import nullcontext

import numpy as np
import pyro
import pytest
import torch
from helpers import set_up, two_layers
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from streams import KINDS, Encoder, Pictures, example, shaken
from torch import nn

import pyro_bc
from pyro_bc.errors import UnsupportedNetworkError, UsageError
from pyro_bc.graph.module import evaluating
from pyro_bc.inference.elbo import elbo_terms
from pyro_bc.inspection.diagnostics import error_percent

WIDTH = pyro_bc.ResidualWidth(pyro_bc.GroupNormalJeffreys())


def written_down(kind):
    """For every tensor of a kind, which stream's channels lie along which of its axes."""
    if kind == "convolutions":
        rows = {"stem": 0, "norm": 0, "b": 0, "norm_b": 0, "c": 1, "norm_c": 1, "short": 1, "norm_short": 1}
        columns = {"a": 0, "c": 0, "short": 0, "head": 1}
    elif kind.startswith("normalised"):
        rows = dict.fromkeys(("embed", "block.norm1", "block.norm2", "block.linear2", "block.self_attn.out_proj"), 0)
        columns = dict.fromkeys(
            (*(f"block.self_attn.{p}" for p in ("query", "key", "value")), "block.linear1", "head"), 0
        )
    else:
        rows, columns = dict.fromkeys(("down", "norm", "last"), 0), dict.fromkeys(("words", "gate", "up", "head"), 0)
    found = {f"{layer}.{role}": {0: stream} for layer, stream in rows.items() for role in ("weight", "bias")}
    for layer, stream in columns.items():
        found.setdefault(f"{layer}.weight", {})[1] = stream
    return found | {"position": {1: 0}}


def by_hand(kind, model, values, x):
    """The network with its tensors multiplied by hand."""
    net = copy.deepcopy(model.skeleton).eval()
    scales = [value for name, value in values.items() if name.startswith("residual.")]
    axes = written_down(kind)
    with torch.no_grad():
        for name, tensor in net.named_parameters():
            site = "net.head.weight" if name == "words.weight" else f"net.{name}"  # which is the head's
            tensor.copy_(values.get(site, tensor))
            for axis, stream in axes.get(name, {}).items():
                tensor.mul_(scales[stream].reshape([-1 if at == axis else 1 for at in range(tensor.dim())]))
        return net(x)


@pytest.mark.parametrize("kind", KINDS)
def test_a_scale_multiplies_all_that_belongs_to_its_channel_once(kind):
    torch.manual_seed(0)
    net = shaken(KINDS[kind]())
    x = example(net)
    y = x if not x.is_floating_point() else torch.zeros(len(x), dtype=torch.long)
    prior = pyro_bc.ResidualWidth(pyro_bc.StandardNormal(), pyro_bc.GroupNormalJeffreys())
    model, guide = set_up(net, x, prior, y)
    values = {name: q.sample() for name, q in guide.posterior().items()}
    for name in guide.shared:
        values[f"{name}.scale"] = 0.5 + torch.rand(guide.shared[name].members.size)
    with torch.no_grad(), pyro.poutine.block(), evaluating(model):
        found = pyro.condition(model, data=values)(x)
    torch.testing.assert_close(found, by_hand(kind, model, values, x), rtol=1e-4, atol=1e-4)


def test_sites_come_first_once_and_their_kl_is_counted_once():
    torch.manual_seed(0)
    net, x = Encoder(), example(Encoder())
    y = torch.arange(len(x)) % 2
    model, guide = set_up(net, x, WIDTH, y)
    trace = pyro.poutine.trace(pyro.poutine.replay(model, trace=pyro.poutine.trace(guide).get_trace(x, y))).get_trace(
        x, y
    )
    names = [name for name in trace.stochastic_nodes if not name.startswith("_")]
    assert names[0] == "residual.0.scale" and names.count("residual.0.scale") == 1
    with torch.no_grad():
        terms = elbo_terms(model, guide, x, y)
        q, p = guide.distribution("residual.0.scale"), trace.nodes["residual.0.scale"]["fn"].base_dist
        expected = torch.distributions.kl_divergence(q, p).sum()
        torch.testing.assert_close(terms.kl["residual.0.scale"], expected)
    assert terms.kl.keys() == guide.families.keys()


@pytest.mark.parametrize("width", [pyro_bc.GroupNormalJeffreys(), pyro_bc.GroupHorseshoe(0.1)])
def test_the_bound_is_the_same_in_and_out_of_the_handler(width):
    torch.manual_seed(0)
    net, x = shaken(Encoder(4)), example(Encoder(4), 3)
    y = torch.arange(len(x)) % 2
    prior = pyro_bc.ResidualWidth(pyro_bc.GroupNormalJeffreys(), width)
    model, guide = set_up(net, x, prior, y, num_data=3, init_log_variance=-4.0)
    pyro.enable_validation(False)
    estimates = []
    count = 60
    for handler, elbo in ((nullcontext(), TraceMeanField_ELBO()), (pyro_bc.local_reparameterization(), Trace_ELBO())):
        with handler, torch.no_grad():
            estimates.append(np.array([elbo.loss(model, guide, x, y) for _ in range(count)]))
    with torch.no_grad():
        estimates.append(np.array([float(elbo_terms(model, guide, x, y).loss()) for _ in range(count)]))
    for found in estimates[1:]:
        error = np.hypot(found.std(), estimates[0].std()) / np.sqrt(count)
        assert abs(found.mean() - estimates[0].mean()) < 4.5 * error


def test_pyros_loop_and_fit_train_it_and_unneeded_channels_go(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(200, 4, 3)
    y = (x[:, :, 0].mean(1) > 0).long()
    model = pyro_bc.BayesianNetwork(Encoder(6), WIDTH, num_data=200)
    guide = pyro_bc.FactorizedGuide(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), TraceMeanField_ELBO())
    with pyro_bc.local_reparameterization():
        assert np.isfinite(svi.step(x[:50], y[:50]))
    result = pyro_bc.fit(model, guide, pyro_bc.data.Batches(x, y, 50), epochs=60, kl_weight=0.3, learning_rate=1e-2,
                         log_learning_rate=0.1, progress=False, checkpoint=tmp_path / "c")  # fmt: skip
    end = result.history[-1]
    assert end.groups_left["residual.0"] < 6 and "residual.0" in end.kl_by_layer
    small = pyro_bc.compress(model, guide)
    assert error_percent(small.network(), x, y) < 12
    assert next(layer for layer in small.layers if layer.name == "head").weight.codes.shape[1] < 6


def test_models_can_be_copied_and_moved_and_the_copy_has_scales_of_its_own():
    net, x = Encoder(), example(Encoder())
    y = torch.zeros(len(x), dtype=torch.long)
    model, guide = set_up(net, x, WIDTH, y)
    values = guide.median()
    values["residual.0.scale"] = torch.linspace(0.5, 1.5, 8)

    def computed(own):
        with torch.no_grad(), pyro.poutine.block(), evaluating(own):
            return pyro.condition(own, data=values)(x)

    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.to("cpu")):
        torch.testing.assert_close(computed(other), computed(model))
    assert copy.deepcopy(model).residual[0] is not model.residual[0]
    assert "block.norm1.weight" in model.net.state_dict()


@pytest.mark.parametrize(
    ("net", "prior", "error", "said"),
    [
        (two_layers(), WIDTH, UnsupportedNetworkError, "no channels that cross layers"),
        (Encoder(), pyro_bc.ResidualWidth(pyro_bc.LearnedCode()), UsageError, "weights are codes"),
    ],
)
def test_what_has_no_such_channels_is_refused_with_the_first_input(net, prior, error, said):
    x = torch.randn(5, 6) if isinstance(net, nn.Sequential) else example(net)
    with pytest.raises(error, match=said):
        set_up(net, x, prior)


def test_channels_that_stay_are_said_and_the_others_are_shared():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.free, self.mixed = Encoder(), Encoder(6)

        def forward(self, x):
            h = self.mixed.embed(x)
            h = (h + self.mixed.block.linear2(self.mixed.block.linear1(h).relu())).cumsum(2)
            return self.free(x) + self.mixed.head(h).mean(1)

    x = example(Encoder())
    with pytest.warns(
        UserWarning, match=r"the 6 channels that mixed\.embed, mixed\.block\.linear2 write stay: 'cumsum'"
    ):
        model, guide = set_up(Two(), x, WIDTH)
    assert [own.members.size for own in guide.shared.values()] == [8] and len(model.residual) == 1


def test_other_places_for_the_prior_say_where_it_belongs():
    with pytest.raises(UsageError, match="give ResidualWidth to BayesianNetwork"):
        pyro_bc.bayesianize(Encoder(), WIDTH)
    with pytest.raises(UsageError, match="layers=…"):
        pyro_bc.ResidualWidth("ghs")
    with pytest.raises(UsageError, match="width=…"):
        pyro_bc.ResidualWidth(width=pyro_bc.StandardNormal())
    assert isinstance(pyro_bc.ResidualWidth(pyro_bc.LogUniform()).width, pyro_bc.GroupHorseshoe)
    y = torch.zeros(6, dtype=torch.long)
    model, _ = set_up(Pictures(), example(Pictures()), WIDTH, y)
    with pytest.raises(UsageError, match="curvature has no scales"):
        pyro_bc.CurvatureGuide(model, [example(Pictures())], progress=False)


def test_frozen_and_deterministic_layers_of_a_stream_are_scaled_all_the_same():
    torch.manual_seed(0)
    net, x = shaken(Encoder()), example(Encoder())
    net.embed.requires_grad_(False)
    pyro.clear_param_store()
    model = pyro_bc.BayesianNetwork(net, WIDTH, num_data=6, deterministic=["block.linear2"])
    guide = pyro_bc.FactorizedGuide(model, init_log_variance=-30.0)
    guide(x, torch.zeros(len(x), dtype=torch.long))
    own = guide.shared["residual.0"].members
    assert {"embed.weight", "embed.bias", "block.linear2.weight", "block.norm1.bias"} <= own.others.keys()
    assert guide.obstacle is None
    with torch.no_grad():
        guide.locs.residual.get_submodule("0").scale[::2] = 1e-4
        guide.log_variances.residual.get_submodule("0").scale[::2] = 0.0
    small = pyro_bc.compress(model, guide)
    shapes = {layer.name: tuple(layer.weight.codes.shape) for layer in small.layers}
    assert shapes["embed"] == (4, 3) and shapes["block.linear2"][0] == 4


def test_summaries_and_arviz_have_the_shared_scales_in_the_weights():
    torch.manual_seed(0)
    net, x = shaken(Encoder()), example(Encoder())
    prior = pyro_bc.ResidualWidth(pyro_bc.GroupHorseshoe(0.1))
    _, guide = set_up(net, x, prior, torch.zeros(len(x), dtype=torch.long), init_log_variance=-3.0)
    data = pyro_bc.to_inference_data(guide, draws=2000, weights=True)
    drawn = {name: data.posterior[name].values[0] for name in data.posterior.data_vars}
    scale, own = drawn["residual.0.scale"], drawn["net.head.scale"]
    assert data.posterior["residual.0.scale"].dims[-1] == "residual.0.channel"
    assert data.posterior["residual.0.local_a"].dims[-1] == "residual.0.channel"
    expected = drawn["net.head.unscaled_weight"] * (scale * own)[:, None, :]
    np.testing.assert_allclose(drawn["net.head.weight"], expected, rtol=1e-4, atol=1e-6)
    summaries = pyro_bc.summarize(guide)
    for site in ("net.head.weight", "net.embed.weight", "net.embed.bias"):
        layer, _, role = site.rpartition(".")
        mean = getattr(summaries[layer], f"{role}_mean").numpy()
        error = drawn[site].std(0) / np.sqrt(2000)
        assert (abs(drawn[site].mean(0) - mean) < 5 * error).all()
    np.testing.assert_allclose(data.constant_data["residual.0.statistic"], summaries["residual.0"].statistic)
    assert set(data.prior.data_vars) >= {"residual.0.scale", "net.head.weight"}
