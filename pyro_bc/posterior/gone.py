"""What has gone for good while a posterior is still being fitted: groups, and inputs that a layer does not listen to.

A group is counted as gone where no weight of it has more signal than noise, so that compression prunes it whatever the
threshold, and where removing it alone costs less than one nat of all that the data say
(:meth:`~pyro_bc.LayerPosterior.removal_price`). Of the groups of LeNet-300-100 that were so at any time of a fit on
MNIST, under either group prior, none was kept in the end; of those that were pruned without being so, some were. The
same is asked of all weights of an input: a filter can be well determined that no filter behind it listens to.
"""

from collections.abc import Mapping

from torch import Tensor

from ..runtime.shapes import on_axis
from .summary import LayerPosterior
from .thresholds import signal_bar

#: of several layers, by their names, what :func:`gone` says of each.
Gone = Mapping[str, Mapping[int, Tensor]]

# What a gone group tells of all data, in nats, is less than this.
_NATS = 1.0


def gone(layer: LayerPosterior) -> dict[int, Tensor]:
    """Which entries of an axis of the layer's weight have gone, boolean, by the axis.

    That of its groups, and that of its inputs; none where the prior prunes nothing, or neighbours are one group.
    """
    kind, shape = layer.layer_type, layer.weight_mean.shape
    if layer.statistic is None or (not layer.per_weight and len(layer.statistic) != shape[layer.group_dim]):
        return {}
    axes = [] if layer.per_weight else [layer.group_dim]
    axes += [kind.input_axis] * (kind.input_axis not in axes and not kind.is_lookup)
    ratio = layer.weight_mean.square() / layer.weight_variance
    found = {}
    for axis in axes:
        own = ratio.movedim(axis, 0).flatten(1)
        found[axis] = (own.amax(1) <= signal_bar(layer)) & (0.5 * own.sum(1) < _NATS)
        ratio = ratio * on_axis(~found[axis], axis, len(shape))
    return found
