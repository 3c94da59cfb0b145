"""Any Pyro model ``model(x, y)`` as :func:`~pyro_bc.fit` trains it: a module that knows how much data there are."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..model.guide import FactorizedGuide
from ..model.likelihoods import Likelihood
from ..model.network import BayesianNetwork
from ..posterior.predictive import is_observed
from ..runtime.inputs import Batch
from .elbo import elbo_terms


class Unjudged(Likelihood):
    """Stands for the likelihood of a model that says only in its own statements what it observes: no error is known."""

    metric: ClassVar[str] = "error"

    def __call__(self, outputs: Tensor) -> Any:
        raise NotImplementedError("the model observes for itself")

    def error(self, outputs: Any, targets: Tensor) -> Tensor:
        return torch.full((), math.nan, device=targets.device)

    def check(self, outputs: Any, targets: Tensor) -> None:
        """Nothing is known of the targets."""


class TrainableModel(nn.Module):
    """A model as a module, with the size of its training set as its plates say it.

    :param model: of inputs and targets; a ``PyroModule``, or a function without parameters of its own.
    :param num_data: size of the training set.
    """

    def __init__(self, model: Callable[..., Any], num_data: int):
        super().__init__()
        self.model = model
        self.num_data = num_data
        self.likelihood = Unjudged()

    def forward(self, *args: Any) -> Any:
        return self.model(*args)


def trainable(model: Any, guide: FactorizedGuide, x: Batch, y: Tensor) -> Any:
    """The model as a fit trains it; a :class:`~pyro_bc.BayesianNetwork` is that itself.

    :param guide: of this model; it is set up where it is not yet.
    :raises UsageError: where nothing is observed, a latent site is in a plate, or a parameter is in no module.
    """
    if isinstance(model, BayesianNetwork):
        return model
    if not callable(model):
        raise UsageError(f"fit trains a Pyro model of inputs and targets, not a {type(model).__name__}")
    if guide.prototype_trace is None:
        with pyro.get_param_store().scope():
            guide(x, y)
    drawn = poutine.trace(guide).get_trace(x, y)
    trace = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(x, y)
    samples = {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}
    observed = [site for name, site in samples.items() if is_observed(name, site, guide.families)]
    if not observed:
        raise UsageError("the model observes nothing: give it obs=y, in the statement of what y is a draw of")
    own = {id(p) for p in model.parameters()} if isinstance(model, nn.Module) else set()
    for name, site in trace.nodes.items():
        if site["type"] == "param" and id(_unconstrained(site["value"])) not in own:
            raise UsageError(
                f"the parameter '{name}' is in no module of the model, and fit would not train it: make the model a "
                f"PyroModule that holds it, or train with Pyro's SVI"
            )
    elbo_terms(model, guide, x, y)  # says what it does not cover
    size = max(float(site["scale"]) * max(1, site["fn"].batch_shape.numel()) for site in observed)
    return TrainableModel(model, max(1, round(size)))


def _unconstrained(value: Tensor) -> Tensor:
    """What is trained where a model sees this parameter."""
    return value.unconstrained() if hasattr(value, "unconstrained") else value
