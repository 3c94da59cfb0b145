r"""Weights whose rows are normal with one second moment between them, and a precision each of their own.

Row o has the precision :math:`c_o A + \tau I`, as the curvature of a layer gives it
(:mod:`pyro_bc.posterior.curvature`) under a normal prior of precision :math:`\tau`. In the eigenvectors V of A all
entries are independent, entry k of row o with precision :math:`c_o \lambda_k + \tau`. Of a wide layer A has several
blocks.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ..graph.layer_types import LINEAR, LayerType


class KroneckerNormal(TorchDistribution):
    """Rows of normals that share the eigenvectors of their precisions; event shape that of the weight.

    :param loc: mean, of the weight's shape.
    :param vectors: of every block the eigenvectors of each group's second moments, as columns, ``(groups, n, n)``.
    :param precision: of every block that of the rows' entries in them, ``(rows, n)``.
    :param kind: the layer's type, which says what its rows are.
    :param groups: of a convolution.

    >>> q = KroneckerNormal(torch.zeros(2, 3), [torch.eye(3)[None]], [torch.full((2, 3), 4.0)])
    >>> q.variance
    tensor([[0.2500, 0.2500, 0.2500],
            [0.2500, 0.2500, 0.2500]])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        vectors: Sequence[Tensor],
        precision: Sequence[Tensor],
        kind: LayerType = LINEAR,
        groups: int = 1,
    ):
        self.loc, self.vectors, self.precision = loc, tuple(vectors), tuple(precision)
        self.kind, self.groups = kind, groups
        super().__init__(torch.Size(), loc.shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, self.loc.dim())

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "KroneckerNormal":
        if tuple(batch_shape):
            raise NotImplementedError("a layer's weight has no batch dimensions")
        return self

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Marginal variances, of the weight's shape."""
        parts = [
            self._by_row((1 / own).unflatten(0, (self.groups, -1)) @ vectors.square().transpose(1, 2))
            for vectors, own in zip(self.vectors, self.precision, strict=True)
        ]
        return self.kind.from_rows(torch.cat(parts, 1), self.loc.shape, self.groups)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        draws = [self._draw() for _ in range(torch.Size(sample_shape).numel())]
        return torch.stack(draws).reshape(torch.Size(sample_shape) + self.loc.shape)

    def _draw(self) -> Tensor:
        parts = []
        for vectors, own in zip(self.vectors, self.precision, strict=True):
            noise = torch.randn_like(own) * own.rsqrt()
            parts.append(self._by_row(noise.unflatten(0, (self.groups, -1)) @ vectors.transpose(1, 2)))
        return self.loc + self.kind.from_rows(torch.cat(parts, 1), self.loc.shape, self.groups)

    def log_prob(self, value: Tensor) -> Tensor:
        values = value.reshape(-1, *self.loc.shape)
        return torch.stack([self._log_prob(one) for one in values]).reshape(value.shape[: value.dim() - self.loc.dim()])

    def _log_prob(self, value: Tensor) -> Tensor:
        rows = self.kind.rows(value - self.loc, self.groups)
        parts = rows.split([own.shape[1] for own in self.precision], 1)
        total = torch.zeros((), dtype=value.dtype, device=value.device)
        for part, vectors, own in zip(parts, self.vectors, self.precision, strict=True):
            along = self._by_row(part.unflatten(0, (self.groups, -1)) @ vectors)
            total = total - 0.5 * (own * along.square() - own.log()).sum()
        return total - 0.5 * value.numel() * torch.tensor(2 * torch.pi).log()

    @staticmethod
    def _by_row(grouped: Tensor) -> Tensor:
        return grouped.flatten(0, 1)
