r"""Where to cut: a threshold on a layer's statistic, found without looking at it.

A fitted layer's statistics form two clusters, groups that the data use and groups that fell back to the
prior. The threshold is where two normals, fitted to the statistics as a mixture, are equally likely. Where the
mixture does not separate, or would throw away more than 5 % of what the layer knows
(:meth:`~pyro_bc.LayerPosterior.information`), it is the cut that agrees best with keeping groups in which some
weight has more signal than noise, :math:`E[w]^2 > V[w]`. Louizos et al. 2017 chose thresholds by eye.

A scale can be well determined in a group whose weights are not: the likelihood pins it through their sum. So an
automatic cut also prunes, on either side of the threshold, groups in which no weight has more signal than noise; or,
with a price of a bit, groups whose removal costs fewer nats (:meth:`~pyro_bc.LayerPosterior.removal_price`) than their
bits are worth. In a description of the data a bit would be worth log 2 nats, but the prices of many groups that go at
once add up to less than what they cost together, since a factorised posterior knows nothing of what they have in common
(analyses/results/cuts.md: 0.02 to 0.05 nats made smaller files than the signal of LeNet-300-100 at level error, and
worse ones of LeNet-5-Caffe). For priors over single weights the bar is the published :math:`\log\alpha < 3` (Molchanov
et al. 2017): many weak weights add up to a signal. What a layer reads or computes across its groups is held to the same
bar, in :func:`weight_mask`.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..quantisation.fixed_point import FixedPoint
from ..runtime.devices import on_cpu
from ..runtime.shapes import on_axis
from .summary import LayerPosterior


@dataclass(frozen=True)
class Threshold:
    """A cut: what has a statistic below ``value`` is kept.

    :param value: the threshold, in the unit of the statistic.
    :param method: ``mixture``, ``signal-to-noise``, ``explicit``, or ``none`` (the prior prunes nothing).
    :param nats_per_bit: price by which groups are weighed against their bits; None for the rule of signal and noise.
    """

    value: float
    method: str
    nats_per_bit: float | None = None

    def keeps(self, layer: LayerPosterior) -> Tensor:
        """Which of a layer's groups (weights, for per-weight priors) are kept, boolean, shape of the statistic."""
        if layer.statistic is None:
            return torch.ones(layer.weight_mean.shape[layer.group_dim], dtype=torch.bool, device="cpu")
        keep = layer.statistic < self.value
        return keep if self.method == "explicit" else keep & _is_wanted(layer, self.nats_per_bit)


#: log dropout rate above which a single weight is pruned (Molchanov et al. 2017, section 5).
PUBLISHED_LOG_ALPHA = 3.0
# A cluster is at least this wide, as a part of the statistic's standard deviation: a handful of nearly equal
# values is no cluster of its own.
_NARROWEST = 0.1

# Two normals must describe a value by this many nats better than one. Cut in halves, one normal is described
# worse by log 2 - 0.51 = 0.18 nats, and a uniform density as well as before.
_DISTINCT = 0.1

# A mixture's cut may prune groups that hold this part of the layer's information, and no more.
_DISPENSABLE = 0.05


@on_cpu
def choose_threshold(
    layer: LayerPosterior, explicit: float | None = None, nats_per_bit: float | None = None
) -> Threshold:
    """The threshold of one layer.

    :param explicit: use this value instead of looking for one.
    :param nats_per_bit: weigh groups against their bits at this price, instead of signal against noise.
    :raises UsageError: where ``explicit`` is NaN, or given for a prior that prunes nothing.
    """
    if layer.statistic is None:
        if explicit is not None:
            raise UsageError(
                f"layer '{layer.name}' has no statistic to threshold: {type(layer.prior).__name__} prunes nothing, or "
                f"its guide has no spread of scales"
            )
        return Threshold(math.inf, "none")
    if explicit is not None:
        if math.isnan(explicit):
            raise UsageError(f"the threshold of layer '{layer.name}' is not a number")
        return Threshold(float(explicit), "explicit")
    values = layer.statistic[layer.within_reach()].flatten().double().numpy()
    value = minimum_error_threshold(values[np.isfinite(values)])
    if value is not None:
        information = layer.information()
        lost = information[layer.statistic >= value].sum()
        if torch.isfinite(lost) and lost <= _DISPENSABLE * information.sum():
            return Threshold(value, "mixture", nats_per_bit)
    return _by_signal_to_noise(layer, nats_per_bit)


def _is_wanted(layer: LayerPosterior, nats_per_bit: float | None) -> Tensor:
    """Which groups have signal, or are worth their bits; of weights that are pruned alone, which are told from zero."""
    if nats_per_bit is None or layer.prunes_weights:
        return layer.signal_to_noise() > signal_bar(layer)
    return layer.removal_price() > nats_per_bit * layer.code_length()


def signal_bar(layer: LayerPosterior) -> float:
    """How much signal over noise, squared, some weight of a group needs, or a weight where single ones are pruned."""
    return math.exp(-PUBLISHED_LOG_ALPHA) if layer.prunes_weights else 1.0


