r"""Weights over a spatial grid as cosine coefficients.

What a network learns over neighbouring pixels is smooth: a kernel, or the picture of what a hidden unit reads, has most
of its energy in few low frequencies, and most of its cosine coefficients are zero at the precision that it needs. A
prior of independent coefficients is a prior of correlated weights. The transform is the orthonormal DCT-II over the
last entries of a tensor,

.. math:: c_k = \sqrt{\tfrac{2 - \delta_{k0}}{n}} \sum_{j=0}^{n-1} w_j \cos\frac{\pi (j + 1/2) k}{n},

so that rounding noise has the same variance in coefficients and weights.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def cosine_basis(size: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
    """Orthonormal DCT-II matrix, ``(size, size)``: a row a frequency, a column a position."""
    k = torch.arange(size, dtype=torch.float64)[:, None]
    j = torch.arange(size, dtype=torch.float64)[None]
    basis = torch.cos(math.pi * (j + 0.5) * k / size) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis.to(device=device, dtype=dtype)


def to_cosines(values: Tensor, grid: Sequence[int]) -> Tensor:
    """Coefficients of a tensor whose last ``prod(grid)`` entries (in C order) are a grid; same shape."""
    return _along_grid(values, grid, [cosine_basis(size, values.dtype, values.device) for size in grid])


def from_cosines(coefficients: Tensor, grid: Sequence[int]) -> Tensor:
    """The inverse of :func:`to_cosines`."""
    bases = [cosine_basis(size, coefficients.dtype, coefficients.device).T for size in grid]
    return _along_grid(coefficients, grid, bases)


def _along_grid(values: Tensor, grid: Sequence[int], matrices: Sequence[Tensor]) -> Tensor:
    result = values.reshape(-1, *grid)
    for dim, matrix in enumerate(matrices, 1):
        result = torch.tensordot(result, matrix, dims=([dim], [1])).movedim(-1, dim)
    return result.reshape(values.shape)


def frequencies(shape: Sequence[int], grid: Sequence[int]) -> Tensor:
    """Frequency of every coefficient of a tensor: the sum of its indices in the grid, of ``shape``, int64."""
    cells = math.prod(grid)
    index = torch.stack(torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")).sum(0).flatten()
    return index.repeat(math.prod(shape) // cells).reshape(tuple(shape))
