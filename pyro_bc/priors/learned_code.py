r"""A prior that is a code: the KL from it is the size of the file.

A tensor of a layer is a latent site of integer-like *codes*, :math:`w = \Delta\, T^{-1} v`, with a step :math:`\Delta`
per tensor and, over kernels and pictures, the cosine transform :math:`T` (``quantisation/cosine.py``):

============  ==========================  =================================================================
site          density                     learned
============  ==========================  =================================================================
in the model  :class:`LaplaceCells`       scales and weights of the mixture, by frequency; :math:`\log\Delta`
in the guide  :class:`Cell`               the centre of the cell
============  ==========================  =================================================================

Maximising the ELBO over all of them is empirical Bayes, and rate–distortion optimisation: the KL in nats, over
:math:`8 \ln 2`, is the bytes that the codes will take, and what the KL's weight weighs against the likelihood. Weights
that the prior gives a spike at zero fall into it; so do whole units.

Training under cells makes a network robust to rounding, but it is not rounding: the last part of a training computes
with rounded codes (:func:`~pyro_bc.rounded_codes`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import ImproperPriorError, UsageError
from ..quantisation.cosine import cosine_basis, frequencies, transformed
from ..quantisation.fixed_point import FixedPoint
from ..quantisation.grids import is_grid
from .base import LayerSites, Prior, base_distribution
from .cells import LaplaceCells

#: components of a prior's mixture: one narrow, for zeros, and one wide.
COMPONENTS = 2
# Codes' root mean square at the start: a finer step only delays what the KL does to it.
_INITIAL_CODES = 2.5
_LOG_SCALES = (-4.0, 6.0)


class Code(nn.Module):
    """What is learned of one tensor's code: its step, and the prior over its codes.

    :param values: where the tensor starts; its shape, device and dtype are the code's.
    :param grid: sizes of the spatial grid in the tensor's last entries, over which codes are cosine coefficients; empty
        where they are in the order of the numbers.
    :raises UsageError: where the grid does not fit the tensor.
    """

    membership: Tensor | None

    def __init__(self, values: Tensor, grid: Sequence[int] = ()):
        super().__init__()
        self.shape, self.grid = tuple(values.shape), tuple(grid)
        if self.grid and not is_grid(self.shape, self.grid):
            raise UsageError(f"a grid of {self.grid} does not fit a tensor of shape {self.shape}")
        spread = float(values.detach().double().square().mean().sqrt())
        step = spread / _INITIAL_CODES if spread > 0 else 0.1
        self.log_step = nn.Parameter(values.new_tensor(math.log(step)))
        membership = nn.functional.one_hot(frequencies(self.grid)).T.to(values) if self.grid else None
        self.register_buffer("membership", membership, persistent=False)
        for dim, size in enumerate(self.grid):
            basis = cosine_basis(size, values.dtype, values.device)
            self.register_buffer(f"basis{dim}", basis, persistent=False)
        count = 1 if membership is None else len(membership)
        apart = torch.linspace(-1.5, 1.5, COMPONENTS, dtype=values.dtype, device=values.device)
        self.log_scales = nn.Parameter(apart.repeat(count, 1))
        self.logits = nn.Parameter(torch.zeros_like(self.log_scales))
        #: whether the step is a power of two that stays, and group scales are in the codes.
        self.is_settled = False

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.is_settled, device=self.log_step.device)

    def set_extra_state(self, state: Tensor) -> None:
        self.is_settled = bool(state)

    def density(self) -> LaplaceCells:
        """Prior over the codes, batch shape that of the tensor, as it has been learned so far."""
        return LaplaceCells(self.log_scales.clamp(*_LOG_SCALES), self.logits, self.membership, self.shape)

    def decoded(self, codes: Tensor) -> Tensor:
        """The tensor that codes stand for."""
        return transformed(self.log_step.exp() * codes, self.grid, [basis.T for basis in self._bases()])

    def encoded(self, values: Tensor) -> Tensor:
        """Codes, not rounded, of a tensor; detached, and where the code is."""
        with torch.no_grad():
            return transformed(values.detach().to(self.log_step), self.grid, self._bases()) / self.log_step.exp()

    def _bases(self) -> list[Tensor]:
        return [getattr(self, f"basis{dim}") for dim in range(len(self.grid))]

    @property
    def fraction_bits(self) -> int:
        """The fractional bits of the power of two that is nearest to the step."""
        return -round(self.log_step.item() / math.log(2))

    @torch.no_grad()
    def settle_(self) -> float:
        """Round the step to a power of two, as a file holds it, and leave it there.

        :returns: by what codes must be multiplied for the tensor to stay what it is.
        """
        ratio = math.exp(self.log_step.item() + self.fraction_bits * math.log(2))
        self.log_step.fill_(-self.fraction_bits * math.log(2))
        self.is_settled = True
        return ratio

    @torch.no_grad()
    def stored(self, codes: Tensor) -> FixedPoint:
        """Codes as a file holds them, on the CPU: rounded, in a step that is a power of two."""
        ratio = 1.0 if self.is_settled else math.exp(self.log_step.item() + self.fraction_bits * math.log(2))
        return FixedPoint((codes.detach() * ratio).round().long().cpu(), self.fraction_bits, self.grid)

    def nats(self, codes: Tensor) -> Tensor:
        """Length of rounded codes under the prior, in nats, scalar."""
        return -self.density().log_prob(codes.round()).sum()

    def extra_repr(self) -> str:
        return f"{self.shape}, grid={self.grid}"


def code_of(fn: Any) -> Code | None:
    """The code behind a site's prior density; None where it has none."""
    return getattr(fn, "of_code", None)


