"""The KL's weight as a function of looks at held-out data."""

import math
from dataclasses import replace

import pytest

from pyro_bc.inference.history import Epoch
from pyro_bc.inference.multiplier import (
    LOOKS,
    Errors,
    best_look,
    guarded_weight,
    is_looked_at,
    learned_weight,
    nearest_look,
    usual_weight,
)

EPOCH = Epoch(1, 1.0, 1.0, 0.0, 1.0, 0.0, {}, 0.0)


def looks(*slacks):
    return [replace(EPOCH, slack=slack) for slack in slacks]


def sizes(*slacks):
    """Looks at files that are too large, by so many octaves."""
    return [
        replace(look, is_kept=look.slack <= 0, held_out_error=3.0, cost=3.0, file_bytes=900) for look in looks(*slacks)
    ]


def test_the_weight_rises_first_then_follows_what_is_left_and_is_held_at_last():
    assert learned_weight([], 40) == pytest.approx(0.01)
    assert learned_weight(looks(*[1.0] * 10), 40) == pytest.approx(0.1)
    assert learned_weight(looks(*[-0.5] * 10), 40) == pytest.approx(0.1)  # errors are high while rates are
    assert learned_weight(looks(*[-2.0] * 10), 40) < 0.01  # that is a collapse
    assert learned_weight(looks(*[1.0] * 28), 40) == pytest.approx(10.0)
    low = learned_weight(looks(*[1.0] * 10, *[-1.0] * 18), 40)
    assert low < 0.1
    swinging = looks(*[1.0] * 10, *[1.0, -1.0] * 9)
    held = [learned_weight([*swinging, *looks(*[1.0] * more)], 40) for more in range(1, 12)]
    assert held == pytest.approx([held[0]] * 11)  # room at the end is left for rounding
    assert learned_weight([*swinging, *looks(1.0, -2.0, -2.0)], 40) < held[0]
    assert learned_weight([*swinging, *sizes(1.0, 1.0, 1.0)], 40) > held[0]
    within_noise = [replace(look, is_kept=False, held_out_error=3.0, cost=900) for look in looks(0.3, 0.3, 0.3)]
    assert learned_weight([*swinging, *within_noise], 40) == pytest.approx(held[0])  # more would only miss it by more


def test_a_size_that_is_far_off_makes_the_weight_rise_faster_and_it_is_not_held_below_what_it_came_to():
    risen = looks(*[1.0] * 10)
    once = learned_weight([*risen, *looks(*[1.0] * 7)], 40) / 0.1
    falling = [9.0 - 0.1 * look for look in range(7)]
    assert once < learned_weight([*risen, *sizes(*falling)], 40) / 0.1 < once**3
    noisy = learned_weight([*risen, *sizes(9.0, 8.0, 9.0, 8.0, 9.0, 8.0, 9.0)], 40) / 0.1
    assert noisy == pytest.approx(once)  # scales of groups leave at once when they do
    rising = [*risen, *sizes(*[0.2] * 18)]
    assert learned_weight([*rising, *sizes(0.2)], 40) >= learned_weight(rising, 40)
    assert learned_weight([*rising, *looks(0.2)], 40) < learned_weight(rising, 40)  # of a target in errors


def test_a_size_that_fell_once_or_falls_less_and_less_is_not_taken_for_one_that_falls_on():
    risen = looks(*[1.0] * 10)
    steady = [*risen, *sizes(3.0, 2.6, 2.2, 1.8, 1.4, 1.0)]
    rounded = [*risen, *sizes(3.0, 2.98, 2.96, 2.94, 1.02, 1.0)]
    slower = [*risen, *sizes(3.0, 2.0, 1.5, 1.25, 1.1, 1.0)]
    before = [learned_weight(own[:-1], 40) for own in (steady, rounded, slower)]
    after = [learned_weight(own, 40) for own in (steady, rounded, slower)]
    changed = [b / a for a, b in zip(before, after, strict=True)]
    assert changed[0] < 1.1 < min(changed[1:])


def test_what_learns_by_heart_needs_more_of_the_kl_until_it_has_risen():
    by_heart = [replace(own, error=15.0, held_out_error=50.0) for own in looks(*[-5.0] * 40)]
    not_so = [replace(own, error=40.0, held_out_error=50.0) for own in by_heart]
    broken = [replace(own, train_error=45.0) for own in by_heart]  # by what pruning left of it
    assert learned_weight(by_heart[:10], 40) == pytest.approx(0.1)
    assert 0.05 < learned_weight(by_heart[:20], 40) < 0.3
    assert learned_weight(by_heart, 40) < 0.05  # in the end the target counts
    assert learned_weight(not_so[:20], 40) < 0.01
    assert learned_weight(broken[:20], 40) < 0.01


