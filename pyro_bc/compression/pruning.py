r"""From posterior to a physically smaller network with the same output.

Thresholds decide which weights are zero, with the bias of a filter that is zero altogether. Then units
(:mod:`pyro_bc.graph.units`) fall away, forwards and backwards through the graph, until nothing changes:

* a unit that no layer reads is not computed, wherever it is;
* a unit that reads nothing is a constant, which moves through activations, pools and additions into the biases of the
  layers behind it. Where a convolution pads its input with zeros, only the constant 0 moves so;
* inputs of a fully connected layer that none of its weights reads are not read, also where others read them.

Batch normalisation behind a layer is folded into it, with its statistics of training or those of the pruned network.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import EmptyNetworkError
from ..graph.constant_rules import Constant
from ..graph.constants import propagate
from ..graph.layer_types import layer_type
from ..graph.layers_alone import shared_layers
from ..graph.nodes import (
    Graph,
    Named,
    Node,
    Value,
    is_layer,
    layer_arguments,
    layer_groups,
    layer_name,
    replace_leaves,
    without_dead_code,
    without_nodes,
)
from ..graph.unit_rules import layer_axis
from ..graph.units import Tracking
from ..posterior.summary import LayerPosterior
from ..posterior.thresholds import Threshold
from ..runtime.devices import on_cpu
from .batch_norm import fold_batch_norms, new_bias_variance, reestimate_batch_norm, with_bias
from .branches import without_constant_branches
from .pruned import PrunedLayer, PrunedNetwork, masked_layers, with_weights


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
    layers = masked_layers(graph, posterior, thresholds)
    dead = [name for name, layer in layers.items() if not layer.mask.any()]
    if batch_norm_loader is not None:
        graph = reestimate_batch_norm(with_weights(graph, layers), batch_norm_loader)
    graph, layers = fold_batch_norms(graph, layers)
    while True:
        pruner = _Pruner(graph, layers)
        pruner.settle()
        if pruner.output_is_constant():
            name = (dead or [n for n, layer in pruner.layers.items() if not layer.mask.any()] or list(layers))[0]
            raise EmptyNetworkError(
                f"nothing is left of layer '{name}', and so of the network: every one of its groups was pruned. Fit it "
                f"with a lower weight of the KL (kl_weight), cap its standard deviations while it learns (max_scale), "
                f"or set a higher threshold for it (thresholds)"
            )
        smaller = without_constant_branches(pruner.graph, pruner.constants)
        if smaller is None:
            return pruner.result()
        left = {layer_name(node) for node in smaller.nodes if is_layer(node)}
        graph, layers = smaller, {name: layer for name, layer in pruner.layers.items() if name in left}


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
            changed = self._absorb_constants() | self._drop_unread()
        self.constants = self._propagated()

    def _propagated(self) -> list[Constant]:
        """The constants of every node: those of outputs that read nothing, and what they become."""
        outputs = {}
        for name, layer in self.layers.items():
            if name in self.whole:
                size = layer_groups(self.graph.nodes[self.uses[name][0]]) * len(self._outputs(name))
                outputs[name] = np.full(size, np.nan)
                continue
            reads = self.types[name].by_output(layer.mask).flatten(1).any(1).numpy()
            added = {len(node.args) > 2 and node.args[2] is not None for node in map(self._node, self.uses[name])}
            bias = np.zeros(len(reads)) if layer.bias is None else layer.bias.double().numpy()
            constant = np.nan if len(added) > 1 else bias if added == {True} else 0.0
            outputs[name] = np.where(reads, np.nan, constant)
        return propagate(self.graph, outputs)

    def output_is_constant(self) -> bool:
        constant = self.constants[len(self.graph.nodes) - 1]
        return constant is not None and not np.isnan(constant[1]).any()

    def _absorb_constants(self) -> bool:
        """Move constant inputs of every layer into its bias."""
        changed = False
        for name, indices in self.uses.items():
            if len(indices) > 1 or name in self.whole or name in self.shared:
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
            changed = True
            values = torch.from_numpy(np.nan_to_num(known)) * absorbed
            shift = torch.einsum("oc,c->o", weight.sum(2).double(), values).float()
            if shift.count_nonzero():
                variance = new_bias_variance(layer, len(shift))
                bias = shift if layer.bias is None else layer.bias + shift
                layer = replace(layer, bias=bias, bias_variance=variance)
                self._give_bias(indices[0])
            read = _grouped(absorbed, kind.by_output(layer.mask), layer_groups(node))
            left = layer.mask & ~read.movedim((0, 1), (kind.output_axis, kind.input_axis))
            self.layers[name] = replace(layer, mask=left, weight=layer.weight * left)
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
            if name in self.layers and layer_groups(self.graph.nodes[indices[0]]) == 1:
                kind = self.types[name]
                inputs = self.tracking.tensors[f"{name}.weight"][kind.input_axis]
                reads = kind.by_output(self.layers[name].mask).transpose(0, 1).flatten(1).any(1).numpy()
                alive.update(self.tracking.units.roots(inputs[reads]).tolist())
        return alive

    def _drop_unread(self) -> bool:
        changed = False
        alive = self._alive()
        for name, layer in self.layers.items():
            outputs = self.tracking.units.roots(self._outputs(name))
            computed = torch.from_numpy(np.isin(outputs, list(alive)))
            left = layer.mask & self.types[name].over_outputs(computed, layer.mask.shape)
            if bool((left != layer.mask).any()):
                self.layers[name] = replace(layer, mask=left, weight=layer.weight * left)
                changed = True
        return changed

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
            given = [self._outputs(name) for name in self.layers if f"{name}.weight" in names]
            given += [chosen for _, chosen in self._selections().values()]
            empty = [units.roots(some) for some in given if not np.isin(units.roots(some), list(alive)).any()]
            if not empty:
                break
            alive.update(int(some[0]) for some in empty)
        self.graph = replace(self.graph, nodes=tuple(nodes))
        self.layers = {name: layer for name, layer in self.layers.items() if f"{name}.weight" in names}
        return alive

    def result(self) -> PrunedNetwork:
        """The graph with only what is alive."""
        alive = self._leave_out_unread_parts()
        units, tracked = self.tracking.units, self.tracking.tensors
        selections = self._selections()
        living = list(alive)

        def kept(axes: Mapping[int, np.ndarray], axis: int) -> Tensor:
            return torch.from_numpy(np.flatnonzero(np.isin(units.roots(axes[axis]), living)))

        def cut(tensor: Tensor, axes: Mapping[int, np.ndarray]) -> Tensor:
            for axis in axes:
                tensor = tensor.index_select(axis, kept(axes, axis))
            return tensor

        tensors = {name: cut(tensor, tracked[name]) for name, tensor in self.graph.tensors.items()}
        for name, (source, chosen) in selections.items():  # what is left of what they select, where it stands now
            places = np.cumsum(np.isin(units.roots(source), living)) - 1
            left = np.isin(units.roots(chosen), living)
            tensors[name] = torch.from_numpy(places[self.graph.tensors[name].numpy()[left]])
        layers: dict[str, PrunedLayer] = {}
        gathers: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            axes = tracked[f"{name}.weight"]
            weight, variance, mask = (cut(t, axes) for t in (layer.weight, layer.variance, layer.mask))
            of_outputs = {} if name in self.whole else {0: self._outputs(name)}
            bias, bias_variance = (None if t is None else cut(t, of_outputs) for t in (layer.bias, layer.bias_variance))
            whole = self.types[name].spatial or name in self.shared
            reads = torch.ones(1, dtype=torch.bool) if whole else mask.any(0)
            if not reads.all():
                reads[0] |= not reads.any()
                gathers[name] = torch.nonzero(reads).flatten()
                weight, variance, mask = weight[:, reads], variance[:, reads], mask[:, reads]
            codes = {}
            if layer.codes:
                own = cut(layer.codes["weight"].codes * layer.mask, axes)
                rows = kept(axes, 0) if 0 in axes else None
                codes["weight"] = layer.codes["weight"].with_codes(own if reads.all() else own[:, reads], rows)
                if bias is not None:
                    codes["bias"] = replace(layer.codes["bias"], codes=cut(layer.codes["bias"].codes, of_outputs))
            layers[name] = PrunedLayer(name, weight, variance, mask, bias, bias_variance, codes)
            tensors[f"{name}.weight"] = weight
            if bias is not None:
                tensors[f"{name}.bias"] = bias
        graph = self._rewritten(tensors, gathers, kept)
        return PrunedNetwork(graph, layers)

    def _selections(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """For every tensor of indices along a followed axis, the units that it selects from, and those selected."""
        found = {}
        for index, (node, axes) in enumerate(zip(self.graph.nodes, self.tracking.values, strict=True)):
            if node.op == "index_select" and index in self.read:
                source = self.tracking.of(node.args[0])
                dim = node.args[1] % len(self.tracking.shape(node.args[0]))
                if dim in axes:
                    found[node.args[2].name] = (source[dim], axes[dim])
        return found

    def _rewritten(self, tensors: dict[str, Tensor], gathers: Mapping[str, Tensor], kept: Any) -> Graph:
        """The nodes with their new sizes, and a selection of inputs before layers that read only some."""
        nodes: list[Node] = []
        shapes: list[Any] = [self.graph.shapes[0]]
        new: dict[int, int] = {}

        def moved(leaf: Any) -> Any:
            return Value(new.get(leaf.index, leaf.index)) if isinstance(leaf, Value) else leaf

        for index, node in enumerate(self.graph.nodes):
            if index not in self.read:
                continue
            node = _resized(node, self.graph, index, self.tracking, kept)
            args, kwargs = (
                replace_leaves(
                    tree, lambda leaf: Value(new.get(leaf.index, leaf.index)) if isinstance(leaf, Value) else leaf
                )
                for tree in (node.args, node.kwargs)
            )
            shape = list(self.graph.shape(index) or ())
            for axis in self.tracking.values[index]:
                shape[axis] = len(kept(self.tracking.values[index], axis))
            if is_layer(node) and layer_name(node) in gathers:
                name = _free_name(f"{layer_name(node)}_inputs", tensors)
                tensors[name] = gathers[layer_name(node)]
                nodes.append(Node("index_select", (args[0], -1, Named(name))))
                before = self.tracking.shape(node.args[0])
                shapes.append((*before[:-1], len(tensors[name])))
                args = (Value(len(nodes) - 1), *args[1:])
            new[index] = len(nodes)
            nodes.append(Node(node.op, args, kwargs))
            shapes.append(tuple(shape) if self.graph.shape(index) is not None else None)
        graph = replace(self.graph, nodes=tuple(nodes), tensors=tensors, shapes=tuple(shapes))
        return _merge_selections(graph)


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


def _resized(node: Node, graph: Graph, index: int, tracking: Tracking, kept: Any) -> Node:
    """A node whose arguments name sizes of axes that became smaller."""
    axes = tracking.values[index]
    if is_layer(node) and (groups := layer_groups(node)) > 1 and not layer_type(node.op).is_transposed:
        outputs = tracking.tensors[node.args[1].name]
        per_group = len(outputs[0]) // groups
        return replace(node, args=(*node.args[:6], len(kept(outputs, 0)) // per_group, *node.args[7:]))
    if node.op in ("view", "reshape", "expand"):
        sizes = tuple(
            len(kept(axes, axis)) if axis in axes and isinstance(size, int) and size >= 0 else size
            for axis, size in enumerate(node.args[1])
        )
        return replace(node, args=(node.args[0], sizes, *node.args[2:]))
    if node.op == "unflatten":
        start = node.args[1] % len(graph.shape(node.args[0].index) or (1,))
        sizes = tuple(
            len(kept(axes, start + offset)) if start + offset in axes and size >= 0 else size
            for offset, size in enumerate(node.args[2])
        )
        return replace(node, args=(*node.args[:2], sizes))
    return node


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
