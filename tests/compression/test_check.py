"""Before any training: what becomes Bayesian, what cannot shrink and why, what would be refused; nothing is changed."""

import copy
import gc

import pyro
import pytest
import torch
import torch.nn.functional as F
from helpers import two_layers
from torch import nn

import pyro_bc
import pyro_bc.compression.check
from pyro_bc.compression.compress import compress

X = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Mixed(nn.Module):
    """Layers that shrink, that cannot, and that stay as they are."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.c, self.d, self.frozen = nn.Linear(8, 6), nn.Linear(6, 4), nn.Linear(4, 3).requires_grad_(False)

    def forward(self, x):
        h = F.relu(self.b(torch.sigmoid(self.norm(F.relu(self.a(x)))))).mean((2, 3))
        return self.frozen(self.d(F.layer_norm(self.c(h), (6,))))


class Decomposition(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(8, 8)

    def forward(self, x):
        return torch.linalg.svdvals(self.l(x)).flatten(1)[:, :3]


class Auxiliary(nn.Module):
    """A head that only training uses."""

    def __init__(self):
        super().__init__()
        self.a, self.main, self.extra = nn.Linear(64, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        h = torch.relu(self.a(x.flatten(2).mean(1)))
        return self.main(h) + (self.extra(h) if self.training else 0)


def test_a_table_says_what_each_layer_becomes():
    net = Mixed()
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    pyro.param("someone's", torch.ones(2))
    found = pyro_bc.check(net, X, prior=pyro_bc.GroupNormalJeffreys())
    assert found.ok and found.file_bytes > 100
    rows = {row.name: row for row in found.layers}
    assert list(rows) == ["a", "b", "c", "d", "frozen"]
    assert rows["a"].groups == "8 filters" and "padded convolution" in rows["a"].note
    assert rows["b"].note == "" and rows["d"].note == "" and rows["d"].groups == "6 inputs"
    assert "outputs stay" in rows["c"].note and "'layer_norm'" in rows["c"].note
    assert rows["frozen"].prior is None and rows["frozen"].note == "stays as it is"
    lines = str(found).splitlines()
    assert lines[0].split() == ["layer", "type", "weight", "prior", "groups"] and lines[1].startswith("a ")
    assert lines[-1].startswith("can be fitted, compressed and stored")
    # Nothing was changed.
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and list(pyro.get_param_store()) == ["someone's"]


@pytest.mark.parametrize(
    "net,options,message",
    [
        (Decomposition(), {}, "'linalg_svdvals'"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), {"y": torch.arange(6)}, r"labels lie in \[0, 5\]"),
        (nn.Sequential(nn.Flatten()), {}, "no layer to make Bayesian"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).requires_grad_(False), {}, "frozen"),
        (nn.Sequential(nn.Flatten(), nn.Linear(63, 3)), {}, "shape"),
    ],
)
def test_what_would_be_refused_is_said_and_not_raised(net, options, message):
    found = pyro_bc.check(net, X, **options)
    assert not found.ok and len(found.problems) == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(found.problems[0])
    assert f"refused: {found.problems[0]}" in str(found)


class Gives(nn.Module):
    """A network whose output is what a function makes of a layer's."""

    def __init__(self, function):
        super().__init__()
        self.l, self.function = nn.Linear(8, 3), function

    def forward(self, x):
        return self.function(self.l(x.flatten(2).mean(1).unflatten(1, (8, 8)).mean(1)), x)


@pytest.mark.parametrize(
    "function,message",
    [
        (lambda h, x: {"a": h, "b": h}, "gives a dict of 'a', 'b'; one tensor is needed"),
        (lambda h, x: (h, x), "gives a tuple of 0, 1; one tensor is needed"),
        (lambda h, x: h.view(len(x), 3), r"len\(x\) does; write x.shape\[0\]"),
        (lambda h, x: h + torch.rand_like(h), "'rand_like'"),
    ],
)
def test_what_a_network_may_not_give_is_one_line_before_the_training(function, message):
    model = pyro_bc.BayesianNetwork(Gives(function), num_data=6)
    with pytest.raises(pyro_bc.errors.UnsupportedNetworkError, match=message):
        pyro_bc.fit(model, pyro_bc.FactorizedGuide(model), [(X, torch.arange(6) % 3)], epochs=2, progress=False)


def test_outputs_that_are_left_out_are_noted():
    found = pyro_bc.check(Gives(lambda h, x: {"hidden": h * 2, "logits": h}), X)
    assert found.ok and found.notes == ("of the network's outputs, not in the file: 'hidden'",)
    assert not pyro_bc.check(Gives(lambda h, x: {"logits": h}), X).notes


def test_a_bias_that_is_computed_from_a_layers_own_is_added_behind_it():
    class Half(nn.Module):
        """Swin v2's projection, of whose bias one part is 0."""

        def __init__(self):
            super().__init__()
            self.l, self.head = nn.Linear(64, 24), nn.Linear(24, 3)

        def forward(self, x):
            bias = torch.cat([self.l.bias[:12], torch.zeros(12)])
            return self.head(nn.functional.linear(x.flatten(1), self.l.weight, bias).relu())

    found = pyro_bc.check(Half(), X)
    assert found.ok and not found.layers[0].note


