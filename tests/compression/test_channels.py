"""Channels that cross layers leave all that writes, reads and normalises them, and what is stored computes what the
model does with their scales at 0."""

from operator import attrgetter

import onnxruntime
import pyro
import pytest
import torch
from helpers import set_up
from streams import KINDS, Encoder, Pictures, example, shaken

import pyro_bc
from pyro_bc.compression.check import check
from pyro_bc.graph.module import evaluating
from pyro_bc.inspection.diagnostics import error_percent
from pyro_bc.posterior.channels import without_channels
from pyro_bc.posterior.in_place import all_compressed_in_place, network_with
from pyro_bc.posterior.thresholds import Threshold


def halved(net, x, layers=None, width=None):
    """A model at a network's weights with hardly any noise, every second channel of whose streams is none but noise."""
    width = pyro_bc.GroupNormalJeffreys() if width is None else width
    prior = pyro_bc.ResidualWidth(pyro_bc.StandardNormal() if layers is None else layers, width)
    y = torch.zeros(len(x), dtype=torch.long)
    model, guide = set_up(net, x, prior, y, init_log_variance=-30.0) if x.is_floating_point() else tokens(net, x, prior)
    with torch.no_grad():
        for name in guide.shared:
            role = "scale" if "scale" in guide.shared[name].sites else "local_a"
            loc, log_variance = (attrgetter(f"{name}.{role}")(tree) for tree in (guide.locs, guide.log_variances))
            loc[::2], log_variance[::2] = (1e-4, 0.0) if role == "scale" else (-40.0, 2.0)
    return model, guide


def tokens(net, x, prior):
    pyro.clear_param_store()
    model = pyro_bc.BayesianNetwork(net, prior, num_data=50)
    guide = pyro_bc.FactorizedGuide(model, init_log_variance=-30.0)
    guide(x, x)
    return model, guide


