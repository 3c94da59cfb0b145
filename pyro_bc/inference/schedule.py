"""What is trained at which rate."""

import math
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import pyro
import torch
from torch import Tensor

from ..errors import UsageError
from ..model.guide import FactorizedGuide
from .step import FlatParameters


def log_variance_bounds(guide: FactorizedGuide, max_scale: Mapping[str, float]) -> list[tuple[Tensor, float]]:
    """Log-variance parameters to clamp after every step, with their bounds."""
    bounds = []
    for layer, scale in max_scale.items():
        if layer not in guide.layers:
            raise UsageError(f"max_scale names a layer '{layer}'; the network has {', '.join(guide.layers)}")
        if not scale > 0:
            raise UsageError(f"max_scale of layer '{layer}' must be positive, not {scale!r}")
        bounds.append((attrgetter(f"{layer}.weight")(guide.log_variances), 2 * math.log(scale)))
    return bounds


def trained_parameters(model: Any, guide: FactorizedGuide) -> list[list[Any]]:
    """What is trained: what lives on a linear scale, and what lives on a log scale."""
    logs, means = list(guide.log_variances.parameters()), [p for p in model.parameters() if p.requires_grad]
    for name, family in guide.families.items():
        (logs if family is pyro.distributions.LogNormal else means).append(attrgetter(name)(guide.locs))
    return [means, logs]


def optimizer_of(flat: FlatParameters, rates: list[float]) -> Any:
    groups = [
        {"params": [vector], "lr": rate, "initial_lr": rate} for vector, rate in zip(flat.vectors, rates, strict=True)
    ]
    return torch.optim.Adam(groups, fused=True)


def set_rates(optimizer: Any, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = factor * group["initial_lr"]
