"""A network whose layers compute whole channels: zeros in weights instead of selecting, placing and odd counts.

What is pruned next to a shortcut reads some channels of it, and writes some: ``index_select`` in front of a layer,
``pad`` and ``index_select`` behind one. Runtimes that lay channels out in blocks (ONNX Runtime) lose more by these than
they gain by fewer products: they take blocks apart and put them together again, cannot join the shortcut's sum with the
layer, and use slow products where channels are no multiple of four.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .layer_types import LINEAR, layer_type
from .module import GraphNetwork
from .nodes import Graph, Named, Node, Value, is_layer, layer_groups, without_dead_code, without_nodes
from .operations import operation

# Products that take as long as moving a number of a channel does, roughly.
_PRODUCTS_PER_MOVE = 1000

# How many times as many channels a convolution of each alone may read.
_MOST_WIDER = 1.5

# Channels that blocks are made of come in such counts, whole blocks are so large, and of layers as narrow as these none
# are made.
_MULTIPLE, _BLOCK, _NARROW = 4, 16, 8

# Operations that look at no two channels at once, and make zeros of zeros.
_POOLS = ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d")


def with_whole_channels(net: GraphNetwork, *example: Tensor) -> GraphNetwork:
    """A copy that computes the same with zeros in its weights, where that is likely to be sooner.

    :param example: a batch of inputs; its values do not matter.
    """
    graph = _graph(net, example)
    for rewrite in (_selected_behind, _without_placements, _without_selections, _in_multiples):
        graph = rewrite(graph)
    return GraphNetwork(graph.nodes, graph.tensors, graph.buffers)


def _graph(net: GraphNetwork, example: tuple[Tensor, ...]) -> Graph:
    shapes = [getattr(value, "shape", None) for value in net.results(net._nodes, *example)]
    first, *further = [tuple(x.shape) for x in example]
    known = (first, *(None if shape is None else tuple(shape) for shape in shapes))
    buffers = frozenset(name for name, _ in net.named_buffers())
    return Graph(net._nodes, dict(net.state_dict()), known, buffers, tuple(further))


def _readers(graph: Graph) -> list[list[int]]:
    """Which nodes read each node's result; the output is read once more."""
    found: list[list[int]] = [[] for _ in graph.nodes]
    for at, node in enumerate(graph.nodes):
        for index in {value for value in node.values() if value >= 0}:
            found[index].append(at)
    found[-1].append(len(graph.nodes))
    return found


