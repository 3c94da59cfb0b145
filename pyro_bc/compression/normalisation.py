"""What normalisations become where filters are pruned: gain and shift go with them.

A group that multiplies a filter is the filter with what normalises it. Where it is pruned, the normalisation gives 0,
and not the shift that it gives all that reads nothing: a unit that is gone leaves no constant behind.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..graph.constants import propagate
from ..graph.nodes import Graph, Named, Node, is_layer, layer_groups, layer_name
from ..graph.unit_rules import layer_axis
from .entries import Patterns

#: where gain and shift stand among the arguments of a normalisation, and the mean of those that have one.
_SCALES = {"batch_norm": (1, 2), "instance_norm": (1, 2), "group_norm": (2, 3), "layer_norm": (2, 3)}
_MEAN = 3


def without_pruned_shifts(graph: Graph, removed: Mapping[str, Tensor]) -> Graph:
    """The graph whose normalisations give 0 where pruned filters are all that lies before them.

    One that is used in several places does where that holds of all of them.

    :param removed: by a layer's name, which of its outputs are pruned with all that belongs to them, ``(out,)``.
    """
    if not any(bool(off.any()) for off in removed.values()) or not any(node.op in _SCALES for node in graph.nodes):
        return graph
    outputs = {}
    for node in filter(is_layer, graph.nodes):
        off = removed.get(layer_name(node))
        size = max(graph.tensors[node.args[1].name].shape[:2]) * layer_groups(node) if off is None else len(off)
        outputs[layer_name(node)] = np.full(size, np.nan) if off is None else np.where(off.numpy(), 0.0, np.nan)
    while True:
        tensors = _silenced(graph, outputs)
        if all(torch.equal(tensor, graph.tensors[name]) for name, tensor in tensors.items()):
            return graph
        graph = replace(graph, tensors={**graph.tensors, **tensors})


def _silenced(graph: Graph, outputs: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Gains, shifts and means with which normalisations give 0 where they read constants alone."""
    constants = propagate(graph, outputs)
    possible = {}
    for index, node in enumerate(graph.nodes):
        if is_layer(node):
            shape = graph.shape(index) or ()
            size, known_of = shape[layer_axis(node, len(shape))], outputs[layer_name(node)]
            # A table that is a layer's weight, too, has outputs of two kinds.
            fits = len(known_of) == size
            possible[index] = torch.from_numpy(known_of != 0) if fits else torch.ones(size, dtype=torch.bool)
    entries = Patterns(graph, possible, constants)
    reads: dict[str, list[Tensor]] = {}
    roles: dict[str, set[str]] = {}
    for index, node in enumerate(graph.nodes):
        if node.op not in _SCALES:
            continue
        axis = 1 if node.op != "layer_norm" else len(graph.shape(index) or ()) - 1
        known = constants[node.args[0].index] if node.args[0].index >= 0 else None
        for name in node.named():
            here = np.full(graph.tensors[name].shape[-1], np.nan) if known is None or known[0] != axis else known[1]
            channels = entries.channels(node.args[0], axis)
            if channels is not None and len(channels) == len(here):
                here = np.where(channels.numpy(), here, 0.0)
            reads.setdefault(name, []).append(torch.tensor(here))
            roles.setdefault(name, set()).add(_role(node, name))
    found = {}
    for name, values in reads.items():
        alike = torch.stack(values)
        off = (alike == alike[:1]).all(0)
        target = {"zero": torch.zeros(()), "mean": alike[0]}.get("".join(roles[name]))
        if target is not None and len(off) == len(graph.tensors[name]):
            own = graph.tensors[name]
            found[name] = torch.where(off, target.to(own.dtype), own)
    return found


def _role(node: Node, name: str) -> str:
    """What a tensor of a normalisation becomes: 0, or what is read, or what it is."""
    gain, shift = (node.args[at] if at < len(node.args) else None for at in _SCALES[node.op])
    mean = node.args[_MEAN] if node.op in ("batch_norm", "instance_norm") else None
    if mean == Named(name):
        return "mean"
    return "zero" if shift == Named(name) or (gain == Named(name) and mean is None) else "same"
