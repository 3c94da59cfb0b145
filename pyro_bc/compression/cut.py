"""A graph with only the units that are left: its tensors are cut, and its nodes rewritten for their new sizes.

A layer holds only the outputs that it computes and the inputs that it reads, also where others of the same units
stay: its result gets the zeros that are missing, and what it reads is selected before it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..graph.layer_types import layer_type
from ..graph.nodes import (
    Graph,
    Named,
    Node,
    Value,
    is_layer,
    layer_groups,
    layer_name,
    replace_leaves,
    without_dead_code,
    without_nodes,
)
from ..graph.operations import operation
from ..graph.unit_rules import layer_axis, statistics_axis
from ..graph.units import Tracking
from .pruned import PrunedLayer

# A layer is cut to less than its units where at most this part of its weights is left, and so many go: selecting takes
# nodes and indices in the file, and copies what it selects from.
_WORTHWHILE, _LEAST = 0.9, 32

# Operations whose results are of one number, with the sizes among their arguments.
_FILLED = ("zeros", "new_zeros", "new_ones", "new_full")

#: of a node's result.
Shape = tuple[Any, ...] | None


class Units:
    """Which units are left, along the axes of a graph's values and tensors."""

    def __init__(self, tracking: Tracking, living: set[int]):
        self._find, self._living = tracking.units.roots, list(living)

    def are_left(self, units: np.ndarray) -> np.ndarray:
        """Which of them are, boolean."""
        return np.isin(self._find(units), self._living)

    def kept(self, units: np.ndarray) -> Tensor:
        """Indices of those that are."""
        return torch.from_numpy(np.flatnonzero(self.are_left(units)))

    def count(self, units: np.ndarray) -> int:
        return int(self.are_left(units).sum())


@dataclass(frozen=True)
class Part:
    """What is left of a layer's weight.

    :param outputs: of the whole layer, in the order in which the part computes them; some may not be read.
    :param inputs: channels of what the whole layer reads, in the order in which the part reads them, group by group.
    :param groups: of a convolution.
    :param constants: what outputs of the whole layer are that read nothing, ``(out,)``; None for 0.
    """

    outputs: Tensor
    inputs: Tensor
    groups: int
    constants: Tensor | None = None

    def cut(self, tensor: Tensor, node: Node) -> Tensor:
        """This part of a tensor of the weight's shape."""
        kind, groups = layer_type(node.op), layer_groups(node)
        if groups == 1:
            return entries_of(entries_of(tensor, kind.output_axis, self.outputs), kind.input_axis, self.inputs)
        per_group = tensor.shape[1]
        columns = self.inputs.reshape(self.groups, -1)  # of the groups that are left
        of_output = self.outputs.reshape(self.groups, -1)
        own = of_output[:, 0] * groups // tensor.shape[0]  # which groups those are
        local = columns - own[:, None] * per_group
        inside = (local >= 0) & (local < per_group)  # what fills up a group is read from anywhere, with weights 0
        inside[:, 1:] &= columns[:, 1:] != columns[:, :-1]
        index = local.clamp(0, per_group - 1).repeat_interleave(of_output.shape[1], 0)
        index = index.reshape(*index.shape, *[1] * (tensor.dim() - 2)).expand(-1, -1, *tensor.shape[2:])
        result = tensor[self.outputs].gather(1, index)
        inside = inside.repeat_interleave(of_output.shape[1], 0)
        return result * inside.reshape(*inside.shape, *[1] * (tensor.dim() - 2))


def entries_of(tensor: Tensor, axis: int, indices: Tensor) -> Tensor:
    """Some entries of an axis; the tensor itself, and no copy, where they are all."""
    everything = len(indices) == tensor.shape[axis] and torch.equal(indices, torch.arange(len(indices)))
    return tensor if everything else tensor.index_select(axis, indices)


def part_of(layer: PrunedLayer, node: Node, outputs: Tensor, inputs: Tensor) -> Part:
    """The part of a layer that is computed from these inputs and read as these outputs.

    :param outputs: indices of those that are left, ``(out_left,)``.
    :param inputs: indices of the channels that are left of what it reads, of all groups, ``(in_left,)``.
    """
    part = _part_of(layer, node, outputs, inputs)
    return part if layer.codes else replace(part, constants=layer.bias)


