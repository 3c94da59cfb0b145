"""From a fitted :class:`~pyro_bc.rate.RateNetwork` to a compressed network: codes as they are, without dead units."""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from .chain import PLAIN, Layer, find_chain, prune
from .compressed import CompressedNetwork
from .errors import EmptyNetworkError, UnsupportedNetworkError, UsageError
from .fileformat import MOST_COSINES, Integers, Stored
from .graph import Graph, GraphNetwork, Named, Value, is_layer
from .precision import FixedPoint
from .rate import CellGuide, RateNetwork

# Activations that leave 0 where it is: a unit of zeros feeds nothing.
_KEEP_ZERO = {op for op, _ in PLAIN if op != "sigmoid"}


def spatial_grids(graph: Graph) -> dict[str, tuple[int, ...]]:
    """Grids over which a network's weights are smooth: kernels, and pictures that a fully connected layer reads.

    :returns: by the name of the weight, sizes of the grid in its last entries; other weights are left out, and those
        that are too large for a file to hold as coefficients.
    """
    grids: dict[str, tuple[int, ...]] = {}
    for node in graph.nodes:
        if not is_layer(node) or not isinstance(node.args[0], Value):
            continue
        name, source = node.args[1].name, node.args[0].index
        shape: tuple = tuple(graph.tensors[name].shape[2:])
        if node.op == "linear" and source >= 0 and graph.nodes[source].op == "flatten":
            read = graph.nodes[source].args[0]
            shape = (graph.shape(read.index) or ())[2:] if isinstance(read, Value) else ()
        fits = graph.tensors[name].numel() <= MOST_COSINES
        if fits and all(isinstance(size, int) for size in shape) and math.prod(shape) > 1:
            grids[name] = shape
    return grids


def compress_codes(
    model: RateNetwork,
    guide: CellGuide,
    graph: Graph,
    *,
    dense_shapes: Mapping[str, tuple[int, int]] | None = None,
    dense_parameters: int | None = None,
) -> CompressedNetwork:
    """The network of rounded codes, in steps that are powers of two; units that feed nothing are left out of a chain.

    :param model: fitted, its steps powers of two (:meth:`~pyro_bc.rate.RateNetwork.snap_steps_`).
    :param guide: its guide.
    :param graph: of the model's network; its tensors' values do not matter.
    :param dense_shapes: outputs and inputs of every layer of the network to compare with, by the name of its weight;
        None for those of the graph.
    :param dense_parameters: of that network.
    :raises UsageError: where a step is no power of two, or the graph is not the model's.
    :raises EmptyNetworkError: where all codes of a layer are 0.
    """
    if set(model.names) - set(graph.tensors):
        raise UsageError("the graph is not that of the model's network: their parameters differ")
    codes = {name: code.detach().round().long().cpu() for name, code in zip(model.names, guide.codes, strict=True)}
    tensors: dict[str, Stored] = {}
    for name, value in graph.tensors.items():
        if name in codes:
            fraction_bits = -torch.log2(model.steps()[model.names.index(name)].detach().double())
            if abs(float(fraction_bits - fraction_bits.round())) > 1e-4:
                raise UsageError(f"the step of '{name}' is no power of two; call model.snap_steps_() before")
            tensors[name] = FixedPoint(codes[name], int(fraction_bits.round()), model.grids.get(name, ()))
        elif value.dtype == torch.int64:
            tensors[name] = Integers(value)
        else:
            raise UnsupportedNetworkError(
                f"'{name}' is a tensor that is not trained; fold batch normalisation before (fold_batch_norm)"
            )
    for node in graph.nodes:
        if is_layer(node) and not codes[node.args[1].name].any():
            raise EmptyNetworkError(
                f"nothing is left of '{node.args[1].name}': all of its codes are 0. Use a lower KL weight"
            )
    weights = [node.args[1].name for node in graph.nodes if is_layer(node)]
    shapes = {name: (graph.tensors[name].shape[0], graph.tensors[name].shape[1]) for name in weights}
    small = CompressedNetwork(
        nodes=graph.nodes,
        tensors=tensors,
        dense_shapes=dict(dense_shapes or shapes),
        dense_parameters=dense_parameters or sum(codes[name].numel() for name in model.names),
        input_shape=tuple(size for size in graph.shapes[0] or () if isinstance(size, int)),
        buffers=graph.buffers,
        thresholds={},
    )
    return without_dead_units(small)


