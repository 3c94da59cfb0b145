"""A graph with what only moves entries written as what can be followed unit by unit: slices and selections.

Several ways of writing the same come to one. A part of a ``split`` or ``chunk`` is a slice. Channels that are viewed as
a table, turned and put back, a shuffle, are a selection in another order. What is divided by its root mean square is
normalised. Patches that are cut out of pictures are one turn of axes. What is selected of an axis that was split, as
the queries of an attention's one projection, is selected before it is split.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .mean_squares import with_root_mean_squares
from .nodes import Graph, Named, Node, Value, replace_leaves, without_dead_code
from .unit_rules import factors_of, permutation

_VIEWS = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"}
_TURNS = {"permute", "transpose", "t"}
_SAME = {"contiguous", "clone"}

# Larger results are not looked at: their entries are numbered.
_MOST = 2**22

Shape = tuple[Any, ...]


@dataclass(frozen=True)
class _Moved:
    """Where the entries of a result lie in an earlier one.

    :param root: that result.
    :param steps: nodes between the two, and the shapes of their results.
    """

    root: Value
    steps: tuple[tuple[Node, Shape], ...] = ()


def in_normal_form(graph: Graph) -> Graph:
    """The same function in operations that units are followed through."""
    return _Rewriter(with_root_mean_squares(graph)).rewritten()


class _Rewriter:
    def __init__(self, graph: Graph):
        self.graph = graph
        self.nodes: list[Node] = []
        self.shapes: list[Shape | None] = [graph.shapes[0]]
        self.tensors = dict(graph.tensors)
        self.buffers = set(graph.buffers)
        self.moved: dict[int, _Moved] = {}
        #: the same also through axes that hold the batch and more.
        self.through: dict[int, _Moved] = {}

    def rewritten(self) -> Graph:
        new: dict[int, Value] = {}
        for index, node in enumerate(self.graph.nodes):
            args, kwargs = (
                replace_leaves(tree, lambda leaf: new.get(leaf.index, leaf) if isinstance(leaf, Value) else leaf)
                for tree in (node.args, node.kwargs)
            )
            node = Node(node.op, args, kwargs)
            shape = self.graph.shape(index)
            found = None
            if not kwargs and args and _is_known(shape):
                assert shape is not None
                found = self._piece(node) or self._before_the_split(node) or self._as_selection(node, shape)
            new[index] = self._add(node, shape) if found is None else found
        output = new[len(self.graph.nodes) - 1].index
        if output < 0:
            return self.graph
        nodes, shapes = tuple(self.nodes[: output + 1]), tuple(self.shapes[: output + 2])
        graph = replace(self.graph, nodes=nodes, tensors=self.tensors, shapes=shapes, buffers=frozenset(self.buffers))
        return without_dead_code(graph)

    def _add(self, node: Node, shape: Shape | None) -> Value:
        self.nodes.append(node)
        self.shapes.append(shape)
        return Value(len(self.nodes) - 1)

    def _shape(self, value: Any) -> Shape | None:
        """Its shape, where all sizes but that of the batch are known."""
        if not isinstance(value, Value):
            return None
        shape = self.shapes[value.index + 1] if value.index >= -1 else self.graph.shape(value.index)
        return shape if _is_known(shape) else None

    def _piece(self, node: Node) -> Value | None:
        """A part of what is split, as a slice; one of what is unbound, as a selection."""
        if node.op != "getitem" or not isinstance(node.args[0], Value) or node.args[0].index < 0:
            return None
        several, entry = self.nodes[node.args[0].index], node.args[1]
        if several.op not in ("split", "split_with_sizes", "chunk", "unbind") or several.kwargs:
            return None
        x, *given = several.args
        shape = self._shape(x)
        if shape is None:
            return None
        dim = (given[-1] if len(given) == 2 or (given and several.op == "unbind") else 0) % len(shape)
        size = shape[dim]
        if not isinstance(size, int) or (len(given) == 0 and several.op != "unbind"):
            return None
        if several.op == "unbind":
            rest = (*shape[:dim], *shape[dim + 1 :])
            selected = Node("select", (x, dim, entry))
            return self._before_the_split(selected) or self._add(selected, rest)
        if isinstance(given[0], tuple):
            start = sum(given[0][:entry])
            end = start + given[0][entry]
        else:
            each = -(-size // given[0]) if several.op == "chunk" else given[0]
            start, end = entry * each, min(size, (entry + 1) * each)
        return self._sliced(x, dim, start, end, shape)

    def _sliced(self, x: Any, dim: int, start: int, end: int, shape: Shape) -> Value:
        return self._add(Node("slice", (x, dim, start, end)), (*shape[:dim], end - start, *shape[dim + 1 :]))

    def _as_selection(self, node: Node, shape: Shape) -> Value | None:
        """Movements that only reorder one axis, as a selection; others are noted."""
        x = node.args[0]
        if node.op not in _VIEWS | _TURNS | _SAME or self._shape(x) is None:
            return None
        through = self.through.get(x.index) or _Moved(x)
        through = _Moved(through.root, (*through.steps, (node, shape)))
        turned = self._as_one_turn(through, shape)
        if turned is not None:
            self.through[turned.index] = through
            return turned
        before = self.moved.get(x.index) or _Moved(x)
        steps = (*before.steps, (node, shape))
        root = self._shape(before.root) or ()
        if [size for size in shape if isinstance(size, str)] != [size for size in root if isinstance(size, str)]:
            value = self._add(node, shape)  # the batch became part of an axis
            self.through[value.index] = through
            return value
        if before.steps and shape == root and torch.Size(_sizes(root)).numel() <= _MOST:
            numbers = _numbers(root)
            places = _moved(numbers, steps)
            if torch.equal(places, numbers):
                return before.root
            for axis in _axes(shape):
                order = places.movedim(axis, 0).flatten(1)[:, 0] // numbers.stride(axis) % shape[axis]
                if torch.equal(numbers.index_select(axis, order), places):
                    return self._selected(before.root, axis, order, root)
        value = self._add(node, shape)
        self.moved[value.index] = _Moved(before.root, steps)
        self.through[value.index] = through
        return value

    def _as_one_turn(self, moved: _Moved, shape: Shape) -> Value | None:
        """Movements through an axis that is a batch of more than the examples, as one turn of the axes of each.

        So patches are cut out of pictures: channels are part of the batch on the way, and can be followed again here.
        """
        x, steps, root = moved.root, moved.steps, self._shape(moved.root) or ()
        batch = root[0] if root else 0
        mixed = [size for _, own in steps[:-1] for size in own if isinstance(size, str) and size != batch]
        if not mixed or not isinstance(batch, str) or not all(isinstance(size, int) for size in root[1:]):
            return None
        shapes = [[_with_batch(size, batch) for size in own] for own in (root, *(own for _, own in steps))]
        if any(size is None for own in shapes for size in own) or math.prod(shapes[0]) > _MOST:  # type: ignore[arg-type]
            return None
        numbers = torch.arange(math.prod(shapes[0])).reshape(shapes[0])  # type: ignore[arg-type]
        places = numbers
        for (node, _), own in zip(steps, shapes[1:], strict=True):
            turns = node.op in _TURNS
            places = places.permute(permutation(node, places.dim())) if turns else places.reshape(own)  # type: ignore[arg-type]
        digits = _digits(places, numbers.stride())
        in_root = sorted(digits, key=lambda digit: -digit[1])
        order = [in_root.index(digit) for digit in digits]
        sizes = [size for size, _ in in_root]
        if math.prod(sizes) != numbers.numel():
            return None
        if not torch.equal(numbers.reshape(sizes).permute(order).reshape(places.shape), places):
            return None
        split = [batch if stride == numbers.stride(0) else size for size, stride in in_root]
        value = self._add(Node("reshape", (x, tuple(-1 if s == batch else s for s in split))), tuple(split))
        value = self._add(Node("permute", (value, tuple(order))), tuple(split[at] for at in order))
        return self._add(Node("reshape", (value, tuple(s if isinstance(s, int) else -1 for s in shape))), shape)

    def _selected(self, x: Value, axis: int, order: Tensor, shape: Shape) -> Value:
        """Entries of an axis: a slice where they are neighbours."""
        if bool((order.diff() == 1).all()):
            return self._sliced(x, axis, int(order[0]), int(order[-1]) + 1, shape)
        name = f"order{len(self.nodes)}"
        while name in self.tensors:
            name += "_"
        self.tensors[name] = order.clone()
        self.buffers.add(name)
        return self._add(Node("index_select", (x, axis, Named(name))), (*shape[:axis], len(order), *shape[axis + 1 :]))

    def _before_the_split(self, node: Node) -> Value | None:
        """An entry of an axis that was split off another one, selected from that one."""
        if node.op != "select" or not isinstance(node.args[0], Value):
            return None
        moved = self.moved.get(node.args[0].index)
        steps = [] if moved is None else [step for step in moved.steps if step[0].op not in _SAME]
        while steps and steps[0][0].op in _TURNS:
            steps.pop(0)
        if not steps or steps[0][0].op not in ("view", "reshape", "unflatten"):
            return None
        (split, shape), *turns = steps
        if any(step.op not in _TURNS for step, _ in turns):
            return None
        root = self._shape(split.args[0]) or ()
        if torch.Size(_sizes(root)).numel() > _MOST:
            return None
        numbers = _numbers(root)
        places = _moved(numbers, steps)
        dim, entry = node.args[1:]
        dim, parts = dim % places.dim(), places.shape[dim]
        places = places.select(dim, entry)
        for axis in _axes(root):
            order = (places.flatten() // numbers.stride(axis) % root[axis]).unique()
            if len(order) * parts == root[axis]:
                break
        else:
            return None
        for step, own in reversed(turns):
            dim = permutation(step, len(own))[dim]
        shape = (*shape[:dim], *shape[dim + 1 :])
        sizes = tuple(size if isinstance(size, int) else -1 for size in shape)
        fewer: list[tuple[Node, Shape]] = [(Node("reshape", (None, sizes)), shape)]
        left = dim
        for step, _ in turns:
            order_of = permutation(step, len(shape) + 1)
            kept = tuple(old - (old > left) for old in order_of if old != left)
            left = order_of.index(left)
            shape = tuple(shape[old] for old in kept)
            fewer.append((Node("permute", (None, kept)), shape))
        if not torch.equal(_moved(numbers.index_select(axis, order), fewer), places):
            return None
        value = self._selected(split.args[0], axis, order, root)
        for step, own in fewer:
            value = self._add(replace(step, args=(value, *step.args[1:])), own)
        return value


def _is_known(shape: Shape | None) -> bool:
    return bool(shape) and sum(not isinstance(size, int) for size in shape or ()) <= 1


def _sizes(shape: Shape) -> list[int]:
    return [size if isinstance(size, int) else 2 for size in shape]


def _with_batch(size: Any, batch: str) -> int | None:
    """A size for a batch of 2; None where it depends on something else."""
    if isinstance(size, int):
        return size
    factors = factors_of(size)
    known = all(factor == batch or factor.isdigit() for factor in factors)
    return math.prod(2 if factor == batch else int(factor) for factor in factors) if known else None


def _digits(places: Tensor, strides: tuple[int, ...]) -> list[tuple[int, int]]:
    """The axes of a tensor of places split so that each counts along one axis of these strides: sizes and strides."""
    found: list[tuple[int, int]] = []
    for axis in range(places.dim()):
        line = places[tuple(slice(None) if other == axis else 0 for other in range(places.dim()))].tolist()
        own: list[tuple[int, int]] = []
        block = 1
        while block < len(line):
            step, count = line[block] - line[0], 1
            # Not beyond the axis that it counts along.
            end = min((stride for stride in strides if stride > step), default=places.numel())
            while count * block < len(line) and line[count * block] - line[0] == count * step < end:
                count += 1
            own.append((count, step))
            block *= count
        found += reversed(own)
    return found


def _axes(shape: Shape) -> list[int]:
    """Axes of a known size."""
    return [axis for axis, size in enumerate(shape) if isinstance(size, int)]


def _numbers(shape: Shape) -> Tensor:
    """A tensor of this shape, for a batch of 2, that holds the number of each of its entries."""
    sizes = _sizes(shape)
    return torch.arange(torch.Size(sizes).numel()).reshape(sizes)


def _moved(entries: Tensor, steps: Iterable[tuple[Node, Shape]]) -> Tensor:
    """The entries where movements put them."""
    for node, shape in steps:
        if node.op in _TURNS:
            entries = entries.permute(permutation(node, entries.dim()))
        elif node.op in _VIEWS:
            entries = entries.reshape(_sizes(shape))
    return entries
