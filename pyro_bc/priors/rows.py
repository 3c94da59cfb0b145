"""Rows of tables as groups: entries of a vocabulary, each of which is needed or not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..errors import UsageError
from ..graph.layer_types import LOOKUP, LayerType
from .base import GroupPrior, Prior
from .horseshoe import GroupHorseshoe


@dataclass(frozen=True)
class RowGroups(Prior):
    """A prior whose groups are the rows of tables; layers of other types have the groups that they have under it.

    A row that is pruned is 0, and the file holds the others alone, with a bit or less to say which those are. For one
    table among others, a rule: ``prior=lambda name, module: RowGroups() if name == "words" else GroupHorseshoe()``.
    A table that is a fully connected layer's weight as well is that layer, with its groups.

    :param prior: with a scale for groups.
    :raises UsageError: where it has none.

    >>> import pyro_bc, torch
    >>> layer = pyro_bc.BayesianEmbedding(10, 4, prior=RowGroups(pyro_bc.GroupNormalJeffreys()))
    >>> pyro_bc.FactorizedGuide(layer)(torch.tensor([[1, 2]]))["scale"].shape
    torch.Size([10])
    """

    prior: GroupPrior = GroupHorseshoe()  # noqa: RUF009  frozen

    def __post_init__(self) -> None:
        if not isinstance(self.prior, GroupPrior):
            raise UsageError(f"RowGroups takes a prior with a scale for groups, not {self.prior!r}")

    def of_layer(self, layer: LayerType) -> tuple[Prior, LayerType]:
        """The prior of one layer, and its type with rows as its groups if it is a table."""
        return self.prior, replace(layer, group_axis=layer.input_axis) if layer.is_lookup else layer

    def sites(self, weight_shape: Sequence[int], groups: int | None = None) -> dict[str, Any]:
        return self.prior.sites(weight_shape, weight_shape[LOOKUP.input_axis] if groups is None else groups)

    def sample(
        self, name: str, weight_shape: Sequence[int], group_size: int = 1, layer: LayerType | None = None
    ) -> Tensor:
        prior, layer = self.of_layer(layer or LOOKUP)
        return prior.sample(name, weight_shape, group_size, layer)

    @classmethod
    def recognise(cls, sites: Mapping[str, Any]) -> None:
        return None  # of a layer whose type says what its groups are

    def group_scale(self, q: Mapping[str, Any]) -> Any | None:
        return self.prior.group_scale(q)

    def statistic(self, q: Mapping[str, Any]) -> Tensor | None:
        return self.prior.statistic(q)
