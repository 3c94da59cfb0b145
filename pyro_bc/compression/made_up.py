r"""What pruning takes from a layer, made up for by the weights that it keeps.

A factorised posterior says of every group alone that it is not needed. Many that are weak carry a signal together, and
what they gave goes with them: of a layer :math:`y = W x` of which the columns P are pruned, :math:`W_P x_P`. Where
:math:`A = \mathbb{E}[x x^\top]` is known, so is what of it the others can say. Around its mean the log-likelihood has,
for a row of W, the precision :math:`N G A` (:mod:`pyro_bc.posterior.curvature`), and given that the columns P are 0 the
others have the conditional mean

.. math:: W_K \leftarrow W_K + W_P\, A_{PK}\, A_{KK}^{-1},

the least squares of the layer's own outputs (the optimal brain surgeon of Hassibi and Stork 1993, of whole groups). The
constant that a bias multiplies is one of K.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..graph.nodes import Graph, layer_groups, layer_nodes
from ..model.likelihoods import Likelihood
from ..posterior.curvature import Curvature, collect
from ..posterior.summary import LayerPosterior
from ..runtime.devices import on_cpu
from .pruned import PrunedLayer, PrunedNetwork, with_values

# The part of its inputs' mean square by which each of them is taken to vary alone: some are constant, or others' sums.
_RIDGE = 1e-3


def inputs_at_mean(
    graph: Graph, posterior: Mapping[str, LayerPosterior], likelihood: Likelihood, loader: Iterable[Any], seed: int
) -> dict[str, Curvature]:
    """The second moments of what layers read, in the network of the posterior mean, by the layer's name.

    :param graph: of the network.
    :param posterior: of its layers.
    :param loader: as for :func:`~pyro_bc.posterior.curvature.collect`.
    """
    at_mean = with_values(graph, {name: (own.weight_mean, own.bias_mean) for name, own in posterior.items()})
    return collect(at_mean, likelihood, loader, seed=seed, progress=False).layers


@on_cpu
def made_up(
    pruned: PrunedNetwork, graph: Graph, posterior: Mapping[str, LayerPosterior], inputs: Mapping[str, Curvature]
) -> PrunedNetwork:
    """The pruned network whose layers make up for the columns that they lost.

    Layers whose inputs are not known stay as they are, and so do codes, layers in groups and those of which single
    weights are pruned.

    :param pruned: what was left of ``graph``.
    :param inputs: of :func:`inputs_at_mean`.
    """
    nodes = layer_nodes(graph)
    layers, tensors = dict(pruned.layers), dict(pruned.graph.tensors)
    for name, left in pruned.layers.items():
        whole = posterior.get(name)
        if whole is None or name not in inputs or name not in nodes or layer_groups(nodes[name]) > 1:
            continue
        found = _made_up(left, whole, inputs[name])
        if found is not None:
            layers[name] = found
            tensors[f"{name}.weight"] = found.weight
            if found.bias is not None:
                tensors[f"{name}.bias"] = found.bias
    return replace(pruned, graph=replace(pruned.graph, tensors=tensors), layers=layers)


def _made_up(left: PrunedLayer, whole: LayerPosterior, curvature: Curvature) -> PrunedLayer | None:
    kind = whole.layer_type
    if left.kept is None or left.codes or whole.codes or kind.is_lookup or kind.output_axis:
        return None
    if left.weight.shape[2:] != whole.weight_mean.shape[2:] or not bool(left.mask.all()):
        return None
    if left.bias is not None and whole.bias_mean is None:
        return None  # a constant that a layer without a bias took up
    outputs, channels = left.kept
    size = whole.weight_mean.flatten(2).shape[2] if whole.weight_mean.dim() > 2 else 1
    stays = torch.zeros(whole.weight_mean.shape[1], size, dtype=torch.bool)
    stays[channels] = True
    rows = whole.weight_mean[outputs].flatten(1)
    has_bias = left.bias is not None and whole.bias_mean is not None
    if has_bias and whole.bias_mean is not None:
        rows = torch.cat([rows, whole.bias_mean[outputs][:, None]], 1)
    kept = torch.cat([stays.flatten(), torch.ones(int(has_bias), dtype=torch.bool)])
    if rows.shape[1] != sum(own.shape[-1] for own in curvature.of(has_bias)) or bool(kept.all()):
        return None
    found = torch.cat([
        _conditional(part, own[0], part_kept)
        for part, own, part_kept in _by_blocks(rows, curvature.of(has_bias), kept)
    ], 1)  # fmt: skip
    weight = found[:, : stays[channels].numel()].reshape(left.weight.shape).contiguous()
    return replace(left, weight=weight, bias=found[:, -1].contiguous() if has_bias else left.bias)


def _by_blocks(rows: Tensor, inputs: tuple[Tensor, ...], kept: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    sizes = [own.shape[-1] for own in inputs]
    return list(zip(rows.split(sizes, 1), inputs, kept.split(sizes), strict=True))


def _conditional(rows: Tensor, moments: Tensor, kept: Tensor) -> Tensor:
    """The columns that are kept, where the others are 0, ``(out, kept)``."""
    moments, rows = moments.double(), rows.double()
    within = moments[kept][:, kept]
    ridge = _RIDGE * within.diagonal() + 1e-12
    gone = rows[:, ~kept] @ moments[~kept][:, kept]
    return (rows[:, kept] + torch.linalg.solve(within + ridge.diag(), gone.T).T).float()