def test_a_forward_that_asks_for_the_classes_of_its_modules_is_refused_in_a_line():
    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(64, 3)

        def forward(self, x):
            return self.l(x.flatten(1)) * {nn.Linear: 1.0}[type(self.l)]

    found = pyro_bc.check(Asks(), X)
    assert len(found.problems) == 1 and "depends on the classes of its modules" in found.problems[0]


@pytest.mark.parametrize("prior", [pyro_bc.LearnedCode(), pyro_bc.LogUniform(), pyro_bc.StandardNormal(), None])
def test_every_prior_has_a_table(prior):
    found = pyro_bc.check(nn.Sequential(nn.Flatten(), *two_layers(64)), X, prior=prior)
    assert found.ok and [row.name for row in found.layers] == ["1", "3"]


def test_what_only_training_uses_is_left_out_and_noted():
    found = pyro_bc.check(Auxiliary(), X)
    assert found.ok and [row.name for row in found.layers] == ["a", "main", "extra"]
    assert found.layers[-1].note == "not used in evaluation: left out"
    assert any("left out: extra" in note for note in found.notes)


def test_fit_refuses_in_the_first_second_and_a_loop_of_ones_own_is_warned():
    x = torch.randn(6, 8)
    y = torch.arange(6) % 3

    class Two(nn.Module):
        """What it computes depends on who calls it."""

        def __init__(self):
            super().__init__()
            self.l = nn.Linear(8, 3)

        def forward(self, x):
            return self.l(x) * (2.0 if hasattr(self.l, "prior") else 1.0)

    model = pyro_bc.BayesianNetwork(Two(), num_data=6)
    guide = pyro_bc.FactorizedGuide(model)
    with pytest.raises(pyro_bc.errors.UnsupportedNetworkError, match="compute different things"):
        pyro_bc.fit(model, guide, [(x, y)], epochs=2, progress=False)
    again = pyro_bc.BayesianNetwork(Two(), num_data=6)
    with pytest.warns(UserWarning, match=r"cannot be compressed: .*compute different things"):
        pyro_bc.FactorizedGuide(again)(x, y)
    assert not pyro_bc.check(Two(), x).ok


def test_a_notebook_shows_the_table_and_no_name_is_markup():
    net = nn.Sequential()
    net.add_module("<b>one", nn.Linear(4, 8))
    net.add_module("two", nn.Linear(8, 3))
    found = pyro_bc.check(net, torch.randn(5, 4), prior=pyro_bc.GroupNormalJeffreys())
    shown = found._repr_html_()
    assert "&lt;b&gt;one" in shown and "<b>" not in shown and shown.count("<tr>") == 3
    assert all(remark in shown for remark in found.remarks) and "GroupNormalJeffreys" in shown
    assert "refused" in pyro_bc.check(net, torch.randn(5, 3))._repr_html_()


def test_a_network_is_held_few_times_when_it_is_compressed(monkeypatch):
    net = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 3))
    held = []

    def large():
        plain = (torch.Tensor, nn.Parameter)  # and none of those without storage that tracing leaves
        tensors = [
            own for own in gc.get_objects() if type(own) in plain and own.numel() >= 64 * 512 and not own.is_meta
        ]
        return {own.untyped_storage().data_ptr(): own.untyped_storage().nbytes() for own in tensors}

    def watched(*args, **options):
        own = [size for pointer, size in large().items() if pointer not in others]
        held.append(sum(own) / sum(4 * p.numel() for p in net.parameters()))
        return compress(*args, **options)

    gc.collect()
    others = large().keys() - {p.data_ptr() for p in net.parameters()}  # what other tests hold
    monkeypatch.setattr(pyro_bc.compression.check, "compress", watched)
    assert pyro_bc.check(net, torch.randn(3, 64), prior=pyro_bc.GroupNormalJeffreys()).ok
    assert held[0] < 4.5  # the user's, the one to be stored, means and variances


def test_a_network_in_double_precision_is_checked_as_it_is_stored():
    torch.set_default_dtype(torch.float64)
    try:
        net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        assert pyro_bc.check(net, torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])).problems == ()
    finally:
        torch.set_default_dtype(torch.float32)


def test_reading_a_network_and_a_posterior_moves_no_ones_noise():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))
    x, y = torch.ones(5, 4), torch.arange(5) % 3
    model = pyro_bc.BayesianNetwork(net, pyro_bc.StandardNormal(), num_data=20)
    guide = pyro_bc.FactorizedGuide(model)
    guide(x, y)
    before = torch.get_rng_state()
    pyro_bc.check(net, x, prior=pyro_bc.GroupNormalJeffreys())
    pyro_bc.compress(model, guide).to_bytes()
    pyro_bc.sensitivity(model, guide, [(x, y)])
    assert torch.equal(before, torch.get_rng_state())
