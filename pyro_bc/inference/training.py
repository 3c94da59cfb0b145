"""What is trained: a model and its guide, as a few flat parameters under Adam."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..model.guide import FactorizedGuide
from .schedule import Schedule, log_variance_bounds, optimizer_of, trained_parameters
from .step import FlatParameters


@dataclass(frozen=True)
class Training:
    """What steps train.

    :param model: as :func:`~pyro_bc.inference.trainable.trainable` gives it.
    :param guide: of this model, set up.
    :param bounds: parameters that are clamped after every step, and at what.
    """

    model: Any
    guide: FactorizedGuide
    flat: FlatParameters
    optimizer: Any
    bounds: list[tuple[Tensor, float]]

    @classmethod
    def of(cls, model: Any, guide: FactorizedGuide, schedule: Schedule) -> "Training":
        """The training of all that a model and its guide learn."""
        trained = trained_parameters(model, guide, schedule)
        flat = FlatParameters([parameters for parameters, _, _ in trained])
        bounds = log_variance_bounds(guide, schedule.max_scale)
        return cls(model, guide, flat, optimizer_of(flat.vectors, trained), bounds)

    @property
    def weights(self) -> int:
        """How many weights its layers have."""
        return sum(self.guide.parameters_of(f"{layer}.weight")[0].numel() for layer in self.guide.layers)

    def moments(self, number: int) -> dict[str, Tensor]:
        """Adam's state of one of the vectors."""
        state: dict[str, Tensor] = self.optimizer.state[self.flat.vectors[number]]
        return state
