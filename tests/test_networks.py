"""The shipped networks have the published sizes, and an unknown name is refused with the known ones."""

import pytest
import torch

from pyro_bc.errors import UsageError
from pyro_bc.networks import NETWORKS, Normalize, lenet_5_caffe, lenet_300_100, network


@pytest.mark.parametrize("build,sizes", [(lenet_300_100, (266_200, 266_610)), (lenet_5_caffe, (430_500, 431_080))])
def test_networks_have_the_published_parameters(build, sizes):
    net = build()
    weights = sum(p.numel() for name, p in net.named_parameters() if name.endswith("weight"))
    assert (weights, sum(p.numel() for p in net.parameters())) == sizes


def test_normalize_is_per_channel():
    x = torch.rand(4, 2, 3, 3)
    expected = torch.stack([(x[:, 0] - 0.1) / 0.5, (x[:, 1] - 0.2) / 0.25], 1)
    assert torch.allclose(Normalize([0.1, 0.2], [0.5, 0.25])(x), expected, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_take_pictures_and_return_logits(name):
    assert network(name)((3, 32, 32), 7)(torch.rand(5, 3, 32, 32)).shape == (5, 7)


def test_an_unknown_network_is_refused():
    with pytest.raises(UsageError, match="lenet-300-100"):
        network("lenet")
