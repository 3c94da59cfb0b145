"""From a fitted :class:`~pyro_bc.RateNetwork` to a compressed network: codes as they are, without dead units."""

import math
from dataclasses import replace

from ..file.chain import PLAIN, find_chain
from ..file.compressed import CompressedNetwork
from ..graph.nodes import Named, is_layer
from ..quantisation.fixed_point import FixedPoint

# Activations that leave 0 where it is: a unit of zeros feeds nothing.
_KEEP_ZERO = {op for op, _ in PLAIN if op != "sigmoid"}


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
