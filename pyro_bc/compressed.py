"""The compressed network: what :func:`compress` makes of a posterior, and what a ``.pbc`` file gives back."""

import copy
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .attention import separate_heads
from .devices import device_of, on_cpu
from .errors import CompressedFileError, EmptyNetworkError, UnsupportedNetworkError, UsageError
from .fileformat import decode, encode
from .files import write_atomically
from .graph import Graph, Named, Value, is_layer, layer_name, read_graph
from .guides import FactorizedGuide
from .nn import BayesianNetwork
from .posterior import LayerPosterior, summarize
from .precision import NOISE_RATIO, FixedPoint, to_fixed_point
from .prediction import PredictionNetwork
from .pruning import PrunedNetwork, shrink
from .stored import Contents, Integers, Selection, Stored, values
from .thresholds import Threshold, choose_threshold

# Inputs on which a compressed network must not always compute the same.
_EXAMPLES = 32


@dataclass(frozen=True)
class Compression:
    """The three figures that are reported together (Louizos et al. 2017, table 2); biases count.

    :param pruning: dense parameters over parameters left.
    :param fast_prediction: 32 bits times dense parameters over the bits of the fixed-point network.
    :param maximum: dense float32 bytes over the bytes of the file.
    :param nonzero_percent: parameters left that are not zero, in percent of the dense ones.
    """

    pruning: float
    fast_prediction: float
    maximum: float
    nonzero_percent: float


@dataclass(frozen=True)
class CompressedNetwork(Contents):
    """A pruned network in fixed-point numbers: what :func:`compress` returns and a ``.pbc`` file holds.

    :param thresholds: by layer, how it was pruned; empty for a network read from a file.
    """

    thresholds: Mapping[str, Threshold]

    @property
    def architecture(self) -> tuple[int, ...]:
        """Inputs that each fully connected layer and filters that each convolution has left, as the paper counts."""
        return tuple(layer.groups_left for layer in self.layers)

    @property
    def bits(self) -> tuple[int, ...]:
        """Bits of each layer's weights, sign included."""
        return tuple(layer.weight.bits for layer in self.layers)

    def compression(self, file_bytes: int | None = None) -> Compression:
        """The compression figures; everything that is stored as a number counts, biases and buffers too.

        :param file_bytes: size of the file; None to encode and count.
        """
        size = len(self.to_bytes()) if file_bytes is None else file_bytes
        numbers = [tensor for tensor in self.tensors.values() if isinstance(tensor, FixedPoint)]
        nonzero = sum(int(tensor.codes.count_nonzero()) for tensor in numbers)
        return Compression(
            pruning=self.dense_parameters / sum(tensor.codes.numel() for tensor in numbers),
            fast_prediction=32 * self.dense_parameters / sum(t.codes.numel() * _bits_to_multiply(t) for t in numbers),
            maximum=4 * self.dense_parameters / size,
            nonzero_percent=100 * nonzero / self.dense_parameters,
        )

    def network(self) -> PredictionNetwork:
        """The network as an ``nn.Module`` in evaluation mode, with the stored numbers as float32 weights.

        It predicts fastest under ``torch.no_grad()``.
        """
        return PredictionNetwork(
            self.nodes, {name: values(tensor) for name, tensor in self.tensors.items()}, self.buffers
        )

    def to_bytes(self, net: nn.Module | None = None) -> bytes:
        """The file's content; the same network always gives the same bytes.

        :param net: as for :meth:`save`.
        """
        return encode(self, None if net is None else _dense_graph(net)(self.input_shape))

    @staticmethod
    def from_bytes(data: bytes, net: nn.Module | None = None) -> "CompressedNetwork":
        """The network that :meth:`to_bytes` wrote.

        :param net: as for :func:`load`.
        :raises CompressedFileError: where ``data`` is not a whole, undamaged ``.pbc`` file.
        """
        return read_sections(data, net)[0]

    def save(self, path: str | os.PathLike[str], net: nn.Module | None = None) -> int:
        """Write the file, whole or not at all; an existing one is replaced.

        :param net: an instance of the class that the network was made from, its weights do not matter: the file then
            leaves out what its graph says already, and can be loaded only with such an instance (and a version of
            torch that reads the same graph from it).
        :returns: the file's size in bytes.
        """
        data = self.to_bytes(net)
        write_atomically(path, data)
        return len(data)


def _bits_to_multiply(tensor: FixedPoint) -> int:
    """Bits of the numbers that a prediction multiplies with: of cosine coefficients' weights, which are float32."""
    return 32 if tensor.grid else tensor.bits


def _dense_graph(net: nn.Module) -> Callable[[tuple[int, ...]], Graph]:
    """The graph of a network for inputs of a shape, heads as in a Bayesian network."""
    return lambda shape: read_graph(separate_heads(copy.deepcopy(net).cpu()), torch.zeros(2, *shape, device="cpu"))


