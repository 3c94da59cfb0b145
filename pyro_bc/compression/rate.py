"""Codes for a network's layers at one price of a bit: what each rounding costs under the posterior, against its length.

The rows of a layer are rounded as :mod:`pyro_bc.quantisation.conditional` has it, each in a step of its own; the
lengths of codes are those of the codes before, twice over. Units all of whose codes are 0 are cut as any others.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import UsageError
from ..graph.layer_types import LayerType
from ..graph.nodes import Graph, Node, is_layer, layer_groups, layer_name
from ..posterior.curvature import Curvature
from ..posterior.summary import LayerPosterior
from ..quantisation.conditional import CodeLengths, Factor, cheapest, factorised, round_rows, steps_of
from ..quantisation.fixed_point import STEPS_PER_OCTAVE, FixedPoint
from ..runtime.devices import on_cpu

# How often the lengths of codes are estimated anew.
_PASSES = 3

# Rows that say nothing of the data have this part of the mean row's precision.
_LEAST = 1e-4

# Posterior precision of what has no variance, beside the largest that has some.
_EXACT = 1e12

# A bias is never finer than float32 itself.
_MOST_BITS = 24


@dataclass(frozen=True)
class CodedRows:
    """A layer's rows as codes.

    :param codes: ``(out, n)`` integers, a bias not among them.
    :param exponents: of the rows' steps, in quarters of an octave, ``(out,)``.
    :param bias: what the bias is then, ``(out,)``, or None.
    :param bias_step: step that its posterior allows.
    """

    codes: Tensor
    exponents: Tensor
    bias: Tensor | None
    bias_step: float


@on_cpu
def rate_coded(
    graph: Graph,
    posterior: Mapping[str, LayerPosterior],
    curvature: Mapping[str, Curvature] | None,
    num_data: int,
    nats_per_bit: float,
) -> dict[str, LayerPosterior]:
    """The layers' posteriors, with codes for the weights and biases of all that the graph multiplies with.

    :param posterior: by the layer's name in the graph.
    :param curvature: of the layers; None for a mean-field posterior, whose variances say all.
    :param nats_per_bit: price of a bit, in nats of the posterior.
    :raises UsageError: where the price is not positive.
    """
    if not nats_per_bit > 0:
        raise UsageError(f"nats_per_bit is the price of a bit, and positive, not {nats_per_bit!r}")
    nodes = {layer_name(node): node for node in reversed(graph.nodes) if is_layer(node)}
    result = dict(posterior)
    for name, layer in posterior.items():
        if name not in nodes or layer.codes:
            continue
        own = None if curvature is None else curvature[name]
        coded = _coded(layer, nodes[name], own, num_data, nats_per_bit)
        result[name] = replace(layer, codes=_stored(layer, nodes[name], coded))
    return result


def _coded(
    layer: LayerPosterior, node: Node, curvature: Curvature | None, num_data: int, nats_per_bit: float
) -> CodedRows:
    kind, groups = layer.layer_type, layer_groups(node)
    if curvature is None:
        return _independent(layer, kind, groups, nats_per_bit)
    bias = layer.bias_mean if curvature.has_bias else None
    rows = kind.rows(layer.weight_mean, groups)
    rows = rows if bias is None else torch.cat([rows, bias[:, None]], 1)
    cost = num_data * curvature.outputs
    cost = cost.clamp_min(max(_LEAST * float(cost.mean()), 1e-20))
    parts = rows.split([len(inputs[0]) for inputs in curvature.inputs], 1)
    last = len(parts) - 1
    factors = [factorised(inputs, bias is not None and at == last) for at, inputs in enumerate(curvature.inputs)]
    exponents = torch.stack([steps_of(cost, factor, nats_per_bit) for factor in factors]).double()
    if kind.is_transposed:  # rows are no rows of the tensor: one step, a power of two, for all
        exponent = torch.full((len(rows),), STEPS_PER_OCTAVE * round(float(exponents.mean()) / STEPS_PER_OCTAVE))
    else:
        exponent = exponents.mean(0).round().long()
    steps = torch.exp2(exponent / STEPS_PER_OCTAVE)
    codes = []
    for part, factor in zip(parts, factors, strict=True):
        own, left = (part / steps[:, None]).round().long(), part
        for _ in range(_PASSES):
            own, left, _ = round_rows(part, cost, factor, steps, nats_per_bit, CodeLengths(own))
        codes.append(own)
    whole = torch.cat(codes, 1)
    if bias is None:
        return CodedRows(whole, exponent, None, 0.0)
    # Nothing is rounded behind the bias, whose mean has made up for all that was before.
    return CodedRows(whole[:, :-1], exponent, left[:, -1], _step(float(cost.mean()), nats_per_bit))


def _independent(layer: LayerPosterior, kind: LayerType, groups: int, nats_per_bit: float) -> CodedRows:
    """The diagonal case: every entry has a precision of its own."""
    means = kind.rows(layer.weight_mean, groups)
    precision = _precision(kind.rows(layer.weight_variance, groups))
    cost = precision.mean(1)
    exponent = _exponents(cost, nats_per_bit)
    if kind.is_transposed:
        common = STEPS_PER_OCTAVE * round(float(exponent.double().mean()) / STEPS_PER_OCTAVE)
        exponent = torch.full_like(exponent, common)
    steps = torch.exp2(exponent / STEPS_PER_OCTAVE)
    codes = (means / steps[:, None]).round().long()
    column = torch.arange(means.shape[1]).expand(means.shape)
    for _ in range(_PASSES):
        lengths = CodeLengths(codes)
        codes = torch.stack(
            [
                cheapest(means[:, j], 0.5 * precision[:, j], steps, nats_per_bit, lengths, column[:, j])
                for j in range(means.shape[1])
            ],
            1,
        )
    step = 0.0
    if layer.bias_mean is not None and layer.bias_variance is not None:
        step = _step(float(_precision(layer.bias_variance).mean()), nats_per_bit)
    return CodedRows(codes, exponent, layer.bias_mean, step)


def _precision(variance: Tensor) -> Tensor:
    """One over the variance, with a bound for what has none."""
    known = variance[variance > 0]
    largest = float(1 / known.min()) if len(known) else 1.0
    return torch.where(variance > 0, 1 / variance, min(_EXACT, 1e4 * largest)).clamp_max(_EXACT)


def _exponents(cost: Tensor, nats_per_bit: float) -> Tensor:
    diagonal = Factor(torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, 1))
    return steps_of(cost, diagonal, nats_per_bit)


def _step(cost: float, nats_per_bit: float) -> float:
    """The best step of numbers of this precision, as a power of two."""
    exponent = _exponents(torch.tensor([max(cost, 1e-20)]), nats_per_bit)
    return 2.0 ** (int(exponent) // STEPS_PER_OCTAVE)


def _stored(layer: LayerPosterior, node: Node, coded: CodedRows) -> dict[str, FixedPoint]:
    """Codes as a file holds them, in the shape of the weight."""
    kind = layer.layer_type
    codes = kind.from_rows(coded.codes, layer.weight_mean.shape, layer_groups(node))
    smallest = int(coded.exponents.min())
    base = smallest // STEPS_PER_OCTAVE
    rows = coded.exponents - STEPS_PER_OCTAVE * base
    if kind.is_transposed:  # one step, as a power of two
        found = {"weight": FixedPoint(codes.contiguous(), -base)}
    else:
        found = {"weight": FixedPoint(codes.contiguous(), -base, rows=rows)}
    if coded.bias is not None:
        bits = -round(torch.tensor(coded.bias_step).log2().item()) if coded.bias_step > 0 else 24
        found["bias"] = FixedPoint(
            (coded.bias.double() * 2.0**bits).round().long().clamp(-(2**24) + 1, 2**24 - 1), bits
        )
    return found
