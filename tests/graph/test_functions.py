"""Recurrent cells look at every shape, as torch's modules do, before they read memory by it."""

import pytest
import torch
from torch import nn

from pyro_bc.graph.functions import on_tensors

FORMS = [
    pytest.param(nn.LSTM(5, 3, 2, batch_first=True, bidirectional=True), id="lstm"),
    pytest.param(nn.LSTM(5, 4, bias=False, proj_size=2), id="lstm with a projection"),
    pytest.param(nn.GRU(5, 3, 2, bias=False, batch_first=True), id="gru"),
    pytest.param(nn.GRU(5, 3, bidirectional=True), id="gru of two directions"),
]


def call(cell, x, states, params):
    op = type(cell).__name__.lower()
    options = (cell.bias, cell.num_layers, 0.0, False, cell.bidirectional, cell.batch_first)
    return on_tensors(op)(x, states if op == "lstm" else states[0], params, *options)


@pytest.mark.parametrize("cell", FORMS)
def test_a_cell_computes_what_torchs_does_and_nothing_of_another_size(cell):
    x = torch.randn(4, 4, 5)
    layers = cell.num_layers * (1 + cell.bidirectional)
    told = cell.proj_size or cell.hidden_size
    states = [torch.randn(layers, 4, told), torch.randn(layers, 4, cell.hidden_size)]
    params = list(cell.parameters())
    with torch.no_grad():
        is_lstm = isinstance(cell, nn.LSTM)
        expected = cell(x, tuple(states) if is_lstm else states[0])[0]
        assert torch.equal(call(cell, x, states, params)[0], expected)
    other = [state[:, :2] for state in states]  # of another batch
    for wrong in (
        (x, other, params),
        (x, [state[1:] for state in states], params),
        (x[..., :3], states, params),
        (x, states, [torch.zeros(1) for _ in params]),
        (x, states, params[1:]),
        (x, states, [*params, params[0]]),
        (x[0], states, params),
        (x.double(), states, params),
    ):
        with pytest.raises((ValueError, TypeError)):
            call(cell, *wrong)
