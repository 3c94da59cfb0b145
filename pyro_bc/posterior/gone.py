"""Which groups have gone for good while a posterior is still being fitted.

A group is counted as gone where no weight of it has more signal than noise, so that compression prunes it whatever the
threshold, and where removing it alone costs less than one nat of all that the data say
(:meth:`~pyro_bc.LayerPosterior.removal_price`). Of the groups of LeNet-300-100 that were so at any time of a fit on
MNIST, under either group prior, none was kept in the end; of those that were pruned without being so, some were.
"""

import torch
from torch import Tensor

from .summary import LayerPosterior
from .thresholds import signal_bar

# What a gone group tells of all data, in nats, is less than this.
_NATS = 1.0


def gone_axis(layer: LayerPosterior) -> int:
    """The axis of a layer's weight along which it loses groups: that of its groups, or of its inputs without any."""
    return layer.layer_type.input_axis if layer.per_weight else layer.group_dim


def gone(layer: LayerPosterior) -> Tensor:
    """Which entries of :func:`gone_axis` have gone, boolean, ``(size,)``; none where the prior prunes nothing."""
    axis = gone_axis(layer)
    if layer.statistic is None or (not layer.per_weight and len(layer.statistic) != layer.weight_mean.shape[axis]):
        return torch.zeros(layer.weight_mean.shape[axis], dtype=torch.bool)
    ratio = (layer.weight_mean.square() / layer.weight_variance).movedim(axis, 0).flatten(1)
    return (ratio.amax(1) <= signal_bar(layer)) & (0.5 * ratio.sum(1) < _NATS)
