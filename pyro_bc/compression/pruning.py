r"""From posterior to a physically smaller network with the same output.

Thresholds decide which weights are zero, with the bias of a filter that is zero altogether, and what normalises it
(``pyro_bc.compression.normalisation``). Then units (:mod:`pyro_bc.graph.units`) fall away, forwards and backwards
through the graph, until nothing changes:

* a unit that no layer reads is not computed, wherever it is, and an output not where nothing behind reads it;
* a unit that reads nothing is a constant, which moves through activations, pools and additions into the biases of the
  layers behind it. Where a convolution pads its input with zeros, only the constant 0 moves so;
* inputs of a layer that none of its weights reads are not read, also where others read them;
* single entries that no axis holds alone, such as a feature of one head among several, are followed as such
  (``pyro_bc.compression.entries``): where they are always 0, or nothing reads them, nothing is computed for them.

Batch normalisation behind a layer is folded into it, with its statistics of training or those of the pruned network.
Normalisations over several channels keep their statistics: those that are gone are counted as the zeros that they are.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import EmptyNetworkError
from ..graph.constant_rules import Constant
from ..graph.constants import propagate
from ..graph.layer_types import LINEAR, layer_type
from ..graph.layers_alone import shared_layers
from ..graph.nodes import (
    Graph,
    Node,
    Value,
    is_layer,
    layer_arguments,
    layer_groups,
    layer_name,
    reads_numbers,
)
from ..graph.normal_form import in_normal_form
from ..graph.operations import operation
from ..graph.recurrent import cell_names, cells
from ..graph.unit_rules import layer_axis, statistics_axis
from ..graph.units import Tracking
from ..posterior.summary import LayerPosterior
from ..posterior.thresholds import Threshold, removed_outputs
from ..runtime.devices import on_cpu
from .batch_norm import fold_batch_norms, new_bias_variance, reestimate_batch_norm, with_bias
from .branches import without_constant_branches
from .cut import Cutter, Part, Units, entries_of, inputs_left, part_of, pays
from .entries import Patterns
from .kernels import without_unmet
from .normalisation import without_pruned_shifts
from .pruned import PrunedLayer, PrunedNetwork, masked_layers, with_weights
from .ragged import unequal_apart


@on_cpu
def shrink(
    graph: Graph,
    posterior: Mapping[str, LayerPosterior],
    thresholds: Mapping[str, Threshold],
    batch_norm_loader: Iterable[Any] | None = None,
) -> PrunedNetwork:
    """Prune every layer of a graph and cut units that no longer matter.

    :param graph: the network, with the weights of deterministic layers.
    :param posterior: summaries by layer name *in the network*.
    :param thresholds: one per layer of ``posterior``.
    :param batch_norm_loader: batches of inputs; batch normalisation gets new statistics from them after pruning.
    :raises EmptyNetworkError: where the output no longer depends on the input.
    :raises UsageError: where the posterior does not fit the network, or is not finite.
    """
    graph = in_normal_form(graph)
    layers = masked_layers(graph, posterior, thresholds)
    dead = _without_weights(layers)
    removed = {
        name: removed_outputs(posterior[name], layer.mask) for name, layer in layers.items() if name in posterior
    }
    graph = without_pruned_shifts(graph, removed)
    if batch_norm_loader is not None:
        graph = reestimate_batch_norm(with_weights(graph, layers), batch_norm_loader)
        graph = without_pruned_shifts(graph, removed)
    graph, layers = without_unmet(*fold_batch_norms(graph, layers))
    while True:
        if not reads_numbers(graph.nodes):
            raise _empty([*dead, *_without_weights(layers), *layers])
        pruner = _Pruner(graph, layers)
        pruner.settle()
        if pruner.output_is_constant():
            raise _empty([*dead, *_without_weights(pruner.layers), *_without_weights(layers), *layers])
        smaller = without_constant_branches(pruner.graph, pruner.constants)
        if smaller is None:
            return unequal_apart(pruner.result())
        left = {*(layer_name(node) for node in smaller.nodes if is_layer(node)), *cell_names(smaller)}
        graph, layers = smaller, {name: layer for name, layer in pruner.layers.items() if name in left}


def _without_weights(layers: dict[str, PrunedLayer]) -> list[str]:
    return [name for name, layer in layers.items() if not layer.mask.any()]


def _empty(layers: list[str]) -> EmptyNetworkError:
    """:param layers: that may be what is missing, the likeliest first."""
    return EmptyNetworkError(
        f"nothing is left of layer '{layers[0]}', and so of the network: every one of its groups was pruned. Fit it "
        f"with a lower weight of the KL (kl_weight), cap its standard deviations while it learns (max_scale), or set "
        f"a higher threshold for it (thresholds)"
    )


class _Pruner:
    """Removes what does not matter from a graph's layers until nothing changes."""

    def __init__(self, graph: Graph, layers: dict[str, PrunedLayer]):
        self.graph = graph
        self.layers = layers
        self.tracking = Tracking(graph)
        self.shared = shared_layers(graph)
        self.uses: dict[str, list[int]] = {}
        for index, node in enumerate(graph.nodes):
            if is_layer(node):
                self.uses.setdefault(layer_name(node), []).append(index)
        #: layers whose weight has the outputs of one group, once for all of them: all of them stay.
        self.whole = {
            name
            for name, indices in self.uses.items()
            if layer_type(graph.nodes[indices[0]].op).is_transposed and layer_groups(graph.nodes[indices[0]]) > 1
        }
        self.types = {name: layer_type(graph.nodes[indices[0]].op) for name, indices in self.uses.items()}
        #: matrices of recurrent cells, those of them whose units are followed, and the others.
        self.cells = set(cell_names(graph))
        self.followed = {name for name in self.cells if 0 in self.tracking.tensors[f"{name}.weight"]}
        self.unfollowed = self.cells - self.followed
        self.types |= dict.fromkeys(self.cells, LINEAR)
        #: layers whose weight is used in several ways, a table that is a fully connected layer's, too.
        self.mixed = {name for name, own in self.uses.items() if len({graph.nodes[i].op for i in own}) > 1}
        #: tables that are a fully connected layer's weight as well.
        self.tied = {
            name for name in self.mixed if {graph.nodes[i].op for i in self.uses[name]} == {"lookup", "linear"}
        }
        for name, layer in layers.items():  # coefficients of one grid stand and fall together
            grid = layer.codes["weight"].grid if layer.codes else ()
            inputs = self.tracking.tensors[f"{name}.weight"].get(self.types[name].input_axis)
            if grid and not self.types[name].spatial and inputs is not None:  # of others, a grid is a kernel
                for row in inputs.reshape(-1, math.prod(grid)):
                    self.tracking.units.join_all(row)

    def _outputs(self, name: str) -> np.ndarray:
        """Units that a layer computes."""
        return self.tracking.tensors[f"{name}.weight"][self.types[name].output_axis]

    def _node(self, index: int) -> Node:
        return self.graph.nodes[index]

    def settle(self) -> None:
        changed = True
        while changed:
            self.constants = self._propagated()
            changed = self._absorb_constants() | self._drop_zeros_of_cells() | self._drop_unread()
            changed = changed or self._drop_entries()
        self.constants = self._propagated()

    def _propagated(self) -> list[Constant]:
        """The constants of every node: those of outputs that read nothing, and what they become."""
        outputs = {}
        for name, layer in self.layers.items():
            if name in self.cells:
                continue
            if name in self.whole:
                size = layer_groups(self.graph.nodes[self.uses[name][0]]) * len(self._outputs(name))
                outputs[name] = np.full(size, np.nan)
                continue
            reads = self.types[name].by_output(layer.mask).flatten(1).any(1).numpy()
            added = {len(node.args) > 2 and node.args[2] is not None for node in map(self._node, self.uses[name])}
            bias = np.zeros(len(reads)) if layer.bias is None else layer.bias.double().numpy()
            constant = np.nan if len(added) > 1 else bias if added == {True} else 0.0
            outputs[name] = np.where(reads, np.nan, constant)
        return propagate(self.graph, outputs, {name: kind.op for name, kind in self.types.items()})

    def output_is_constant(self) -> bool:
        constant = self.constants[len(self.graph.nodes) - 1]
        return constant is not None and not np.isnan(constant[1]).any()

    def _absorb_constants(self) -> bool:
        """Move constant inputs of every layer into its bias."""
        changed = False
        for name, indices in self.uses.items():
            if len(indices) > 1 or name in self.whole or name in self.shared or self.types[name].is_lookup:
                continue
            node, layer = self.graph.nodes[indices[0]], self.layers[name]
            known = self._input_constants(node)
            if known is None:
                continue
            kind = self.types[name]
            if _pads(node) or layer.codes:  # codes stay what they are: only the constant 0 changes no bias
                known = np.where(known == 0, known, np.nan)
            weight = _by_input(kind.by_output(layer.weight), layer_groups(node))
            mask = _by_input(kind.by_output(layer.mask), layer_groups(node))
            absorbed = torch.from_numpy(~np.isnan(known)) & mask.any(2).any(0)
            if not absorbed.any():
                continue
            read = _grouped(absorbed, kind.by_output(layer.mask), layer_groups(node))
            left = _of_whole_grids(layer, ~read.movedim((0, 1), (kind.output_axis, kind.input_axis)))
            if torch.equal(left, layer.mask):
                continue
            changed = True
            values = torch.from_numpy(np.nan_to_num(known)) * absorbed
            shift = torch.einsum("oc,c->o", weight.sum(2).double(), values).float()
            if shift.count_nonzero():
                variance = new_bias_variance(layer, len(shift))
                bias = shift if layer.bias is None else layer.bias + shift
                layer = replace(layer, bias=bias, bias_variance=variance)
                self._give_bias(indices[0])
            self.layers[name] = replace(layer, mask=left, weight=layer.weight * left)
        return changed

    def _drop_zeros_of_cells(self) -> bool:
        """Clear the columns with which recurrent cells read what is always 0."""
        uses = Counter(name for node in self.graph.nodes for name in node.named())
        changed = False
        for node in self.graph.nodes:
            for cell in cells(node):
                name = cell.ih.removesuffix(".weight")
                known = self.constants[node.args[0].index] if node.args[0].index >= 0 else None
                if known is None or known[0] != 2 or node.args[4] > 1 or uses[cell.ih] > 1 or self.layers[name].codes:
                    continue
                layer = self.layers[name]
                left = layer.mask & torch.from_numpy(known[1] != 0)
                if not torch.equal(left, layer.mask):
                    self.layers[name] = replace(layer, mask=left, weight=layer.weight * left)
                    changed = True
        return changed

    def _input_constants(self, node: Node) -> np.ndarray | None:
        x = node.args[0]
        constant = self.constants[x.index] if isinstance(x, Value) and x.index >= 0 else None
        if constant is None:
            return None
        axis, values = constant
        return values if axis == layer_axis(node, len(self.graph.shape(x.index) or ())) else None

    def _give_bias(self, index: int) -> None:
        node = self.graph.nodes[index]
        if len(node.args) > 2 and node.args[2] is not None:
            return
        nodes, tensors = list(self.graph.nodes), dict(self.graph.tensors)
        nodes[index] = with_bias(node)
        name = f"{layer_name(node)}.bias"
        outputs = self._outputs(layer_name(node))
        tensors[name] = torch.zeros(len(outputs))
        self.graph = replace(self.graph, nodes=tuple(nodes), tensors=tensors)
        self.tracking.tensors[name] = {0: outputs}

    def _alive(self) -> set[int]:
        """Units that are read, or fixed."""
        alive = self.tracking.units.fixed()
        for name, indices in self.uses.items():
            if name not in self.layers or name in self.whole:
                continue
            node, mask = self._node(indices[0]), self.layers[name].mask
            known = self.tracking.grouped.get(f"{name}.weight")
            for kind in {layer_type(self._node(index).op) for index in indices}:
                inputs = self.tracking.tensors[f"{name}.weight"][kind.input_axis] if known is None else known
                reads = _by_input(kind.by_output(mask), layer_groups(node)).any(2).any(0).numpy()
                alive.update(self.tracking.units.roots(inputs[reads]).tolist())
        before = -1
        while before != len(alive):
            before = len(alive)
            for index, node in enumerate(self.graph.nodes):
                if operation(node.op).statistics:
                    alive.update(self._counted(index, node, np.array(list(alive))))
            for node in reversed(self.graph.nodes):
                alive.update(self._read_by_cells(node, alive))
        return alive

    def _read_by_cells(self, node: Node, wanted: set[int]) -> set[int]:
        """Units that the wanted ones of a node's recurrent cells read: a hidden unit that only itself reads is not."""
        names = [name.removesuffix(".weight") for cell in cells(node) for name in (cell.ih, cell.hh)]
        roots = {
            name: [self.tracking.units.roots(self.tracking.tensors[f"{name}.weight"][axis]) for axis in (0, 1)]
            for name in names
            if name in self.followed and name in self.layers
        }
        read: set[int] = set()
        while True:
            before = len(read)
            for name, (rows, columns) in roots.items():
                computed = self.layers[name].mask.numpy()[np.isin(rows, list(wanted | read))]
                read.update(columns[computed.any(0)].tolist())
            if len(read) == before:
                return read

    def _counted(self, index: int, node: Node, wanted: np.ndarray) -> list[int]:
        """Units that a normalisation's statistics need: all that are not 0 whatever the input.

        :param wanted: units of which some are read behind it; statistics that none of them is divided by count nothing.
        """
        axis = statistics_axis(self.graph, index)
        units = self.tracking.of(node.args[0]).get(axis)
        if units is None:
            return []
        known = self.constants[node.args[0].index] if node.args[0].index >= 0 else None
        zero = np.zeros(len(units), dtype=bool) if known is None or known[0] != axis else known[1] == 0
        roots = self.tracking.units.roots(units)
        groups = node.args[1] if node.op == "group_norm" else 1
        read = np.isin(roots, wanted).reshape(groups, -1).any(1).repeat(len(units) // groups)
        return roots[~zero & read].tolist()

    def _drop_unread(self) -> bool:
        """Clear the weights and biases of outputs that nothing reads where they are computed."""
        kept = self.whole | self.shared | self.mixed | self.unfollowed
        wanted = {name: torch.from_numpy(own) for name, own in self._wanted().items() if name not in kept}
        return self._clear_outputs(wanted)

    def _drop_entries(self) -> bool:
        """Clear what reads nothing but zeros, and outputs that nothing reads, where only single entries tell it."""
        outputs = {}
        for name, indices in self.uses.items():
            for index in indices:
                node, layer = self._node(index), self.layers[name]
                kind = layer_type(node.op)
                computes = kind.by_output(layer.mask).flatten(1).any(1)
                if name in self.whole:
                    computes = torch.ones(layer_groups(node) * layer.mask.shape[1], dtype=torch.bool)
                elif name in self.shared:
                    computes = torch.ones_like(computes)
                elif layer.bias is not None and (*node.args, None, None)[2] is not None:  # a table has none
                    computes = computes | (layer.bias != 0)
                outputs[index] = computes
        entries = Patterns(with_weights(self.graph, self.layers), outputs, self.constants)
        kept = self.whole | self.shared | self.mixed
        wanted: dict[str, Tensor] = {}
        for index, rows in entries.wanted(self._channels_read).items():
            name = layer_name(self._node(index))
            if name not in kept:
                wanted[name] = rows | wanted.get(name, rows)
        return self._clear_outputs(wanted) | self._clear_inputs(entries)

    def _clear_inputs(self, entries: Patterns) -> bool:
        """Clear the weights that read what is always 0."""
        changed = False
        for name, indices in self.uses.items():
            kind, layer = self.types[name], self.layers[name]
            if name in self.whole | self.shared | self.mixed or kind.is_lookup:
                continue
            read = []
            for node in map(self._node, indices):
                ndim = len(self.graph.shape(node.args[0].index) or ()) if isinstance(node.args[0], Value) else 0
                read.append(entries.channels(node.args[0], layer_axis(node, ndim)) if ndim else None)
            zero = ~torch.stack([own for own in read if own is not None]).any(0) if None not in read else None
            if zero is None:
                continue
            unread = _grouped(zero, kind.by_output(layer.mask), layer_groups(self._node(indices[0])))
            left = _of_whole_grids(layer, ~unread.movedim((0, 1), (kind.output_axis, kind.input_axis)))
            if not torch.equal(left, layer.mask):
                self.layers[name] = replace(layer, mask=left, weight=layer.weight * left)
                changed = True
        return changed

    def _clear_outputs(self, wanted: Mapping[str, Tensor]) -> bool:
        """Clear the weights and biases of outputs that are not wanted."""
        changed = False
        for name, computed in wanted.items():
            layer = self.layers[name]
            left = layer.mask & self.types[name].over_outputs(computed, layer.mask.shape)
            adds = layer.bias is not None and bool(layer.bias[~computed].any())
            if adds or bool((left != layer.mask).any()):
                bias, codes = layer.bias, dict(layer.codes)
                if bias is not None:
                    bias = bias * computed
                    if codes:
                        codes["bias"] = replace(codes["bias"], codes=codes["bias"].codes * computed)
                self.layers[name] = replace(layer, mask=left, weight=layer.weight * left, bias=bias, codes=codes)
                changed = True
        return changed

    def _wanted(self) -> dict[str, np.ndarray]:
        """Which outputs of each layer matter to the network's output, from its last node to its first.

        Along a residual stream a channel can be read by an early layer, but by none behind a late one that writes it.
        """
        roots = self.tracking.units.all_roots()
        fixed = np.zeros(len(roots), dtype=bool)
        fixed[list(self.tracking.units.fixed())] = True
        wanted: dict[int, np.ndarray] = {len(self.graph.nodes) - 1: fixed.copy()}
        found = {
            name: np.zeros(len(self._outputs(name)), dtype=bool) for name in self.layers if name not in self.unfollowed
        }
        for index in reversed(range(len(self.graph.nodes))):
            if index not in wanted:
                continue
            node, own, axes = self._node(index), wanted.pop(index), self.tracking.values[index]
            read: list[int] | np.ndarray = []
            if is_layer(node):
                axis = layer_axis(node, len(self.graph.shape(index) or ()))
                kind = layer_type(node.op)
                rows = (own | fixed)[roots[self.tracking.tensors[node.args[1].name][kind.output_axis]]]
                read, rows = self._read_by(node, rows, roots)
                if layer_name(node) not in self.mixed:
                    found[layer_name(node)] |= rows
                axes = {other: units for other, units in axes.items() if other != axis}
            elif operation(node.op).statistics:
                read = self._counted(index, node, np.flatnonzero(own | fixed))
            elif cells(node):
                wanted_here = set(np.flatnonzero(own | fixed).tolist())
                read = list(self._read_by_cells(node, wanted_here))
                computed = list(wanted_here.union(read))
                for name in {tensor.removesuffix(".weight") for tensor in node.named()} & self.followed & found.keys():
                    found[name] |= np.isin(roots[self._outputs(name)], computed)
            passed = np.zeros(len(roots), dtype=bool)  # what a unit becomes depends on no other
            for units in axes.values():
                passed[roots[units]] = True
            passed = passed & own | fixed
            passed[read] = True
            for value in set(node.values()) - {-1}:
                wanted[value] = wanted[value] | passed if value in wanted else passed.copy()
        return found

    def _read_by(self, node: Node, rows: np.ndarray, roots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Units that these outputs of a layer read, and the outputs; of a layer that stays whole, all."""
        name, kind = layer_name(node), layer_type(node.op)
        if name in self.whole | self.shared | self.mixed:
            rows = np.ones(len(rows), dtype=bool)
        if name in self.whole:
            return np.zeros(0, dtype=np.int64), rows
        known = self.tracking.grouped.get(f"{name}.weight")
        inputs = self.tracking.tensors[f"{name}.weight"][kind.input_axis] if known is None else known
        return roots[inputs[self._channels_read(node, torch.from_numpy(rows)).numpy()]], rows

    def _channels_read(self, node: Node, rows: Tensor) -> Tensor:
        """Which channels of its input a layer reads for these of its outputs."""
        name, kind, groups = layer_name(node), layer_type(node.op), layer_groups(node)
        mask = self.layers[name].mask
        if name in self.whole:
            return torch.ones(mask.shape[kind.input_axis], dtype=torch.bool)
        if name in self.shared:
            mask = torch.ones_like(mask)
        left = mask & kind.over_outputs(rows, mask.shape)
        return _by_input(kind.by_output(left), groups).any(2).any(0)

    def _read_with(self, living: list[int]) -> tuple[list[Node], set[int]]:
        """The nodes without the parts of concatenations that nothing reads, and which of them the output needs."""
        nodes = []
        for node in self.graph.nodes:
            unread: set[int] = set()
            if node.op == "cat" and all(isinstance(part, Value) for part in node.args[0]):
                for position, part in enumerate(node.args[0]):
                    axis = (*node.args, 0)[1] % len(self.tracking.shape(part))
                    units = self.tracking.of(part).get(axis)
                    if units is not None and not np.isin(self.tracking.units.roots(units), living).any():
                        unread.add(position)
                if len(unread) < len(node.args[0]):
                    parts = tuple(part for position, part in enumerate(node.args[0]) if position not in unread)
                    node = replace(node, args=(parts, *node.args[1:]))
            nodes.append(node)
        read = {len(nodes) - 1}
        for index in reversed(range(len(nodes))):
            if index in read:
                read.update(nodes[index].values())
        return nodes, read

    def _leave_out_unread_parts(self) -> set[int]:
        """Leave out of concatenations the parts that nothing reads, and what only they need; the units that stay.

        A branch that is constant keeps one unit, since no tensor may be empty, and so does a selection. What such a
        unit is part of is read, in turn.
        """
        alive, units = self._alive(), self.tracking.units
        while True:
            nodes, self.read = self._read_with(list(alive))
            names = {name for index in self.read if index >= 0 for name in nodes[index].named()}
            given = [
                self._outputs(name) for name in self.layers if name not in self.unfollowed and f"{name}.weight" in names
            ]
            given += [chosen for _, _, chosen in self._excerpts()]
            empty = [units.roots(some) for some in given if not np.isin(units.roots(some), list(alive)).any()]
            if not empty:
                break
            alive.update(int(some[0]) for some in empty)
        self.graph = replace(self.graph, nodes=tuple(nodes))
        self.layers = {name: layer for name, layer in self.layers.items() if f"{name}.weight" in names}
        return alive

    def result(self) -> PrunedNetwork:
        """The graph with only what is alive."""
        left, tracked = Units(self.tracking, self._leave_out_unread_parts()), self.tracking.tensors
        tensors = {name: self._cut(tensor, tracked[name], left) for name, tensor in self.graph.tensors.items()}
        for name, (source, chosen) in self._selections().items():  # what they select, where it stands now
            places = np.cumsum(left.are_left(source)) - 1
            tensors[name] = torch.from_numpy(places[self.graph.tensors[name].numpy()[left.are_left(chosen)]])
        parts: dict[tuple[str, str], Part] = {}
        layers = {}
        read_by_cells, columns = self._read_of_inputs(left)
        for name, layer in self.layers.items():
            if name not in self.uses or name in self.whole | self.shared | (self.mixed - self.tied):
                layers[name] = self._with_units_left(layer, left, columns.get(name))
                continue
            nodes = {node.op: node for node in map(self._node, self.uses[name])}
            node = nodes["lookup"] if name in self.tied else self._node(self.uses[name][0])
            kind, inputs = layer_type(node.op), inputs_left(self.tracking, left, node)
            outputs = left.kept(self.tracking.tensors[f"{name}.weight"][kind.output_axis])
            parts[name, node.op] = part = part_of(layer, node, outputs, inputs)
            if name in self.tied:  # a table's columns are what the layer reads
                parts[name, "linear"] = Part(part.inputs, part.outputs, 1)
            rows = part.inputs if kind.output_axis else part.outputs
            of_bias = rows if kind.is_lookup else part.outputs
            weight, variance, mask = (part.cut(t, node) for t in (layer.weight, layer.variance, layer.mask))
            bias, bias_variance = (None if t is None else t[of_bias] for t in (layer.bias, layer.bias_variance))
            codes = {}
            if layer.codes:
                own = part.cut(layer.codes["weight"].codes * layer.mask, node)
                codes["weight"] = layer.codes["weight"].with_codes(own, rows)
                if bias is not None:
                    codes["bias"] = replace(layer.codes["bias"], codes=layer.codes["bias"].codes[of_bias])
            kept = _kept(part, node, layer.mask)
            layers[name] = PrunedLayer(name, weight, variance, mask, bias, bias_variance, codes, kept)
        for name, layer in layers.items():
            tensors[f"{name}.weight"] = layer.weight
            if layer.bias is not None:
                tensors[f"{name}.bias"] = layer.bias
        graph = Cutter(self.graph, self.tracking, left, self.read, parts, read_by_cells, tensors).rewritten()
        return PrunedNetwork(graph, layers)

    def _read_of_inputs(self, left: Units) -> tuple[dict[int, Tensor], dict[str, Tensor]]:
        """Where recurrent cells read fewer inputs than are left: which of those, and the columns by matrix."""
        read: dict[int, Tensor] = {}
        columns: dict[str, Tensor] = {}
        uses = Counter(name for node in self.graph.nodes for name in node.named())
        for index, node in enumerate(self.graph.nodes):
            names = [cell.ih.removesuffix(".weight") for cell in cells(node)]
            if index not in self.read or not names or any(uses[f"{name}.weight"] > 1 for name in names):
                continue
            if not all(name in self.followed and not self.layers[name].codes for name in names):
                continue
            inputs = left.kept(self.tracking.tensors[f"{names[0]}.weight"][1])
            wanted = torch.stack([self.layers[name].mask.any(0) for name in names]).any(0)[inputs]
            if wanted.any() and pays(int(wanted.sum()), len(inputs), len(self.layers[names[0]].weight)):
                read[index] = torch.nonzero(wanted).flatten()
                columns |= dict.fromkeys(names, inputs[wanted])
        return read, columns

    def _with_units_left(self, layer: PrunedLayer, left: Units, columns: Tensor | None = None) -> PrunedLayer:
        """A layer of which whatever its units leave of its axes stays, and nothing beyond that goes.

        :param columns: which of a matrix stay, where those are fewer.
        """
        axes = dict(self.tracking.tensors[f"{layer.name}.weight"])
        parts = [layer.weight, layer.variance, layer.mask]
        if columns is not None:
            del axes[1]
            parts = [part[:, columns] for part in parts]
        weight, variance, mask = (self._cut(part, axes, left) for part in parts)
        of_outputs = {} if layer.name in self.whole | self.unfollowed else {0: self._outputs(layer.name)}
        bias, bias_variance = (
            None if t is None else self._cut(t, of_outputs, left) for t in (layer.bias, layer.bias_variance)
        )
        codes = {}
        if layer.codes:
            own = self._cut(layer.codes["weight"].codes * layer.mask, axes, left)
            codes["weight"] = layer.codes["weight"].with_codes(own, left.kept(axes[0]) if 0 in axes else None)
            if bias is not None:
                codes["bias"] = replace(
                    layer.codes["bias"], codes=self._cut(layer.codes["bias"].codes, of_outputs, left)
                )
        first, second = (
            left.kept(axes[axis]) if axis in axes else torch.arange(layer.mask.shape[axis]) for axis in (0, 1)
        )
        kept = (first, second if columns is None else columns)
        return PrunedLayer(layer.name, weight, variance, mask, bias, bias_variance, codes, kept)

    @staticmethod
    def _cut(tensor: Tensor, axes: Mapping[int, np.ndarray], left: Units) -> Tensor:
        for axis, units in axes.items():
            tensor = entries_of(tensor, axis, left.kept(units))
        return tensor

    def _selections(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """For every tensor of indices along a followed axis, the units that it selects from, and those selected."""
        found = {}
        for node, source, chosen in self._excerpts():
            if node.op == "index_select":
                found[node.args[2].name] = (source, chosen)
        return found

    def _excerpts(self) -> list[tuple[Node, np.ndarray, np.ndarray]]:
        """Nodes that are read and take some entries of a followed axis, with its units and those that they take."""
        found = []
        for index, (node, axes) in enumerate(zip(self.graph.nodes, self.tracking.values, strict=True)):
            if node.op in ("index_select", "slice") and index in self.read:
                source = self.tracking.of(node.args[0])
                dim = node.args[1] % len(self.tracking.shape(node.args[0]))
                if dim in axes and dim in source:
                    found.append((node, source[dim], axes[dim]))
        return found


def _of_whole_grids(layer: PrunedLayer, left: Tensor) -> Tensor:
    """What of a layer's mask stays; coefficients of a grid say something of all its weights, and go together."""
    cells = math.prod(layer.codes["weight"].grid) if layer.codes else 1
    if cells > 1:
        left = left.reshape(-1, cells).any(1, keepdim=True).expand(-1, cells).reshape(left.shape)
    return layer.mask & left


def _by_input(weight: Tensor, groups: int) -> Tensor:
    """A weight with a column for every input channel of all groups, zero (False) where a filter does not read it.

    Shape ``(out, in, kernel)``, with all dimensions of the kernel in one.
    """
    out, per_group = weight.shape[:2]
    weight = weight.reshape(out, per_group, -1)
    if groups == 1:
        return weight
    full = weight.new_zeros(out, per_group * groups, weight.shape[2])
    for group in range(groups):
        rows = slice(group * out // groups, (group + 1) * out // groups)
        full[rows, group * per_group : (group + 1) * per_group] = weight[rows]
    return full


def _kept(part: Part, node: Node, mask: Tensor) -> tuple[Tensor, Tensor] | None:
    """Entries of the first two axes of a layer's weight that its part consists of; None where they are no product."""
    if layer_groups(node) == 1:
        return (part.inputs, part.outputs) if layer_type(node.op).output_axis else (part.outputs, part.inputs)
    return (part.outputs, torch.zeros(1, dtype=torch.long)) if mask.shape[1] == 1 else None


def _grouped(inputs: Tensor, mask: Tensor, groups: int) -> Tensor:
    """Which weights of a layer read these inputs, boolean, of the mask's shape."""
    out, per_group, *kernel = mask.shape
    of_filter = inputs.reshape(groups, 1, per_group).expand(groups, out // groups, per_group).reshape(out, per_group)
    return of_filter.reshape(out, per_group, *[1] * len(kernel)).expand(mask.shape)


def _pads(node: Node) -> bool:
    """Whether a convolution sees zeros where its input ends, or fewer inputs."""
    padding = layer_arguments(node).get("padding", 0)
    if layer_type(node.op).is_transposed:
        return True
    return padding == "same" or (not isinstance(padding, str) and any(np.atleast_1d(padding)))