class _Layers:
    """The layers of a graph whose weights may be changed: used once, and all channels of one group."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.uses = Counter(name for node in graph.nodes for name in node.named())

    def _may_change(self, node: Node) -> bool:
        return is_layer(node) and all(self.uses[name] == 1 for name in node.named()) and isinstance(node.args[0], Value)

    def dense(self, at: int) -> bool:
        """Whether a node is a fully connected layer or a convolution in which every output reads every channel."""
        node = self.graph.nodes[at]
        if not self._may_change(node) or layer_type(node.op).is_transposed or layer_type(node.op).is_lookup:
            return False
        return layer_groups(node) == 1 and self.channel_dim(at) is not None

    def depthwise(self, at: int) -> bool:
        """Whether it is a convolution of every channel alone."""
        node = self.graph.nodes[at]
        if not self._may_change(node) or layer_type(node.op).is_transposed or not layer_type(node.op).spatial:
            return False
        weight = self.graph.tensors[node.args[1].name]
        return layer_groups(node) == weight.shape[0] > 1 == weight.shape[1] and self.channel_dim(at) is not None

    def channel_dim(self, at: int) -> int | None:
        """Which dimension of its result counts channels, where that is batched."""
        shape, kind = self.graph.shapes[at + 1], layer_type(self.graph.nodes[at].op)
        if shape is None or (kind.spatial and len(shape) != kind.spatial + 2):
            return None
        return 1 if kind.spatial else len(shape) - 1

    def shape_of(self, leaf: Any) -> tuple[Any, ...] | None:
        """Shape of what a node reads, with as many dimensions as pictures have where it is one number a channel.

        None for what has none, and for a tensor that others read, too.
        """
        if isinstance(leaf, Value):
            return self.graph.shape(leaf.index) if leaf.index >= 0 else None
        if not isinstance(leaf, Named) or self.uses[leaf.name] > 1:
            return None
        shape = tuple(self.graph.tensors[leaf.name].shape)
        return (1, *shape) if len(shape) == 3 and shape[1:] == (1, 1) else None

    def places(self, at: int) -> int:
        """At how many places of an example every output is computed."""
        shape, dim = self.graph.shapes[at + 1], self.channel_dim(at)
        assert shape is not None and dim is not None
        return math.prod(shape[1:]) // shape[dim]


def _per_element(node: Node) -> Callable[[Tensor], Tensor] | None:
    """What a node does to every element of its only tensor; None where it does something else."""
    if not operation(node.op).elementwise or node.named() or len(node.values()) != 1:
        return None
    if not node.args or not isinstance(node.args[0], Value) or "dtype" in dict(node.kwargs):
        return None
    rest = node.args[1:]
    return lambda x: operation(node.op).function(x, *rest, **dict(node.kwargs))


def _at_zero(node: Node) -> float:
    """What a node makes of 0 where it does one thing to every element; else nan."""
    function = _per_element(node)
    try:
        return math.nan if function is None else float(function(torch.zeros(1)))
    except Exception:  # whatever a number of its arguments makes it raise
        return math.nan


def _selected_behind(graph: Graph) -> Graph:
    """Convolutions of every channel alone read all of them; what was selected before them is behind them.

    What was placed as 0 is a channel that was not selected, of zero weights.
    """
    nodes, tensors, shapes = list(graph.nodes), dict(graph.tensors), list(graph.shapes)
    layers, readers = _Layers(graph), _readers(graph)
    for at, node in enumerate(graph.nodes):
        before = _selected(graph, node.args[0].index) if layers.depthwise(at) and node.args[0].index >= 0 else None
        if before is None or before[1] != 1 or readers[node.args[0].index] != [at]:
            continue
        last, zeros = _only_reader(readers, at), 0
        if last is not None and nodes[last].op == "pad":
            padded = _padded(graph, last, 1)
            zeros = padded[2] if padded is not None and not padded[1] else -1
            last = _only_reader(readers, last)
        after = None if last is None else _selected(graph, last)
        if last is None or after is None or after[1] != 1 or zeros < 0:
            continue
        source, _, chosen = before
        index = nodes[last].args[2].name
        channels = (graph.shape(source) or ())[1]
        unused = torch.ones(channels, dtype=torch.bool).index_fill(0, chosen, False).nonzero().flatten()
        is_subset = len(unused) == channels - len(chosen)
        if not len(unused) or not is_subset or channels > _MOST_WIDER * len(chosen) or layers.uses[index] > 1:
            continue
        for name in node.named():
            whole = tensors[name].new_zeros(channels, *tensors[name].shape[1:])
            tensors[name] = whole.index_copy(0, chosen, tensors[name])
        tensors[index] = torch.cat([chosen, unused[:1].expand(zeros)])[after[2]]
        nodes[at] = replace(_of_groups(node, channels), args=(Value(source), *_of_groups(node, channels).args[1:]))
        nodes[last] = replace(nodes[last], args=(Value(at), *nodes[last].args[1:]))
        batch, _, *places = shapes[at + 1] or ()
        shapes[at + 1] = (batch, channels, *places)
    return without_dead_code(replace(graph, nodes=tuple(nodes), tensors=tensors, shapes=tuple(shapes)))


def _only_reader(readers: list[list[int]], at: int) -> int | None:
    """The one node that reads a result; None where there are several, or it is the output."""
    return readers[at][0] if len(readers[at]) == 1 and readers[at][0] < len(readers) else None


def _without_selections(graph: Graph) -> Graph:
    """Layers read all channels, and multiply those that were not selected by zeros."""
    nodes, tensors = list(graph.nodes), dict(graph.tensors)
    layers, readers = _Layers(graph), _readers(graph)
    for at in range(len(nodes)):
        found = _selected(graph, at)
        if found is None or not readers[at]:
            continue
        before, dim, chosen = found
        read = graph.shape(before)
        shape = graph.shapes[at + 1]
        if read is None or shape is None or readers[at][-1] == len(nodes):
            continue
        if not all(layers.dense(reader) and nodes[reader].args[0] == Value(at) for reader in readers[at]):
            continue
        if any(dim != _input_dim(graph, reader) for reader in readers[at]):
            continue
        weights = {reader: nodes[reader].args[1].name for reader in readers[at]}
        more = read[dim] - len(chosen)
        work = sum(layers.places(own) * more * tensors[name][:, 0].numel() for own, name in weights.items())
        if work > _PRODUCTS_PER_MOVE * math.prod(shape[1:]):
            continue
        for reader, name in weights.items():
            weight = tensors[name]
            zeros = weight.new_zeros(weight.shape[0], read[dim], *weight.shape[2:])
            tensors[name] = zeros.index_add(1, chosen, weight)
            nodes[reader] = replace(nodes[reader], args=(Value(before), *nodes[reader].args[1:]))
    return without_dead_code(replace(graph, nodes=tuple(nodes), tensors=tensors))


def _input_dim(graph: Graph, at: int) -> int | None:
    """Which dimension of a layer's input counts channels."""
    node = graph.nodes[at]
    shape = graph.shape(node.args[0].index)
    kind = layer_type(node.op)
    if shape is None or (kind.spatial and len(shape) != kind.spatial + 2):
        return None
    return 1 if kind.spatial else len(shape) - 1


