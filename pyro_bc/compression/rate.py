"""Codes for a network's layers at one price of a bit: what each rounding costs under the posterior, against its length.

The rows of a layer are rounded as :mod:`pyro_bc.quantisation.conditional` has it, each in a step of its own; the
lengths of codes are those of the codes before, twice over. Units all of whose codes are 0 are cut as any others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import EmptyNetworkError, UsageError
from ..graph.layer_types import LayerType
from ..graph.module import GraphNetwork
from ..graph.nodes import Graph, Node, layer_groups, layer_nodes
from ..model.likelihoods import Likelihood
from ..posterior.curvature import Curvature, density_of
from ..posterior.summary import LayerPosterior
from ..posterior.thresholds import is_coded, removed_outputs
from ..priors.divergence import divergence as kl_from
from ..quantisation.conditional import CodeLengths, Factor, cheapest_entries, factorised, round_rows, steps_of
from ..quantisation.fixed_point import STEPS_PER_OCTAVE, FixedPoint
from ..quantisation.rounding import on_grid
from ..runtime import processes
from ..runtime.devices import on_cpu
from ..runtime.inputs import Batch, tensors_of
from ..runtime.random_state import seeded
from .normalisation import without_pruned_shifts

# How often the lengths of codes are estimated anew.
_PASSES = 3

# Steps are so many quarters of an octave above those of high rates: where most codes are 0, and what they cost is known
# near the weights only, fewer zeros of smaller codes are worth more (measured on both LeNets: bytes at equal divergence
# fall by 3 and 25 %).
_COARSER = 5

# Rows that say nothing of the data have this part of the mean row's precision.
_LEAST = 1e-4

# Posterior precision of what has no variance, beside the largest that has some.
_EXACT = 1e12

# Where the search for a price begins, its longest stride and its end, as logarithms; how close to the divergence it has
# to come, and how often it tries.
_FIRST_PRICE, _STRIDE, _HIGHEST_PRICE, _CLOSE, _EVALUATIONS = -8.0, 4.0, 25.0, 0.8, 7

# Inputs of one pass through the network.
_PART = 250

#: nats by which a network's predictions change where nobody says how far they may.
DIVERGENCE = 0.002


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


@dataclass(frozen=True)
class Priced:
    """What a layer's codes are chosen by.

    :param cost: precision of each row, ``(out,)``.
    :param factors: of its inputs' second moments, block by block.
    :param rows: posterior means, a bias in the last column.
    """

    cost: Tensor
    factors: tuple[Factor, ...]
    rows: Tensor
    has_bias: bool


@dataclass(frozen=True)
class Entries:
    """What each of a layer's weights is rounded by where none is told of the others.

    :param means: posterior means, ``(out, n)``, a bias not among them.
    :param price: nats of a squared error of 1 once all that is rounded later has made up for it, ``(out, n)``.
    :param exponents: of the rows' steps, in quarters of an octave, ``(out,)``.
    :param bias_step: step that the bias's posterior allows.
    """

    means: Tensor
    price: Tensor
    exponents: Tensor
    bias_step: float


@on_cpu
def priced(
    graph: Graph,
    posterior: Mapping[str, LayerPosterior],
    curvature: Mapping[str, Curvature] | None,
    num_data: int,
    row_precision: Mapping[str, Tensor],
) -> dict[str, Priced | None]:
    """What the codes of the layers are chosen by, by name; None for a layer whose variances say all.

    :param posterior: by the layer's name in the graph.
    :param curvature: of the layers; None for another posterior.
    :param row_precision: of each row of a layer's weight and its bias, ``(out, n, n)``, where the posterior is another
        that correlates them.
    """
    nodes = layer_nodes(graph)
    found: dict[str, Priced | None] = {}
    for name, layer in posterior.items():
        if name not in nodes or layer.codes:
            continue
        found[name] = None
        rows, has_bias = _rows_of(layer, layer_groups(nodes[name]))
        if curvature is not None:
            own = curvature[name]
            found[name] = Priced(costs_of(own, num_data), by_blocks(own.of(has_bias), has_bias), rows, has_bias)
        elif name in row_precision:
            factor = factorised(row_precision[name], has_bias)
            found[name] = Priced(torch.ones(len(rows)), (factor,), rows, has_bias)
    return found


def costs_of(curvature: Curvature, num_data: int) -> Tensor:
    """Precision of each row of a layer, ``(out,)``."""
    cost = num_data * curvature.softened
    return cost.clamp_min(max(_LEAST * float(cost.mean()), 1e-20))


def by_blocks(inputs: Sequence[Tensor], has_bias: bool) -> tuple[Factor, ...]:
    """Factors of a layer's second moments, block by block; where there is a bias, it is the last input of the last."""
    last = len(inputs) - 1
    return tuple(factorised(own, has_bias and at == last) for at, own in enumerate(inputs))


