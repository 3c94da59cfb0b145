"""Convolutions of groups that pruning left unequal, as several convolutions of equal ones.

One convolution has as many filters and channels in every group as its fullest, and zeros in the others. Groups of like
sizes become convolutions of their own where that saves more weights than it takes to select what each reads and to put
their results back in order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..file.contents import FURTHER_PART
from ..graph.layer_types import layer_type
from ..graph.nodes import (
    Named,
    Node,
    Value,
    is_layer,
    layer_groups,
    layer_name,
    replace_leaves,
    without_dead_code,
)
from .pruned import PrunedLayer, PrunedNetwork

# What another convolution takes, as so many weights: its nodes; and each of its filters, a place in the order.
_EACH, _PLACE = 64, 4

# Convolutions become several where at most this part of their weights is left.
_WORTHWHILE = 0.9


@dataclass(frozen=True)
class _Class:
    """Groups that become one convolution.

    :param groups: by number, ascending.
    :param rows: filters of each.
    :param columns: channels that each of them reads.
    """

    groups: tuple[int, ...]
    rows: int
    columns: int

    def weights(self, kernel: int) -> int:
        return len(self.groups) * (self.rows * self.columns * kernel + self.rows * _PLACE) + _EACH

    def joined(self, other: "_Class") -> "_Class":
        groups = tuple(sorted(self.groups + other.groups))
        return _Class(groups, max(self.rows, other.rows), max(self.columns, other.columns))


def unequal_apart(network: PrunedNetwork) -> PrunedNetwork:
    """The network whose convolutions of unequal groups are several, and each layer of it under a name of its own."""
    return _Splitter(network).result() if any(_is_grouped(node) for node in network.graph.nodes) else network


def _is_grouped(node: Node) -> bool:
    return is_layer(node) and layer_groups(node) > 1 and not layer_type(node.op).is_transposed


class _Splitter:
    def __init__(self, network: PrunedNetwork):
        self.graph, self.layers = network.graph, dict(network.layers)
        self.tensors = dict(network.graph.tensors)
        self.parts: dict[str, str] = {}
        self.nodes: list[Node] = []
        self.shapes: list[Any] = [network.graph.shapes[0]]
        self.readers: dict[int, list[int]] = {}
        uses: dict[str, int] = {}
        for index, node in enumerate(self.graph.nodes):
            for value in node.values():
                self.readers.setdefault(value, []).append(index)
            for name in node.named():
                uses[name] = uses.get(name, 0) + 1
        self.once = {name for name, count in uses.items() if count == 1}

    def result(self) -> PrunedNetwork:
        new: dict[int, int] = {}

        def moved(leaf: Any) -> Any:
            return Value(new.get(leaf.index, leaf.index)) if isinstance(leaf, Value) else leaf

        for index, node in enumerate(self.graph.nodes):
            if index in new:  # a selection that went into the order of what it selects from
                continue
            own = Node(node.op, replace_leaves(node.args, moved), replace_leaves(node.kwargs, moved))
            classes = self._classes(index, node)
            if classes is None:
                self._add(own, self.graph.shape(index))
            else:
                behind = self._split(index, node, own, classes)
                if behind is not None:
                    new[behind] = len(self.nodes) - 1
            new[index] = len(self.nodes) - 1
        graph = replace(self.graph, nodes=tuple(self.nodes), tensors=self.tensors, shapes=tuple(self.shapes))
        graph = without_dead_code(graph)
        return PrunedNetwork(graph, self.layers, self.parts)

    def _add(self, node: Node, shape: Any) -> Value:
        self.nodes.append(node)
        self.shapes.append(shape)
        return Value(len(self.nodes) - 1)

    def _classes(self, index: int, node: Node) -> list[_Class] | None:
        """How a convolution's groups come apart; None where it stays one."""
        if not _is_grouped(node) or not isinstance(node.args[0], Value) or node.args[0].index < -1:
            return None
        layer, groups = self.layers.get(layer_name(node)), layer_groups(node)
        if layer is None or layer.codes or node.args[1].name not in self.once:
            return None
        rows, columns = _live(layer, groups)
        kernel = layer.mask[0, 0].numel()
        sizes: dict[tuple[int, int], list[int]] = {}
        for group in range(groups):
            if rows[group].any():
                size = (int(rows[group].sum()), max(1, int(columns[group].sum())))
                sizes.setdefault(size, []).append(group)
        found = [_Class(tuple(own), *size) for size, own in sizes.items()]
        while len(found) > 1:
            at, other = min(
                ((a, b) for a in range(len(found)) for b in range(a)),
                key=lambda pair: _gain(found[pair[0]], found[pair[1]], kernel),
            )
            if _gain(found[at], found[other], kernel) > 0:
                break
            joined = found[at].joined(found[other])
            found = [one for place, one in enumerate(found) if place not in (at, other)] + [joined]
        least = sum(one.weights(kernel) for one in found)
        return sorted(found, key=lambda one: one.groups) if least <= _WORTHWHILE * layer.weight.numel() else None

    def _split(self, index: int, node: Node, own: Node, classes: Sequence[_Class]) -> int | None:
        """The convolutions, and their results in order; the selection behind them that went into it, if any."""
        name, kind, groups = layer_name(node), layer_type(node.op), layer_groups(node)
        layer, shape = self.layers[name], self.graph.shape(index) or ()
        axis = len(shape) - 1 - kind.spatial
        rows, columns = _live(layer, groups)
        per_out, per_in = len(layer.weight) // groups, layer.weight.shape[1]
        readers = self.readers.get(index, [])
        behind = self._selection(readers[0], axis, len(shape)) if len(readers) == 1 else None
        x, chosen = own.args[0], torch.arange(groups * per_in)
        before = self.nodes[x.index] if x.index >= 0 else None
        if before is not None and self._selects(before, axis, len(shape)):
            x, chosen = before.args[0], self.tensors[before.args[2].name]
        read = self.shapes[own.args[0].index + 1]
        results, outputs = [], []
        for number, one in enumerate(classes):
            own_name = self._free(name, number)
            of_outputs = torch.cat([_filled(rows[g], one.rows) + g * per_out for g in one.groups])
            of_inputs = torch.stack([_filled(columns[g], one.columns) for g in one.groups])
            selected = (of_inputs + torch.tensor(one.groups)[:, None] * per_in).flatten()
            part = _part(layer, own_name, of_outputs, of_inputs.repeat_interleave(one.rows, 0))
            self.layers[own_name] = part
            self.parts[own_name] = name
            self.tensors[f"{own_name}.weight"] = part.weight
            bias = None
            if part.bias is not None:
                bias, self.tensors[f"{own_name}.bias"] = Named(f"{own_name}.bias"), part.bias
            source = self._selected(x, axis, chosen[selected], f"{own_name}_inputs", read)
            rest = list(own.args[3:])
            rest[kind.arguments.index("groups")] = len(one.groups)
            sized = (*shape[:axis], len(of_outputs), *shape[axis + 1 :])
            results.append(self._add(Node(node.op, (source, Named(f"{own_name}.weight"), bias, *rest)), sized))
            outputs.append(of_outputs)
        there = torch.cat(outputs)
        result = self._add(Node("cat", (tuple(results), axis)), (*shape[:axis], len(there), *shape[axis + 1 :]))
        wanted = torch.arange(len(layer.weight))
        if behind is not None:
            wanted = self.tensors[self.graph.nodes[behind].args[2].name]
        missing = wanted[~torch.isin(wanted, there)]
        if len(missing):  # of filters that nothing is left of
            there = torch.cat([there, missing[:1]])
            amounts = (*(0, 0) * (len(shape) - 1 - axis), 0, 1)
            sized = (*shape[:axis], len(there), *shape[axis + 1 :])
            result = self._add(Node("pad", (result, amounts)), sized)
        places = {int(output): place for place, output in enumerate(there)}
        zero = len(there) - 1
        order = torch.tensor([places.get(int(output), zero) for output in wanted])
        self._selected(result, axis, order, f"{name}_order", (*shape[:axis], len(there), *shape[axis + 1 :]))
        return behind

    def _selection(self, index: int, axis: int, ndim: int) -> int | None:
        node = self.graph.nodes[index]
        return index if self._selects(node, axis, ndim) and node.args[2].name in self.once else None

    @staticmethod
    def _selects(node: Node, axis: int, ndim: int) -> bool:
        return node.op == "index_select" and isinstance(node.args[2], Named) and node.args[1] % ndim == axis

    def _selected(self, x: Any, axis: int, indices: Tensor, name: str, shape: tuple[Any, ...]) -> Value:
        while name in self.tensors:
            name += "_"
        self.tensors[name] = indices
        node = Node("index_select", (x, axis - len(shape), Named(name)))
        return self._add(node, (*shape[:axis], len(indices), *shape[axis + 1 :]))

    def _free(self, name: str, number: int) -> str:
        """The layer's own name for its first part, and others for those behind it."""
        own = name if not number else f"{name}_{number}"  # beside it: a layer that becomes another keeps nothing in it
        while number and f"{own}.weight" in self.tensors:
            own += "_"
        return own


