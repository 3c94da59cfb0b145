"""Examples that are read when they are asked for, where a tensor of all of them would not fit into memory."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import overload

import torch
from torch import Tensor


class Streamed:
    """Examples along a first dimension, any of which can be read.

    It is used as a tensor is. What takes numbers gives tensors and reads: ``x[…]``, and the parts of :meth:`split`,
    each when its turn comes. What chooses reads nothing: :meth:`narrow`, :meth:`index_select`, :meth:`to`.

    :param read: takes numbers of rows, int64 ``(n,)``, and gives those rows, ``(n, *shape)``, on the CPU.
    :param rows: which rows the examples are, ``(N,)``.
    :param shape: of one example.
    :param dtype: of what ``read`` gives.
    :param device: where what is read goes.

    >>> import torch
    >>> squares = Streamed(lambda rows: rows.float()[:, None] ** 2, torch.arange(5), (1,))
    >>> squares.shape, squares[3:].flatten(), [len(part) for part in squares.split(2)]
    (torch.Size([5, 1]), tensor([ 9., 16.]), [2, 2, 1])
    """

    def __init__(
        self,
        read: Callable[[Tensor], Tensor],
        rows: Tensor,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ):
        self.read, self.rows, self.dtype, self.device = read, rows, dtype, torch.device(device)
        self.shape = torch.Size((len(rows), *shape))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        return self.read(self.rows[index.cpu() if isinstance(index, Tensor) else index]).to(self.device)

    def dim(self) -> int:
        return len(self.shape)

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def narrow(self, dim: int, start: int, length: int) -> "Streamed":
        """Examples that follow each other; ``dim`` is 0."""
        return self._of(self.rows.narrow(dim, start, length))

    def index_select(self, dim: int, index: Tensor) -> "Streamed":
        """Examples by their numbers; ``dim`` is 0."""
        return self._of(self.rows.index_select(dim, index.cpu()))

    def to(self, device: str | torch.device) -> "Streamed":
        """The same, read onto a device."""
        return Streamed(self.read, self.rows, self.shape[1:], self.dtype, device)

    def split(self, sizes: int | Sequence[int]) -> "Parts":
        """Parts of a size, the last perhaps smaller, or of these sizes; they can be gone through again."""
        if isinstance(sizes, int):
            whole, rest = divmod(len(self), sizes)
            sizes = [sizes] * whole + [rest] * bool(rest)
        return Parts(self, sizes)

    def _of(self, rows: Tensor) -> "Streamed":
        return Streamed(self.read, rows, self.shape[1:], self.dtype, self.device)


class Parts(Sequence[Tensor]):
    """Tensors of examples that follow each other, each read when it is asked for."""

    def __init__(self, whole: Streamed, sizes: Sequence[int]):
        self.whole, self.ends = whole, [0, *accumulate(sizes)]

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...

    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.whole[self.ends[index] : self.ends[index + 1]]


#: inputs of a set: in memory, or read when they are asked for.
Inputs = Tensor | Streamed


def followed_by(first: Inputs, second: Inputs) -> Inputs:
    """The examples of both, one after the other.

    >>> import torch
    >>> squares = Streamed(lambda rows: rows.float()[:, None] ** 2, torch.arange(3), (1,))
    >>> cubes = Streamed(lambda rows: rows.float()[:, None] ** 3, torch.arange(3), (1,))
    >>> followed_by(squares, cubes)[torch.tensor([5, 2])].flatten()
    tensor([8., 4.])
    """
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.cat([first, second])

    def read(rows: Tensor) -> Tensor:
        found = torch.empty(len(rows), *first.shape[1:], dtype=first.dtype)
        is_first = rows < len(first)
        for part, own in ((first, rows[is_first]), (second, rows[~is_first] - len(first))):
            if len(own):
                found[is_first if part is first else ~is_first] = part[own].cpu()
        return found

    return Streamed(read, torch.arange(len(first) + len(second)), first.shape[1:], first.dtype, first.device)
