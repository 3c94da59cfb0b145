"""A pruned filter takes its normalisation with it; one that reads nothing leaves its shift."""

import pytest
import torch
from helpers import set_up
from torch import nn

import pyro_bc
from pyro_bc.compression.normalisation import without_pruned_shifts
from pyro_bc.graph.module import GraphNetwork
from pyro_bc.graph.read import read_graph

OFF = torch.tensor([False, True, False, True])
X = torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(0))


def moved(net):
    """Gains, shifts and statistics that are not those of a fresh network."""
    torch.manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            module.running_mean.normal_()
        for parameter in module.parameters(recurse=False):
            parameter.data.normal_()
    return net.eval()


def without_shifts(net, off=OFF):
    """The network whose layer ``a`` gives 0 at these filters, and the same without the shifts behind them."""
    net.a.weight.data[off], net.a.bias.data[off] = 0.0, 0.0
    graph = read_graph(net, X)
    silent = without_pruned_shifts(graph, {"a": off})
    return [list(GraphNetwork(g.nodes, g.tensors, g.buffers).results(g.nodes, X))[-1] for g in (graph, silent)]


class Behind(nn.Module):
    """A convolution ``a`` and what is behind it."""

    def __init__(self, *behind):
        super().__init__()
        self.a, self.behind = nn.Conv2d(2, 4, 3), nn.Sequential(*behind)

    def forward(self, x):
        return self.behind(self.a(x))


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    "behind",
    [
        (nn.BatchNorm2d(4),),
        (nn.ReLU(), nn.BatchNorm2d(4)),
        (nn.Sigmoid(), nn.BatchNorm2d(4)),
        (nn.BatchNorm2d(4, affine=False),),
        (nn.BatchNorm2d(4), nn.Softplus(), nn.BatchNorm2d(4)),
        (nn.BatchNorm2d(4, track_running_stats=False),),
        (nn.InstanceNorm2d(4, affine=True),),
        (nn.GroupNorm(2, 4),),
        (ChannelsLast(),),
        (nn.Upsample(scale_factor=2), nn.BatchNorm2d(4)),
    ],
    ids=lambda layers: "-".join(type(layer).__name__ for layer in layers),
)
def test_a_normalisation_gives_nothing_where_pruned_filters_are_all_it_reads(behind):
    with_shift, without = without_shifts(moved(Behind(*behind)))
    assert (without[:, OFF].abs() < 1e-6).all() and (with_shift[:, OFF] != 0).any()
    assert torch.equal(without[:, ~OFF], with_shift[:, ~OFF])


class Sum(nn.Module):
    """A pruned filter among others that are not, and a normalisation that is used twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.a(x)) + self.norm(self.b(x))


def test_what_others_read_too_keeps_its_shift():
    with_shift, without = without_shifts(moved(Sum()))
    assert torch.equal(with_shift, without)
    net = moved(Behind(nn.BatchNorm2d(4)))
    net.forward = lambda x: net.behind(net.a(x) + x.mean((1, 2, 3), keepdim=True))
    with_shift, without = without_shifts(net)
    assert torch.equal(with_shift, without)


def test_compressed_with_its_normalisation_kept_a_filter_goes_behind_padding_too():
    torch.manual_seed(0)
    conv = [nn.Conv2d(a, 6, 3, padding=1, bias=False) for a in (1, 6)]
    norms = [nn.BatchNorm2d(6), nn.BatchNorm2d(6)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)]
    net = nn.Sequential(conv[0], norms[0], nn.ReLU(), conv[1], nn.ReLU(), norms[1], *head)
    x = torch.randn(8, 1, 6, 6)
    model, guide = set_up(moved(net), x, num_data=8, init_log_variance=-24.0)
    with torch.no_grad():
        for name in ("net.0", "net.3"):
            guide.parameters_of(f"{name}.scale")[1][::2] = 20.0
    cut = dict.fromkeys(("0", "3", "8"), 2.0)
    for loader in (None, [x, x]):
        small = pyro_bc.compress(model, guide, thresholds=cut, noise_ratio=1e-9, batch_norm_loader=loader)
        assert [tuple(layer.weight.codes.shape) for layer in small.layers] == [(3, 1, 3, 3), (3, 3, 3, 3), (3, 3)]
        again = pyro_bc.CompressedNetwork.from_bytes(small.to_bytes()).network()
        assert torch.equal(again(x), small.network()(x))
