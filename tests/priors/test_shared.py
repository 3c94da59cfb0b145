"""What shared scales multiply: against products written out, and moments against brute-force draws."""

import pyro.distributions as dist
import pytest
import torch

from pyro_bc.priors.shared import along, scaled

GROUPS = torch.tensor([1, -1, 0, 1])


@pytest.mark.parametrize(
    "axes", [{0: GROUPS}, {1: torch.tensor([2, 0, -1])}, {0: GROUPS, 1: torch.tensor([1, 0, -1])}], ids=len
)
def test_each_entry_has_the_scales_of_the_channels_it_is_in_and_each_once(axes):
    scale = torch.tensor([2.0, 3.0, 5.0])
    found = along(axes, scale, 3).expand(4, 3, 2)
    for i in range(4):
        for j in range(3):
            channels = {int(own[(i, j)[axis]]) for axis, own in axes.items()} - {-1}
            expected = 1.0
            for channel in channels:
                expected *= float(scale[channel])
            assert found[i, j].tolist() == [expected, expected]


@pytest.mark.parametrize("family", [dist.Normal, dist.LogNormal])
def test_moments_are_those_of_draws_also_where_a_weight_reads_and_writes_one_channel(family):
    torch.manual_seed(0)
    axes = {0: GROUPS, 1: torch.tensor([1, 0, -1])}
    q = family(0.5 * torch.randn(3), 0.1 + 0.3 * torch.rand(3))
    weight = dist.Normal(torch.randn(4, 3), 0.1 + 0.3 * torch.rand(4, 3))
    n = 40_000
    draws = torch.stack([along(axes, z, 2) * w for z, w in zip(q.sample((n,)), weight.sample((n,)), strict=True)])
    mean, variance = scaled(axes, weight.mean, weight.variance, q)
    assert ((draws.mean(0) - mean).abs() < 5 * draws.std(0) / n**0.5).all()
    fourth = (draws - draws.mean(0)).pow(4).mean(0)
    assert ((draws.var(0) - variance).abs() < 5 * (fourth / n).sqrt()).all()


def test_a_variance_that_is_tiny_beside_the_mean_is_not_lost():
    q = dist.Normal(torch.ones(1), torch.full((1,), 1e-6))
    _, variance = scaled({0: torch.zeros(1, dtype=torch.long)}, torch.ones(1), torch.zeros(1), q)
    torch.testing.assert_close(variance, torch.full((1,), 1e-12))
