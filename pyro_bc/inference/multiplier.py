r"""The weight of the KL where nobody says one.

**With a target** it is a Lagrange multiplier that is learned while training (Rezende and Viola 2018, 1810.00597).
What a user has is a constraint, so much error or so many bytes, and not a weight. The weight has three parts of the
training. It rises, as a warm-up, to one at which most networks begin to lose groups; then it follows every look at
held-out data,

.. math:: \log w \leftarrow \log w + \rho\, \bar s, \qquad \bar s \leftarrow \tfrac12 (\bar s + s),

where s is the part of what is allowed that is left (:class:`~pyro_bc.posterior.standing.Standing`): it rises while the
constraint is kept with room, and falls where it is not. What a weight does is seen many epochs later, and what it has
removed seldom comes back; where s falls from look to look, as sizes do, it is where it is going that counts. And last
it is held at the mean of what it came to, while learning rates fall and the posterior settles, and follows only where
the constraint is not kept. A size that falls from look to look has no noise: where it is going to a multiple of what is
allowed, the weight rises up to three times as fast, since what is to leave has to do so while rates are high. Looks of
the first part say little: rates are high, and errors with them, so that only a clear loss stops the rise. And where
what compression leaves knows what it was trained on more than twice as well as what it was not, it is not the KL that
costs error: until it has risen, its weight then rises on, before it is held. So it does then, and further, where a
target is missed and the error on held-out data is more times that on training data than it was for the network from
which the fit started.

**Without a target** it is the number of training examples over that of the weights, at most 1. A mean-field posterior
pays for every weight alone, some nats each, whether the data say much about it or not; where there are many times
fewer examples than weights, the whole KL is more than the data could ever repay, and the ELBO is highest where much
that predicts well is pruned. So weighted, the KL of an example is about that of a weight, however large the network
is. Scales of groups are few, and do not count. The weight then only gives way: every look at some training examples
compares the network that compression would make of the posterior with the posterior mean, and

.. math:: \log w \leftarrow \min(\log w + \rho\, s,\; \log w_0),

where s is what is left of what compression may cost: a hundredth of a nat an example, or 0.3 points of the error,
where errors are counted. It falls to a hundredth of w0 at most, and in the last part of the training it rises no more.

Either is a function of the looks so far, so that a resumed fit goes on with it.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from ..compression.look import Look
from ..posterior.standing import Standing
from .history import Epoch

# The first weight, the one that it rises to, the largest where held-out data do not ask for it, and the largest.
_FIRST, _RISEN, _UNASKED, _MOST = 1e-2, 1e-1, 2.0, 10.0

# Parts of a training: where it stops to rise, and to follow, and where the looks begin that say what it is held at.
_RISE, _FOLLOW, _COUNTED = 0.25, 0.7, 0.5

# By which factor it can change while it follows, and what counts as a clear loss.
_RANGE, _CLEAR = 1e2, -1.0

# The part of its error on held-out data below which the error on what it is trained on says that it learns by heart.
_BY_HEART = 0.5

# Looks that fall one after the other show where s is going: to where it is after this part of all looks. A size has
# until about the middle of the training, when rates are still high.
_FALLING, _AHEAD, _REACHED = 5, 0.16, 0.45

# Least and most that one look counts for; more where a file is a multiple of what is allowed, as sizes have no noise.
_LEAST, _ROOM, _FAR = -2.0, 1.0, 3.0

# Least that a file counts for that is still too large when rates fall, as little follows by then.
_LATE = 0.5

# Where a weight without a target begins to give way: after the warm-up.
_GUARDED_FROM = 0.25

#: looks at held-out data in one training, where it has as many epochs.
LOOKS = 50


class Errors(NamedTuple):
    """Of one network, on some of its training data, and on what it was not trained on."""

    train: float
    held_out: float


class Watch(Protocol):
    """Judges a fit as it is now."""

    def __call__(self, now: Look) -> Standing: ...


def is_looked_at(epoch: int, epochs: int) -> bool:
    """Whether held-out data are looked at after an epoch, counted from 0: always after the last one."""
    every = max(1, epochs // LOOKS)
    return (epoch + 1) % every == 0 or epoch + 1 == epochs


def usual_weight(examples: int, weights: Iterable[int]) -> float:
    """The KL's weight where nothing else is known of network and data.

    :param examples: of the training set.
    :param weights: how many each layer has.

    >>> usual_weight(1400, [6400, 600]), usual_weight(60_000, [7000])
    (0.2, 1.0)
    """
    return min(1.0, examples / max(1, sum(weights)))


def guarded_weight(history: Sequence[Epoch], epochs: int, most: float) -> float:
    """The KL's weight in the epoch that follows, where compression may cost little.

    :param most: where it begins, and what it never is above.
    """
    pace = math.log(_RANGE) / ((_FOLLOW - _GUARDED_FROM) * min(epochs, LOOKS))
    change = 0.0
    for at, record in enumerate(history, 1):
        if record.slack is None or at <= _GUARDED_FROM * epochs:
            continue
        slack = min(_ROOM, max(_LEAST, record.slack))
        change += pace * (slack if at <= _FOLLOW * epochs else min(0.0, slack))
        change = min(0.0, max(-math.log(_RANGE), change))
    return most * math.exp(change)


def learned_weight(history: Sequence[Epoch], epochs: int, before: Errors | None = None) -> float:
    """The KL's weight in the epoch that follows.

    :param before: of the network that the fit started from; None where they are not known.
    """
    looks = min(epochs, LOOKS)
    rising = math.log(_RISEN / _FIRST) / (_RISE * looks)
    pace = math.log(_RANGE) / ((_FOLLOW - _RISE) * looks)
    weight, mean = math.log(_FIRST), _ROOM
    counted: list[float] = []
    seen: list[float] = []
    is_held = False
    for at, record in enumerate(history, 1):
        if record.slack is None:
            continue
        seen.append(record.slack)
        is_too_large = record.is_kept is False and record.slack > 0 and _is_of_size(record)
        slack = _counts_for(seen, is_too_large, at / epochs, looks)
        is_too_close = before is not None and record.is_kept is False and _is_closer(record, before)
        may_rise = at <= _FOLLOW * epochs and weight < math.log(_RISEN)
        is_by_heart = may_rise and not _is_of_size(record) and _learns_by_heart(record)
        if slack < 0 and (is_by_heart or (is_too_close and weight < math.log(_UNASKED))):
            slack = _ROOM
        must_rise = is_too_large and slack > 0
        mean = 0.5 * (mean + slack)
        if at <= _RISE * epochs:
            weight += rising if _CLEAR < mean <= _ROOM else pace * mean
        elif at <= _FOLLOW * epochs:
            weight += pace * mean
        elif is_held or not counted:
            weight += pace * (max(_LATE, mean) if must_rise else min(0.0, mean))
        else:
            level = sum(counted) / len(counted)
            weight, is_held = max(weight, level) if must_rise else level, True
        weight = min(weight, math.log(_MOST))
        if _COUNTED * epochs < at <= _FOLLOW * epochs:
            counted.append(weight)
    return math.exp(weight)


def _counts_for(slacks: Sequence[float], is_too_large: bool, part: float, looks: int) -> float:
    """What the last look says of the weight: where what is left is going to, within bounds.

    :param is_too_large: whether it is a file that has to be smaller.
    :param part: of the training that is over.
    :param looks: in the whole training.
    """
    if not _falls(slacks):
        return min(_ROOM, max(_LEAST, slacks[-1]))
    ahead = max(_AHEAD, _REACHED - part) if is_too_large else _AHEAD
    return min(_FAR if is_too_large else _ROOM, max(_LEAST, _going_to(slacks, ahead * looks)))


def _falls(slacks: Sequence[float]) -> bool:
    """Whether what is left falls steadily, and there is some."""
    last = slacks[-_FALLING - 1 :]
    is_steady = len(last) > _FALLING and all(b < a for a, b in itertools.pairwise(last))
    return is_steady and math.isfinite(last[0]) and last[-1] > 0


def _going_to(slacks: Sequence[float], looks: float) -> float:
    """Where what falls steadily will be in so many looks, by steps that become as much smaller as they have.

    The least of them counts, as codes fall once when they are rounded.
    """
    steps = [a - b for a, b in itertools.pairwise(slacks[-_FALLING - 1 :])]
    shrinks = min(0.999, (steps[-1] / steps[0]) ** (1 / (_FALLING - 1)))
    return slacks[-1] - min(steps) * shrinks * (1 - shrinks**looks) / (1 - shrinks)


def _is_closer(record: Epoch, before: Errors) -> bool:
    """Whether what compression left is closer to the training data, beside the held-out ones, than what was before."""
    if record.train_error is None or record.held_out_error is None or not before.train > 0:
        return False
    return record.train_error * before.held_out < record.held_out_error * before.train


def _learns_by_heart(record: Epoch) -> bool:
    if record.held_out_error is None:
        return False
    own = record.error if record.train_error is None else record.train_error
    return own < _BY_HEART * record.held_out_error


def best_look(history: Sequence[Epoch], epochs: int, first: int) -> int | None:
    """The epoch, counted from 0, that left the best network of those that kept the target; None where none did.

    That is the smallest, or the one that errs least where the target is a size.

    Those of the first half are not among them, when rates are high and little is pruned.

    :param first: epoch from which on networks are as they will be stored, where that is later.
    """
    late = [(own.cost, -at) for at, own in enumerate(history) if own.is_kept and at >= _earliest(epochs, first)]
    return -min(late)[1] if late else None


def nearest_look(history: Sequence[Epoch]) -> int | None:
    """The epoch, counted from 0, that left the network to go back to from a collapse: as the best one, of all epochs.

    Where none kept the target, it is the one that came closest; None where nothing was ever left.
    """
    kept = [(own.cost, -at) for at, own in enumerate(history) if own.is_kept]
    left = [(at, own, own.slack) for at, own in enumerate(history) if own.slack is not None]
    near = [(slack if _is_of_size(own) else -slack, -at) for at, own, slack in left if math.isfinite(slack)]
    return -min(kept or near)[1] if kept or near else None


def _is_of_size(record: Epoch) -> bool:
    """Whether the target is a size, which costs error."""
    return record.cost is not None and record.cost == record.held_out_error


def _earliest(epochs: int, first: int) -> int:
    return max(epochs // 2, first if first < epochs else 0)
