"""The compressed network: what :func:`compress` makes of a posterior, and what a ``.pbc`` file gives back."""

import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..data.loaders import loader_steps
from ..errors import EmptyNetworkError, UnsupportedNetworkError, UsageError
from ..file.compressed import CompressedNetwork
from ..file.contents import Floats, Input, Numbers, Selection, Stored, integers_of
from ..graph.interface import Output
from ..graph.layer_types import layer_type
from ..graph.module import GraphNetwork
from ..graph.nodes import Graph, Named, Value, is_layer, layer_name
from ..graph.read import read_graph
from ..model.agreement import under_shared
from ..model.network import BayesianNetwork
from ..posterior.channels import without_channels
from ..posterior.guides import Posterior
from ..posterior.in_place import pruned as pruned_in_place
from ..posterior.in_place import rounded
from ..posterior.summary import LayerPosterior
from ..posterior.thresholds import Threshold, choose_threshold
from ..quantisation.rounding import NOISE_RATIO, on_grid, to_fixed_point
from ..runtime.devices import device_of, on_cpu
from ..runtime.inputs import Batch, head, moved, names_of, tensors_of
from .batch_norm import fold_into_posterior
from .made_up import made_up
from .pruned import PrunedLayer, PrunedNetwork, masked_layer, with_weights
from .pruning import shrink
from .ragged import with_parts
from .rate import DIVERGENCE, Priced, outputs_of, price_for, priced, rate_coded, step_of
from .reading import Reading, read_posterior
from .rounded_training import price_with_training, train_rounded
from .rows import without_zero_rows
from .sensitivity import warn_where_worse

# Inputs on which a compressed network must not always compute the same.
_EXAMPLES = 32

# By how much outputs may differ in single precision, as a part of their spread.
_SAME = 0.02


