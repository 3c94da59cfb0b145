"""Generators' states: kept, seeded for a while, and put back; tests/test_devices.py has those of a second device."""

import pytest
import torch
from torch import nn

from pyro_bc.runtime.devices import device_of
from pyro_bc.runtime.random_state import random_state, same_random_state, seeded, set_random_state

CPU = torch.device("cpu")


def test_what_was_put_back_draws_the_same_again():
    state = random_state(CPU)
    assert list(state) == ["cpu"]
    first = torch.randn(5)
    assert not torch.equal(torch.randn(5), first)
    set_random_state(state, CPU)
    assert torch.equal(torch.randn(5), first)


def test_a_seed_holds_within_its_context_and_nothing_of_it_is_left_even_after_an_error():
    state = torch.get_rng_state()
    with seeded(3, CPU):
        first = torch.randn(5)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, torch.randn(5, generator=torch.Generator().manual_seed(3)))
    with pytest.raises(ValueError), same_random_state(CPU):
        torch.randn(5)
        raise ValueError
    assert torch.equal(torch.get_rng_state(), state)


def test_states_of_another_device_are_no_matter_to_the_cpu():
    state = random_state(CPU) | {"cuda": torch.zeros(16, dtype=torch.uint8)}
    first = torch.randn(5)
    set_random_state(state, CPU)
    assert torch.equal(torch.randn(5), first)


def test_a_module_is_where_its_parameters_are():
    assert device_of(nn.Linear(2, 3, device="meta")).type == "meta"
    assert device_of(nn.ReLU()) == CPU
