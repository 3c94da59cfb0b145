"""Statistics collected anew are those of the batches, as torch's own tool has them; training with them stays finite."""

import pytest
import torch
from helpers import set_up
from torch import nn
from torch.optim.swa_utils import update_bn

import pyro_bc
from pyro_bc.app.datasets import load_dataset
from pyro_bc.compression.batch_norm import reestimate_batch_norm
from pyro_bc.errors import UsageError
from pyro_bc.graph.module import GraphNetwork
from pyro_bc.graph.read import read_graph


def small_net():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2),
        nn.BatchNorm2d(6, affine=False), nn.Flatten(), nn.Linear(24, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3),
    )  # fmt: skip


def test_statistics_are_those_of_torchs_own_tool():
    net = small_net()
    batches = [3 * torch.randn(16, 1, 7, 7) + 1 for _ in range(5)]
    graph = reestimate_batch_norm(read_graph(net, batches[0]), [(x, None) for x in batches])
    update_bn(batches, net)
    x = torch.randn(9, 1, 7, 7)
    net.eval()
    assert torch.allclose(GraphNetwork(graph.nodes, graph.tensors, graph.buffers)(x), net(x), atol=1e-5)
    assert torch.allclose(graph.tensors["1.running_var"], net[1].running_var, rtol=1e-5)


def test_a_batch_of_one_is_passed_over_and_none_at_all_is_refused():
    graph = read_graph(small_net(), torch.rand(2, 1, 7, 7))
    x = torch.randn(16, 1, 7, 7)
    both, first = reestimate_batch_norm(graph, [x, x[:1]]), reestimate_batch_norm(graph, [x])
    assert torch.equal(both.tensors["1.running_mean"], first.tensors["1.running_mean"])
    with pytest.raises(UsageError, match="no batch"):
        reestimate_batch_norm(graph, [x[:1]])
    plain = read_graph(nn.Sequential(nn.Linear(3, 2)), torch.rand(2, 3))
    assert reestimate_batch_norm(plain, []) is plain


def test_the_compressed_network_normalises_by_what_its_pruned_layers_give():
    """Half the inputs of a normalised sum are cut: old statistics would shift and shrink what is left."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    x = torch.rand(512, 8) + 1
    update_bn([x], net)
    model, guide = set_up(net, x, num_data=8, init_log_variance=-14.0)
    with torch.no_grad():
        loc, log_variance = guide.parameters_of("net.0.weight")
        loc[:, :4], log_variance[:, :4] = 1e-4, 0.0
        loc, log_variance = guide.parameters_of("net.0.scale")
        loc[:4], log_variance[:4] = 1e-4, 0.0
    cut = {"0": 0.0, "3": 100.0}
    old = pyro_bc.compress(model, guide, thresholds=cut, noise_ratio=1e-3)
    new = pyro_bc.compress(model, guide, thresholds=cut, noise_ratio=1e-3, batch_norm_loader=x.split(128))
    assert old.architecture == new.architecture == (4, 4)
    net[0].weight.data[:, :4] = 0
    for name in ("0", "3"):
        net.get_submodule(name).weight.data *= guide.parameters_of(f"net.{name}.scale")[0].detach()
    update_bn(x.split(128), net)
    net.eval()
    assert torch.allclose(new.network()(x), net(x), atol=0.02)
    assert not torch.allclose(old.network()(x), net(x), atol=0.2)


def test_500_steps_with_batch_norm_stay_finite_while_filters_die():
    data = load_dataset("digits")
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10),
    )  # fmt: skip
    model = pyro_bc.BayesianNetwork(net.train(), pyro_bc.GroupNormalJeffreys(), num_data=len(data.train_x))
    guide = pyro_bc.FactorizedGuide(model)
    batches = pyro_bc.data.Batches(data.train_x, data.train_y, 64)
    result = pyro_bc.fit(model, guide, batches, epochs=22, log_learning_rate=5e-2, learning_rate=1e-2, progress=False)
    assert 22 * len(batches) >= 500
    left = result.history[-1].groups_left
    assert left["net.3"] < 8 or left["net.7"] < 32  # some died, and their variances with them
    for values in (guide.state_dict(), model.net.state_dict()):
        assert all(torch.isfinite(value).all() for value in values.values())
    small = pyro_bc.compress(model, guide, batch_norm_loader=batches)
    assert torch.isfinite(small.network()(data.test_x)).all()
