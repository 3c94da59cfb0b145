"""Rules for units: what each kind of operation does to the channels along the axes of its arguments."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from .layer_types import layer_type
from .nodes import Graph, Named, Node, Value, is_layer, layer_groups, leaves
from .recurrent import cells

#: units along the followed axes of one tensor: axis to an array of one unit number per entry.
Axes = dict[int, np.ndarray]


class Units:
    """Disjoint sets of unit numbers, some of them fixed."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._fixed: dict[int, int] = {}
        #: the position in the graph of what fixes units now.
        self.position = 0

    def new(self, count: int) -> np.ndarray:
        """That many units of their own."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def find(self, unit: int) -> int:
        """The number that stands for the unit and all that is one with it."""
        root = unit
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[unit] != root:
            self._parent[unit], unit = root, self._parent[unit]
        return root

    def roots(self, units: Iterable[int]) -> np.ndarray:
        """:meth:`find` of each, as an array."""
        return np.array([self.find(int(unit)) for unit in units], dtype=np.int64)

    def all_roots(self) -> np.ndarray:
        """:meth:`find` of every unit."""
        return self.roots(range(len(self._parent)))

    def join(self, some: np.ndarray, others: np.ndarray) -> None:
        """Make pairs of units one."""
        for a, b in zip(some.ravel(), others.ravel(), strict=True):
            self._parent[self.find(int(b))] = self.find(int(a))

    def join_all(self, units: np.ndarray) -> None:
        """Make all of these one unit."""
        self.join(np.broadcast_to(units.ravel()[:1], units.ravel().shape), units)

    def fix(self, units: np.ndarray) -> None:
        """Say that these stay."""
        for unit in units.ravel():
            self._fixed.setdefault(int(unit), self.position)

    def fixed(self) -> set[int]:
        """Roots that stay."""
        return {self.find(unit) for unit in self._fixed}

    def fixed_by(self, units: np.ndarray) -> int | None:
        """The position in the graph of what fixed one of these first; None where nothing did."""
        roots = set(self.roots(units.ravel()).tolist())
        return min((at for unit, at in self._fixed.items() if self.find(unit) in roots), default=None)


class FollowedUnits:
    """The units of every axis that is followed so far: what a rule reads, and what it adds to.

    ``of(reference)`` gives those of a :class:`~pyro_bc.graph.nodes.Value` or :class:`~pyro_bc.graph.nodes.Named`.
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self.units = Units()
        self.values: list[Axes] = []
        self.tensors: dict[str, Axes] = {name: {} for name in graph.tensors}
        #: what convolutions of several groups read, by the name of the weight: it has an axis for one group's alone.
        self.grouped: dict[str, np.ndarray] = {}

    def of(self, reference: Any) -> Axes:
        """Followed axes of a node's result, of a named tensor, or (none) of a literal."""
        if isinstance(reference, Value):
            return self.values[reference.index] if reference.index >= 0 else {}
        return self.tensors[reference.name] if isinstance(reference, Named) else {}

    def shape(self, reference: Any) -> tuple[Any, ...]:
        """Its shape; a dimension that depends on the batch size is a string."""
        if isinstance(reference, Value):
            return self.graph.shape(reference.index) or ()
        return tuple(self.graph.tensors[reference.name].shape) if isinstance(reference, Named) else ()

    def fix_axes(self, reference: Any, *only: int) -> None:
        """Say that the units along these axes stay, of all axes where none is named."""
        for axis, units in self.of(reference).items():
            if not only or axis in only:
                self.units.fix(units)

    def name_axis(self, name: str, axis: int, units: np.ndarray) -> np.ndarray:
        """Give a named tensor's axis its units, or make them one with those that it has."""
        known = self.tensors[name].setdefault(axis, units)
        if known is not units:
            self.units.join(known, units)
        return known


def unknown(t: FollowedUnits, node: Node) -> Axes:
    for leaf in leaves((node.args, node.kwargs)):
        t.fix_axes(leaf)
    return {}


