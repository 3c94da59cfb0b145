"""Groups that have gone leave a training: what stays has the same ELBO and gradients, and comes to the same end."""

from dataclasses import replace

import pyro
import pytest
import torch
from helpers import fresh, set_up
from torch import nn

import pyro_bc
from pyro_bc.errors import CheckpointError
from pyro_bc.inference import shrinking
from pyro_bc.inference.checkpoint import load_checkpoint, save_checkpoint
from pyro_bc.inference.elbo import elbo_terms
from pyro_bc.inference.fit import _state
from pyro_bc.inference.history import Epoch
from pyro_bc.inference.left import Cut, left_of
from pyro_bc.inference.schedule import Schedule
from pyro_bc.inference.shrinking import can_shrink, cut_of, is_time
from pyro_bc.inference.step import eager_step
from pyro_bc.inference.training import Training

PRIORS = {
    "gnj": pyro_bc.GroupNormalJeffreys(),
    "ghs": pyro_bc.GroupHorseshoe(),
    "ghs+svd": pyro_bc.GroupHorseshoe(weights=pyro_bc.LogUniform()),
    "svd": pyro_bc.LogUniform(),
}


class Residual(nn.Module):
    """Two convolutions around an addition, and a layer that was left deterministic."""

    def __init__(self):
        super().__init__()
        self.start, self.inner = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.outer, self.head = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 3)

    def forward(self, x):
        x = self.start(x).relu()
        x = x + self.outer(self.inner(x).relu())
        return self.head(x.relu().mean((2, 3)))


def chain():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


def convolutions():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
    )


def without_noise(net, prior):
    """A posterior that is next to a point, every second group of every layer but the last at 0; what has gone."""
    torch.manual_seed(0)
    x, y = torch.rand(12, 1, 6, 6), torch.randint(3, (12,))
    model, guide = set_up(net(), x, prior, y, num_data=50, init_log_variance=-30.0)
    schedule = Schedule()
    gone = {}
    for number, (name, layer) in enumerate(guide.layers.items()):
        weight = guide.parameters_of(f"{name}.weight")[0].detach()
        axis = layer.type.input_axis if len(layer.prior.roles) == 1 else layer.type.group_axis
        marks = (torch.arange(weight.shape[axis]) % 2 == number % 2) & (weight.shape[axis] > 1)
        if number == len(guide.layers) - 1:
            marks[:] = False
        gone[name] = {axis: marks}
        weight.movedim(axis, 0)[marks] = 0.0
        if axis == layer.type.output_axis:
            guide.parameters_of(f"{name}.bias")[0].detach()[marks] = 0.0
    return Training.of(model, guide, schedule), gone, schedule, x, y


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("net", [chain, convolutions, Residual])
def test_what_is_left_has_the_elbo_and_the_gradients_of_the_whole(net, prior):
    whole, gone, schedule, x, y = without_noise(net, PRIORS[prior])
    left = left_of(whole, Cut(gone, torch.zeros(len(whole.guide.families))), schedule, x, y)
    assert left is not None and left.training.weights < 0.8 * whole.weights
    small = left.training
    found = eager_step(small.model, small.guide, small.flat)(x, y, 0.3)
    expected = eager_step(whole.model, whole.guide, whole.flat)(x, y, 0.3)
    torch.testing.assert_close(found.log_likelihood, expected.log_likelihood, rtol=1e-4, atol=1e-4)
    assert bool((expected.kl >= left.with_all_sites(found.kl) - 1e-2).all())
    for vector, (source, places) in zip(small.flat.vectors, left.places, strict=True):
        torch.testing.assert_close(vector.grad, whole.flat.vectors[source].grad[places], rtol=1e-3, atol=1e-4)
    for name in small.guide.families:
        assert len(small.guide.parameters_of(name)[0].shape) == len(whole.guide.parameters_of(name)[0].shape)


