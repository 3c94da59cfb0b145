"""The smallest network that keeps a promise: one number from the user, all prices found on held-out data.

A fit says which groups are needed and how well every weight is known; how far to go along that is a price. What pruning
leaves has a curvature of its own (:mod:`pyro_bc.posterior.curvature`), by which rounding conditions, so that the last
step is a search for one number, the price of a bit, at no training. Every network that it tries is judged on held-out
data, and all of them are the curve that is returned.
"""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ..errors import EmptyNetworkError, UnsupportedNetworkError, UsageError
from ..file.compressed import CompressedNetwork
from ..file.contents import Floats
from ..graph.interface import Output
from ..model.guide import FactorizedGuide
from ..model.likelihoods import Likelihood
from ..model.network import BayesianNetwork
from ..posterior.curvature_guide import CurvatureGuide
from ..posterior.guides import Posterior, posterior_of
from ..posterior.in_place import network_with
from ..posterior.in_place import pruned as pruned_in_place
from ..posterior.judged import Judged, checked, computed, figure, judge, scored, where_they_are
from ..posterior.standing import Standing
from ..posterior.summary import ChannelPosterior, summarize
from ..posterior.thresholds import choose_threshold
from ..priors.standard_normal import StandardNormal
from ..quantisation.fixed_point import FixedPoint
from ..runtime.devices import device_of
from ..runtime.gradients import check_differentiates
from ..runtime.html import paragraph, picture
from .compress import compress
from .look import Look, compressed_quietly
from .made_up import inputs_at_mean
from .reading import Reading, read_posterior
from .recoded import recoder
from .sensitivity import blame, is_clearly_worse, sensitivity

# Prices of a bit at which groups are weighed, in nats of the fit's posterior; None is the rule of signal and noise.
_GROUP_PRICES = (None, 0.02, 0.05, 0.1)

# The same where none of these keeps a rise, or a size leaves a choice: groups of many weak weights, that have a signal
# together, stay.
_GENTLE_PRICES = (0.004, 0.0008)

# Rounding noise of what is pruned and not yet rounded, and of a file about as large as the last, beside the posterior's
# variance.
_FINE, _COARSE = 1e-4, 0.8

# Rounding noise that is tried while a network is trained, until an error is kept.
_NOISES = (0.8, 0.2, 0.05, 0.0125)

# Bytes of a file that are there before any weight, and about which part of the others a search leaves that has to. More
# of a small file by the KL, and less of it by rounding, costs more error. Of numbers without a posterior, such as gains
# of normalisations, it leaves as many as say what their curvature knows.
_HEADER, _LEFT, _LEFT_OF_FLOATS = 64, 0.55, 0.25

# Codes are trained to so much more than a size, as a search makes them smaller, and never larger.
_SEARCHED = 1.04

# Bits of a number beyond which it is of a tensor that nothing is known of.
_OF_FLOATS = 16

# Where a search begins, by what is searched, and how often it tries.
_FIRST_PRICE, _FIRST_NOISE, _EVALUATIONS = 1e-4, 0.2, 10

# The part of the error of one prediction for all inputs above which a network has learned little, and the part of the
# way there from the dense network's above which little is left of what it had.
_LITTLE, _LOST = 0.8, 0.5

# The part of the dense network's error below which the posterior mean's says that a training was not at its end.
_MUCH = 0.5

# Prices that are so close make much the same file.
_APART = 1.05

# The factor between prices until the target lies between two of them, and how close a file comes to the bytes allowed.
_STRIDE, _CLOSE, _NEAR = 8.0, 0.98, 0.97

# Options of compress that say what is compressed; how far is what a target is for.
_OPTIONS = {"net", "thresholds", "precision", "dense", "batch_norm_loader"}

# The part of an error by which one that is larger is not.
_LEVEL = 0.01

# How much of what is too much must be left by a price that is lower by a stride, for the search to go on.
_FLAT = 0.9


