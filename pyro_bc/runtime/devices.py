"""Where tensors are: of a module, and of work that is the CPU's whatever torch's default device is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import nn

from ..errors import UsageError
from .inputs import Batch, tensors_of

P = ParamSpec("P")

T = TypeVar("T")


def device_of(module: nn.Module) -> torch.device:
    """Where a guide or a network is: the device of its parameters; the CPU's where it has none."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """A context in which this is torch's default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def on_cpu(function: Callable[P, T]) -> Callable[P, T]:
    """The function, in which new tensors are on the CPU; for what works on posteriors and files, which are there."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.get_default_device().type == "cpu":  # the context would look at every call of torch's
            return function(*args, **kwargs)
        with torch.device("cpu"):
            return function(*args, **kwargs)

    return wrapped


def check_dtype(what: str, dtype: torch.dtype) -> None:
    """Whether what becomes latent is of the type of its priors.

    :raises UsageError: where it is not; begins with ``what``.
    """
    if dtype != torch.get_default_dtype():
        raise UsageError(
            f"{what} {dtype}, but priors are {torch.get_default_dtype()}: convert the network, or call "
            f"torch.set_default_dtype first"
        )


def check_device(what: str, x: Batch, device: torch.device) -> None:
    """Whether data are where the network is.

    :raises UsageError: where they are not; begins with ``what``.
    """
    for part in tensors_of(x):
        if part.device != device:
            raise UsageError(f"{what} on {part.device}, the network on {device}: move one of them with .to(…)")
