"""Whether a training has come to rest, as a function of its course."""

from dataclasses import replace

import pyro
import torch

import pyro_bc
from pyro_bc.data import Batches
from pyro_bc.inference.history import Epoch
from pyro_bc.inference.rest import is_at_rest


def course(losses, groups=lambda at: 5, weight=lambda at: 1.0):
    epoch = Epoch(1, 1.0, 1.0, 0.0, 1.0, 0.0, {}, 0.0)
    return [
        replace(
            epoch, epoch=at, negative_log_likelihood=loss, kl_weight=weight(at), groups_left={"fc": groups(at)}
        )
        for at, loss in enumerate(losses, 1)
    ]  # fmt: skip


def test_a_training_is_at_rest_where_bound_groups_and_the_weight_of_the_kl_are_level():
    noise = [0.01 * (at * 37 % 11 - 5) for at in range(60)]
    level = [1 + own for own in noise]
    assert is_at_rest(course(level), 100, 30)
    assert not is_at_rest(course(level), 100, 50)  # rates began to fall in these windows
    assert not is_at_rest(course(level[:15]), 100, 0)
    assert not is_at_rest(course([own - 0.01 * at for at, own in enumerate(level)]), 100, 30)
    assert not is_at_rest(course(level, groups=lambda at: 10 - (at > 55)), 100, 30)
    assert not is_at_rest(course(level, weight=lambda at: 1.01**at), 100, 30)


def test_a_fit_ends_early_where_nobody_says_how_long_and_nothing_changes_any_more(monkeypatch):
    monkeypatch.setattr("pyro_bc.inference.fit.usual_epochs", lambda steps: 100)
    torch.manual_seed(0)
    x = torch.randn(8, 3)
    y = (x[:, 0] > 0).long()
    net = torch.nn.Sequential(torch.nn.Linear(3, 2))

    def run(**options):
        pyro.clear_param_store()
        model = pyro_bc.BayesianNetwork(net, pyro_bc.GroupNormalJeffreys(), num_data=8)
        guide = pyro_bc.FactorizedGuide(model)
        still = {"learning_rate": 1e-9, "log_learning_rate": 1e-9}
        held_out = [(x, y)]
        return pyro_bc.fit(
            model, guide, Batches(x, y, 8), kl_weight=1, held_out=held_out, progress=False, **still, **options
        ).history

    history = run()
    assert 70 <= len(history) < 90
    assert history[-1].held_out_error is not None  # what the fit leaves has been looked at
    assert len(run(epochs=100)) == 100
