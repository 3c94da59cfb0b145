"""A target: what it allows, the search along a posterior, and looks at held-out data while fitting."""

import copy
import math
import warnings

import pytest
import torch
from helpers import train
from torch import nn

import pyro_bc
from pyro_bc.compression.look import Look
from pyro_bc.compression.target import Target, compress_to
from pyro_bc.errors import UsageError
from pyro_bc.posterior.judged import Judged, held_out_batches, judge

OF_EACH_PRIOR = pytest.mark.parametrize(
    "prior",
    [pyro_bc.GroupNormalJeffreys(), pyro_bc.GroupHorseshoe(), pyro_bc.LearnedCode()],
    ids=["gnj", "ghs", "codes"],
)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "one number, not none"),
        ({"max_error_rise": 1.0, "max_bytes": 1000}, "not max_error_rise and max_bytes"),
        ({"max_error_rise": -0.1}, "max_error_rise must be at least 0"),
        ({"max_loss_rise": math.inf}, "max_loss_rise must be at least 0 and finite"),
        ({"max_bytes": 0}, "max_bytes must be at least 1"),
    ],
)
def test_a_target_is_one_number_in_its_range(given, message):
    with pytest.raises(UsageError, match=message):
        Target(**given)


def test_what_is_beyond_a_target_is_told_in_its_unit():
    dense, found = Judged(2.0, 0.10, resolution=0.2), Judged(2.6, 0.17, 900)
    assert Target(max_error_rise=0.5).excess(found, dense) == pytest.approx(0.1)
    assert Target(max_error_rise=0.0).excess(Judged(2.2, 0.1), dense) == pytest.approx(0)  # one example
    assert Target(max_loss_rise=0.05).excess(found, dense) == pytest.approx(0.02)
    assert Target(max_bytes=1000).excess(found, dense) == -100


@pytest.fixture(scope="module")
def classes():
    """Clusters, a trained network, and held-out batches."""
    torch.manual_seed(0)
    centres = torch.randn(5, 20)
    y = torch.arange(5).repeat(200)
    x = centres[y] + 0.8 * torch.randn(1000, 20)
    new_y = torch.arange(5).repeat(200)
    held = held_out_batches(centres[new_y] + 0.8 * torch.randn(1000, 20), new_y)
    net = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 5))
    train(net, x, y, 150)
    return net.eval(), x, y, held


def test_a_network_is_judged_as_by_hand(classes):
    net, _, _, held = classes
    found = judge(net, pyro_bc.likelihoods.Categorical(), held)
    x, y = (torch.cat(parts) for parts in zip(*held, strict=True))
    assert found.error == pytest.approx(100 * float((net(x).argmax(1) != y).float().mean()), abs=1e-4)
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(net(x), y)), rel=1e-3)
    assert found.resolution == pytest.approx(0.1, abs=1e-3)
    with pytest.raises(UsageError, match="no held-out examples"):
        judge(net, pyro_bc.likelihoods.Categorical(), [])


@pytest.mark.parametrize("limit", [{"max_error_rise": 1.0}, {"max_loss_rise": 0.05}, {"max_bytes": 500}])
def test_a_curvature_goes_as_far_as_the_target_allows(classes, limit):
    net, x, _, held = classes
    model = pyro_bc.BayesianNetwork(net, pyro_bc.StandardNormal(), num_data=1000)
    guide = pyro_bc.CurvatureGuide(model, [x], progress=False)
    target = Target(**limit)
    reached = compress_to(model, guide, target, [x], held, progress=False)
    assert reached.is_met and not reached.obstacle
    assert target.excess(reached.found, reached.dense) <= 0
    assert reached.found.file_bytes == len(reached.network.to_bytes())
    again = judge(reached.network.network(), model.likelihood, held)
    assert (again.error, again.loss) == (reached.found.error, reached.found.loss)
    if target.max_bytes is not None:
        assert reached.found.file_bytes >= 0.97 * target.max_bytes
    else:  # the smallest of what keeps it
        keeping = [own.file_bytes for own in reached.curve if target.excess(own, reached.dense) <= 0]
        assert reached.found.file_bytes == min(keeping)


