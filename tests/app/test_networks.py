"""The shipped networks have the published sizes, and an unknown name is refused with the known ones."""

import pytest
import torch

from pyro_bc.app.networks import NETWORKS, Normalize, lenet_5_caffe, lenet_300_100, resnet_18, vgg_16, wrn_16_4
from pyro_bc.app.own_network import network
from pyro_bc.errors import UsageError


@pytest.mark.parametrize(
    "build,weights,parameters",
    [
        (lenet_300_100, 266_200, 266_610),
        (lenet_5_caffe, 430_500, 431_080),
        (vgg_16, 14_977_728, 14_977_728 + 2 * (4_224 + 512) + 10),
        (resnet_18, 11_164_352, 11_173_962),
        (wrn_16_4, 2_745_264, 2_748_890),
    ],
)
def test_networks_have_the_published_parameters(build, weights, parameters):
    net = build()
    assert sum(p.numel() for p in net.parameters() if p.dim() > 1) == weights
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize("name,shape", [("lenet-5-caffe", (1, 8, 8)), ("vgg-16", (3, 28, 28))])
def test_pictures_that_are_too_small_are_refused(name, shape):
    with pytest.raises(UsageError, match=f"{name} takes pictures.*not {shape[1]} x {shape[2]}"):
        network(name)(shape, 10)


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
