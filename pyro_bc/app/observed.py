"""What outputs say of targets: a likelihood by its name, targets as it takes them, its loss in a training."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from pyro.infer.autoguide.initialization import init_to_feasible, init_to_mean
from torch import Tensor, nn

from ..errors import DataError, UsageError
from ..model.likelihoods import (
    Bernoulli,
    Categorical,
    Likelihood,
    NegativeBinomial,
    Normal,
    Poisson,
    SoftCategorical,
    density_at,
)

#: likelihoods by the command's names.
LIKELIHOODS: dict[str, Callable[[], Likelihood]] = {
    "categorical": Categorical,
    "soft-categorical": SoftCategorical,
    "bernoulli": Bernoulli,
    "normal": Normal,
    "poisson": Poisson,
    "negative-binomial": NegativeBinomial,
}

# Other names of them.
_ALSO = {"classification": "categorical", "gaussian": "normal", "regression": "normal"}


def likelihood_named(name: str) -> Likelihood:
    """A likelihood by its name, of :data:`LIKELIHOODS`, or ``gaussian`` or ``regression`` for ``normal``.

    :raises UsageError: for an unknown one.
    """
    name = _ALSO.get(name, name)
    if name not in LIKELIHOODS:
        raise UsageError(f"unknown likelihood '{name}'; there are {', '.join(LIKELIHOODS)}")
    return LIKELIHOODS[name]()


def usual_likelihood(y: Tensor) -> Likelihood:
    """That of targets of which nobody says more: class numbers where they are integers, else numbers."""
    return Normal() if y.is_floating_point() else Categorical()


def targets_for(likelihood: Likelihood, y: Tensor, what: str) -> Tensor:
    """Targets in the type that a likelihood takes.

    :param what: they are, for an error.
    :raises DataError: where that would change them, or they are not finite.
    """
    if y.is_floating_point() and not bool(y.isfinite().all()):
        raise DataError(f"{what}: targets hold NaN or infinite numbers; leave those examples out, or clean the data")
    if not isinstance(likelihood, Categorical):
        return y.float()
    if y.is_floating_point() and not bool((y == y.round()).all()):
        raise DataError(f"{what}: targets are no class numbers, but numbers such as {float(y[y != y.round()][0]):g}")
    return y.long()


def scaled_to(likelihood: Likelihood, y: Tensor) -> Likelihood:
    """A likelihood whose noise begins at the targets' scale: of :class:`Normal`, in units of their variance."""
    if not isinstance(likelihood, Normal) or len(y) < 2:
        return likelihood
    variance = float(y.double().var(0).mean())
    return replace(likelihood, rate=likelihood.rate * variance) if variance > 0 else likelihood


def fitting(likelihood: Likelihood, outputs: Tensor, y: Tensor) -> Likelihood:
    """The same for outputs that count classes as torch's cross entropy does, ``(batch, classes, …)``."""
    if isinstance(likelihood, Categorical) and outputs.dim() > 2 and y.shape[1:] == outputs.shape[2:]:
        return likelihood if y.shape[1:] == outputs.shape[1:-1] else Categorical(class_dim=1)
    return likelihood


def check_targets(likelihood: Likelihood, outputs: Tensor, y: Tensor) -> None:
    """Whether a network's outputs and targets go together.

    :param outputs: of a few inputs.
    :raises UsageError: where they do not; names another likelihood that may be meant.
    """
    try:
        likelihood.check(outputs[:1].expand(len(y), *outputs.shape[1:]), y)
    except UsageError as error:
        others = {Categorical: "normal, bernoulli or poisson", Normal: "categorical"}
        hint = f"; or give another --likelihood, as {others[type(likelihood)]}" if type(likelihood) in others else ""
        raise UsageError(f"{error} (likelihood {type(likelihood).__name__}{hint})") from None


def starts_of_sites(site: Any) -> Tensor:
    """Where a likelihood's own sites begin: at their prior means, which :func:`scaled_to` sets; others as usual."""
    return init_to_feasible(site) if site["name"].startswith("net.") else init_to_mean(site)


def training_loss(likelihood: Likelihood, outputs: Tensor, y: Tensor) -> Tensor:
    """Mean negative log-likelihood, its own sites, such as a noise, at their prior means."""
    if type(likelihood) is Categorical and outputs.dim() == 2:
        return nn.functional.cross_entropy(outputs, y)
    density: Any = density_at(likelihood, outputs)
    return -density.log_prob(y).mean()


@torch.no_grad()
def said_by(likelihood: Likelihood, outputs: Tensor) -> Tensor:
    """The targets that a network itself would give, of classes or numbers.

    :raises UsageError: for other likelihoods, whose targets only data can say.
    """
    if isinstance(likelihood, Categorical):
        return outputs.argmax(likelihood.class_dim)
    if isinstance(likelihood, Normal):
        return outputs.squeeze(-1) if outputs.dim() == 2 and outputs.shape[-1] == 1 else outputs
    raise UsageError(f"data without targets cannot be judged by the likelihood {type(likelihood).__name__}")
