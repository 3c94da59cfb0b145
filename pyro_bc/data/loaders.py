"""What is asked of a loader: batches of finite inputs, for a training with targets, and how many there are."""

from typing import Any

from torch import Tensor

from ..errors import UsageError
from ..runtime.inputs import Batch, tensors_of
from .batches import Batches


def loader_steps(loader: Any) -> int:
    """How many batches a loader has.

    :raises UsageError: where it has none, or cannot say.
    """
    try:
        steps = len(loader)
    except TypeError:
        raise UsageError(
            f"the training loader is gone through once an epoch and must have a length, which {type(loader).__name__} "
            f"has not: give a DataLoader, pyro_bc.data.Batches, or a list of (x, y)"
        ) from None
    if not steps:
        raise UsageError("the training loader is empty")
    return steps


def loader_examples(loader: Any) -> int | None:
    """How many examples a loader gives; None where that is not known without going through it."""
    if isinstance(loader, Batches):
        return len(loader.x)
    if isinstance(loader, list | tuple):
        return sum(len(tensors_of(x)[0]) for x, _ in loader)
    try:
        return len(loader.sampler)
    except (AttributeError, TypeError):
        return None


def first_batch(loader: Any) -> tuple[Any, Tensor]:
    """The first batch.

    :raises UsageError: where it is no pair of inputs and a tensor of targets.
    """
    batch = next(iter(loader))
    if not (isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Tensor)):
        raise UsageError(f"the training loader gives pairs (inputs, targets) of tensors, not {type(batch).__name__}")
    tensors_of(batch[0])
    if not batch[1].dim():
        raise UsageError(
            f"the training loader gives single examples, no batches: put the {type(loader).__name__} into a DataLoader"
        )
    return batch[0], batch[1]


def inputs_of(batch: Any) -> Any:
    """The inputs of a batch: the first of a pair or more, or the batch itself."""
    return batch[0] if isinstance(batch, tuple | list) and len(batch) else batch


def check_inputs(x: Batch, what: str) -> None:
    """:raises UsageError: where inputs are not finite; begins with ``what``."""
    if not all(bool(part.isfinite().all()) for part in tensors_of(x) if part.is_floating_point()):
        raise UsageError(f"{what} hold NaN or infinite numbers; clean the data")
