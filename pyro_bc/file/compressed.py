"""The compressed network: what :func:`~pyro_bc.compress` returns and a ``.pbc`` file holds."""

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..errors import CompressedFileError
from ..graph.arguments import check_program
from ..graph.attention import separate_heads
from ..graph.bags import separate_bags
from ..graph.fast import PredictionNetwork
from ..graph.forms import Form
from ..graph.limits import Limits
from ..graph.nodes import Graph
from ..graph.outline import outline_of_two
from ..graph.read import read_graph
from ..runtime.files import content_of, readable, write_atomically
from ..runtime.html import paragraph, table
from .contents import Contents, Input, Numbers, form, values
from .format import decode, encode

# Of a file, whose numbers are at most 2^28, of four bytes; a device has more.
_MOST_BYTES = 1 << 31


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
    :param limits: on what :meth:`network` takes for one example of a shape; None for a network of one's own.
    """

    thresholds: Mapping[str, Any]
    limits: Limits | None = field(default=None, kw_only=True, compare=False)

    @property
    def architecture(self) -> tuple[int, ...]:
        """Inputs that each fully connected layer and filters that each convolution has left, as the paper counts."""
        return tuple(layer.groups_left for layer in self.whole_layers)

    @property
    def bits(self) -> tuple[int, ...]:
        """Bits of each layer's weights, sign included."""
        return tuple(layer.bits for layer in self.whole_layers)

    def compression(self, file_bytes: int | None = None) -> Compression:
        """The compression figures; every parameter that is stored counts, biases too, and buffers in the file's bytes.

        Buffers, such as the means that inputs are normalised by, are none of the dense parameters either.

        A network without numbers counts as one of a single bit.

        :param file_bytes: size of the file; None to encode and count.
        """
        size = len(self.to_bytes()) if file_bytes is None else file_bytes
        stored = [tensor for name, tensor in self.tensors.items() if name not in self.buffers]
        numbers = [tensor for tensor in stored if isinstance(tensor, Numbers)]
        nonzero = sum(int(tensor.codes.count_nonzero()) for tensor in numbers)
        return Compression(
            pruning=self.dense_parameters / max(1, sum(tensor.codes.numel() for tensor in numbers)),
            fast_prediction=32
            * self.dense_parameters
            / max(1, sum(tensor.codes.numel() * _bits_to_multiply(tensor) for tensor in numbers)),
            maximum=4 * self.dense_parameters / size,
            nonzero_percent=100 * nonzero / self.dense_parameters,
        )

    def _repr_html_(self) -> str:
        size = len(self.to_bytes())
        figures = self.compression(size)
        head = ("layer", "type", "dense", "left", "bits", "weights that are not 0")
        rows = []
        for layer in self.whole_layers:
            (outputs, inputs), kept = layer.dense_shape, layer.shape_left
            rows.append(
                (
                    layer.name, layer.layer_type.op, f"{inputs} → {outputs}", f"{kept[1]} → {kept[0]}", layer.bits,
                    f"{layer.nonzero:,}",
                )
            )  # fmt: skip
        said = (
            f"Compressed network: {size:,} bytes of {4 * self.dense_parameters:,}, {figures.maximum:.0f} times less, "
            f"pruning {figures.pruning:.1f}, fast prediction {figures.fast_prediction:.1f}"
        )
        return "\n".join([paragraph(said), table(head, rows)])

    def network(self) -> PredictionNetwork:
        """The network as an ``nn.Module`` in evaluation mode, with the stored numbers as float32 weights.

        It predicts fastest under ``torch.no_grad()``.
        """
        tensors = {name: values(tensor) for name, tensor in self.tensors.items()}
        names = tuple(own.name for own in self.inputs) if self.further_inputs else ()
        return PredictionNetwork(self.nodes, tensors, self.buffers, names, limits=self.limits)

    def to_bytes(self, net: nn.Module | None = None) -> bytes:
        """The file's content; the same network always gives the same bytes.

        :param net: as for :meth:`save`.
        :raises UnsupportedNetworkError: where it computes what no file may ask for.
        """
        calls = check_program(self.nodes)
        if self.input_shape:
            tensors = {name: form(tensor) for name, tensor in self.tensors.items()}
            outline_of_two(calls, [Form(own.shape, own.dtype) for own in self.inputs], tensors)
        return encode(self, None if net is None else _dense_graph(net)(self.inputs))

    @staticmethod
    def from_bytes(data: bytes, net: nn.Module | None = None, limits: Limits | None = None) -> "CompressedNetwork":
        """The network that :meth:`to_bytes` wrote.

        :param net: as for :func:`load`.
        :param limits: likewise.
        :raises CompressedFileError: where ``data`` is not a whole, undamaged ``.pbc`` file, or asks for too much.
        """
        return read_sections(data, net, limits)[0]

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


