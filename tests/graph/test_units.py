"""Units follow channels through operations; what is not followed stays."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pyro_bc.graph.read import read_graph
from pyro_bc.graph.unit_rules import Units, align
from pyro_bc.graph.units import Tracking


class Net(nn.Module):
    """Layers ``a`` (and ``b``) before any function of theirs, and ``end`` behind it."""

    def __init__(self, between, features, end=None):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 4, 1)
        self.between, self.end = between, end or nn.Linear(features, 2)

    def forward(self, x):
        return self.end(self.between(self.a(x), self.b(x)))


def units_of(net):
    tracking = Tracking(read_graph(net, torch.rand(2, 2, 6, 6)))

    def find(name, axis):
        return tracking.units.roots(tracking.tensors.get(name, {}).get(axis, []))

    return find, tracking.units.fixed()


def test_an_addition_makes_units_one_and_a_concatenation_puts_them_side_by_side():
    find, _ = units_of(Net(lambda a, b: (a + b).flatten(1), 4 * 36))
    assert find("a.weight", 0).tolist() == find("b.weight", 0).tolist()
    assert find("end.weight", 1).tolist() == np.repeat(find("a.weight", 0), 36).tolist()
    find, _ = units_of(Net(lambda a, b: torch.cat([a, b], 1).mean((2, 3)), 8))
    assert find("end.weight", 1).tolist() == [*find("a.weight", 0), *find("b.weight", 0)]


def test_a_depthwise_convolution_has_units_of_its_own_for_what_it_computes():
    net = Net(lambda a, b: a, 0, nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 1, 1)))
    tracking = Tracking(read_graph(net, torch.rand(2, 2, 6, 6)))
    find, _ = units_of(net)
    read = tracking.units.roots(tracking.grouped["end.0.weight"]).tolist()
    assert read == find("a.weight", 0).tolist() != find("end.0.weight", 0).tolist()
    assert find("end.0.weight", 0).tolist() == find("end.1.weight", 1).tolist()


def test_parts_of_an_axis_have_its_units_and_padding_has_new_ones():
    find, fixed = units_of(Net(lambda a, b: (a[:, 1:3] + b[:, :2]).flatten(1), 72))
    assert find("a.weight", 0)[1:3].tolist() == find("b.weight", 0)[:2].tolist()
    assert not set(find("a.weight", 0)) & fixed
    find, fixed = units_of(Net(lambda a, b: F.pad(a, (0, 0, 0, 0, 1, 2)).mean((2, 3)), 7))
    assert find("end.weight", 1)[1:5].tolist() == find("a.weight", 0).tolist()
    assert len(set(find("end.weight", 1))) == 7 and not set(find("end.weight", 1)) & fixed
    find, fixed = units_of(Net(lambda a, b: a[:, 2].flatten(1), 36))
    assert set(find("a.weight", 0)) & fixed == {find("a.weight", 0)[2]}


def test_a_normalisation_keeps_channels_apart_that_its_statistics_are_of():
    for norm in (lambda a: F.group_norm(a, 2), lambda a: F.layer_norm(a.transpose(1, -1), (4,)).transpose(1, -1)):
        find, fixed = units_of(Net(lambda a, b, norm=norm: norm(a).flatten(1), 144))
        assert find("end.weight", 1).tolist() == np.repeat(find("a.weight", 0), 36).tolist()
        assert not set(find("a.weight", 0)) & fixed


@pytest.mark.parametrize(
    "between,features",
    [
        (lambda a, b: F.layer_norm(a, (4, 6, 6)).flatten(1), 144),
        (lambda a, b: a.softmax(1).flatten(1), 144),
        (lambda a, b: (a * b[:, :1]).flatten(1), 144),  # b's first entries meet all of a's
        (lambda a, b: a.amax(1).flatten(1), 36),
        (lambda a, b: F.pixel_shuffle(a, 2).flatten(1), 144),
    ],
)
def test_what_mixes_units_fixes_them(between, features):
    find, fixed = units_of(Net(between, features))
    held = set(find("a.weight", 0)) | set(find("b.weight", 0))
    assert held & fixed  # b is not even read, but by the third


def test_the_output_stays():
    find, fixed = units_of(nn.Sequential(nn.Flatten(), nn.Linear(72, 3)))
    assert set(find("1.weight", 0)) <= fixed


def test_disjoint_sets_against_plain_labels():
    rng = np.random.default_rng(0)
    for _ in range(50):
        units, labels = Units(), np.arange(20)
        units.new(20)
        for a, b in rng.integers(0, 20, (12, 2)):
            units.join(np.array([a]), np.array([b]))
            labels[labels == labels[b]] = labels[a]
        roots = units.roots(range(20))
        assert all((roots[i] == roots[j]) == (labels[i] == labels[j]) for i in range(20) for j in range(20))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.data())
def test_aligned_runs_hold_the_same_elements(sizes, data):
    cuts = sorted(data.draw(st.sets(st.integers(1, len(sizes) - 1)) if len(sizes) > 1 else st.just(set())))
    merged = [int(np.prod(part)) for part in np.split(np.array(sizes), cuts)]
    runs = align(("batch", *sizes), ("batch", *merged))
    assert runs[0] == ([0], [0])
    for old, new in runs[1:]:
        assert np.prod([sizes[i - 1] for i in old]) == np.prod([merged[j - 1] for j in new])
    assert sorted(i for old, _ in runs for i in old) == list(range(len(sizes) + 1))