def _selected(graph: Graph, at: int) -> tuple[int, int, Tensor] | None:
    """Of an ``index_select`` of known indices: what it reads, the dimension, the indices."""
    node = graph.nodes[at]
    if node.op != "index_select" or not isinstance(node.args[0], Value) or not isinstance(node.args[2], Named):
        return None
    shape = graph.shape(node.args[0].index)
    return None if shape is None else (node.args[0].index, node.args[1] % len(shape), graph.tensors[node.args[2].name])


def _without_placements(graph: Graph) -> Graph:
    """Layers compute their channels where these are to be, and zeros between them."""
    tensors, replaced, changed = dict(graph.tensors), dict[int, int](), dict[int, Node]()
    layers, readers = _Layers(graph), _readers(graph)
    shapes = list(graph.shapes)
    for at in range(len(graph.nodes)):
        found = _selected(graph, at)
        if found is None:
            continue
        source, dim, chosen = found
        before = after = 0
        if source >= 0 and graph.nodes[source].op == "pad" and len(readers[source]) == 1:
            padded = _padded(graph, source, dim)
            if padded is None:
                continue
            source, before, after = padded
        path = _path_to_layer(graph, layers, readers, source, dim, zeros=bool(before + after))
        if path is None or any(own in changed for own in path):
            continue
        weight, shape = tensors[graph.nodes[path[-1]].args[1].name], graph.shapes[at + 1] or ()
        work = (len(chosen) - len(weight)) * weight[0].numel() * layers.places(path[-1])
        if work > 2 * _PRODUCTS_PER_MOVE * math.prod(shape[1:]):  # both operations move all of it
            continue
        for own in path:
            node = graph.nodes[own]
            for name in node.named():
                rows = tensors[name]
                rows = torch.cat(
                    [rows.new_zeros(before, *rows.shape[1:]), rows, rows.new_zeros(after, *rows.shape[1:])]
                )
                tensors[name] = rows[chosen]
            changed[own] = _of_groups(node, len(chosen)) if layers.depthwise(own) else node
            result = shapes[own + 1] or ()
            shapes[own + 1] = (*result[:dim], len(chosen), *result[dim + 1 :])
        replaced[at] = source
        if graph.nodes[at].args[0] != Value(source):
            replaced[graph.nodes[at].args[0].index] = source
    nodes = tuple(changed.get(at, node) for at, node in enumerate(graph.nodes))
    return without_nodes(replace(graph, nodes=nodes, tensors=tensors, shapes=tuple(shapes)), replaced)


def _padded(graph: Graph, at: int, dim: int) -> tuple[int, int, int] | None:
    """Of a ``pad`` with zeros along one dimension: what it reads, and how many in front and behind."""
    node, shape = graph.nodes[at], graph.shapes[at + 1]
    source, pads, *rest = (*node.args, *dict(node.kwargs).values())
    if not isinstance(source, Value) or any(other not in ("constant", None, 0) for other in rest):
        return None
    pairs = list(zip(pads[::2], pads[1::2], strict=True))
    own = len(shape or ()) - 1 - dim
    if own >= len(pairs) or any(any(pair) for place, pair in enumerate(pairs) if place != own) or min(pairs[own]) < 0:
        return None
    return source.index, *pairs[own]


def _path_to_layer(
    graph: Graph, layers: _Layers, readers: list[list[int]], at: int, dim: int, zeros: bool
) -> list[int] | None:
    """What makes a value, each node read by the next alone, back to the first layer whose outputs can be placed.

    Behind it are convolutions of every channel alone and what does one thing to every element; where nothing makes
    zeros again, zeros of zeros.
    """
    path: list[int] = []
    while at >= 0 and len(readers[at]) == 1:
        node = graph.nodes[at]
        if layers.dense(at):
            return [*path, at] if layers.channel_dim(at) == dim else None
        path.append(at)
        if layers.depthwise(at) and layers.channel_dim(at) == dim:
            zeros = False
        elif not _is_pool(node) and not (_per_element(node) is not None and (not zeros or _at_zero(node) == 0)):
            return None
        at = node.args[0].index
    return None


def _of_groups(node: Node, count: int) -> Node:
    place = 3 + layer_type(node.op).arguments.index("groups")
    return replace(node, args=(*node.args[:place], count, *node.args[place + 1 :]))