@dataclass(frozen=True)
class Target:
    """What a compressed network has to keep, as one number.

    :param max_error_rise: by how much its error may be larger than the dense network's, in the unit of the likelihood's
        error: points of a percentage for classes.
    :param max_loss_rise: by how much its negative log-likelihood may be, in nats an example.
    :param max_bytes: size of the file at most; then the error is as small as it can be.
    :raises UsageError: where not exactly one of them is given, or it is out of range.

    >>> Target(max_error_rise=0.5).limit
    0.5
    """

    max_error_rise: float | None = None
    max_loss_rise: float | None = None
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        given = [own.name for own in fields(self) if getattr(self, own.name) is not None]
        if len(given) != 1:
            names = ", ".join(own.name for own in fields(self))
            raise UsageError(f"a target is one number, not {' and '.join(given) or 'none'}: give one of {names}")
        least = 1 if self.max_bytes is not None else 0
        if not least <= self.limit < math.inf:
            raise UsageError(f"{given[0]} must be at least {least} and finite, not {self.limit!r}")

    @property
    def limit(self) -> float:
        """The number."""
        return next(value for own in fields(self) if (value := getattr(self, own.name)) is not None)

    def watch(
        self, model: BayesianNetwork, guide: Any, held_out: Iterable[Any], examples: Iterable[Any] = ()
    ) -> Callable[[Look], Standing]:
        """What looks at held-out data while the guide is fitted (:func:`~pyro_bc.fit`).

        :param held_out: batches ``(x, y)``, passed over often.
        :param examples: some that are trained on, by which what pruning takes is made up for.
        """
        _check_single(model)
        examples = list(examples)
        batches, original = checked(held_out, model), model.original
        before = [computed(original, x, model.output) for x, _ in batches]
        self.check_is_trained(before, batches, model.likelihood, posterior_of(guide))
        count = sum(len(y) for _, y in batches)

        def look(now: Look) -> Standing:
            fitted, has_codes = now.fitted, now.fitted.has_codes
            dense = scored(before, batches, model.likelihood, fitted)
            lost = _lost_from(dense, before, batches, model.likelihood, fitted)

            def is_missed(found: Judged) -> bool:
                return found.error > lost if self.max_bytes is not None else self.excess(found, dense) > 0

            found: Judged | None = None
            if not has_codes:
                found = _best_cut(now, batches, examples, is_missed, self.max_bytes is not None)
            elif now.compressed is not None:  # codes are as they will be; what has none is rounded by the search
                found = now.judged(batches)
                size = found.file_bytes - round((1 - _LEFT_OF_FLOATS) * _floats(now.compressed))
                found = replace(found, file_bytes=size)
            if found is None:
                return Standing(-math.inf, math.nan, 0, False)
            if self.max_bytes is not None:
                size = found.file_bytes
                # No smaller file is worth the loss of most of what the network knows.
                if found.error > lost:
                    return Standing(-math.inf, found.error, size, False, cost=found.error)
                allowed = self.max_bytes * (_SEARCHED if has_codes else 1)
                slack = math.log2(max(size, 1) / allowed)
                return Standing(slack, found.error, size, size <= allowed, cost=found.error)
            is_kept = self.excess(found, dense) <= 0
            # Half of what is allowed is left for rounding; a deviation of the estimate is the least that can be told.
            rise, least = found.error - dense.error, 0.0
            if self.max_loss_rise is not None:
                rise = found.loss - dense.loss
            elif dense.resolution:
                least = 10 * math.sqrt(max(dense.error, dense.resolution) / count)
            slack = 1 - rise / max(0.5 * self.limit, least, 1e-6)
            return Standing(slack, found.error, found.file_bytes, is_kept, cost=found.file_bytes)

        return look

    def check_is_trained(
        self, outputs: list[Any], batches: list[Any], likelihood: Likelihood, sites: Posterior | None = None
    ) -> None:
        """Whether a rise is counted from a network that says something about its inputs; warns where that is little.

        :raises UsageError: where it says nothing, or the held-out targets are all the same, which any network may say.
        """
        first = batches[0][1][:1]
        if sum(len(y) for _, y in batches) > 1 and all(bool((y == first).all()) for _, y in batches):
            raise UsageError(
                "the held-out targets are all the same, so that they tell no network from another: hold out examples "
                "of all kinds, in a mixed order"
            )
        if (
            self.max_bytes is not None
            or sum(len(y) for _, y in batches) == 1
            or (constant := _of_one_prediction(outputs, batches, likelihood, sites)) is None
        ):
            return
        own = scored(outputs, batches, likelihood, sites)
        if own.error < _LITTLE * constant.error:
            return
        said = (
            f"a rise is counted from the network as it is before the fit, and that has an error of {own.error:.3g} on "
            f"the held-out data, where one prediction for all inputs has {constant.error:.3g}: train it first; or give "
            f"a target in loss, where one class is most of the data, or in bytes"
        )
        if own.loss >= constant.loss and own.error >= constant.error:
            raise UsageError(said)
        warnings.warn(said, stacklevel=4)

    def excess(self, found: Judged, dense: Judged) -> float:
        """By how much a network is beyond the target, in the target's unit; 0 or less where it keeps it.

        One example's error is always allowed: held-out data cannot tell less.
        """
        if self.max_bytes is not None:
            return found.file_bytes - self.max_bytes
        if self.max_loss_rise is not None:
            return found.loss - dense.loss - self.max_loss_rise
        assert self.max_error_rise is not None
        return found.error - dense.error - max(self.max_error_rise, dense.resolution)


