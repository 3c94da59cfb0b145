"""The course of a fit."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to. ``loss``, ``kl`` and ``negative_log_likelihood`` are in nats per training example.

    :param error: mean training error under sampled weights, in the unit of the likelihood's ``metric``.
    :param groups_left: groups (or weights, for per-weight priors) that would be kept now, by layer.
    :param kl_by_layer: parts of ``kl``; sites of no layer under their own name.
    :param learning_rates: at its end, by what is learned with them (:class:`~pyro_bc.inference.schedule.Trained`).
    :param slack: of a fit with a target, where held-out data were looked at after this epoch: the part of what is
        allowed that was left (:class:`~pyro_bc.posterior.standing.Standing`).
    :param held_out_error: where held-out data were looked at, the error of what compression would have left then, in
        the unit of the likelihood's ``metric``.
    :param file_bytes: about the size of its file.
    :param is_kept: whether that kept the target; None without one.
    """

    epoch: int
    loss: float
    negative_log_likelihood: float
    kl: float
    kl_weight: float
    error: float
    groups_left: dict[str, int]
    seconds: float
    kl_by_layer: dict[str, float] = field(default_factory=dict)
    learning_rates: dict[str, float] = field(default_factory=dict)
    slack: float | None = None
    held_out_error: float | None = None
    file_bytes: int | None = None
    is_kept: bool | None = None


@dataclass(frozen=True)
class FitResult:
    """The course of a fit; the fit itself is in the guide.

    :param history: one :class:`Epoch` after the other, including those before a resume.
    """

    history: tuple[Epoch, ...]
