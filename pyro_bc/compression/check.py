"""A look at a network before any training: what becomes Bayesian, what can shrink, and what would be refused later."""

import gc
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from ..errors import EmptyNetworkError, PyroBCError, UnsupportedNetworkError, UsageError
from ..file.compressed import CompressedNetwork
from ..graph.interface import Output, chosen, left_out, returned
from ..graph.layer_types import LayerType, layer_type
from ..graph.module import evaluating
from ..graph.nodes import Graph, is_layer, layer_name
from ..graph.normal_form import in_normal_form
from ..graph.operations import operation
from ..graph.read import graph_of_same
from ..graph.recurrent import cell_names
from ..graph.unit_rules import statistics_axis
from ..graph.units import Tracking
from ..model.agreement import graph_names
from ..model.guide import FactorizedGuide
from ..model.likelihoods import Likelihood
from ..model.network import BayesianNetwork, Choice, PriorRule
from ..posterior.channels import without_channels
from ..posterior.summary import ChannelPosterior, LayerPosterior
from ..posterior.thresholds import Threshold
from ..runtime.devices import device_of
from ..runtime.html import paragraph, table
from ..runtime.inputs import Batch, described, head, moved, tensors_of
from ..runtime.messages import first_line
from ..runtime.random_state import same_random_state
from .compress import compress, with_scales
from .pruning import shrink
from .reading import Reading, layer_posteriors, read_posterior
from .rows import tables_of

# What is said of a layer whose outputs do not go.
_OUTPUTS = "its outputs stay"

# Examples that are looked at.
_EXAMPLES = 8