def test_a_target_that_cannot_be_kept_says_what_was_tried(classes):
    net, x, _, held = classes
    model = pyro_bc.BayesianNetwork(net, pyro_bc.StandardNormal(), num_data=1000)
    guide = pyro_bc.CurvatureGuide(model, [x], progress=False)
    reached = compress_to(model, guide, Target(max_bytes=40), [x], held, progress=False)
    assert not reached.is_met
    assert "networks that were tried" in reached.obstacle and "bytes" in reached.obstacle


@OF_EACH_PRIOR
def test_a_fit_with_a_target_ends_at_it(classes, prior):
    net, x, y, held = classes
    torch.manual_seed(0)
    own = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 5))
    own.load_state_dict(net.state_dict())
    model = pyro_bc.BayesianNetwork(own, prior, num_data=1000)
    guide = pyro_bc.FactorizedGuide(model)
    target = Target(max_error_rise=1.0)
    loader = pyro_bc.data.Batches(x, y, 200)
    history = pyro_bc.fit(model, guide, loader, epochs=30, target=target, held_out=held, progress=False).history
    weights = [record.kl_weight for record in history]
    assert weights[0] == pytest.approx(1e-2) and max(weights) > 0.05  # it rose while there was room
    assert history[-1].slack is not None and history[-1].held_out_error is not None
    reached = compress_to(model, guide, target, loader, held, progress=False)
    assert reached.is_met
    assert reached.found.file_bytes < 900  # 4,180 bytes dense


@pytest.mark.parametrize("prior", [pyro_bc.GroupNormalJeffreys(), pyro_bc.LearnedCode()], ids=["gnj", "codes"])
def test_a_size_that_no_network_has_leaves_one_that_knows_something(classes, prior, monkeypatch):
    monkeypatch.setattr("pyro_bc.compression.target._EVALUATIONS", 4)  # a few of all networks
    net, x, y, held = classes
    model = pyro_bc.BayesianNetwork(copy.deepcopy(net), prior, num_data=1000)
    guide = pyro_bc.FactorizedGuide(model)
    target, loader = Target(max_bytes=30), pyro_bc.data.Batches(x, y, 200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what collapses meanwhile
        pyro_bc.fit(model, guide, loader, epochs=60, target=target, held_out=held, seed=0, progress=False)
    reached = compress_to(model, guide, target, loader, held, progress=False)
    assert not reached.is_met
    assert reached.found.error < 50 and reached.found.file_bytes < 300  # of chance 80 %, and of 4,180 bytes


def test_what_has_lost_nearly_all_is_a_collapse_for_a_size_too(classes):
    net, x, y, held = classes
    model = pyro_bc.BayesianNetwork(net, pyro_bc.GroupHorseshoe(), num_data=1000)
    guide = pyro_bc.FactorizedGuide(model, init_log_variance=-8.0)
    guide(x, y)
    look = Target(max_bytes=100).watch(model, guide, held)
    assert look(Look(model, guide, False)).slack > 0
    with torch.no_grad():
        guide.locs.net.get_submodule("2").weight.mul_(-1)
    found = look(Look(model, guide, False))
    assert found.slack == -math.inf and found.error > 70 and not found.is_kept


def test_held_out_data_of_one_class_judge_nothing(classes):
    net, x, y, _ = classes
    model = pyro_bc.BayesianNetwork(net, pyro_bc.GroupHorseshoe(), num_data=1000)
    guide, held = pyro_bc.FactorizedGuide(model), [(x[y == 2], y[y == 2])]
    for target in (Target(max_error_rise=1.0), Target(max_bytes=500)):
        with pytest.raises(UsageError, match="held-out targets are all the same"):
            pyro_bc.fit(model, guide, [(x, y)], epochs=1, target=target, held_out=held, progress=False)


def test_a_rise_is_counted_from_the_network_as_it_was_whatever_a_fit_has_made_of_its_other_parameters(classes):
    _, x, y, held = classes
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 40), nn.LayerNorm(40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 5))
    train(net, x, y, 100)
    before = judge(net.eval(), pyro_bc.likelihoods.Categorical(), held)
    model = pyro_bc.BayesianNetwork(net, pyro_bc.GroupHorseshoe(), num_data=1000)
    guide, target = pyro_bc.FactorizedGuide(model), Target(max_error_rise=2.0)
    loader = pyro_bc.data.Batches(x, y, 200)
    pyro_bc.fit(model, guide, loader, epochs=10, target=target, held_out=held, progress=False, learning_rate=0.1)
    model.to(torch.float32)
    reached = compress_to(model, guide, target, loader, held, progress=False)
    assert (reached.dense.error, reached.dense.loss) == pytest.approx((before.error, before.loss))
    assert judge(model.skeleton, model.likelihood, held).loss != pytest.approx(before.loss, rel=1e-3)


