"""Pictures of a fit and of what compression made of it.

Every function draws into ``ax`` (a new one where None is given) and returns it. Its description says how to read it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
from ..compression.compress import compress
from ..errors import PyroBCError, UsageError
from ..file.compressed import CompressedNetwork, read_sections
from ..inference.history import Epoch
from ..model.guide import FactorizedGuide
from ..posterior.summary import ChannelPosterior, LayerPosterior, summarize
from ..posterior.thresholds import Threshold, choose_threshold
from ..quantisation.fixed_point import FixedPoint
from .arviz import arviz_package, is_before_1
from .diagnostics import Calibration, error_percent

KEPT, PRUNED = "#1f77b4", "#c9c9c9"


def _axes(ax: "Axes | None", width: float = 4.5, height: float = 3.2) -> "Axes":
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def group_statistics(layer: LayerPosterior, threshold: Threshold | None = None, ax: "Axes | None" = None) -> "Axes":
    r"""Histogram of a layer's group statistics, cut at the threshold.

    Read: left of the line are groups that the data use; what lies right of it fell back to the prior. Two hills with a
    gap between them make a clear cut. Groups left of the line in grey have no weight with more signal than noise.

    :param threshold: None for the automatic one.
    :raises UsageError: for a prior that prunes nothing.
    """
    if layer.statistic is None:
        raise UsageError(f"layer '{layer.name}' has {type(layer.prior).__name__}, which has no statistic to show")
    cut = choose_threshold(layer) if threshold is None else threshold
    ax = _axes(ax)
    kept = cut.keeps(layer).flatten().numpy()
    values = layer.statistic.flatten().double().numpy()
    kept, values = kept[np.isfinite(values)], values[np.isfinite(values)]
    low, high = np.percentile(values, [0.1, 99.9]) if len(values) > 1000 else (values.min(), values.max())
    edges = (low, high, cut.value) if np.isfinite(cut.value) else (low, high)
    bins = np.linspace(min(edges), max(edges), 41)
    clipped = values.clip(low, high)
    labels = [f"kept {kept.sum():,}", f"pruned {(~kept).sum():,}"]
    ax.hist([clipped[kept], clipped[~kept]], bins.tolist(), stacked=True, color=[KEPT, PRUNED], label=labels)
    ax.axvline(cut.value, color="black", linewidth=1, linestyle="--", label=f"{cut.value:.2f} ({cut.method})")
    horseshoe = hasattr(layer.prior, "global_scale")
    ax.set_xlabel("negative log-mode of the scale" if horseshoe else "log dropout rate log α")
    ax.set_ylabel("weights" if layer.per_weight else "groups")
    ax.set_title(layer.name)
    ax.legend(fontsize="small")
    return ax


def pixel_importance(
    layer: LayerPosterior, picture_shape: tuple[int, int], threshold: Threshold | None = None, ax: "Axes | None" = None
) -> "Axes":
    """Which pixels the first layer reads: the norm of the posterior mean of each pixel's weights.

    Read: dark pixels matter, white ones were pruned. On digits the border goes first, where there is never ink.

    :param picture_shape: ``(height, width)`` of the pictures; several channels are summed over.
    :raises UsageError: where the layer's inputs are no such pictures.
    """
    inputs = layer.weight_mean.shape[1]
    pixels = picture_shape[0] * picture_shape[1]
    if layer.weight_mean.dim() != 2 or inputs % pixels:
        raise UsageError(f"layer '{layer.name}' has {inputs} inputs, which are no pictures of {picture_shape}")
    ax = _axes(ax, 3.4, 3.2)
    weight = _kept_weight(layer, threshold)
    importance = weight.square().sum(0).reshape(-1, *picture_shape).sum(0).sqrt().numpy()
    picture = ax.imshow(importance, cmap="Greys", vmin=0)
    ax.figure.colorbar(picture, ax=ax, label="norm of a pixel's weights", shrink=0.8)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_title(f"{int((importance > 0).sum())} of {pixels} pixels are read")
    return ax


def weights(layer: LayerPosterior, threshold: Threshold | None = None, ax: "Axes | None" = None) -> "Axes":
    """A layer's weights: posterior means, pruned ones white.

    Read: red is positive, blue negative. White columns (rows, of a convolution) are pruned groups. Kernels are laid out
    side by side.
    """
    ax = _axes(ax)
    weight = _kept_weight(layer, threshold)
    matrix = layer.layer_type.by_output(weight).flatten(1).numpy()
    limit = float(np.abs(matrix).max()) or 1.0
    picture = ax.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    ax.figure.colorbar(picture, ax=ax, label="posterior mean")
    ax.set_xlabel("input channel × kernel position" if layer.layer_type.spatial else "input")
    ax.set_ylabel("output")
    ax.set_title(layer.name)
    return ax


def _kept_weight(layer: LayerPosterior, threshold: Threshold | None) -> Tensor:
    if layer.statistic is None:
        return layer.weight_mean
    keep = (choose_threshold(layer) if threshold is None else threshold).keeps(layer)
    return layer.weight_mean * (keep if layer.per_weight else layer.over_weights(keep)).to(layer.weight_mean)


def animate(frames: Sequence[Mapping[str, LayerPosterior]], draw: Any, path: str | Path, fps: int = 5) -> Path:
    """A picture over the epochs, as an animated GIF.

    :param frames: summaries of the posterior, collected during the fit:
        ``fit(…, after_epoch=lambda epoch: frames.append(pyro_bc.summarize(guide)))``.
    :param draw: called with a summary and axes, e.g.
        ``lambda layers, ax: plots.pixel_importance(layers["net.fc1"], (28, 28), ax=ax)``.
    :param path: of the GIF.
    :raises UsageError: without frames.
    """
    import matplotlib.pyplot as plt
    from matplotlib.animation import FuncAnimation, PillowWriter

    if not frames:
        raise UsageError("an animation needs at least one frame; collect summaries with after_epoch")
    figure = plt.figure(figsize=(4, 3.6), layout="constrained")

    def frame(number: int) -> list[Any]:
        figure.clear()
        ax = figure.add_subplot()
        draw(frames[number], ax)
        figure.suptitle(f"epoch {number + 1}", fontsize="small")
        return []

    FuncAnimation(figure, frame, frames=len(frames)).save(path, writer=PillowWriter(fps=fps))
    plt.close(figure)
    return Path(path)


def architecture(small: CompressedNetwork, ax: "Axes | None" = None) -> "Axes":
    """Inputs of every layer (filters, of a convolution) before and after.

    Read: the grey bar is the dense network's width, the blue one what is left of it.
    """
    ax = _axes(ax)
    dense = [layer.dense_groups for layer in small.whole_layers]
    places = np.arange(len(dense))[::-1]
    ax.barh(places, dense, color=PRUNED, label="dense")
    ax.barh(places, small.architecture, color=KEPT, label="left")
    for place, before, after in zip(places, dense, small.architecture, strict=True):
        ax.annotate(f" {after} of {before}", (before, place), va="center", fontsize="small")
    kinds = ["filters" if layer.layer_type.scales_outputs else "inputs" for layer in small.whole_layers]
    ax.set_yticks(places, [f"layer {number}\n{kind}" for number, kind in enumerate(kinds, 1)])
    ax.set_xlim(0, 1.25 * max(dense))
    ax.set_xlabel("groups")
    ax.legend(fontsize="small", loc="lower right")
    return ax


def error_against_bytes(
    curve: Sequence[tuple[int, float]], chosen: tuple[int, float], dense_error: float, ax: "Axes | None" = None
) -> "Axes":
    """Held-out error and file of every network that was tried for a target.

    Read: the ring is the network that was stored; the line joins those than which no smaller one has as little error;
    the grey line is the dense network's error.

    :param curve: bytes and error of each, of :class:`~pyro_bc.compression.target.Reached`.
    :param chosen: of the stored one.
    """
    ax = _axes(ax)
    front: list[tuple[int, float]] = []
    for size, error in sorted(curve):
        if not front or error < front[-1][1]:
            front.append((size, error))
    ax.plot([size for size, _ in curve], [error for _, error in curve], ".", color=PRUNED)
    ax.plot([size for size, _ in front], [error for _, error in front], ".-", color=KEPT)
    ax.plot(*chosen, "o", ms=10, mfc="none", color="black")
    ax.axhline(dense_error, color=PRUNED, lw=0.8)
    # What collapsed is no part of the picture.
    ax.set_ylim(0, max(2 * chosen[1] - dense_error, 2 * dense_error, 1.2 * chosen[1], 1e-3))
    ax.set_xscale("log")
    ax.set_xlabel("bytes")
    ax.set_ylabel("held-out error")
    return ax


def bits(layers: Mapping[str, LayerPosterior], small: CompressedNetwork, ax: "Axes | None" = None) -> "Axes":
    """Posterior standard deviations of the weights that were kept, beside the step that each layer's numbers have.

    Read: a step (black) may be as coarse as the posterior is wide; the wider the distribution, the fewer bits. A layer
    that pruning took apart is one, with a step for each part.

    :param layers: of :func:`~pyro_bc.summarize`, of the fit that was compressed.
    """
    layers = {name: layer for name, layer in layers.items() if not isinstance(layer, ChannelPosterior)}
    stored = small.whole_layers
    if len(layers) != len(stored):
        raise UsageError(f"the fit has {len(layers)} layers and the compressed network {len(stored)}")
    ax = _axes(ax)
    places = np.arange(len(layers), 0, -1)
    spreads = []
    for layer in layers.values():
        kept = _kept_weight(layer, None) != 0
        spread = layer.weight_variance[kept].sqrt()
        spreads.append(spread.log10().numpy() if len(spread) else np.zeros(1))
    parts: dict[str, Any] = ax.violinplot(spreads, places, orientation="horizontal", showextrema=False, widths=0.8)
    for body in parts["bodies"]:
        body.set_facecolor(KEPT)
    for number, (place, whole) in enumerate(zip(places, stored, strict=True)):
        steps = {part.weight.fraction_bits for part in whole.parts if isinstance(part.weight, FixedPoint)}
        for step in -np.array(sorted(steps)) * np.log10(2):
            ax.vlines(step, place - 0.4, place + 0.4, color="black", label="" if number else "step of the numbers")
    ax.set_yticks(places, [f"{name}\n{own.bits} bits" for name, own in zip(layers, stored, strict=True)])
    ax.set_xlabel("log₁₀ of the posterior standard deviation, and of the step")
    ax.legend(fontsize="small")
    return ax


def file_sections(small: CompressedNetwork, ax: "Axes | None" = None) -> "Axes":
    """What the file's bytes are for.

    Read: bars sum up to the file's size.
    """
    ax = _axes(ax)
    data = small.to_bytes()
    decoded, sizes = read_sections(data)
    tensors = [name if not name.startswith("tensor") else "inputs that are read" for name in decoded.tensors]
    header = [name for name in sizes if not name.startswith("tensor")]
    sections = [8 * size for size in sizes.values()]
    names = [*header, *tensors] if len(header) + len(tensors) == len(sizes) else list(sizes)
    places = np.arange(len(sections))[::-1]
    bars = ax.barh(places, sections, color=KEPT)
    ax.bar_label(bars, [f"{size:,.0f}" for size in sections], fontsize="small", padding=2)
    ax.set_yticks(places, names)
    ax.set_xlim(0, 1.2 * max(sections))
    ax.set_xlabel("bits")
    ax.set_title(f"{len(data):,} bytes")
    return ax


def training(history: Sequence[Epoch], ax: "Axes | None" = None) -> "Axes":
    """The negative ELBO and its two parts over the epochs.

    Read: the KL is what the network costs, the negative log-likelihood what it still gets wrong. While the KL's weight
    rises the loss may, too.
    """
    if not history:
        raise UsageError("there is no epoch to show")
    ax = _axes(ax)
    epochs = [record.epoch for record in history]
    for name, label, style in (
        ("loss", "negative ELBO", "-"), ("kl", "KL", "--"), ("negative_log_likelihood", "negative log-likelihood", ":"),
    ):  # fmt: skip
        ax.plot(range(1, len(epochs) + 1), [getattr(record, name) for record in history], style, label=label)
    ax.set_yscale("log")
    ax.set_xlabel("epoch")
    ax.set_ylabel("nats per training example")
    ax.legend(fontsize="small")
    return ax


def watched(history: Sequence[Epoch], measured_on: str = "held-out data", ax: "Axes | None" = None) -> "Axes":
    """Error and bytes of what compression would have left, over the epochs in which it was looked at.

    Read: the file shrinks (grey) while the KL gains weight; the error (blue) says what that costs, which the error of
    drawn weights does not.

    :param measured_on: what the error is of.
    :raises UsageError: where nothing was looked at (``fit(…, held_out=…)``).
    """
    looks = [
        (at, record.held_out_error, record.file_bytes)
        for at, record in enumerate(history, 1)
        if record.held_out_error is not None and record.file_bytes is not None
    ]
    if not looks:
        raise UsageError("no epoch was looked at: give fit held_out batches")
    ax = _axes(ax)
    places, errors, sizes = zip(*looks, strict=True)
    ax.plot(places, errors, color=KEPT)
    ax.set_xlabel("epoch")
    ax.set_ylabel(f"error on {measured_on}", color=KEPT)
    other = ax.twinx()
    other.plot(places, sizes, color="0.6")
    other.set_yscale("log")
    other.set_ylabel("bytes", color="0.4")
    return ax


def kl_by_layer(history: Sequence[Epoch], ax: "Axes | None" = None) -> "Axes":
    """What each layer's posterior costs over the epochs.

    Read: the layer on top is where most of the network's information is.

    :raises UsageError: where the history is of a version that did not keep it.
    """
    if not history or not all(record.kl_by_layer for record in history):
        raise UsageError("the history holds no KL by layer")
    ax = _axes(ax)
    names = list(history[0].kl_by_layer)
    values = [[record.kl_by_layer.get(name, 0.0) for record in history] for name in names]
    ax.stackplot(range(1, len(history) + 1), values, labels=names)
    ax.set_xlabel("epoch")
    ax.set_ylabel("KL, nats per training example")
    ax.legend(fontsize="small", reverse=True)
    return ax


def groups_left(history: Sequence[Epoch], ax: "Axes | None" = None) -> "Axes":
    """How many groups each layer would keep, over the epochs.

    Read: the architecture is found where the lines become level.
    """
    if not history or not history[-1].groups_left:
        raise UsageError("the prior prunes nothing, or there is no epoch to show")
    ax = _axes(ax)
    for name in history[-1].groups_left:
        ax.plot(range(1, len(history) + 1), [record.groups_left.get(name, np.nan) for record in history], label=name)
    ax.set_yscale("log")
    ax.set_xlabel("epoch")
    ax.set_ylabel("groups, or codes that are not 0")
    ax.legend(fontsize="small")
    return ax


@torch.no_grad()
def tradeoff(
    model: nn.Module,
    guide: FactorizedGuide,
    x: Tensor,
    y: Tensor,
    *,
    layer: str,
    points: int = 12,
    ax: "Axes | None" = None,
) -> "Axes":
    """Bytes against error while one layer's threshold moves, the others automatic.

    Read: left of the automatic threshold (black) the file gets smaller and the error climbs; a flat stretch around it
    means that the exact cut does not matter.

    :param x: inputs of held-out points; on the test set a threshold must not be chosen.
    :param layer: name in the network (``fc1``).
    :param points: thresholds, at quantiles of the statistic.
    """
    by_name = {name.removeprefix("net."): value for name, value in summarize(guide).items()}
    if layer not in by_name or by_name[layer].statistic is None:
        raise UsageError(f"'{layer}' is no layer with a threshold; there are {', '.join(by_name)}")
    ax = _axes(ax)
    statistic = by_name[layer].statistic
    assert statistic is not None
    quantiles = torch.quantile(statistic.flatten()[:100_000].double(), torch.linspace(0.02, 0.98, points).double())
    found = []
    for value in (None, *quantiles.tolist()):
        try:
            small = compress(model, guide, thresholds=None if value is None else {layer: value})
        except PyroBCError:  # a layer with nothing left
            continue
        found.append((len(small.to_bytes()), error_percent(small.network().to(x.device), x, y)))
    (automatic, *others) = found
    others = sorted(others)
    ax.plot([size for size, _ in others], [error for _, error in others], "o-", color=KEPT, label="threshold moved")
    ax.plot(*automatic, "s", color="black", label="automatic")
    ax.set_xlabel("bytes of the file")
    ax.set_ylabel("error %")
    ax.set_title(f"threshold of {layer}")
    ax.legend(fontsize="small")
    return ax


def reliability(calibrations: Mapping[str, Calibration], ax: "Axes | None" = None) -> "Axes":
    """Accuracy against confidence (a reliability diagram).

    Read: on the diagonal a network that says 80 % is right in 80 of 100 cases; below it, it is too sure of itself.
    Areas of dots are numbers of cases.

    :param calibrations: by label, e.g. ``{"sampled": …, "compressed": …}``.
    """
    ax = _axes(ax)
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=1)
    for label, found in calibrations.items():
        filled = found.count > 0
        (line,) = ax.plot(found.confidence[filled], found.accuracy[filled], linewidth=1)
        areas = 4 + 80 * found.count[filled] / found.count.sum()
        label = f"{label}, ECE {100 * found.error:.1f} %"
        ax.scatter(found.confidence[filled], found.accuracy[filled], areas, color=line.get_color(), label=label)
    ax.set_xlabel("confidence")
    ax.set_ylabel("accuracy")
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.legend(fontsize="small")
    return ax


def forest(data: Any, layer: str, groups: int = 25, ax: "Axes | None" = None) -> "Axes":
    """Scales of a layer's groups with their 94 % intervals, the best determined first (mean over standard deviation).

    Read: intervals away from zero are groups in use; an interval around zero is a group that could go.

    :param data: of :func:`~pyro_bc.to_inference_data`, or read from its file.
    :param layer: its full name (``net.fc1``).
    :param groups: how many to show.
    """
    posterior = data["posterior"]
    name = f"{layer}.scale"
    if name not in posterior:
        raise UsageError(f"the posterior holds no '{name}'; there are {', '.join(map(str, posterior.data_vars))}")
    draws = posterior[name]
    ax = _axes(ax, 4.5, 0.16 * groups + 1)
    arviz = arviz_package()
    mean, deviation = draws.mean(("chain", "draw")).values, draws.std(("chain", "draw")).values
    order = np.argsort(-np.abs(mean) / deviation)[:groups]
    values = draws.values[:, :, order]
    intervals = np.array([np.asarray(arviz.hdi(values[:, :, i].reshape(-1), **_hdi())) for i in range(len(order))])
    places = np.arange(len(order))[::-1]
    ax.hlines(places, intervals[:, 0], intervals[:, 1], color=KEPT)
    ax.plot(values.mean((0, 1)), places, "o", color=KEPT, markersize=3)
    ax.axvline(0, color="0.6", linewidth=1)
    ax.set_yticks(places, [str(draws.coords[draws.dims[2]].values[i]) for i in order], fontsize="x-small")
    ax.set_ylabel(str(draws.dims[2]).rpartition(".")[2])
    ax.set_xlabel("scale")
    ax.set_title(f"{layer}: {len(order)} of {draws.shape[2]}")
    return ax


def _hdi() -> dict[str, float]:
    return {"hdi_prob": 0.94} if is_before_1() else {"prob": 0.94}
