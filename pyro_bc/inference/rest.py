"""Whether a training has come to rest, so that its last epochs would change nothing."""

import math
import statistics
from collections.abc import Sequence

from .history import Epoch

# Two windows of so many epochs, at least, and of such a part of the training are compared.
_WINDOW, _PART = 5, 0.1

# Change of the loss that is none, as a part of it, and in standard errors; and of a count of groups, as a part of it.
_LEVEL, _ERRORS, _GROUPS = 1e-3, 2.0, 5e-3


def is_at_rest(history: Sequence[Epoch], epochs: int, falls_from: float) -> bool:
    """Whether bound, groups, and the weight of the KL have been level over two windows of epochs.

    Asked while learning rates fall: a training that is level at full rates still gains by smaller ones.

    :param epochs: of the whole training.
    :param falls_from: epoch from which on learning rates fall.
    """
    size = max(_WINDOW, round(_PART * epochs))
    before, after = history[-2 * size : -size], history[-size:]
    if len(before) < size or before[0].epoch <= falls_from:
        return False
    weights = [own.kl_weight for own in (*before, *after)]
    if max(weights) > (1 + _LEVEL) * min(weights):
        return False
    for layer, last in after[-1].groups_left.items():
        counts = [own.groups_left[layer] for own in (*before, *after)]
        if max(counts) - min(counts) > _GROUPS * last:
            return False
    was, now = ([own.negative_log_likelihood + own.kl_weight * own.kl for own in part] for part in (before, after))
    error = math.hypot(statistics.stdev(was), statistics.stdev(now)) / math.sqrt(size)
    change = abs(statistics.mean(now) - statistics.mean(was))
    return change <= max(_LEVEL * abs(statistics.mean(now)), _ERRORS * error)
