"""What goes into a network and what comes out of it: one tensor or several, by position or by name."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedNetworkError, UsageError

#: which of several outputs is the network's: its name, or its position; None for the only one, or ``logits``.
Output = str | int | None

# Names that networks give to the one of their outputs that a loss is computed of.
_USUAL = ("logits", "out", "prediction_logits")


class Inputs:
    """Several tensors that go into a network together, with the batch first in each of them.

    It is what a batch's inputs are where they are a tuple or a dictionary: as long as its tensors, and cut with them.

    :param tensors: by name, or in a tuple.
    :param names: of the tensors of a tuple.
    """

    def __init__(self, tensors: Mapping[str, Tensor] | tuple[Tensor, ...] | list[Tensor]):
        self.by_name = isinstance(tensors, Mapping)
        self.names = tuple(tensors) if isinstance(tensors, Mapping) else ()
        self.tensors = tuple(tensors.values()) if isinstance(tensors, Mapping) else tuple(tensors)
        if not self.tensors or not all(isinstance(x, Tensor) and x.dim() for x in self.tensors):
            raise UsageError("several inputs are a tuple or a dictionary of tensors of shape (batch, …)")
        if len({len(x) for x in self.tensors}) != 1:
            sizes = ", ".join(str(tuple(x.shape)) for x in self.tensors)
            raise UsageError(f"the tensors of a batch of inputs have the batch first, as many in each; not {sizes}")

    def __len__(self) -> int:
        return len(self.tensors[0])

    def map(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        """The same with every tensor changed."""
        tensors = [change(x) for x in self.tensors]
        return Inputs(dict(zip(self.names, tensors, strict=True)) if self.by_name else tensors)


#: a batch of inputs as it is given.
Batch = Tensor | Inputs | tuple[Tensor, ...] | Mapping[str, Tensor]


def tensors_of(x: Any) -> tuple[Tensor, ...]:
    """The tensors of a batch of inputs, in order."""
    if isinstance(x, Tensor):
        return (x,)
    return (x if isinstance(x, Inputs) else Inputs(x)).tensors


def names_of(x: Any) -> tuple[str, ...]:
    """Under which names the tensors of a batch go into a network; empty where it is by their positions."""
    if isinstance(x, Tensor):
        return ()
    return (x if isinstance(x, Inputs) else Inputs(x)).names


def with_tensors(x: Any, tensors: Iterator[Tensor] | list[Tensor] | tuple[Tensor, ...]) -> Any:
    """A batch of the same form with other tensors."""
    if isinstance(x, Tensor):
        return next(iter(tensors))
    if isinstance(x, Inputs):
        return Inputs(dict(zip(x.names, tensors, strict=True)) if x.by_name else list(tensors))
    return dict(zip(x, tensors, strict=True)) if isinstance(x, Mapping) else tuple(tensors)


def called(net: Callable[..., Any], x: Any, output: Output = None) -> Tensor:
    """What a network makes of a batch: the tensor that is its output.

    :raises UnsupportedNetworkError: where there are several, and it is not said which.
    """
    if isinstance(x, Tensor):
        return chosen(net(x), output)
    names, tensors = names_of(x), tensors_of(x)
    return chosen(net(**dict(zip(names, tensors, strict=True))) if names else net(*tensors), output)


def chosen(outputs: Any, output: Output = None) -> Tensor:
    """The one of a network's outputs that is meant.

    :param outputs: a tensor, or a tuple, a dictionary or a dataclass of them.
    :raises UnsupportedNetworkError: where there is none, or it is not said which.
    """
    if isinstance(outputs, Tensor) and output is None:
        return outputs
    found = _named(outputs)
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    if output is not None:
        if not isinstance(outputs, Tensor) and output in tensors:
            return tensors[output]
        raise UnsupportedNetworkError(f"the network has no output {output!r}: it gives {_said(outputs, tensors)}")
    if len(tensors) == 1:
        return next(iter(tensors.values()))
    for name in _USUAL:
        if name in tensors:
            return tensors[name]
    raise UnsupportedNetworkError(
        f"the network gives {_said(outputs, tensors)}; one tensor is needed: say which is the output with output=…"
    )


def _said(outputs: Any, tensors: Mapping[Any, Tensor]) -> str:
    kind = type(outputs).__name__
    return (
        f"a {kind} of {', '.join(map(repr, tensors))}" if tensors and not isinstance(outputs, Tensor) else f"a {kind}"
    )


def _named(outputs: Any) -> dict[Any, Any]:
    """A network's outputs by name or position."""
    if isinstance(outputs, Mapping):
        return dict(outputs)
    if dataclasses.is_dataclass(outputs):
        return {field.name: getattr(outputs, field.name) for field in dataclasses.fields(outputs)}
    if isinstance(outputs, tuple) and hasattr(outputs, "_fields"):
        return dict(zip(outputs._fields, outputs, strict=True)) | dict(enumerate(outputs))
    return dict(enumerate(outputs)) if isinstance(outputs, tuple | list) else {0: outputs}


class OneOutput(nn.Module):
    """A network of tensors by position, whose output is one tensor: what is read as a graph.

    :param net: the network, which is not changed.
    :param names: of its inputs, where they go in by name.
    """

    def __init__(self, net: nn.Module, names: tuple[str, ...], output: Output):
        super().__init__()
        self.net, self.names, self.output = net, names, output
        self.training = net.training

    def forward(self, *tensors: Tensor) -> Tensor:
        if self.names:
            return chosen(self.net(**dict(zip(self.names, tensors, strict=True))), self.output)
        return chosen(self.net(*tensors), self.output)


def random_like(x: Any, examples: int) -> Any:
    """A batch of the same form of so many examples, numbers random; integers are those that there are."""

    def other(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            return torch.rand(examples, *tensor.shape[1:], dtype=tensor.dtype).to(tensor.device)
        return torch.cat([tensor] * examples)[:examples]

    return with_tensors(x, [other(tensor) for tensor in tensors_of(x)])