def read_sections(data: bytes, net: nn.Module | None = None) -> tuple[CompressedNetwork, dict[str, float]]:
    """A file's network, and how many bytes each of its sections takes (fractions, by information content).

    :raises CompressedFileError: where ``data`` is not a whole, undamaged ``.pbc`` file.
    """
    contents, sections = decode(data, None if net is None else _dense_graph(net))
    return CompressedNetwork(**vars(contents), thresholds={}), sections


def compress(
    model: Any,
    guide: FactorizedGuide,
    *,
    net: nn.Module | None = None,
    thresholds: Mapping[str, float] | None = None,
    precision: str = "posterior",
    noise_ratio: float = NOISE_RATIO,
    dense: CompressedNetwork | None = None,
    batch_norm_loader: Iterable[Any] | None = None,
) -> CompressedNetwork:
    """Prune what the posterior says is not needed, and round the rest as coarsely as it allows.

    :param model: the model that was fitted: a :class:`~pyro_bc.BayesianNetwork`, or any Pyro model whose sites
        are named ``<layer>.<role>``.
    :param guide: its fitted guide.
    :param net: the deterministic network that the model computes, with a layer of the same name for each of its
        own; needed for models written by hand, since a Python function cannot be stored in a file.
    :param thresholds: explicit thresholds by layer name; the others are found automatically.
    :param precision: rule that sets the bits, ``posterior`` or ``paper`` (:mod:`pyro_bc.precision`).
    :param noise_ratio: rounding noise as a part of the posterior's variance, for the rule ``posterior``.
    :param dense: the compression that the model's network came from (``small.network()``, or ``load`` of its file),
        where a pruned network was trained on: the figures then compare with the network before both.
    :param batch_norm_loader: training batches, inputs alone or with targets, from which batch normalisation collects
        its mean and variance anew after pruning; those of a training by mini-batches include sampling noise.
    :raises EmptyNetworkError: where a layer is left without any weight, or the output no longer depends on the input.
    :raises UnsupportedNetworkError: where the network is no fixed graph of known operations.
    :raises UsageError: where layers and network do not fit, or a threshold names no layer.
    """
    posterior = layer_posteriors(model, guide)
    if net is None:
        if not isinstance(model, BayesianNetwork):
            raise UsageError(
                "a model written by hand needs net=…, the nn.Module that it computes, with one nn.Linear per layer "
                f"({', '.join(posterior)})"
            )
        net = model.skeleton
    example = _example(guide, net)
    graph = read_graph(net, example)
    names = [layer_name(node) for node in graph.nodes if is_layer(node)]
    posterior = _by_graph_name(posterior, names, net)
    prefix = _prefix(model)
    for site in guide.families:
        layer = site.removeprefix(prefix).removesuffix(".weight")
        if site.endswith(".weight") and layer in names and layer not in posterior:
            raise UsageError(f"the prior over '{site}' is none that pyro_bc.priors knows: subclass Prior for it")
    for name in posterior:
        if name not in names:
            raise UsageError(f"the model has a layer '{name}', but the network's layers are {', '.join(names)}")
    for name in thresholds or {}:
        if name not in posterior:
            raise UsageError(f"a threshold is given for '{name}', but the layers are {', '.join(posterior)}")
    chosen = {name: choose_threshold(layer, (thresholds or {}).get(name)) for name, layer in posterior.items()}
    pruned = shrink(graph, posterior, chosen, batch_norm_loader)
    shapes = {f"{name}.weight": graph.tensors[f"{name}.weight"].shape for name in pruned.layers}
    dense_shapes = {name: (shape[0], shape[1]) for name, shape in shapes.items()}
    dense_parameters = sum(p.numel() for p in net.parameters())
    if dense is not None:
        if {f"{layer.name}.weight": layer.weight.codes.shape for layer in dense.layers} != shapes:
            raise UsageError("dense=… is not the compression that this model's network came from: layers differ")
        dense_shapes, dense_parameters = dict(dense.dense_shapes), dense.dense_parameters
    small = CompressedNetwork(
        nodes=pruned.graph.nodes,
        tensors=_store(pruned, precision, noise_ratio),
        dense_shapes=dense_shapes,
        dense_parameters=dense_parameters,
        input_shape=tuple(example.shape[1:]),
        buffers=pruned.graph.buffers,
        thresholds=chosen,
    )
    _check_not_constant(small, example)
    return small


