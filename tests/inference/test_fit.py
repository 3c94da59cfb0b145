"""Training: warm-up, caps and rates as stated; resume equals an uninterrupted run; failures name their cause."""

import itertools
import math
import warnings
from dataclasses import asdict
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import fresh as fresh_net
from helpers import two_layers
from helpers import two_of_six as problem
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_bc
from pyro_bc.errors import CheckpointError, NonFiniteLossError, UnsupportedNetworkError, UsageError
from pyro_bc.inference.checkpoint import load_checkpoint, save_fit


def fresh(seed: int = 0, prior=None):
    pyro.set_rng_seed(seed)
    return fresh_net(two_layers(), prior)


def train(model, guide, epochs=6, **options):
    return pyro_bc.fit(model, guide, pyro_bc.data.Batches(*problem(), 50), epochs=epochs, progress=False, **options)


@pytest.mark.parametrize(
    ("prior", "epochs"),
    [(pyro_bc.GroupNormalJeffreys(), 150), (pyro_bc.GroupHorseshoe(), 150), (pyro_bc.LogUniform(), 300)],
)
def test_fit_learns_and_finds_the_inputs_that_matter(prior, epochs):
    model, guide = fresh(prior=prior)
    rates = {"learning_rate": 1.5 / epochs, "log_learning_rate": 9 / epochs}
    history = train(model, guide, epochs=epochs, kl_weight=0.3, **rates).history
    assert history[-1].error < 8
    small = pyro_bc.compress(model, guide)
    assert small.tensors["0_inputs"].indices.tolist() == [0, 1]


def test_the_kl_is_warmed_up_linearly_and_the_losses_add_up():
    model, guide = fresh()
    history = train(model, guide, epochs=4, kl_weight=1.0, kl_warmup_epochs=2).history
    # Four steps an epoch: the last one of an epoch is at a quarter before the next.
    assert [record.kl_weight for record in history] == [0.375, 0.875, 1.0, 1.0]
    for record in history:
        assert record.loss == pytest.approx(record.negative_log_likelihood + record.kl)
        assert list(record.kl_by_layer) == ["net.0", "net.2"]
        assert sum(record.kl_by_layer.values()) == pytest.approx(record.kl)
    tempered = train(*fresh(), epochs=2, kl_warmup_epochs=0, kl_weight=0.25).history
    assert [record.kl_weight for record in tempered] == [0.25, 0.25]


def test_the_two_learning_rates_reach_their_parameters():
    model, guide = fresh(prior=pyro_bc.GroupHorseshoe())
    guide(*problem())
    start = {name: value.clone() for name, value in guide.named_parameters()}
    pyro_bc.fit(
        model,
        guide,
        pyro_bc.data.Batches(*problem(), 200),
        epochs=1,
        learning_rate=1e-3,
        log_learning_rate=1e-1,
        kl_weight=1.0,
        decay=0,
        progress=False,
    )
    # Adam's first step has the size of the learning rate whatever the gradient.
    for name, value in guide.named_parameters():
        rate = (
            1e-3 if name in ("locs.net.0.weight", "locs.net.0.bias", "locs.net.2.weight", "locs.net.2.bias") else 1e-1
        )
        moved = (value - start[name]).abs()
        assert moved.median().item() == pytest.approx(rate, rel=0.02), name


def test_standard_deviations_stay_below_their_cap():
    model, guide = fresh()
    train(model, guide, epochs=30, log_learning_rate=0.3, max_scale={"net.0": 0.05})
    deviations = guide.posterior()["net.0.weight"].scale
    assert deviations.max().item() == pytest.approx(0.05, rel=1e-5)
    assert guide.posterior()["net.2.weight"].scale.max() > 0.05


class Stop(Exception):
    pass


