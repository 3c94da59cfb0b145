"""The data and the dense network of a run."""

import pickle
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ..data.augment import Affine, ShiftAndFlip
from ..data.batches import Batches
from ..errors import CheckpointError, DataError, NonFiniteLossError, UsageError
from ..inference.checkpoint import load_checkpoint, save_checkpoint
from ..model.likelihoods import Likelihood
from ..runtime import processes
from ..runtime.files import readable
from ..runtime.messages import first_line
from ..runtime.progress import progress_bar
from .datasets import Dataset
from .normalised import normalised_like
from .observed import training_loss
from .own_data import load_data
from .recipes import Recipe
from .settings import Settings


def chosen_data(settings: Settings, data_dir: str | Path | None) -> Dataset:
    """The data set of a run, of which it may hold out the end, and train on the first examples only.

    :raises DataError: where nobody knows the targets.
    """
    data = load_data(
        settings.data, data_dir, likelihood=settings.likelihood, target=settings.target_column,
        picture_size=settings.picture_size,
    )  # fmt: skip
    if not data.has_targets:
        raise DataError(f"'{settings.data}' has no targets to train with; pyro-bc compress needs none")
    if settings.development:
        data = data.development()
    data = data if settings.train_limit is None else data.limited(settings.train_limit)
    _check_differ(settings.data, data)
    return data


def _check_differ(name: str, data: Dataset) -> None:
    """:raises DataError: where all training targets are the same, which a network learns without looking at inputs."""
    y = data.train_y
    if bool((y != y[:1]).any()):
        return
    shown = ", ".join(f"{own:g}" for own in y[0].flatten().tolist()[:3])
    if data.class_names and y.dim() == 1:
        shown = data.class_names[int(y[0])]
    raise DataError(
        f"all {len(y):,} training targets of '{name}' are the same ({shown}): inputs have nothing to tell; "
        f"give examples with other targets, too, or name another column of a table with --target"
    )


def load_weights(net: nn.Module, path: str | Path) -> nn.Module:
    """The network, filled with the tensors of a file, by their names in its ``state_dict``.

    What a run wrote of a network that it normalised the inputs of is such a network.

    :param path: of a ``.safetensors`` file, or of what ``torch.save`` wrote of a ``state_dict``, or of a checkpoint
        that has one of its tensors' dictionaries. Names may have something in front, such as ``module.``.
    :raises UsageError: where the file cannot be read, or names or shapes differ.
    """
    weights = _named_as_in(net, _weights(Path(path)))
    net = normalised_like(net, weights)
    # Names that a state_dict has, but that no forward pass reads.
    expected = {name: tensor for name, tensor in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    for name, tensor in expected.items():
        if name not in weights:
            raise UsageError(
                f"'{path}' holds no '{name}', but {', '.join(list(weights)[:5])}{', …' if len(weights) > 5 else ''}; "
                f"it needs {len(expected)} tensors: {', '.join(expected)}"
            )
        if weights[name].shape != tensor.shape:
            raise UsageError(
                f"'{name}' has shape {tuple(weights[name].shape)} in '{path}', but {tuple(tensor.shape)} in the network"
            )
    for name in weights:
        if name not in net.state_dict():
            raise UsageError(f"'{path}' holds '{name}', which the network does not have")
    net.load_state_dict(weights, strict=False)
    return net


def _weights(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        with readable(path, "is not a readable safetensors file", UsageError):
            return safetensors.torch.load_file(path)
    with readable(path, "is no state_dict that torch.load(weights_only=True) reads", UsageError, _ADVICE):
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # whose reason is a page of advice
            raise UsageError(f"'{path}' holds something else than a dictionary of tensors: {_ADVICE}") from None
    if _is_state_dict(found):
        return found
    inner = {key: value for key, value in found.items() if _is_state_dict(value)} if isinstance(found, dict) else {}
    if len(inner) != 1:
        several = f"{len(inner)} dictionaries of tensors, {', '.join(map(repr, inner))}" if inner else "no state_dict"
        raise UsageError(f"'{path}' holds {several}: {_ADVICE}")
    return next(iter(inner.values()))


_ADVICE = "save net.state_dict() with torch.save"


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(own, Tensor) for own in value.values())


def _named_as_in(net: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by their names in the network, where all have the same in front, as wrappers of networks add it."""
    expected = net.state_dict()
    first = next(iter(expected), "")
    for name in weights:
        front = name.removesuffix(first)
        if front and name.endswith(first) and front.endswith(".") and all(own.startswith(front) for own in weights):
            inner = {own.removeprefix(front): tensor for own, tensor in weights.items()}
            if inner.keys() <= expected.keys():
                return inner
    return dict(weights)


def dense_network(
    net: nn.Module,
    likelihood: Likelihood,
    batches: Batches,
    epochs: int,
    learning_rate: float,
    file: Path,
    progress: bool,
) -> nn.Module:
    """The dense network of this run, trained with Adam, or read back where the run was interrupted later.

    On several processes each has its share of the batches, and all step along the mean of their gradients.

    :raises CheckpointError: where what is read back is of another network.
    """
    if processes.from_first(file.exists):
        weights = processes.from_first(lambda: load_checkpoint(file)[0])
        try:
            net.load_state_dict(weights)
        except RuntimeError as error:
            raise CheckpointError(
                f"'{file}' does not hold this network ({first_line(error)}); delete it to train it again"
            ) from None
        return net.eval()
    optimizer = torch.optim.Adam(net.parameters(), learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=max(1, epochs * len(batches)))
    processes.start_alike([net])
    processes.draw_apart()
    net.train()
    with progress_bar("dense network", epochs, shown=progress) as bar:
        for epoch in range(epochs):
            for x, y in batches:
                optimizer.zero_grad()
                loss = training_loss(likelihood, net(x), y)
                loss.backward()
                processes.average_(p.grad for p in net.parameters() if p.grad is not None)
                optimizer.step()
                schedule.step()
            processes.average_buffers_(net)
            if not torch.isfinite(loss):
                raise NonFiniteLossError(f"the loss of the dense network is not finite in epoch {epoch + 1}")
            bar(1, state=f"loss {loss.item():.3f}")
    processes.from_first(lambda: save_checkpoint(file, net.state_dict(), {"epochs": epochs}))
    return net.eval()


def batches_of(data: Dataset, plan: Recipe) -> Batches:
    """Training batches, augmented as the recipe says."""
    shift, affine = plan.fit.shift or 0, plan.fit.affine or 0.0
    changes: list[Callable[[Tensor], Tensor]] = []
    if affine:
        changes.append(Affine.of_strength(affine))
    if shift or plan.fit.flip:
        changes.append(ShiftAndFlip(shift, bool(plan.fit.flip)))
    augment = partial(_in_turn, changes) if changes else None
    return Batches(data.train_x, data.train_y, plan.fit.batch_size or 1, augment=augment)


def _in_turn(changes: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    for change in changes:
        x = change(x)
    return x
