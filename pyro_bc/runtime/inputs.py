"""A batch of inputs: a tensor, or a tuple or a dictionary of several, each with the batch first."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError

#: a batch of inputs as it is given: those of a dictionary go into the network by name.
Batch = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]


def tensors_of(x: Any) -> tuple[Tensor, ...]:
    """The tensors of a batch, in order.

    :raises UsageError: where they are none, or not as long as each other.
    """
    if isinstance(x, Tensor):
        return (x,)
    tensors = tuple(x.values()) if isinstance(x, Mapping) else tuple(x) if isinstance(x, tuple | list) else ()
    if not tensors or not all(isinstance(part, Tensor) and part.dim() for part in tensors):
        raise UsageError("the inputs of a batch are a tensor, or a tuple or a dictionary of tensors (batch, …)")
    if len({len(part) for part in tensors}) != 1:
        raise UsageError(f"several inputs have the batch first, as many in each; not {described(tensors)}")
    return tensors


def names_of(x: Any) -> tuple[str, ...]:
    """Under which names the tensors of a batch go into a network; empty where it is by their positions."""
    return tuple(x) if isinstance(x, Mapping) else ()


def with_tensors(x: Any, tensors: Iterable[Tensor]) -> Any:
    """A batch of the same form with other tensors."""
    if isinstance(x, Tensor):
        return next(iter(tensors))
    return dict(zip(x, tensors, strict=True)) if isinstance(x, Mapping) else tuple(tensors)


def head(x: Any, examples: int) -> Any:
    """The first examples of a batch."""
    return with_tensors(x, [part[:examples] for part in tensors_of(x)])


def moved(x: Any, device: torch.device | str) -> Any:
    """The batch on a device."""
    return with_tensors(x, [part.to(device) for part in tensors_of(x)])


def pieces(x: Any, examples: int) -> list[Any]:
    """The batch in parts of so many examples."""
    return [with_tensors(x, part) for part in zip(*(part.split(examples) for part in tensors_of(x)), strict=True)]


def described(x: Any) -> str:
    """Shapes and types of a batch, in words."""
    parts = (x,) if isinstance(x, Tensor) else x.values() if isinstance(x, Mapping) else x
    return " and ".join(f"{tuple(part.shape)}, {part.dtype}" for part in parts)


def forms(x: Any) -> tuple[Any, ...]:
    """What batches that are alike have in common: names, shapes of one, and types."""
    return (names_of(x), *((tuple(part.shape[1:]), part.dtype) for part in tensors_of(x)))


def random_like(x: Any, examples: int) -> Any:
    """A batch of the same form of so many examples, numbers random; integers are those that there are.

    The numbers are always the same, and torch's global generator stays as it is.
    """
    generator = torch.Generator("cpu").manual_seed(0)

    def other(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            numbers = torch.rand(examples, *tensor.shape[1:], dtype=tensor.dtype, device="cpu", generator=generator)
            return numbers.to(tensor.device)
        return torch.cat([tensor] * examples)[:examples]

    return with_tensors(x, [other(tensor) for tensor in tensors_of(x)])
