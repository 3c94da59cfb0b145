"""A narrow network counts against the dense one that it stands for."""

import pytest
import torch
from torch import nn

from pyro_bc import BayesianNetwork, FactorizedGuide, LearnedCode, compress
from pyro_bc.app.narrow import narrowed
from pyro_bc.app.networks import lenet_5_caffe
from pyro_bc.errors import UsageError
from pyro_bc.file.compressed import read_sections
from pyro_bc.graph.module import GraphNetwork
from pyro_bc.graph.read import read_graph
from pyro_bc.quantisation.grids import spatial_grids


def test_a_narrow_network_counts_against_the_dense_one():
    dense = lenet_5_caffe()
    graph = narrowed(read_graph(dense, torch.rand(2, 1, 28, 28)), (4, 6, 8))
    assert [tuple(t.shape) for t in graph.tensors.values()] == [
        (4, 1, 5, 5), (4,), (6, 4, 5, 5), (6,), (8, 96), (8,), (10, 8), (10,),
    ]  # fmt: skip
    assert spatial_grids(graph)["fc1.weight"] == (4, 4)
    model = BayesianNetwork(GraphNetwork(graph.nodes, graph.tensors), LearnedCode(), num_data=10)
    guide = FactorizedGuide(model)
    guide(torch.rand(2, 1, 28, 28), torch.zeros(2).long())
    small = compress(model, guide, dense=dense)
    assert small.dense_parameters == 431_080 and small.dense_shapes["fc1.weight"] == (500, 800)
    with pytest.raises(UsageError, match="no wider network"):
        compress(model, guide, dense=nn.Sequential(nn.Flatten(), nn.Linear(784, 10)))
    header = read_sections(small.to_bytes())[1]["header"]
    assert header < 40 and small.compression().pruning > 100
    for widths in ((4, 6), (21, 6, 8), (4, 0, 8)):
        with pytest.raises(UsageError, match="20-50-500"):
            narrowed(read_graph(dense, torch.rand(2, 1, 28, 28)), widths)
    with pytest.raises(UsageError, match="chain"):
        narrowed(read_graph(nn.Sequential(nn.Linear(3, 2), nn.LeakyReLU()), torch.rand(2, 3)), (2,))
