"""What is observed, given a network's outputs."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.infer.autoguide.initialization import InitMessenger, init_to_mean
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl

from ..errors import UsageError


class Likelihood(ABC):
    """A density of the targets given the network's outputs, and the error it is judged by."""

    #: name and unit of :meth:`error`, as printed.
    metric: ClassVar[str]

    #: error of an example that is wrong, where errors are counted; 0 where they are measured.
    of_one_wrong: ClassVar[float] = 0.0

    #: operations that its outputs do not end in, since what they make is no longer what it takes: it applies them.
    applies: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def __call__(self, outputs: Tensor) -> Any:
        """Density of the targets of a batch, batch shape ``(batch,)``; may sample sites of its own."""

    @abstractmethod
    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Error of every example, shape ``(batch,)``; averaged and passed to :meth:`summary`."""

    def summary(self, mean_error: float) -> float:
        """The reported figure from the mean of :meth:`error`."""
        return mean_error

    @abstractmethod
    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """:raises UsageError: where targets cannot have come from this density."""


def density_at(likelihood: Likelihood, outputs: Tensor, values: Mapping[str, Tensor] | None = None) -> Any:
    """The density of targets with the likelihood's own sites, such as a noise, fixed.

    :param values: of its sites; those without one are at their prior means.
    """
    with (
        pyro.poutine.block(),
        pyro.validation_enabled(False),
        InitMessenger(init_to_mean),
        pyro.poutine.condition(data=dict(values or {})),
    ):
        return likelihood(outputs)


@dataclass(frozen=True)
class Categorical(Likelihood):
    """Classes: outputs are logits ``(batch, classes)``, targets class numbers ``(batch,)``.

    Also a class for each of several places of an example, tokens or pixels: outputs ``(batch, …, classes)``, targets
    ``(batch, …)``; or, with ``class_dim=1``, outputs ``(batch, classes, …)`` as torch's cross entropy takes them.

    :param class_dim: the dimension of the outputs that counts classes.
    """

    class_dim: int = -1
    metric: ClassVar[str] = "error %"
    of_one_wrong: ClassVar[float] = 100.0
    applies: ClassVar[frozenset[str]] = frozenset({"softmax", "sigmoid"})

    def _logits(self, outputs: Tensor) -> Tensor:
        return outputs if self.class_dim == -1 else outputs.movedim(self.class_dim, -1)

    def _other_dim(self, outputs: Tensor, targets: Tensor) -> str:
        """What to do where the classes are in the dimension that torch's cross entropy has them in."""
        is_it = outputs.dim() > 2 and targets.shape == (*outputs.shape[:1], *outputs.shape[2:])
        return "; give Categorical(class_dim=1)" if self.class_dim == -1 and is_it else ""

    def __call__(self, outputs: Tensor) -> Any:
        return _by_example(dist.Categorical(logits=self._logits(outputs), validate_args=False))

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _mean(100.0 * (self._logits(outputs).argmax(-1) != targets))

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        _check_dims(outputs, 2, "logits (batch, classes)")
        logits = self._logits(outputs)
        classes = logits.shape[-1]
        if targets.is_floating_point() or targets.shape != logits.shape[:-1]:
            raise UsageError(
                f"Categorical targets are class numbers of shape {tuple(logits.shape[:-1])}, "
                f"not {targets.dtype} of shape {tuple(targets.shape)}{_squeezed(targets, logits.shape[:-1])}"
                f"{self._other_dim(outputs, targets)}"
            )
        if targets.numel() and (int(targets.min()) < 0 or int(targets.max()) >= classes):
            raise UsageError(
                f"labels lie in [{int(targets.min())}, {int(targets.max())}], but the network has {classes} outputs"
            )