def test_a_target_needs_held_out_data(classes):
    net, x, y, _ = classes
    model = pyro_bc.BayesianNetwork(net, pyro_bc.GroupHorseshoe(), num_data=1000)
    guide = pyro_bc.FactorizedGuide(model)
    with pytest.raises(UsageError, match="needs held-out batches to judge by"):
        pyro_bc.fit(model, guide, [(x, y)], epochs=1, target=Target(max_bytes=100), progress=False)


def test_a_target_that_is_missed_says_which_layer_costs_most_and_shows_itself(classes):
    net, x, y, held = classes
    model = pyro_bc.BayesianNetwork(net, pyro_bc.GroupNormalJeffreys(), num_data=1000)
    guide = pyro_bc.FactorizedGuide(model, init_log_variance=-8.0)
    guide(x, y)
    cut = {"0": float(pyro_bc.summarize(guide)["net.0"].statistic.sort().values[2:4].mean())}  # three of 20 inputs
    reached = compress_to(model, guide, Target(max_error_rise=0.5), [(x, y)], held, progress=False, thresholds=cut)
    assert not reached.is_met and "layer '0' alone makes it" in reached.blamed and reached.blamed in reached.obstacle
    shown = reached._repr_html_()
    assert "The target is missed" in shown and f"of {len(reached.curve)} networks" in shown and "<svg" in shown
    assert f"{reached.found.file_bytes:,} bytes" in shown


def test_a_network_that_was_trained_on_the_held_out_examples_is_no_measure(classes):
    net, x, y, _ = classes
    noise = torch.randint(0, 2, (40,), generator=torch.Generator().manual_seed(0))
    own = copy.deepcopy(net)  # knows labels by heart that nothing says
    seen = torch.randn(40, x.shape[1])
    with_them = torch.cat([x, seen]), torch.cat([y, noise])
    train(own, *with_them, 400, 2e-2)
    held = [(seen, noise)]
    model = pyro_bc.BayesianNetwork(net, pyro_bc.GroupNormalJeffreys(), num_data=len(x))
    guide = pyro_bc.FactorizedGuide(model, init_log_variance=-8.0)
    guide(x, y)
    target = Target(max_error_rise=1.0)
    with pytest.warns(UserWarning, match="Nor is the posterior mean, with .* trained on these held-out examples, too"):
        reached = compress_to(model, guide, target, [x], held, progress=False, before=own)
    assert reached.is_met and reached.found.way.startswith("the network before the fit")


def that_lost_everything(net, x, y):
    """A fit of a network at its weights, but for the last layer's, which are turned."""
    model = pyro_bc.BayesianNetwork(net, pyro_bc.GroupHorseshoe(), num_data=1000)
    guide = pyro_bc.FactorizedGuide(model, init_log_variance=-8.0)
    guide(x, y)
    with torch.no_grad():
        guide.locs.net.get_submodule("2").weight.mul_(-1)
    return model, guide


def test_what_a_fit_cannot_keep_the_network_before_it_does_and_that_is_said(classes):
    net, x, y, held = classes
    model, guide = that_lost_everything(net, x, y)
    target = Target(max_error_rise=0.5)
    with pytest.warns(UserWarning, match="no network of this fit keeps the target; what does is the network before"):
        reached = compress_to(model, guide, target, [(x, y)], held, progress=False)
    assert reached.is_met and reached.found.file_bytes < 4 * 1045 / 4
    small = judge(reached.network.network(), model.likelihood, held)
    assert small.error == reached.found.error <= judge(net, model.likelihood, held).error + 0.5


