"""Streamed examples are the tensor that they stand for, read in the parts that are asked for and no others."""

import torch
from torch.utils.data import DataLoader, TensorDataset

import pyro_bc
from pyro_bc.data import Batches, Streamed

WHOLE = torch.arange(40.0).reshape(20, 2)


def streamed():
    read: list[int] = []

    def rows(index):
        read.append(len(index))
        return WHOLE[index]

    return Streamed(rows, torch.arange(20), (2,)), read


def test_what_is_chosen_and_read_is_what_a_tensor_gives():
    x, read = streamed()
    assert len(x) == 20 and x.shape == WHOLE.shape and x.dim() == 2 and x.is_floating_point()
    order = torch.randperm(20)
    mixed = x.index_select(0, order).narrow(0, 3, 10).to("cpu")
    assert read == []  # choosing reads nothing
    assert torch.equal(mixed[:], WHOLE[order][3:13]) and torch.equal(mixed[2:4], WHOLE[order][5:7])
    parts = mixed.split(4)
    assert [len(part) for part in parts] == [4, 4, 2] and len(parts) == 3
    assert torch.equal(torch.cat(list(parts)), mixed[:]) and torch.equal(torch.cat(list(parts)), mixed[:])
    assert [part.shape[0] for part in mixed.split([3, 7])] == [3, 7] and torch.equal(parts[1:][0], parts[1])


def test_batches_read_one_batch_at_a_time_and_are_those_of_a_tensor():
    x, read = streamed()
    y = torch.arange(20)
    for shuffle in (True, False):
        torch.manual_seed(0)
        found = list(Batches(x, y, 6, shuffle))
        torch.manual_seed(0)
        for (a, b), (c, d) in zip(found, Batches(WHOLE, y, 6, shuffle), strict=True):
            assert torch.equal(a, c) and torch.equal(b, d)
    assert max(read) == 6


def test_a_loader_of_torchs_with_workers_trains_and_compresses():
    torch.manual_seed(0)
    x = torch.randn(60, 4)
    loader = DataLoader(
        TensorDataset(x, (x[:, 0] > 0).long()), batch_size=20, shuffle=True, num_workers=2, persistent_workers=True
    )
    model = pyro_bc.BayesianNetwork(torch.nn.Sequential(torch.nn.Linear(4, 2)), pyro_bc.GroupHorseshoe(), num_data=60)
    guide = pyro_bc.FactorizedGuide(model)
    result = pyro_bc.fit(model, guide, loader, epochs=3, progress=False, learning_rate=0.05)
    assert result.history[-1].error < result.history[0].error + 10 and len(result.history) == 3
    assert pyro_bc.compress(model, guide).network()(x).shape == (60, 2)
