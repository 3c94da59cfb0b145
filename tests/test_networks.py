"""The shipped networks have the published sizes, and an unknown name is refused with the known ones."""

import pytest
import torch

from pyro_bc.chain import linear_names, read_chain
from pyro_bc.errors import UsageError
from pyro_bc.networks import NETWORKS, lenet_300_100, network


def test_lenet_300_100_has_the_published_parameters_and_is_a_chain():
    net = lenet_300_100()
    weights = sum(p.numel() for name, p in net.named_parameters() if name.endswith("weight"))
    assert (weights, sum(p.numel() for p in net.parameters())) == (266_200, 266_610)
    assert linear_names(read_chain(net)) == ["fc1", "fc2", "fc3"]


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_take_pictures_and_return_logits(name):
    assert network(name)((3, 8, 8), 7)(torch.rand(5, 3, 8, 8)).shape == (5, 7)


def test_an_unknown_network_is_refused():
    with pytest.raises(UsageError, match="lenet-300-100"):
        network("lenet")
