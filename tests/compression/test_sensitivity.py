"""A layer alone: the table says what replacing it by hand does, and the layer that breaks a network is named."""

import warnings

import pytest
import torch
from helpers import fitted, two_of_six
from torch import nn

import pyro_bc
from pyro_bc.compression.sensitivity import blame, is_clearly_worse
from pyro_bc.errors import UsageError
from pyro_bc.inspection.diagnostics import error_percent, mean_network
from pyro_bc.posterior.judged import Judged

HELD_OUT = [two_of_six(600)]


@pytest.fixture(scope="module")
def fit():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    x, y = two_of_six()
    model, guide, _ = fitted(
        net, x, y, pyro_bc.GroupNormalJeffreys(), epochs=60, learning_rate=1e-2, log_learning_rate=3e-2, kl_weight=0.1
    )
    return model, guide


def test_a_row_is_the_network_with_that_layer_replaced(fit):
    model, guide = fit
    found = pyro_bc.sensitivity(model, guide, HELD_OUT)
    x, y = HELD_OUT[0]
    mean = mean_network(model, guide)
    assert found.mean.error == pytest.approx(error_percent(mean, x, y), abs=1e-4)
    layers = pyro_bc.summarize(guide)
    stored = {layer.name: layer for layer in pyro_bc.compress(model, guide).layers}
    for row in found.rows:
        if row.is_chosen:
            net, layer = mean_network(model, guide), layers[f"net.{row.layer}"]
            step = 2.0 ** -stored[row.layer].weight.fraction_bits
            keep = pyro_bc.compress(model, guide).thresholds[row.layer].keeps(layer)
            assert (row.groups, row.of) == (int(keep.sum()), len(keep))
            weight = net.get_submodule(row.layer).weight
            with torch.no_grad():
                weight.copy_((layer.weight_mean * keep / step).round() * step)
            assert row.error == pytest.approx(error_percent(net, x, y), abs=0.4)  # two of 600
            assert row.bits == stored[row.layer].weight.bits
    assert [row.layer for row in found.rows if row.is_chosen] == ["0", "2", "4"]
    coarse = [row for row in found.rows if row.layer == "2" and row.bits is not None]
    assert [row.code_bytes for row in coarse] == sorted((row.code_bytes for row in coarse), reverse=True)
    assert coarse[-1].loss > coarse[0].loss


def test_the_table_prints_and_shows_itself(fit):
    found = pyro_bc.sensitivity(*fit, HELD_OUT)
    lines = str(found).splitlines()
    assert lines[0].split() == ["layer", "groups", "bits", "bytes", "error", "%", "rise", "nats"]
    assert len(lines) == 2 + len(found.rows) and sum("(chosen)" in line for line in lines) == 3
    assert found._repr_html_().count("<tr>") == len(lines)


@pytest.mark.parametrize("broken", ["0", "2", "4"])
def test_a_threshold_that_breaks_the_network_is_named(fit, broken):
    model, guide = fit
    statistic = pyro_bc.summarize(guide)[f"net.{broken}"].statistic.sort().values
    thresholds = {broken: float(statistic[:2].mean())}  # one group is left
    with pytest.warns(UserWarning, match=rf"layer '{broken}' alone makes it") as said:
        pyro_bc.compress(model, guide, thresholds=thresholds, held_out=HELD_OUT)
    assert said[0].filename == __file__
    assert pyro_bc.sensitivity(model, guide, HELD_OUT, thresholds=thresholds).worst.layer == broken


def test_codes_of_too_high_a_price_are_named_and_a_good_network_is_not(fit):
    model, guide = fit
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pyro_bc.compress(model, guide, held_out=HELD_OUT)
    net = mean_network(model, guide)
    own = pyro_bc.BayesianNetwork(net, pyro_bc.StandardNormal(), num_data=200)
    curvature = pyro_bc.CurvatureGuide(own, two_of_six()[0].split(50), progress=False)
    with pytest.warns(UserWarning, match="where the posterior mean has"):
        pyro_bc.compress(own, curvature, nats_per_bit=3e-3, held_out=HELD_OUT)


def test_what_is_clearly_worse_grows_with_the_doubt():
    assert is_clearly_worse(Judged(4.5, 0), Judged(2.0, 0, resolution=0.01), 10_000)
    assert not is_clearly_worse(Judged(2.9, 0), Judged(2.0, 0, resolution=0.01), 10_000)  # less than a point
    assert not is_clearly_worse(Judged(4.5, 0), Judged(2.0, 0, resolution=1.0), 100)
    assert is_clearly_worse(Judged(1.2, 0), Judged(1.0, 0), 100) and not is_clearly_worse(
        Judged(1.05, 0), Judged(1.0, 0), 100
    )
    assert is_clearly_worse(Judged(float("nan"), 0), Judged(1.0, 0), 100)
    assert "no layer alone does it, 'fc' costs most" in blame(Judged(50, 0), Judged(2, 0), "fc", 3.0, "error %")


def test_there_must_be_something_to_judge_by(fit):
    with pytest.raises(UsageError, match="no held-out examples"):
        pyro_bc.sensitivity(*fit, [])
    with pytest.raises(UsageError, match="no held-out examples"):
        pyro_bc.compress(*fit, held_out=[])
    with pytest.raises(UsageError, match="that of a BayesianNetwork"):
        pyro_bc.sensitivity(lambda x: x, fit[1], HELD_OUT)
