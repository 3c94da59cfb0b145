"""The networks that the command knows by name."""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .errors import UsageError


class Normalize(nn.Module):
    """Input normalisation that travels with the network: ``(x - mean) / std`` per channel.

    :param mean: one value, or one per channel.
    :param std: likewise, positive.

    Input and output ``(batch, channels, *)``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        shape = [-1] + [1] * (x.dim() - 2)
        return (x - self.mean.reshape(shape)) / self.std.reshape(shape)


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


def lenet_5_caffe(picture_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> nn.Module:
    """LeNet-5 as Caffe has it, 20-50-800-500: two convolutions of 5x5 with pooling, 500 rectified units.

    :param picture_shape: ``(channels, height, width)``, both at least 16.
    """
    channels, *sizes = picture_shape
    positions = math.prod(((size - 4) // 2 - 4) // 2 for size in sizes)
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 20, 5),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(20, 50, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(50 * positions, 500),
            relu3=nn.ReLU(),
            fc2=nn.Linear(500, classes),
        )
    )


#: what the command can build: name to ``(picture_shape, classes) -> nn.Module``.
NETWORKS: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {
    "lenet-300-100": lenet_300_100,
    "lenet-5-caffe": lenet_5_caffe,
}


def network(name: str) -> Callable[[tuple[int, ...], int], nn.Module]:
    """The function that builds a network; :raises UsageError: for an unknown name."""
    if name not in NETWORKS:
        raise UsageError(f"unknown network '{name}'; there are {', '.join(NETWORKS)}")
    return NETWORKS[name]
