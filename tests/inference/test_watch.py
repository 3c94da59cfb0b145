"""Held-out data without a target: what would be stored is looked at, and nothing of the fit changes."""

from operator import attrgetter
from types import SimpleNamespace

import pytest
import torch
from helpers import fresh, two_layers, two_of_six
from torch import nn

import pyro_bc
from pyro_bc.compression.look import Look
from pyro_bc.errors import UsageError
from pyro_bc.inference.watch import guarding
from pyro_bc.posterior.judged import judge
from pyro_bc.posterior.standing import Standing


def fit(guide_of, **options):
    model, guide = guide_of
    x, y = two_of_six()
    batches = pyro_bc.data.Batches(x, y, 50)
    return guide, pyro_bc.fit(model, guide, batches, epochs=6, progress=False, learning_rate=1e-2, **options).history


def normalised():
    """A network whose normalisation no layer can take in."""
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 8), nn.LayerNorm(8), nn.ReLU(),
                         nn.Linear(8, 2))  # fmt: skip


@pytest.mark.parametrize("prior", [pyro_bc.GroupNormalJeffreys(), pyro_bc.LearnedCode()], ids=["gnj", "codes"])
@pytest.mark.parametrize("of", [two_layers, normalised])
def test_a_look_is_at_what_compress_makes_and_leaves_the_fit_alone(of, prior):
    held_out = [two_of_six(400)]
    torch.manual_seed(0)
    net = of()
    plain, alone = fit(fresh(net, prior))
    model, guide = fresh(net, prior)
    guide, history = fit((model, guide), held_out=held_out)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, guide.state_dict()[name]), name
    assert all(record.held_out_error is not None and record.file_bytes > 0 for record in history)
    assert [(own.slack, own.is_kept) for own in history] == [(own.slack, own.is_kept) for own in alone]
    small = pyro_bc.compress(model, guide)
    assert history[-1].held_out_error == judge(small.network(), model.likelihood, held_out).error
    assert history[-1].file_bytes == len(small.to_bytes())


def test_with_nothing_said_the_kl_weighs_less_for_more_weights_and_gives_way_where_compression_costs():
    net, (x, _) = two_layers(units=64), two_of_six()
    y = net(x).argmax(1)
    model, guide = fresh(net)
    guide(x, y)
    look = guarding([(x, y)])
    exact = look(Look(model, guide, False))
    assert exact.slack > 0.5 and exact.is_kept
    with torch.no_grad():
        attrgetter("net.0.weight")(guide.log_variances).fill_(0.0)  # a posterior that says nothing of the first layer
    lost = look(Look(model, guide, False))
    assert lost.slack < 0 and not lost.is_kept and lost.file_bytes < exact.file_bytes
    guide, history = fit(fresh(two_layers(units=64)))
    assert history[0].kl_weight == pytest.approx(200 / (8 * 64) * 3 / 4 / 1.5)  # in the last of four steps of a warm-up
    assert all(record.slack is not None and record.held_out_error is None for record in history)
    guide, history = fit(fresh(two_layers(units=64)), kl_weight=1.0)
    assert history[-1].kl_weight == guide.kl_weight == 1.0 and history[-1].slack is None


def test_looks_are_in_the_export_and_come_back(tmp_path):
    import arviz

    from pyro_bc.inspection.arviz import history_of

    guide, history = fit(fresh(two_layers()), held_out=[two_of_six(400)])
    pyro_bc.save_inference_data(tmp_path / "p.nc", guide, draws=25, history=history)
    again = history_of(arviz.from_netcdf(tmp_path / "p.nc"))
    for own, other in zip(again, history, strict=True):
        assert (own.held_out_error, own.file_bytes) == (other.held_out_error, other.file_bytes)
        assert own.slack == pytest.approx(other.slack, rel=1e-5)


def test_a_model_without_a_network_has_nothing_to_look_at():
    model, guide = fresh(two_layers())
    with pytest.raises(UsageError, match="a target needs held-out batches"):
        pyro_bc.fit(model, guide, pyro_bc.data.Batches(*two_of_six(), 50), target=pyro_bc.Target(max_bytes=9))

    def by_hand(x, y):
        return model(x, y)

    other = pyro_bc.FactorizedGuide(by_hand)
    with pytest.raises(UsageError, match="BayesianNetwork, not with a"):
        pyro_bc.fit(by_hand, other, pyro_bc.data.Batches(*two_of_six(), 50), held_out=[two_of_six()], progress=False)


def test_the_history_shows_itself(capsys):
    _, history = fit(fresh(two_layers()), held_out=[two_of_six(400)])
    shown = pyro_bc.FitResult(history)._repr_html_()
    assert shown.count("<tr>") == 7 and f"{history[-1].file_bytes:,}" in shown and "<svg" in shown
    assert "compressed network" in shown


def watched_by(look):
    """A target that says of every look what a function does."""
    return SimpleNamespace(watch=lambda model, guide, held_out, examples: look)


@pytest.mark.parametrize("kept_at", [0, 4])
def test_a_fit_goes_back_to_what_kept_its_target_however_early_that_was(kept_at):
    """Of looks in the first half those that were kept count where no later one was."""
    states = []

    def look(now):
        states.append({name: value.clone() for name, value in now.guide.state_dict().items()})
        is_kept = len(states) == 1 + kept_at
        return Standing(0.5 if is_kept else -0.5, 1.0, 100, is_kept, cost=100)

    guide, history = fit(fresh(two_layers()), held_out=[two_of_six()], target=watched_by(look))
    assert len(states) == len(history) == 6
    end = guide.state_dict()
    assert all(torch.equal(value, end[name]) for name, value in states[kept_at].items())
    assert not all(torch.equal(value, end[name]) for name, value in states[-1].items())


def test_codes_that_are_not_rounded_are_nothing_to_go_back_to():
    looks = []

    def look(now):
        looks.append(now.is_rounded)
        return Standing(-0.1 if now.is_rounded else 0.5, 1.0, 100, not now.is_rounded, cost=100)

    coded = fresh(two_layers(), pyro_bc.LearnedCode())
    guide, history = fit(coded, held_out=[two_of_six()], target=watched_by(look))
    assert set(looks) == {True, False} and guide.kl_weight == history[-1].kl_weight


def test_networks_that_no_file_holds_are_fitted_and_looked_at():
    x, y = two_of_six()
    net = nn.Linear(6, 2)  # a layer without a name
    _, history = fit(fresh(net), held_out=[(x, y)])
    assert all(record.held_out_error is not None and record.file_bytes == 0 for record in history)


@pytest.mark.parametrize(
    "prior",
    [
        lambda name, layer: pyro_bc.LearnedCode() if name.endswith("2") else pyro_bc.GroupHorseshoe(),
        pyro_bc.GroupNormalJeffreys(weights=pyro_bc.LearnedCode()),
    ],
    ids=["some", "under scales"],
)
def test_codes_beside_other_priors_are_looked_at_and_stored(prior):
    model, guide = fresh(two_layers(), prior)
    guide, history = fit((model, guide), held_out=[two_of_six(400)], kl_weight=0.3)
    assert history[-1].file_bytes == len(pyro_bc.compress(model, guide).to_bytes())