def test_a_cell_that_has_a_posterior_is_not_said_to_be_left_without_one():
    class Last(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = torch.nn.LSTM(3, 6, batch_first=True), torch.nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.cell(x)[0][:, -1])

    x = torch.randn(60, 5, 3)
    model = pyro_bc.BayesianNetwork(Last(), pyro_bc.GroupNormalJeffreys(), num_data=60)
    guide = pyro_bc.FactorizedGuide(model, init_log_variance=-8.0)
    held = [(x, (x.sum((1, 2)) > 0).long())]
    guide(*held[0])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        reached = compress_to(model, guide, Target(max_bytes=10_000), held, held, progress=False)
    assert any(judged.way.startswith("groups by") for judged in reached.curve)  # its curvature was tried
    assert [str(one.message) for one in said if "left deterministic" in str(one.message)] == []


def test_a_loss_before_and_after_is_that_under_the_same_noise():
    torch.manual_seed(0)
    x = torch.randn(200, 4)
    y = x @ torch.randn(4) + 0.01 * torch.randn(200)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(500):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x).squeeze(-1), y).backward()
        optimizer.step()
    model = pyro_bc.BayesianNetwork(
        net, pyro_bc.StandardNormal(), num_data=200, likelihood=pyro_bc.likelihoods.Normal()
    )
    guide = pyro_bc.FactorizedGuide(model)
    guide(x, y)
    look = Target(max_loss_rise=0.2).watch(model, guide, held_out_batches(x, y))
    # Nothing is pruned, and the means are the network's: whatever noise the guide has come to, no loss has risen.
    for precision in (1.0, 1e4):
        with torch.no_grad():
            guide.locs.precision.fill_(math.log(precision))
        assert look(Look(model, guide, False)).slack == pytest.approx(1.0, abs=0.05)


def test_a_rise_above_a_network_that_says_nothing_is_refused_before_any_training(classes):
    _, x, y, held = classes
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 5))
    with pytest.warns(UserWarning, match="one prediction for all inputs has 80: train it first"):
        Target(max_error_rise=1.0).check_is_trained([net(held[0][0])], held[:1], pyro_bc.likelihoods.Categorical())
    nn.init.zeros_(net[2].weight)
    model = pyro_bc.BayesianNetwork(net, pyro_bc.GroupHorseshoe(), num_data=1000)
    guide = pyro_bc.FactorizedGuide(model)
    loader = pyro_bc.data.Batches(x, y, 200)
    with pytest.raises(UsageError, match="one prediction for all inputs has 80: train it first"):
        pyro_bc.fit(model, guide, loader, epochs=1, target=Target(max_error_rise=1.0), held_out=held, progress=False)
    with pytest.raises(UsageError, match="train it first"):
        compress_to(model, guide, Target(max_loss_rise=0.1), loader, held, progress=False)


