"""What is observed, given a network's outputs."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ..errors import UsageError


class Likelihood(ABC):
    """A density of the targets given the network's outputs, and the error it is judged by."""

    #: name and unit of :meth:`error`, as printed.
    metric: ClassVar[str]

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


@dataclass(frozen=True)
class Categorical(Likelihood):
    """Classes: outputs are logits ``(batch, classes)``, targets class numbers ``(batch,)``."""

    metric: ClassVar[str] = "error %"

    def __call__(self, outputs: Tensor) -> Any:
        return dist.Categorical(logits=outputs, validate_args=False)

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 100.0 * (outputs.argmax(-1) != targets)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        classes = outputs.shape[-1]
        if targets.is_floating_point() or targets.shape != outputs.shape[:-1]:
            raise UsageError(
                f"Categorical targets are class numbers of shape {tuple(outputs.shape[:-1])}, "
                f"not {targets.dtype} of shape {tuple(targets.shape)}"
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
    ``(batch, classes)``, targets probabilities :math:`t`, ``(batch, classes)``.

    :math:`\log p(t) = \sum_c t_c \log p(c)`, the expected log-likelihood of a class drawn from the teacher.
    """

    metric: ClassVar[str] = "error %"

    def __call__(self, outputs: Tensor) -> Any:
        return _Taught(outputs)

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 100.0 * (outputs.argmax(-1) != targets.argmax(-1))

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
    """One yes or no: outputs are logits ``(batch, 1)`` or ``(batch,)``, targets 0 or 1, ``(batch,)``."""

    metric: ClassVar[str] = "error %"

    def __call__(self, outputs: Tensor) -> Any:
        return dist.Bernoulli(logits=_flat(outputs), validate_args=False)

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 100.0 * ((_flat(outputs) > 0) != (targets > 0.5))

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        _check_one_output(outputs, targets)
        if not targets.is_floating_point():
            raise UsageError(f"Bernoulli targets are floating-point numbers 0 or 1, not {targets.dtype}")
        if not bool(((targets == 0) | (targets == 1)).all()):
            raise UsageError("Bernoulli targets are 0 or 1")


@dataclass(frozen=True)
class Normal(Likelihood):
    """Regression with learned noise: outputs are means ``(batch, 1)`` or ``(batch,)``.

    The noise is a latent site ``precision`` with a Gamma prior, in units of one over the squared target.

    :param concentration: of the Gamma prior.
    :param rate: of the Gamma prior.
    """

    concentration: float = 1.0
    rate: float = 0.1
    metric: ClassVar[str] = "RMSE"

    def __call__(self, outputs: Tensor) -> Any:
        like = torch.ones((), dtype=outputs.dtype, device=outputs.device)
        precision = pyro.sample("precision", dist.Gamma(self.concentration * like, self.rate * like))
        return dist.Normal(_flat(outputs), precision.rsqrt(), validate_args=False)

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (_flat(outputs) - targets).square()

    def summary(self, mean_error: float) -> float:
        return mean_error**0.5

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        _check_one_output(outputs, targets)


def _flat(outputs: Tensor) -> Tensor:
    return outputs.squeeze(-1) if outputs.dim() == 2 else outputs


def _check_one_output(outputs: Tensor, targets: Tensor) -> None:
    if _flat(outputs).dim() != 1 or _flat(outputs).shape != targets.shape:
        raise UsageError(
            f"a network with outputs of shape {tuple(outputs.shape)} does not fit targets of shape "
            f"{tuple(targets.shape)}; one output per example is needed"
        )