def _bits_to_multiply(tensor: Numbers) -> int:
    """Bits of the numbers that a prediction multiplies with: of cosine coefficients' weights, which are float32."""
    return 32 if tensor.grid else tensor.bits


def _dense_graph(net: nn.Module) -> Callable[[tuple[Input, ...]], Graph]:
    """The graph of a network for inputs of some shapes and types, heads as in a Bayesian network."""

    def graph(inputs: tuple[Input, ...]) -> Graph:
        tensors = {own.name: torch.zeros(2, *own.shape, dtype=own.dtype, device="cpu") for own in inputs}
        example = tensors if len(inputs) > 1 else tensors[inputs[0].name]
        return read_graph(separate_bags(separate_heads(copy.deepcopy(net).cpu())), example)

    return graph


def read_sections(
    data: bytes, net: nn.Module | None = None, limits: Limits | None = None
) -> tuple[CompressedNetwork, dict[str, float]]:
    """A file's network, and how many bytes each of its sections takes (fractions, by information content).

    :param net: as for :func:`load`.
    :param limits: likewise.
    :raises CompressedFileError: where ``data`` is not a whole, undamaged ``.pbc`` file.
    """
    limits = limits or Limits()
    contents, sections = decode(data, None if net is None else _dense_graph(net), limits)
    return CompressedNetwork(**vars(contents), thresholds={}, limits=limits.of_file(len(data))), sections


def read(path: str | os.PathLike[str], net: nn.Module | None = None, limits: Limits | None = None) -> CompressedNetwork:
    """The compressed network in a ``.pbc`` file, with its codes, bits and figures.

    :param net: as for :func:`load`.
    :param limits: likewise.
    :raises CompressedFileError: where the file is missing, damaged, or not a ``.pbc`` file.
    """
    data = read_bytes(path)
    try:
        return CompressedNetwork.from_bytes(data, net, limits)
    except CompressedFileError as error:
        raise CompressedFileError(f"'{path}': {error}") from None


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Content of a file; :raises CompressedFileError: where it cannot be read."""
    with readable(path, "cannot be read", CompressedFileError):
        data = content_of(path, _MOST_BYTES)
    return data


def load(path: str | os.PathLike[str], net: nn.Module | None = None, limits: Limits | None = None) -> nn.Module:
    """The network in a ``.pbc`` file, ready to use: an ``nn.Module`` in evaluation mode.

    It takes what the original took, input normalisation included: pictures as float tensors in [0, 1] of shape
    ``(N, C, H, W)`` for the shipped networks. Neither pickle nor the original class is needed.

    :param net: for a file that was saved with ``net=…``, an instance of the same class; its weights do not matter.
    :param limits: on the work and memory that the file may ask for, to be read and to predict for one example; None for
        those of :class:`~pyro_bc.graph.limits.Limits`. A file that does not say its input's shape, and an input of
        another shape, are looked at when the first of that shape goes in.
    :raises CompressedFileError: where the file is missing, damaged, or not a ``.pbc`` file, or asks for more.
    """
    return read(path, net, limits).network()
