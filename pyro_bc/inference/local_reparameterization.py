r"""Local reparameterization as an effect handler: pre-activations are sampled, weights never.

Inside the handler a guide's site is not drawn. Its value becomes a :class:`Deferred` tensor, which knows the
distribution it would be drawn from, and products of deferred tensors stay deferred. When
``torch.nn.functional.linear`` (or ``conv1d``, ``conv2d``) meets one as its weight, scales are drawn for every example,
and the pre-activation from its exact conditional (Kingma, Salimans, Welling 2015; Louizos et al. 2017, section 3.3).
Before::

    weight = scale * weight_tilde                       # one draw, shared by all examples of the batch
    y = x @ weight.T + bias

After, with one row of noise for every example::

    y ~ Normal((x * z) @ loc.T + bias_loc, (x * z)² @ variance.T + bias_variance),   z ~ q(z)

The model's code does not change, whether it uses our layers, ``Prior.sample`` or plain ``pyro.sample``
statements and ``F.linear(x, z * w, b)``. Any other operation on a deferred tensor draws it once and goes on
with the draw, so that nothing is ever silently replaced by its mean.

Where a layer is applied at several positions of one example (an input of more than two dimensions), scales are
shared by the positions and the pre-activations' noise is not, as Kingma et al. do for convolutions. A table's rows are
drawn where they are looked up, and the matrices of recurrent layers once for the batch. A convolution's
scales belong to its filters and multiply their output::

    y = z * v,   v ~ Normal(conv(x, loc) + bias_loc, conv(x², variance) + bias_variance),   z ~ q(z)

Since nothing is drawn, the site's two log-densities are replaced by what their difference is in expectation,
:math:`-\mathrm{KL}(q\|p)` in the model and 0 in the guide. Both ``TraceMeanField_ELBO`` and ``Trace_ELBO``
are thus unbiased inside the handler, the latter with the closed-form KL too.
"""

import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.infer import RenyiELBO, ReweightedWakeSleep, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.elbo import ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl

from ..errors import UsageError
from ..priors.base import base_distribution
from ..priors.divergence import divergence
from . import deferred_rules as deferred_rules  # operations on what is deferred
from .deferred import Deferred, is_deferrable, plain


class _Undrawn(TorchDistribution):
    """A site's density where the value is not drawn: scores any value with a constant per batch entry."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, fn: Any):
        self.fn = fn
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return self.fn.support

    has_rsample = True

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Any:
        return type(self)(self.fn.expand(batch_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.fn.rsample(torch.Size(sample_shape))


class _UndrawnGuide(_Undrawn):
    def log_prob(self, value: Any) -> Tensor:
        return plain(value).new_zeros(()).expand(self.batch_shape)


class _UndrawnModel(_Undrawn):
    def __init__(self, fn: Any, guide_fn: Any, name: str = ""):
        super().__init__(fn)
        self.guide_fn, self.name = guide_fn, name
        self._negative_kl: Tensor | None = None

    def log_prob(self, value: Any) -> Tensor:
        if self._negative_kl is None:
            self._negative_kl = -divergence(self.name, self.guide_fn, self.fn)
        return self._negative_kl


@register_kl(_UndrawnGuide, _UndrawnModel)
def _kl_undrawn(q: _UndrawnGuide, p: _UndrawnModel) -> Tensor:
    return -p.log_prob(None)


class LocalReparameterizationMessenger(Messenger):
    """Defers the sites of layers (named ``<layer>.<role>``, see :mod:`pyro_bc.priors.base`) inside it.

    Guide and model must both run inside::

        with LocalReparameterizationMessenger():
            svi.step(x, y)

    Works for guides that put a ``Normal`` or ``LogNormal`` at the site itself, as
    :class:`~pyro_bc.FactorizedGuide` does; other sites are sampled as ever. A layer that is used twice in one
    pass gets independent noise each time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sites: set[str] = set()  # the guide's

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"]:
            return
        name, value = msg["name"], msg["value"]
        if isinstance(value, Deferred):  # the model, replayed against the guide
            if value.guide_fn is None:
                return  # of elbo_terms, which has its own divergences
            msg["fn"] = _UndrawnModel(msg["fn"], value.guide_fn, name)
            if not is_deferrable(name, value.distribution, self._sites):
                msg["value"] = value.draw()  # of no layer, as its weight would be among the guide's sites
            return
        if value is not None:
            return
        self._sites.add(name)
        q = base_distribution(msg["fn"])
        if is_deferrable(name, q):
            _refuse_other_bounds(msg)
            value = Deferred.of(q)
            value.guide_fn, value.site = msg["fn"], name
            msg["value"] = value
            msg["done"] = True
            msg["fn"] = _UndrawnGuide(msg["fn"])


def _refuse_other_bounds(msg: Any) -> None:
    """:raises UsageError: where what is estimated is no plain ELBO: densities that stand for KLs would make it another.

    Rényi's bound and importance weights are functions of a draw's densities, and vectorised particles of one pass would
    share a weight that is not drawn.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        bound = frame.f_locals.get("self")
        if isinstance(bound, ELBO | ReweightedWakeSleep):
            if not isinstance(bound, Trace_ELBO | TraceMeanField_ELBO) or isinstance(bound, RenyiELBO):
                raise UsageError(
                    f"{type(bound).__name__} inside local_reparameterization() would be another bound, as weights are "
                    f"not drawn there: use TraceMeanField_ELBO or Trace_ELBO, or leave the handler out"
                )
            break
        frame = frame.f_back
    if any(frame.name == "num_particles_vectorized" for frame in msg["cond_indep_stack"]):
        raise UsageError(
            "vectorized particles inside local_reparameterization() would share their weights: leave out "
            "vectorize_particles, or the handler"
        )


def local_reparameterization() -> LocalReparameterizationMessenger:
    """Context manager in which layers sample their pre-activations, per example, instead of weights.

    >>> import pyro, pyro_bc, torch
    >>> from pyro.infer import SVI, TraceMeanField_ELBO
    >>> model = pyro_bc.BayesianNetwork(torch.nn.Linear(4, 3), num_data=8)
    >>> guide = pyro_bc.FactorizedGuide(model)
    >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), TraceMeanField_ELBO())
    >>> with local_reparameterization():
    ...     loss = svi.step(torch.ones(8, 4), torch.zeros(8, dtype=torch.long))
    """
    return LocalReparameterizationMessenger()