def _rows_of(layer: LayerPosterior, groups: int) -> tuple[Tensor, bool]:
    """Posterior means as rows, and whether a bias is their last entry."""
    rows = layer.layer_type.rows(layer.weight_mean, groups)
    if layer.bias_mean is None:
        return rows, False
    return torch.cat([rows, layer.bias_mean[:, None]], 1), True


@on_cpu
def rate_coded(
    graph: Graph,
    posterior: Mapping[str, LayerPosterior],
    prices: Mapping[str, Priced | None],
    nats_per_bit: float,
) -> dict[str, LayerPosterior]:
    """The layers' posteriors, with codes for the weights and biases of all that the graph multiplies with.

    :param prices: of :func:`priced`.
    :param nats_per_bit: price of a bit, in nats of the posterior.
    """
    nodes = layer_nodes(graph)
    result = dict(posterior)
    for name, price in prices.items():
        layer, groups = posterior[name], layer_groups(nodes[name])
        if price is None:
            coded = _independent(layer, groups, nats_per_bit)
        else:
            coded = _dependent(price, layer.layer_type, nats_per_bit)
        result[name] = replace(layer, codes=stored_rows(layer, nodes[name], coded))
    return result


@on_cpu
def entries_of(layer: LayerPosterior, price: Priced | None, groups: int, nats_per_bit: float) -> Entries:
    """A layer's weights, one by one; ``price`` and ``nats_per_bit`` as in :func:`rate_coded`."""
    if price is None:
        return _diagonal(layer, groups, nats_per_bit)
    columns = []
    for factor in price.factors:
        pivots = factor.upper.diagonal(dim1=-2, dim2=-1)
        by_group = torch.zeros_like(pivots).scatter_(1, factor.order, 1 / pivots.square())
        columns.append(by_group.repeat_interleave(len(price.cost) // len(by_group), 0))
    each = 0.5 * price.cost[:, None] * torch.cat(columns, 1)
    last = price.rows.shape[1] - price.has_bias
    step = step_of(float(price.cost.mean()), nats_per_bit) if price.has_bias else 0.0
    return Entries(price.rows[:, :last], each[:, :last], _exponents_of(price, layer.layer_type, nats_per_bit), step)


def _exponents_of(price: Priced, kind: LayerType, nats_per_bit: float) -> Tensor:
    by_theory = [steps_of(price.cost, factor, nats_per_bit) for factor in price.factors]
    return _of_rows(torch.stack(by_theory).double().mean(0) + _COARSER, kind)


def _dependent(price: Priced, kind: LayerType, nats_per_bit: float) -> CodedRows:
    exponent = _exponents_of(price, kind, nats_per_bit)
    codes, left = conditioned(price, price.rows, torch.exp2(exponent / STEPS_PER_OCTAVE), nats_per_bit)
    if not price.has_bias:
        return CodedRows(codes, exponent, None, 0.0)
    # Nothing is rounded behind the bias, whose mean has made up for all that was before.
    return CodedRows(codes[:, :-1], exponent, left[:, -1], step_of(float(price.cost.mean()), nats_per_bit))


@on_cpu
def conditioned(
    price: Priced, rows: Tensor, steps: Tensor, nats_per_bit: float, zeros: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Codes of rows, and the conditional means that were rounded to them, both ``(out, n)``; a bias is the last entry.

    :param rows: means, of the shape of the layer's own.
    :param steps: of each row, ``(out,)``.
    :param zeros: entries whose code stays 0, boolean, of the rows' shape; None for none.
    """
    codes, means = [], []
    sizes = [factor.order.shape[1] for factor in price.factors]
    held = torch.zeros_like(rows, dtype=torch.bool) if zeros is None else zeros
    for part, zero, factor in zip(rows.split(sizes, 1), held.split(sizes, 1), price.factors, strict=True):
        own, left = (part / steps[:, None]).round().long(), part
        for _ in range(_PASSES):
            lengths = CodeLengths(own)
            lengths.nonzero = lengths.nonzero.masked_fill(zero, math.inf)
            own, left, _ = round_rows(part, price.cost, factor, steps, nats_per_bit, lengths)
        codes.append(own)
        means.append(left)
    return torch.cat(codes, 1), torch.cat(means, 1)


@on_cpu
def price_for(
    graph: Graph,
    posterior: Mapping[str, LayerPosterior],
    prices: Mapping[str, Priced | None],
    likelihood: Likelihood,
    x: Batch,
    divergence: float,
) -> float:
    """The highest price of a bit at which the network's predictions change by so much.

    :param likelihood: whose densities are compared.
    :param x: inputs on which they are.
    :param divergence: mean KL of the coded network's predictions from the network's own, in nats an input.
    :raises UsageError: where ``divergence`` is not positive.
    :raises EmptyNetworkError: where the same prediction for all inputs is as near as that.
    """
    if not divergence > 0:
        raise UsageError(f"divergence is what predictions may change by, in nats, and positive, not {divergence!r}")
    outputs = outputs_of(graph, posterior, x)
    before = density_of(likelihood, outputs)

    def change_to(others: Tensor) -> float:
        with seeded(0, tensors_of(x)[0].device):  # the draw that stands in for a KL without a closed form
            mean = kl_from("y", before, density_of(likelihood, others)).mean()
        processes.average_([mean])  # each has examples of its own, and all one price
        value = float(mean)
        return value if math.isfinite(value) else math.inf

    def change(log_price: float) -> float:
        return change_to(outputs_of(graph, rate_coded(graph, posterior, prices, math.exp(log_price)), x))

    if 0 < change_to(outputs.mean(0, keepdim=True).expand_as(outputs)) <= divergence:
        raise EmptyNetworkError(
            f"one prediction for all inputs would differ from the network's own by less than {divergence:g} nats, so "
            f"that nothing of it is worth a bit: train the network first, or give nats_per_bit"
        )

    # Changes are about proportional to prices: each one says where the next is.
    low, high, price = -math.inf, math.inf, _FIRST_PRICE
    for _ in range(_EVALUATIONS):
        value = change(price)
        low, high = (price, high) if value <= divergence else (low, price)
        if _CLOSE * divergence <= value <= divergence or abs(price) >= _HIGHEST_PRICE:
            break
        ratio = 0.5 * (1 + _CLOSE) * divergence / max(value, 1e-30)
        price += min(_STRIDE, max(-_STRIDE, math.log(max(ratio, 1e-30))))
        if not low < price < high:
            price = 0.5 * (low + high)
    while low == -math.inf and high > -_HIGHEST_PRICE:
        high -= _STRIDE
        low = high if change(high) <= divergence else low
    low = max(low, -_HIGHEST_PRICE)
    return math.exp(low)


@torch.no_grad()
@on_cpu
def outputs_of(graph: Graph, posterior: Mapping[str, LayerPosterior], x: Batch) -> Tensor:
    """The network's outputs with the layers' means, or with the numbers that their codes stand for."""
    tensors, removed = dict(graph.tensors), {}
    for name, layer in posterior.items():
        for role, mean in (("weight", layer.weight_mean), ("bias", layer.bias_mean)):
            if f"{name}.{role}" in tensors and mean is not None:
                tensors[f"{name}.{role}"] = layer.codes[role].values() if role in layer.codes else mean
        if layer.codes:  # as they will be cut
            removed[name] = removed_outputs(layer, is_coded(layer.codes["weight"]))
            if f"{name}.bias" in tensors:
                tensors[f"{name}.bias"] = tensors[f"{name}.bias"] * ~removed[name]
    graph = without_pruned_shifts(replace(graph, tensors=tensors), removed)
    network = GraphNetwork(graph.nodes, graph.tensors, graph.buffers).float()  # as files compute
    inputs = (part.float() if part.is_floating_point() else part for part in tensors_of(x))
    parts = zip(*(part.split(_PART) for part in inputs), strict=True)
    return torch.cat([network(*part) for part in parts])


def _independent(layer: LayerPosterior, groups: int, nats_per_bit: float) -> CodedRows:
    """The diagonal case: every entry has a precision of its own."""
    entries = _diagonal(layer, groups, nats_per_bit)
    steps = torch.exp2(entries.exponents / STEPS_PER_OCTAVE)[:, None]
    codes = (entries.means / steps).round().long()
    for _ in range(_PASSES):
        codes = cheapest_entries(entries.means, entries.price, steps, nats_per_bit, CodeLengths(codes))
    return CodedRows(codes, entries.exponents, layer.bias_mean, entries.bias_step)


def _diagonal(layer: LayerPosterior, groups: int, nats_per_bit: float) -> Entries:
    kind = layer.layer_type
    means = kind.rows(layer.weight_mean, groups)
    precision = _precision(kind.rows(layer.weight_variance, groups))
    exponent = _of_rows(_exponents(precision.mean(1), nats_per_bit).double(), kind)
    step = 0.0
    if layer.bias_mean is not None and layer.bias_variance is not None:
        step = step_of(float(_precision(layer.bias_variance).mean()), nats_per_bit)
    return Entries(means, 0.5 * precision, exponent, step)


def _of_rows(exponents: Tensor, kind: LayerType) -> Tensor:
    """Whole exponents of the rows' steps; where rows are no rows of the tensor, one power of two for all."""
    if not kind.output_axis:
        return exponents.round().long()
    common = STEPS_PER_OCTAVE * round(float(exponents.mean()) / STEPS_PER_OCTAVE)
    return torch.full_like(exponents, common, dtype=torch.long)


def _precision(variance: Tensor) -> Tensor:
    """One over the variance, with a bound for what has none."""
    known = variance[variance > 0]
    largest = float(1 / known.min()) if len(known) else 1.0
    return torch.where(variance > 0, 1 / variance, min(_EXACT, 1e4 * largest)).clamp_max(_EXACT)


def _exponents(cost: Tensor, nats_per_bit: float) -> Tensor:
    diagonal = Factor(torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, 1))
    return steps_of(cost, diagonal, nats_per_bit)


def step_of(cost: float, nats_per_bit: float) -> float:
    """The best step of numbers of this precision, as a power of two."""
    exponent = _exponents(torch.tensor([max(cost, 1e-20)]), nats_per_bit)
    return 2.0 ** (int(exponent) // STEPS_PER_OCTAVE)


def stored_rows(layer: LayerPosterior, node: Node, coded: CodedRows) -> dict[str, FixedPoint]:
    """Codes as a file holds them, in the shape of the weight."""
    kind = layer.layer_type
    codes = kind.from_rows(coded.codes, layer.weight_mean.shape, layer_groups(node))
    smallest = int(coded.exponents.min())
    base = smallest // STEPS_PER_OCTAVE
    rows = coded.exponents - STEPS_PER_OCTAVE * base
    if kind.output_axis:  # one step, as a power of two
        found = {"weight": FixedPoint(codes.contiguous(), -base)}
    else:
        found = {"weight": FixedPoint(codes.contiguous(), -base, rows=rows)}
    if coded.bias is not None:
        found["bias"] = on_grid(coded.bias, -math.log2(coded.bias_step) if coded.bias_step > 0 else math.inf)
    return found
