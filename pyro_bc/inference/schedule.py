"""How a training goes: at which rate everything is learned, and how much the KL weighs, from its start to its end."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from operator import attrgetter
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from ..errors import UsageError
from ..model.guide import FactorizedGuide
from ..priors.cells import Cell
from ..priors.learned_code import Code

# Part of a training over which the KL's weight rises from 0, unless a user says otherwise.
_WARMUP, _WARMUP_OF_CODES = 0.25, 0.2
# Learning rates of steps and of a code's prior, as parts of that of the codes.
_OF_STEPS, _OF_CODE_PRIOR = 0.2, 0.5
# Rise of the codes' learning rate, and where its cosine ends, as parts of all.
_RISE, _END = 0.02, 0.002
# Adam's memory of squared gradients, of codes: their gradients change when rounding begins.
_SECOND_MOMENT = 0.99
# What is learned at rates that end in a line.
_LINEAR = ("means", "logs", "scales", "weights")
# Learning rate of means of which the size is known, over that of the others, which are as small as weights are.
_OF_SIZE, _MOST_OF_SIZE = 20, 5e-2
# Steps of a training up to which that is the rate.
_STEPS = 4000


@dataclass(frozen=True)
class Schedule:
    r"""How a training goes. What is not given comes from the prior.

    :param learning_rate: Adam's, of the means (and of deterministic parameters of the network). Where the KL's weight
        is found, that of balanced weights and scales is 20 times as large a part of their size, at most 0.05, and
        less where there are more than 4,000 steps.
    :param log_learning_rate: Adam's, of all that lives on a log scale: log-variances, and the locations of log-normal
        sites.
    :param code_learning_rate: Adam's, of the codes of :class:`~pyro_bc.LearnedCode`, in steps of the quantiser; it
        falls as a cosine, so that codes come to rest.
    :param kl_weight: the KL's weight after its warm-up. 1 is the ELBO; less trades compression for a better fit, as
        if every training example had been seen ``1 / kl_weight`` times. None for what suits network and data
        (:func:`~pyro_bc.inference.multiplier.usual_weight`), less where compression would cost too much
        (:func:`~pyro_bc.inference.multiplier.guarded_weight`).
    :param kl_warmup_epochs: over how many epochs the KL's weight rises linearly from 0 (Louizos et al. 2017, section
        4); None for a quarter of them, or a fifth where there are codes.
    :param decay: last part of the training, 0 to 1, in which the first two learning rates fall linearly to 0.
    :param rounding: last part of the training, 0 to 1, in which the network computes with rounded codes, where there
        are codes.
    :param max_scale: upper bound of the standard deviation of :math:`\tilde w` for layers by name, e.g.
        ``{"net.fc1": 0.2}``, so that they are not pruned before they learn.
    :raises UsageError: where a number is out of its range.
    """

    learning_rate: float = 1e-3
    log_learning_rate: float = 1e-2
    code_learning_rate: float = 0.04
    kl_weight: float | None = None
    kl_warmup_epochs: float | None = None
    decay: float = 0.5
    rounding: float = 0.5
    max_scale: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("learning_rate", "log_learning_rate", "code_learning_rate"):
            rate = getattr(self, name)
            if not (math.isfinite(rate) and rate > 0):
                raise UsageError(f"{name} must be positive and finite, not {rate!r}")
        for name in ("decay", "rounding"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is a part of the training between 0 and 1, not {getattr(self, name)!r}")
        warmup = 0 if self.kl_warmup_epochs is None else self.kl_warmup_epochs
        weight = 0 if self.kl_weight is None else self.kl_weight
        if not (warmup >= 0 and 0 <= weight < math.inf):
            raise UsageError(f"kl_warmup_epochs and kl_weight must be 0 or more, not {warmup} and {weight}")

    def changed(self, changes: Mapping[str, Any]) -> "Schedule":
        """The schedule with some of its fields changed.

        :raises UsageError: where there is no such field.
        """
        unknown = [name for name in changes if name not in asdict(self)]
        if unknown:
            raise UsageError(f"a schedule has no '{unknown[0]}'; it has {', '.join(asdict(self))}")
        return replace(self, **changes)

    def warmup(self, epochs: int, has_codes: bool) -> float:
        """Over how many epochs the KL's weight rises."""
        if self.kl_warmup_epochs is not None:
            return self.kl_warmup_epochs
        return epochs * (_WARMUP_OF_CODES if has_codes else _WARMUP)

    def rounded_from(self, epochs: int) -> int:
        """The first epoch, from 0, that computes with rounded codes; ``epochs`` where none does."""
        return epochs - math.floor(self.rounding * epochs)


class Trained(NamedTuple):
    """Parameters that are learned at one rate.

    :param parameters: of one kind.
    :param rate: the largest of their learning rate.
    :param kind: ``means``, ``logs``, ``scales`` and ``weights`` of balanced layers, ``codes``, ``steps`` or
        ``code priors``; of scales the rate is a part of their own size.
    """

    parameters: list[Any]
    rate: float
    kind: str