def without_dead_units(small: CompressedNetwork) -> CompressedNetwork:
    """A chain without the units whose codes are all 0, and without those that no code reads; others as they are."""
    shapes = {name: tuple(t.codes.shape) for name, t in small.tensors.items() if isinstance(t, FixedPoint)}
    found = find_chain(small.nodes, shapes, small.dense_shapes, small.dense_parameters, small.input_shape)
    if found is None:
        return small
    layers = [node for node in small.nodes if is_layer(node)]
    between = _operations_between(small)
    changed = True
    while changed:
        changed = False
        for first, second, operations in zip(layers, layers[1:], between, strict=False):
            own, following = (small.tensors[node.args[1].name] for node in (first, second))
            assert isinstance(own, FixedPoint) and isinstance(following, FixedPoint)
            units = len(own.codes)
            bias = small.tensors[first.args[2].name] if isinstance(first.args[2], Named) else None
            by_unit = following.codes.reshape(len(following.codes), units, -1)
            alive = by_unit.flatten(2).any(2).any(0)
            if operations <= _KEEP_ZERO:
                fed = own.codes.flatten(1).any(1)
                alive &= fed if not isinstance(bias, FixedPoint) else fed | (bias.codes != 0)
            if alive.all() or not alive.any():
                continue
            changed = True
            kept = dict(small.tensors)
            kept[first.args[1].name] = replace(own, codes=own.codes[alive])
            if isinstance(bias, FixedPoint):
                kept[first.args[2].name] = replace(bias, codes=bias.codes[alive])
            left = by_unit[:, alive]
            shape = (len(left), -1) if following.codes.dim() == 2 else (len(left), -1, *following.codes.shape[2:])
            kept[second.args[1].name] = replace(following, codes=left.reshape(shape))
            small = replace(small, tensors=kept)
    return small


def _operations_between(small: CompressedNetwork) -> list[set[str]]:
    """What lies between each layer of a chain and the next."""
    result: list[set[str]] = []
    for node in small.nodes:
        if is_layer(node):
            result.append(set())
        elif result:
            result[-1].add(node.op)
    return result


def narrowed(graph: Graph, widths: tuple[int, ...]) -> tuple[Graph, dict[str, tuple[int, int]], int]:
    """A chain with fewer hidden units, freshly initialised, in place of the dense network.

    :param graph: the dense network's; a chain (:mod:`pyro_bc.chain`).
    :param widths: outputs of every layer but the last.
    :returns: the narrower graph, and the dense network's shapes and parameters, for :func:`compress_codes`.
    :raises UsageError: where the network is no chain, or a width is impossible.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in graph.tensors.items()}
    weights = [node.args[1].name for node in graph.nodes if is_layer(node)]
    dense_shapes = {name: (shapes[name][0], shapes[name][1]) for name in weights}
    parameters = sum(tensor.numel() for tensor in graph.tensors.values())
    input_shape = tuple(size for size in graph.shapes[0] or () if isinstance(size, int))
    found = find_chain(graph.nodes, shapes, dense_shapes, parameters, input_shape)
    if found is None:
        raise UsageError("widths can be given for a chain of layers, activations and pools only; this network is none")
    layers = [step for step in found[0].steps if isinstance(step, Layer)]
    most = [layer.outputs for layer in layers[:-1]]
    if len(widths) != len(most) or not all(1 <= width <= limit for width, limit in zip(widths, most, strict=False)):
        raise UsageError(f"widths are {len(most)} numbers of at most {'-'.join(map(str, most))}, not {widths}")
    small = prune(found[0], (*widths, layers[-1].outputs))
    tensors: dict[str, Tensor] = {}
    for name, shape in zip(shapes, small.shapes.values(), strict=True):
        tensors[name] = torch.zeros(shape)
        if len(shape) > 1:
            tensors[name].normal_(0, math.sqrt(2 / math.prod(shape[1:])))  # He et al. 2015, for rectified units
    meta = {name: tensor.to("meta") for name, tensor in tensors.items()}
    return Graph(graph.nodes, tensors, _shapes(graph, meta), graph.buffers), dense_shapes, parameters


def _shapes(graph: Graph, tensors: Mapping[str, Tensor]) -> tuple:
    """Shapes of the results with other tensors; the batch comes first in all results of a chain."""
    batch, *rest = graph.shapes[0] or ()
    results = GraphNetwork(graph.nodes, tensors, graph.buffers).results(
        graph.nodes, torch.empty(2, *rest, device="meta")
    )
    return (graph.shapes[0], *((batch, *value.shape[1:]) for value in results))
