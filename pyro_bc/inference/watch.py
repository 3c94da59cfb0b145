"""Looks at what compression would make of a guide while it is trained, where there is no target to judge it by."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from ..compression.look import Look
from ..errors import UsageError
from ..model.guide import FactorizedGuide
from ..model.network import BayesianNetwork
from ..posterior.guides import posterior_of
from ..posterior.judged import checked, judge
from ..posterior.standing import Standing
from ..runtime import processes
from ..runtime.inputs import tensors_of
from .multiplier import Errors, Watch

# What compression may cost: in nats an example, or in points, where errors are counted.
_NATS, _POINTS = 0.01, 0.3

# Training examples that it is judged by, and numbers of their inputs, at most.
_EXAMPLES, _NUMBERS = 1000, 2**25


def watching(model: Any, held_out: Iterable[Any]) -> Watch:
    """What judges the network that :func:`~pyro_bc.compress` would make of the guide as it is.

    Until codes are rounded, the network computes with their centres.

    :param held_out: batches ``(x, y)``, passed over often.
    :raises UsageError: for a model that is no :class:`~pyro_bc.BayesianNetwork`, and has no network to judge.
    """
    if not isinstance(model, BayesianNetwork):
        raise UsageError(f"held-out batches are looked at with a BayesianNetwork, not with a {type(model).__name__}")
    batches = checked(held_out, model)

    def look(now: Look) -> Standing:
        found = now.judged(batches)
        return Standing(None, found.error, found.file_bytes, None)

    return look


def guarding(examples: Iterable[Any]) -> Watch:
    """What compares the network that :func:`~pyro_bc.compress` would make of the guide with the posterior mean, on
    examples that it is trained on: both know them alike.

    On several processes each has examples of its own, and all know the mean.

    :param examples: batches ``(x, y)``, passed over often.
    """
    batches = list(examples)

    def look(now: Look) -> Standing:
        found, whole = now.judged(batches), now.judged_mean(batches)
        cost = (found.loss - whole.loss) / _NATS
        if whole.resolution:  # who is sure of what it learned by heart loses nats, and errs no more
            cost = min(cost, (found.error - whole.error) / max(_POINTS, whole.resolution))
        costs = processes.gathered(cost)
        slack = 1 - sum(costs) / len(costs)
        size = found.file_bytes
        return Standing(slack, _mean(found.error), size, slack >= 0, cost=size)

    return look


def training_error(examples: Iterable[Any]) -> Callable[[Look], float]:
    """What judges the network that compression would make of the guide, on examples that it is trained on.

    :param examples: as for :func:`guarding`.
    """
    batches = list(examples)
    return lambda now: _mean(now.judged(batches).error)


def errors_before(
    model: BayesianNetwork, guide: FactorizedGuide, examples: Iterable[Any], held_out: Iterable[Any]
) -> Errors:
    """Those of the network that a fit starts from, of which several processes have parts of the examples."""
    original = model.original
    train, held = (
        judge(original, model.likelihood, own, posterior_of(guide), model.output).error for own in (examples, held_out)
    )
    return Errors(_mean(train), held)


def _mean(error: float) -> float:
    """Of all processes."""
    errors = processes.gathered(error)
    return sum(errors) / len(errors)


def some_examples(loader: Iterable[Any]) -> list[tuple[Any, Tensor]]:
    """The first batches of a loader, as many as a look needs."""
    found: list[tuple[Any, Tensor]] = []
    examples, numbers = 0, 0
    for x, y in loader:
        found.append((x, y))
        examples, numbers = examples + len(y), numbers + sum(part.numel() for part in tensors_of(x))
        if examples >= _EXAMPLES or numbers >= _NUMBERS:
            break
    return found
