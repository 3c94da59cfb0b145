"""The KL of large sites, summed part by part, against the same term by term."""

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from pyro_bc.priors.mean_field_normal import MeanFieldNormal
from pyro_bc.priors.normal_jeffreys import NormalJeffreys
from pyro_bc.priors.summed import LARGE, summed_divergence

SHAPE = (3, LARGE // 2)


def posterior(shape=SHAPE):
    torch.manual_seed(0)
    loc, log_variance = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64) - 3
    return MeanFieldNormal(loc.requires_grad_(), log_variance.requires_grad_())


@pytest.mark.parametrize(
    "p",
    [dist.Normal(torch.tensor(0.3).double(), torch.tensor(0.7).double()).expand(SHAPE), NormalJeffreys().expand(SHAPE)],
    ids=["normal", "normal-jeffreys"],
)
def test_sum_and_gradient_are_those_of_the_terms(p):
    q, same = posterior(), posterior()
    summed = summed_divergence(q, p)
    (2 * summed).backward()
    terms = kl_divergence(same, p).sum()
    (2 * terms).backward()
    assert summed.item() == pytest.approx(terms.item(), rel=1e-12)
    torch.testing.assert_close(q.loc.grad, same.loc.grad)
    torch.testing.assert_close(q.log_variance.grad, same.log_variance.grad)
    with pytest.raises(RuntimeError, match="asked for before"):
        summed.backward()


def test_what_is_small_or_differs_by_entry_or_is_learned_is_left_to_the_terms():
    small = posterior((3, 4))
    assert summed_divergence(small, dist.Normal(0.0, 1.0).expand((3, 4))) is None
    q = posterior()
    assert summed_divergence(q, dist.Normal(torch.zeros(SHAPE), 1.0)) is None
    learned = torch.tensor(1.0, requires_grad=True)
    assert summed_divergence(q, dist.Normal(0.0, learned).expand(SHAPE)) is None
    assert summed_divergence(dist.Normal(q.loc, 1.0), dist.Normal(0.0, 1.0).expand(SHAPE)) is None
    assert summed_divergence(q, dist.Normal(0.0, 1.0)) is None  # of another shape


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)], ids=str)
def test_the_divergence_of_normals_has_the_gradient_of_finite_differences(shape):
    q = posterior((2, 3))
    loc = torch.full(shape, 0.2, dtype=torch.float64, requires_grad=True)
    scale = torch.full(shape, 0.8, dtype=torch.float64, requires_grad=True)

    def divergence(loc, log_variance, prior_loc, prior_scale):
        return kl_divergence(MeanFieldNormal(loc, log_variance), dist.Normal(prior_loc, prior_scale))

    assert torch.autograd.gradcheck(divergence, (q.loc, q.log_variance, loc, scale))
    few = torch.randn(3, dtype=torch.float64, requires_grad=True)
    if shape == (2, 3):  # the prior is the larger one
        assert torch.autograd.gradcheck(divergence, (few, few, loc, scale))