@dataclass(frozen=True)
class _Part:
    """Neighbouring channels of a value that a layer computes, with as many more as all values of its kind get."""

    kind: int
    count: int


def _in_multiples(graph: Graph) -> Graph:
    """Channels between convolutions come in fours, the last ones of zero weights that nothing listens to.

    Those that are concatenated or pooled come in whole blocks, which a runtime takes as they are.
    """
    layers, tensors, nodes = _Layers(graph), dict(graph.tensors), list(graph.nodes)
    same = list(range(len(nodes)))

    def kind_of(at: int) -> int:
        while same[at] != at:
            at = same[at]
        return at

    parts: dict[int, tuple[_Part, ...]] = {}
    fixed: set[int] = set()
    joined: set[int] = set()
    reads: dict[int, int] = {}
    for at, node in enumerate(graph.nodes):
        shape, values = graph.shapes[at + 1] or (), node.values()
        known = [parts.get(value) for value in values]
        kinds = [part.kind for own in known if own is not None for part in own]
        if layers.dense(at) and len(shape) == (2 if layer_type(node.op) is LINEAR else 4):
            if known[0] is not None:
                reads[at] = values[0]
            if layer_type(node.op) is not LINEAR:
                parts[at] = (_Part(at, shape[1]),)
        elif known and None not in known and node.op == "cat" and _is_of_channels(node, shape):
            parts[at] = tuple(part for own in known if own is not None for part in own)
            joined.update(kinds)
        elif known and None not in known and _keeps_channels(graph, layers, at) and _alike(known):
            for others in known[1:]:
                for part, other in zip(known[0] or (), others or (), strict=True):
                    same[kind_of(other.kind)] = kind_of(part.kind)
            assert known[0] is not None
            parts[at] = known[0]
            if node.op in ("max_pool2d", "avg_pool2d"):
                joined.update(kinds)
        else:
            fixed.update(kinds)
    fixed.update(part.kind for part in parts.get(len(nodes) - 1, ()))
    kept, blocks = {kind_of(at) for at in fixed}, {kind_of(at) for at in joined}

    def more(part: _Part) -> int:
        kind = kind_of(part.kind)
        if kind in kept or part.count <= _NARROW:
            return 0
        return -part.count % (_BLOCK if kind in blocks else _MULTIPLE)

    def spread(tensor: Tensor, dim: int, at: int) -> Tensor:
        pieces = []
        for part, piece in zip(parts[at], tensor.split([part.count for part in parts[at]], dim), strict=True):
            shape = list(tensor.shape)
            shape[dim] = more(part)
            pieces += [piece, tensor.new_zeros(shape)]
        return torch.cat(pieces, dim)

    for at, node in enumerate(graph.nodes):
        if at in parts:
            for name in node.named():
                tensors[name] = spread(tensors[name], 0, at)
            if layers.depthwise(at):
                nodes[at] = _of_groups(node, sum(part.count + more(part) for part in parts[at]))
        if at in reads:
            name = node.args[1].name
            tensors[name] = spread(tensors[name], 1, reads[at])
    return replace(graph, nodes=tuple(nodes), tensors=tensors)


def _alike(parts: list[tuple[_Part, ...] | None]) -> bool:
    return len({tuple(part.count for part in own or ()) for own in parts}) == 1


def _is_of_channels(node: Node, shape: tuple[Any, ...]) -> bool:
    return len(shape) == 4 and node.args[1:] in ((1,), (-3,)) and not node.kwargs and not node.named()


def _is_pool(node: Node) -> bool:
    """Whether it looks at every channel of pictures alone, and makes zeros of zeros."""
    over_places = node.op == "mean" and node.args[1:] in (((2, 3), True), ((-2, -1), True), ((-1, -2), True))
    return node.op in _POOLS or (over_places and not node.kwargs)


def _keeps_channels(graph: Graph, layers: _Layers, at: int) -> bool:
    """Whether a node does the same to every channel of pictures, however many, and makes of 0 what is finite."""
    node, shape = graph.nodes[at], graph.shapes[at + 1] or ()
    if node.op == "flatten" and node.args[1:] == (1,) and isinstance(node.args[0], Value):
        return (graph.shape(node.args[0].index) or ())[2:] == (1, 1)
    if len(shape) != 4:
        return False
    if layers.depthwise(at) or _is_pool(node):
        return True
    if node.op in ("add", "mul") and not node.kwargs and len(node.args) == 2:
        shapes = [layers.shape_of(leaf) for leaf in node.args]
        return all(own is not None and len(own) == 4 and own[1] == shape[1] for own in shapes)
    return math.isfinite(_at_zero(node))
