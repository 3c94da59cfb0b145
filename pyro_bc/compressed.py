"""The compressed network: what :func:`compress` makes of a posterior, and what a ``.pbc`` file gives back."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .chain import LinearStep, build, read_chain
from .checkpoint import write_atomically
from .errors import CompressedFileError, UsageError
from .fileformat import Contents, StoredLayer, decode, encode
from .guides import FactorizedGuide
from .nn import BayesianNetwork
from .posterior import LayerPosterior, summarize
from .precision import NOISE_RATIO, to_fixed_point
from .pruning import PrunedLayer, shrink
from .thresholds import Threshold, choose_threshold


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
        """Inputs that each layer has left: ``(278, 98, 13)`` for a LeNet-300-100, as the paper counts them."""
        return tuple(layer.weight.codes.shape[1] for layer in self.layers)

    @property
    def bits(self) -> tuple[int, ...]:
        """Bits of each layer's weights, sign included."""
        return tuple(layer.weight.bits for layer in self.layers)

    def compression(self, file_bytes: int | None = None) -> Compression:
        """The compression figures.

        :param file_bytes: size of the file; None to encode and count.
        """
        size = len(self.to_bytes()) if file_bytes is None else file_bytes
        nonzero = 0
        for layer in self.layers:
            nonzero += int(layer.weight.codes.count_nonzero())
            nonzero += 0 if layer.bias is None else int(layer.bias.codes.count_nonzero())
        return Compression(
            pruning=self.dense_parameters / sum(layer.parameters for layer in self.layers),
            fast_prediction=32 * self.dense_parameters / sum(layer.total_bits for layer in self.layers),
            maximum=4 * self.dense_parameters / size,
            nonzero_percent=100 * nonzero / self.dense_parameters,
        )

    def network(self) -> nn.Module:
        """The network as an ``nn.Module`` in evaluation mode, with the stored numbers as float32 weights."""
        names = [step.name for step in self.chain if isinstance(step, LinearStep)]
        linears = {
            name: (layer.weight.values(), None if layer.bias is None else layer.bias.values())
            for name, layer in zip(names, self.layers, strict=True)
        }
        return build(self.chain, linears, self.inputs)

    def to_bytes(self) -> bytes:
        """The file's content; the same network always gives the same bytes."""
        return encode(self)

    @staticmethod
    def from_bytes(data: bytes) -> "CompressedNetwork":
        """:raises CompressedFileError: where ``data`` is not a whole, undamaged ``.pbc`` file."""
        return read_sections(data)[0]

    def save(self, path: str | os.PathLike) -> int:
        """Write the file, whole or not at all; an existing one is replaced.

        :returns: the file's size in bytes.
        """
        data = self.to_bytes()
        write_atomically(path, data)
        return len(data)


def read_sections(data: bytes) -> tuple[CompressedNetwork, dict[str, float]]:
    """A file's network, and how many bytes each of its sections takes (fractions, by information content).

    :raises CompressedFileError: where ``data`` is not a whole, undamaged ``.pbc`` file.
    """
    contents, sections = decode(data)
    return CompressedNetwork(**vars(contents), thresholds={}), sections


def compress(
    model: Any,
    guide: FactorizedGuide,
    *,
    net: nn.Module | None = None,
    thresholds: Mapping[str, float] | None = None,
    precision: str = "posterior",
    noise_ratio: float = NOISE_RATIO,
) -> CompressedNetwork:
    """Prune what the posterior says is not needed, and round the rest as coarsely as it allows.

    :param model: the model that was fitted: a :class:`~pyro_bc.BayesianNetwork`, or any Pyro model whose sites
        are named ``<layer>.<role>``.
    :param guide: its fitted guide.
    :param net: the deterministic network that the model computes, with a ``nn.Linear`` for each layer of the same
        name; needed for models written by hand, since a Python function cannot be stored in a file.
    :param thresholds: explicit thresholds by layer name; the others are found automatically.
    :param precision: rule that sets the bits, ``posterior`` or ``paper`` (:mod:`pyro_bc.precision`).
    :param noise_ratio: rounding noise as a part of the posterior's variance, for the rule ``posterior``.
    :raises EmptyNetworkError: where a layer is left without any weight.
    :raises UnsupportedNetworkError: where the network is not a chain of known steps.
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
    chain = read_chain(net)
    names = [step.name for step in chain if isinstance(step, LinearStep)]
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
    pruned = shrink(net, chain, posterior, chosen)
    first = pruned[0]
    all_inputs = net.get_submodule(first.name).in_features
    return CompressedNetwork(
        chain=chain,
        layers=tuple(_store(layer, net, precision, noise_ratio) for layer in pruned),
        inputs=None if len(first.inputs) == all_inputs else first.inputs,
        dense_parameters=sum(p.numel() for p in net.parameters()),
        input_shape=_input_shape(guide),
        thresholds=chosen,
    )


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


def _store(layer: PrunedLayer, net: nn.Module, precision: str, noise_ratio: float) -> StoredLayer:
    bias = None
    if layer.bias is not None:
        assert layer.bias_variance is not None
        bias = to_fixed_point(layer.bias, layer.bias_variance, None, precision, noise_ratio)
    weight = to_fixed_point(layer.weight, layer.variance, layer.mask, precision, noise_ratio)
    linear: Any = net.get_submodule(layer.name)
    return StoredLayer((linear.out_features, linear.in_features), weight, bias)


def _input_shape(guide: FactorizedGuide) -> tuple[int, ...]:
    assert guide.prototype_trace is not None
    arguments: Any = guide.prototype_trace.nodes["_INPUT"]["args"]
    return tuple(arguments[0].shape[1:]) if arguments and isinstance(arguments[0], Tensor) else ()


def read(path: str | os.PathLike) -> CompressedNetwork:
    """The compressed network in a ``.pbc`` file, with its codes, bits and figures.

    :raises CompressedFileError: where the file is missing, damaged, or not a ``.pbc`` file.
    """
    return CompressedNetwork.from_bytes(read_bytes(path))


def read_bytes(path: str | os.PathLike) -> bytes:
    """Content of a file; :raises CompressedFileError: where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CompressedFileError(f"'{path}' cannot be read: {error.strerror or error}") from None


def load(path: str | os.PathLike) -> nn.Module:
    """The network in a ``.pbc`` file, ready to use: an ``nn.Module`` in evaluation mode.

    It takes what the original took, input normalisation included: pictures as float tensors in [0, 1] of shape
    ``(N, C, H, W)`` for the shipped networks. Neither pickle nor the original class is needed.

    :raises CompressedFileError: where the file is missing, damaged, or not a ``.pbc`` file.
    """
    try:
        return read(path).network()
    except CompressedFileError as error:
        raise CompressedFileError(f"'{path}': {error}") from None
