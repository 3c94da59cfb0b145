"""From a fitted :class:`~pyro_bc.RateNetwork` to a compressed network: codes as they are, without dead units."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from .chain import PLAIN, find_chain
from .compressed import CompressedNetwork
from .errors import EmptyNetworkError, UnsupportedNetworkError, UsageError
from .graph import Graph, Named, Value, is_layer
from .precision import FixedPoint, to_fixed_point
from .rate import CellGuide, RateNetwork
from .stored import Integers, Stored
from .tensorcode import MOST_ADAPTIVE, is_grid

# Activations that leave 0 where it is: a unit of zeros feeds nothing.
_KEEP_ZERO = {op for op, _ in PLAIN if op != "sigmoid"}


def spatial_grids(graph: Graph) -> dict[str, tuple[int, ...]]:
    """Grids over which a network's weights are smooth: kernels, and pictures that a fully connected layer reads.

    :returns: by the name of the weight, sizes of the grid in its last entries; other weights are left out, and the
        largest, where they are more than a file takes as coefficients.
    """
    grids: dict[str, tuple[int, ...]] = {}
    for node in graph.nodes:
        if not is_layer(node) or not isinstance(node.args[0], Value):
            continue
        name, source = node.args[1].name, node.args[0].index
        shape: tuple[Any, ...] = tuple(graph.tensors[name].shape[2:])
        if node.op == "linear" and source >= 0 and graph.nodes[source].op == "flatten":
            read = graph.nodes[source].args[0]
            shape = (graph.shape(read.index) or ())[2:] if isinstance(read, Value) else ()
        known = all(isinstance(size, int) for size in shape) and math.prod(shape) > 1
        if known and is_grid(tuple(graph.tensors[name].shape), shape):
            grids[name] = shape
    left = MOST_ADAPTIVE
    for name in sorted(grids, key=lambda name: graph.tensors[name].numel()):
        left -= graph.tensors[name].numel()
        if left < 0:
            del grids[name]
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
        elif value.is_floating_point():  # not trained, an input's mean: kept as it is
            tensors[name] = to_fixed_point(value, torch.zeros_like(value))
        else:
            raise UnsupportedNetworkError(f"tensor '{name}' of type {value.dtype} cannot be stored in a file")
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
    if find_chain(small.nodes, shapes, small.dense_shapes, small.input_shape) is None:
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
            if following.codes[0].numel() // units % max(1, math.prod(following.grid)):
                continue  # its coefficients are of several units each
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
