"""What a network ends in: which outputs can be shifted and scaled, told from nets whose ranges are known."""

import pytest
import torch
from torch import nn

from pyro_bc.graph.ending import last_operation, outputs_are_free, outputs_are_positive
from pyro_bc.graph.read import read_graph


class Ends(nn.Module):
    def __init__(self, end):
        super().__init__()
        self.fc, self.end = nn.Linear(3, 2), end

    def forward(self, x):
        return self.end(self.fc(x))


@pytest.mark.parametrize(
    ("end", "last", "is_free", "is_positive"),
    [
        (lambda z: z, "linear", True, False),
        (lambda z: z[:, :1].squeeze(-1), "linear", True, False),
        (lambda z: z.tanh() + z, "add", True, False),
        (lambda z: torch.cat([z.exp(), z], 1), "cat", True, False),
        (lambda z: 3 + 5 * z.sigmoid(), "add", False, False),
        (lambda z: z.relu().unsqueeze(1), "relu", False, True),
        (lambda z: nn.functional.softplus(z), "softplus", False, True),
        (lambda z: z.clamp(0, 1), "clamp", False, False),
        (lambda z: z.softmax(-1).view(-1, 2, 1), "softmax", False, False),
    ],
)
def test_outputs_are_as_free_as_what_makes_them(end, last, is_free, is_positive):
    graph = read_graph(Ends(end), torch.randn(2, 3))
    assert (last_operation(graph), outputs_are_free(graph), outputs_are_positive(graph)) == (last, is_free, is_positive)