class _Taught(TorchDistribution):
    """Expected log-probability of classes that are given by their probabilities."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.simplex

    def __init__(self, logits: Tensor):
        self.logits = logits
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=False)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return dist.OneHotCategorical(logits=self.logits).sample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return (value * self.logits.log_softmax(-1)).sum(-1)


@dataclass(frozen=True)
class SoftCategorical(Likelihood):
    r"""Classes that a teacher gives by their probabilities (Hinton et al. 2015, 1503.02531): outputs are logits
    ``(batch, classes)``, targets probabilities :math:`t`, ``(batch, classes)``; or both ``(batch, …, classes)``.

    :math:`\log p(t) = \sum_c t_c \log p(c)`, the expected log-likelihood of a class drawn from the teacher.
    """

    metric: ClassVar[str] = "error %"
    of_one_wrong: ClassVar[float] = 100.0
    applies: ClassVar[frozenset[str]] = frozenset({"softmax", "sigmoid"})

    def __call__(self, outputs: Tensor) -> Any:
        return _by_example(_Taught(outputs))

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _mean(100.0 * (outputs.argmax(-1) != targets.argmax(-1)))

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        if targets.shape != outputs.shape or not targets.is_floating_point():
            raise UsageError(
                f"SoftCategorical targets are probabilities of shape {tuple(outputs.shape)}, not {targets.dtype} of "
                f"shape {tuple(targets.shape)}"
            )
        if not bool((targets >= 0).all()) or not bool(((targets.sum(-1) - 1).abs() < 1e-3).all()):
            raise UsageError("SoftCategorical targets are probabilities: not negative, their sum 1")


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """Yes or no: outputs are logits ``(batch, 1)`` or ``(batch,)``, targets 0 or 1, ``(batch,)``.

    Also several of them, binary labels or pixels: outputs and targets ``(batch, …)`` of one shape.
    """

    metric: ClassVar[str] = "error %"
    of_one_wrong: ClassVar[float] = 100.0
    applies: ClassVar[frozenset[str]] = frozenset({"softmax", "sigmoid"})

    def __call__(self, outputs: Tensor) -> Any:
        return _by_example(dist.Bernoulli(logits=_flat(outputs), validate_args=False))

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _mean(100.0 * ((_flat(outputs) > 0) != (targets > 0.5)))

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        _check_alike(outputs, targets)
        if not targets.is_floating_point():
            raise UsageError(f"Bernoulli targets are floating-point numbers 0 or 1, not {targets.dtype}")
        if not bool(((targets == 0) | (targets == 1)).all()):
            raise UsageError("Bernoulli targets are 0 or 1")


@register_kl(dist.LogNormal, dist.Gamma)
def _kl_log_normal_gamma(q: Any, p: Any) -> Tensor:
    r"""KL of a noise's guide from its prior, with :math:`q = \mathrm{LogNormal}(\mu, \sigma^2)` and shape :math:`a` and
    rate :math:`b` of the Gamma: :math:`\log\Gamma(a) - a\log b - a\mu + b\,e^{\mu + \sigma^2/2} - \log\sigma -
    \tfrac12\log 2\pi e`.
    """
    a, b = p.concentration, p.rate
    entropy = q.scale.log() + 0.5 * math.log(2 * math.pi * math.e)
    return torch.lgamma(a) - a * b.log() - a * q.loc + b * (q.loc + q.scale.square() / 2).exp() - entropy


@dataclass(frozen=True)
class Normal(Likelihood):
    """Regression with learned noise: outputs are means ``(batch, 1)`` or ``(batch,)``, targets ``(batch,)``.

    Also of vectors: outputs and targets ``(batch, …)`` of one shape, each entry with a noise of its own. The noise is a
    latent site ``precision`` with a Gamma prior, in units of one over the squared target.

    :param concentration: of the Gamma prior.
    :param rate: of the Gamma prior.
    """

    concentration: float = 1.0
    rate: float = 0.1
    metric: ClassVar[str] = "RMSE"

    def __call__(self, outputs: Tensor) -> Any:
        means = _flat(outputs)
        like = torch.ones(means.shape[1:], dtype=outputs.dtype, device=outputs.device)
        prior = dist.Gamma(self.concentration * like, self.rate * like).to_event(like.dim())
        precision = pyro.sample("precision", prior)
        return _by_example(dist.Normal(means, precision.rsqrt(), validate_args=False))

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _mean((_flat(outputs) - targets).square())

    def summary(self, mean_error: float) -> float:
        return mean_error**0.5

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        _check_alike(outputs, targets)
        _check_numbers(targets)


class _Counts(Likelihood):
    """What likelihoods of counts share: outputs are logarithms of rates, in the shapes of :class:`Normal`."""

    metric: ClassVar[str] = "RMSE"
    applies: ClassVar[frozenset[str]] = frozenset({"exp", "softplus"})

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _mean((_flat(outputs).exp() - targets).square())

    def summary(self, mean_error: float) -> float:
        return mean_error**0.5

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        _check_alike(outputs, targets)
        _check_numbers(targets)
        if not bool(((targets >= 0) & (targets == targets.round())).all()):
            raise UsageError(f"{type(self).__name__} targets are counts: 0, 1, 2, … as floating-point numbers")


@dataclass(frozen=True)
class Poisson(_Counts):
    """Counts: outputs are logarithms of rates ``(batch, 1)``, ``(batch,)`` or ``(batch, …)``, targets as for
    :class:`Normal`."""

    def __call__(self, outputs: Tensor) -> Any:
        return _by_example(dist.Poisson(_flat(outputs).exp(), validate_args=False))


@dataclass(frozen=True)
class NegativeBinomial(_Counts):
    r"""Counts that scatter more than Poisson's: outputs are logarithms of means :math:`m`, as for :class:`Poisson`.

    The variance is :math:`m + m^2 / r`, with :math:`r` a latent site ``total_count`` with a Gamma prior.

    :param concentration: of the Gamma prior.
    :param rate: of the Gamma prior.
    """

    concentration: float = 1.0
    rate: float = 0.1

    def __call__(self, outputs: Tensor) -> Any:
        logs = _flat(outputs)
        like = torch.ones(logs.shape[1:], dtype=outputs.dtype, device=outputs.device)
        prior = dist.Gamma(self.concentration * like, self.rate * like).to_event(like.dim())
        total = pyro.sample("total_count", prior)
        return _by_example(dist.NegativeBinomial(total, logits=logs - total.log(), validate_args=False))


def _by_example(density: Any) -> Any:
    """A density with one batch dimension: all entries of an example are one event."""
    return density.to_event(len(density.batch_shape) - 1) if len(density.batch_shape) > 1 else density


def _mean(errors: Tensor) -> Tensor:
    """The mean error of every example's entries."""
    return errors.flatten(1).mean(1) if errors.dim() > 1 else errors