@dataclass(frozen=True)
class LayerCheck:
    """What is known of one layer before any training.

    :param name: in the network.
    :param type: its class.
    :param shape: of its weight.
    :param prior: None where the layer stays deterministic.
    :param groups: how many groups a group prior has, and of what: ``8 inputs``.
    :param note: why groups that are pruned would not make it smaller, or why it stays deterministic; empty otherwise.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    prior: str | None
    groups: str = ""
    note: str = ""


@dataclass(frozen=True)
class Check:
    """What :func:`check` found; printed, it is a table.

    :param layers: in the order of the network.
    :param problems: what would be refused, by the training or behind it; empty where nothing would.
    :param notes: what is worth knowing.
    :param file_bytes: of the dry compression's file, nothing pruned; None where there is none.
    """

    layers: tuple[LayerCheck, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    file_bytes: int | None

    @property
    def ok(self) -> bool:
        """Whether the network can be fitted, compressed, stored and loaded."""
        return not self.problems

    @property
    def remarks(self) -> tuple[str, ...]:
        """What stands below the table."""
        said = [*(f"refused: {problem}" for problem in self.problems), *(f"note: {note}" for note in self.notes)]
        if self.layers and self.ok:
            said.append(f"can be fitted, compressed and stored: {self.file_bytes:,} bytes with nothing pruned")
        return tuple(said)

    def _rows(self) -> list[tuple[str, ...]]:
        """The table, its head first; empty where no layer is known."""
        rows = [
            (row.name, row.type, "x".join(map(str, row.shape)), row.prior or "none", row.groups, row.note)
            for row in self.layers
        ]
        return [("layer", "type", "weight", "prior", "groups", ""), *rows] if rows else []

    def __str__(self) -> str:
        rows = self._rows()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in rows]
        return "\n".join([*lines, *self.remarks])

    def _repr_html_(self) -> str:
        rows = self._rows()
        return "\n".join([*([table(rows[0], rows[1:])] if rows else []), *map(paragraph, self.remarks)])


def check(
    net: nn.Module,
    x: Batch,
    y: Tensor | None = None,
    prior: PriorRule | None = None,
    *,
    likelihood: Likelihood | None = None,
    deterministic: Iterable[Choice] = (),
    output: Output = None,
) -> Check:
    """What a network would become, before any training: seconds instead of a surprise after hours.

    It makes the model and its guide, compares model and network at the guide's means, and compresses, stores and loads
    the network as it is, and with half of all groups pruned. Nothing of the network, of Pyro's store or of torch's
    generators is changed.

    :param net: as :class:`~pyro_bc.BayesianNetwork` takes it.
    :param x: a batch of inputs, ``(batch, …)``, or a tuple or a dictionary of several.
    :param y: its targets, if they are to be looked at, too.
    :param prior: as for the model.
    :param likelihood: as for the model.
    :param deterministic: as for the model.
    :param output: as for the model.

    >>> import pyro_bc, torch
    >>> _ = torch.manual_seed(0)
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> print(pyro_bc.check(net, torch.randn(5, 4), prior=pyro_bc.GroupNormalJeffreys()))
    layer  type    weight  prior                groups
    0      Linear  8x4     GroupNormalJeffreys  4 inputs
    2      Linear  3x8     GroupNormalJeffreys  8 inputs
    can be fitted, compressed and stored: 160 bytes with nothing pruned
    """
    state = same_random_state(device_of(net)), pyro.get_param_store().scope()
    with state[0], state[1], warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            few = None if y is None else y[:_EXAMPLES]
            found = _checked(net, head(x, _EXAMPLES), few, prior, likelihood, deterministic, output)
        except PyroBCError as error:
            found = Check((), (str(error),), (), None)
    notes = dict.fromkeys(str(w.message) for w in said if issubclass(w.category, UserWarning))
    return replace(found, notes=tuple(note for note in notes if "cannot be compressed" not in note))


def _checked(
    net: nn.Module,
    x: Batch,
    y: Tensor | None,
    prior: PriorRule | None,
    likelihood: Likelihood | None,
    deterministic: Iterable[Choice],
    output: Output,
) -> Check:
    model = BayesianNetwork(
        net, prior, num_data=len(tensors_of(x)[0]), likelihood=likelihood, deterministic=deterministic, output=output
    )
    guide = FactorizedGuide(model, init_log_variance=-20.0)
    try:
        with torch.no_grad(), evaluating(model.skeleton) as dense:
            given = returned(dense, x)
            outputs = chosen(given, output)
    except UnsupportedNetworkError:
        raise
    except Exception as error:  # whatever a user's forward raises
        reason = first_line(error)
        raise UsageError(f"the network cannot be run on inputs of shape {described(x)}: {reason}") from error
    if others := left_out(given, output):
        warnings.warn(f"of the network's outputs, not in the file: {', '.join(map(repr, others))}", stacklevel=2)
    if y is None:
        with pyro.poutine.block():
            y = model.likelihood(outputs).sample()
    else:
        model.likelihood.check(outputs, y)
    try:
        guide(x, y)
    except PyroBCError:
        raise
    except Exception as error:  # of a forward that looks at the classes of its modules, which are other ones now
        raise UnsupportedNetworkError(
            f"the network runs, but not with Bayesian layers in it: its forward depends on the classes of its modules, "
            f"or on attributes that theirs do not have ({first_line(error)})"
        ) from error
    problems: list[str] = []
    read = None
    try:
        read = read_posterior(model, guide) if guide.obstacle is None else None
    except PyroBCError as error:
        problems.append(str(error))
    graph = graph_of_same(model.skeleton, x, output) if read is None else read.graph
    names = graph_names([name.removeprefix("net.") for name in guide.layers], graph, model.skeleton)
    if read is not None and read.posterior.keys() >= set(names.values()):
        posterior, channels = {names[n]: read.posterior[names[n]] for n in names}, read.channels
    else:  # also those that only training uses
        found, channels = layer_posteriors(model, guide)
        posterior = {names[name]: layer for name, layer in found.items()}
    kinds = {name: type(module).__name__ for name, module in model.skeleton.named_modules(remove_duplicate=False)}
    if guide.obstacle is not None:
        return Check((*_rows(graph, posterior, {}, kinds), *_channel_rows(channels, {})), (guide.obstacle,), (), None)
    keep = {n: 1e4 for n, layer in posterior.items() if layer.statistic is not None and f"{n}.weight" in graph.tensors}
    keep |= dict.fromkeys(channels, 1e4)
    source = (model, guide) if read is None else (None, _without_sites(read))
    del model, guide, read
    pyro.clear_param_store()  # of this check's own
    gc.collect()  # modules know each other
    read = source[1] if isinstance(source[1], Reading) else None
    size = None
    try:
        size, is_same = _stored(source, keep, x)
        if not is_same:
            problems.append("the network that is loaded from the file computes something else")
    except EmptyNetworkError:
        problems.append("the network computes the same for every one of these inputs")
    except PyroBCError as error:
        problems += [str(error)] if str(error) not in problems else []
    stuck = {} if read is None else _cannot_shrink(graph, dict(read.posterior))
    stay = {} if read is None else _cannot_leave(read)
    for channel in channels.keys() - stay.keys():  # whose outputs go with them
        for layer in channels[channel].members.writers:
            if stuck.get(layer, "").startswith(_OUTPUTS):
                del stuck[layer]
    rows = (*_rows(graph, posterior, stuck, kinds), *_channel_rows(channels, stay))
    return Check(rows, tuple(problems), (), size)


def _without_sites(read: Reading) -> Reading:
    """What compression needs of a reading where no guide is left: large networks are held once."""
    nothing: dict[str, Any] = {
        "model": None,
        "arguments": (),
        "marginals": {},
        "draws": dict,
        "log_prob": torch.zeros_like,
    }
    return replace(read, fitted=replace(read.fitted, **nothing))


def _stored(source: tuple[Any, Any], keep: Mapping[str, float], x: Batch) -> tuple[int, bool]:
    """Bytes of the file with nothing pruned, and whether the network that is loaded from it computes the same."""
    small = compress(*source, thresholds=keep)
    data = small.to_bytes()
    inputs = [part.float() if part.is_floating_point() else part for part in tensors_of(moved(x, "cpu"))]
    with torch.no_grad():  # in a file's own precision
        stored = small.network()(*inputs)
        del small
        loaded = CompressedNetwork.from_bytes(data).network()(*inputs)
    return len(data), torch.equal(loaded.nan_to_num(), stored.nan_to_num())


def _rows(
    graph: Graph, posterior: dict[str, LayerPosterior], stuck: dict[str, str], kinds: Mapping[str, str]
) -> tuple[LayerCheck, ...]:
    rows = []
    read = dict.fromkeys(layer_name(node) for node in graph.nodes if is_layer(node))
    cells = cell_names(graph)
    for name in [*read, *(name for name in posterior if name not in read)]:
        layer = posterior.get(name)
        shape = tuple(graph.tensors[f"{name}.weight"].shape) if f"{name}.weight" in graph.tensors else ()
        kind = kinds.get(name, "weight")
        if layer is None:
            rows.append(LayerCheck(name, kind, shape, None, "", "stays as it is"))
            continue
        note = stuck.get(name, "")
        if name not in read and name not in cells:
            note = "never cut: no layer multiplies with it as it is" if shape else "not used in evaluation: left out"
        shape = shape or tuple(layer.weight_mean.shape)
        rows.append(LayerCheck(name, kind, shape, type(layer.prior).__name__, _groups(layer), note))
    return tuple(rows)


def _channel_rows(channels: Mapping[str, ChannelPosterior], stay: Mapping[str, str]) -> tuple[LayerCheck, ...]:
    """Channels that cross layers: which, and why they would not go."""
    return tuple(
        LayerCheck(
            name, "channels", (), type(own.prior).__name__, f"{own.members.size} channels",
            f"written by {', '.join(own.members.writers)}; read by {', '.join(own.members.readers) or 'no layer'}"
            + (f"; they stay: {stay[name]}" if name in stay else ""),
        )
        for name, own in channels.items()
    )  # fmt: skip


def _groups(layer: LayerPosterior) -> str:
    """What a prior's groups are, in words."""
    if layer.statistic is None:
        return "" if not layer.codes else f"{layer.weight_mean.numel():,} codes"
    if layer.per_weight:
        return f"{layer.weight_mean.numel():,} weights"
    count, entries = len(layer.statistic), layer.weight_mean.shape[layer.group_dim]
    kind, what = layer.layer_type, "inputs"
    if kind.is_lookup:
        what = "rows" if kind.groups_rows else "columns"
    elif kind.scales_outputs:
        what = "filters"
    return f"{count} {what}" if count == entries else f"{count} groups of {entries // count} {what}"


