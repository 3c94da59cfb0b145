"""In int8, what decides stays exact: positions are those that there are, and attention over many of them adds up."""

import pytest
import torch
from torch import nn

import pyro_bc
from pyro_bc.file.onnx import OnnxNetwork, to_int8


class Counted(nn.Module):
    """Places are counted in floats, as transformers count those of tokens that a mask leaves, and looked up."""

    def __init__(self):
        super().__init__()
        self.read, self.places, self.head = nn.Linear(4, 8), nn.Embedding(13, 8), nn.Linear(8, 3)

    def forward(self, x):
        places = (torch.ones_like(x[..., 0]).cumsum(1) - 1).long()
        return self.head(self.read(x) + self.places(places))


class Diffuse(nn.Module):
    """Each place looks at all others nearly alike: weights below half of 1/256."""

    def __init__(self):
        super().__init__()
        self.read, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = self.read(x)
        return self.head((h @ h.mT).softmax(-1) @ h)


@pytest.mark.parametrize("kind, places", [(Counted, 12), (Diffuse, 600)])
def test_int8_decides_as_floats_do(tmp_path, kind, places):
    torch.manual_seed(0)
    net = kind().eval()
    x = torch.rand(16, places, 4)
    model = pyro_bc.BayesianNetwork(net, pyro_bc.StandardNormal(), num_data=16, likelihood=pyro_bc.likelihoods.Normal())
    small = pyro_bc.compress(model, pyro_bc.CurvatureGuide(model, [(x, None)], progress=False), nats_per_bit=1e-6)
    to_int8(small, tmp_path / "int8.onnx", [x])
    with torch.no_grad():
        expected, found = small.network()(x), OnnxNetwork(tmp_path / "int8.onnx", threads=1)(x)
    assert (expected - found).square().mean().sqrt() < 0.1 * expected.std()
