"""What a user says of a run, by stage; what they leave open, a recipe fills in.

Every field that the command line can set carries its option: the parser, the command that a report prints, and
:meth:`Settings.of` are made from the fields, so that a setting is said once.
"""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import Field, asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any

from ..compression.rate import DIVERGENCE
from ..compression.target import Target
from ..errors import UsageError, printable
from ..priors.base import GroupPrior, Prior
from ..priors.horseshoe import GroupHorseshoe
from ..priors.learned_code import LearnedCode
from ..priors.normal_jeffreys import GroupNormalJeffreys, LogUniform
from ..priors.shared import ResidualWidth
from ..priors.standard_normal import StandardNormal

#: priors by the command's names: a scale for groups over a prior for weights.
PRIORS: dict[str, Prior] = {
    "gnj": GroupNormalJeffreys(),
    "ghs": GroupHorseshoe(),
    "svd": LogUniform(),
    "normal": StandardNormal(),
    "learned": LearnedCode(),
    "gnj+svd": GroupNormalJeffreys(weights=LogUniform()),
    "ghs+svd": GroupHorseshoe(weights=LogUniform()),
    "gnj+learned": GroupNormalJeffreys(weights=LearnedCode()),
    "ghs+learned": GroupHorseshoe(weights=LearnedCode()),
}

#: priors over the channels of residual streams: those of a scale alone.
WIDTHS: dict[str, GroupPrior] = {"gnj": GroupNormalJeffreys(), "ghs": GroupHorseshoe()}


def _option(name: str, kind: type, text: str, metavar: str | None = None, also: str | None = None) -> Any:
    """A field that the option ``--name`` sets, or ``--also``; None for the recipe's."""
    return _target(name, kind, f"{text} (default: the recipe's)", metavar, also)


def _target(name: str, kind: type, text: str, metavar: str | None = None, also: str | None = None) -> Any:
    """The same where a recipe says nothing: None for none."""
    return field(default=None, metadata={"option": name, "type": kind, "help": text, "metavar": metavar, "also": also})


@dataclass(frozen=True)
class Dense:
    """The dense network, from which the posterior starts."""

    epochs: int | None = _option("pretrain-epochs", int, "epochs of the dense network")
    learning_rate: float | None = _option("pretrain-learning-rate", float, "of the dense network")
    weights: str | None = _option(
        "pretrained", str, "weights of a trained dense network: .safetensors, or a saved state_dict", "FILE",
        also="weights",
    )  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """The Bayesian training. Augmentation and batch size are the dense network's, too."""

    epochs: int | None = _option("epochs", int, "epochs of the Bayesian training")
    kl_weight: float | None = _option(
        "kl-weight", float, "weight of the KL, 1 for the ELBO; without a recipe it is found"
    )
    learning_rate: float | None = _option("learning-rate", float, "of the means")
    log_learning_rate: float | None = _option("log-learning-rate", float, "of log-variances")
    code_learning_rate: float | None = _option("code-learning-rate", float, "of codes, in quantiser's steps")
    decay: float | None = _option("decay", float, "last part of the training in which learning rates fall to 0")
    rounding: float | None = _option("rounding", float, "codes: last part of the training, with rounded ones")
    batch_size: int | None = _option("batch-size", int, "of both trainings")
    arithmetic: str | None = _option(
        "arithmetic", str, "of its products: float32 or bf16, which may take half the time"
    )
    shift: int | None = _option("shift", int, "move training pictures by up to so many pixels")
    flip: bool | None = None
    affine: float | None = _option(
        "affine",
        float,
        "strength of random rotation, scaling, shear and shift; 1 is 8 degrees, 8 %%, 0.1, 1.5 px",
    )


@dataclass(frozen=True)
class Finetune:
    """The Bayesian training of what pruning left."""

    epochs: int | None = _option("finetune-epochs", int, "epochs of training on after pruning, 0 for none")
    kl_weight: float | None = _option("finetune-kl-weight", float, "weight of the KL there")
    shift: int | None = _option("finetune-shift", int, "pixels that pictures move there")


@dataclass(frozen=True)
class Distil:
    """A teacher, by whose probabilities the network learns as well as by labels."""

    share: float | None = _option("teacher-share", float, "of a teacher in the targets, 0 to 1; the rest is labels")
    teacher: str | None = _option("teacher", str, "network to learn from (default: the dense one)", "NET")
    weights: str | None = _option("teacher-weights", str, "its trained weights", "FILE.safetensors")
    passes: int | None = _option("passes", int, "augmented passes over the data that a teacher sees, once")