def trained_parameters(model: Any, guide: FactorizedGuide, schedule: Schedule) -> list[Trained]:
    """Everything that is trained, by kind; kinds that there are none of are left out."""
    codes = [module for module in model.modules() if isinstance(module, Code)]
    steps = [code.log_step for code in codes]
    priors = [parameter for code in codes for parameter in (code.log_scales, code.logits)]
    own = {id(parameter) for parameter in (*steps, *priors)}
    means = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    logs = list(guide.log_variances.parameters())
    centres: list[Any] = []
    by_family = {dist.LogNormal: logs, Cell: centres}
    for name, family in guide.families.items():
        by_family.get(family, means).append(attrgetter(name)(guide.locs))
    scales, weights = _balanced(guide) if schedule.kl_weight is None else ([], [])
    apart = {id(parameter) for parameter in (*scales, *weights)}
    rate, of_size = schedule.code_learning_rate, min(_MOST_OF_SIZE, _OF_SIZE * schedule.learning_rate)
    found = (
        Trained([p for p in means if id(p) not in apart], schedule.learning_rate, "means"),
        *(Trained([scale], of_size, "scales") for scale in scales),
        Trained(weights, of_size, "weights"),
        Trained(logs, schedule.log_learning_rate, "logs"),
        Trained(centres, rate, "codes"),
        Trained(steps, _OF_STEPS * rate, "steps"),
        Trained(priors, _OF_CODE_PRIOR * rate, "code priors"),
    )
    return [trained for trained in found if trained.parameters]


def _balanced(guide: FactorizedGuide) -> tuple[list[Any], list[Any]]:
    """Locations of the scales of balanced layers (:meth:`FactorizedGuide.balance_`), and of what they scale."""
    scales: list[Any] = []
    weights: list[Any] = []
    for prior, kind, parameters in guide.balanced():
        for role in prior.balanced_roles(kind):
            if role in parameters:
                (scales if role == "scale" else weights).append(parameters[role][0])
    return scales, weights


def optimizer_of(vectors: Iterable[Tensor], trained: Iterable[Trained]) -> Any:
    """Adam of the flat parameters, one vector a kind."""
    groups = []
    for vector, (_, rate, kind) in zip(vectors, trained, strict=True):
        group = {"params": [vector], "lr": rate, "initial_lr": rate, "kind": kind}
        groups.append(group if kind in _LINEAR else {**group, "betas": (0.9, _SECOND_MOMENT)})
    return torch.optim.Adam(groups, fused=True)


def set_rates(optimizer: Any, schedule: Schedule, progress: float, epochs: int, is_rounding: bool) -> None:
    """Set the learning rates after ``progress`` epochs, whole and begun ones, of ``epochs``."""
    linear = min(1.0, (epochs - progress) / (schedule.decay * epochs)) if schedule.decay else 1.0
    part = progress / epochs
    cosine = min(1.0, part / _RISE) * (_END + (1 - _END) * 0.5 * (1 + math.cos(math.pi * part)))
    for group in optimizer.param_groups:
        factor = linear if group["kind"] in _LINEAR else cosine
        if is_rounding and group["kind"] == "steps":  # powers of two by then
            factor = 0.0
        group["lr"] = factor * group["initial_lr"] * group.get("size", 1.0)


@torch.no_grad()
def measure_(optimizer: Any, steps: int) -> None:
    """Note the sizes of which learning rates are a part until they are measured again.

    Scales have their own, at most 1, and the weights that they multiply have 1. Where there are more steps to go a way
    that is about as long in any training, these are smaller, by the root of their number: small steps have less noise,
    which held-out looks see, and large ones come further.

    :param steps: of the whole training.
    """
    part = min(1.0, math.sqrt(_STEPS / steps))
    for group in optimizer.param_groups:
        if group["kind"] == "weights":
            group["size"] = part
        if group["kind"] == "scales":
            group["size"] = part * min(1.0, float(group["params"][0].square().mean().sqrt()))


def log_variance_bounds(guide: FactorizedGuide, max_scale: Mapping[str, float]) -> list[tuple[Tensor, float]]:
    """Log-variance parameters to clamp after every step, with their bounds.

    :raises UsageError: where a layer is not there, its weight has no variance, or its bound is not positive.
    """
    bounds = []
    for layer, scale in max_scale.items():
        if layer not in guide.layers:
            raise UsageError(f"max_scale names a layer '{layer}'; the network has {', '.join(guide.layers)}")
        if guide.families[f"{layer}.weight"] is Cell:
            raise UsageError(f"max_scale names layer '{layer}', whose weights are codes: a code is as wide as its step")
        if not scale > 0:
            raise UsageError(f"max_scale of layer '{layer}' must be positive, not {scale!r}")
        bounds.append((attrgetter(f"{layer}.weight")(guide.log_variances), 2 * math.log(scale)))
    return bounds
