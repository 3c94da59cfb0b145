"""Codes of a learned prior, rounded once more at a price of a bit."""

import pytest
import torch
from helpers import train
from torch import nn

import pyro_bc
from pyro_bc.compression.reading import read_posterior
from pyro_bc.compression.recoded import _on_grid, recoder
from pyro_bc.compression.target import Target, compress_to
from pyro_bc.posterior.judged import held_out_batches
from pyro_bc.quantisation.cosine import cosine_basis


@pytest.mark.parametrize("has_bias", [True, False])
def test_second_moments_of_coefficients_are_those_of_transformed_inputs(has_bias):
    torch.manual_seed(0)
    x = torch.randn(50, 2 * 12)  # two channels of a grid of 3 x 4
    basis = torch.kron(torch.eye(2), torch.kron(cosine_basis(3), cosine_basis(4)))
    read, transformed = x, x @ basis.T
    if has_bias:
        read, transformed = (torch.cat([part, torch.ones(50, 1)], 1) for part in (read, transformed))
    found = _on_grid((read.T @ read)[None], (3, 4), has_bias)
    torch.testing.assert_close(found, (transformed.T @ transformed)[None])


@pytest.fixture(scope="module")
def coded():
    """A network of pictures whose weights are codes, as a file holds it, with its model, guide and pictures."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 3)
    )
    x = 3 * nn.functional.avg_pool2d(torch.randn(400, 1, 10, 10), 3, 1)  # neighbours are alike
    y = (x.mean((1, 2, 3)) > 0).long() + (x[:, 0, 0, 0] > 0).long()
    train(net, x, y, 60)
    model = pyro_bc.BayesianNetwork(net, pyro_bc.LearnedCode(), num_data=400)
    guide = pyro_bc.FactorizedGuide(model)
    guide(x, y)
    return model, guide, pyro_bc.compress(model, guide), x, y


def test_codes_fall_as_their_price_rises(coded):
    _, _, stored, x, _ = coded
    left = pyro_bc.BayesianNetwork(stored.network(), pyro_bc.StandardNormal(), num_data=400)
    read = read_posterior(left, pyro_bc.CurvatureGuide(left, [x], progress=False))
    at = recoder(read, stored.tensors, 400)
    files, magnitudes = [], []
    for price in (1e-9, 1e-3, 1e-2):
        found = at(price)
        for name, layer in found.posterior.items():
            before, after = stored.tensors[f"{name}.weight"], layer.codes["weight"]
            assert after.grid == before.grid and after.fraction_bits == before.fraction_bits
            assert not after.codes[before.codes == 0].any()  # what was 0 stays 0
            if price == 1e-9:
                assert torch.equal(after.codes, before.codes)
        small = pyro_bc.compress(left, found, dense=stored)
        assert small.dense_parameters == stored.dense_parameters
        files.append(len(small.to_bytes()))
        magnitudes.append(sum(int(layer.codes["weight"].codes.abs().sum()) for layer in found.posterior.values()))
    assert files[0] == len(stored.to_bytes())
    assert files[0] > files[1] > files[2] and magnitudes[0] > magnitudes[1] > magnitudes[2]


def test_a_target_in_bytes_is_met_with_codes_that_were_too_many(coded):
    model, guide, stored, x, y = coded
    limit = int(0.8 * len(stored.to_bytes()))
    reached = compress_to(model, guide, Target(max_bytes=limit), [x], held_out_batches(x, y), progress=False)
    assert reached.is_met and limit - 8 <= reached.found.file_bytes <= limit  # of words of four bytes
    assert reached.found.way.startswith("codes, price")
