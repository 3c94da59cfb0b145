"""Recurrent layers: sites per matrix, units that leave with their gates, and the same outputs all the way."""

import pyro
import pytest
import torch
from helpers import set_up
from torch import nn

import pyro_bc
from pyro_bc import GroupNormalJeffreys, LearnedCode, StandardNormal
from pyro_bc.graph.onnx import to_onnx
from pyro_bc.inference.elbo import elbo_terms
from pyro_bc.inference.straight_through import settle_codes_
from pyro_bc.inspection.diagnostics import mean_network


class Reader(nn.Module):
    """Something before a recurrent layer, and something that reads its last output or its last state."""

    def __init__(self, kind, state=False, **options):
        super().__init__()
        self.before = nn.Linear(3, 5)
        self.cells = kind(5, 6, batch_first=True, **options)
        self.after = nn.Linear(6 if state else 6 * (1 + self.cells.bidirectional), 4)
        self.state = state

    def forward(self, x):
        outputs, last = self.cells(torch.tanh(self.before(x)))
        return self.after((last[0] if isinstance(last, tuple) else last)[-1] if self.state else outputs[:, -1])


# Hidden units of each layer that are left of six, where the second and the fourth are read by nothing.
CASES = {
    "lstm": (lambda: Reader(nn.LSTM), (4,)),
    "gru, two layers": (lambda: Reader(nn.GRU, num_layers=2), (4, 4)),
    "rnn, both directions": (lambda: Reader(nn.RNN, bidirectional=True, nonlinearity="relu"), (4,)),
    "gru, its state": (lambda: Reader(nn.GRU, state=True, bias=False), (4,)),
    "lstm, states of two layers": (lambda: Reader(nn.LSTM, state=True, num_layers=2), (6, 6)),
}


def centres(guide):
    return {name: q.centre.round() if hasattr(q, "centre") else q.mean for name, q in guide.posterior().items()}


def forget(guide, units=(1, 3)):
    """Let nothing read some hidden units, of either direction."""
    with torch.no_grad():
        for name in guide.families:
            if name.endswith("weight"):
                weight = guide.parameters_of(name)[0]
                of_units = "weight_hh" in name or "after" in name or "ih_l1" in name
                for unit in (u for first in range(0, weight.shape[1], 6) for u in (first + units[0], first + units[1])):
                    if of_units and f"{name.removesuffix('weight')}scale" in guide.families:
                        guide.parameters_of(f"{name.removesuffix('weight')}scale")[0][unit] = 1e-9
                    elif of_units:
                        weight[:, unit] = 0


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("prior", [GroupNormalJeffreys(), LearnedCode()], ids=lambda p: type(p).__name__)
def test_units_that_nothing_reads_leave_and_the_rest_computes_the_same(tmp_path, case, prior):
    make, left = CASES[case]
    net, x = make(), torch.randn(10, 7, 3)
    model, guide = set_up(net, x, prior, num_data=10)
    settle_codes_(guide)
    forget(guide)
    layers = [name.removeprefix("net.") for name in guide.layers]
    thresholds = None if isinstance(prior, LearnedCode) else dict.fromkeys(layers, 15.0)
    small = pyro_bc.compress(model, guide, thresholds=thresholds, noise_ratio=1e-8)
    small.save(tmp_path / "net.pbc")
    loaded = pyro_bc.load(tmp_path / "net.pbc")
    with torch.no_grad():
        expected = pyro.poutine.condition(model, data=centres(guide))(x)
        assert torch.allclose(loaded(x), expected, atol=1e-4 * float(expected.abs().max()))
    hidden = [small.tensors[f"cells.weight_hh_l{layer}.weight"].codes.shape for layer in range(len(left))]
    assert [shape[1] for shape in hidden] == list(left)
    assert all(rows % columns == 0 for rows, columns in hidden)
    if thresholds and case in ("lstm", "rnn, both directions"):
        assert to_onnx(small, tmp_path / "net.onnx") < 1e-5


def test_every_matrix_has_sites_of_its_own_and_draws_what_torch_computes():
    net, x = Reader(nn.LSTM, num_layers=2), torch.randn(4, 5, 3)
    model, guide = set_up(net, x, StandardNormal(), num_data=4)
    matrices = [f"net.cells.weight_{part}_l{layer}" for layer in (0, 1) for part in ("ih", "hh")]
    assert {name for name in guide.families if "cells" in name} == {
        f"{matrix}.{role}" for matrix in matrices for role in ("weight", "bias")
    }
    y = torch.zeros(4).long()
    terms = elbo_terms(model, guide, x, y)
    assert set(terms.kl) == set(guide.families) and not list(model.named_parameters())
    means = centres(guide)
    with torch.no_grad():
        assert torch.allclose(pyro.poutine.condition(model, data=means)(x), net(x), atol=1e-6)
        assert torch.allclose(mean_network(model, guide)(x), net(x), atol=1e-6)
    assert model.net.cells.hidden_size == 6 and model.net.cells.batch_first


def test_gradients_of_drawn_matrices_are_those_of_finite_differences():
    net, x = Reader(nn.GRU).double(), torch.randn(3, 4, 3).double()
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        layer = pyro_bc.BayesianRecurrent(net.cells, StandardNormal())
        values = {f"{name}.{role}": v for name in layer.matrices for role, v in getattr(layer, name).pretrained.items()}
        weight = values["weight_hh_l0.weight"].requires_grad_()
        inputs = net.before(x).detach()

        def total():
            return pyro.poutine.condition(layer, data=values)(inputs)[0].square().sum()

        (gradient,) = torch.autograd.grad(total(), weight)
        with torch.no_grad():
            for at in ((0, 0), (7, 3), (17, 5)):
                weight[at] += 1e-6
                above = total()
                weight[at] -= 2e-6
                below = total()
                weight[at] += 1e-6
                assert torch.allclose((above - below) / 2e-6, gradient[at], rtol=1e-5, atol=1e-8)
    finally:
        torch.set_default_dtype(default)


def test_a_fit_and_curvature_go_all_the_way():
    net, x = Reader(nn.LSTM), torch.randn(40, 6, 3)
    y = (x[:, -1, 0] > 0).long()
    model = pyro_bc.BayesianNetwork(net, GroupNormalJeffreys(), num_data=40)
    guide = pyro_bc.FactorizedGuide(model)
    loader = pyro_bc.data.Batches(x, y, 20)
    history = pyro_bc.fit(model, guide, loader, epochs=40, learning_rate=1e-2, progress=False).history
    assert history[-1].loss < history[0].loss
    model = pyro_bc.BayesianNetwork(net, StandardNormal(), num_data=10**6)
    guide = pyro_bc.CurvatureGuide(model, [x], progress=False)
    small = pyro_bc.compress(model, guide, nats_per_bit=1e-6)
    with torch.no_grad():
        assert torch.allclose(small.network()(x), net(x), atol=0.02 * float(net(x).abs().max()))
    assert small.tensors["cells.weight_hh_l0.weight"].bits < 24  # as finely as it is known, and no more


def test_what_is_frozen_named_or_projected_stays_as_it_is():
    net, x = Reader(nn.LSTM), torch.randn(4, 5, 3)
    guide = set_up(net, x, lambda name, module: None if name == "cells" else StandardNormal(), num_data=4)[1]
    assert {name.rpartition(".")[0] for name in guide.families} == {"net.before", "net.after"}
    net = nn.Sequential(nn.Linear(3, 5), nn.LSTM(5, 6, proj_size=2))
    with pytest.warns(UserWarning, match="left deterministic.*'1'"):
        pyro_bc.bayesianize(net, StandardNormal())
