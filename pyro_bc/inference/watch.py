"""Looks at what compression would make of a guide while it is trained, where there is no target to judge it by."""

from collections.abc import Iterable
from typing import Any

from ..errors import UsageError
from ..model.guide import FactorizedGuide
from ..model.network import BayesianNetwork
from ..posterior.guides import posterior_of
from ..posterior.in_place import compressed_in_place, file_bytes, network_with
from ..posterior.judged import judge
from ..posterior.standing import Standing
from ..posterior.summary import code_bytes, summarize
from ..priors.cells import Cell
from .multiplier import Watch


def watching(model: Any, guide: FactorizedGuide, held_out: Iterable[Any]) -> Watch:
    """What judges the network that :func:`~pyro_bc.compress` would make of the guide as it is; the guide stays.

    Until codes are rounded, the network computes with their centres.

    :param held_out: batches ``(x, y)``, passed over often.
    :raises UsageError: for a model that is no :class:`~pyro_bc.BayesianNetwork`, and has no network to judge.
    """
    if not isinstance(model, BayesianNetwork):
        raise UsageError(f"held-out batches are looked at with a BayesianNetwork, not with a {type(model).__name__}")
    batches = list(held_out)
    has_codes = Cell in guide.families.values()

    def look(is_rounded: bool) -> Standing:
        layers = summarize(guide)
        changed = {} if has_codes and not is_rounded else {n: compressed_in_place(own) for n, own in layers.items()}
        net = network_with(model, layers, changed)
        found = judge(net, model.likelihood, batches, posterior_of(guide), model.output)
        size = code_bytes(guide) if has_codes else file_bytes(net, changed, batches[0][0], model.output)
        return Standing(None, found.error, round(size), None)

    return look
