"""How a file's tensors are coded: bit by bit where that is worth the time."""

import torch

from pyro_bc.file.tensors import ADAPTIVE, NUMBERS, bit_by_bit, plans_of
from pyro_bc.quantisation.fixed_point import FixedPoint


def tensors_of(count, scale):
    generator = torch.Generator().manual_seed(0)
    codes = [(torch.randn(8192, generator=generator) * scale).round().to(torch.int64) for _ in range(count)]
    return {str(number): FixedPoint(own, 4) for number, own in enumerate(codes)}


def test_of_many_numbers_only_those_are_decoded_bit_by_bit_that_are_shorter_for_it():
    plans = plans_of(tensors_of(20, scale=8.0))  # where a table takes about a thousandth more
    assert 0 < sum(map(bit_by_bit, plans.values())) <= 1 << 16
    assert {own.kind for own in list(plans.values())[12:]} == {NUMBERS}
    rare = plans_of(tensors_of(20, scale=0.15))  # a table's frequencies are too coarse for few that are not zero
    assert {own.kind for own in rare.values()} == {ADAPTIVE}
