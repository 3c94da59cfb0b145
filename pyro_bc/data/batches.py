"""Mini-batches of tensors, shuffled, each process its share."""

from collections.abc import Callable, Iterator

from torch import Tensor

from ..errors import UsageError
from ..runtime import processes
from .streamed import Inputs


class Batches:
    """Mini-batches of tensors, in a new order each time (by torch's global generator).

    A last example that would be alone joins the batch before it, since batch normalisation has no variance of one.
    On several processes (:mod:`pyro_bc.runtime.processes`), where shuffled, each has its share of one common order; up
    to ``processes - 1`` examples of an epoch are left over.

    :param x: in memory, or :class:`~pyro_bc.data.streamed.Streamed`, of which each batch is read when its turn comes.
    :param shuffle: off for evaluation.
    :param augment: changes a batch of pictures at random, e.g. a :class:`ShiftAndFlip`; only where shuffled.
    :raises UsageError: where inputs and targets are not as many, or ``batch_size`` is not positive.

    >>> import torch
    >>> [len(x) for x, y in Batches(torch.zeros(5, 1), torch.zeros(5), batch_size=2)]
    [2, 3]
    """

    def __init__(
        self,
        x: Inputs,
        y: Tensor,
        batch_size: int = 128,
        shuffle: bool = True,
        augment: Callable[[Tensor], Tensor] | None = None,
    ):
        if len(x) != len(y):
            raise UsageError(f"there are {len(x)} inputs, but {len(y)} targets")
        if not (isinstance(batch_size, int) and batch_size > 0):
            raise UsageError(f"batch_size is a positive integer, not {batch_size!r}")
        self.x, self.y, self.batch_size, self.shuffle, self.augment = x, y, batch_size, shuffle, augment

    def __len__(self) -> int:
        return len(self._sizes())

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not self.shuffle:
            yield from zip(self.x.split(self._sizes()), self.y.split(self._sizes()), strict=True)
            return
        for index in processes.shuffled(len(self.x)).split(self._sizes()):
            x = self.x[index]
            yield (x if self.augment is None else self.augment(x)), self.y[index]

    def _sizes(self) -> list[int]:
        own = len(self.x) // processes.count() if self.shuffle else len(self.x)
        whole, rest = divmod(own, self.batch_size)
        if rest == 1 and whole and self.batch_size > 1:
            return [self.batch_size] * (whole - 1) + [self.batch_size + 1]
        return [self.batch_size] * whole + [rest] * bool(rest)
