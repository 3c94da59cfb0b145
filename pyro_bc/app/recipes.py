"""What a run of the command is: the settings that a user gives, and the recipe for all that they leave open."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from .settings import Settings


@dataclass(frozen=True)
class Recipe:
    """Training settings by data set and prior, chosen on held-out data (``Settings.development``).

    Those for CIFAR-10 are a start: they have not been run in full.
    """

    epochs: int
    pretrain_epochs: int
    kl_weight: float
    log_learning_rate: float
    learning_rate: float = 1e-3
    pretrain_learning_rate: float | None = None
    finetune_epochs: int = 0
    finetune_kl_weight: float = 0.1
    batch_size: int = 128
    shift: int = 0
    finetune_shift: int = 0
    flip: bool = False


@dataclass(frozen=True)
class RateRecipe:
    """Training settings under the objective ``rate``, chosen on held-out data."""

    epochs: int
    pretrain_epochs: int
    kl_weight: float
    widths: str | None = None
    teacher: str | None = None
    teacher_share: float = 0.7
    affine: float = 1.0
    passes: int = 12
    rounding: float = 0.5
    learning_rate: float = 0.04
    pretrain_learning_rate: float = 1e-3
    batch_size: int = 256


def recipe(settings: Settings) -> Recipe:
    """The recipe of a run, with what its settings override."""
    plan = _recipe(settings)
    if settings.pretrained is not None:
        plan = replace(plan, pretrain_epochs=0)
    return replace(plan, **_given(settings, Recipe))


def rate_recipe(settings: Settings) -> RateRecipe:
    """The recipe of a run under the objective ``rate``, with what its settings override."""
    plan = _rate_recipe(settings)
    if settings.pretrained is not None:
        plan = replace(plan, pretrain_epochs=0)
    return replace(plan, **_given(settings, RateRecipe))


def _given(settings: Settings, kind: type[Any]) -> dict[str, Any]:
    overridable = {field.name for field in fields(kind)}
    return {name: value for name, value in asdict(settings).items() if name in overridable and value is not None}


def _rate_recipe(settings: Settings) -> RateRecipe:
    if settings.data == "digits" and settings.net == "lenet-300-100":
        return RateRecipe(epochs=150, pretrain_epochs=100, kl_weight=0.1, widths="40-24", affine=0.5, batch_size=128)
    if settings.net == "lenet-5-caffe":
        return RateRecipe(epochs=240, pretrain_epochs=20, kl_weight=1.8, widths="8-12-32", affine=0.7)
    if settings.net == "lenet-300-100":
        return RateRecipe(epochs=250, pretrain_epochs=20, kl_weight=0.4, widths="40-20", affine=0.7)
    return RateRecipe(epochs=200, pretrain_epochs=50, kl_weight=0.5, batch_size=128)  # a start, not run in full


def _recipe(settings: Settings) -> Recipe:
    if settings.data == "digits":
        return Recipe(epochs=200, pretrain_epochs=100, kl_weight=0.02, log_learning_rate=2e-2)
    if settings.net == "lenet-5-caffe":
        plan = Recipe(
            epochs=25, pretrain_epochs=5, kl_weight=1.0, log_learning_rate=2e-2, learning_rate=2e-3,
            finetune_epochs=48, finetune_kl_weight=0.6, finetune_shift=1,
        )  # fmt: skip
        return replace(plan, log_learning_rate=5e-2, learning_rate=3e-3) if settings.prior == "gnj" else plan
    if settings.data.startswith("cifar-10"):
        # Weights of deep networks are small, and once normalisation is folded nothing makes up for a large step.
        return Recipe(
            epochs=100, pretrain_epochs=100, learning_rate=1e-4, pretrain_learning_rate=1e-3, log_learning_rate=1e-2,
            kl_weight=0.2, finetune_epochs=40, finetune_kl_weight=0.2, shift=4, finetune_shift=4, flip=True,
        )  # fmt: skip
    if settings.prior == "gnj":
        plan = Recipe(epochs=40, pretrain_epochs=10, kl_weight=0.2, log_learning_rate=5e-2, finetune_kl_weight=0.2)
        return replace(plan, finetune_epochs=20) if settings.net == "lenet-300-100" else plan
    return Recipe(epochs=40, pretrain_epochs=10, kl_weight=0.1, log_learning_rate=2e-2)