@pytest.mark.parametrize("stop_after", [1, 4])
@pytest.mark.parametrize("between", [0, 1e9], ids=["each epoch is written", "the first epoch is written"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, stop_after, between, monkeypatch):
    monkeypatch.setattr("pyro_bc.inference.fit._BETWEEN_CHECKPOINTS", between)
    model, guide = fresh()
    whole = train(model, guide, seed=5)
    expected = {name: value.clone() for name, value in guide.state_dict().items()}

    def interrupt(record):
        if record.epoch == stop_after:
            raise Stop

    path = tmp_path / "checkpoint"
    with pytest.raises(Stop):
        train(*fresh(), seed=5, checkpoint=path, after_epoch=interrupt)
    model, guide = fresh(seed=99)  # another start: everything must come from the checkpoint
    resumed = train(model, guide, seed=5, checkpoint=path, resume=True)
    for name, value in guide.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert [record.loss for record in resumed.history] == [record.loss for record in whole.history]


def test_checkpoints_take_a_small_part_of_a_training_and_hold_its_end(tmp_path, monkeypatch):
    clock = [0.0]  # of a machine on which an epoch takes a second, and a checkpoint half of one

    def slowly(path, *rest):
        written.append(clock[0])
        clock[0] += 0.5
        save_fit(path, *rest)

    def tick(record):
        clock[0] += 1.0

    written: list[float] = []
    monkeypatch.setattr("pyro_bc.inference.fit.save_fit", slowly)
    monkeypatch.setattr(
        "pyro_bc.inference.fit.time", SimpleNamespace(monotonic=lambda: clock[0], perf_counter=lambda: clock[0])
    )
    history = train(*fresh(), epochs=30, checkpoint=tmp_path / "checkpoint", after_epoch=tick).history
    assert len(history) == 30 and len(written) >= 5
    assert min(b - a for a, b in itertools.pairwise(written[:-1])) > 10 * 0.5
    assert load_checkpoint(tmp_path / "checkpoint")[1]["history"] == [asdict(own) for own in history]


def test_an_existing_checkpoint_is_neither_overwritten_nor_mixed_up(tmp_path):
    path = tmp_path / "checkpoint"
    train(*fresh(), epochs=1, checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="exists"):
        train(*fresh(), epochs=1, checkpoint=path)
    with pytest.raises(CheckpointError, match="learning_rate"):
        train(*fresh(), epochs=1, checkpoint=path, resume=True, learning_rate=1e-4)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        train(*fresh(), epochs=1, checkpoint=tmp_path / "none", resume=True)
    assert path.read_bytes() == before


def test_a_non_finite_loss_stops_with_the_site_and_keeps_the_checkpoint(tmp_path):
    model, guide = fresh()
    path = tmp_path / "checkpoint"

    def spoil(record):
        next(p for name, p in guide.named_parameters() if name == "locs.net.2.weight").data[0, 0] = math.nan

    with pytest.raises(NonFiniteLossError, match=r"net\.2\.weight"):
        train(model, guide, checkpoint=path, after_epoch=spoil)
    _, metadata = load_checkpoint(path)
    assert len(metadata["history"]) == 1


def test_non_finite_inputs_point_at_the_inputs():
    x, y = problem()
    x[170, 2] = math.inf
    model, guide = fresh()
    with pytest.raises(UsageError, match="the inputs of batch 4"):
        pyro_bc.fit(model, guide, pyro_bc.data.Batches(x, y, 50, shuffle=False), epochs=1, progress=False)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs": 1, "learning_rate": 0.0}, "learning_rate"),
        ({"epochs": 1, "log_learning_rate": math.nan}, "log_learning_rate"),
        ({"epochs": 1, "decay": 2.0}, "decay"),
        ({"epochs": 1, "kl_warmup_epochs": -1.0}, "kl_warmup_epochs"),
        ({"epochs": 1, "max_scale": {"net.9": 0.1}}, r"net\.9"),
        ({"epochs": 1, "max_scale": {"net.0": -0.1}}, r"net\.0"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        train(*fresh(), **options)


def test_labels_out_of_range_and_empty_loaders_are_refused():
    x, y = problem()
    with pytest.raises(UsageError, match="2 outputs"):
        pyro_bc.fit(*fresh(), pyro_bc.data.Batches(x, y + 1, 200), epochs=1, progress=False)
    with pytest.raises(UsageError, match="empty"):
        pyro_bc.fit(*fresh(), pyro_bc.data.Batches(x[:0], y[:0]), epochs=1, progress=False)


def test_a_network_that_cannot_be_compressed_is_refused_before_training():
    class Sorted(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(torch.linalg.svdvals(x[:, :, None]).expand(-1, 3))

    model = pyro_bc.BayesianNetwork(Sorted(), pyro_bc.StandardNormal(), num_data=4)
    batches = pyro_bc.data.Batches(torch.rand(4, 3), torch.tensor([0, 1, 0, 1]), 2)
    epochs = []
    with pytest.raises(UnsupportedNetworkError, match="svdvals"):
        pyro_bc.fit(model, pyro_bc.FactorizedGuide(model), batches, epochs=1, progress=False, after_epoch=epochs.append)
    assert epochs == []


def test_inputs_that_are_not_finite_are_said_before_the_training():
    x, y = problem()
    x[3, 2] = torch.inf
    with pytest.raises(UsageError, match="inputs hold NaN or infinite"):
        pyro_bc.fit(*fresh(), pyro_bc.data.Batches(x, y, 200), epochs=1, progress=False)


def by_plate(size):
    def model(x, y=None):
        weight = pyro_bc.StandardNormal().sample("fc", (1, 6))
        with pyro.plate("data", size or len(x), dim=-1):
            pyro.sample("y", dist.Normal((x @ weight.T).squeeze(-1), 1.0), obs=y)

    return model


@pytest.mark.parametrize(
    ("num_data", "said"),
    [
        (200, ""),
        (230, ""),  # a batch is left out
        (17, "num_data is 17, but the loader gives 200 examples: the KL has 11.8 times its weight"),
        (4000, "num_data is 4,000, but the loader gives 200 examples: the KL has 0.05 times its weight"),
        (None, "the size of the plate of what it observes is 50, but the loader gives 200 examples"),
    ],
)
@pytest.mark.parametrize("kind", [list, lambda own: DataLoader(own.dataset, 50)])
def test_another_number_of_examples_than_the_models_is_said(num_data, said, kind):
    x, y = problem()
    x, y = x[:200], y[:200]
    if num_data is None:
        model, y = by_plate(None), y.float()
    else:
        model = pyro_bc.BayesianNetwork(two_layers(), pyro_bc.StandardNormal(), num_data=num_data)
    guide = pyro_bc.FactorizedGuide(model)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        pyro_bc.fit(model, guide, kind(DataLoader(TensorDataset(x, y), 50)), epochs=1, kl_weight=1.0, progress=False)
    counts = [str(own.message) for own in found if "the loader gives" in str(own.message)]
    assert len(counts) == bool(said) and all(own.startswith(said) for own in counts)


def test_a_data_set_in_place_of_batches_is_refused():
    model, guide = fresh()
    with pytest.raises(UsageError, match="single examples, no batches: put the TensorDataset into a DataLoader"):
        pyro_bc.fit(model, guide, TensorDataset(*problem()), epochs=1, progress=False)


def test_a_found_weight_starts_from_balanced_scales_whose_rates_are_a_part_of_their_size():
    sizes = []
    for epochs in (1, 2):
        model, guide = fresh(prior=pyro_bc.GroupNormalJeffreys())
        guide(*problem())
        guide.balance_()
        start = {name: value.detach().clone() for name, value in guide.locs.named_parameters()}
        loader = pyro_bc.data.Batches(*problem(), 200)
        pyro_bc.fit(model, guide, loader, epochs=epochs, learning_rate=1e-3, decay=0, progress=False)
        for layer in ("net.0", "net.2"):
            size = float(start[f"{layer}.scale"].square().mean().sqrt())
            moved = {role: (guide.parameters_of(f"{layer}.{role}")[0] - start[f"{layer}.{role}"]).abs().median().item()
                     for role in ("scale", "weight", "bias")}  # fmt: skip
            if epochs == 1:
                sizes.append(size)
                assert moved == pytest.approx({"scale": 0.02 * size, "weight": 0.02, "bias": 1e-3}, rel=0.05)
            else:
                assert moved["scale"] < 0.05 * size
    assert all(size < 0.5 for size in sizes)  # of weights as torch draws them
