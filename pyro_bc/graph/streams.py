"""Channels that cross layers: those of a residual stream, which additions make one for all layers that write to it.

Which units are one is what pruning follows (:mod:`pyro_bc.graph.units`); here it is told which of them additions tie,
and where in the network's tensors they lie.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from .layer_types import layer_type
from .nodes import Graph, Named, Node, Value, is_layer, layer_name, of_input
from .normal_form import in_normal_form
from .recurrent import cells
from .units import Tracking

#: operations whose result at a channel is 0 where all that they read there is, or is multiplied by what a tensor is.
_ADDS, _SCALES = {"add", "sub"}, {"add", "sub", "mul"}

#: where gain and shift of a normalisation stand among its arguments; statistics that it has collected are not among
#: them.
_NORMS: dict[str, tuple[int, ...]] = {
    "batch_norm": (1, 2), "instance_norm": (1, 2), "group_norm": (2, 3), "layer_norm": (2, 3), "rms_norm": (2,),
}  # fmt: skip

#: why channels stay that nothing mixes.
OF_OUTPUT = "they are the network's output"

_NONE = np.zeros(0, dtype=np.int64)

#: along an axis of a tensor, the number of each entry's channel, -1 for one of none.
Channels = Mapping[int, np.ndarray]


@dataclass(frozen=True)
class Stream:
    """Channels that several layers write to.

    :param size: how many there are; one that has several entries of an axis, such as a head's, counts once.
    :param tensors: by the name of a tensor of the graph, the axes along which it has these channels.
    :param writers: names of the layers that compute them.
    :param readers: names of the layers that read them.
    :param obstacle: why none of them can leave the network; empty where they can.
    """

    size: int
    tensors: Mapping[str, Channels]
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    obstacle: str = ""


def residual_streams(graph: Graph) -> tuple[Stream, ...]:
    """The residual streams of a network, in the order in which they begin.

    A channel is one of a stream where an addition of two results that depend on the input ties what at least two
    layers compute. Channels that stay whatever is pruned, as those of the network's input and output do, are in none.
    """
    graph = in_normal_form(graph)
    tracking = Tracking(graph)
    roots, fixed = tracking.units.all_roots(), tracking.units.fixed()
    tied = _tied(graph, tracking, roots)
    written: dict[str, list[int]] = {}
    read: dict[str, set[int]] = {}
    for node in filter(is_layer, graph.nodes):
        name, kind, axes = layer_name(node), layer_type(node.op), tracking.tensors[node.args[1].name]
        written.setdefault(name, []).extend(roots[axes[kind.output_axis]].tolist())
        inputs = tracking.grouped.get(f"{name}.weight", axes.get(kind.input_axis))
        read.setdefault(name, set()).update([] if inputs is None or kind.is_lookup else roots[inputs].tolist())
    writers: dict[int, set[str]] = {}
    for name, units in written.items():
        for unit in tied.intersection(units):
            writers.setdefault(unit, set()).add(name)
    crossing = {unit for unit, names in writers.items() if len(names) > 1}
    found = []
    for units in _together(written.values()):
        channels = [unit for unit in units if unit in crossing]
        if channels:
            found.append(_stream(graph, tracking, roots, channels, fixed, written, read))
    return tuple(found)


def _tied(graph: Graph, tracking: Tracking, roots: np.ndarray) -> set[int]:
    """Units that an addition of two results ties."""
    varies = of_input(graph.nodes)
    found: set[int] = set()
    for index, node in enumerate(graph.nodes):
        terms = [side for side in node.args[:2] if isinstance(side, Value) and (side.index < 0 or varies[side.index])]
        if node.op in _ADDS and len(terms) == 2:
            for units in tracking.values[index].values():
                found.update(roots[units].tolist())
    return found


def _together(axes: Iterable[list[int]]) -> list[list[int]]:
    """Units in as many parts as there are axes that have none in common, each in the order of its first axis."""
    parts: list[dict[int, None]] = []
    for axis in axes:
        own = dict.fromkeys(axis)
        touched = [part for part in parts if part.keys() & own.keys()]
        if not touched:
            parts.append(own)
            continue
        first, *others = touched
        for part in (*others, own):
            first.update(part)
        parts = [part for part in parts if all(part is not other for other in others)]
    return [list(part) for part in parts]


def _stream(
    graph: Graph,
    tracking: Tracking,
    roots: np.ndarray,
    channels: list[int],
    fixed: set[int],
    written: Mapping[str, list[int]],
    read: Mapping[str, set[int]],
) -> Stream:
    of_cells = {int(unit) for name in _hidden(graph) for unit in roots[tracking.tensors[name].get(0, _NONE)]}
    free = [unit for unit in channels if unit not in fixed and unit not in of_cells]
    writers = tuple(name for name, units in written.items() if not set(channels).isdisjoint(units))
    readers = tuple(name for name, units in read.items() if not units.isdisjoint(channels))
    if not free:
        is_free = fixed.isdisjoint(channels)
        why = (
            "a recurrent layer computes them, too"
            if is_free
            else _why(graph, tracking.units.fixed_by(np.array(channels)))
        )
        return Stream(len(channels), {}, writers, readers, why)
    numbers = {unit: number for number, unit in enumerate(free)}
    scaled = _scaled(graph)
    tensors: dict[str, dict[int, np.ndarray]] = {}
    for name, axes in tracking.tensors.items():
        for axis, units in axes.items():
            own = np.array([numbers.get(int(unit), -1) for unit in roots[units]])
            if name in scaled and (own >= 0).any():
                tensors.setdefault(name, {})[axis] = own
    return Stream(len(free), tensors, writers, readers)


def _scaled(graph: Graph) -> set[str]:
    """Tensors whose entries along a channel multiply, or are added to, what it is."""
    found: set[str] = set()
    for node in graph.nodes:
        if is_layer(node):
            found.update(_names(node, (1, 2)))
        elif node.op in _NORMS:
            found.update(_names(node, _NORMS[node.op]))
        elif node.op in _SCALES:
            found.update(_names(node, (0, 1)))
        found.update(cell.ih for cell in cells(node))
    return found


def _hidden(graph: Graph) -> list[str]:
    """Tensors whose rows are the hidden units of recurrent cells."""
    return [cell.hh for node in graph.nodes for cell in cells(node)]


def _names(node: Node, places: tuple[int, ...]) -> list[str]:
    return [node.args[at].name for at in places if at < len(node.args) and isinstance(node.args[at], Named)]


def _why(graph: Graph, index: int | None) -> str:
    """What fixes channels, in words."""
    if index is None or index == len(graph.nodes):
        return f"{OF_OUTPUT}, or something else reads a weight of theirs, too"
    node = graph.nodes[index]
    if is_layer(node):
        return f"they reach layer '{layer_name(node)}' in a way that is not followed, or come from the network's input"
    return f"'{node.op}' mixes them, or does something to them that is not followed"
