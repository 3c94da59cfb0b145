"""The KL's weight as a function of looks at held-out data."""

from dataclasses import replace

import pytest

from pyro_bc.inference.history import Epoch
from pyro_bc.inference.multiplier import LOOKS, best_look, is_looked_at, learned_weight

EPOCH = Epoch(1, 1.0, 1.0, 0.0, 1.0, 0.0, {}, 0.0)


def looks(*slacks):
    return [replace(EPOCH, slack=slack) for slack in slacks]


def test_the_weight_rises_where_there_is_room_and_falls_where_there_is_none():
    assert learned_weight([], 40) == pytest.approx(0.01)
    assert learned_weight(looks(1.0), 40) > learned_weight([], 40)
    before = learned_weight(looks(1.0, 1.0), 40)
    assert learned_weight(looks(1.0, 1.0, -2.0, -2.0), 40) < before
    assert learned_weight(looks(*[1.0] * 40), 40) == pytest.approx(2.0)
    assert learned_weight(looks(*[0.0] * 40), 40) == pytest.approx(learned_weight(looks(*[0.0] * 39), 40), rel=0.01)


def test_one_look_counts_for_so_much_only():
    assert learned_weight(looks(-1e9), 40) == learned_weight(looks(-2.0), 40)
    assert learned_weight(looks(-float("inf")), 40) == learned_weight(looks(-2.0), 40)


def test_epochs_without_a_look_change_nothing():
    assert learned_weight(looks(1.0, None, None), 400) == learned_weight(looks(1.0), 400)


@pytest.mark.parametrize("epochs", [1, 7, 49, 50, 120, 999])
def test_looks_are_about_as_many_and_the_last_epoch_has_one(epochs):
    found = [epoch for epoch in range(epochs) if is_looked_at(epoch, epochs)]
    assert found[-1] == epochs - 1
    assert len(found) == epochs if epochs < LOOKS else LOOKS <= len(found) <= 2 * LOOKS


def test_the_smallest_of_the_second_half_that_kept_the_target_is_gone_back_to():
    sizes = [(1, True), (50, False), (80, True), (60, True), (60, True), (70, True), (90, False), (40, False)]
    history = [replace(EPOCH, file_bytes=size, is_kept=kept) for size, kept in sizes]
    assert best_look(history, 8, 0) == 4  # the later of two
    assert best_look(history, 8, 5) == 5
    assert best_look(history[:2], 2, 0) is None
