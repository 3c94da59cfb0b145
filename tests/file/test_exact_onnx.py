"""In int8, what decides stays exact: positions are those that there are."""

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


def test_int8_decides_as_floats_do(tmp_path):
    torch.manual_seed(0)
    net = Counted().eval()
    x = torch.rand(64, 12, 4)
    model = pyro_bc.BayesianNetwork(net, pyro_bc.StandardNormal(), num_data=64, likelihood=pyro_bc.likelihoods.Normal())
    small = pyro_bc.compress(model, pyro_bc.CurvatureGuide(model, [(x, None)], progress=False), nats_per_bit=1e-6)
    to_int8(small, tmp_path / "int8.onnx", [x])
    with torch.no_grad():
        expected, found = small.network()(x), OnnxNetwork(tmp_path / "int8.onnx", threads=1)(x)
    assert (expected - found).square().mean().sqrt() < 0.1 * expected.std()