def _flat(outputs: Tensor) -> Tensor:
    return outputs.squeeze(-1) if outputs.dim() == 2 and outputs.shape[-1] == 1 else outputs


def _squeezed(targets: Tensor, shape: Sequence[int]) -> str:
    """What to do about targets with one dimension of 1 too many; empty where that is not it."""
    return "; give targets.squeeze(-1)" if tuple(targets.shape) == (*shape, 1) else ""


def _check_dims(outputs: Tensor, least: int, what: str) -> None:
    if outputs.dim() < least:
        raise UsageError(f"a network with outputs of shape {tuple(outputs.shape)} does not give {what}")


def _check_alike(outputs: Tensor, targets: Tensor) -> None:
    shape = _flat(outputs).shape
    if targets.shape != shape:
        raise UsageError(
            f"a network with outputs of shape {tuple(outputs.shape)} does not fit targets of shape "
            f"{tuple(targets.shape)}: they need shape {tuple(shape)}{_squeezed(targets, shape)}"
        )


def _check_numbers(targets: Tensor) -> None:
    if not targets.is_floating_point():
        raise UsageError(f"targets are floating-point numbers, not {targets.dtype}: give targets.float()")
    if not bool(targets.isfinite().all()):
        raise UsageError("targets hold NaN or infinite numbers; leave those examples out, or clean the data")