@on_cpu
def _check_not_constant(small: CompressedNetwork, example: Tensor) -> None:
    """:raises EmptyNetworkError: where what is left computes the same for every input."""
    advice = "Train longer, with a higher learning rate or a lower weight of the KL, or set higher thresholds"
    for layer in small.layers:
        if not layer.weight.codes.any():
            raise EmptyNetworkError(
                f"all weights of layer '{layer.name}' are 0 in the precision that the posterior asks for. {advice}"
            )
    x = example[:_EXAMPLES].cpu()
    x = x.float() if x.is_floating_point() else x  # what is stored computes in single precision
    with torch.no_grad():
        outputs = small.network()(x)
    if (x != x[:1]).any() and outputs.isfinite().all() and (outputs == outputs[:1]).all():
        raise EmptyNetworkError(f"what pruning left of the network computes the same for every input. {advice}")


def _by_graph_name(
    posterior: Mapping[str, LayerPosterior], names: list[str], net: nn.Module
) -> dict[str, LayerPosterior]:
    """The summaries under the names that the graph has for layers; a shared module has several."""
    modules = dict(net.named_modules(remove_duplicate=False))
    by_module = {id(modules[name]): name for name in names if name in modules}
    return {by_module.get(id(modules.get(name)), name): layer for name, layer in posterior.items()}


def _prefix(model: Any) -> str:
    """What stands before a layer's name in the network in the names of its sites."""
    return "net." if isinstance(model, BayesianNetwork) else ""


def layer_posteriors(model: Any, guide: FactorizedGuide) -> dict[str, LayerPosterior]:
    """Posterior summaries by the layer's name in the network (``fc1``, where the site is ``net.fc1.weight``)."""
    prefix = _prefix(model)
    posterior = {name.removeprefix(prefix): layer for name, layer in summarize(guide).items()}
    if not posterior:
        raise UsageError("the model has no layers: name the sites of each weight '<layer>.<role>' (see pyro_bc.priors)")
    return posterior


@on_cpu
def _store(pruned: PrunedNetwork, precision: str, noise_ratio: float) -> dict[str, Stored]:
    """Every tensor of a pruned network as it is written; what has no posterior keeps float32's precision."""
    tensors: dict[str, Stored] = {}
    selections = _selections(pruned.graph)
    for name, tensor in pruned.graph.tensors.items():
        layer_of, _, role = name.rpartition(".")
        layer = pruned.layers.get(layer_of)
        if name in selections:
            tensors[name] = Selection(tensor, selections[name])
        elif tensor.dtype == torch.int64:
            tensors[name] = Integers(tensor)
        elif not tensor.is_floating_point():
            raise UnsupportedNetworkError(f"tensor '{name}' of type {tensor.dtype} cannot be stored in a file")
        elif layer is not None and role == "weight":
            tensors[name] = to_fixed_point(layer.weight, layer.variance, layer.mask, precision, noise_ratio)
        elif layer is not None and role == "bias" and layer.bias is not None and layer.bias_variance is not None:
            tensors[name] = to_fixed_point(layer.bias, layer.bias_variance, None, precision, noise_ratio)
        else:
            tensors[name] = to_fixed_point(tensor, torch.zeros_like(tensor))
    return tensors


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


def _example(guide: FactorizedGuide, net: nn.Module) -> Tensor:
    """One batch of what the model was called with, on the network's device."""
    assert guide.prototype_trace is not None
    arguments: Any = guide.prototype_trace.nodes["_INPUT"]["args"]
    if not arguments or not isinstance(arguments[0], Tensor) or arguments[0].dim() < 1:
        raise UsageError("the model's first argument must be the network's input, a tensor of shape (batch, …)")
    return arguments[0].detach().to(device_of(net))


def read(path: str | os.PathLike[str], net: nn.Module | None = None) -> CompressedNetwork:
    """The compressed network in a ``.pbc`` file, with its codes, bits and figures.

    :param net: as for :func:`load`.
    :raises CompressedFileError: where the file is missing, damaged, or not a ``.pbc`` file.
    """
    data = read_bytes(path)
    try:
        return CompressedNetwork.from_bytes(data, net)
    except CompressedFileError as error:
        raise CompressedFileError(f"'{path}': {error}") from None


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Content of a file; :raises CompressedFileError: where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CompressedFileError(f"'{path}' cannot be read: {error.strerror or error}") from None


def load(path: str | os.PathLike[str], net: nn.Module | None = None) -> nn.Module:
    """The network in a ``.pbc`` file, ready to use: an ``nn.Module`` in evaluation mode.

    It takes what the original took, input normalisation included: pictures as float tensors in [0, 1] of shape
    ``(N, C, H, W)`` for the shipped networks. Neither pickle nor the original class is needed.

    :param net: for a file that was saved with ``net=…``, an instance of the same class; its weights do not matter.
    :raises CompressedFileError: where the file is missing, damaged, or not a ``.pbc`` file.
    """
    return read(path, net).network()
