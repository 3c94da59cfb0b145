"""A network without the groups that have gone, while it is still being fitted: no weight that stays is changed.

:func:`~pyro_bc.compression.pruning.shrink` makes what is left as small as it can be; here only what can be trained on
as it is counts, so that constants must not move into biases, nor normalisation into weights.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import PyroBCError
from ..graph.nodes import Graph, is_layer, layer_name
from ..posterior.gone import Gone
from ..posterior.summary import LayerPosterior
from ..posterior.thresholds import Threshold
from ..runtime.shapes import on_axis
from .pruned import PrunedNetwork
from .pruning import shrink

# Half way between what has gone and what has not.
_CUT = Threshold(0.5, "explicit")
# Operations whose statistics of training are no part of a graph.
_OF_BATCHES = ("batch_norm", "instance_norm")


def smaller(graph: Graph, posterior: Mapping[str, LayerPosterior], gone: Gone) -> PrunedNetwork | None:
    """The network that is left where groups have gone, each layer with what was ``kept`` of it.

    :param graph: the network, with the weights of deterministic layers.
    :param posterior: summaries by layer name in the graph.
    :param gone: by the same names, as :func:`~pyro_bc.posterior.gone.gone` says it.
    :returns: None where what stays would be more than a part of what there was, or there is nothing left.
    """
    if any(node.op in _OF_BATCHES for node in graph.nodes):
        return None
    marked = {name: _marked(layer, gone[name]) for name, layer in posterior.items()}
    try:
        left = shrink(graph, marked, dict.fromkeys(marked, _CUT))
    except PyroBCError:  # nothing is left of it, or nothing that can be cut
        return None
    return left if _is_part(graph, posterior, gone, left) else None


def _marked(layer: LayerPosterior, gone: Mapping[int, Tensor]) -> LayerPosterior:
    """The layer with a statistic of 1 for groups that have gone, and 0 for others; and without reach of its inputs."""
    shape, axis = layer.weight_mean.shape, layer.group_dim
    reach = torch.ones(shape, dtype=torch.bool)
    for other, marks in gone.items():
        if layer.per_weight or other != axis:
            reach = reach & ~on_axis(marks, other, len(shape))
    statistic = None if layer.statistic is None else torch.zeros_like(layer.statistic)
    if statistic is not None and axis in gone and not layer.per_weight:
        statistic = gone[axis].float()
    return replace(layer, statistic=statistic, weight_statistic=None, reach=reach)


def _is_part(graph: Graph, posterior: Mapping[str, LayerPosterior], gone: Gone, left: PrunedNetwork) -> bool:
    """Whether all that is left are entries of what there was."""
    layers = {layer_name(node) for node in left.graph.nodes if is_layer(node)}
    for name, tensor in left.graph.tensors.items():
        path, _, role = name.rpartition(".")
        if path in layers and role in ("weight", "bias"):
            if name not in graph.tensors or left.layers[path].kept is None:
                return False
        elif tensor.is_floating_point() and (name not in graph.tensors or tensor.shape != graph.tensors[name].shape):
            return False
    for name, own in left.layers.items():
        if own.kept is None or own.weight.shape[2:] != graph.tensors[f"{name}.weight"].shape[2:]:
            return False
        if own.bias is not None and name in posterior:
            layer = posterior[name]
            axis = layer.layer_type.output_axis
            outputs = own.kept[axis]
            stays = ~gone[name][axis][outputs] if axis in gone[name] else True
            before = layer.bias_mean
            if before is None or bool(((own.bias != before[outputs]) & stays).any()):
                return False  # it took up a constant
    return True