def _of_one_prediction(
    outputs: list[Any], batches: list[Any], likelihood: Likelihood, sites: Posterior | None
) -> Judged | None:
    """The mean of a network's outputs as its prediction for all inputs; None where outputs differ in shape."""
    if len({own.shape[1:] for own in outputs}) != 1:
        return None
    mean = torch.cat(outputs).mean(0, keepdim=True)
    return scored([mean.expand_as(part) for part in outputs], batches, likelihood, sites)


def _lost_from(
    dense: Judged, outputs: list[Any], batches: list[Any], likelihood: Likelihood, sites: Posterior | None
) -> float:
    """The error above which little is left of what the dense network knows; infinite where it knows little itself."""
    constant = _of_one_prediction(outputs, batches, likelihood, sites)
    if constant is None or not constant.error > dense.error + dense.resolution:
        return math.inf
    return dense.error + _LOST * (constant.error - dense.error)


@dataclass(frozen=True)
class Reached:
    """What a search came to.

    :param network: the smallest that keeps the target, the network before the fit, rounded, where none of the fit keeps
        an error; where none does, the one that comes closest, of those that know something where there are such.
    :param found: how it was judged.
    :param dense: how the dense network was.
    :param curve: of all networks that were tried.
    :param is_met: whether the target is kept on the held-out data.
    :param blamed: which layer made the network clearly worse than the posterior mean; empty where none did, or the
        target is met.
    :param metric: what the errors are.
    """

    network: CompressedNetwork
    found: Judged
    dense: Judged
    curve: tuple[Judged, ...]
    is_met: bool
    blamed: str = ""
    metric: str = "error %"

    @property
    def obstacle(self) -> str:
        """What stood in the way of a target that is not met; empty where it is."""
        if self.is_met:
            return ""
        least = min(self.curve, key=lambda own: own.error)
        shown = partial(figure, self.metric)
        return (
            f"Of {len(self.curve)} networks that were tried the best has an error of {shown(least.error)} "
            f"({least.file_bytes:,} bytes) beside the dense network's {shown(self.dense.error)}, and the smallest "
            f"{min(own.file_bytes for own in self.curve):,} bytes: the posterior itself is not there. Train it for "
            f"longer, on more data, or allow more. {self.blamed}"
        ).rstrip()

    def _repr_html_(self) -> str:
        found, dense = self.found, self.dense
        name, shown = self.metric.removesuffix(" %"), partial(figure, self.metric)
        said = (
            f"The target is {'kept' if self.is_met else 'missed'} on held-out data: {name} {shown(found.error)}, loss "
            f"{found.loss:.4f}, {found.file_bytes:,} bytes ({found.way}), where the dense network has "
            f"{shown(dense.error)}, loss {dense.loss:.4f}. {self.obstacle}"
        )
        # What collapsed is no part of the picture.
        most = max(2 * found.error - dense.error, 2 * dense.error, 1.2 * found.error)
        drawn = picture(
            [(own.file_bytes, own.error) for own in self.curve if own.error <= most], "bytes",
            f"held-out error of {len(self.curve)} networks that were tried", logarithmic=True,
            chosen=(found.file_bytes, found.error), level=dense.error,
        )  # fmt: skip
        return "\n".join([paragraph(said.rstrip()), self.network._repr_html_(), drawn])


