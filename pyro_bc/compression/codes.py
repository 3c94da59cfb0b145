"""From a fitted :class:`~pyro_bc.RateNetwork` to a compressed network."""

from collections.abc import Mapping

import torch

from ..errors import EmptyNetworkError, UnsupportedNetworkError, UsageError
from ..file.compressed import CompressedNetwork
from ..file.contents import Integers, Stored
from ..graph.nodes import Graph, is_layer
from ..priors.learned_code import CellGuide, RateNetwork
from ..quantisation.fixed_point import FixedPoint
from ..quantisation.rounding import to_fixed_point
from .dead_units import without_dead_units


def compress_codes(
    model: RateNetwork,
    guide: CellGuide,
    graph: Graph,
    *,
    dense_shapes: Mapping[str, tuple[int, int]] | None = None,
    dense_parameters: int | None = None,
) -> CompressedNetwork:
    """The network of rounded codes, in steps that are powers of two; units that feed nothing are left out of a chain.

    :param model: fitted, its steps powers of two (:meth:`~pyro_bc.priors.learned_code.RateNetwork.snap_steps_`).
    :param guide: its guide.
    :param graph: of the model's network; its tensors' values do not matter.
    :param dense_shapes: outputs and inputs of every layer of the network to compare with, by the name of its weight;
        None for those of the graph.
    :param dense_parameters: of that network.
    :raises UsageError: where a step is no power of two, or the graph is not the model's.
    :raises EmptyNetworkError: where all codes of a layer are 0.
    """
    if set(model.names) - set(graph.tensors):
        raise UsageError("the graph is not that of the model's network: their parameters differ")
    codes = {name: code.detach().round().long().cpu() for name, code in zip(model.names, guide.codes, strict=True)}
    tensors: dict[str, Stored] = {}
    for name, value in graph.tensors.items():
        if name in codes:
            fraction_bits = -torch.log2(model.steps()[model.names.index(name)].detach().double())
            if abs(float(fraction_bits - fraction_bits.round())) > 1e-4:
                raise UsageError(f"the step of '{name}' is no power of two; call model.snap_steps_() before")
            tensors[name] = FixedPoint(codes[name], int(fraction_bits.round()), model.grids.get(name, ()))
        elif value.dtype == torch.int64:
            tensors[name] = Integers(value)
        elif value.is_floating_point():  # not trained, an input's mean: kept as it is
            tensors[name] = to_fixed_point(value, torch.zeros_like(value))
        else:
            raise UnsupportedNetworkError(f"tensor '{name}' of type {value.dtype} cannot be stored in a file")
    for node in graph.nodes:
        if is_layer(node) and not codes[node.args[1].name].any():
            raise EmptyNetworkError(
                f"nothing is left of '{node.args[1].name}': all of its codes are 0. Use a lower KL weight"
            )
    weights = [node.args[1].name for node in graph.nodes if is_layer(node)]
    shapes = {name: (graph.tensors[name].shape[0], graph.tensors[name].shape[1]) for name in weights}
    small = CompressedNetwork(
        nodes=graph.nodes,
        tensors=tensors,
        dense_shapes=dict(dense_shapes or shapes),
        dense_parameters=dense_parameters or sum(codes[name].numel() for name in model.names),
        input_shape=tuple(size for size in graph.shapes[0] or () if isinstance(size, int)),
        buffers=graph.buffers,
        thresholds={},
    )
    return without_dead_units(small)
