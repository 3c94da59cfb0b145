"""The course of a fit."""

from dataclasses import dataclass, field

from ..runtime.html import paragraph, picture, table

# Epochs that a notebook's table shows.
_SHOWN = 10


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to. ``loss``, ``kl`` and ``negative_log_likelihood`` are in nats per training example.

    :param error: mean training error under sampled weights, in the unit of the likelihood's ``metric``.
    :param groups_left: groups (or weights, for per-weight priors) that would be kept now, by layer; as they were at the
        last of 50 counts, where there are more epochs.
    :param kl_by_layer: parts of ``kl``; sites of no layer under their own name.
    :param learning_rates: at its end, by what is learned with them (:class:`~pyro_bc.inference.schedule.Trained`).
    :param slack: where compression was looked at after this epoch, and something is asked of it: the part of what is
        allowed that was left (:class:`~pyro_bc.posterior.standing.Standing`), by a target, or of what compression may
        cost where no weight of the KL was given.
    :param held_out_error: where held-out data were looked at, the error of what compression would have left then, in
        the unit of the likelihood's ``metric``.
    :param file_bytes: size of its file, about that where a target searches for it.
    :param is_kept: whether it kept what is asked for; None where nothing is.
    :param cost: what was to be as small as could be, of what keeps that; None where nothing is asked for.
    :param train_error: its error on some examples that it is trained on; None where nobody asks.
    :param weights_trained: how many weights of layers the epoch trained: fewer than there are, once groups have left
        the training (``shrink`` of :func:`~pyro_bc.fit`); None in what an earlier version wrote.
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
    cost: float | None = None
    train_error: float | None = None
    weights_trained: int | None = None


@dataclass(frozen=True)
class FitResult:
    """The course of a fit; the fit itself is in the guide.

    :param history: one :class:`Epoch` after the other, including those before a resume.
    """

    history: tuple[Epoch, ...]

    def _repr_html_(self) -> str:
        every = max(1, -(-len(self.history) // _SHOWN))
        shown = [record for record in self.history if (len(self.history) - record.epoch) % every == 0]
        head = (
            "epoch",
            "loss",
            "KL",
            "KL weight",
            "error of drawn weights",
            "compressed error",
            "bytes",
            "groups left",
        )
        rows = [
            (
                own.epoch, f"{own.loss:.4g}", f"{own.kl:.4g}", f"{own.kl_weight:.3g}", f"{own.error:.4g}",
                "" if own.held_out_error is None else f"{own.held_out_error:.4g}",
                "" if own.file_bytes is None else f"{own.file_bytes:,}", "-".join(map(str, own.groups_left.values())),
            )
            for own in shown
        ]  # fmt: skip
        looks = [(own.epoch, own.held_out_error) for own in self.history if own.held_out_error is not None]
        drawn = looks or [(own.epoch, own.loss) for own in self.history]
        name = "error of the compressed network" if looks else "loss, nats per training example"
        seconds = sum(record.seconds for record in self.history)
        said = f"{len(self.history)} epochs in {seconds:.0f} seconds"
        return "\n".join([paragraph(said), table(head, rows), picture(drawn, "epoch", name, is_joined=True)])
