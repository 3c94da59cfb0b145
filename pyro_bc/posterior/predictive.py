"""What a model says of data, its latent sites fixed to a draw from the posterior: weights, not pre-activations."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ..graph.module import evaluating
from ..model.network import BayesianNetwork
from ..priors.base import base_distribution
from ..runtime.devices import check_device
from ..runtime.inputs import pieces

_POINTS = 1000  # of one pass through the network


def predict(model: Any, draw: Mapping[str, Tensor], args: Sequence[Any]) -> dict[tuple[str, str], Tensor]:
    """What the model says of its arguments, given a value of every latent site, by group of ArviZ's and by site.

    Log-likelihood and a draw of every observed point, and the values of ``pyro.deterministic`` sites.
    """
    parts: dict[tuple[str, str], list[Tensor]] = {}
    for part in _parts(model, args):
        for name, site in sites(model, draw, *part).items():
            if is_deterministic(site):
                parts.setdefault(("posterior", name), []).append(site["value"])
            elif is_observed(name, site, draw):
                log_prob = _log_prob(site["fn"], site["value"])
                parts.setdefault(("log_likelihood", name), []).append(scale_and_mask(log_prob, mask=site["mask"]))
                parts.setdefault(("posterior_predictive", name), []).append(site["fn"].sample())
    return {key: torch.cat(values) if len(values) > 1 else values[0] for key, values in parts.items()}


def _parts(model: Any, args: Sequence[Any]) -> list[list[Any]]:
    """The arguments in as many parts as one pass through the network should have; whole for a model written by hand.

    Which may have a plate of as many points as there are, and arguments that are not by point.
    """
    if not isinstance(model, BayesianNetwork):
        return [list(args)]
    return [list(part) for part in zip(*(pieces(a, _POINTS) for a in args), strict=True)]


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


def is_deterministic(site: Any) -> bool:
    """Whether a site is a ``pyro.deterministic``."""
    return bool(site["infer"].get("_deterministic"))


def is_observed(name: str, site: Any, draw: Mapping[str, Tensor]) -> bool:
    """Whether a site is one of data: what was conditioned counts as observed, too, as does a plate's choice."""
    return bool(
        site["is_observed"]
        and name not in draw
        and type(site["fn"]).__name__ != "_Subsample"
        and not is_deterministic(site)
        and not isinstance(base_distribution(site["fn"]), dist.Unit)  # a pyro.factor
    )


def observed_sites(model: Any, draw: Mapping[str, Tensor], *args: Any) -> dict[str, Any]:
    """The model's observed sites, its latent ones fixed, in evaluation mode."""
    return {name: site for name, site in sites(model, draw, *args).items() if is_observed(name, site, draw)}


def sites(model: Any, draw: Mapping[str, Tensor], *args: Any) -> dict[str, Any]:
    """All sample sites of the model, its latent ones fixed, in evaluation mode."""
    with pyro.poutine.trace() as tracer:
        outputs(model, draw, *args)
    return {name: site for name, site in tracer.trace.nodes.items() if site["type"] == "sample"}


def outputs(model: Any, draw: Mapping[str, Tensor], *args: Any) -> Any:
    """What the model returns, its latent sites fixed, in evaluation mode."""
    if isinstance(model, BayesianNetwork):  # one written by hand may move its data itself
        for what, part in zip(("points", "targets"), args, strict=False):
            check_device(f"the {what} are", part, next(iter(draw.values())).device)
    mode = evaluating(model) if isinstance(model, torch.nn.Module) else nullcontext()
    with mode, pyro.validation_enabled(False), pyro.poutine.condition(data=dict(draw)):
        return model(*args)