@dataclass(frozen=True)
class Settings:
    """What a run is; two runs with equal settings give equal files on the same machine and threads.

    :param net: name of a network of ours, or a user's (:func:`~pyro_bc.app.own_network.network`).
    :param prior: name of a prior, of :data:`PRIORS`.
    :param data: name of a data set of ours, or a path (:func:`~pyro_bc.app.own_data.load_data`).
    :param residual_width: name of the prior over channels of residual streams, ``gnj`` or ``ghs``; None for none.
    :param likelihood: of the targets, by its name; None for what they look like.
    :param target_column: of a table.
    :param picture_size: height and width that a user's pictures are brought to.
    :param thresholds: explicit pruning thresholds by layer, of the first training.
    :param batch_norm: ``fold`` it into the layers before the Bayesian training, or ``keep`` it there, with the batch's
        own statistics, and collect them anew after pruning.
    :param precision: rule that sets the bits, where weights are no codes.
    :param train_limit: train on the first so many examples only, None for all.
    :param development: hold out the end of the training set and report on it, instead of the test set.
    :param max_error_rise: a target, as :class:`~pyro_bc.Target` has it, instead of a weight of the KL; so are
        ``max_loss_rise`` and ``max_bytes``. Held-out data are split off the training set to judge by.
    :param widths: outputs of every layer but the last that the Bayesian training starts from, as ``8-12-32``; an empty
        text for those of the dense network, None for the recipe's.
    :param widths_from: a ``.pbc`` file whose widths to start from instead.
    """

    net: str
    prior: str
    data: str
    dense: Dense = field(default_factory=Dense)
    fit: Fit = field(default_factory=Fit)
    finetune: Finetune = field(default_factory=Finetune)
    distil: Distil = field(default_factory=Distil)
    likelihood: str | None = _target(
        "likelihood", str,
        "of the targets: categorical (default for integers, texts), normal (default for floats), bernoulli, poisson, …",
        "NAME",
    )  # fmt: skip
    target_column: str | None = _target(
        "target", str, "column of a table with the targets (default: target, label, class or y, or the last)", "COLUMN"
    )
    picture_size: int | None = _target(
        "picture-size", int, "bring a folder's pictures to this height and width, the middle cut out", "PIXELS"
    )
    max_error_rise: float | None = _target(
        "max-error-rise",
        float,
        "target: points of error above the dense network's, or its RMSE; the KL's weight and all prices are found",
    )
    max_loss_rise: float | None = _target(
        "max-loss-rise", float, "target: nats an example above the dense network's loss"
    )
    max_bytes: int | None = _target("max-bytes", int, "target: size of the file, with as little error as it allows")
    residual_width: str | None = _target(
        "residual-width", str,
        f"prune channels that cross layers, too (ResidualWidth), under this prior: {', '.join(WIDTHS)}", "PRIOR",
    )  # fmt: skip
    widths: str | None = _option("widths", str, "outputs of every layer but the last at the start", "N-N-…")
    widths_from: str | None = _option("widths-from", str, "start from the widths of a compressed network", "FILE.pbc")
    train_limit: int | None = _option("train-limit", int, "train on the first N examples only", "N")
    batch_norm: str = "fold"
    seed: int = 0
    thresholds: Mapping[str, float] | None = None
    precision: str = "posterior"
    development: bool = False

    @property
    def target(self) -> Target | None:
        """The target, where there is one.

        :raises UsageError: where there are several, or it is out of range.
        """
        given = {name: getattr(self, name) for name in ("max_error_rise", "max_loss_rise", "max_bytes")}
        return Target(**given) if any(value is not None for value in given.values()) else None

    @staticmethod
    def of(net: str, prior: str, data: str, **options: Any) -> "Settings":
        """Settings from options of the command by their names, with ``_`` for ``-``: ``pretrain_epochs=3``.

        :raises UsageError: where there is no such option.

        >>> Settings.of("lenet-300-100", "gnj", "digits", pretrain_epochs=3).dense.epochs
        3
        """
        settings = Settings(net, prior, data)
        where = {_name(own): (stage, own.name) for stage, own in options_of(settings)}
        for name, value in options.items():
            if name in where:
                stage, key = where[name]
                changed = {key: value} if not stage else {stage: replace(getattr(settings, stage), **{key: value})}
            elif name in {own.name for own in fields(Settings)}:
                changed = {name: value}
            else:
                raise UsageError(f"a run has no option '{name}'")
            settings = replace(settings, **changed)
        return settings