def compress(
    model: Any,
    guide: Any,
    *,
    net: nn.Module | None = None,
    thresholds: Mapping[str, float] | None = None,
    group_nats_per_bit: float | None = None,
    nats_per_bit: float | None = None,
    divergence: float = DIVERGENCE,
    epochs: int = 0,
    loader: Iterable[Any] | None = None,
    progress: bool = True,
    precision: str = "posterior",
    noise_ratio: float = NOISE_RATIO,
    dense: CompressedNetwork | nn.Module | None = None,
    batch_norm_loader: Iterable[Any] | None = None,
    held_out: Iterable[Any] | None = None,
) -> CompressedNetwork:
    """Prune what the posterior says is not needed, and round the rest as coarsely as it allows.

    :param model: the model that was fitted: a :class:`~pyro_bc.BayesianNetwork`, or any Pyro model whose sites
        are named ``<layer>.<role>``.
    :param guide: its fitted guide: a :class:`~pyro_bc.FactorizedGuide`, or one of Pyro's
        (:mod:`pyro_bc.posterior.guides`); or what was read of one
        (``pyro_bc.compression.reading.read_posterior``), where it is compressed several times.
    :param net: the deterministic network that the model computes, with a layer of the same name for each of its
        own; needed for models written by hand, since a Python function cannot be stored in a file.
    :param thresholds: explicit thresholds by layer name; the others are found automatically.
    :param group_nats_per_bit: price of a bit at which groups are weighed against the bits that they take, beside the
        automatic threshold; None for the rule of signal and noise (:mod:`pyro_bc.posterior.thresholds`).
    :param nats_per_bit: price of a bit in nats of the posterior, by which the codes of weights are chosen, one for all
        layers (:mod:`pyro_bc.quantisation.conditional`): higher is smaller. None for the rule below, and for a
        :class:`~pyro_bc.CurvatureGuide` for the price that ``divergence`` allows.
    :param divergence: by how much the predictions of a network whose posterior is its curvature may change where no
        price is given: mean KL, in nats an input, on inputs that the guide has seen.
    :param epochs: where codes have a price: passes over ``loader`` in which the network is trained on with its codes in
        the loop (:mod:`pyro_bc.compression.rounded_training`).
    :param loader: training batches ``(x, y)``; needed for ``epochs`` alone.
    :param progress: whether to show a progress bar for them.
    :param precision: rule that sets the bits, ``posterior`` or ``paper`` (:mod:`pyro_bc.quantisation.rounding`).
    :param noise_ratio: rounding noise as a part of the posterior's variance, for the rule ``posterior``.
    :param dense: what the figures compare with: the compression that the model's network came from
        (``small.network()``, or ``load`` of its file), where a pruned network was trained on; or a wider network with
        the same layers, where a narrow one was trained. None for the model's own network.
    :param batch_norm_loader: training batches, inputs alone or with targets, from which batch normalisation collects
        its mean and variance anew after pruning; those of a training by mini-batches include sampling noise.
    :param held_out: batches ``(x, y)`` that no training saw, to compare the network with the posterior mean: where it
        is clearly worse, a warning names the layer that did it. :func:`~pyro_bc.sensitivity` has the whole table.
    :raises EmptyNetworkError: where a layer is left without any weight, or the output no longer depends on the input.
    :raises UnsupportedNetworkError: where the network is no fixed graph of known operations, or cutting would change
        what its codes compute.
    :raises UsageError: where layers and network do not fit, a threshold names no layer, or there are ``epochs``
        without a ``loader`` or a price of codes.
    """
    if epochs < 0 or (epochs and loader is None):
        raise UsageError(f"epochs is 0, or how often to pass over loader=…, the training batches (x, y); not {epochs}")
    for name, price in (("nats_per_bit", nats_per_bit), ("group_nats_per_bit", group_nats_per_bit)):
        if price is not None and not 0 < price < math.inf:
            raise UsageError(f"{name} is the price of a bit, positive and finite, not {price!r}")
    if held_out is not None and not isinstance(model, BayesianNetwork):
        raise UsageError("held_out judges a BayesianNetwork, whose likelihood says what an error is: leave it out")
    read = guide if isinstance(guide, Reading) else read_posterior(model, guide, net)
    net, fitted, example, graph, posterior = read.net, read.fitted, read.example, read.graph, read.posterior
    for name in thresholds or {}:
        if name not in {**posterior, **read.channels}:
            there = ", ".join([*posterior, *read.channels])
            raise UsageError(f"a threshold is given for '{name}', but the layers are {there}")

    def cuts(layers: Mapping[str, LayerPosterior]) -> dict[str, Threshold]:
        given = thresholds or {}
        return {name: choose_threshold(own, given.get(name), group_nats_per_bit) for name, own in layers.items()}

    whole = with_scales(read, read.channels), posterior
    of_channels = cuts(read.channels)
    left = without_channels({**posterior, **read.channels}, of_channels)
    graph = with_scales(read, {name: left.pop(name) for name in read.channels})
    posterior, chosen = left, cuts(left)
    names = [layer_name(node) for node in graph.nodes if is_layer(node)]
    steps = dict(read.steps)
    if nats_per_bit is not None or fitted.curvature is not None:
        num_data = int(getattr(model, "num_data", len(tensors_of(example)[0])))
        graph, posterior, prices = _prices(graph, posterior, fitted, read.names, num_data)
        if nats_per_bit is None:
            x: Any = example if fitted.examples is None else fitted.examples
            nats_per_bit = price_for(graph, posterior, prices, model.likelihood, x, divergence)
            if epochs:
                nats_per_bit = price_with_training(nats_per_bit, epochs * loader_steps(loader))
        steps = {name: step_of(num_data * known, nats_per_bit) for name, known in fitted.others.items()}
        if epochs and loader is not None:
            graph, posterior = train_rounded(
                graph, posterior, prices, nats_per_bit, model.likelihood, loader,
                epochs=epochs, num_data=num_data, kl_weight=fitted.kl_weight, progress=progress,
            )  # fmt: skip
        else:
            posterior = rate_coded(graph, posterior, prices, nats_per_bit)
        x = moved(head(example, _EXAMPLES), "cpu")
        if _differ(x) and not _differ(outputs_of(graph, posterior, x)):
            raise EmptyNetworkError(
                f"at {nats_per_bit:g} nats a bit so few weights are worth their bits that the network computes the "
                f"same for every input: give a lower nats_per_bit"
            )
    elif epochs:
        raise UsageError("epochs train on with codes that have a price: give nats_per_bit, or a CurvatureGuide")
    # Weights that no layer multiplies with as they are: rounded as the posterior says, and never cut.
    transformed = {
        name: masked_layer(graph, name, f"{name}.bias" in graph.tensors, posterior, chosen) for name in read.loose
    }
    graph = with_weights(graph, transformed)
    pruned = made_up(shrink(graph, posterior, chosen, batch_norm_loader), graph, posterior, read.inputs)
    pruned = without_zero_rows(pruned)
    shapes = {f"{name}.weight": graph.tensors[f"{name}.weight"].shape for name in names}
    dense_shapes = _dense_shapes(graph)
    dense_parameters = sum(p.numel() for p in net.parameters())
    if isinstance(dense, CompressedNetwork):
        if {f"{layer.name}.weight": layer.weight.codes.shape for layer in dense.layers} != shapes:
            raise UsageError("dense=… is not the compression that this model's network came from: layers differ")
        dense_shapes, dense_parameters = dict(dense.dense_shapes), dense.dense_parameters
    elif dense is not None:
        dense_shapes, dense_parameters = _dense_network(dense, example, list(shapes), getattr(model, "output", None))
    first, *further = inputs_as_stored(net, example)
    small = CompressedNetwork(
        nodes=pruned.graph.nodes,
        tensors=_store(pruned, transformed, precision, noise_ratio, steps),
        dense_shapes={
            name: shape
            for name, shape in with_parts(dense_shapes, pruned.parts).items()
            if name in pruned.graph.tensors
        },
        dense_parameters=dense_parameters,
        input_shape=first.shape,
        buffers=pruned.graph.buffers,
        input_dtype=first.dtype,
        input_name=first.name,
        further_inputs=tuple(further),
        thresholds={**chosen, **of_channels},
    )
    _check_not_constant(small, pruned, example)
    is_as_trained = nats_per_bit is None and batch_norm_loader is None and not steps
    if is_as_trained and all(layer.codes for layer in posterior.values()):
        as_chosen = {
            name: replace(layer, codes=pruned_in_place(layer, chosen[name]).codes) for name, layer in posterior.items()
        }
        _check_same(small, graph, as_chosen, example)
    if held_out is not None:
        alone = {
            name: rounded(layer, pruned_in_place(layer, chosen[name]), noise_ratio, precision)
            for name, layer in posterior.items()
        }
        at_mean = whole if read.channels and nats_per_bit is None else (graph, posterior)
        warn_where_worse(small, *at_mean, alone, model.likelihood, held_out, fitted)
    return small


