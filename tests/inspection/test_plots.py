"""Pictures show the numbers they are of, in the axes they are given."""

import math

import matplotlib
import numpy as np
import pyro
import pytest
import torch
from helpers import fresh
from torch import nn

import pyro_bc
from pyro_bc.app.datasets import load_dataset
from pyro_bc.errors import UsageError
from pyro_bc.inspection import plots
from pyro_bc.inspection.diagnostics import calibration
from pyro_bc.posterior.thresholds import Threshold, choose_threshold

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def fit():
    pyro.set_rng_seed(0)
    data = load_dataset("digits")
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 10))
    model, guide = fresh(net, pyro_bc.GroupHorseshoe(), num_data=len(data.train_x))
    frames: list[dict] = []
    history = pyro_bc.fit(
        model, guide, pyro_bc.data.Batches(data.train_x, data.train_y, 128), epochs=40, learning_rate=5e-3,
        log_learning_rate=3e-2, kl_weight=0.05, progress=False, held_out=[(data.test_x, data.test_y)],
        after_epoch=lambda epoch: frames.append(pyro_bc.summarize(guide)) if epoch.epoch <= 2 else None,
    ).history  # fmt: skip
    return data, model, guide, history, frames


def heights(ax):
    """Heights of the bars, by face colour."""
    sums: dict[str, float] = {}
    for patch in ax.patches:
        colour = matplotlib.colors.to_hex(patch.get_facecolor())
        sums[colour] = sums.get(colour, 0) + patch.get_height()
    return sums


def test_every_group_is_in_the_histogram_on_its_side_of_the_cut(fit):
    layer = pyro_bc.summarize(fit[2])["net.1"]
    cut = choose_threshold(layer)
    ax = plots.group_statistics(layer)
    kept = int(cut.keeps(layer).sum())
    assert heights(ax) == {plots.KEPT: kept, plots.PRUNED: 64 - kept}
    assert ax.lines[0].get_xdata()[0] == cut.value
    given = plots.group_statistics(layer, Threshold(math.inf, "explicit"))
    assert heights(given)[plots.KEPT] == 64


def test_pruned_pixels_are_white(fit):
    layer = pyro_bc.summarize(fit[2])["net.1"]
    keep = choose_threshold(layer).keeps(layer)
    picture = plots.pixel_importance(layer, (8, 8)).images[0].get_array()
    expected = (layer.weight_mean.square().sum(0).sqrt() * keep).reshape(8, 8)
    assert np.allclose(picture, expected, atol=1e-6)


def test_weights_are_posterior_means_without_pruned_columns(fit):
    layer = pyro_bc.summarize(fit[2])["net.3"]
    keep = choose_threshold(layer).keeps(layer)
    assert np.allclose(plots.weights(layer).images[0].get_array(), layer.weight_mean * keep)


def test_bars_of_the_architecture_and_of_the_file(fit):
    small = pyro_bc.compress(fit[1], fit[2])
    ax = plots.architecture(small)
    assert [bar.get_width() for bar in ax.patches] == [64, 30, *small.architecture]
    ax = plots.file_sections(small)
    assert sum(bar.get_width() for bar in ax.patches) == pytest.approx(8 * len(small.to_bytes()), rel=0.02)
    assert "layer1.weight" in [label.get_text() for label in ax.get_yticklabels()]


def test_steps_beside_the_spread_of_the_posterior(fit):
    small = pyro_bc.compress(fit[1], fit[2])
    layers = pyro_bc.summarize(fit[2])
    ax = plots.bits(layers, small)
    steps = [line.get_segments()[0][0][0] for line in ax.collections if hasattr(line, "get_segments")]
    assert steps == pytest.approx([math.log10(2.0**-layer.weight.fraction_bits) for layer in small.layers])
    with pytest.raises(UsageError, match="1 layers and the compressed network 2"):
        plots.bits({"net.1": layers["net.1"]}, small)


def test_courses_of_the_training(fit):
    history = fit[3]
    lines = {line.get_label(): line.get_ydata() for line in plots.training(history).lines}
    assert np.allclose(lines["KL"] + lines["negative log-likelihood"], lines["negative ELBO"])
    left = {line.get_label(): list(line.get_ydata()) for line in plots.groups_left(history).lines}
    assert left["net.1"] == [record.groups_left["net.1"] for record in history]
    top = plots.kl_by_layer(history).collections[-1].get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx(max(record.kl for record in history), rel=1e-5)


