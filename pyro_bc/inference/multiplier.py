r"""The weight of the KL as a Lagrange multiplier that is learned while training (Rezende and Viola 2018, 1810.00597).

What a user has is a constraint, so much error or so many bytes, and not a weight. After every look at held-out data

.. math:: \log w \leftarrow \log w + \rho\, \bar s, \qquad \bar s \leftarrow \tfrac12 (\bar s + s),

where s is the part of what is allowed that is left (:class:`~pyro_bc.posterior.standing.Standing`): the weight rises
while the constraint is kept with room, and falls where it is not. It starts low, which is the warm-up. The weight is a
function of the looks so far, so that a resumed fit goes on with it.
"""

import math
from collections.abc import Sequence
from typing import Protocol

from ..posterior.standing import Standing
from .history import Epoch

# The first weight, the largest, and by which factor it can rise in half of a training.
_FIRST, _MOST, _RANGE = 1e-2, 2.0, 1e4

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
    pace = math.log(_RANGE) / (0.5 * min(epochs, LOOKS))
    weight, mean = math.log(_FIRST), _ROOM
    for record in history:
        if record.slack is not None:
            mean = 0.5 * (mean + min(_ROOM, max(_LEAST, record.slack)))
            weight = min(weight + pace * mean, math.log(_MOST))
    return math.exp(weight)


def best_look(history: Sequence[Epoch], epochs: int, first: int) -> int | None:
    """The epoch, counted from 0, that left the smallest network of those that kept the target; None where none did.

    Those of the first half are not among them, when rates are high and little is pruned.

    :param first: epoch from which on networks are as they will be stored, where that is later.
    """
    late = [(own.file_bytes, -at) for at, own in enumerate(history) if own.is_kept and at >= _earliest(epochs, first)]
    return -min(late)[1] if late else None


def _earliest(epochs: int, first: int) -> int:
    return max(epochs // 2, first if first < epochs else 0)
