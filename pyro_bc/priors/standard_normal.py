"""The standard normal prior: no sparsity."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro.distributions as dist
import torch

from .base import Prior, base_distribution, standard_normal


@dataclass(frozen=True)
class StandardNormal(Prior):
    r""":math:`w_{ij} \sim N(0, 1)`: no sparsity, the plain Bayesian network to compare with. Prunes nothing."""

    roles: ClassVar[tuple[str, ...]] = ("weight",)

    def sites(self, weight_shape: torch.Size | tuple[int, ...], group_size: int = 1) -> dict[str, Any]:
        return {"weight": standard_normal(weight_shape)}

    @classmethod
    def recognise(cls, sites: Mapping[str, Any]) -> "StandardNormal | None":
        return (
            cls()
            if set(sites) <= {"weight", "bias"} and isinstance(base_distribution(sites["weight"]), dist.Normal)
            else None
        )

    def group_scale(self, q: Mapping[str, Any]) -> None:
        return None

    def statistic(self, q: Mapping[str, Any]) -> None:
        return None