def weights_kept(layer: LayerPosterior) -> Tensor | None:
    """Which weights are kept beside their groups, boolean, of its shape; None where groups alone are pruned."""
    return None if layer.weight_statistic is None else layer.weight_statistic < PUBLISHED_LOG_ALPHA


def weight_mask(layer: LayerPosterior, threshold: Threshold) -> Tensor:
    """Which weights survive a threshold, boolean, of the weight's shape.

    An automatic threshold also prunes across the groups: what a layer reads (a channel of a convolution) or computes
    (an output of a matrix) without any weight that has more signal than noise among those that are left. A filter can
    be well determined that no filter behind it listens to.
    """
    shape = layer.weight_mean.shape
    keep = threshold.keeps(layer)
    if keep.shape == shape:
        return keep if layer.reach is None else keep & layer.reach
    mask = layer.over_weights(keep).expand(shape).clone()
    if layer.reach is not None:
        mask &= layer.reach
    if layer.codes:
        return mask & is_coded(layer.codes["weight"])
    weights = weights_kept(layer)
    if weights is not None:
        mask &= weights
    if threshold.method in ("mixture", "signal-to-noise"):
        across = 1 - layer.group_dim
        ratio = layer.weight_mean.square() / layer.weight_variance * mask
        signal = ratio.movedim(across, 0).flatten(1).amax(1) > signal_bar(layer)
        mask &= on_axis(signal, across, len(shape))
    return mask


def removed_outputs(layer: LayerPosterior, mask: Tensor) -> Tensor:
    """Which outputs are pruned with all that belongs to them, boolean, ``(out,)``: a filter's scale multiplies its bias
    too, and the normalisation behind it.
    """
    outputs = mask.movedim(layer.layer_type.output_axis, 0).flatten(1)
    if layer.statistic is None or layer.per_weight or not layer.layer_type.scales_outputs:
        return torch.zeros(len(outputs), dtype=torch.bool)
    return ~outputs.any(1)


def is_coded(stored: FixedPoint) -> Tensor:
    """Which weights a code that is not 0 says something of: all of a grid where one of its coefficients is not 0."""
    cells = math.prod(stored.grid)
    some = stored.codes.reshape(-1, cells).any(1, keepdim=True)
    return some.expand(-1, cells).reshape(stored.codes.shape)


def minimum_error_threshold(values: np.ndarray) -> float | None:
    r"""The cut at which two normals describe the values best; None where they are not distinct.

    Kittler and Illingworth 1986: among all cuts, the one that minimises
    :math:`\sum_k P_k \log\sigma_k - P_k \log P_k`, the cost of a mixture of two normals with hard assignment.

    :param values: ``(n,)``, finite.
    """
    x = np.sort(values)
    n = len(x)
    if n < 4 or x[0] == x[-1]:
        return None
    left = np.arange(1, n)  # how many values lie below each of the n - 1 cuts
    right = n - left
    sums, squares = np.cumsum(x), np.cumsum(x**2)
    mean_left = sums[:-1] / left
    mean_right = (sums[-1] - sums[:-1]) / right
    floor = (_NARROWEST * x.std()) ** 2
    variance_left = np.maximum(squares[:-1] / left - mean_left**2, floor)
    variance_right = np.maximum((squares[-1] - squares[:-1]) / right - mean_right**2, floor)
    p, q = left / n, right / n
    cost = 0.5 * (p * np.log(variance_left) + q * np.log(variance_right)) - p * np.log(p) - q * np.log(q)
    cut = int(np.argmin(np.where(x[1:] > x[:-1], cost, np.inf)))
    gain = math.log(x.std()) - cost[cut]
    return float(0.5 * (x[cut] + x[cut + 1])) if gain > _DISTINCT else None


def _by_signal_to_noise(layer: LayerPosterior, nats_per_bit: float | None) -> Threshold:
    """The cut that agrees best with keeping what has more signal than noise, or is worth its bits."""
    assert layer.statistic is not None
    counted = layer.within_reach()
    if not bool(counted.any()):
        return Threshold(math.inf, "signal-to-noise", nats_per_bit)
    statistic = layer.statistic[counted].flatten()
    order = torch.argsort(statistic)
    statistic = statistic[order].double()
    keep = _is_wanted(layer, nats_per_bit)[counted].flatten()[order].double()
    # Disagreements of each cut: weak ones kept below it, strong ones pruned above it.
    kept_weak = torch.cat([torch.zeros(1), torch.cumsum(1 - keep, 0)])
    pruned_strong = keep.sum() - torch.cat([torch.zeros(1), torch.cumsum(keep, 0)])
    cut = int(torch.argmin(kept_weak + pruned_strong))
    edges = torch.cat([statistic[:1] - 1, statistic, statistic[-1:] + 1])
    return Threshold(float(0.5 * (edges[cut] + edges[cut + 1])), "signal-to-noise", nats_per_bit)
