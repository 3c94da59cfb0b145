"""A look at a fit as it is now: the network that :func:`~pyro_bc.compress` would make of it, judged and weighed."""

import warnings
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import nn

from ..errors import EmptyNetworkError, UnsupportedNetworkError
from ..file.compressed import CompressedNetwork
from ..graph.interface import Output
from ..model.guide import FactorizedGuide
from ..model.network import BayesianNetwork
from ..posterior.guides import Posterior, posterior_of
from ..posterior.in_place import all_compressed_in_place, network_with
from ..posterior.judged import Judged, judge, where_they_are
from ..posterior.summary import LayerPosterior, summarize
from .compress import compress
from .reading import Reading, read_posterior


def compressed_quietly(model: BayesianNetwork, reading: Reading, **options: Any) -> CompressedNetwork:
    """What compression makes of a posterior in the middle of a training; its warnings were said, or are to come."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return compress(model, reading, **options)


class Look:
    """What a posterior would come to, made once however many judge it; the guide stays.

    :param model: that is fitted.
    :param guide: as it is now.
    :param is_rounded: whether codes are, that prune by themselves; until then their network computes with their
        centres, as training makes up for what rounding would cost it, unless nothing would be left of it.
    """

    def __init__(self, model: BayesianNetwork, guide: FactorizedGuide, is_rounded: bool):
        self.model, self.guide, self.is_rounded = model, guide, is_rounded

    @cached_property
    def fitted(self) -> Posterior:
        """What is known of the sites."""
        return posterior_of(self.guide)

    @cached_property
    def reading(self) -> Reading:
        """The posterior and the graph of its network."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said when the guide was set up
            return read_posterior(self.model, self.fitted)

    @cached_property
    def layers(self) -> dict[str, LayerPosterior]:
        """The posterior of every layer."""
        return summarize(self.fitted)

    @cached_property
    def mean(self) -> nn.Module:
        """The network with every weight at its posterior mean."""
        return network_with(self.model, self.layers, {})

    @cached_property
    def compressed(self) -> CompressedNetwork | None:
        """What would be stored; None where nothing is left, or no file can hold it, which is no reason to end a fit."""
        try:
            return compressed_quietly(self.model, self.reading)
        except (EmptyNetworkError, UnsupportedNetworkError):
            return None

    @cached_property
    def stored(self) -> tuple[nn.Module, Output, int]:
        """What would be stored, which of its outputs counts, and bytes of its file: 0 where there is none."""
        own = self.model.output
        small = self.compressed
        if small is None:
            return network_with(self.model, *all_compressed_in_place(self.layers)), own, 0
        size = len(small.to_bytes())
        if self.fitted.has_codes and not self.is_rounded:
            return self.mean, own, size
        return small.network(), None, size

    def judged(self, batches: Iterable[Any]) -> Judged:
        """What would be stored, on batches ``(x, y)``."""
        network, output, size = self.stored
        return replace(self._judge(network, output, batches), file_bytes=size)

    def judged_mean(self, batches: Iterable[Any]) -> Judged:
        """The posterior mean, on batches ``(x, y)``."""
        return self._judge(self.mean, self.model.output, batches)

    def _judge(self, network: nn.Module, output: Output, batches: Iterable[Any]) -> Judged:
        batches = list(batches)
        network = where_they_are(network, batches)  # that of a file is on the CPU
        return judge(network, self.model.likelihood, batches, self.fitted, output)
