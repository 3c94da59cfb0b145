"""States of torch's generators: the CPU's, which shuffles, and that of the device that a network draws its noise on."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states by type of device: of the CPU's generator and, where ``device`` is another one, of its own."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state(device)
    return states


def set_random_state(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Put back what :func:`random_state` gave, on this device or on another one.

    Generators of different types of devices have nothing in common: where ``states`` has none for ``device``, its
    generator is seeded by that of the CPU, so that what follows is determined, and repeats nothing.
    """
    torch.set_rng_state(states["cpu"])
    if device.type in states:
        if device.type != "cpu":
            torch.get_device_module(device).set_rng_state(states[device.type], device)
    else:
        generator = torch.Generator("cpu")
        generator.set_state(states["cpu"])
        seed = torch.randint(2**62, (), generator=generator, device="cpu")
        torch.get_device_module(device).manual_seed_all(int(seed))  # the others of its type, too


@contextmanager
def same_random_state(device: torch.device) -> Iterator[None]:
    """A context that leaves the generators, of the CPU and of ``device``, in the states in which it found them."""
    states = random_state(device)
    try:
        yield
    finally:
        set_random_state(states, device)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """:func:`same_random_state`, in which the generators start from a seed."""
    with same_random_state(device):
        torch.default_generator.manual_seed(seed)
        if device.type != "cpu":
            torch.get_device_module(device).manual_seed_all(seed)
        yield