def _part_of(layer: PrunedLayer, node: Node, outputs: Tensor, inputs: Tensor) -> Part:
    kind, groups = layer_type(node.op), layer_groups(node)
    mask = kind.by_output(layer.mask)
    mask = mask.flatten(2).any(2) if mask.dim() > 2 else mask
    computes = mask.any(1)
    if layer.bias is not None and layer.codes:  # which are added by the layer alone
        computes = computes | (layer.bias != 0)
    rows = outputs[computes[outputs]]
    if kind.is_lookup:  # any of its rows may be asked for
        rows = rows if len(rows) and pays(len(rows), len(outputs), len(inputs)) else outputs
        return Part(rows, inputs, 1)
    if groups == 1:
        kernel = layer.mask[0, 0].numel()
        rows = rows if pays(len(rows), len(outputs), len(inputs) * kernel) else outputs
        rows = rows if len(rows) else outputs[:1]
        together = 1 if kind.spatial or not layer.codes else math.prod(layer.codes["weight"].grid)
        grids = inputs.reshape(-1, together)  # of a convolution, a grid is a kernel
        columns = grids[mask[rows].any(0)[grids].any(1)].flatten()
        # A selection of inputs takes time, and some bytes, more than zeros do where codes are cheap.
        if (kind.spatial or layer.codes) and not pays(len(columns), len(inputs), len(rows) * kernel):
            columns = inputs
        return Part(rows, columns if len(columns) else grids[0], 1)
    per_out, per_in = len(mask) // groups, mask.shape[1]
    chosen = []
    for group in range(groups):
        own = rows[rows // per_out == group]
        if len(own):
            read = torch.nonzero(mask[own].any(0)).flatten() + group * per_in
            chosen.append((group, own, read))
    if not chosen:
        chosen = [(int(outputs[0]) // per_out, outputs[:1], outputs[:0])]
    wide, deep = max(len(own) for _, own, _ in chosen), max(1, *(len(read) for _, _, read in chosen))
    all_rows, all_columns = [], []
    for group, own, read in chosen:
        spare = torch.arange(group * per_out, (group + 1) * per_out)
        all_rows.append(_filled(own, wide, spare))
        spare = inputs[inputs // per_in == group]
        all_columns.append(_filled(read, deep, spare if len(spare) >= deep else torch.cat([spare, inputs])))
    part = Part(torch.cat(all_rows), torch.cat(all_columns), len(chosen))
    whole = len(outputs) == len(mask) and len(inputs) == per_in * groups
    if whole and len(part.outputs) * deep > _WORTHWHILE * mask.numel():
        return Part(outputs, inputs, groups)
    return part


def pays(left: int, of: int, each: int) -> bool:
    """Whether it pays to leave some out, of so many weights each."""
    return left <= _WORTHWHILE * of and (of - left) * each >= _LEAST


def _filled(some: Tensor, count: int, spare: Tensor) -> Tensor:
    """As many indices, those of ``some`` among them, in ascending order where ``spare`` is."""
    others = spare[~torch.isin(spare, some)][: count - len(some)]
    if len(some) + len(others) < count:
        others = torch.cat([others, spare[:1].expand(count - len(some) - len(others))])
    return torch.cat([some, others]).sort().values


def inputs_left(tracking: Tracking, units: Units, node: Node) -> Tensor:
    """Indices of the channels that are left of what a layer reads, of all its groups."""
    weight = node.args[1].name
    known = tracking.grouped.get(weight)
    return units.kept(tracking.tensors[weight][layer_type(node.op).input_axis] if known is None else known)


class Cutter:
    """Rewrites a graph's nodes for the units and the parts of layers that are left.

    :param read: indices of the nodes that the output needs.
    :param parts: by the name of a layer and its operation; the others stay whole.
    :param read_by_cells: by the index of a node of recurrent cells, which of the inputs that are left they read.
    :param tensors: those of the new graph; selections are added.
    """

    def __init__(
        self,
        graph: Graph,
        tracking: Tracking,
        units: Units,
        read: set[int],
        parts: Mapping[tuple[str, str], Part],
        read_by_cells: Mapping[int, Tensor],
        tensors: dict[str, Tensor],
    ):
        self.graph, self.tracking, self.units, self.read = graph, tracking, units, read
        self.parts, self.read_by_cells, self.tensors = parts, read_by_cells, tensors
        self.nodes: list[Node] = []
        self.shapes: list[Shape] = [graph.shapes[0]]

    def rewritten(self) -> Graph:
        """The new graph."""
        new: dict[int, int] = {}
        for index, node in enumerate(self.graph.nodes):
            if index not in self.read:
                continue
            args, kwargs = (
                replace_leaves(
                    tree, lambda leaf: Value(new.get(leaf.index, leaf.index)) if isinstance(leaf, Value) else leaf
                )
                for tree in (self._resized(node, index), node.kwargs)
            )
            moved = Node(node.op, args, kwargs)
            if is_layer(node) and (layer_name(node), node.op) in self.parts:
                self._layer(node, moved, index)
            elif index in self.read_by_cells:
                x, *rest = moved.args
                before = self._shape_of(node.args[0])
                x = self._selected(x, 2, self.read_by_cells[index], f"{node.named()[0]}_inputs", before)
                self._add(replace(moved, args=(x, *rest)), self._shape(index))
            elif not operation(node.op).statistics or not self._normalised(node, moved, index):
                self._add(moved, self._shape(index))
            new[index] = len(self.nodes) - 1
        graph = replace(self.graph, nodes=tuple(self.nodes), tensors=self.tensors, shapes=tuple(self.shapes))
        return _merge_selections(graph)

    def _shape(self, index: int) -> Shape:
        """The new shape of a node's result."""
        shape = self.graph.shape(index)
        if shape is None:
            return None
        axes = {} if index < 0 else self.tracking.values[index]
        return tuple(self.units.count(axes[axis]) if axis in axes else size for axis, size in enumerate(shape))

    def _shape_of(self, reference: Any) -> tuple[Any, ...]:
        """The new shape of what a node reads."""
        return tuple(
            self.tensors[reference.name].shape if isinstance(reference, Named) else self._shape(reference.index) or ()
        )

    def _add(self, node: Node, shape: Shape) -> Value:
        self.nodes.append(node)
        self.shapes.append(shape)
        return Value(len(self.nodes) - 1)

    def _selected(self, x: Any, axis: int, indices: Tensor, name: str, shape: tuple[Any, ...]) -> Value:
        """Some entries of an axis of what has this shape."""
        name = _free_name(name, self.tensors)
        self.tensors[name] = indices
        node = Node("index_select", (x, axis - len(shape), Named(name)))
        return self._add(node, (*shape[:axis], len(indices), *shape[axis + 1 :]))

    def _padded(self, x: Any, axis: int, count: int, shape: tuple[Any, ...]) -> tuple[Value, tuple[Any, ...]]:
        """Zeros behind what there is along an axis."""
        larger = (*shape[:axis], shape[axis] + count, *shape[axis + 1 :])
        amounts = (*(0, 0) * (len(shape) - 1 - axis), 0, count)
        return self._add(Node("pad", (x, amounts)), larger), larger

    def _layer(self, node: Node, moved: Node, index: int) -> None:
        """A layer, with a selection of its inputs before it, and behind it zeros for what it does not compute."""
        name, part, kind = layer_name(node), self.parts[layer_name(node), node.op], layer_type(node.op)
        after = self._shape(index) or ()
        axis = layer_axis(node, len(after))
        inputs = inputs_left(self.tracking, self.units, node)
        places = torch.searchsorted(inputs, part.inputs)
        x, *rest = moved.args
        if not torch.equal(places, torch.arange(len(inputs))):
            x = self._selected(x, axis, places, f"{name}_inputs", self._shape_of(node.args[0]))
        if part.groups != layer_groups(node):
            rest[2 + kind.arguments.index("groups")] = part.groups
        shape = (*after[:axis], len(part.outputs), *after[axis + 1 :])
        result = self._add(replace(moved, args=(x, *rest)), shape)
        outputs = self.units.kept(self.tracking.values[index][axis])
        if torch.equal(outputs, part.outputs):
            return
        missing = outputs[~torch.isin(outputs, part.outputs)]
        if len(missing):
            result, shape = self._padded(result, axis, len(missing), shape)
        there, places = torch.cat([part.outputs, missing]).sort()
        result = self._selected(result, axis, places[torch.isin(there, outputs)], f"{name}_outputs", shape)
        if part.constants is not None and bool(part.constants[missing].any()):
            added = torch.where(torch.isin(outputs, missing), part.constants[outputs], torch.zeros(()))
            constants = _free_name(f"{name}_constants", self.tensors)
            self.tensors[constants] = added.reshape(-1, *[1] * kind.spatial)
            self._add(Node("add", (result, Named(constants))), self._shape(index))

    def _normalised(self, node: Node, moved: Node, index: int) -> bool:
        """A normalisation whose statistics count the zeros of channels that are gone; False where none are."""
        shape = self._shape(index) or ()
        axis = statistics_axis(self.graph, index)
        units = self.tracking.values[index].get(axis)
        if units is None or self.units.count(units) == len(units):
            return False
        left = self.units.are_left(units)
        x, over, *scales = moved.args
        if node.op == "group_norm":
            groups = left.reshape(over, -1)
            groups = groups[groups.any(1)]  # of one that is gone, nothing is counted
            if groups.all():
                self._add(replace(moved, args=(x, len(groups), *scales)), shape)
                return True
            left, over = groups.ravel(), len(groups)
        else:
            left = left[np.argsort(~left, kind="stable")]
            over = (len(left),)
        gone = int((~left).sum())
        name = node.named()[0] if node.named() else f"{node.op}{index}"
        x, padded = self._padded(x, axis, gone, shape)
        there, others = np.flatnonzero(left), np.flatnonzero(~left)
        places = np.argsort(np.concatenate([there, others]))
        if node.op == "group_norm":
            x = self._selected(x, axis, torch.from_numpy(places), f"{name}_places", padded)
        plain = [None if isinstance(scale, Named) else scale for scale in scales]
        x = self._add(replace(moved, args=(x, over, *plain)), padded)
        if node.op == "group_norm":
            x = self._selected(x, axis, torch.from_numpy(there), f"{name}_left", padded)
        else:
            x = self._add(Node("slice", (x, axis, 0, len(there))), shape)
        for op, scale in zip(("mul", "add"), scales, strict=False):
            if isinstance(scale, Named):
                self._add(Node(op, (x, self._along(scale, axis - len(shape), index))), shape)
                x = Value(len(self.nodes) - 1)
        return True

    def _along(self, scale: Named, axis: int, index: int) -> Named:
        """A gain or shift that broadcasts along an axis, counted from the end."""
        tensor = self.tensors[scale.name]
        if axis == -1:
            return scale
        uses = sum(other.named().count(scale.name) for other in self.graph.nodes)
        name = scale.name if uses == 1 else _free_name(f"{scale.name}_{index}", self.tensors)
        self.tensors[name] = tensor.reshape(-1, *[1] * (-1 - axis))
        return Named(name)

    def _resized(self, node: Node, index: int) -> tuple[Any, ...]:
        """A node's arguments, where they name sizes or places of axes that became smaller."""
        axes, args = self.tracking.values[index], node.args
        before = self.tracking.shape(args[0]) if args else ()
        if node.op in _FILLED:
            return tuple(
                tuple(self._size(axes, axis, size) for axis, size in enumerate(argument))
                if isinstance(argument, tuple)
                else argument
                for argument in args
            )
        if node.op in ("view", "reshape", "expand"):
            sizes = enumerate(args[1])
            return (args[0], tuple(self._size(axes, axis, size) for axis, size in sizes), *args[2:])
        if node.op == "unflatten":
            start = args[1] % len(before)
            return (*args[:2], tuple(self._size(axes, start + i, size) for i, size in enumerate(args[2])))
        if node.op in ("select", "slice"):
            dim = args[1] % len(before)
            source = self.tracking.of(args[0]).get(dim)
            if source is None:
                return args
            if node.op == "select":
                return (*args[:2], self.units.count(source[: range(len(source))[args[2]]]))
            if dim in axes:
                start, end, _ = slice(*args[2:4]).indices(len(source))
                return (*args[:2], self.units.count(source[:start]), self.units.count(source[: max(start, end)]))
        if node.op == "pad":
            amounts = list(args[1])
            for i in range(len(amounts) // 2):
                axis, pair = len(before) - 1 - i, amounts[2 * i : 2 * i + 2]
                if axis in axes and any(pair):
                    units = axes[axis]
                    first, last = units[: pair[0]], units[len(units) - pair[1] :]
                    amounts[2 * i : 2 * i + 2] = self.units.count(first), self.units.count(last)
            return (args[0], tuple(amounts), *args[2:])
        return args

    def _size(self, axes: Mapping[int, np.ndarray], axis: int, size: Any) -> Any:
        return self.units.count(axes[axis]) if axis in axes and isinstance(size, int) and size >= 0 else size


def _free_name(name: str, taken: Mapping[str, Any]) -> str:
    while name in taken:
        name += "_"
    return name


def _merge_selections(graph: Graph) -> Graph:
    """The graph where no selection reads one that nothing else reads, and none selects everything."""
    nodes, tensors = list(graph.nodes), dict(graph.tensors)
    replaced: dict[int, int] = {}
    for index, node in enumerate(nodes):
        if node.op != "index_select" or not isinstance(node.args[2], Named) or not isinstance(node.args[0], Value):
            continue
        x, dim, chosen = node.args
        before = nodes[x.index] if x.index >= 0 else None
        ndim = len(graph.shape(index) or ())
        if before is not None and before.op == "index_select" and (before.args[1] - dim) % ndim == 0:
            readers = sum(other.values().count(x.index) for other in nodes)
            if readers == 1 and isinstance(before.args[2], Named):
                tensors[chosen.name] = tensors[before.args[2].name][tensors[chosen.name]]
                x = before.args[0]
                nodes[index] = replace(node, args=(x, dim, chosen))
        if len(tensors[chosen.name]) == (graph.shape(x.index) or ())[dim] and _ascends(tensors[chosen.name]):
            replaced[index] = x.index
    graph = replace(graph, nodes=tuple(nodes), tensors=tensors)
    return without_dead_code(without_nodes(graph, replaced))


def _ascends(indices: Tensor) -> bool:
    return bool((indices.diff() > 0).all())