def compress_to(
    model: BayesianNetwork,
    guide: Any,
    target: Target,
    loader: Iterable[Any],
    held_out: Iterable[Any],
    *,
    before: nn.Module | None = None,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Reached:
    """Prune and round as far as a target allows.

    Where no network of the fit keeps an error, the one before it is rounded by its curvature, and a warning says so.

    :param model: that was fitted.
    :param guide: its fitted guide, or a :class:`~pyro_bc.CurvatureGuide`.
    :param target: what the file has to keep.
    :param loader: training batches, for the curvature of what pruning leaves; inputs are enough.
    :param held_out: batches ``(x, y)`` that no training saw, on which every network that is tried is judged; passed
        over often.
    :param before: the network from which rises are counted, as it was before the fit; None for the one that the model
        was made of.
    :param seed: of the targets that the curvature draws.
    :param progress: whether to show a progress bar for it.
    :param options: of :func:`~pyro_bc.compress`, for all networks that are tried: ``net``, ``thresholds``,
        ``precision``, ``dense`` and ``batch_norm_loader``.
    :raises EmptyNetworkError: where nothing is left at any price.
    :raises UsageError: as :func:`~pyro_bc.compress`, where there are no held-out batches, and where a rise is counted
        from a network that says nothing about its inputs.
    """
    check_differentiates("compress_to")
    if found_by_itself := set(options) - _OPTIONS:
        raise UsageError(
            f"compress_to takes {', '.join(sorted(_OPTIONS))} of compress, and not {min(found_by_itself)}: how far to "
            f"prune and to round is what it finds"
        )
    if not isinstance(model, BayesianNetwork):
        raise UsageError(f"a target is that of a BayesianNetwork, not of a {type(model).__name__}")
    if not isinstance(target, Target):
        raise UsageError(f"a target is a pyro_bc.Target, such as Target(max_error_rise=0.5), not {target!r}")
    _check_single(model)
    held_out = checked(held_out, model)
    fitted = posterior_of(guide)
    likelihood = model.likelihood
    original = model.original if before is None else before
    at_first = [computed(original, x, model.output) for x, _ in held_out]
    dense = scored(at_first, held_out, likelihood, fitted)
    target.check_is_trained(at_first, held_out, likelihood, fitted)
    mean: Judged | None = None
    if isinstance(guide, FactorizedGuide):
        mean = judge(network_with(model, summarize(guide), {}), likelihood, held_out, fitted, model.output)
    count = sum(len(y) for _, y in held_out)
    if mean is not None and target.max_bytes is None:
        _warn_where_untrained(dense, mean, count, likelihood.metric)
    tried: list[tuple[Judged, CompressedNetwork]] = []

    def try_(way: str, how: Any, value: float) -> float:
        """How far a compression is beyond the target; infinitely where nothing is left of it."""
        try:
            small = how(value)
        except EmptyNetworkError as error:
            empty.append(error)
            return -math.inf if target.max_bytes is not None else math.inf
        own = judged(small)
        name = way if math.isnan(value) else f"{way} {value:.3g}"
        found = Judged(own.error, own.loss, len(small.to_bytes()), name)
        tried.append((found, small))
        return target.excess(found, dense)

    def judged(small: CompressedNetwork) -> Judged:
        return judge(where_they_are(small.network(), held_out), likelihood, held_out, fitted)

    def is_worth_rounding(own: Judged) -> bool:
        """Whether what pruning left may become better than what there is, as rounding seldom makes it better."""
        if target.max_bytes is None:
            return True  # the search ends soon where a rise is missed already
        keeping = [item[0] for item in tried if target.excess(item[0], dense) <= 0]
        if not keeping:
            return True
        best = replace(min(keeping, key=_rank), resolution=dense.resolution)
        return not is_clearly_worse(own, best, count)

    def is_costly(own: Judged) -> bool:
        """Whether a network is clearly worse than the posterior mean, or misses a rise that the mean keeps."""
        assert mean is not None
        if is_clearly_worse(own, mean, count):
            return True
        return target.max_bytes is None and target.excess(mean, dense) <= 0 < target.excess(own, dense)

    def costly(own: Judged | None, group_price: float | None) -> list[str]:
        if mean is None or (own is not None and not is_costly(own)):
            return []
        return _costly_layers(model, fitted, held_out, is_costly, group_price)

    empty: list[EmptyNetworkError] = []
    with warnings.catch_warnings():
        warnings.simplefilter("once")  # each network that is tried would say the same
        keeping: list[tuple[Judged, CompressedNetwork]] = []
        for prices in (None, _GENTLE_PRICES):
            for way, first, how in _ways(
                model, fitted, loader, seed, progress, options, judged, is_worth_rounding, costly, prices
            ):
                if first is None:
                    try_(way, how, math.nan)
                else:
                    _search(target, partial(try_, way, how), first)
            keeping = [item for item in tried if target.excess(item[0], dense) <= 0]
            if keeping and target.max_bytes is None:
                break
    if not tried:
        raise empty[-1]
    lost = _lost_from(dense, at_first, held_out, likelihood, fitted)
    if not keeping:
        know = [item for item in tried if item[0].error <= lost]
        found, network = min(know or tried, key=lambda item: target.excess(item[0], dense))
    elif target.max_bytes is None:
        found, network = min(keeping, key=lambda item: item[0].file_bytes)
    else:  # the best, or one that uses what is allowed and errs no more than held-out data can tell
        errors = [item[0].error for item in keeping]
        most = min(errors) + max(dense.resolution, _LEVEL * min(errors))
        full = [item for item in keeping if item[0].file_bytes >= _NEAR * target.max_bytes and item[0].error <= most]
        found, network = min(full or keeping, key=lambda item: (item[0].error, item[0].loss))
    blamed = "" if keeping else _blamed(model, fitted, found, held_out, options.get("thresholds"))
    if not keeping and mean is not None and target.excess(mean, dense) > 0:
        blamed = (
            f"Nor is the posterior mean, with {figure(likelihood.metric, mean.error)}. Where the network was trained "
            f"on these held-out examples, too, what it makes of them is no measure: give others. {blamed}"
        ).rstrip()
    curve = tuple(judged for judged, _ in tried)
    result = Reached(network, found, dense, curve, bool(keeping), blamed, likelihood.metric)
    if keeping and found.error > lost:
        errors_of = ", and ".join(figure(likelihood.metric, own.error) for own in (found, dense))
        warnings.warn(
            f"{found.file_bytes:,} bytes keep little of what the network knew: {likelihood.metric} {errors_of} before, "
            f"on held-out data. Allow more bytes",
            stacklevel=2,
        )
    is_of_before = fitted.curvature is not None and before is None
    if result.is_met or target.max_bytes is not None or options.get("thresholds") or is_of_before:
        return result  # whoever says where to prune gets that
    with warnings.catch_warnings(), contextlib.suppress(UnsupportedNetworkError, EmptyNetworkError):
        warnings.simplefilter("once")
        left, curvature = _by_curvature(model, original, model.output, loader, seed, progress)
        at = partial(_rounded, left, curvature, options.get("dense"))
        _search(target, partial(try_, "the network before the fit, price", at), _FIRST_PRICE)
    keeping = [item for item in tried if target.excess(item[0], dense) <= 0]
    if not keeping:
        return result
    found, network = min(keeping, key=lambda item: item[0].file_bytes)
    warnings.warn(
        f"no network of this fit keeps the target; what does is the network before the fit, rounded by its "
        f"curvature to {found.file_bytes:,} bytes. {result.obstacle}",
        stacklevel=2,
    )
    curve = tuple(judged for judged, _ in tried)
    return replace(result, network=network, found=found, curve=curve, is_met=True, blamed="")


def _check_single(model: BayesianNetwork) -> None:
    """:raises UsageError: where the network is in another precision than what is judged, which comes from files."""
    types = {str(p.dtype) for p in (*model.skeleton.parameters(), *model.skeleton.buffers()) if p.is_floating_point()}
    if others := types - {"torch.float32"}:
        raise UsageError(
            f"a target is searched with networks in single precision, as files are, and this one has {min(others)}: "
            f"make the model of net.float(), with torch's default dtype float32, or give no target"
        )


def _costly_layers(
    model: BayesianNetwork,
    fitted: Posterior,
    held_out: list[Any],
    is_costly: Callable[[Judged], bool],
    group_price: float | None,
) -> list[str]:
    """Layers of which the cut alone costs too much, by their names in the model."""
    layers, found = summarize(fitted), []
    for name, layer in layers.items():
        if isinstance(layer, ChannelPosterior) or layer.statistic is None:
            continue
        left = {name: pruned_in_place(layer, choose_threshold(layer, None, group_price))}
        alone = judge(network_with(model, layers, left), model.likelihood, held_out, fitted, model.output)
        if is_costly(alone):
            found.append(name)
    return found


def _warn_where_untrained(dense: Judged, mean: Judged, examples: int, metric: str) -> None:
    """Warn where the network that a rise is counted from is far from what a training of it comes to."""
    if mean.error < _MUCH * dense.error and is_clearly_worse(dense, mean, examples):
        warnings.warn(
            f"the rise is counted from a network with {metric} {figure(metric, dense.error)} on held-out data, but the "
            f"posterior mean has {figure(metric, mean.error)}: it was not trained to its end, so that more is allowed "
            f"than it seems. Train it for longer (pretrain-epochs), or give a target in bytes",
            stacklevel=3,
        )


def _blamed(model: BayesianNetwork, fitted: Posterior, found: Judged, held_out: list[Any], thresholds: Any) -> str:
    """Which layer makes a network clearly worse than the posterior mean; empty where it is not."""
    table = sensitivity(model, fitted, held_out, thresholds=thresholds)
    if not is_clearly_worse(found, table.mean, sum(len(y) for _, y in held_out)):
        return ""
    said = blame(found, table.mean, table.worst.layer, table.worst.error, table.metric)
    return f"{said[:1].upper()}{said[1:]}."


class _Cut:
    """What pruning would leave of a network now.

    :param readings: of its posterior, of which the best counts.
    :param batches: that judge it.
    :param price: of a bit, at which groups are weighed; None for the rule of signal and noise.
    :raises EmptyNetworkError: where that is nothing.
    """

    def __init__(self, model: BayesianNetwork, readings: list[Reading], batches: list[Any], price: float | None):
        self.model, self.readings, self.batches, self.price = model, readings, batches, price
        tried = [(*self._rounded(own, _FINE), own) for own in readings]
        #: before anything is rounded, and the reading that it comes of.
        self.judged, self.fine, self.best = min(tried, key=lambda item: _rank(item[0]))

    def _rounded(self, reading: Reading, noise: float) -> tuple[Judged, CompressedNetwork]:
        small = compressed_quietly(self.model, reading, noise_ratio=noise, group_nats_per_bit=self.price)
        network = where_they_are(small.network(), self.batches)
        return judge(network, self.model.likelihood, self.batches, reading.fitted), small

    def searched(self) -> int:
        """About the bytes that a search for a size would come to."""
        options = {"noise_ratio": _COARSE, "group_nats_per_bit": self.price}
        return _searched(compressed_quietly(self.model, self.readings[0], **options))

    def kept(self, is_missed: Callable[[Judged], bool]) -> tuple[int, float]:
        """Bytes of the file with the most noise of rounding, of a few steps, that keeps a target, and that noise."""
        for noise in _NOISES:
            with contextlib.suppress(EmptyNetworkError):
                own, small = self._rounded(self.best, noise)
                if not is_missed(own):
                    return len(small.to_bytes()), noise
        return len(self.fine.to_bytes()), _FINE


def _best_cut(
    now: Look, batches: list[Any], examples: list[Any], is_missed: Callable[[Judged], bool], is_of_size: bool
) -> Judged | None:
    """The best of what pruning would leave now, and the least bytes that keep a target; None where nothing is left.

    What stands in the way may be where groups are cut, and that is for the search to choose.

    :param examples: by which what pruning takes is made up for.
    :param is_of_size: whether the target is a size.
    """
    readings = [now.reading]
    if examples:
        readings = _made_up_or_not(now.reading, now.model.likelihood, examples)
    left, kept = [], []
    for price in (None, _GENTLE_PRICES[-1]):
        try:
            cut = _Cut(now.model, readings, batches, price)
            size, noise = cut.searched(), _COARSE
        except EmptyNetworkError:
            continue
        if not is_missed(cut.judged):
            if not is_of_size:
                size, noise = cut.kept(is_missed)
            kept.append(size)
        left.append(replace(cut.judged, file_bytes=size))
        if kept and noise >= _FIRST_NOISE:
            break
    best = min(left, key=_rank, default=None)
    return replace(best, file_bytes=min(kept)) if best is not None and kept else best


def _made_up_or_not(read: Reading, likelihood: Likelihood, loader: Iterable[Any], seed: int = 0) -> list[Reading]:
    """As it is, and with what pruning takes made up for, which of few examples with many outliers may be worse."""
    with contextlib.suppress(UnsupportedNetworkError):
        return [read, replace(read, inputs=inputs_at_mean(read.graph, read.posterior, likelihood, loader, seed))]
    return [read]


def _rank(own: Judged) -> tuple[float, float]:
    """By which one network is better than another."""
    return (own.error, own.loss) if math.isfinite(own.error) else (math.inf, math.inf)


def _searched(coarse: CompressedNetwork) -> int:
    """About how many bytes a search leaves of a coarsely rounded file."""
    size, floats = len(coarse.to_bytes()), _floats(coarse)
    rest = max(0, size - _HEADER - floats)
    return min(size, round(_HEADER + _LEFT * rest + _LEFT_OF_FLOATS * floats))


def _floats(small: CompressedNetwork) -> int:
    """Bytes of numbers that nothing is known of."""
    stored = (own for own in small.tensors.values() if isinstance(own, Floats | FixedPoint))
    return sum(own.codes.numel() * own.bits // 8 for own in stored if own.bits > _OF_FLOATS)


def _search(target: Target, excess: Any, first: float) -> None:
    """Try values of a price, higher for smaller files, around where the target is just kept.

    :param excess: of a price, how far its network is beyond the target; rises with the price, and falls for bytes.
    """
    sign = -1 if target.max_bytes is not None else 1  # of what is wrong with a price that is too high
    low, high, value, before = None, None, first, math.inf
    for _ in range(_EVALUATIONS):
        over = sign * excess(value)
        if over > 0:
            high = value
            if target.max_bytes is None and low is None and over > _FLAT * before:
                return  # finer does not help: what stands in the way is what was pruned
            before = over
        else:
            low = value
        if target.max_bytes is not None and 0 <= over <= (1 - _CLOSE) * target.max_bytes:
            return
        if low is None:
            value = value / _STRIDE
        elif high is None:
            value = value * _STRIDE
        else:
            value = math.sqrt(low * high)
            if high / low < _APART:
                return


def _ways(
    model: BayesianNetwork,
    fitted: Posterior,
    loader: Iterable[Any],
    seed: int,
    progress: bool,
    options: dict[str, Any],
    judged: Callable[[CompressedNetwork], Judged],
    is_worth_rounding: Callable[[Judged], bool],
    costly: Callable[[Judged | None, float | None], list[str]],
    group_prices: tuple[float | None, ...] | None = None,
) -> Iterator[tuple[str, float | None, Any]]:
    """What can be searched along: its name, where the search begins, and the network at a price.

    Codes as they were trained are one network: there is nothing to search, and no beginning.

    :param judged: a network on held-out data.
    :param is_worth_rounding: whether something of a network so judged is to be searched.
    :param costly: of what was judged, groups weighed at a price, and that price, the layers whose cut alone costs much.
    :param group_prices: at which groups are weighed; None for all ways that there are at the usual ones.
    """
    others = dict(options)
    read = read_posterior(model, fitted, others.pop("net", None))
    if fitted.curvature is not None or fitted.has_codes:
        if group_prices is not None:
            return  # no groups are weighed
        if fitted.curvature is not None:
            yield "price", _FIRST_PRICE, lambda price: compress(model, read, nats_per_bit=price, **others)
        else:
            stored = compress(model, read, **others)
            yield "codes", None, lambda _: stored
            try:
                left, curvature = _by_curvature(model, stored.network(), None, loader, seed, progress)
            except UnsupportedNetworkError:
                return
            at = recoder(curvature, stored.tensors, model.num_data)
            yield "codes, price", _FIRST_PRICE, lambda price: compress(left, at(price), dense=stored)
        return
    if group_prices is None:
        yield "noise", _FIRST_NOISE, lambda noise: compress(model, read, noise_ratio=noise, **others)
    readings = _made_up_or_not(read, model.likelihood, loader, seed)
    given = others.pop("thresholds", None) or {}
    seen = set()
    for group_price in group_prices or _GROUP_PRICES:
        rule = "signal" if group_price is None else f"{group_price:g}"
        spared: dict[str, float] = {}
        for way in (f"groups by {rule}", f"groups by {rule} where they cost little"):
            own = None
            cuts: dict[str, Any] = {"group_nats_per_bit": group_price, "thresholds": {**spared, **given} or None}
            with contextlib.suppress(EmptyNetworkError, UnsupportedNetworkError):
                tried = [compress(model, reading, noise_ratio=_FINE, **cuts, **others) for reading in readings]
                own, pruned = min(((judged(small), small) for small in tried), key=lambda item: _rank(item[0]))
                if pruned.architecture not in seen and is_worth_rounding(own):
                    seen.add(pruned.architecture)
                    left, curvature = _by_curvature(model, pruned.network(), None, loader, seed, progress)
                    yield f"{way}, price", _FIRST_PRICE, partial(_rounded, left, curvature, pruned)
            names = [] if spared else [read.names[name] for name in costly(own, group_price)]
            spared = {name: math.inf for name in names if name in read.posterior}
            if not spared:
                break


def _by_curvature(
    model: BayesianNetwork, net: nn.Module, output: Output, loader: Iterable[Any], seed: int, progress: bool
) -> tuple[BayesianNetwork, Reading]:
    """A network of what a model observes, as a model of its own, and its posterior by its curvature."""
    net = net.to(device_of(model.skeleton))
    with warnings.catch_warnings():
        # Of this model, which nobody made: the user's posterior is of more than has a curvature.
        for said in ("left deterministic", "a bias that is frozen"):
            warnings.filterwarnings("ignore", said)
        left = BayesianNetwork(
            net, StandardNormal(), num_data=model.num_data, likelihood=model.likelihood, output=output
        )
        return left, read_posterior(left, CurvatureGuide(left, loader, seed=seed, progress=progress))


def _rounded(
    left: BayesianNetwork, curvature: Reading, dense: CompressedNetwork | nn.Module | None, price: float
) -> CompressedNetwork:
    return compress(left, curvature, nats_per_bit=price, dense=dense)