def _as_trained(graph: Graph) -> Graph:
    """A graph whose numbers between layers are no longer 0, as a training would move a normalisation's shift."""
    own = {f"{layer_name(node)}.{role}" for node in graph.nodes if is_layer(node) for role in ("weight", "bias")}
    moved = {n: t + 0.1 if n not in own and t.is_floating_point() else t for n, t in graph.tensors.items()}
    return replace(graph, tensors=moved)


def _cannot_shrink(graph: Graph, posterior: dict[str, LayerPosterior]) -> dict[str, str]:
    """Layers that stay as they are where half of all groups are pruned, and why."""
    graph = in_normal_form(graph)
    read = {layer_name(node): node for node in graph.nodes if is_layer(node)}
    halved, cuts = {}, {}
    for name, layer in posterior.items():
        if name in read:
            groups = layer.weight_mean.shape[layer.group_dim]
            per_group = groups // len(layer.statistic) if layer.statistic is not None and not layer.per_weight else 1
            statistic = (torch.arange(groups // per_group) % 2).float()
            halved[name] = replace(layer, statistic=statistic, weight_statistic=None, codes={})
            cuts[name] = Threshold(0.5, "explicit")
    try:
        pruned = shrink(_as_trained(graph), halved, cuts)
    except EmptyNetworkError:
        return {}
    tracking = Tracking(graph)
    stuck = {}
    computed = {
        n: set(tracking.units.roots(tracking.tensors[f"{n}.weight"][layer_type(read[n].op).output_axis])) for n in read
    }
    alone = {n for n in read if not any(computed[n] & others for other, others in computed.items() if other != n)}
    for name, layer in halved.items():
        kind: LayerType = layer.layer_type
        if kind.groups_rows:
            if name not in tables_of(graph):
                stuck[name] = "its rows stay: something else reads the table, too"
            continue
        before = layer.weight_mean.shape[kind.group_axis]
        after = pruned.layers[name].weight.shape[kind.group_axis] if name in pruned.layers else 0
        outputs = layer.weight_mean.shape[kind.output_axis]
        left = pruned.layers[name].weight.shape[kind.output_axis] if name in pruned.layers else 0
        what = "filters" if kind.scales_outputs else "inputs"
        if before > 2 and after > 0.75 * before:
            stuck[name] = f"its {what} stay: {_why(graph, tracking, name, kind.group_axis)}"
        elif 4 * left > 3 * outputs and tracking.units.fixed_by(
            tracking.tensors[f"{name}.weight"][kind.output_axis]
        ) not in (None, len(graph.nodes)):
            stuck[name] = f"{_OUTPUTS}: {_why(graph, tracking, name, kind.output_axis)}"
        elif kind.scales_outputs and f"{name}_outputs" in pruned.graph.tensors and name in alone:
            stuck[name] = f"its filters go, but what reads them stays: {_why(graph, tracking, name, kind.group_axis)}"
        elif not kind.scales_outputs and name in pruned.layers:
            counted = _counted_by(graph, tracking, tracking.tensors[f"{name}.weight"][kind.output_axis])
            if counted is not None and 4 * left > 3 * outputs:
                stuck[name] = f"{_OUTPUTS}: {counted}"
    return stuck


def _cannot_leave(read: Reading) -> dict[str, str]:
    """Channels that cross layers and stay where every second of them is pruned, and why."""
    everything = {name: Threshold(math.inf, "none") for name in read.posterior}
    layers = {n: replace(own, statistic=None, weight_statistic=None, codes={}) for n, own in read.posterior.items()}
    found: dict[str, str] = {}
    for name, own in read.channels.items():
        halved = replace(own, statistic=(torch.arange(own.members.size) % 2).float())
        left = without_channels({**layers, **read.channels, name: halved}, {name: Threshold(0.5, "explicit")})
        graph = with_scales(
            replace(read, graph=_as_trained(read.graph)), {other: left.pop(other) for other in read.channels}
        )
        try:
            pruned = shrink(graph, left, everything)
        except EmptyNetworkError:
            continue
        tracking = Tracking(in_normal_form(graph))
        for site, axes in own.members.layers.items():
            layer, role = read.names.get(site.rpartition(".")[0], ""), site.rpartition(".")[2]
            kept = pruned.layers.get(layer)
            if role != "weight" or kept is None:
                continue
            for axis, numbers in axes.items():
                crossing = int((numbers >= 0).sum())
                if crossing > 2 and kept.weight.shape[axis] > len(numbers) - 0.25 * crossing:
                    found.setdefault(name, f"in '{layer}', {_why(tracking.graph, tracking, layer, axis)}")
    return found


def _counted_by(graph: Graph, tracking: Tracking, units: np.ndarray) -> str | None:
    """The normalisation whose statistics are of units, in words."""
    own = set(tracking.units.roots(units).tolist())
    for index, node in enumerate(graph.nodes):
        if operation(node.op).statistics:
            read = tracking.of(node.args[0]).get(statistics_axis(graph, index))
            if read is not None and own & set(tracking.units.roots(read).tolist()):
                return f"'{node.op}' has its statistics of them, and only those that are 0 may go"
    return None


def _why(graph: Graph, tracking: Tracking, name: str, axis: int) -> str:
    """What keeps the units along an axis of a layer's weight."""
    units: Any = tracking.tensors[f"{name}.weight"].get(axis)
    index = tracking.units.fixed_by(units) if units is not None else None
    if index is None:
        counted = None if units is None else _counted_by(graph, tracking, units)
        if any(is_layer(node) and layer_type(node.op).spatial for node in graph.nodes):
            return counted or "a padded convolution reads what becomes of those that are pruned, which is not 0"
        return counted or "what reads them is no layer that does without those that are pruned"
    if index == len(graph.nodes):
        return "they are the network's, or something else reads the weight, too"
    node = graph.nodes[index]
    if is_layer(node):
        return f"they are the network's input, or reach layer '{layer_name(node)}' in a way that is not followed"
    return f"'{node.op}' mixes them, or does something to them that is not followed"