@pytest.mark.parametrize("net,prior", [(chain, "gnj"), (convolutions, "gnj"), (convolutions, "ghs"), (Residual, "ghs")])
def test_draws_of_the_whole_stay_what_they_were_without_what_left(net, prior, monkeypatch):
    whole, _, schedule, x, y = without_noise(net, PRIORS[prior])
    monkeypatch.setattr(shrinking, "WORTH_SHRINKING", 0.9)
    for name in [name for name, layer in whole.guide.layers.items() if layer.type.spatial][1:]:
        weight = whole.guide.parameters_of(f"{name}.weight")[0].detach()
        weight[:, 1::4] = 0.0  # inputs that no filter listens to, of filters that are well determined
    with torch.no_grad():
        before = elbo_terms(whole.model, whole.guide, x, y)
    left = cut_of(whole, None, schedule, x, y)
    assert left.training.weights < 0.8 * whole.weights
    with torch.no_grad():
        after = elbo_terms(whole.model, whole.guide, x, y)
    torch.testing.assert_close(after.log_likelihood, before.log_likelihood, rtol=2e-2, atol=0.0)
    assert float(after.total_kl()) < 0.8 * float(before.total_kl())


def test_layers_that_were_left_deterministic_are_cut_along():
    torch.manual_seed(0)
    x, y = torch.rand(12, 1, 6, 6), torch.randint(3, (12,))
    pyro.clear_param_store()
    model = pyro_bc.BayesianNetwork(chain(), PRIORS["gnj"], num_data=50, deterministic=["1"])
    guide = pyro_bc.FactorizedGuide(model, init_log_variance=-30.0)
    guide(x, y)
    whole = Training.of(model, guide, Schedule())
    marks = torch.arange(12) < 7
    guide.parameters_of("net.3.weight")[0].detach()[:, marks] = 0.0
    gone = {"net.3": {1: marks}, "net.5": {}}
    left = left_of(whole, Cut(gone, torch.zeros(len(guide.families))), Schedule(), x, y)
    assert left.training.model.net.get_parameter("1.weight").shape == (5, 36)
    assert torch.equal(left.training.model.net.get_parameter("1.weight"), model.net.get_parameter("1.weight")[7:])
    left.training.model.net.get_parameter("1.bias").data[0] = 4.0
    left.give_back()
    assert model.net.get_parameter("1.bias")[7] == 4.0


# ---- whole trainings


def problem(n=300, seed=0):
    """Thirty inputs, of which the first two say the class."""
    x = torch.randn(n, 30, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] + 0.5 * x[:, 1] > 0).long()


def start(seed=0):
    pyro.set_rng_seed(seed)
    net = nn.Sequential(nn.Linear(30, 24), nn.ReLU(), nn.Linear(24, 2))
    return fresh(net, PRIORS["gnj"], num_data=300)


def train(model, guide, **options):
    return pyro_bc.fit(
        model, guide, pyro_bc.data.Batches(*problem(), 75), epochs=20, progress=False, learning_rate=2e-2,
        log_learning_rate=0.2, kl_weight=0.5, compile=False, **options,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch):
    """Small networks shrink, too."""
    monkeypatch.setattr(shrinking, "WORK", 0)


