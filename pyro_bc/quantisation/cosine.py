r"""Weights over a spatial grid as cosine coefficients.

What a network learns over neighbouring pixels is smooth: a kernel, or the picture of what a hidden unit reads, has most
of its energy in few low frequencies, and most of its cosine coefficients are zero at the precision that it needs. A
prior of independent coefficients is a prior of correlated weights. The transform is the orthonormal DCT-II over the
last entries of a tensor,

.. math:: c_k = \sqrt{\tfrac{2 - \delta_{k0}}{n}} \sum_{j=0}^{n-1} w_j \cos\frac{\pi (j + 1/2) k}{n},

so that rounding noise has the same variance in coefficients and weights.

What a file decodes to must be the same on every machine, which sums of floats are not. There, a transform is one of
integers: the matrix above times :math:`2^{24}`, rounded (the nearest tie is 5e-7 away up to 1,024 a side, so that any
cosine in double precision will do), and after each dimension of the grid what came out is rounded to :math:`2^{-16}`,
halves up.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

#: fraction bits of the integer transform: of the matrix, and of what comes out.
BASIS_BITS, NUMBER_BITS = 24, 16


def cosine_basis(size: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
    """Orthonormal DCT-II matrix, ``(size, size)``: a row a frequency, a column a position."""
    k = torch.arange(size, dtype=torch.float64)[:, None]
    j = torch.arange(size, dtype=torch.float64)[None]
    basis = torch.cos(math.pi * (j + 0.5) * k / size) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis.to(device=device, dtype=dtype)


def to_cosines(values: Tensor, grid: Sequence[int]) -> Tensor:
    """Coefficients of a tensor whose last ``prod(grid)`` entries (in C order) are a grid; same shape."""
    return transformed(values, grid, [cosine_basis(size, values.dtype, values.device) for size in grid])


def from_cosines(coefficients: Tensor, grid: Sequence[int]) -> Tensor:
    """The inverse of :func:`to_cosines`."""
    bases = [cosine_basis(size, coefficients.dtype, coefficients.device).T for size in grid]
    return transformed(coefficients, grid, bases)


@lru_cache(maxsize=4)  # of as many megabytes as a side of 1,024 takes, and computed for every tensor of a file
def integer_basis(size: int) -> Tensor:
    """``2^24`` times :func:`cosine_basis`, rounded, int64; exactly the same on every machine, and on the CPU."""
    k = torch.arange(size, device="cpu")[:, None]
    j = torch.arange(size, device="cpu")[None]
    turns = (2 * j + 1) * k % (4 * size)  # of a quarter circle in so many parts: small angles have small errors
    basis = torch.cos(math.pi / (2 * size) * turns.double()) * math.sqrt(2 / size)
    basis[0] = math.sqrt(1 / size)
    return (basis * (1 << BASIS_BITS)).round().long()


def fits_integers(codes: Tensor, grid: Sequence[int]) -> bool:
    r"""Whether :func:`decode_cosines` stays within 64 bits: where the largest code :math:`c` of a grid of sides
    :math:`n_i` has :math:`c \prod_i \sqrt{2 n_i} < 2^{38}`, in two dimensions or more :math:`2^{22}`."""
    largest = max(int(codes.max()), -int(codes.min())) if codes.numel() else 0
    bits = 38 if len(grid) == 1 else 38 - NUMBER_BITS
    return largest**2 * math.prod(2 * size for size in grid) < 1 << 2 * bits  # exactly, as everywhere


def decode_cosines(codes: Tensor, grid: Sequence[int]) -> Tensor:
    """The inverse transform of integers by integers: ``2^16`` times the numbers, int64, of the codes' shape.

    :param codes: for which :func:`fits_integers` holds; 64-bit integers overflow on others.
    """
    result = codes.reshape(-1, *grid)
    held = 0
    for dim, size in enumerate(grid, 1):
        result = torch.tensordot(result, integer_basis(size), dims=([dim], [0])).movedim(-1, dim)
        shift = held + BASIS_BITS - NUMBER_BITS
        result = result + (1 << (shift - 1)) >> shift
        held = NUMBER_BITS
    return result.reshape(codes.shape)


def transformed(values: Tensor, grid: Sequence[int], matrices: Sequence[Tensor]) -> Tensor:
    """A tensor whose last entries are a grid, multiplied by one matrix along each of its dimensions; same shape."""
    if not grid:
        return values
    result = values.reshape(-1, *grid)
    for dim, matrix in enumerate(matrices, 1):
        result = torch.tensordot(result, matrix, dims=([dim], [1])).movedim(-1, dim)
    return result.reshape(values.shape)


def frequencies(grid: Sequence[int]) -> Tensor:
    """Frequency of every coefficient of a grid: the sum of its indices, int64, ``(prod(grid),)``, on the CPU."""
    indices = (torch.arange(size, device="cpu") for size in grid)
    return torch.stack(torch.meshgrid(*indices, indexing="ij")).sum(0).flatten()
