r"""From posterior to a physically smaller network with the same output.

Thresholds decide which weights are zero, with the bias of a filter that is zero altogether. Then units
(:mod:`pyro_bc.units`) fall away, forwards and backwards through the graph, until nothing changes:

* a unit that no layer reads is not computed, wherever it is;
* a unit that reads nothing is a constant, which moves through activations, pools and additions into the biases of the
  layers behind it. Where a convolution pads its input with zeros, only the constant 0 moves so;
* inputs of a fully connected layer that none of its weights reads are not read, also where others read them.

Batch normalisation behind a layer is folded into it, with its statistics of training or those of the pruned network.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .batch_norm import reestimate_batch_norm
from .devices import on_cpu
from .errors import EmptyNetworkError, UsageError
from .graph import (
    ELEMENTWISE,
    Graph,
    GraphNetwork,
    Named,
    Node,
    Value,
    arguments,
    function,
    is_layer,
    layer_groups,
    layer_name,
    read_graph,
    replace_leaves,
    select_nodes,
    without_dead_code,
)  # fmt: skip
from .posterior import LayerPosterior
from .thresholds import Threshold
from .units import Tracking, align, layer_axis


@dataclass(frozen=True)
class PrunedLayer:
    """What is left of a fully connected layer or convolution.

    :param name: the layer's name in the network.
    :param weight: posterior mean, zero where pruned, ``(out_left, in_left)`` or ``(out_left, in_left, *kernel)``.
    :param variance: posterior variance, same shape; 0 for a deterministic layer.
    :param mask: which weights are left, same shape.
    :param bias: ``(out_left,)`` or None.
    :param bias_variance: ``(out_left,)`` or None; 0 for a deterministic layer.
    """

    name: str
    weight: Tensor
    variance: Tensor
    mask: Tensor
    bias: Tensor | None
    bias_variance: Tensor | None


@dataclass(frozen=True)
class PrunedNetwork:
    """A smaller graph, and the posterior of its layers.

    :param graph: its tensors hold the posterior means.
    :param layers: by the name of the layer in the network, in the order of the graph.
    """

    graph: Graph
    layers: Mapping[str, PrunedLayer]


def weight_mask(layer: LayerPosterior, threshold: Threshold) -> Tensor:
    """Which weights survive a threshold, boolean, of the weight's shape.

    An automatic threshold also prunes across the groups: what a layer reads (a channel of a convolution) or computes
    (an output of a matrix) without any weight that has more signal than noise among those that are left. A filter can
    be well determined that no filter behind it listens to.
    """
    shape = layer.weight_mean.shape
    keep = threshold.keeps(layer)
    if keep.shape == shape:
        return keep
    mask = layer.over_weights(keep).expand(shape).clone()
    if threshold.method in ("mixture", "signal-to-noise"):
        across = 1 - layer.group_dim
        signal = (layer.weight_mean.square() / layer.weight_variance * mask).movedim(across, 0).flatten(1).amax(1) > 1
        mask &= signal.reshape([-1 if dim == across else 1 for dim in range(len(shape))])
    return mask


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
    layers = {layer_name(node): _masked(graph, node, posterior, thresholds) for node in graph.nodes if is_layer(node)}
    dead = [name for name, layer in layers.items() if not layer.mask.any()]
    if batch_norm_loader is not None:
        graph = reestimate_batch_norm(_with_weights(graph, layers), batch_norm_loader)
    graph, layers = _fold_batch_norms(graph, layers)
    pruner = _Pruner(graph, layers)
    pruner.settle()
    if pruner.output_is_constant():
        name = (dead or [n for n, layer in pruner.layers.items() if not layer.mask.any()] or list(layers))[0]
        raise EmptyNetworkError(
            f"nothing is left of layer '{name}', and so of the network: every one of its groups was pruned. Train "
            f"longer, with a higher learning rate or a lower weight of the KL, cap its standard deviations while it "
            f"learns (max_scale), or set a higher threshold for it"
        )
    return pruner.result()


def fold_batch_norm(net: nn.Module, example: Tensor) -> GraphNetwork:
    """The network in evaluation mode with batch normalisation inside the layers before it, where there is one.

    What to do with a pretrained network before it becomes Bayesian: normalisation over a batch would undo the scales
    of filters, and a pruned filter would leave the normalisation's shift behind. Dropout falls away.

    :param net: the network; it is not changed.
    :param example: a batch of inputs, ``(batch, …)``; its values do not matter.
    :raises UnsupportedNetworkError: as :func:`~pyro_bc.graph.read_graph`.
    """
    graph = read_graph(net, example)
    layers = {layer_name(node): _masked(graph, node, {}, {}) for node in graph.nodes if is_layer(node)}
    graph = _with_weights(*_fold_batch_norms(graph, layers))
    return GraphNetwork(graph.nodes, graph.tensors, graph.buffers).to(example.device)


def _with_weights(graph: Graph, layers: Mapping[str, PrunedLayer]) -> Graph:
    tensors = dict(graph.tensors)
    for name, layer in layers.items():
        tensors[f"{name}.weight"] = layer.weight
        if layer.bias is not None:
            tensors[f"{name}.bias"] = layer.bias
    return replace(graph, tensors=tensors)


def _masked(
    graph: Graph, node: Node, posterior: Mapping[str, LayerPosterior], thresholds: Mapping[str, Threshold]
) -> PrunedLayer:
    name = layer_name(node)
    dense = graph.tensors[node.args[1].name]
    dense_bias = graph.tensors[node.args[2].name] if len(node.args) > 2 and node.args[2] is not None else None
    if name not in posterior:
        zeros = None if dense_bias is None else torch.zeros_like(dense_bias)
        everything = torch.ones_like(dense, dtype=torch.bool)
        return PrunedLayer(name, dense.clone(), torch.zeros_like(dense), everything, dense_bias, zeros)
    layer = posterior[name]
    if layer.weight_mean.shape != dense.shape:
        raise UsageError(
            f"layer '{name}' has weights of shape {tuple(dense.shape)} in the network, but "
            f"{tuple(layer.weight_mean.shape)} in the posterior"
        )
    if (layer.bias_mean is None) != (dense_bias is None):
        raise UsageError(f"layer '{name}' has a bias either in the network or in the posterior, but not in both")
    mask = weight_mask(layer, thresholds[name])
    zero = torch.zeros(())  # what is pruned may have no finite moments
    weight, variance = torch.where(mask, layer.weight_mean, zero), torch.where(mask, layer.weight_variance, zero)
    bias = layer.bias_mean
    if bias is not None and mask.dim() > 2 and not layer.per_weight:
        bias = bias * mask.flatten(1).any(1)  # a filter's scale multiplies its bias too
    if not (torch.isfinite(weight).all() and torch.isfinite(variance).all()):
        raise UsageError(
            f"the posterior of layer '{name}' has means or variances that are NaN or infinite and cannot be "
            f"compressed; fit it anew, with smaller learning rates"
        )
    return PrunedLayer(name, weight, variance, mask, bias, layer.bias_variance)


def _fold_batch_norms(graph: Graph, layers: dict[str, PrunedLayer]) -> tuple[Graph, dict[str, PrunedLayer]]:
    """The graph without the normalisations whose input is a layer that nothing else reads."""
    readers: dict[int, list[int]] = {}
    for index, node in enumerate(graph.nodes):
        for value in node.values():
            readers.setdefault(value, []).append(index)
    uses = [layer_name(node) for node in graph.nodes if is_layer(node)]
    nodes, tensors, layers = list(graph.nodes), dict(graph.tensors), dict(layers)
    folded: dict[int, int] = {}
    for index, node in enumerate(graph.nodes):
        if node.op != "batch_norm" or not isinstance(node.args[0], Value):
            continue
        source = node.args[0].index
        axis_is_channel = source >= 0 and len(graph.shape(source) or ()) == (3 if nodes[source].op == "conv1d" else 4)
        is_flat = source >= 0 and nodes[source].op == "linear" and len(graph.shape(source) or ()) == 2
        if not (axis_is_channel or is_flat) or not is_layer(nodes[source]) or readers[source] != [index]:
            continue
        name = layer_name(nodes[source])
        statistics = [None if a is None else tensors[a.name] for a in node.args[1:5]]
        if uses.count(name) > 1 or statistics[2] is None or node.args[5]:
            continue
        gain, shift, mean, variance = statistics
        assert mean is not None and variance is not None
        factor = (torch.ones_like(mean) if gain is None else gain) / (variance + node.args[7]).sqrt()
        layer = layers[name]
        bias = torch.zeros_like(mean) if layer.bias is None else layer.bias
        bias = (bias - mean) * factor + (0 if shift is None else shift)
        over = factor.reshape(-1, *[1] * (layer.weight.dim() - 1))
        layers[name] = replace(
            layer,
            weight=layer.weight * over,
            variance=layer.variance * over.square(),
            bias=bias,
            bias_variance=_new_bias_variance(layer) * factor.square(),
        )
        nodes[source] = _with_bias(nodes[source])
        tensors[f"{name}.bias"] = bias
        folded[index] = source
    graph = replace(graph, nodes=tuple(nodes), tensors=tensors)
    return _without(graph, folded), layers


def _new_bias_variance(layer: PrunedLayer) -> Tensor:
    """The bias's variance; for a bias that the layer did not have, a middling one of its weights'."""
    if layer.bias_variance is not None:
        return layer.bias_variance
    known = layer.variance[layer.mask]
    return torch.full((len(layer.weight),), float(known.median()) if len(known) else 0.0)


def _with_bias(node: Node) -> Node:
    return replace(node, args=(*node.args[:2], Named(f"{layer_name(node)}.bias"), *node.args[3:]))


def _without(graph: Graph, replaced: Mapping[int, int]) -> Graph:
    """The graph without some nodes, each of which gives way to an earlier one."""

    def redirect(leaf: Any) -> Any:
        return Value(replaced.get(leaf.index, leaf.index)) if isinstance(leaf, Value) else leaf

    nodes = tuple(
        Node(node.op, replace_leaves(node.args, redirect), replace_leaves(node.kwargs, redirect))
        for node in graph.nodes
    )
    kept = [index for index in range(len(nodes)) if index not in replaced]
    if len(nodes) - 1 in replaced:  # the output itself gave way
        kept = [index for index in kept if index <= replaced[len(nodes) - 1]]
    return select_nodes(replace(graph, nodes=nodes), kept)


class _Pruner:
    """Removes what does not matter from a graph's layers until nothing changes."""

    def __init__(self, graph: Graph, layers: dict[str, PrunedLayer]):
        self.graph = graph
        self.layers = layers
        self.tracking = Tracking(graph)
        self.uses: dict[str, list[int]] = {}
        for index, node in enumerate(graph.nodes):
            if is_layer(node):
                self.uses.setdefault(layer_name(node), []).append(index)

    def settle(self) -> None:
        changed = True
        while changed:
            self.constants = _propagate(self.graph, self.layers, self.tracking)
            changed = self._absorb_constants() | self._drop_unread()
        self.constants = _propagate(self.graph, self.layers, self.tracking)

    def output_is_constant(self) -> bool:
        constant = self.constants[len(self.graph.nodes) - 1]
        return constant is not None and not np.isnan(constant[1]).any()

    def _absorb_constants(self) -> bool:
        """Move constant inputs of every layer into its bias."""
        changed = False
        for name, indices in self.uses.items():
            if len(indices) > 1:
                continue
            node, layer = self.graph.nodes[indices[0]], self.layers[name]
            known = self._input_constants(node)
            if known is None:
                continue
            if _pads(node):
                known = np.where(known == 0, known, np.nan)
            weight = _by_input(layer.weight, layer_groups(node))
            mask = _by_input(layer.mask, layer_groups(node))
            absorbed = torch.from_numpy(~np.isnan(known)) & mask.any(2).any(0)
            if not absorbed.any():
                continue
            changed = True
            values = torch.from_numpy(np.nan_to_num(known)) * absorbed
            shift = torch.einsum("oc,c->o", weight.sum(2).double(), values).float()
            if shift.count_nonzero():
                variance = _new_bias_variance(layer)
                bias = shift if layer.bias is None else layer.bias + shift
                layer = replace(layer, bias=bias, bias_variance=variance)
                self._give_bias(indices[0])
            left = layer.mask & ~_grouped(absorbed, layer.mask, layer_groups(node))
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
        nodes[index] = _with_bias(node)
        name = f"{layer_name(node)}.bias"
        tensors[name] = torch.zeros(len(self.layers[layer_name(node)].weight))
        self.graph = replace(self.graph, nodes=tuple(nodes), tensors=tensors)
        self.tracking.tensors[name] = {0: self.tracking.tensors[node.args[1].name][0]}

    def _alive(self) -> set[int]:
        """Units that are read, or fixed."""
        alive = self.tracking.units.fixed()
        for name, indices in self.uses.items():
            if layer_groups(self.graph.nodes[indices[0]]) == 1:
                inputs = self.tracking.tensors[f"{name}.weight"][1]
                reads = self.layers[name].mask.transpose(0, 1).flatten(1).any(1).numpy()
                alive.update(self.tracking.units.roots(inputs[reads]).tolist())
        return alive

    def _drop_unread(self) -> bool:
        changed = False
        alive = self._alive()
        for name, layer in self.layers.items():
            outputs = self.tracking.units.roots(self.tracking.tensors[f"{name}.weight"][0])
            computed = torch.from_numpy(np.isin(outputs, list(alive)))
            left = layer.mask & computed.reshape(-1, *[1] * (layer.mask.dim() - 1))
            if bool((left != layer.mask).any()):
                self.layers[name] = replace(layer, mask=left, weight=layer.weight * left)
                changed = True
        return changed

    def result(self) -> PrunedNetwork:
        """The graph with only what is alive."""
        alive = self._alive()
        units, tracked = self.tracking.units, self.tracking.tensors
        for name in self.layers:  # a branch that is constant keeps one unit, since no tensor may be empty
            outputs = units.roots(tracked[f"{name}.weight"][0])
            if not np.isin(outputs, list(alive)).any():
                alive.add(int(outputs[0]))
        selections = self._selections()
        for _, chosen in selections.values():  # nor may one that a selection gives
            if not np.isin(units.roots(chosen), list(alive)).any():
                alive.add(int(units.find(int(chosen[0]))))
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
            bias, bias_variance = (
                None if t is None else cut(t, {0: axes[0]}) for t in (layer.bias, layer.bias_variance)
            )
            reads = mask.any(0) if mask.dim() == 2 else torch.ones(1, dtype=torch.bool)
            if not reads.all():
                reads[0] |= not reads.any()
                gathers[name] = torch.nonzero(reads).flatten()
                weight, variance, mask = weight[:, reads], variance[:, reads], mask[:, reads]
            layers[name] = PrunedLayer(name, weight, variance, mask, bias, bias_variance)
            tensors[f"{name}.weight"] = weight
            if bias is not None:
                tensors[f"{name}.bias"] = bias
        graph = self._rewritten(tensors, gathers, kept)
        return PrunedNetwork(graph, layers)

    def _selections(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """For every tensor of indices along a followed axis, the units that it selects from, and those selected."""
        found = {}
        for node, axes in zip(self.graph.nodes, self.tracking.values, strict=True):
            if node.op == "index_select":
                source = self.tracking.of(node.args[0])
                dim = node.args[1] % len(self.tracking.shape(node.args[0]))
                if dim in axes:
                    found[node.args[2].name] = (source[dim], axes[dim])
        return found

    def _rewritten(self, tensors: dict[str, Tensor], gathers: Mapping[str, Tensor], kept: Any) -> Graph:
        """The nodes with their new sizes, and a selection of inputs before layers that read only some."""
        nodes: list[Node] = []
        shapes: list[Any] = [self.graph.shapes[0]]
        new: dict[int, int] = {-1: -1}
        for index, node in enumerate(self.graph.nodes):
            node = _resized(node, self.graph, index, self.tracking, kept)
            args, kwargs = (
                replace_leaves(tree, lambda leaf: Value(new[leaf.index]) if isinstance(leaf, Value) else leaf)
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
        graph = Graph(tuple(nodes), tensors, tuple(shapes), self.graph.buffers)
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
    return without_dead_code(_without(graph, replaced))


def _ascends(indices: Tensor) -> bool:
    return bool((indices.diff() > 0).all())


def _resized(node: Node, graph: Graph, index: int, tracking: Tracking, kept: Any) -> Node:
    """A node whose arguments name sizes of axes that became smaller."""
    axes = tracking.values[index]
    if is_layer(node) and (groups := layer_groups(node)) > 1:
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


def _pads(node: Node) -> bool:
    """Whether a convolution sees zeros where its input ends."""
    if node.op == "linear" or len(node.args) <= 4:
        return False
    padding = node.args[4]
    return padding == "same" or (not isinstance(padding, str) and any(np.atleast_1d(padding)))


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


# A node's constant entries: an axis, and for each of its entries the value or NaN.
_Constant = tuple[int, np.ndarray] | None


def _propagate(graph: Graph, layers: Mapping[str, PrunedLayer], tracking: Tracking) -> list[_Constant]:
    """Which entries of every node's result are the same constant whatever the input."""
    constants: list[_Constant] = []
    for index, node in enumerate(graph.nodes):
        constant = None
        if is_layer(node):
            layer = layers[layer_name(node)]
            reads = layer.mask.flatten(1).any(1).numpy()
            bias = np.zeros(len(reads)) if layer.bias is None else layer.bias.double().numpy()
            axis = layer_axis(node, len(graph.shape(index) or ()))
            constant = (axis, np.where(reads, np.nan, bias))
        elif node.op in _CONSTANT_RULES:
            constant = _CONSTANT_RULES[node.op](node, graph, constants, index)
        constants.append(None if constant is None or np.isnan(constant[1]).all() else constant)
    return constants


def _known(constants: list[_Constant], reference: Any) -> _Constant:
    return constants[reference.index] if isinstance(reference, Value) and reference.index >= 0 else None


def _through_elementwise(node: Node, graph: Graph, constants: list[_Constant], index: int) -> _Constant:
    known = _known(constants, node.args[0])
    if known is None or any(isinstance(leaf, Value | Named) for leaf in node.args[1:]):
        return None
    values = torch.from_numpy(known[1]).float()
    args, kwargs = arguments(node, lambda leaf: values if isinstance(leaf, Value) else leaf)
    return known[0], function(node.op)(*args, **kwargs).double().numpy()


def _through_pool(node: Node, graph: Graph, constants: list[_Constant], index: int) -> _Constant:
    known = _known(constants, node.args[0])
    if known is None or not node.op.startswith("avg"):
        return known  # the largest of equals; what pads a maximum is smaller than all
    padding = node.args[3] if len(node.args) > 3 else 0
    return (known[0], np.where(known[1] == 0, 0.0, np.nan)) if any(np.atleast_1d(padding)) else known


def _through_binary(node: Node, graph: Graph, constants: list[_Constant], index: int) -> _Constant:
    ndim = len(graph.shape(index) or ())
    sides = [_side(reference, graph, constants, ndim) for reference in node.args[:2]]
    axes = {side[0] for side in sides if isinstance(side, tuple)}
    if len(axes) != 1 or any(key != "alpha" for key, _ in node.kwargs):
        return None
    axis = axes.pop()
    a, b = (side[1] if isinstance(side, tuple) else side for side in sides)
    size = (graph.shape(index) or ())[axis]
    if not isinstance(size, int):
        return None
    a, b = (np.broadcast_to(np.nan if side is None else side, size) for side in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        tensors = (torch.from_numpy(side.copy()) for side in (a, b))
        result = function(node.op)(*tensors, **dict(node.kwargs)).numpy()
    if node.op == "mul":
        result = np.where((a == 0) | (b == 0), 0.0, result)
    return axis, result


def _side(reference: Any, graph: Graph, constants: list[_Constant], ndim: int) -> Any:
    """A number, an axis with its constants, or None for what is not constant."""
    if isinstance(reference, int | float):
        return float(reference)
    if isinstance(reference, Value):
        known = _known(constants, reference)
        return None if known is None else (known[0] + ndim - len(graph.shape(reference.index) or ()), known[1])
    if not isinstance(reference, Named):
        return None
    tensor = graph.tensors[reference.name]
    wide = [axis for axis, size in enumerate(tensor.shape) if size > 1]
    if not wide:
        return float(tensor.reshape(()))
    return None if len(wide) > 1 else (wide[0] + ndim - tensor.dim(), tensor.flatten().double().numpy())


def _through_batch_norm(node: Node, graph: Graph, constants: list[_Constant], index: int) -> _Constant:
    known = _known(constants, node.args[0])
    if known is None or known[0] != 1:
        return None
    named = [graph.tensors[a.name].double().numpy() if isinstance(a, Named) else None for a in node.args[1:5]]
    gain, shift, mean, variance = named
    if mean is None or variance is None or node.args[5]:
        return None
    values = (known[1] - mean) / np.sqrt(variance + node.args[7])
    return 1, values * (1 if gain is None else gain) + (0 if shift is None else shift)


def _through_cat(node: Node, graph: Graph, constants: list[_Constant], index: int) -> _Constant:
    ndim = len(graph.shape(index) or ())
    dim = (node.args[1] if len(node.args) > 1 else 0) % ndim
    parts = []
    for reference in node.args[0]:
        known = _known(constants, reference)
        is_value = isinstance(reference, Value)
        shape = (graph.shape(reference.index) or ()) if is_value else graph.tensors[reference.name].shape
        size = shape[dim]
        if not isinstance(size, int):
            return None
        parts.append(known[1] if known is not None and known[0] == dim else np.full(size, np.nan))
    return dim, np.concatenate(parts)


def _through_reshape(node: Node, graph: Graph, constants: list[_Constant], index: int) -> _Constant:
    known = _known(constants, node.args[0])
    if known is None:
        return None
    before, after = graph.shape(node.args[0].index) or (), graph.shape(index) or ()
    for old, new in align(before, after):
        if known[0] not in old:
            continue
        wide = [axis for axis in new if after[axis] != 1]
        if len(wide) != 1 or not all(isinstance(before[axis], int) for axis in old):
            return None
        shaped = known[1].reshape([-1 if axis == known[0] else 1 for axis in old])
        return wide[0], np.broadcast_to(shaped, [before[axis] for axis in old]).ravel()
    return None


def _through_mean(node: Node, graph: Graph, constants: list[_Constant], index: int) -> _Constant:
    known = _known(constants, node.args[0])
    ndim = len(graph.shape(node.args[0].index) or ()) if isinstance(node.args[0], Value) else 0
    if known is None or len(node.args) < 2 or not isinstance(node.args[1], tuple):
        return None
    reduced = {dim % ndim for dim in node.args[1]}
    keepdim = len(graph.shape(index) or ()) == ndim
    if known[0] in reduced:
        return None
    return known[0] - (0 if keepdim else sum(dim < known[0] for dim in reduced)), known[1]


def _through_selection(node: Node, graph: Graph, constants: list[_Constant], index: int) -> _Constant:
    known = _known(constants, node.args[0])
    if known is None or not isinstance(node.args[2], Named):
        return None
    if node.args[1] % len(graph.shape(index) or (1,)) != known[0]:
        return known
    return known[0], known[1][graph.tensors[node.args[2].name].numpy()]


_CONSTANT_RULES: dict[str, Any] = {
    **dict.fromkeys(ELEMENTWISE, _through_elementwise),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d"), _through_pool),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d", "upsample_nearest2d"), _through_pool),
    **dict.fromkeys(("add", "sub", "mul", "div", "maximum", "minimum"), _through_binary),
    **dict.fromkeys(("view", "reshape", "flatten", "squeeze", "unsqueeze"), _through_reshape),
    **dict.fromkeys(("mean", "amax"), _through_mean),
    "batch_norm": _through_batch_norm,
    "cat": _through_cat,
    "index_select": _through_selection,
}