def elementwise(t: FollowedUnits, node: Node) -> Axes:
    if any(isinstance(leaf, Value | Named) for leaf in leaves((node.args[1:], node.kwargs))):
        return unknown(t, node)
    return dict(t.of(node.args[0]))


def size(t: FollowedUnits, node: Node) -> Axes:
    return {}  # of the batch: all other sizes are known numbers


def layer_axis(node: Node, ndim: int) -> int:
    """The axis of its input that a layer's weight reads, and of its result that it computes."""
    return ndim - 1 - layer_type(node.op).spatial


def layer(t: FollowedUnits, node: Node) -> Axes:
    if not is_layer(node):
        return unknown(t, node)
    x, weight, bias = node.args[0], node.args[1].name, (*node.args, None)[2]
    shape = t.graph.tensors[weight].shape
    ndim = len(t.shape(x))
    axis = layer_axis(node, ndim)
    inputs = t.of(x).get(axis)
    kind, groups = layer_type(node.op), layer_groups(node)
    out, into = kind.output_axis, kind.input_axis
    outputs = t.name_axis(weight, out, t.tensors[weight].get(out, t.units.new(shape[out])))
    if groups == 1:
        if inputs is None:
            inputs = t.tensors[weight].get(into)
        if inputs is None:  # what is read is not followed: it stays
            inputs = t.units.new(shape[into])
            t.units.fix(inputs)
        t.name_axis(weight, into, inputs)
    elif kind.is_transposed:  # a weight has outputs of one group, once for all of them: all stay
        t.units.fix(outputs)
        t.fix_axes(x, axis)
        return {}
    else:
        if inputs is None:
            inputs = t.units.new(shape[into] * groups)
            t.units.fix(inputs)
        known = t.grouped.setdefault(weight, inputs)
        if known is not inputs:
            t.units.join(known, inputs)
    if bias is not None:
        t.name_axis(bias.name, 0, outputs)
    if not kind.spatial:
        passed = {a: units for a, units in t.of(x).items() if a < axis}
    else:
        t.fix_axes(x, *[a for a in t.of(x) if a != axis] or [-1])
        passed = {}
    return passed | {axis: outputs}


def lookup(t: FollowedUnits, node: Node) -> Axes:
    """Rows of a table: its columns are what it computes, and its rows stay."""
    if not is_layer(node):
        return unknown(t, node)
    weight, kind = node.args[1].name, layer_type(node.op)
    axes: Axes = {}
    for axis in (kind.input_axis, kind.output_axis):
        known = t.tensors[weight].get(axis)
        new = t.units.new(t.graph.tensors[weight].shape[axis]) if known is None else known
        axes[axis] = t.name_axis(weight, axis, new)
    t.units.fix(axes[kind.input_axis])
    outputs = axes[kind.output_axis]
    t.fix_axes(node.args[0])
    return {len(t.shape(node.args[0])): outputs}


def zeros(t: FollowedUnits, node: Node) -> Axes:
    """Of entries that are all alike: along every axis of a known size they are as others want them."""
    sizes = next((argument for argument in node.args[:2] if isinstance(argument, tuple)), ())
    return {axis: t.units.new(size) for axis, size in enumerate(sizes) if isinstance(size, int) and size > 1}


def like(t: FollowedUnits, node: Node) -> Axes:
    """Of entries that are all alike, as many as another tensor has, or as an argument says."""
    return zeros(t, node) if node.op.startswith("new_") else dict(t.of(node.args[0]))


