"""The standard normal prior: no sparsity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro.distributions as dist

from .base import Prior, base_distribution, standard_normal


@dataclass(frozen=True)
class StandardNormal(Prior):
    r""":math:`w_{ij} \sim N(0, 1)`: no sparsity, the plain Bayesian network to compare with. Prunes nothing."""

    roles: ClassVar[tuple[str, ...]] = ("weight",)

    def sites(self, weight_shape: Sequence[int], groups: int | None = None) -> dict[str, Any]:
        return {"weight": standard_normal(weight_shape)}

    @classmethod
    def recognise(cls, sites: Mapping[str, Any]) -> "StandardNormal | None":
        alone = set(sites) <= {"weight", "bias"}
        return cls() if alone and isinstance(base_distribution(sites["weight"]), dist.Normal) else None

    def group_scale(self, q: Mapping[str, Any]) -> None:
        return None

    def statistic(self, q: Mapping[str, Any]) -> None:
        return None


#: what the group priors scale, unless they are told otherwise.
STANDARD_NORMAL = StandardNormal()
