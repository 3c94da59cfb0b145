r"""From posterior variance to fixed-point numbers.

A number is stored as an integer code, ``value = code · 2^-fraction_bits``; one ``fraction_bits`` for a layer's
weights and one for its biases. Two rules choose it:

``posterior``
    Rounding to a grid of step :math:`\Delta` adds noise of variance :math:`\Delta^2/12`. Noise :math:`\delta_{ij}`
    costs :math:`\delta_{ij}^2/2V_{ij}` nats of the posterior, so that the whole layer pays in proportion to
    :math:`\Delta^2/12` over the harmonic mean :math:`\bar V` of its surviving variances. The step is the largest
    power of two with :math:`\Delta^2/12 \le r \bar V`. At :math:`r = 1` the stored network is as noisy as a draw
    from the posterior; the default adds a small part of that.
``paper``
    The reference code of Louizos et al. 2017 (section 3.4): the unit round-off :math:`\tfrac12 2^{1-t}` of
    :math:`t` fractional bits against :math:`2V`, bits averaged over the surviving weights and rounded up.
"""

import math

import torch
from torch import Tensor

from ..errors import UsageError
from .fixed_point import FixedPoint

#: rules by name.
RULES = ("posterior", "paper")

#: r of the posterior rule: rounding adds this part of the posterior's variance.
NOISE_RATIO = 0.2

# A grid never gets finer than float32 itself, 24 bits over the layer's largest value.
_MOST_BITS = 24


def fraction_bits(variance: Tensor, rule: str = "posterior", noise_ratio: float = NOISE_RATIO) -> float:
    """Fractional bits that surviving values of this posterior variance need, not yet rounded up.

    :param variance: of the surviving values, ``(n,)``; where any is 0 the answer is infinite.
    :raises UsageError: for an unknown rule, or a ``noise_ratio`` that is not positive.
    """
    if rule not in RULES:
        raise UsageError(f"unknown precision rule '{rule}'; there are {', '.join(RULES)}")
    if not noise_ratio > 0:
        raise UsageError(f"noise_ratio must be positive, not {noise_ratio!r}")
    variance = variance.double()
    if not (variance > 0).all():
        return math.inf
    if rule == "paper":
        return float(-torch.log2(2 * variance).mean())
    harmonic_mean = 1 / float((1 / variance).mean())
    return -0.5 * math.log2(12 * noise_ratio * harmonic_mean)


def to_fixed_point(
    values: Tensor,
    variance: Tensor,
    mask: Tensor | None = None,
    rule: str = "posterior",
    noise_ratio: float = NOISE_RATIO,
) -> FixedPoint:
    """Round values to the coarsest grid that their posterior allows.

    :param values: any shape; zero where ``mask`` is False.
    :param variance: posterior variance, same shape; 0 asks for float32's own precision.
    :param mask: which values survived pruning, same shape; the others stay 0 and have no say.
    """
    if not bool(values.any()):
        return on_grid(values, 0.0)
    surviving = variance if mask is None else variance[mask]
    return on_grid(values, fraction_bits(surviving.flatten(), rule, noise_ratio))


def on_grid(values: Tensor, needed: float) -> FixedPoint:
    """Values rounded to a grid of so many fractional bits, or of the most that float32 can make use of.

    :param needed: fractional bits, not yet rounded up; infinite for the most.
    """
    largest = float(values.abs().max()) if values.numel() else 0.0
    if largest == 0:
        return FixedPoint(torch.zeros_like(values, dtype=torch.int64), 0)
    # The largest code fits _MOST_BITS with its sign: largest · 2^t < 2^(_MOST_BITS - 1).
    finest = _MOST_BITS - 2 - math.floor(math.log2(largest))
    t = finest if math.isinf(needed) else min(finest, math.ceil(needed))
    return FixedPoint(torch.round(values.double() * 2.0**t).long(), t)
