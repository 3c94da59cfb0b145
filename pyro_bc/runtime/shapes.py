"""Shapes that broadcast."""

from torch import Tensor


def on_axis(entries: Tensor, axis: int, ndim: int) -> Tensor:
    """One number for each entry of an axis, ``(size,)``, shaped for broadcasting against a tensor of ``ndim`` axes."""
    return entries.reshape([-1 if at == axis else 1 for at in range(ndim)])
