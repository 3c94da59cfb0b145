"""Examples become parts: disjoint, always the same, of every class as much; targets are as a likelihood takes them."""

import pytest
import torch

from pyro_bc.app.examples import Examples, dataset_of, mixed
from pyro_bc.app.observed import LIKELIHOODS, likelihood_named
from pyro_bc.errors import DataError, UsageError
from pyro_bc.model.likelihoods import Categorical, Normal

X = torch.arange(200.0)[:, None]
Y = (torch.arange(200) >= 160).long()  # sorted, as files are: 160 of one class, 40 of the other


def test_any_part_of_the_mixed_order_has_as_much_of_every_class():
    order = mixed(Y)
    assert torch.equal(order.sort()[0], torch.arange(200))
    for start in range(0, 200, 20):
        assert int(Y[order[start : start + 20]].sum()) in (3, 4, 5)
    assert not torch.equal(order, mixed(Y, seed=1)) and torch.equal(order, mixed(Y))
    assert not torch.equal(mixed(X[:, 0]), torch.arange(200))  # of numbers: any order


def test_a_tenth_is_split_off_where_there_is_no_test_part():
    data = dataset_of("a/set.npz", Examples("numbers", X, Y), None)
    assert (data.name, len(data.train_x), len(data.test_x), data.held_out) == ("set", 180, 20, 18)
    assert torch.equal(torch.cat([data.train_x, data.test_x]).sort(0)[0], X)
    assert data.test_part == "test data that were split off"
    assert torch.equal(data.test_y, (data.test_x[:, 0] >= 160).long()) and int(data.test_y.sum()) == 4
    assert data.classes == 2 and data.likelihood == Categorical()
    assert int(data.development().test_y.sum()) in (3, 4) and len(data.development().test_x) == 18


def test_parts_that_are_given_stay_apart_and_those_for_choices_come_last():
    found = Examples("numbers", X, Y, X[:7] + 1000, Y[:7], held_out=50)
    data = dataset_of("set", found, None)
    assert torch.equal(data.test_x, X[:7] + 1000) and data.test_part == "test set" and data.held_out == 50
    held = data.development()
    assert torch.equal(held.test_x.sort(0)[0], X[150:]) and torch.equal(held.train_x.sort(0)[0], X[:150])


def test_targets_are_what_the_likelihood_takes():
    numbers = dataset_of("set", Examples("numbers", X, X[:, :1].double()), None)
    assert isinstance(numbers.likelihood, Normal) and numbers.train_y.dtype == torch.float32
    assert numbers.train_y.shape == (180,) and numbers.classes == 0
    assert dataset_of("set", Examples("", X, Y), "gaussian").train_y.dtype == torch.float32
    assert dataset_of("set", Examples("", X, Y.double()), "categorical").train_y.dtype == torch.int64
    unknown = dataset_of("set", Examples("", X, None), None)
    assert not unknown.has_targets and unknown.classes == 0
    with pytest.raises(DataError, match=r"no class numbers, but numbers such as 0\.5"):
        dataset_of("set", Examples("", X, X[:, 0] / 2), "categorical")
    with pytest.raises(DataError, match="NaN"):
        dataset_of("set", Examples("", X, X[:, 0] / 0), None)
    with pytest.raises(DataError, match="of one part, but not of the other"):
        dataset_of("set", Examples("", X, Y, X, None), None)
    with pytest.raises(DataError, match=r"1 example"):
        dataset_of("set", Examples("", X[:1], Y[:1]), None)
    with pytest.raises(UsageError, match="unknown likelihood 'cauchy'"):
        dataset_of("set", Examples("", X, Y), "cauchy")


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_likelihood_is_made_by_its_name(name):
    assert type(likelihood_named(name)).__name__.lower() == name.replace("-", "")


def test_rows_with_a_single_1_are_not_taken_for_numbers_unasked():
    rows = torch.eye(3)[torch.arange(30) % 3]
    found = Examples("numbers", torch.randn(30, 4), rows)
    with pytest.raises(DataError, match="soft-categorical for classes, bernoulli for labels, or normal"):
        dataset_of("own", found, None)
    for likelihood in ("soft-categorical", "normal"):
        assert dataset_of("own", found, likelihood).train_y.shape[1] == 3
    assert dataset_of("own", Examples("numbers", torch.randn(30, 4), 2 * rows), None).train_y.shape[1] == 3
