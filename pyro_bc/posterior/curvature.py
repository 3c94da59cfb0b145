r"""Second-order statistics of a trained network's layers, from one pass over inputs that need no labels.

For a layer :math:`y = W x` the log-likelihood of N examples is, around the trained weights and to second order, a
Gaussian that factorises (Martens and Grosse 2015, 1503.05671; Ritter, Botev, Barber 2018): row o of W has precision

.. math:: N\, G_o\, A, \qquad A = \mathbb{E}[x x^\top], \qquad
          G_o = \mathbb{E}\Big[\sum_{\text{positions}} (\partial \log p / \partial y_o)^2\Big]

with targets drawn from the network's own predictions (the Fisher information). A is the mean over positions, where a
layer computes several: a convolution's patches, an attention's tokens. A layer that several places share collects from
all of them. What a table reads is one of its rows, so that A is diagonal: how often each is looked up, and half a time
more, since a row that these inputs did not need is not known to be needless.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
import torch.nn.functional as F
from pyro.infer.autoguide.initialization import InitMessenger, init_to_mean
from torch import Tensor

from ..data.loaders import check_inputs, inputs_of
from ..errors import UsageError
from ..graph.layer_types import LayerType, layer_type
from ..graph.module import GraphNetwork
from ..graph.nodes import Graph, Node, Value, is_layer, layer_arguments, layer_groups, layer_name, layer_nodes
from ..model.likelihoods import Likelihood
from ..runtime import processes
from ..runtime.gradients import check_differentiates
from ..runtime.inputs import Batch, head, tensors_of
from ..runtime.progress import progress_bar
from ..runtime.random_state import seeded

#: as many examples say what second moments are.
EXAMPLES = 4000

#: by which outputs are divided for softened predictions.
TEMPERATURE = 2.5

# Positions of one example whose inputs are looked at: neighbours say much the same. Of a layer of many inputs fewer,
# but so many in all for each of its inputs.
_POSITIONS, _LEAST_POSITIONS, _WIDE, _ENOUGH = 64, 4, 1024, 8

# Inputs of one block of a very wide layer: beyond, blocks are taken for independent. The rows of a table are.
_WIDEST, _ROWS = 4096, 64

# How often a table's row counts as looked up before any input has been seen.
_BEFORE = 0.5


@dataclass(frozen=True)
class Curvature:
    """What one layer's posterior is made of, its weight as :meth:`~pyro_bc.graph.layer_types.LayerType.rows`.

    :param inputs: second moments A of what the layer reads, ``(groups, n, n)``, of a very wide layer in several blocks
        that are taken for independent. The last input is the constant 1, which a bias multiplies.
    :param outputs: G, ``(out,)``: Fisher information of one example about each output.
    :param softened: the same of softened predictions, ``(out,)``, by which codes are priced.
    """

    inputs: tuple[Tensor, ...]
    outputs: Tensor
    softened: Tensor

    def of(self, bias: bool) -> tuple[Tensor, ...]:
        """The inputs with the constant, or without it."""
        return self.inputs if bias else (*self.inputs[:-1], self.inputs[-1][:, :-1, :-1])


@dataclass(frozen=True)
class Collected:
    """What one pass found.

    :param layers: curvature by the layer's name in the graph.
    :param others: Fisher information of one example, of softened predictions, about a number of any other parameter
        (embeddings, places, gains of normalisations), mean over the tensor, by the tensor's name.
    """

    layers: dict[str, Curvature]
    others: dict[str, float]


def collect(
    graph: Graph,
    likelihood: Likelihood,
    loader: Iterable[Any],
    *,
    examples: int = EXAMPLES,
    seed: int = 0,
    progress: bool = True,
) -> Collected:
    """Collect the curvature of every layer of a graph, and how well its other parameters are known.

    On several processes each passes over its own loader, and all have the mean.

    :param loader: batches of inputs, a tensor or a dictionary of several, alone or as the first of a tuple; more than
        ``examples`` are not read.
    :param seed: of the targets that are drawn; torch's global generator is left as it is.
    :raises UsageError: where the loader is empty, or its batches do not begin with tensors of finite numbers.
    """
    check_differentiates("curvature")
    inputs = _inputs(loader, examples)
    first = next(inputs, None)
    if first is None:
        raise UsageError("there are no inputs to collect curvature from: the loader is empty")
    device = tensors_of(first)[0].device
    network = GraphNetwork(graph.nodes, graph.tensors, graph.buffers).to(device)
    sums = {name: _Sums.of(node, graph, examples) for name, node in layer_nodes(graph).items()}
    of_layers = {f"{name}.{role}" for name in sums for role in ("weight", "bias")}
    others = {name: tensor for name, tensor in network.named_parameters() if name not in of_layers}
    squares = {name: torch.zeros(()) for name in others}
    seen = 0
    with progress_bar("curvature", examples, shown=progress) as bar, seeded(seed, device), torch.enable_grad():
        for x in itertools.chain([first], inputs):
            for name, gradient in zip(
                others, _add(sums, network, graph, likelihood, x, list(others.values())), strict=True
            ):
                if gradient is not None:
                    # Targets are the network's own: gradients of examples are independent, and their mean is 0.
                    squares[name] += gradient.square().mean().cpu()
            seen += len(tensors_of(x)[0])
            bar(len(tensors_of(x)[0]))
        bar(total=seen)  # there may be fewer
    found = {name: own.mean(seen) for name, own in sums.items()}
    known = {name: total / seen for name, total in squares.items()}
    processes.average_([tensor for own in found.values() for tensor in (*own.inputs, own.outputs, own.softened)])
    processes.average_(known.values())
    return Collected(found, {name: float(value) for name, value in known.items()})


def _inputs(loader: Iterable[Any], examples: int) -> Iterator[Batch]:
    left = examples
    for batch in loader:
        x = head(inputs_of(batch), left)
        check_inputs(x, "batches to collect curvature from")
        yield x
        left -= len(tensors_of(x)[0])
        if left <= 0:
            return


def _add(
    sums: Mapping[str, "_Sums"],
    network: GraphNetwork,
    graph: Graph,
    likelihood: Likelihood,
    x: Batch,
    others: Sequence[Tensor],
) -> Sequence[Tensor | None]:
    """Add a batch to the sums of layers; returns the gradients of softened predictions for other parameters."""
    reads: list[tuple[str, Node, Tensor]] = []
    computed: list[Tensor] = []
    inputs = tensors_of(x)
    results: dict[int, Any] = {-1 - position: part for position, part in enumerate(inputs)}
    for index, (node, result) in enumerate(zip(graph.nodes, network.results(graph.nodes, *inputs), strict=True)):
        results[index] = result
        # Of a table that is a fully connected layer, too, that says it.
        if is_layer(node) and node.op == sums[layer_name(node)].kind.op:
            source = node.args[0]
            read = (
                results[source.index] if isinstance(source, Value) else graph.tensors[source.name].to(inputs[0].device)
            )
            reads.append((layer_name(node), node, read))
            computed.append(result)
        last = result
    both = []
    for outputs in (last, last / TEMPERATURE):
        density = density_of(likelihood, outputs)
        with torch.no_grad():
            target = density.sample()
        log_likelihood = density.log_prob(target).sum()
        wanted = [*computed, *others]
        both.append(torch.autograd.grad(log_likelihood, wanted, allow_unused=True, retain_graph=True))
    of_layers = [gradients[: len(computed)] for gradients in both]
    with torch.no_grad():
        for (name, node, read), *gradients in zip(reads, *of_layers, strict=True):
            sums[name].add(node, read.detach(), gradients)
    return both[-1][len(computed) :]


def density_of(likelihood: Likelihood, outputs: Tensor) -> Any:
    """Of the targets, given outputs; sites of the likelihood, such as a noise, are at their prior means."""
    with pyro.poutine.block(), pyro.validation_enabled(False), InitMessenger(init_to_mean):
        return likelihood(outputs)


class _Sums:
    """Sums over examples, of one layer."""

    def __init__(self, kind: LayerType, groups: int, kernel: tuple[int, ...], inputs: int, outputs: int, examples: int):
        self.kind, self.groups, self.kernel, self.examples = kind, groups, kernel, examples
        blocks = -(-(inputs + 1) // (_ROWS if kind.is_lookup else _WIDEST))
        self.sizes = [len(part) for part in torch.arange(inputs + 1).tensor_split(blocks)]
        self.inputs = [torch.zeros(groups, size, size) for size in self.sizes]
        self.outputs = [torch.zeros(outputs) for _ in range(2)]
        self.read = 0  # examples, counted once for each place that uses the layer

    @staticmethod
    def of(node: Node, graph: Graph, examples: int) -> "_Sums":
        weight = graph.tensors[node.args[1].name]
        kind, groups = layer_type(node.op), layer_groups(node)
        rows = kind.rows(weight, groups)
        return _Sums(kind, groups, tuple(weight.shape[2:]), rows.shape[1], len(rows), examples)

    def add(self, node: Node, x: Tensor, gradients: Sequence[Tensor | None]) -> None:
        if self.kind.is_lookup:
            self._count(x)
        else:
            self._add_patches(node, x)
        for total, gradient in zip(self.outputs, gradients, strict=True):
            if gradient is not None:
                axis = gradient.dim() - 1 - self.kind.spatial
                total += gradient.square().movedim(axis, 0).flatten(1).sum(1).cpu()

    def _count(self, index: Tensor) -> None:
        """What a lookup reads is 1 in the row that it looks up, and 0 in the others: a row's moment is its share."""
        rows = sum(self.sizes) - 1
        counts = torch.bincount(index.flatten().cpu(), minlength=rows).float()
        for total, part in zip(self.inputs, torch.cat([counts, counts.sum()[None]]).split(self.sizes), strict=True):
            total[0].diagonal().add_(part)
        self.read += index.numel()

    def _add_patches(self, node: Node, x: Tensor) -> None:
        patches = self._patches(node, x)
        positions = patches.shape[2] // len(x)
        patches = torch.cat([patches, torch.ones_like(patches[:, :1])], 1)
        for total, part in zip(self.inputs, patches.split(self.sizes, 1), strict=True):
            total += (part @ part.transpose(1, 2)).cpu() / positions
        self.read += len(x)

    def mean(self, examples: int) -> Curvature:
        if self.kind.is_lookup:
            for total in self.inputs:
                total[0].diagonal().add_(_BEFORE)
        inputs = tuple(total / max(1, self.read) for total in self.inputs)
        return Curvature(inputs, *(total / examples for total in self.outputs))

    def _patches(self, node: Node, x: Tensor) -> Tensor:
        """What each output at a position is a sum of, ``(groups, inputs · kernel, examples · positions)``."""
        if not self.kind.spatial:
            rows = x.reshape(len(x), -1, x.shape[-1])
            chosen = self._positions(rows.shape[1])
            return rows[:, chosen].flatten(0, 1).T[None]
        padded, stride, dilation = self._padded(node, x)
        sizes = [
            (size - apart * (window - 1) - 1) // step + 1
            for size, window, step, apart in zip(padded.shape[2:], self.kernel, stride, dilation, strict=True)
        ]
        places = torch.unravel_index(self._positions(math.prod(sizes)), sizes)
        taken = []
        for entry in itertools.product(*map(range, self.kernel)):
            if self.kind.is_transposed:  # an input meets the kernel from behind
                entry = tuple(window - 1 - own for window, own in zip(self.kernel, entry, strict=True))
            axes = zip(places, stride, dilation, entry, strict=True)
            at: Any = (..., *(place * step + apart * own for place, step, apart, own in axes))
            taken.append(padded[at])
        patches = torch.stack(taken, 2)  # (examples, channels, kernel, positions)
        grouped = patches.unflatten(1, (self.groups, -1)).flatten(2, 3)
        return grouped.permute(1, 2, 0, 3).flatten(2)

    def _positions(self, count: int) -> Tensor:
        """Indices of the positions that are looked at: all of a few, some of many."""
        wanted = max(_LEAST_POSITIONS, -(-_ENOUGH * sum(self.sizes) // self.examples))
        wanted = min(_POSITIONS, wanted) if sum(self.sizes) > _WIDE else _POSITIONS
        return torch.arange(count) if count <= wanted else torch.randperm(count)[:wanted]

    def _padded(self, node: Node, x: Tensor) -> tuple[Tensor, tuple[int, ...], tuple[int, ...]]:
        """The input with what surrounds it, and the step from one patch to the next and from one entry to the next."""
        given = layer_arguments(node)
        stride, dilation = self._each(given.get("stride", 1)), self._each(given.get("dilation", 1))
        padding = given.get("padding", 0)
        wide = [apart * (window - 1) for apart, window in zip(dilation, self.kernel, strict=True)]
        if self.kind.is_transposed:
            own, more = self._each(padding), self._each(given.get("output_padding", 0))
            sizes = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], stride, strict=True)]
            spread = x.new_zeros(*x.shape[:2], *sizes)
            own_places: Any = (..., *(slice(None, None, step) for step in stride))
            spread[own_places] = x
            sides = [(w - p, w - p + extra) for w, p, extra in zip(wide, own, more, strict=True)]
            return F.pad(spread, _last_first(sides)), (1,) * self.kind.spatial, dilation
        if padding == "same":
            sides = [(w // 2, w - w // 2) for w in wide]
        else:
            sides = [(own, own) for own in self._each(0 if padding == "valid" else padding)]
        return F.pad(x, _last_first(sides)), stride, dilation

    def _each(self, value: Any) -> tuple[int, ...]:
        """A number, or one for every dimension of the kernel, as those."""
        values = tuple(value) if isinstance(value, tuple | list | torch.Size) else (value,)
        return tuple(map(int, values * self.kind.spatial if len(values) == 1 else values))


def _last_first(sides: Sequence[tuple[int, int]]) -> list[int]:
    """Sizes before and behind every dimension, as ``F.pad`` takes them."""
    return [size for both in reversed(sides) for size in both]