def prior_of(settings: Settings) -> Prior | ResidualWidth:
    """The prior of a run, with one over channels that cross layers where it is asked for.

    :raises UsageError: where there is none of its name.
    """
    for name, known, what in ((settings.prior, PRIORS, "prior"), (settings.residual_width, WIDTHS, "residual-width")):
        if name is not None and name not in known:
            raise UsageError(f"unknown {what} '{name}'; there are {', '.join(known)}")
    layers = PRIORS[settings.prior]
    return layers if settings.residual_width is None else ResidualWidth(layers, WIDTHS[settings.residual_width])


def has_codes(settings: Settings) -> bool:
    """Whether the weights of a run are codes."""
    prior = PRIORS[settings.prior]
    return isinstance(prior.weights if isinstance(prior, GroupPrior) else prior, LearnedCode)


def _name(own: "Field[Any]") -> str:
    return str(own.metadata["option"]).replace("-", "_")


def options_of(settings: Any) -> Iterator[tuple[str, "Field[Any]"]]:
    """The fields that options set, each with the name of the stage that holds it, empty for the run itself."""
    for own in fields(settings):
        value = getattr(settings, own.name)
        if is_dataclass(value):
            yield from ((own.name, inner) for inner in fields(value) if "option" in inner.metadata)
        elif "option" in own.metadata:
            yield "", own


def flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested settings as one mapping, ``fit.epochs`` to its value."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, Mapping) and key in ("dense", "fit", "finetune", "distil"):
            found |= flat(value, name)
        else:
            found[name] = value
    return found


def command(settings: Mapping[str, Any]) -> str:
    """The command line that made a run, without its ``--out``.

    :param settings: as ``run.json`` holds them.
    """
    if "prior" not in settings:
        return _compress_command(settings)
    words = ["pyro-bc run", *(f"--{name} {_quoted(settings[name])}" for name in ("net", "prior", "data"))]
    plain = Settings("", "", "")
    for stage, own in options_of(plain):
        value = (settings.get(stage, {}) if stage else settings).get(own.name)
        if value is not None:
            words.append(f"--{own.metadata['option']} {_quoted(value)}")
    for name in ("batch_norm", "seed", "precision"):
        if settings.get(name, getattr(plain, name)) != getattr(plain, name):
            words.append(f"--{name.replace('_', '-')} {_quoted(settings[name])}")
    words += [f"--threshold {_quoted(f'{layer}={cut:g}')}" for layer, cut in (settings.get("thresholds") or {}).items()]
    return " ".join([*words, "--development"] if settings.get("development") else words)


@dataclass(frozen=True)
class CompressSettings:
    """What a compression of a trained network is.

    :param net: name of a network of ours, or a user's (:func:`~pyro_bc.app.own_network.network`).
    :param data: name of a data set of ours, or a path (:func:`~pyro_bc.app.own_data.load_data`).
    :param likelihood: of the targets, by its name; None for what they look like.
    :param target: a table's column of targets.
    :param picture_size: height and width that a user's pictures are brought to.
    :param weights: file of its trained weights; None where ``net`` makes a trained network.
    :param epochs: that it is trained on for, rounded.
    :param nats_per_bit: price of a bit; None for the one that ``divergence`` allows.
    :param divergence: by how much predictions may change, mean KL, nats an input.
    """

    net: str
    data: str
    weights: str | None = None
    epochs: int = 0
    batch_size: int = 128
    nats_per_bit: float | None = None
    divergence: float = DIVERGENCE
    seed: int = 0
    likelihood: str | None = None
    target: str | None = None
    picture_size: int | None = None


def as_json(settings: Settings | CompressSettings) -> dict[str, Any]:
    """The settings as ``run.json`` holds them."""
    return asdict(settings)


def _compress_command(settings: Mapping[str, Any]) -> str:
    words = [f"pyro-bc compress {_quoted(settings['net'])} --data {_quoted(settings['data'])}"]
    plain = asdict(CompressSettings("", ""))
    for name in (
        "weights", "likelihood", "target", "picture_size", "epochs", "batch_size", "nats_per_bit", "divergence", "seed"
    ):  # fmt: skip
        value = settings.get(name, plain[name])
        if value != plain[name]:
            words.append(f"--{name.replace('_', '-')} {_quoted(value)}")
    return " ".join(words)


def _quoted(value: Any) -> str:
    """A value as one word of a shell's, whatever it holds: a reader may copy the line."""
    return shlex.quote(printable(str(value)))
