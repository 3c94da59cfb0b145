"""Attention with separate projections is torch's; heads are groups, pruned whole, through file and fresh process."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import pyro_bc
from pyro_bc.app.datasets import load_dataset
from pyro_bc.errors import UnsupportedNetworkError
from pyro_bc.graph.attention import GroupedLinear, MultiheadAttention, separate_heads


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kdim,vdim", [(None, None), (5, 7)])
def test_separate_projections_compute_what_torch_does(batch_first, bias, kdim, vdim):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(12, 3, bias=bias, kdim=kdim, vdim=vdim, batch_first=batch_first).eval()
    if bias:
        nn.init.normal_(attention.in_proj_bias)
    ours = MultiheadAttention(attention)
    query, key, value = torch.randn(2, 6, 12), torch.randn(2, 6, kdim or 12), torch.randn(2, 6, vdim or 12)
    causal = torch.triu(torch.ones(6, 6, dtype=torch.bool), 1)
    padding = torch.zeros(2, 6, dtype=torch.bool) if batch_first else torch.zeros(6, 2, dtype=torch.bool)
    padding[-1, -1] = True
    for options in (
        {},
        {"attn_mask": causal},
        {"attn_mask": causal.float() * -5},
        {"attn_mask": torch.randn(3 * (2 if batch_first else 6), *((6, 6) if batch_first else (2, 2)))},
        {"key_padding_mask": padding},
        {"key_padding_mask": padding, "attn_mask": causal},
    ):
        if not batch_first:  # six examples of two tokens
            options = {k: v[:2, :2] if v.shape == (6, 6) else v for k, v in options.items()}
        with torch.no_grad():
            expected = attention(query, key, value, need_weights=False, **options)[0]
            found, weights = ours(query, key, value, **options)
        assert weights is None and torch.allclose(found, expected, atol=1e-5)


def test_what_has_no_counterpart_is_refused():
    for options in ({"add_bias_kv": True}, {"add_zero_attn": True}):
        with pytest.raises(UnsupportedNetworkError):
            MultiheadAttention(nn.MultiheadAttention(4, 2, **options))


class Sentence(nn.Module):
    """Rows of a picture as tokens, torch's encoder, the mean of its outputs."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x.squeeze(1))).mean(1))


def test_torchs_encoder_computes_the_same_with_separate_heads():
    net = Sentence().eval()
    x = torch.rand(3, 1, 8, 8)
    expected = net(x)
    ours = separate_heads(net)
    layers = [m for m in ours.modules() if isinstance(m, GroupedLinear)]
    assert [layer.group_size for layer in layers] == [4, 4]
    assert torch.allclose(ours(x), expected, atol=1e-5)


def test_an_encoder_loses_heads_and_units_and_travels_without_its_class(tmp_path):
    torch.manual_seed(0)
    data = load_dataset("digits")
    model = pyro_bc.BayesianNetwork(Sentence(), pyro_bc.GroupNormalJeffreys(), num_data=len(data.train_x))
    guide = pyro_bc.FactorizedGuide(model, init_log_variance=-8)
    batches = pyro_bc.data.Batches(data.train_x, data.train_y, 64)
    pyro_bc.fit(model, guide, batches, epochs=6, kl_weight=0.0, learning_rate=3e-3, progress=False)
    thresholds = {}
    with torch.no_grad():  # two heads of the first layer, and ten feed-forward units of the second
        for site, dead in (("encoder.layers.0.self_attn.out_proj", [0, 2]), ("encoder.layers.1.linear2", range(10))):
            loc, log_variance = guide.parameters_of(f"net.{site}.scale")
            assert len(loc) == (4 if "attn" in site else 24)
            loc[list(dead)], log_variance[list(dead)] = 1e-4, 0.0
            thresholds[site] = 0.0
    for name in pyro_bc.summarize(guide):
        thresholds.setdefault(name.removeprefix("net."), 1e9)
    small = pyro_bc.compress(model, guide, thresholds=thresholds)
    shapes = {layer.name: tuple(layer.weight.codes.shape) for layer in small.layers}
    assert shapes["encoder.layers.0.self_attn.query"] == shapes["encoder.layers.0.self_attn.value"] == (8, 16)
    assert shapes["encoder.layers.0.self_attn.out_proj"] == (16, 8)
    assert shapes["encoder.layers.1.linear1"] == (14, 16) and shapes["encoder.layers.1.linear2"] == (16, 14)
    small.save(tmp_path / "net.pbc")
    torch.save(data.test_x, tmp_path / "x.pt")
    code = "import torch, pyro_bc; torch.save(pyro_bc.load('net.pbc')(torch.load('x.pt')).detach(), 'y.pt')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    outputs = torch.load(tmp_path / "y.pt")
    assert torch.allclose(outputs, small.network()(data.test_x).detach(), atol=1e-5)
    assert (outputs.argmax(1) == data.test_y).float().mean() > 0.4  # chance is 0.1; a quarter of a layer is gone
