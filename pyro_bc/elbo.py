"""The ELBO taken apart: expected log-likelihood and KL per site of one mini-batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.poutine as poutine
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from .local_reparameterization import local_reparameterization


@dataclass(frozen=True)
class ElboTerms:
    r"""One stochastic estimate of the two parts of the ELBO, in nats.

    :param log_likelihood: :math:`\frac{N}{B}\sum_b \log p(y_b \mid x_b, W)`, scalar.
    :param kl: exact :math:`\mathrm{KL}(q\|p)` of every latent site, ``{site: scalar}``.
    :param outputs: what the model returned.
    """

    log_likelihood: Tensor
    kl: dict[str, Tensor]
    outputs: Any

    def total_kl(self) -> Tensor:
        """Sum of the divergences over all sites, scalar."""
        return torch.stack([value.reshape(()) for value in self.kl.values()]).sum()

    def loss(self, kl_weight: float = 1.0) -> Tensor:
        """Negative ELBO with a weight on the KL, scalar; at 1 it is ``TraceMeanField_ELBO``'s."""
        return kl_weight * self.total_kl() - self.log_likelihood


def elbo_terms(model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> ElboTerms:
    """Run guide and model once under local reparameterization and return the parts of the ELBO.

    The sum equals that of ``TraceMeanField_ELBO`` under :func:`~pyro_bc.local_reparameterization`; only the
    parts are kept apart, and the log-densities that the closed-form KL replaces are not evaluated.

    :raises NotImplementedError: where a site has no closed-form KL.
    """
    with local_reparameterization():
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    log_likelihood: Any = 0.0
    kl = {}
    nodes: Any = model_trace.nodes
    for name, site in nodes.items():
        if site["type"] != "sample":
            continue
        if site["is_observed"]:
            log_prob = site["fn"].log_prob(site["value"])
            log_likelihood = log_likelihood + (site["scale"] * log_prob).sum()
        elif name in guide_trace:
            q: Any = guide_trace.nodes[name]["fn"]
            divergence = kl_divergence(q, site["fn"])
            kl[name] = (site["scale"] * divergence).sum()
    return ElboTerms(log_likelihood, kl, nodes["_RETURN"]["value"])
