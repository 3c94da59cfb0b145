"""How a posterior stands, while it is fitted, against what its network has to keep in the end."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Standing:
    """One look at held-out data.

    :param slack: part of what is allowed that is left: 1 where nothing is used up, 0 at the limit, negative beyond;
        None where nothing is asked for.
    :param error: of what pruning would leave now, in the unit of the likelihood's metric.
    :param file_bytes: size of its file, about that where a target searches for it; 0 where there is none.
    :param is_kept: whether it keeps all that is asked for now; None where nothing is.
    :param cost: what is to be as small as can be, of those that keep it: the file, or its error where that is what the
        file's size is given for; None where nothing is asked for.
    """

    slack: float | None
    error: float
    file_bytes: int
    is_kept: bool | None
    cost: float | None = None
