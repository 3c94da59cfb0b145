"""What a user says of a run."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import UsageError


@dataclass(frozen=True)
class Settings:
    """What a run is; two runs with equal settings give equal files on the same machine and threads.

    :param epochs: of the Bayesian training; None for the recipe's.
    :param pretrained: safetensors file with the weights of a trained dense network, by its parameters' names.
    :param pretrain_epochs: of the dense network that the guide starts from, None for the recipe's, or for 0 where a
        pretrained one is given.
    :param batch_size: of both trainings, None for the recipe's.
    :param shift: move training pictures at random by at most so many pixels, None for the recipe's.
    :param finetune_shift: the same in the pruned network's training, None for the recipe's.
    :param learning_rate: Adam's, of means, and of the dense network unless it has its own; None for the recipe's.
    :param pretrain_learning_rate: of the dense network, None for the recipe's.
    :param log_learning_rate: of log-variances and of the locations of log-normals, None for the recipe's.
    :param kl_weight: weight of the KL after its warm-up, None for the recipe's; 1 is the ELBO.
    :param finetune_epochs: of the pruned network's Bayesian training, None for the recipe's; 0 for none.
    :param finetune_kl_weight: weight of the KL there, None for the recipe's.
    :param thresholds: explicit pruning thresholds by layer, of the first training.
    :param batch_norm: ``fold`` it into the layers before the Bayesian training, or ``keep`` it there, with the batch's
        own statistics, and collect them anew after pruning.
    :param precision: rule that sets the bits.
    :param train_limit: train on the first so many examples only, None for all.
    :param development: hold out the end of the training set and report on it, instead of the test set.
    :param objective: ``elbo``, a posterior that prunes and sets bits; or ``rate``, under the prior ``learned``, a
        posterior whose KL is the file's size. What follows is for ``rate`` alone, None for the recipe's:
    :param widths: outputs of every layer but the last that the training starts from, as ``8-12-32``.
    :param widths_from: a ``.pbc`` file whose widths to start from instead.
    :param teacher: network by whose probabilities the small one learns; it is trained first.
    :param teacher_weights: safetensors file with its trained weights.
    :param teacher_share: of its probabilities in the targets, 0 to 1; the rest is the label.
    :param affine: strength of random rotations, scalings, shears and shifts; 1 is up to 8 degrees, 8 %, 0.1 and 1.5
        pixels.
    :param passes: augmented passes over the data that are made and taught once.
    :param rounding: part of the training, at its end, with rounded codes.
    """

    net: str
    prior: str
    data: str
    epochs: int | None = None
    pretrained: str | None = None
    pretrain_epochs: int | None = None
    batch_size: int | None = None
    shift: int | None = None
    learning_rate: float | None = None
    pretrain_learning_rate: float | None = None
    log_learning_rate: float | None = None
    kl_weight: float | None = None
    finetune_epochs: int | None = None
    finetune_kl_weight: float | None = None
    finetune_shift: int | None = None
    train_limit: int | None = None
    batch_norm: str = "fold"
    seed: int = 0
    thresholds: Mapping[str, float] | None = None
    precision: str = "posterior"
    development: bool = False
    objective: str = "elbo"
    widths: str | None = None
    widths_from: str | None = None
    teacher: str | None = None
    teacher_weights: str | None = None
    teacher_share: float | None = None
    affine: float | None = None
    passes: int | None = None
    rounding: float | None = None


_OF_ELBO = (
    "shift", "log_learning_rate", "finetune_epochs", "finetune_kl_weight", "finetune_shift", "thresholds", "batch_norm",
    "precision",
)  # fmt: skip

_OF_RATE = (
    "widths", "widths_from", "teacher", "teacher_weights", "teacher_share", "affine", "passes", "rounding",
)  # fmt: skip


def check_objective(settings: Settings, objective: str) -> None:
    """Whether a run's settings are for this objective.

    :raises UsageError: where they name another one, or what only another one knows.
    """
    if settings.objective != objective:
        raise UsageError(f"these settings are for the objective '{settings.objective}', not '{objective}'")
    plain = Settings("", "", "")
    names = _OF_RATE if objective == "elbo" else _OF_ELBO
    given = [name for name in names if getattr(settings, name) != getattr(plain, name)]
    if given:
        raise UsageError(f"the objective '{objective}' does not know {', '.join(given)}; leave that out")