def model_without(model, guide, x):
    """What the Pyro model computes at the guide's medians with the scales of every second channel at 0."""
    values = guide.median()
    for name, own in guide.shared.items():
        role = next(iter(own.sites))
        values[f"{name}.{role}"] = values[f"{name}.{role}"] * (torch.arange(own.members.size) % 2)
    with torch.no_grad(), pyro.poutine.block(), evaluating(model):
        return pyro.condition(model, data=values)(x)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_stored_is_the_model_with_scales_at_0_and_is_narrower(kind, tmp_path):
    torch.manual_seed(0)
    net = shaken(KINDS[kind]())
    x = example(net)
    model, guide = halved(net, x)
    small = pyro_bc.compress(model, guide)
    expected = model_without(model, guide, x)
    scale = float(expected.abs().max())
    small.save(tmp_path / "small.pbc")
    loaded = pyro_bc.load(tmp_path / "small.pbc")
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), expected, rtol=1e-3, atol=1e-3 * scale)
    pyro_bc.onnx.to_onnx(small, tmp_path / "small.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "small.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-3 * scale)
    left = {f"{layer.name}.weight": tuple(layer.weight.codes.shape) for layer in small.layers}
    for own in guide.shared.values():
        assert small.thresholds[next(iter(guide.shared))].method == "mixture"
        for site, axes in own.members.layers.items():
            if site.endswith(".weight"):
                name = "head.weight" if site == "net.words.weight" else site.removeprefix("net.")
                assert all(left[name][axis] == own.members.size // 2 for axis in axes), (name, left[name])
        for path in own.members.others:  # gains, shifts, positions
            assert all(t.codes.numel() < net.get_parameter(path).numel() for n, t in small.tensors.items() if n == path)


def test_layers_keep_groups_of_their_own_and_the_guard_looks_at_the_same_network():
    torch.manual_seed(0)
    net, x = shaken(Encoder()), example(Encoder())
    model, guide = halved(net, x, pyro_bc.GroupHorseshoe(), pyro_bc.GroupHorseshoe())
    with torch.no_grad():
        guide.locs.net.block.linear2.local_a[:6] = -40.0
        guide.log_variances.net.block.linear2.local_a[:6] = 2.0
    small = pyro_bc.compress(model, guide)
    shapes = {layer.name: tuple(layer.weight.codes.shape) for layer in small.layers}
    assert shapes["block.linear1"] == (6, 4) and shapes["block.linear2"] == (4, 6)
    left, changed = all_compressed_in_place(pyro_bc.summarize(guide))
    with torch.no_grad():
        seen = network_with(model, left, changed)(x)
        torch.testing.assert_close(small.network()(x), seen, rtol=1e-3, atol=1e-3)


def test_a_threshold_of_channels_is_given_by_their_name():
    torch.manual_seed(0)
    net, x = shaken(Encoder()), example(Encoder())
    model, guide = halved(net, x)
    whole = pyro_bc.compress(model, guide, thresholds={"residual.0": 1e3})
    assert {tuple(layer.weight.codes.shape) for layer in whole.layers if layer.name == "head"} == {(2, 8)}
    with pytest.raises(pyro_bc.errors.UsageError, match=r"residual\.1.*head, residual\.0"):
        pyro_bc.compress(model, guide, thresholds={"residual.1": 1.0})


def test_only_the_channels_that_a_threshold_names_are_cut():
    _, guide = halved(shaken(Encoder()), example(Encoder()))
    layers = pyro_bc.summarize(guide)
    assert without_channels(layers, {}) == layers
    left = without_channels(layers, {"residual.0": Threshold(0.0, "explicit")})
    assert not left["net.embed"].weight_mean[::2].any() and not left["net.embed"].bias_mean[::2].any()
    assert torch.equal(left["net.head"].weight_mean[:, 1::2], layers["net.head"].weight_mean[:, 1::2])
    assert not left["net.head"].reach[:, ::2].any() and left["net.head"].bias_mean.all()


def test_check_says_which_channels_cross_which_layers():
    found = check(Encoder(), example(Encoder()), prior=pyro_bc.ResidualWidth())
    (row,) = [row for row in found.layers if row.type == "channels"]
    assert found.ok and (row.name, row.groups, row.prior) == ("residual.0", "8 channels", "GroupHorseshoe")
    assert row.note.startswith(
        "written by embed, block.self_attn.out_proj, block.linear2; read by block.self_attn.query"
    )
    assert not any(row.note for row in found.layers if row.type != "channels")
    alone = {row.name: row.note for row in check(Encoder(), example(Encoder())).layers}
    assert "its outputs stay" in alone["embed"] and "residual.0" not in alone


def test_check_says_why_channels_stay():
    class Shifted(Encoder):
        def forward(self, x):
            h = self.embed(x) + self.position
            h = h + self.block.linear2(self.block.linear1(h))
            return self.head(self.block.norm1(h.cos()).mean(1))  # a channel at 0 is 1 there

    found = check(Shifted(), example(Encoder()), prior=pyro_bc.ResidualWidth())
    (row,) = [row for row in found.layers if row.type == "channels"]
    assert found.ok and "they stay: in 'embed', 'layer_norm' has its statistics of them" in row.note


def test_a_table_of_what_each_layer_costs_has_the_channels():
    torch.manual_seed(0)
    net, x = shaken(Pictures()), example(Pictures())
    model, guide = halved(net, x)
    rows = {row.layer: row for row in pyro_bc.sensitivity(model, guide, [(x, torch.zeros(len(x)).long())]).rows}
    assert (rows["residual.0"].groups, rows["residual.0"].of) == (3, 6)
    assert (rows["residual.1"].groups, rows["residual.1"].of) == (4, 8) and rows["residual.1"].is_chosen
    assert error_percent(network_with(model, pyro_bc.summarize(guide), {}), x, torch.zeros(len(x)).long()) <= 100
