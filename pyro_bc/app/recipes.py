"""Recipes: training settings by network, data set and prior, chosen on held-out data (``--development``).

A run whose combination has no recipe takes what suits any network and data: as many epochs of the dense network as so
many examples need, and those of the fit, and the KL's weight, that :func:`~pyro_bc.fit` finds where none is given.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from .settings import Dense, Distil, Finetune, Fit, Settings

_NO_FINETUNE = Finetune(epochs=0, kl_weight=0.1, shift=0)
_NO_TEACHER = Distil(share=0.0, passes=12)


@dataclass(frozen=True)
class Recipe:
    """All that a run needs to know of its stages.

    :param widths: outputs of every layer but the last that the Bayesian training starts from; empty for all.
    """

    dense: Dense
    fit: Fit
    finetune: Finetune = _NO_FINETUNE
    distil: Distil = _NO_TEACHER
    widths: str = ""


def _fit(epochs: int | None = None, kl_weight: float | None = None, **changes: Any) -> Fit:
    usual = Fit(
        epochs, kl_weight, learning_rate=1e-3, log_learning_rate=2e-2, code_learning_rate=0.04, decay=0.5, rounding=0.5,
        batch_size=128, shift=0, flip=False, affine=0.0, arithmetic="float32",
    )  # fmt: skip
    return replace(usual, **changes)


def _dense(epochs: int | None = None, learning_rate: float = 1e-3) -> Dense:
    return Dense(epochs, learning_rate)


#: What a combination without a recipe starts from: the number of epochs depends on that of examples.
_UNKNOWN = Recipe(_dense(), _fit())

_DIGITS = Recipe(_dense(100), _fit(200, 0.02))
_DIGITS_CODE = Recipe(_dense(100), _fit(150, 0.1, affine=0.5), distil=Distil(share=0.7, passes=12), widths="40-24")

_LENET_5 = Recipe(
    _dense(5, 2e-3), _fit(25, 1.0, learning_rate=2e-3), Finetune(epochs=48, kl_weight=0.6, shift=1)
)  # fmt: skip
_LENET_300 = Recipe(_dense(10), _fit(40, 0.1))
# Scale-free weights under scales give up weights and groups under the whole KL, and need no faster variances.
_LENET_300_SPARSE = Recipe(_dense(10), _fit(60, 1.0, log_learning_rate=1e-3, decay=1.0, batch_size=100))


def _code(kl_weight: float, epochs: int, widths: str) -> Recipe:
    fit = _fit(epochs, kl_weight, affine=0.7, batch_size=256)
    return Recipe(_dense(20), fit, distil=Distil(share=0.7, passes=12), widths=widths)


# A start that has not been run in full. Weights of deep networks are small, and once normalisation is folded nothing
# makes up for a large step.
_CIFAR = Recipe(
    _dense(100), _fit(100, 0.2, learning_rate=1e-4, log_learning_rate=1e-2, shift=4, flip=True),
    Finetune(epochs=40, kl_weight=0.2, shift=4),
)  # fmt: skip

#: All recipes, by network, data set and prior.
RECIPES: dict[tuple[str, str, str], Recipe] = {
    **{("lenet-300-100", "digits", prior): _DIGITS for prior in ("gnj", "ghs", "svd", "normal")},
    ("lenet-300-100", "digits", "learned"): _DIGITS_CODE,
    ("lenet-300-100", "mnist", "gnj"): Recipe(
        _dense(10), _fit(40, 0.2, log_learning_rate=5e-2), Finetune(epochs=20, kl_weight=0.2, shift=0)
    ),
    **{("lenet-300-100", "mnist", prior): _LENET_300 for prior in ("ghs", "normal")},
    ("lenet-300-100", "mnist", "svd"): replace(_LENET_300_SPARSE, fit=replace(_LENET_300_SPARSE.fit, epochs=100)),
    **{("lenet-300-100", "mnist", prior): _LENET_300_SPARSE for prior in ("gnj+svd", "ghs+svd")},
    ("lenet-300-100", "mnist", "learned"): _code(0.4, 250, "40-20"),
    ("lenet-5-caffe", "mnist", "gnj"): replace(
        _LENET_5, dense=_dense(5, 3e-3), fit=replace(_LENET_5.fit, learning_rate=3e-3, log_learning_rate=5e-2)
    ),
    **{("lenet-5-caffe", "mnist", prior): _LENET_5 for prior in ("ghs", "normal")},
    ("lenet-5-caffe", "mnist", "svd"): Recipe(
        _dense(5, 2e-3), _fit(60, 1.0, learning_rate=1e-3, log_learning_rate=1e-3, decay=1.0)
    ),
    ("lenet-5-caffe", "mnist", "learned"): _code(1.8, 240, "8-12-32"),
    ("lenet-5-caffe", "mnist", "gnj+learned"): _code(1.8, 160, "10-20-64"),
    **{
        (net, data, prior): _CIFAR
        for net in ("vgg-16", "resnet-18", "wrn-16-4")
        for data in ("cifar-10", "cifar-10-jpeg")
        for prior in ("gnj", "ghs", "svd", "normal")
    },
}


def recipe(settings: Settings, examples: int) -> Recipe:
    """The recipe of a run, with what its settings override.

    Where there is a target, or none for its network, data and prior, one for any of them: as many epochs as so many
    examples need, and a weight of the KL that is found while it trains, None here.

    :param examples: of the training set.
    """
    has_target = settings.target is not None
    plan = _UNKNOWN if has_target else RECIPES.get((settings.net, settings.data, settings.prior), _UNKNOWN)
    if settings.dense.weights is not None:
        plan = replace(plan, dense=replace(plan.dense, epochs=0))
    stages = {name: _overridden(getattr(plan, name), getattr(settings, name)) for name in _STAGES}
    plan = replace(plan, **stages)
    if settings.widths is not None or settings.widths_from is not None:
        plan = replace(plan, widths=settings.widths or "")
    return _with_usual_epochs(plan, examples)


_STAGES = ("dense", "fit", "finetune", "distil")

# Epochs and steps of the dense network's training, at least, where nobody says.
_DENSE_EPOCHS, _DENSE_STEPS = 15, 1200


def _with_usual_epochs(plan: Recipe, examples: int) -> Recipe:
    steps = max(1, examples // max(plan.fit.batch_size or 1, 1))
    dense = plan.dense
    if dense.epochs is None:
        dense = replace(dense, epochs=max(_DENSE_EPOCHS, -(-_DENSE_STEPS // steps)))
    return replace(plan, dense=dense)


def _overridden(plan: Any, given: Any) -> Any:
    return replace(plan, **{name: value for name, value in asdict(given).items() if value is not None})
