"""A network of several inputs or outputs as one of tensors by position and one output."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import UnsupportedNetworkError
from ..runtime.inputs import names_of, tensors_of

#: which of several outputs is the network's: its name, or its position; None for the only one, or ``logits``.
Output = str | int | None

# Names that networks give to the one of their outputs that a loss is computed of.
_USUAL = ("logits", "out", "prediction_logits")


def called(net: Callable[..., Any], x: Any, output: Output = None) -> Tensor:
    """What a network makes of a batch: the tensor that is its output.

    :raises UnsupportedNetworkError: where there are several, and it is not said which.
    """
    return chosen(returned(net, x), output)


def returned(net: Callable[..., Any], x: Any) -> Any:
    """All that a network makes of a batch."""
    if isinstance(x, Tensor):
        return net(x)
    names, tensors = names_of(x), tensors_of(x)
    return net(**dict(zip(names, tensors, strict=True))) if names else net(*tensors)


def left_out(outputs: Any, output: Output = None) -> list[Any]:
    """Names or positions of the outputs that are not the one that is meant."""
    meant = chosen(outputs, output)
    found = _named(outputs)
    if hasattr(outputs, "_fields"):  # which are there by their positions as well
        found = {name: value for name, value in found.items() if isinstance(name, str)}
    return [name for name, value in found.items() if isinstance(value, Tensor) and value is not meant]


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