def test_the_course_of_the_compressed_network(fit):
    history = fit[3]
    ax = plots.watched(history, "held-out data")
    errors, sizes = ax.lines[0], ax.figure.axes[1].lines[0]
    assert list(errors.get_ydata()) == [record.held_out_error for record in history]
    assert list(sizes.get_ydata()) == [record.file_bytes for record in history]
    assert list(errors.get_xdata()) == list(range(1, 41)) and "held-out data" in ax.get_ylabel()


def test_the_tradeoff_has_the_compressed_network_on_it(fit):
    data, model, guide = fit[:3]
    ax = plots.tradeoff(model, guide, data.test_x, data.test_y, layer="1", points=5)
    small = pyro_bc.compress(model, guide)
    assert ax.lines[1].get_xdata()[0] == len(small.to_bytes())
    sizes = list(ax.lines[0].get_xdata())
    assert len(sizes) >= 3 and sizes == sorted(sizes) and sizes[0] < sizes[-1]


def test_reliability_and_forest(fit):
    guide = fit[2]
    probabilities = torch.tensor([[0.8, 0.2]] * 10)
    ax = plots.reliability({"one": calibration(probabilities, torch.tensor([0] * 6 + [1] * 4))})
    assert ax.collections[0].get_offsets().tolist() == [[pytest.approx(0.8), pytest.approx(0.6)]]
    exported = pyro_bc.to_inference_data(guide, draws=200)
    ax = plots.forest(exported, "net.1", groups=5)
    drawn = exported.posterior["net.1.scale"].values[0]
    means = np.abs(drawn.mean(0)) / drawn.std(0)
    assert sorted(int(label.get_text()) for label in ax.get_yticklabels()) == sorted(np.argsort(-means)[:5].tolist())


def test_given_axes_are_used_and_returned(fit):
    history = fit[3]
    layers = pyro_bc.summarize(fit[2])
    _, ax = plt.subplots()
    for draw in (
        lambda ax: plots.group_statistics(layers["net.1"], ax=ax),
        lambda ax: plots.weights(layers["net.1"], ax=ax),
        lambda ax: plots.training(history, ax),
    ):
        assert draw(ax) is ax
    assert len(plt.get_fignums()) == 1


def test_an_animation_has_a_frame_for_every_epoch(fit, tmp_path):
    from PIL import Image

    frames = fit[4]
    path = plots.animate(
        frames, lambda layers, ax: plots.pixel_importance(layers["net.1"], (8, 8), ax=ax), tmp_path / "pixels.gif"
    )
    assert Image.open(path).n_frames == len(frames) == 2


@pytest.mark.parametrize(
    "draw,message",
    [(lambda fit: plots.pixel_importance(pyro_bc.summarize(fit[2])["net.3"], (8, 8)), "no pictures"),
     (lambda fit: plots.training([]), "no epoch"), (lambda fit: plots.groups_left([]), "no epoch"),
     (lambda fit: plots.watched([]), "no epoch was looked at"),
     (lambda fit: plots.kl_by_layer([]), "no KL"), (lambda fit: plots.animate([], None, "x.gif"), "at least one frame"),
     (lambda fit: plots.tradeoff(fit[1], fit[2], None, None, layer="fc9"), "'fc9' is no layer"),
     (lambda fit: plots.forest(pyro_bc.to_inference_data(fit[2], draws=2), "fc9"), "no 'fc9.scale'")],
)  # fmt: skip
def test_what_cannot_be_shown_is_said(fit, draw, message):
    with pytest.raises(UsageError, match=message):
        draw(fit)


def test_the_curve_of_a_target_joins_what_no_smaller_network_beats():
    curve = [(100, 9.0), (200, 4.0), (300, 5.0), (400, 2.0), (150, 60.0)]
    ax = plots.error_against_bytes(curve, (200, 4.0), 2.0)
    points, front, chosen, dense = ax.lines
    assert list(points.get_xdata()) == [size for size, _ in curve]
    assert list(zip(front.get_xdata(), front.get_ydata(), strict=True)) == [(100, 9.0), (200, 4.0), (400, 2.0)]
    assert list(chosen.get_ydata()) == [4.0] and list(dense.get_ydata()) == [2.0, 2.0]
