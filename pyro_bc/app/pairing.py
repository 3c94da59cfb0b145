"""A network and data that go together, found out before anything is trained or written."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ..data.streamed import Inputs, Streamed
from ..errors import UnsupportedNetworkError, UsageError
from ..graph.ending import outputs_are_free, outputs_are_positive
from ..graph.module import evaluating
from ..graph.read import read_graph
from ..model.ending import activated_twice
from ..model.guide import FactorizedGuide
from ..model.likelihoods import Categorical, NegativeBinomial, Normal, Poisson
from ..model.network import BayesianNetwork
from ..priors.base import Prior
from ..priors.shared import ResidualWidth
from ..runtime.devices import device_of
from ..runtime.files import read_object
from ..runtime.messages import first_line
from ..runtime.random_state import same_random_state
from .datasets import Dataset
from .normalised import Normalised, Scales
from .observed import LIKELIHOODS, check_targets, fitting, scaled_to
from .recipes import Recipe


def paired(net: nn.Module, data: Dataset) -> Dataset:
    """Data as a network takes them; nothing of the network or of torch's generators is changed.

    Integers that the network does not take are numbers, and where outputs count classes is found.

    :raises UsageError: where it cannot be run on the inputs, or its outputs do not fit the targets.
    :raises UnsupportedNetworkError: where it gives no tensor.
    """
    with same_random_state(device_of(net)), torch.no_grad():
        data, outputs = _run(net, data)
        if data.has_targets:
            data = replace(data, likelihood=fitting(data.likelihood, outputs, data.train_y))
            for y in (data.train_y, data.test_y):
                check_targets(data.likelihood, outputs, y)
            _check_classes(data, outputs)
    return replace(data, likelihood=scaled_to(data.likelihood, data.train_y)) if data.is_own else data


def _check_classes(data: Dataset, outputs: Tensor) -> None:
    """Classes that have names are numbered by them: with fewer of them than outputs the numbers would be others."""
    if isinstance(data.likelihood, Categorical) and data.class_names:
        count, names = outputs.shape[data.likelihood.class_dim], data.class_names
        if count != len(names):
            shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
            raise UsageError(
                f"'{data.name}' has {len(names)} classes ({shown}), but the network {count} outputs; give as many"
            )


def normalised(net: nn.Module, data: Dataset) -> nn.Module:
    """The network for a user's inputs and targets in their own units; itself for integers, and for data sets of ours.

    :param data: as :func:`paired` gives them.
    """
    if not data.is_own or not data.train_x.is_floating_point():
        return net
    return Normalised(net, Scales.of(data.train_x), _output_scales(net, data))


def _run(net: nn.Module, data: Dataset) -> tuple[Dataset, Tensor]:
    """Data as the network takes them, and its outputs for a few."""
    try:
        return data, _outputs(net, data)
    except UsageError as error:
        if data.train_x.is_floating_point():
            raise
        numbers = replace(data, train_x=_as_floats(data.train_x), test_x=_as_floats(data.test_x))
        try:
            return numbers, _outputs(net, numbers)
        except UsageError:
            raise error from None


def _as_floats(x: Inputs) -> Inputs:
    if isinstance(x, Tensor):
        return x.float()
    read = x.read
    return Streamed(lambda rows: read(rows).float(), x.rows, x.shape[1:], torch.float32, x.device)


def _outputs(net: nn.Module, data: Dataset) -> Tensor:
    x = data.train_x[:2]
    try:
        with evaluating(net):
            outputs = net(x)
    except UnsupportedNetworkError as error:  # of several outputs
        raise UnsupportedNetworkError(
            f"{first_line(error).partition(': say')[0]}: return one, or a dictionary with 'logits'"
        ) from None
    except Exception as error:  # whatever a user's forward raises
        raise UsageError(
            f"the network cannot be run on inputs {tuple(data.train_x.shape)}, {data.what}: {first_line(error)}"
        ) from error
    if not isinstance(outputs, Tensor):
        raise UnsupportedNetworkError(f"the network's output is a {type(outputs).__name__}; one tensor is needed")
    return outputs


def _output_scales(net: nn.Module, data: Dataset) -> Scales | None:
    """Scales that outputs are brought to, so that a training begins near the targets."""
    y = data.train_y
    if not isinstance(data.likelihood, Normal | Poisson | NegativeBinomial):
        return None
    with same_random_state(device_of(net)):
        graph = read_graph(nn.Sequential(net), data.train_x[:2])
    if isinstance(data.likelihood, Normal):
        scales = Scales.of(y)
        if outputs_are_free(graph):
            return scales
        # A network that ends in an activation says which numbers it can give: they are not moved from there.
        return scales.without_mean() if outputs_are_positive(graph) else None
    mean = y.mean(0).clamp(min=1e-3).log()  # outputs are logarithms of rates
    return Scales((4 * mean).round() / 4, torch.ones_like(mean)) if outputs_are_free(graph) else None


def inputs_beside(file: Path) -> Mapping[str, Any]:
    """What the run that a file is of says of its inputs, where that lies beside it; empty where nothing does."""
    beside = file.parent / "metrics.json"
    if not beside.is_file():
        return {}
    try:
        found = read_object(beside, UsageError, "").get("inputs")
    except UsageError:  # it says nothing then
        return {}
    return found if isinstance(found, dict) else {}


def table_beside(file: Path) -> tuple[str | None, Mapping[str, Sequence[str]]]:
    """Of the table that a file's run was made with: its target column, and the texts that other columns held."""
    found = inputs_beside(file)
    target, categories = found.get("target"), found.get("categories")
    held = categories.items() if isinstance(categories, dict) else ()
    return (
        target if isinstance(target, str) and target else None,
        {name: levels for name, levels in held if isinstance(levels, list) and levels},
    )