def weight_of(layer: LayerSites, values: Mapping[str, Tensor]) -> Tensor:
    """The weight that a layer computes with, from a value of every role: scaled, and decoded where it is a code."""
    own = _decoded(layer, values)
    return layer.type.held(own["weight"] if _is_settled(layer) else layer.prior.weight(own, layer.type))


def bias_of(layer: LayerSites, values: Mapping[str, Tensor]) -> Tensor | None:
    """The bias that a layer adds, likewise; None where it has none. The weight is not needed."""
    if "bias" not in layer.sites:
        return None
    own = _decoded(layer, values)
    return own["bias"] if _is_settled(layer) else layer.prior.bias(own, layer.type)


def _decoded(layer: LayerSites, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    codes = {role: code_of(fn) for role, fn in layer.sites.items()}
    return {role: value if (code := codes.get(role)) is None else code.decoded(value) for role, value in values.items()}


def _is_settled(layer: LayerSites) -> bool:
    """Whether scales are in the codes."""
    return any(code.is_settled for fn in layer.sites.values() if (code := code_of(fn)) is not None)


@dataclass(frozen=True)
class LearnedCode(Prior):
    r"""Weights and biases are integer codes, and their prior is learned with them (Ballé et al. 2017, 1611.01704;
    Oktay et al. 2020, 1906.06624): the KL is the length of the code.

    Guide: a cell, uniform between the values that round to one code. Nothing is pruned by a statistic: weights whose
    code is 0 are left out, and units without others. As the prior is learned, a layer has to keep it
    (:class:`~pyro_bc.BayesianNetwork`, :class:`~pyro_bc.BayesianLinear`, …).

    :param grids: over which weights are coded as cosine coefficients: ``auto`` for kernels, and for pictures that a
        fully connected layer reads; None for none; or sizes of the grid by the name of the weight, e.g.
        ``{"fc1.weight": (28, 28)}``.
    :raises UsageError: where ``grids`` is something else.
    """

    grids: str | Mapping[str, Sequence[int]] | None = "auto"
    roles: ClassVar[tuple[str, ...]] = ("weight",)

    def __post_init__(self) -> None:
        if not (self.grids in ("auto", None) or isinstance(self.grids, Mapping)):
            raise UsageError(f"grids is 'auto', None, or sizes by the name of a weight, not {self.grids!r}")

    def sites(self, weight_shape: Sequence[int], groups: int | None = None) -> dict[str, Any]:
        raise ImproperPriorError(
            "the prior LearnedCode is learned, and has no density before: give it to a layer that keeps what is "
            "learned, as BayesianNetwork(net, prior=LearnedCode()) and BayesianLinear(…, prior=LearnedCode()) do"
        )

    @classmethod
    def recognise(cls, sites: Mapping[str, Any]) -> "LearnedCode | None":
        alone = set(sites) <= {"weight", "bias"}
        return cls() if alone and isinstance(base_distribution(sites["weight"]), LaplaceCells) else None

    def code(self, values: Tensor, grid: Sequence[int]) -> Code:
        return Code(values, grid)

    def group_scale(self, q: Mapping[str, Any]) -> None:
        return None

    def statistic(self, q: Mapping[str, Any]) -> None:
        return None
