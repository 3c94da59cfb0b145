r"""The weight of the KL as a Lagrange multiplier that is learned while training (Rezende and Viola 2018, 1810.00597).

What a user has is a constraint, so much error or so many bytes, and not a weight. The weight has three parts of the
training. It rises, as a warm-up, to one at which most networks begin to lose groups; then it follows every look at
held-out data,

.. math:: \log w \leftarrow \log w + \rho\, \bar s, \qquad \bar s \leftarrow \tfrac12 (\bar s + s),

where s is the part of what is allowed that is left (:class:`~pyro_bc.posterior.standing.Standing`): it rises while the
constraint is kept with room, and falls where it is not; and last it is held at the mean of what it came to, while
learning rates fall and the posterior settles, and only falls where the constraint is not kept. Looks of the first part
say little: rates are high, and errors with them, so that only a clear loss stops the rise. And where a network knows
what it was trained on more than twice as well as what it was not, it is not the KL that costs error: until it has
risen, its weight then rises on. The weight is a function of the looks so far, so that a resumed fit goes on with it.
"""

import math
from collections.abc import Sequence
from typing import Protocol

from ..posterior.standing import Standing
from .history import Epoch

# The first weight, the one that it rises to, and the largest.
_FIRST, _RISEN, _MOST = 1e-2, 1e-1, 2.0

# Parts of a training: where it stops to rise, and to follow, and where the looks begin that say what it is held at.
_RISE, _FOLLOW, _COUNTED = 0.25, 0.7, 0.5

# By which factor it can change while it follows, and what counts as a clear loss.
_RANGE, _CLEAR = 1e2, -1.0

# The part of its error on held-out data below which the error on what it is trained on says that it learns by heart.
_BY_HEART = 0.5

# Least and most that one look counts for.
_LEAST, _ROOM = -2.0, 1.0

#: looks at held-out data in one training, where it has as many epochs.
LOOKS = 50


class Watch(Protocol):
    """Looks at held-out data with the guide as it is now; ``is_rounded`` says whether codes are."""

    def __call__(self, is_rounded: bool) -> Standing: ...


def is_looked_at(epoch: int, epochs: int) -> bool:
    """Whether held-out data are looked at after an epoch, counted from 0: always after the last one."""
    every = max(1, epochs // LOOKS)
    return (epoch + 1) % every == 0 or epoch + 1 == epochs


def learned_weight(history: Sequence[Epoch], epochs: int) -> float:
    """The KL's weight in the epoch that follows."""
    looks = min(epochs, LOOKS)
    rising = math.log(_RISEN / _FIRST) / (_RISE * looks)
    pace = math.log(_RANGE) / ((_FOLLOW - _RISE) * looks)
    weight, mean = math.log(_FIRST), _ROOM
    counted: list[float] = []
    is_held = False
    for at, record in enumerate(history, 1):
        if record.slack is None:
            continue
        slack = min(_ROOM, max(_LEAST, record.slack))
        if slack < 0 and weight < math.log(_RISEN) and _learns_by_heart(record):
            slack = _ROOM
        mean = 0.5 * (mean + slack)
        if at <= _RISE * epochs:
            weight += rising if mean > _CLEAR else pace * mean
        elif at <= _FOLLOW * epochs:
            weight += pace * mean
        elif is_held or not counted:
            weight += pace * min(0.0, mean)
        else:
            weight, is_held = sum(counted) / len(counted), True
        weight = min(weight, math.log(_MOST))
        if _COUNTED * epochs < at <= _FOLLOW * epochs:
            counted.append(weight)
    return math.exp(weight)


def _learns_by_heart(record: Epoch) -> bool:
    return record.held_out_error is not None and record.error < _BY_HEART * record.held_out_error


def best_look(history: Sequence[Epoch], epochs: int, first: int) -> int | None:
    """The epoch, counted from 0, that left the smallest network of those that kept the target; None where none did.

    Those of the first half are not among them, when rates are high and little is pruned.

    :param first: epoch from which on networks are as they will be stored, where that is later.
    """
    late = [(own.file_bytes, -at) for at, own in enumerate(history) if own.is_kept and at >= _earliest(epochs, first)]
    return -min(late)[1] if late else None


def _earliest(epochs: int, first: int) -> int:
    return max(epochs // 2, first if first < epochs else 0)