def test_a_target_that_is_missed_for_being_too_close_to_the_training_data_needs_more_of_the_kl():
    missed = looks(*[-5.0] * 28)
    missed = [replace(own, error=0.7, train_error=0.6, held_out_error=0.9, is_kept=False) for own in missed]
    assert learned_weight(missed, 40, Errors(0.6, 0.8)) == pytest.approx(2.0, rel=0.5)
    assert (
        learned_weight(missed, 40, Errors(0.6, 1.0)) < 0.01
    )  # as far from each other as before: too little is learned
    assert learned_weight(missed, 40, Errors(0.0, 0.8)) < 0.01  # says nothing
    assert learned_weight(missed, 40) < 0.01
    pruned = [replace(own, train_error=0.9) for own in missed]  # what pruning loses is lost on both
    assert learned_weight(pruned, 40, Errors(0.6, 0.8)) < 0.01
    small_enough = [replace(own, is_kept=True) for own in missed]  # a file that is smaller than it has to be
    assert learned_weight(small_enough, 40, Errors(0.6, 0.8)) < 0.01


def test_without_a_target_the_weight_is_that_of_examples_beside_weights():
    assert usual_weight(1437, [6400, 1000]) == pytest.approx(1437 / 7400)
    assert usual_weight(60_000, [100, 10]) == 1.0
    assert usual_weight(10, []) == 1.0  # a model without layers


def test_without_a_target_the_weight_gives_way_and_comes_back_but_not_at_last():
    assert guarded_weight([], 40, 0.3) == pytest.approx(0.3)
    assert guarded_weight(looks(*[-50.0] * 10), 40, 0.3) == pytest.approx(0.3)  # of the warm-up
    low = guarded_weight(looks(*[1.0] * 10, *[-1.0] * 6), 40, 0.3)
    assert low < 0.1
    assert low < guarded_weight(looks(*[1.0] * 10, *[-1.0] * 6, *[1.0] * 3), 40, 0.3) < 0.3
    assert guarded_weight(looks(*[1.0] * 10, *[-1.0] * 6, *[1.0] * 9), 40, 0.3) == pytest.approx(0.3)
    late = looks(*[1.0] * 10, *[-1.0] * 18)
    assert guarded_weight([*late, *looks(*[1.0] * 9)], 40, 0.3) == pytest.approx(guarded_weight(late, 40, 0.3))
    assert guarded_weight(looks(*[-50.0] * 39), 40, 0.3) == pytest.approx(0.003)
    assert guarded_weight(looks(*[1.0] * 39), 40, 0.3) == pytest.approx(0.3)


def test_it_is_held_at_the_mean_of_the_looks_before():
    followed = looks(*[1.0] * 10, *[0.3, -0.2] * 9)
    logs = [math.log(learned_weight(followed[:at], 40)) for at in range(21, 29)]
    assert learned_weight([*followed, *looks(0.5)], 40) == pytest.approx(math.exp(sum(logs) / 8))


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
    history = [replace(EPOCH, cost=size, slack=0.1, is_kept=kept) for size, kept in sizes]
    assert best_look(history, 8, 0) == 4  # the later of two
    assert best_look(history, 8, 5) == 5


def test_a_collapse_goes_back_to_the_look_that_kept_the_target_or_came_closest():
    errors = [replace(look, is_kept=False) for look in looks(-1.0, -1.0, -3.0, -0.5, -0.9, -math.inf)]
    assert nearest_look(errors) == 3 and best_look(errors, 6, 0) is None
    early = replace(EPOCH, slack=0.9, cost=900, file_bytes=900, is_kept=True)
    assert nearest_look([early, *errors]) == 0 and best_look([early, *errors], 7, 0) is None
    too_large = [*sizes(1.0, 1.0, 0.5, 0.4, 0.6), replace(EPOCH, slack=-math.inf, is_kept=False)]
    assert nearest_look(too_large) == 3
    assert nearest_look(too_large[-1:]) is None


def test_sizes_that_follow_late_do_not_end_far_below_what_is_allowed():
    history, left = [], 3.2  # octaves above what is allowed
    for _ in range(40):
        weight = learned_weight(history, 40)
        settled = 3.2 - math.log2(weight / 0.01)
        left += min(0.0, settled - left) / 8  # what is removed does not come back
        history += [replace(EPOCH, slack=left, is_kept=left <= 0)]
    assert -0.15 < left < 0.1