def likelihood_beside(file: Path) -> str | None:
    """The name of the likelihood that a file's run had, where that lies beside it."""
    found = inputs_beside(file).get("likelihood")
    names = {own().__class__.__name__: name for name, own in LIKELIHOODS.items()}
    return names.get(found) if isinstance(found, str) else None


def in_its_classes(file: Path, data: Dataset) -> Dataset:
    """A user's data with columns and classes in the order of the run that a file is of, where that lies beside it.

    New data may lack some of the classes.

    :raises UsageError: where they have other columns or classes.
    """
    found = inputs_beside(file) if data.is_own else {}
    before, own = found.get("columns"), list(data.columns)
    if isinstance(before, list) and before and own and before != own:
        if set(before) != set(own) or len(before) != len(own):
            raise UsageError(_other("columns", file, data, before, own))
        assert isinstance(data.train_x, Tensor) and isinstance(data.test_x, Tensor)  # of tables
        order = torch.tensor([own.index(name) for name in before])
        data = replace(data, train_x=data.train_x[:, order], test_x=data.test_x[:, order], columns=tuple(before))
    before = found.get("classes")
    if isinstance(before, int):
        before = [str(number) for number in range(before)]
    if not isinstance(before, list) or not before or not data.classes or not isinstance(data.likelihood, Categorical):
        return data
    own = list(data.class_names) or [str(number) for number in range(data.classes)]
    if own == before[: len(own)]:
        return replace(data, class_names=tuple(before)) if data.class_names else data
    if not set(own) <= set(before):
        raise UsageError(_other("classes", file, data, before, own))
    numbers = torch.tensor([before.index(name) for name in own])
    return replace(
        data, train_y=numbers[data.train_y], test_y=numbers[data.test_y], class_names=tuple(before), classes=len(before)
    )


def _other(what: str, file: Path, data: Dataset, before: list[Any], own: list[str]) -> str:
    new = [name for name in own if name not in before]
    missing = [name for name in before if name not in own]
    differing = f"'{new[0]}' is new" if new else f"'{missing[0]}' is missing" if missing else "some are there twice"
    return f"'{data.name}' has other {what} than '{file}' was made for: {differing}; the file's are {', '.join(before)}"


def check_outputs(net: nn.Module, data: Dataset) -> None:
    """Whether a network gives what the likelihood takes, and not what that makes of it.

    :raises UsageError: where it ends in what the likelihood applies.
    :raises UnsupportedNetworkError: where it cannot be read.
    """
    own = nn.Sequential(net.net) if isinstance(net, Normalised) else net
    with same_random_state(device_of(net)):
        told = activated_twice(read_graph(own, data.train_x[:2]), data.likelihood)
    if told:
        raise UsageError(told)


def check_network(net: nn.Module, data: Dataset, prior: Prior | ResidualWidth) -> None:
    """Whether a network can be fitted and stored; nothing of it, of Pyro's store or of torch's generators is changed.

    :raises PyroBCError: where it cannot.
    """
    check_outputs(net, data)
    x, y = data.train_x[:2], data.train_y[:2]
    with same_random_state(device_of(net)), pyro.get_param_store().scope(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when the fit begins
        read_graph(net, x)
        model = BayesianNetwork(net, prior, num_data=len(data.train_x), likelihood=data.likelihood)
        guide = FactorizedGuide(model)
        guide(x, y)
        if guide.obstacle is not None:
            raise UnsupportedNetworkError(guide.obstacle)


def check_changes(plan: Recipe, data: Dataset) -> None:
    """Whether training inputs can be changed as the recipe says.

    :raises UsageError: where they cannot.
    """
    shifts = (plan.fit.shift, plan.fit.flip, plan.fit.affine, plan.finetune.shift)
    if any(shifts) and (len(data.picture_shape) != 3 or not data.train_x.is_floating_point()):
        raise UsageError(f"shift and affine move pictures (channels, height, width); the data are {data.what}")
    if not plan.distil.share:
        return
    if data.likelihood != Categorical() or data.train_y.dim() != 1:
        raise UsageError("a teacher gives probabilities of classes; leave teacher-share out for other targets")
    if not isinstance(data.train_x, Tensor) or not (data.train_x.min() >= 0 and data.train_x.max() <= 1):
        raise UsageError("a teacher looks at pictures in [0, 1] that fit into memory; leave teacher-share out")
