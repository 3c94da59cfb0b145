"""The networks that the command knows by name."""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError


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
    if min(sizes) < 16:
        raise UsageError(f"lenet-5-caffe takes pictures of at least 16 x 16, not {' x '.join(map(str, sizes))}")
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


def _normalized(picture_shape: tuple[int, ...]) -> Normalize:
    """Pictures in [0, 1] to about zero mean and unit variance."""
    return Normalize([0.5] * picture_shape[0], [0.25] * picture_shape[0])


def vgg_16(picture_shape: tuple[int, ...] = (3, 32, 32), classes: int = 10) -> nn.Module:
    """VGG-16 for small pictures, as in Louizos et al. 2017: 13 convolutions of 3x3, two fully connected layers.

    64, 64, 128, 128, 256 (3), 512 (6) filters and 512 hidden units, batch normalisation behind every layer but the
    last; 14,977,728 weights for CIFAR-10. Dropout as it is usual here (0.3 to 0.5) acts in the dense training only.

    :param picture_shape: ``(channels, height, width)``, both sides divisible by 32.
    """
    channels, *sizes = picture_shape
    if any(size % 32 or size == 0 for size in sizes):
        raise UsageError(f"vgg-16 takes pictures with sides divisible by 32, not {' x '.join(map(str, sizes))}")
    modules: OrderedDict[str, nn.Module] = OrderedDict(normalize=_normalized(picture_shape))
    number = 0
    for block, widths in enumerate(((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3), 1):
        for position, width in enumerate(widths, 1):
            number += 1
            modules[f"conv{number}"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            modules[f"norm{number}"] = nn.BatchNorm2d(width)
            modules[f"relu{number}"] = nn.ReLU()
            if position < len(widths):
                modules[f"dropout{number}"] = nn.Dropout(0.3 if block == 1 else 0.4)
            channels = width
        modules[f"pool{block}"] = nn.MaxPool2d(2)
    features = channels * math.prod(size // 32 for size in sizes)
    modules |= OrderedDict(
        flatten=nn.Flatten(),
        dropout14=nn.Dropout(0.5),
        fc1=nn.Linear(features, 512, bias=False),
        norm14=nn.BatchNorm1d(512),
        relu14=nn.ReLU(),
        dropout15=nn.Dropout(0.5),
        fc2=nn.Linear(512, classes),
    )
    return nn.Sequential(modules)


class BasicBlock(nn.Module):
    """Two convolutions of 3x3 beside a shortcut (He et al. 2016a): activations behind the addition."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(
                OrderedDict(conv=nn.Conv2d(channels, width, 1, stride, bias=False), norm=nn.BatchNorm2d(width))
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet_18(picture_shape: tuple[int, ...] = (3, 32, 32), classes: int = 10) -> nn.Module:
    """ResNet-18 for small pictures: a stem of 3x3, eight basic blocks of 64 to 512 filters (He et al. 2016a).

    :param picture_shape: ``(channels, height, width)``.
    """
    modules: OrderedDict[str, nn.Module] = OrderedDict(
        normalize=_normalized(picture_shape),
        conv=nn.Conv2d(picture_shape[0], 64, 3, padding=1, bias=False),
        norm=nn.BatchNorm2d(64),
        relu=nn.ReLU(),
    )
    channels = 64
    for stage, width in enumerate((64, 128, 256, 512), 1):
        for block in (1, 2):
            stride = 2 if block == 1 and stage > 1 else 1
            modules[f"stage{stage}_block{block}"] = BasicBlock(channels, width, stride)
            channels = width
    modules |= OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(channels, classes))
    return nn.Sequential(modules)


class _PreActivationBlock(nn.Module):
    """Two convolutions of 3x3 behind normalisation and activation, beside a shortcut (He et al. 2016b)."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        same = stride == 1 and channels == width
        self.shortcut = None if same else nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        return self.conv2(F.relu(self.norm2(self.conv1(y)))) + shortcut


def wrn_16_4(picture_shape: tuple[int, ...] = (3, 32, 32), classes: int = 10) -> nn.Module:
    """Wide residual network of 16 layers, four times as wide as a ResNet (Zagoruyko and Komodakis 2016).

    :param picture_shape: ``(channels, height, width)``.
    """
    modules: OrderedDict[str, nn.Module] = OrderedDict(
        normalize=_normalized(picture_shape), conv=nn.Conv2d(picture_shape[0], 16, 3, padding=1, bias=False)
    )
    channels = 16
    for stage, width in enumerate((64, 128, 256), 1):
        for block in (1, 2):
            stride = 2 if block == 1 and stage > 1 else 1
            modules[f"stage{stage}_block{block}"] = _PreActivationBlock(channels, width, stride)
            channels = width
    modules |= OrderedDict(
        norm=nn.BatchNorm2d(channels), relu=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(),
        fc=nn.Linear(channels, classes),
    )  # fmt: skip
    return nn.Sequential(modules)


#: what the command can build: name to ``(picture_shape, classes) -> nn.Module``.
NETWORKS: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {
    "lenet-300-100": lenet_300_100,
    "lenet-5-caffe": lenet_5_caffe,
    "vgg-16": vgg_16,
    "resnet-18": resnet_18,
    "wrn-16-4": wrn_16_4,
}