def recurrent(t: FollowedUnits, node: Node) -> Axes:
    """One layer of cells: its hidden units are the columns of ``hh``, and the rows of every gate of all tensors."""
    own, x = cells(node), node.args[0]
    if not own or node.args[4] != 1 or len(t.shape(x)) != 3:
        return unknown(t, node)
    states = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    inputs = t.of(x).get(2)
    t.fix_axes(x, *[axis for axis in t.of(x) if axis != 2] or [-1])
    units: list[np.ndarray] = []
    for cell in own:
        rows, size = t.graph.tensors[cell.hh].shape
        known = t.tensors[cell.hh].get(1)
        hidden = t.name_axis(cell.hh, 1, t.units.new(size) if known is None else known)
        for name in (cell.hh, cell.ih, cell.bias_hh, cell.bias_ih):
            if name is not None:
                t.name_axis(name, 0, np.tile(hidden, rows // size))
        read = t.tensors[cell.ih].get(1) if inputs is None else inputs
        if read is None:  # what is read is not followed: it stays
            read = t.units.new(t.graph.tensors[cell.ih].shape[1])
            t.units.fix(read)
        t.name_axis(cell.ih, 1, read)
        units.append(hidden)
    for hidden in units[1:]:
        t.units.join(units[0], hidden)
    for state in states:
        t.fix_axes(state, *[axis for axis in t.of(state) if axis != 2] or [-1])
        known = t.of(state).get(2)
        if known is None:
            t.units.fix(units[0])
        else:
            t.units.join(units[0], known)
    return {}


def getitem(t: FollowedUnits, node: Node) -> Axes:
    """Outputs of a recurrent layer, both directions one behind the other, or its last states."""
    source = t.graph.nodes[node.args[0].index] if isinstance(node.args[0], Value) and node.args[0].index >= 0 else None
    own = [] if source is None else cells(source)
    hidden = [t.tensors[cell.hh].get(1) for cell in own]
    followed = [units for units in hidden if units is not None]
    if source is None or source.args[4:5] != (1,) or not own or len(followed) < len(own):
        return unknown(t, node)
    return {2: np.concatenate(followed) if node.args[1] == 0 else followed[0]}


def binary(t: FollowedUnits, node: Node) -> Axes:
    return _together(t, node.args[:2])


def joint(t: FollowedUnits, node: Node) -> Axes:
    """Of as many tensors as there are, element by element."""
    return _together(t, [leaf for leaf in leaves(node.args) if isinstance(leaf, Value | Named)])


def _together(t: FollowedUnits, references: Sequence[Any]) -> Axes:
    """The axes of tensors of which the smaller are repeated: what meets is one unit."""
    ndim = max(len(t.shape(reference)) for reference in references)
    result: Axes = {}
    for axis in range(ndim):
        found = []
        for reference in references:
            shape = t.shape(reference)
            at = axis - ndim + len(shape)
            if at >= 0:
                found.append((reference, at, t.of(reference).get(at)))
        if {t.shape(reference)[at] == 1 for reference, at, _ in found} == {True, False}:
            for reference, at, units in found:  # the one entry that meets all of the other side's stays
                if units is not None and t.shape(reference)[at] == 1:
                    t.units.fix(units)
            found = [entry for entry in found if t.shape(entry[0])[entry[1]] != 1]
        followed = [units for _, _, units in found if units is not None]
        if not followed:
            continue
        for units in followed[1:]:
            t.units.join(followed[0], units)
        for reference, at, units in found:
            if units is None:
                if isinstance(reference, Named):
                    t.name_axis(reference.name, at, followed[0])
                else:
                    t.units.fix(followed[0])
        result[axis] = followed[0]
    return result


def cat(t: FollowedUnits, node: Node) -> Axes:
    parts = node.args[0]
    ndim = len(t.shape(parts[0]))
    dim = (node.args[1] if len(node.args) > 1 else dict(node.kwargs).get("dim", 0)) % ndim
    if any(len(t.shape(part)) != ndim for part in parts):
        return unknown(t, node)
    result: Axes = {}
    for axis in range(ndim):
        units = [t.of(part).get(axis) for part in parts]
        if all(u is None for u in units):
            continue
        if axis == dim:
            joined = []
            for part, u in zip(parts, units, strict=True):
                size = t.shape(part)[axis]
                if u is None:
                    if not isinstance(size, int):
                        return unknown(t, node)
                    u = t.units.new(size)
                    t.units.fix(u)
                    if isinstance(part, Named):
                        t.name_axis(part.name, axis, u)
                joined.append(u)
            result[axis] = np.concatenate(joined)
        else:
            known = [u for u in units if u is not None]
            for u in known[1:]:
                t.units.join(known[0], u)
            if len(known) < len(units):
                t.units.fix(known[0])
            result[axis] = known[0]
    return result


def batch_norm(t: FollowedUnits, node: Node) -> Axes:
    units = t.of(node.args[0]).get(1)
    t.fix_axes(node.args[0], *[axis for axis in t.of(node.args[0]) if axis != 1] or [-1])
    if units is None:
        return {}
    for statistic in node.args[1:5]:
        if isinstance(statistic, Named):
            t.name_axis(statistic.name, 0, units)
    return {1: units}


def prelu(t: FollowedUnits, node: Node) -> Axes:
    """Each channel with a slope of its own, which goes with it, or all with one; 0 stays 0."""
    x, slopes = node.args
    if not isinstance(slopes, Named):
        return unknown(t, node)
    axes = dict(t.of(x))
    if 1 in axes and t.graph.tensors[slopes.name].numel() > 1:
        t.name_axis(slopes.name, 0, axes[1])
    return axes


def statistics_axis(graph: Graph, index: int) -> int:
    """The axis of channels of which a normalisation's statistics are."""
    return 1 if graph.nodes[index].op == "group_norm" else len(graph.shape(index) or ()) - 1


def group_norm(t: FollowedUnits, node: Node) -> Axes:
    """Channels stay apart but in the statistics, which :attr:`~.operations.Operation.statistics` are of all of them."""
    return _normalised(t, node, 1, node.args[2:4], [axis for axis in t.of(node.args[0]) if axis != 1])


def layer_norm(t: FollowedUnits, node: Node) -> Axes:
    """As :func:`group_norm`, over the last axis; over several axes at once it mixes them."""
    ndim, over = len(t.shape(node.args[0])), len(node.args[1])
    if over > 1:
        t.fix_axes(node.args[0], *range(ndim - over, ndim))
        return dict(t.of(node.args[0]))
    return _normalised(t, node, ndim - 1, node.args[2:4], [])


def _normalised(t: FollowedUnits, node: Node, axis: int, scales: Any, mixed: list[int]) -> Axes:
    t.fix_axes(node.args[0], *mixed or [-1])
    axes = {other: units for other, units in t.of(node.args[0]).items() if other not in mixed}
    for scale in scales:
        if isinstance(scale, Named) and axis in axes:
            t.name_axis(scale.name, 0, axes[axis])
    return axes


def spatial(t: FollowedUnits, node: Node) -> Axes:
    """Acts on the last dimensions, each channel alone."""
    dims = next(int(number) for number in "123" if f"{number}d" in node.op)
    axes = t.of(node.args[0])
    ndim = len(t.shape(node.args[0]))
    t.fix_axes(node.args[0], *[axis for axis in axes if axis >= ndim - dims] or [-1])
    return {axis: units for axis, units in axes.items() if axis < ndim - dims}


def pad(t: FollowedUnits, node: Node) -> Axes:
    """Constants beside an axis are units of their own, which are there as long as something reads them."""
    ndim = len(t.shape(node.args[0]))
    axes = dict(t.of(node.args[0]))
    constant = (*node.args, "constant")[2] == "constant"
    for i in range(len(node.args[1]) // 2):
        axis, (before, behind) = ndim - 1 - i, node.args[1][2 * i : 2 * i + 2]
        if axis in axes and (before or behind):
            units = axes.pop(axis)
            if constant and before >= 0 and behind >= 0:
                axes[axis] = np.concatenate([t.units.new(before), units, t.units.new(behind)])
            else:
                t.units.fix(units)
    return axes


def reduction(t: FollowedUnits, node: Node) -> Axes:
    ndim = len(t.shape(node.args[0]))
    reduced = {dim % ndim for dim in dimensions(node)}
    if not reduced:
        return unknown(t, node)
    keepdim = len(t.graph.shape(len(t.values)) or ()) == ndim
    t.fix_axes(node.args[0], *reduced)
    kept = [axis for axis in range(ndim) if axis not in reduced or keepdim]
    axes = t.of(node.args[0])
    return {kept.index(axis): units for axis, units in axes.items() if axis not in reduced}


def dimensions(node: Node) -> tuple[int, ...]:
    """The dimensions that a node's second argument names; none where it names none, which means all or the last."""
    dims = node.args[1] if len(node.args) > 1 else dict(node.kwargs).get("dim")
    return (dims,) if isinstance(dims, int) else dims if isinstance(dims, tuple) else ()


def mixes(dims_of: Callable[[Node, int], Iterable[int]]) -> Callable[[FollowedUnits, Node], Axes]:
    """Keeps the shape, and mixes the entries along some axes."""

    def rule(t: FollowedUnits, node: Node) -> Axes:
        ndim = len(t.shape(node.args[0]))
        mixed = {dim % ndim for dim in dims_of(node, ndim)}
        t.fix_axes(node.args[0], *mixed)
        return dict(t.of(node.args[0]))

    return rule


def along(t: FollowedUnits, node: Node) -> Axes:
    """Keeps the shape, and mixes the entries along the dimensions that the second argument names."""
    ndim, dims = len(t.shape(node.args[0])), dimensions(node)
    return mixes(lambda node, ndim: dims)(t, node) if dims and ndim else unknown(t, node)


def attention(t: FollowedUnits, node: Node) -> Axes:
    """Scaled dot products: heads stay apart; positions and features are mixed."""
    ndim = len(t.shape(node.args[0]))
    if any(len(t.shape(part)) != ndim for part in node.args[:3]) or (len(node.args) > 3 and node.args[3] is not None):
        return unknown(t, node)
    if any(key in ("attn_mask", "enable_gqa") and value for key, value in node.kwargs):
        return unknown(t, node)
    result: Axes = {}
    for axis in range(ndim):
        units = [t.of(part).get(axis) for part in node.args[:3]]
        known = [u for u in units if u is not None]
        if axis >= ndim - 2 or len(known) < 3:
            for u in known:
                t.units.fix(u)
            continue
        t.units.join(known[0], known[1])
        t.units.join(known[0], known[2])
        result[axis] = known[0]
    return result


def permutation(node: Node, ndim: int) -> list[int]:
    """For each axis of the result, the axis of the argument that it is."""
    order = list(range(ndim))
    if node.op == "permute":
        return [dim % ndim for dim in node.args[1]]
    a, b = (node.args[1] % ndim, node.args[2] % ndim) if node.op == "transpose" else (0, ndim - 1)
    order[a], order[b] = order[b], order[a]
    return order


def permute(t: FollowedUnits, node: Node) -> Axes:
    axes = t.of(node.args[0])
    order = permutation(node, len(t.shape(node.args[0])))
    return {new: axes[old] for new, old in enumerate(order) if old in axes}


def reshape(t: FollowedUnits, node: Node) -> Axes:
    """Views of all kinds, by the shapes before and after: axes are merged, split, or left alone."""
    x = node.args[0]
    before, after = t.shape(x), t.graph.shape(len(t.values)) or ()
    axes = t.of(x)
    result: Axes = {}
    for old, new in align(before, after):
        followed = [axis for axis in old if axis in axes]
        if not followed:
            continue
        wide_new = [axis for axis in new if after[axis] != 1]
        alone = len(followed) == 1 and all(isinstance(before[axis], int) for axis in old)
        units, at = axes[followed[0]], followed[0]
        if len(old) == len(new) == 1:
            result[new[0]] = units
        elif alone and new and len(wide_new) <= 1:  # merged: every unit once for each position
            shaped = units.reshape([-1 if axis == at else 1 for axis in old])
            result[(wide_new or new)[0]] = np.broadcast_to(shaped, [before[axis] for axis in old]).ravel()
        elif alone and wide_new and all(axis == at or before[axis] == 1 for axis in old):
            rows = units.reshape(after[wide_new[0]], -1)  # split: the outer axis is followed
            for row in rows:
                t.units.join_all(row)
            result[wide_new[0]] = rows[:, 0]
        else:
            for axis in followed:
                t.units.fix(axes[axis])
    return result


def align(before: tuple[Any, ...], after: tuple[Any, ...]) -> list[tuple[list[int], list[int]]]:
    """Split two shapes of the same elements into the shortest runs of dimensions that hold the same number.

    >>> align(("s0", 4, 2, 2), ("s0", 16))
    [([0], [0]), ([1, 2, 3], [1])]
    """
    runs = []
    i = j = 0
    while i < len(before) or j < len(after):
        ends = [
            (k, m)
            for k in range(i + (i < len(before)), len(before) + 1)
            for m in range(j + (j < len(after)), len(after) + 1)
            if _count(before[i:k]) == _count(after[j:m])
        ]
        if not ends:  # dimensions that only together hold the same number
            ends = [(len(before), len(after))]
        k, m = min(ends, key=lambda end: (end[0] - i + end[1] - j, end))
        runs.append((list(range(i, k)), list(range(j, m))))
        i, j = k, m
    return runs


def _count(sizes: tuple[Any, ...]) -> tuple[int, tuple[str, ...]]:
    """Number of elements: a known factor and the names of unknown ones."""
    known = math.prod(size for size in sizes if isinstance(size, int))
    names = [factor for size in sizes if isinstance(size, str) for factor in factors_of(size)]
    return known * math.prod(int(name) for name in names if name.isdigit()), tuple(
        sorted(name for name in names if not name.isdigit())
    )


def factors_of(size: str) -> list[str]:
    """Factors of a size that depends on the batch, ``8*s0``; of a sum, itself."""
    return [size] if set(size) & set("+-/() ") else [factor for factor in size.split("*") if factor]


def select(t: FollowedUnits, node: Node) -> Axes:
    x, dim, entry = node.args
    dim %= len(t.shape(x))
    axes = t.of(x)
    if dim in axes:
        t.units.fix(axes[dim][entry] if isinstance(entry, int) else axes[dim])
    return {axis - (axis > dim): units for axis, units in axes.items() if axis != dim}


def slice_(t: FollowedUnits, node: Node) -> Axes:
    """Neighbours along an axis; where they are every second or so, the axis stays."""
    x, dim, start, end, step = (*node.args, *(None,) * 4)[:5]
    dim = (dim or 0) % len(t.shape(x))
    axes = dict(t.of(x))
    if dim in axes:
        units = axes.pop(dim)
        if step in (None, 1) and all(bound is None or isinstance(bound, int) for bound in (start, end)):
            axes[dim] = units[start:end]
        else:
            t.units.fix(units)
    return axes


def index_select(t: FollowedUnits, node: Node) -> Axes:
    x, dim, index = node.args
    dim %= len(t.shape(x))
    axes = dict(t.of(x))
    uses = sum(other.named().count(index.name) for other in t.graph.nodes) if isinstance(index, Named) else 0
    if dim not in axes or uses != 1:
        t.fix_axes(x, dim)
        return {axis: units for axis, units in axes.items() if axis != dim}
    axes[dim] = axes[dim][t.graph.tensors[index.name].numpy()]
    return axes


def expand(t: FollowedUnits, node: Node) -> Axes:
    before, after = t.shape(node.args[0]), t.graph.shape(len(t.values)) or ()
    shift = len(after) - len(before)
    return {axis + shift: units for axis, units in t.of(node.args[0]).items() if before[axis] == after[axis + shift]}


def repeat(t: FollowedUnits, node: Node) -> Axes:
    """What is repeated along other axes stays one; along its own, an entry is there as often."""
    x, times = node.args
    shift = len(times) - len(t.shape(x))
    axes = {}
    for axis, units in t.of(x).items():
        if isinstance(times[axis + shift], int):
            axes[axis + shift] = np.tile(units, times[axis + shift])
        else:
            t.units.fix(units)
    return axes


#: a rule for units: the followed axes of a node's result.
UnitRule = Callable[[FollowedUnits, Node], Axes]
