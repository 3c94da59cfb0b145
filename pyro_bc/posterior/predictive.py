"""What a model says of data, its latent sites fixed to a draw from the posterior: weights, not pre-activations."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ..graph.module import evaluating
from ..model.guide import FactorizedGuide
from ..model.network import BayesianNetwork
from ..priors.base import base_distribution
from ..runtime.devices import check_device

_POINTS = 1000  # of one pass through the network


def predict(guide: FactorizedGuide, draw: Mapping[str, Tensor], x: Tensor, y: Tensor) -> dict[tuple[str, str], Tensor]:
    """Log-likelihood and a draw of every point's target, given a value of every site."""
    parts: dict[tuple[str, str], list[Tensor]] = {}
    model = guide._source[0]
    # A model written by hand may have a plate of as many points as there are.
    size = _POINTS if isinstance(model, BayesianNetwork) else max(1, len(x))
    for x_part, y_part in zip(x.split(size), y.split(size), strict=True):
        for name, site in observed_sites(model, draw, x_part, y_part).items():
            parts.setdefault(("log_likelihood", name), []).append(_log_prob(site["fn"], site["value"]))
            parts.setdefault(("posterior_predictive", name), []).append(site["fn"].sample())
    return {key: torch.cat(values) for key, values in parts.items()}


def _log_prob(fn: Any, value: Tensor) -> Tensor:
    """Log-density in float64: of a class that is as good as certain, float32 makes exactly 0, under every draw."""
    if isinstance(fn, dist.Categorical):
        own = value.long().unsqueeze(-1)
        logits = fn.logits.double()
        others = (logits - logits.gather(-1, own)).scatter(-1, own, -torch.inf)
        return -torch.nn.functional.softplus(others.logsumexp(-1))
    if isinstance(fn, dist.Bernoulli):
        return dist.Bernoulli(logits=fn.logits.double(), validate_args=False).log_prob(value.double())
    return fn.log_prob(value).double()


def observed_values(guide: FactorizedGuide, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    draw = {name: base_distribution(site).mean for name, site in guide.posterior().items()}
    return {name: site["value"] for name, site in observed_sites(guide._source[0], draw, x, y).items()}


def observed_sites(model: Any, draw: Mapping[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Any]:
    """The model's observed sites, its latent ones fixed, in evaluation mode."""
    return {
        name: site
        for name, site in sites(model, draw, x, y).items()
        # What was conditioned counts as observed, too, and so do a plate's choice of examples and pyro.deterministic.
        if site["is_observed"]
        and name not in draw
        and type(site["fn"]).__name__ != "_Subsample"
        and not site["infer"].get("_deterministic")
        and not isinstance(base_distribution(site["fn"]), dist.Unit)  # a pyro.factor
    }


def sites(model: Any, draw: Mapping[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Any]:
    """All sample sites of the model, its latent ones fixed, in evaluation mode."""
    with pyro.poutine.trace() as tracer:
        outputs(model, draw, x, y)
    return {name: site for name, site in tracer.trace.nodes.items() if site["type"] == "sample"}


def outputs(model: Any, draw: Mapping[str, Tensor], *args: Tensor) -> Any:
    """What the model returns, its latent sites fixed, in evaluation mode."""
    if isinstance(model, BayesianNetwork):  # one written by hand may move its data itself
        for what, part in zip(("points", "targets"), args, strict=False):
            check_device(f"the {what} are", part, next(iter(draw.values())).device)
    mode = evaluating(model) if isinstance(model, torch.nn.Module) else nullcontext()
    with mode, pyro.validation_enabled(False), pyro.poutine.condition(data=dict(draw)):
        return model(*args)