@pytest.mark.parametrize("steps", [2, 150])
def test_a_rise_above_a_network_that_was_not_trained_to_its_end_is_said(classes, steps):
    """Fewer steps leave an error that the fit halves by itself; the whole training does not."""
    _, x, y, held = classes
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 5))
    train(net, x, y, steps)
    model = pyro_bc.BayesianNetwork(net, pyro_bc.GroupHorseshoe(), num_data=1000)
    guide = pyro_bc.FactorizedGuide(model)
    loader = pyro_bc.data.Batches(x, y, 100)
    target = Target(max_error_rise=1.0)
    pyro_bc.fit(model, guide, loader, epochs=20, kl_weight=0.05, learning_rate=1e-2, progress=False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        compress_to(model, guide, target, loader, held, progress=False)
    assert any("was not trained to its end" in str(own.message) for own in said) == (steps == 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: [(x * math.nan, y)], "the inputs of held-out batch 1 hold NaN"),
        (lambda x, y: [(x, y), (x[:, :5], y)], "cannot be run on held-out batch 2: mat1"),
        (lambda x, y: (x, y), r"held-out batch 1 is a Tensor, no pair .*give \[\(x, y\)\]"),
        (lambda x, y: [(x, y + 7)], "held-out batch 1: labels lie in"),
        (lambda x, y: [(x, y.float())], "held-out batch 1: Categorical targets are class numbers"),
        (lambda x, y: [], "no held-out examples"),
    ],
)
def test_held_out_data_that_cannot_judge_are_refused_before_any_training(classes, change, message):
    net, x, y, held = classes
    model = pyro_bc.BayesianNetwork(net, pyro_bc.GroupHorseshoe(), num_data=1000)
    guide = pyro_bc.FactorizedGuide(model)
    loader, target = pyro_bc.data.Batches(x, y, 100), Target(max_error_rise=1.0)
    for of in (target, None):
        with pytest.raises(UsageError, match=message):
            pyro_bc.fit(
                model, guide, loader, epochs=1, target=of, held_out=change(*held[0]), progress=False,
                after_epoch=pytest.fail,
            )  # fmt: skip
    with pytest.raises(UsageError, match=message):
        compress_to(model, guide, target, loader, change(*held[0]), progress=False)


def test_a_number_is_no_target_and_a_generator_is_gone_through_once(classes):
    net, x, y, held = classes
    model = pyro_bc.BayesianNetwork(net, pyro_bc.GroupHorseshoe(), num_data=1000)
    guide = pyro_bc.FactorizedGuide(model)
    loader = pyro_bc.data.Batches(x, y, 100)
    with pytest.raises(UsageError, match=r"such as Target\(max_error_rise=0.5\), not 0.5"):
        pyro_bc.fit(model, guide, loader, epochs=1, target=0.5, held_out=held, progress=False)
    with pytest.raises(UsageError, match=r"such as Target\(max_error_rise=0.5\), not 0.5"):
        compress_to(model, guide, 0.5, loader, held, progress=False)
    batches = (batch for batch in held)
    history = pyro_bc.fit(
        model, guide, loader, epochs=2, target=Target(max_error_rise=1.0), held_out=batches, progress=False
    ).history
    assert history[-1].held_out_error is not None


def test_several_inputs_have_a_target_with_codes_and_are_compared_by_examples():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.p, self.q = nn.Linear(3, 4), nn.Linear(3, 2)

        def forward(self, a, b):
            return self.q(torch.cat([self.p(a).relu()[:, :2], b[:, :1]], 1))

    torch.manual_seed(0)
    a, b, y = torch.randn(60, 3), torch.randn(60, 3), torch.arange(60) % 2
    for x in ((a, b), {"a": a, "b": b}):
        model = pyro_bc.BayesianNetwork(Sum(), pyro_bc.LearnedCode(), num_data=60)
        guide = pyro_bc.FactorizedGuide(model)
        target = Target(max_bytes=200)
        pyro_bc.fit(model, guide, [(x, y)], target=target, held_out=[(x, y)], epochs=3, progress=False)
        found = compress_to(model, guide, target, [(x, y)], [(x, y)], progress=False)
        small = pyro_bc.compress(model, guide, held_out=[(x, y)])
        assert found.network.further_inputs and small.further_inputs


def test_a_target_in_double_precision_is_refused_before_it_trains():
    model = pyro_bc.BayesianNetwork(nn.Linear(3, 2), pyro_bc.GroupNormalJeffreys(), num_data=6)
    x, y = torch.randn(6, 3), torch.arange(6) % 2
    guide = pyro_bc.FactorizedGuide(model)
    guide(x, y)
    with pytest.raises(UsageError, match="single precision"):
        compress_to(model.double(), guide, Target(max_bytes=200), [(x, y)], [(x, y)])


