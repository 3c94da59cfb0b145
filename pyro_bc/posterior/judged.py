"""A network judged by batches that it was not trained on."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..data.loaders import check_inputs
from ..errors import UsageError
from ..graph.interface import Output, called
from ..graph.module import evaluating
from ..model.likelihoods import Likelihood, density_at
from ..model.network import BayesianNetwork
from ..runtime.devices import check_device, device_of
from ..runtime.inputs import Batch, tensors_of
from ..runtime.messages import first_line
from .guides import Posterior

# Sums of single precision.
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Judged:
    """A network on held-out data.

    :param error: in the unit of the likelihood's metric.
    :param loss: negative log-likelihood, nats an example.
    :param file_bytes: of its file; 0 for one that has none.
    :param way: how it came about.
    :param resolution: what one example more adds to the error, where that is a percentage; 0 elsewhere.
    """

    error: float
    loss: float
    file_bytes: int = 0
    way: str = "dense"
    resolution: float = 0.0


@torch.no_grad()
def judge(
    net: nn.Module,
    likelihood: Likelihood,
    batches: Iterable[Any],
    sites: Posterior | None = None,
    output: Output = None,
) -> Judged:
    """Error and loss of a network on batches ``(x, y)``.

    :param sites: whose centres the likelihood's own sites have, such as a noise; their prior means without it.
    :param output: which of several outputs the likelihood is of.
    """
    outputs, targets = [], []
    for x, y in batches:
        outputs.append(computed(net, x, output))
        targets.append((None, y))
    return scored(outputs, targets, likelihood, sites)


def computed(net: nn.Module, x: Batch, output: Output = None) -> Any:
    """A network's output in evaluation mode."""
    with torch.no_grad(), evaluating(net) as network:
        return called(network, x, output)


@torch.no_grad()
def scored(outputs: Iterable[Any], batches: list[Any], likelihood: Likelihood, sites: Posterior | None) -> Judged:
    """Error and loss of a network's outputs, one for every batch.

    :param batches: whose targets are read; inputs are not.
    """
    error, loss, count = 0.0, 0.0, 0
    centre = {} if sites is None else sites.centre()
    for own, (_, y) in zip(outputs, batches, strict=True):
        density = density_at(likelihood, own, centre)
        error += float(likelihood.error(own, y).sum())
        loss -= float(density.log_prob(y).sum())
        count += len(y)
    if not count:
        raise UsageError("there are no held-out examples to judge by")
    resolution = likelihood.of_one_wrong / count + _ROUNDING if likelihood.of_one_wrong else 0.0
    return Judged(likelihood.summary(error / count), loss / count, resolution=resolution)


def where_they_are(net: nn.Module, batches: list[Any]) -> nn.Module:
    """A network of a file, which is on the CPU and of single precision, moved to where batches are and taking them."""
    x, y = batches[0]
    given, held = (
        {part.dtype for part in parts if part.is_floating_point()} for parts in (tensors_of(x), net.parameters())
    )
    return (net if given <= {torch.float32} or torch.float64 in held else _InSingle(net)).to(y.device)


class _InSingle(nn.Module):
    """A network that takes inputs of any precision."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        def single(x: Tensor) -> Tensor:
            return x.float() if x.is_floating_point() else x

        return self.net(*map(single, inputs), **{name: single(x) for name, x in named.items()})


def figure(metric: str, error: float) -> str:
    """An error as text, without its unit: two decimals of a percentage, four digits of what has a scale of its own.

    :param metric: of the likelihood.
    """
    return f"{error:.2f}" if "%" in metric else f"{error:.4g}"


def rise(metric: str, difference: float) -> str:
    """A difference of errors as text, with its sign."""
    return f"{'' if difference < 0 else '+'}{figure(metric, difference)}"


def checked(held_out: Iterable[Any], model: BayesianNetwork) -> list[tuple[Any, Tensor]]:
    """Batches that a model's network can be judged by, as a list.

    :raises UsageError: where there are none, they are no pairs of inputs and targets or not finite, the network cannot
        be run on them, or targets do not fit the likelihood.
    """
    batches = list(held_out)
    if not batches:
        raise UsageError(
            "there are no held-out examples to judge by; batches are passed over often, as a list's are and not a "
            "generator's"
        )
    net = model.skeleton
    for number, batch in enumerate(batches, 1):
        which = f"held-out batch {number}"
        if not (isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Tensor)):
            raise UsageError(f"{which} is a {type(batch).__name__}, no pair (inputs, targets): give [(x, y)]")
        x, y = batch
        check_inputs(x, f"the inputs of {which}")
        check_device(f"the inputs of {which} are", x, device_of(net))
        check_device(f"the targets of {which} are", y, device_of(net))
        if not bool(y.isfinite().all()):
            raise UsageError(f"the targets of {which} hold NaN or infinite numbers; clean the data")
        try:
            outputs = computed(net, x, model.output)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise UsageError(f"the network cannot be run on {which}: {first_line(error)}") from error
        try:
            model.likelihood.check(outputs, y)
        except UsageError as error:
            raise UsageError(f"{which}: {error}") from None
    return [(x, y) for x, y in batches]


def held_out_batches(x: Tensor, y: Tensor, size: int = 500) -> list[tuple[Tensor, Tensor]]:
    """Held-out examples in batches."""
    return list(zip(x.split(size), y.split(size), strict=True))
