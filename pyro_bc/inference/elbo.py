"""The ELBO taken apart: expected log-likelihood and KL per site of one mini-batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..errors import UsageError
from ..model.guide import FactorizedGuide
from ..priors.cells import Cell
from ..priors.divergence import divergence
from ..priors.summed import summed_divergence
from . import deferred_rules as deferred_rules  # operations on what is deferred
from .deferred import Deferred, is_deferrable
from .straight_through import is_rounding, rounded


@dataclass(frozen=True)
class ElboTerms:
    r"""One stochastic estimate of the two parts of the ELBO, in nats.

    :param log_likelihood: :math:`\frac{N}{B}\sum_b \log p(y_b \mid x_b, W)`, scalar.
    :param kl: :math:`\mathrm{KL}(q\|p)` of every latent site, ``{site: scalar}``: exact, or one draw's estimate where
        it has no closed form.
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


class _ElboMessenger(Messenger):
    """Gives every latent site of the model its value from the guide, and sums up what the ELBO is made of.

    One handler in place of trace, replay and local reparameterization, which cost more than a small network's
    arithmetic.
    """

    def __init__(self, guide: FactorizedGuide):
        super().__init__()
        self.q = {name: guide.build(name, *guide.parameters_of(name)) for name in guide.families}
        # What must be drawn is drawn in the guide's order, before the model runs, as Pyro does.
        self.is_rounding = is_rounding()
        self.values = {name: self._value(name, q) for name, q in self.q.items()}
        self.kl: dict[str, Tensor] = {}
        self.log_likelihood: Any = 0.0

    def _value(self, name: str, q: Any) -> Tensor:
        if isinstance(q, Cell) and self.is_rounding:
            return rounded(q.centre)
        if not is_deferrable(name, q, self.q):
            return q.rsample()
        value = Deferred.of(q)
        value.site = name
        return value

    def _divergence(self, name: str, fn: Any) -> Tensor:
        q = self.q[name]
        if not isinstance(q, Cell):
            value = self.values[name]
            return divergence(name, q, fn, None if isinstance(value, Deferred) else value)
        # Known as an expectation only: a draw's, with the value that the network computes with unless that is rounded.
        value = q.rsample() if self.is_rounding else self.values[name]
        return -fn.log_prob(value)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.q:
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name in self.q:
            fn = msg["fn"]
            while isinstance(fn, dist.Independent):
                fn = fn.base_dist
            summed = None if msg["mask"] is not None else summed_divergence(self.q[name], fn)
            if summed is None:
                summed = scale_and_mask(self._divergence(name, fn), msg["scale"], msg["mask"]).sum()
            else:
                summed = summed * msg["scale"]
            self.kl[name] = summed
        elif msg["is_observed"]:
            log_prob = msg["fn"].log_prob(msg["value"])
            self.log_likelihood = self.log_likelihood + scale_and_mask(log_prob, msg["scale"], msg["mask"]).sum()


def elbo_terms(model: Callable[..., Any], guide: FactorizedGuide, *args: Any, **kwargs: Any) -> ElboTerms:
    """Run the model once, its latent sites from the guide, and return the parts of the ELBO.

    The sum equals that of ``TraceMeanField_ELBO`` under :func:`~pyro_bc.local_reparameterization`, number for
    number; only the parts are kept apart, and nothing is computed that a closed-form KL makes superfluous. Inside
    :func:`~pyro_bc.rounded_codes` the network computes with rounded codes.

    :param guide: set up by a first call, if it is not yet, with these arguments.
    :raises UsageError: where the guide is no :class:`~pyro_bc.FactorizedGuide`, or has sites in a plate; or a site's KL
        has no closed form, and its prior no density either.
    """
    if not isinstance(guide, FactorizedGuide):
        raise UsageError(f"elbo_terms takes a FactorizedGuide, not {type(guide).__name__}; use TraceMeanField_ELBO")
    if guide.prototype_trace is None:
        guide(*args, **kwargs)
    assert guide.prototype_trace is not None
    plated = [name for name, site in guide.prototype_trace.iter_stochastic_nodes() if site["cond_indep_stack"]]
    if plated:
        raise UsageError(f"site '{plated[0]}' is in a plate, which elbo_terms does not cover; use TraceMeanField_ELBO")
    with _ElboMessenger(guide) as terms:
        outputs = model(*args, **kwargs)
    return ElboTerms(terms.log_likelihood, terms.kl, outputs)
