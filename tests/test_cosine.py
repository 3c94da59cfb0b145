"""The transform is scipy's, orthonormal, and its frequencies are those of its rows."""

import numpy as np
import pytest
import torch
from scipy import fft

from pyro_bc.cosine import cosine_basis, frequencies, from_cosines, to_cosines


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
    found = frequencies((2, 3, 5, 4), (5, 4))
    for index in np.ndindex(2, 3, 5, 4):
        assert found[index] == index[2] + index[3]
    flat = frequencies((3, 2 * 12), (3, 4))
    assert flat[1].tolist() == 2 * [row + column for row in range(3) for column in range(4)]