@pytest.fixture(scope="module")
def fits():
    """The same fit whole, and of what is left: model, guide and history."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shrinking, "WORK", 0)
        return [(model, guide, train(model, guide, shrink=shrink).history) for shrink in (False, True)
                for model, guide in [start()]]  # fmt: skip


def error(model, guide, **options):
    small = pyro_bc.compress(model, guide, **options)
    x, y = problem(1000, seed=1)
    return small, float((small.network()(x).argmax(1) != y).float().mean())


def test_later_epochs_train_fewer_weights_and_come_to_the_same(fits):
    whole, small = (history for _, _, history in fits)
    assert {own.weights_trained for own in whole} == {768}
    trained = [own.weights_trained for own in small]
    assert f"training {trained[-1]:,} of 768 weights" in _state(small, "error", fits[1][1])
    assert trained[:5] == [768] * 5 and trained == sorted(trained, reverse=True) and trained[-1] < 200
    assert small[-1].loss < 1.05 * whole[-1].loss
    (first, before), (second, after) = (error(model, guide) for model, guide, _ in fits)
    for kept in (first, second):
        inputs = kept.tensors["0_inputs"].indices.tolist()
        assert inputs[:2] == [0, 1] and len(inputs) < 5
    assert after < before + 0.01


def test_the_guide_keeps_its_shapes_and_the_bound_is_that_of_what_it_holds(fits):
    model, guide, history = fits[1]
    assert guide.parameters_of("net.0.weight")[0].shape == (24, 30)
    with torch.no_grad():
        terms = elbo_terms(model, guide, *problem())
    assert float(terms.total_kl()) / 300 == pytest.approx(history[-1].kl, rel=0.02)
    assert float(-terms.log_likelihood) / 300 == pytest.approx(history[-1].negative_log_likelihood, abs=0.05)


def test_what_left_says_nothing_whatever_the_threshold(fits):
    model, guide, _ = fits[1]
    kept, wrong = error(model, guide, thresholds={"0": 1e3, "2": 1e3})
    assert kept.architecture == (30, 24)
    assert wrong == pytest.approx(error(model, guide)[1], abs=0.01)


class Stop(Exception):
    pass


def test_a_run_that_was_stopped_after_groups_left_resumes_to_the_same(fits, tmp_path, monkeypatch):
    monkeypatch.setattr("pyro_bc.inference.fit._BETWEEN_CHECKPOINTS", 0)

    def interrupt(record):
        if record.weights_trained < 768:
            raise Stop

    path = tmp_path / "checkpoint"
    with pytest.raises(Stop):
        train(*start(), checkpoint=path, after_epoch=interrupt)
    tensors, metadata = load_checkpoint(path)
    model, guide = start(seed=99)
    history = train(model, guide, checkpoint=path, resume=True).history
    _, expected, whole = fits[1]
    assert [replace(own, seconds=0.0) for own in history] == [replace(own, seconds=0.0) for own in whole]
    for name, value in expected.state_dict().items():
        assert torch.equal(guide.state_dict()[name], value), name
    tensors["cut.gone.1.net.0"] = torch.zeros(7, dtype=torch.bool)
    save_checkpoint(path, tensors, metadata)
    with pytest.raises(CheckpointError, match="other layers"):
        train(*start(), checkpoint=path, resume=True)


def record(epoch, is_kept=None):
    return Epoch(epoch, 1.0, 1.0, 0.0, 1.0, 0.0, {}, 1.0, is_kept=is_kept, weights_trained=1000)


def test_groups_leave_late_enough_and_not_while_a_constraint_is_missed(monkeypatch):
    assert not is_time(record(10), 40, 100) and is_time(record(11), 40, 100)
    assert not is_time(record(20, False), 40, 100) and is_time(record(20, True), 40, 100)
    assert not is_time(record(21), 400, 100) and is_time(record(104), 400, 100)  # where compression is looked at
    monkeypatch.setattr(shrinking, "WORK", 2_000_000)
    assert is_time(record(19), 40, 100) and not is_time(record(20), 40, 100)


def test_what_cannot_be_trained_in_part_is_trained_whole():
    x = torch.rand(4, 30)

    def may(net, prior, x=x):
        return can_shrink(*set_up(net, x, prior), x)

    assert may(nn.Sequential(nn.Linear(30, 4)), PRIORS["gnj"])
    assert not may(nn.Sequential(nn.Linear(30, 4)), pyro_bc.GroupNormalJeffreys(weights=pyro_bc.LearnedCode()))

    class Own(pyro_bc.GroupNormalJeffreys):
        """A prior that may depend on the layer's size."""

    assert not may(nn.Sequential(nn.Linear(30, 4)), Own())

    class Heads(nn.Module):
        """Attention, whose heads are groups of several inputs."""

        def __init__(self):
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(30, 3, batch_first=True), nn.Linear(30, 2)

        def forward(self, x):
            return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))

    x = torch.rand(4, 5, 30)
    assert not may(Heads(), PRIORS["gnj"], x) and may(Heads(), PRIORS["svd"], x)


def test_batch_normalisation_and_constants_that_move_into_biases_keep_a_network_whole():
    for between in (nn.BatchNorm2d(6), nn.Sigmoid()):
        net = nn.Sequential(nn.Conv2d(1, 6, 3), between, nn.Flatten(), nn.Linear(96, 3))
        whole, gone, schedule, x, y = without_noise(lambda net=net: net, PRIORS["gnj"])
        gone = {"net.0": {0: torch.arange(6) < 3}, "net.3": {}}
        assert left_of(whole, Cut(gone, torch.zeros(len(whole.guide.families))), schedule, x, y) is None
