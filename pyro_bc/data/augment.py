"""Random changes of training pictures: shifts and mirroring, affine maps."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ShiftAndFlip:
    """Every picture of a batch ``(N, C, H, W)`` moved at random, black where it came from, and perhaps mirrored.

    :param shift: at most so many pixels in each direction; 0 leaves pictures where they are.
    :param flip: mirror left and right with probability 1/2.
    """

    shift: int = 0
    flip: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        by = torch.randint(-self.shift, self.shift + 1, (2, n, 1), device=x.device)
        rows = torch.arange(height, device=x.device) + by[0] + self.shift
        columns = torch.arange(width, device=x.device) + by[1] + self.shift
        if self.flip:
            columns = torch.where(torch.rand(n, 1, device=x.device) < 0.5, columns.flip(1), columns)
        padded = torch.nn.functional.pad(x, [self.shift] * 4)
        # Two indices around a slice: the channels come last.
        moved = padded[torch.arange(n, device=x.device)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        return moved.permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class Affine:
    """Every picture of a batch ``(N, C, H, W)`` rotated, scaled, sheared and moved at random, black where it came from.

    :param rotation: at most so many degrees, either way.
    :param scale: height and width each by at most this part, either way.
    :param shear: at most this part, either way.
    :param shift: at most so many pixels in each direction, not rounded.
    """

    rotation: float = 8.0
    scale: float = 0.08
    shear: float = 0.1
    shift: float = 1.5

    @staticmethod
    def of_strength(strength: float) -> "Affine":
        """The defaults, all times ``strength``."""
        usual = Affine()
        return Affine(*(strength * limit for limit in (usual.rotation, usual.scale, usual.shear, usual.shift)))

    def __call__(self, x: Tensor) -> Tensor:
        def either_way(limit: float) -> Tensor:
            return limit * (2 * torch.rand(len(x), device=x.device) - 1)

        height, width = x.shape[-2:]
        angle = either_way(math.pi / 180 * self.rotation)
        across, along = 1 + either_way(self.scale), 1 + either_way(self.scale)
        cos, sin, shear = angle.cos(), angle.sin(), either_way(self.shear)
        first = torch.stack([cos * across, shear - sin * along, either_way(2 * self.shift / width)], 1)
        second = torch.stack([sin * across, cos * along, either_way(2 * self.shift / height)], 1)
        grid = torch.nn.functional.affine_grid(torch.stack([first, second], 1), list(x.shape), align_corners=False)
        return torch.nn.functional.grid_sample(x, grid, align_corners=False)
