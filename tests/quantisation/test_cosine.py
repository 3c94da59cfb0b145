"""The transform is scipy's, orthonormal, and its frequencies are those of its rows."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from scipy import fft

from pyro_bc.quantisation.cosine import (
    cosine_basis,
    decode_cosines,
    fits_integers,
    frequencies,
    from_cosines,
    integer_basis,
    to_cosines,
)


@pytest.mark.parametrize(
    ("shape", "grid"), [((3, 24), (3, 4)), ((2, 5, 5, 5), (5, 5)), ((4, 2, 3), (3,)), ((2, 7), (7,))]
)
def test_coefficients_are_scipys_and_come_back(shape, grid):
    x = torch.randn(shape, dtype=torch.double)
    expected = fft.dctn(x.numpy().reshape(-1, *grid), axes=range(1, 1 + len(grid)), norm="ortho").reshape(shape)
    np.testing.assert_allclose(to_cosines(x, grid).numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(from_cosines(to_cosines(x, grid), grid).numpy(), x.numpy(), atol=1e-12)


def test_the_basis_is_orthonormal():
    basis = cosine_basis(28, torch.double)
    assert torch.allclose(basis @ basis.T, torch.eye(28, dtype=torch.double), atol=1e-12)


def test_a_frequency_is_the_sum_of_the_indices_in_the_grid():
    found = frequencies((5, 4)).reshape(5, 4)
    for row, column in np.ndindex(5, 4):
        assert found[row, column] == row + column
    assert frequencies((7,)).tolist() == list(range(7))


@pytest.mark.parametrize("size", [1, 2, 5, 7, 28])
def test_the_integer_basis_is_the_rounded_one_of_many_digits(size):
    with mpmath.workdps(40):
        for k, row in enumerate(integer_basis(size).tolist()):
            scale = mpmath.sqrt(mpmath.mpf(2 - (k == 0)) / size)
            exact = [2**24 * scale * mpmath.cos(mpmath.pi * (j + mpmath.mpf("0.5")) * k / size) for j in range(size)]
            assert row == [int(mpmath.nint(value)) for value in exact]


def test_no_entry_of_any_integer_basis_is_near_a_tie():
    """A cosine that is a few units in the last place off, as libraries differ, is rounded to the same integer."""
    for size in range(1, 1025):
        cosines = np.cos(np.pi * np.arange(4 * size) / (2 * size)) * 2**24
        for scale in (math.sqrt(2 / size), math.sqrt(1 / size)):
            fraction = np.abs(cosines * scale) % 1
            assert np.abs(fraction - 0.5).min() > 4e-7


@pytest.mark.parametrize("grid", [(5, 5), (3, 4), (7,), (2, 3, 2)])
def test_integers_are_transformed_as_fractions_would_be_and_close_to_the_real_transform(grid):
    codes = torch.randint(-300, 300, (2, *grid))
    found = decode_cosines(codes, grid)
    exact = [[Fraction(code) for code in block.flatten().tolist()] for block in codes]
    for dim, size in enumerate(grid):
        basis, inner = integer_basis(size).tolist(), math.prod(grid[dim + 1 :])
        for block in exact:
            old = list(block)
            for cell in range(len(old)):
                j = cell // inner % size
                first = cell - j * inner
                total = sum(old[first + k * inner] * basis[k][j] for k in range(size)) / 2**24
                block[cell] = Fraction(math.floor(total * 2**16 + Fraction(1, 2)), 2**16)
    assert found.flatten().tolist() == [int(value * 2**16) for block in exact for value in block]
    close = from_cosines(codes.double(), grid)
    assert (found / 2**16 - close).abs().max() < 3e-4


@pytest.mark.parametrize("grid", [(1024,), (5, 5), (64, 64), (128, 96), (4, 3, 5)])
def test_the_largest_codes_that_are_allowed_do_not_overflow_and_larger_ones_are_not(grid):
    bits = 38 if len(grid) == 1 else 22
    largest = math.isqrt(((1 << 2 * bits) - 1) // math.prod(2 * size for size in grid))
    # Signs that add up to as much as there can be at one place of the grid.
    signs = torch.ones(())
    for size in grid:
        column = integer_basis(size)[:, integer_basis(size).abs().sum(0).argmax()]
        signs = signs[..., None] * torch.where(column < 0, -1, 1)
    codes = (largest * signs).long()
    assert fits_integers(codes, grid) and not fits_integers(codes * 2, grid)
    assert fits_integers(-codes, grid) and fits_integers(torch.zeros(0, *grid, dtype=torch.int64), grid)
    exact = codes.numpy().astype(object)
    held = 0
    for dim, size in enumerate(grid):
        basis = integer_basis(size).numpy().astype(object)
        exact = np.moveaxis(np.tensordot(exact, basis, (dim, 0)), -1, dim)
        shift = held + 24 - 16
        exact = (exact + (1 << (shift - 1))) >> shift
        held = 16
    found = decode_cosines(codes, grid)
    assert found.tolist() == exact.tolist()