def _gain(one: _Class, other: _Class, kernel: int) -> int:
    """By how much two classes are larger as one than as two."""
    return one.joined(other).weights(kernel) - one.weights(kernel) - other.weights(kernel)


def _live(layer: PrunedLayer, groups: int) -> tuple[Tensor, Tensor]:
    """By group, which of its filters compute something, and which of its channels they read."""
    mask = layer.mask.flatten(2).any(2)
    computes = mask.any(1) if layer.bias is None else mask.any(1) | (layer.bias != 0)
    return computes.reshape(groups, -1), mask.reshape(groups, -1, mask.shape[1]).any(1)


def _filled(some: Tensor, count: int) -> Tensor:
    """As many indices, all that are True among them, ascending; others fill up."""
    order = torch.argsort(~some, stable=True)
    return order[:count].sort().values


def _part(layer: PrunedLayer, name: str, outputs: Tensor, inputs: Tensor) -> PrunedLayer:
    """These filters of a layer, with these channels of each."""

    def cut(tensor: Tensor) -> Tensor:
        index = inputs.reshape(*inputs.shape, *[1] * (tensor.dim() - 2)).expand(-1, -1, *tensor.shape[2:])
        return tensor[outputs].gather(1, index)

    bias, bias_variance = (None if t is None else t[outputs] for t in (layer.bias, layer.bias_variance))
    return PrunedLayer(name, cut(layer.weight), cut(layer.variance), cut(layer.mask), bias, bias_variance)


def with_parts(shapes: Mapping[str, tuple[int, int]], parts: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of every layer before pruning; of one that came apart, its first part has the layer's."""
    further = {f"{own}.weight": FURTHER_PART for own, name in parts.items() if own != name}
    return dict(shapes) | further