def with_scales(read: Reading, channels: Mapping[str, Any]) -> Graph:
    """The graph with what is in no layer under the scales that it shares with layers, 0 in channels that are pruned."""
    scales = {name: own.scale_mean for name, own in channels.items()}
    tensors = under_shared(read.graph, read.fitted.shared, scales, read.names, of_layers=False)
    return replace(read.graph, tensors=tensors)


def _prices(
    graph: Graph, posterior: Mapping[str, LayerPosterior], fitted: Posterior, names: Mapping[str, str], num_data: int
) -> tuple[Graph, dict[str, LayerPosterior], dict[str, Priced | None]]:
    """Graph and posterior without batch normalisation, and what the codes of their layers are chosen by.

    :param names: of the layers in the graph, by their names in the model.
    """
    graph, folded, factors = fold_into_posterior(graph, posterior)
    curvature = None
    if fitted.curvature is not None:
        curvature = {
            names[name]: replace(own, softened=own.softened / factors.get(names[name], 1.0))
            for name, own in fitted.curvature.items()
        }
    return (
        graph,
        folded,
        priced(graph, folded, curvature, num_data, _row_precisions(fitted, names, posterior, folded, factors)),
    )


def _row_precisions(
    fitted: Posterior,
    names: Mapping[str, str],
    posterior: Mapping[str, LayerPosterior],
    folded: Mapping[str, LayerPosterior],
    factors: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Precision of the rows of layers whose weights are sites as they are, of a guide that correlates them.

    :param posterior: before normalisation was folded.
    :param factors: by what its folding multiplied the rows, squared.
    """
    found: dict[str, Tensor] = {}
    for own, (prior, _, kind) in fitted.layers.items():
        layer = posterior.get(names[own])
        if (
            fitted.precision is None
            or fitted.shared
            or layer is None
            or layer.codes
            or prior.roles != ("weight",)
            or kind.output_axis
        ):
            continue
        if (layer.bias_mean is None) != (folded[names[own]].bias_mean is None):
            continue  # a bias that only folding gave it is no site
        numbers = torch.arange(layer.weight_mean.numel()).reshape(layer.weight_mean.shape)
        entries = {f"{own}.weight": kind.rows(numbers, 1)}
        if layer.bias_mean is not None:
            entries[f"{own}.bias"] = torch.arange(len(layer.bias_mean))[:, None]
        found[names[own]] = fitted.precision(entries).cpu() / factors[names[own]][:, None, None]
    return found


def _dense_shapes(graph: Graph) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of every layer, by the name of its weight."""
    weights = {node.args[1].name: layer_type(node.op) for node in graph.nodes if is_layer(node)}
    return {name: kind.dense_shape(graph.tensors[name].shape) for name, kind in weights.items()}


def _dense_network(
    dense: nn.Module, example: Batch, names: list[str], output: Output
) -> tuple[dict[str, tuple[int, int]], int]:
    """Outputs and inputs of every layer of a wider network with the same layers, and how many parameters it has."""
    graph = read_graph(dense, moved(example, device_of(dense)), output)
    missing = [name for name in names if name not in graph.tensors]
    if missing:
        raise UsageError(f"dense=… has no '{missing[0]}': it is no wider network with the same layers")
    return _dense_shapes(graph), sum(parameter.numel() for parameter in dense.parameters())


def _some_inputs(example: Batch) -> tuple[Tensor, ...]:
    """A few inputs, as what is stored takes them, in single precision."""
    parts = (part[:_EXAMPLES].cpu() for part in tensors_of(example))
    return tuple(part.float() if part.is_floating_point() else part for part in parts)


@on_cpu
def _check_not_constant(small: CompressedNetwork, pruned: PrunedNetwork, example: Batch) -> None:
    """:raises EmptyNetworkError: where what is left computes the same for every input."""
    x = _some_inputs(example)
    if not _differ(x) or not _is_constant(small.network(), x):
        return
    zero = [layer.name for layer in small.layers if not layer.weight.codes.any()]
    which = f"all weights of layer '{zero[0]}' are 0" if zero else "the network computes the same for every input"
    if _is_constant(GraphNetwork(pruned.graph.nodes, pruned.graph.tensors, pruned.graph.buffers), x):
        raise EmptyNetworkError(
            f"{which} in what pruning left of the network: the fit has learned nothing that its output depends on, or "
            f"lost it again. Give the KL less weight (kl_weight), or set higher thresholds"
        )
    raise EmptyNetworkError(
        f"{which} in the precision that the posterior asks for: its noise is larger than its weights. Give the KL less "
        f"weight (kl_weight), or take smaller steps (noise_ratio)"
    )


@on_cpu
def _check_same(
    small: CompressedNetwork, graph: Graph, posterior: Mapping[str, LayerPosterior], example: Batch
) -> None:
    """Whether cutting left what codes compute, as it has to where they were trained, and nothing is rounded any more.

    :raises UnsupportedNetworkError: where it has not.
    """
    x = _some_inputs(example)
    expected = outputs_of(graph, posterior, x)
    with torch.no_grad():
        outputs = small.network()(*x)
    spread = float(expected.double().std()) if expected.numel() > 1 else 0.0
    if bool(expected.isfinite().all()) and float((outputs - expected).abs().max()) > _SAME * max(spread, 1.0):
        raise UnsupportedNetworkError(
            "cutting what its codes leave unused changes what this network computes, which is a fault of pyro_bc's: "
            "please report the network; a prior without learned codes, or another guide, may be stored meanwhile"
        )


def _is_constant(network: nn.Module, x: tuple[Tensor, ...]) -> bool:
    with torch.no_grad():
        outputs = network(*x)
    return bool(outputs.isfinite().all()) and not _differ(outputs)


def _differ(examples: Batch) -> bool:
    return any(bool((part != part[:1]).any()) for part in tensors_of(examples))


def inputs_as_stored(net: nn.Module, example: Batch) -> list[Input]:
    """What a file says of the network's inputs; several have the names that its ``forward`` gives them."""
    tensors, names = tensors_of(example), names_of(example)
    if len(tensors) == 1:
        names = ("",)
    elif not names:
        taken = [
            p.name for p in inspect.signature(net.forward).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD
        ]
        names = tuple(taken[: len(tensors)] if len(taken) >= len(tensors) else (f"x{i}" for i in range(len(tensors))))
    types = [torch.float32 if part.is_floating_point() else part.dtype for part in tensors]
    return [Input(name, tuple(part.shape[1:]), dtype) for name, part, dtype in zip(names, tensors, types, strict=True)]


@on_cpu
def _store(
    pruned: PrunedNetwork,
    transformed: Mapping[str, PrunedLayer],
    precision: str,
    noise_ratio: float,
    steps: Mapping[str, float],
) -> dict[str, Stored]:
    """Every tensor of a pruned network as it is written; what has no posterior keeps float32's precision.

    :param steps: of tensors that belong to no layer, where it is known how well they are known.
    """
    tensors: dict[str, Stored] = {}
    selections = _selections(pruned.graph)
    for name, tensor in pruned.graph.tensors.items():
        layer_of, _, role = name.rpartition(".")
        layer = pruned.layers.get(layer_of) or transformed.get(layer_of)
        if name in steps and layer is not None and not layer.variance.any():
            layer = None  # of which only this is known
        if name in selections:
            tensors[name] = Selection(tensor, selections[name])
        elif not tensor.is_floating_point():
            tensors[name] = integers_of(name, tensor)
        elif layer is not None and role in layer.codes:
            tensors[name] = layer.codes[role]
        elif layer is not None and role == "weight":
            tensors[name] = _numbers(layer.weight, layer.variance, layer.mask, precision, noise_ratio)
        elif layer is not None and role == "bias" and layer.bias is not None and layer.bias_variance is not None:
            tensors[name] = _numbers(layer.bias, layer.bias_variance, None, precision, noise_ratio)
        elif name in steps and bool(tensor.isfinite().all()):
            tensors[name] = on_grid(tensor.float(), -math.log2(steps[name]))
        else:
            tensors[name] = _numbers(tensor, torch.zeros_like(tensor), None, precision, noise_ratio)
    return tensors


def _numbers(values: Tensor, variance: Tensor, mask: Tensor | None, precision: str, noise_ratio: float) -> Numbers:
    """Numbers on the grid that their posterior allows; without one each in float32's own precision."""
    values = values.float()
    if bool(variance.any()):
        return to_fixed_point(values, variance, mask, precision, noise_ratio)
    if bool(values.isfinite().all()):
        stored = to_fixed_point(values, variance)
        if torch.equal(stored.values(), values):
            return stored
    return Floats(values)


def _selections(graph: Graph) -> dict[str, int]:
    """Names of the tensors of ascending indices, with the size of the dimension that they select from."""
    found = {}
    for node in graph.nodes:
        if node.op == "index_select" and isinstance(node.args[2], Named) and isinstance(node.args[0], Value):
            size = (graph.shape(node.args[0].index) or ())[node.args[1]]
            indices = graph.tensors[node.args[2].name]
            if isinstance(size, int) and indices.dim() == 1 and bool((indices.diff() > 0).all()):
                found[node.args[2].name] = size
    return found
