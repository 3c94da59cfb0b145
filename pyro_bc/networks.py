"""The networks that the command knows by name."""

import math
from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from .errors import UsageError


def lenet_300_100(picture_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> nn.Module:
    """LeNet-300-100: two hidden layers of 300 and 100 rectified units (LeCun et al. 1998).

    Pictures are read as they are, in [0, 1]: where a pixel never carries ink it is 0, and nothing but the
    prior speaks for its weights.

    :param picture_shape: ``(channels, height, width)``.
    """
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(math.prod(picture_shape), 300),
            relu1=nn.ReLU(),
            fc2=nn.Linear(300, 100),
            relu2=nn.ReLU(),
            fc3=nn.Linear(100, classes),
        )
    )


#: what the command can build: name to ``(picture_shape, classes) -> nn.Module``.
NETWORKS: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {"lenet-300-100": lenet_300_100}


def network(name: str) -> Callable[[tuple[int, ...], int], nn.Module]:
    """The function that builds a network; :raises UsageError: for an unknown name."""
    if name not in NETWORKS:
        raise UsageError(f"unknown network '{name}'; there are {', '.join(NETWORKS)}")
    return NETWORKS[name]