def test_a_recurrent_layer_whose_cut_costs_much_stays_whole_under_its_name_in_the_graph():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells, self.head = nn.GRU(3, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.cells(x)[0][:, -1])

    torch.manual_seed(0)
    x = torch.randn(80, 5, 3)
    y = (x[:, -1, 0] > 0).long()
    net = Last()
    train(net, x, y, 60, 2e-2)
    model = pyro_bc.BayesianNetwork(net, pyro_bc.GroupNormalJeffreys(), num_data=80)
    guide = pyro_bc.FactorizedGuide(model, init_log_variance=2.0)  # no group has more signal than noise
    guide(x, y)
    target = Target(max_error_rise=5.0)
    found = compress_to(model, guide, target, [(x, y)], [(x, y)], progress=False)
    assert any("where they cost little" in own.way for own in found.curve) and found.is_met


def test_what_differentiates_does_so_where_torch_allows_it(classes):
    net, x, y, held = classes
    model = pyro_bc.BayesianNetwork(net, pyro_bc.GroupNormalJeffreys(), num_data=1000)
    guide = pyro_bc.FactorizedGuide(model, init_log_variance=-8.0)
    with torch.no_grad():
        pyro_bc.fit(model, guide, [(x, y)], epochs=2, progress=False)
        assert compress_to(model, guide, Target(max_error_rise=3.0), [(x, y)], held, progress=False).is_met
        pyro_bc.compress(model, guide, nats_per_bit=1e-5, epochs=1, loader=[(x, y)], progress=False)
    with torch.inference_mode():
        for needs in (
            lambda: pyro_bc.fit(model, guide, [(x, y)], epochs=2, progress=False),
            lambda: compress_to(model, guide, Target(max_bytes=99), [(x, y)], held, progress=False),
            lambda: pyro_bc.CurvatureGuide(model, [x], progress=False),
        ):
            with pytest.raises(UsageError, match=r"needs gradients: call it outside of torch.inference_mode"):
                needs()


def test_options_are_those_that_say_what_is_compressed(classes):
    net, x, y, held = classes
    model = pyro_bc.BayesianNetwork(net, pyro_bc.GroupNormalJeffreys(), num_data=1000)
    guide = pyro_bc.FactorizedGuide(model)
    guide(x, y)
    for name in ("epochs", "noise_ratio", "nats_per_bit", "nose"):
        with pytest.raises(UsageError, match=f"and not {name}: how far to prune"):
            compress_to(model, guide, Target(max_bytes=99), [x], held, progress=False, **{name: 1})


def test_one_held_out_example_that_is_right_is_enough(classes):
    net, x, y, _ = classes
    model = pyro_bc.BayesianNetwork(net, pyro_bc.GroupNormalJeffreys(), num_data=1000)
    guide = pyro_bc.FactorizedGuide(model, init_log_variance=-8.0)
    guide(x, y)
    right = [(x[:1], net(x[:1]).argmax(1))]
    assert compress_to(model, guide, Target(max_error_rise=1.0), [x], right, progress=False).is_met


def test_what_belongs_to_no_layer_is_rounded_beside_codes(classes):
    """Gains and shifts of a normalisation took most of such a file."""
    _, x, y, held = classes
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 40), nn.LayerNorm(40), nn.ReLU(), nn.Linear(40, 5))
    train(net, x, y, 100)
    model = pyro_bc.BayesianNetwork(net, pyro_bc.LearnedCode(), num_data=1000)
    guide = pyro_bc.FactorizedGuide(model)
    pyro_bc.fit(model, guide, [(x, y)], epochs=60, kl_weight=0.1, progress=False)
    stored = pyro_bc.compress(model, guide)
    assert len(stored.to_bytes()) > 4 * 80  # a gain and a shift of 40 units each
    reached = compress_to(model, guide, Target(max_error_rise=1.0), [(x, y)], held, progress=False)
    assert reached.is_met and reached.found.file_bytes < 0.6 * len(stored.to_bytes())
    again = judge(reached.network.network(), model.likelihood, held)
    assert again.error == reached.found.error


def test_a_size_that_leaves_little_of_what_a_network_knew_is_said(classes):
    net, x, y, held = classes
    model, guide = that_lost_everything(net, x, y)
    with pytest.warns(UserWarning, match="bytes keep little of what the network knew: error % .*, and .* before"):
        reached = compress_to(model, guide, Target(max_bytes=4000), [x], held, progress=False)
    assert reached.is_met and reached.found.error > 50
