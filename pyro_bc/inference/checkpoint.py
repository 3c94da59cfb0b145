"""Checkpoints: one safetensors file, with JSON in its header."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..errors import CheckpointError
from ..runtime import processes
from ..runtime.devices import device_of
from ..runtime.files import readable, write_atomically
from ..runtime.messages import first_line
from ..runtime.random_state import random_state, set_random_state
from .history import Epoch
from .left import Cut

#: What a checkpoint holds, which another version may not read: the optimiser's state, and names of generators.
CHECKPOINT_FORMAT = 3

# Of an epoch, what only a fit has whose compression is looked at.
_MAY_BE_NONE = {own.name for own in fields(Epoch) if own.default is None}


def _fingerprint(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def state_of(model: Any, guide: Any) -> dict[str, Tensor]:
    """Everything that a model and its guide have learned, by name; the tensors are theirs."""
    tensors = {f"guide.{name}": value for name, value in guide.state_dict().items()}
    return tensors | {f"model.{name}": value for name, value in model.state_dict().items()}


def put_back(state: Mapping[str, Tensor], model: Any, guide: Any) -> None:
    """Give a model and its guide a state of :func:`state_of`."""
    guide.load_state_dict(_part(state, "guide."))
    model.load_state_dict(_part(state, "model."))


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def save_fit(
    path: Path,
    model: Any,
    guide: Any,
    optimizer: Any,
    settings: Mapping[str, Any],
    history: list[Epoch],
    kept: Mapping[str, Tensor],
    cut: Cut | None = None,
) -> None:
    """Write a checkpoint of everything that a training needs to go on, random state included.

    :param kept: an earlier state that may be gone back to, or nothing.
    :param cut: what has left the training.
    """
    tensors = state_of(model, guide) | {f"kept.{name}": value for name, value in kept.items()}
    if cut is not None:
        tensors |= {"cut.kl": cut.kl} | {
            f"cut.gone.{axis}.{layer}": marks for layer, own in cut.gone.items() for axis, marks in own.items()
        }
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    for rank, states in enumerate(processes.gathered(random_state(device_of(guide)))):
        tensors |= {f"rng.{rank}.{kind}": state for kind, state in states.items()}
    metadata = {"settings": dict(settings), "history": [asdict(record) for record in history]}
    processes.from_first(lambda: save_checkpoint(path, tensors, metadata))


def restore_fit(
    path: Path, model: Any, guide: Any, optimizer: Any, settings: Mapping[str, Any]
) -> tuple[list[Epoch], dict[str, Tensor], Cut | None]:
    """Put model, guide, optimiser and random state back as :func:`save_fit` found them; returns the history, the kept
    state, and what has left.

    Another number of processes goes on with the same posterior, with other batches and other noise.

    :raises CheckpointError: where the checkpoint cannot be read, or was written with other settings.
    """
    tensors, metadata = processes.from_first(lambda: load_checkpoint(path))
    saved = metadata.get("settings", {})
    if isinstance(saved, dict) and saved.get("processes") != settings.get("processes"):
        # The same examples in fewer or more steps: it goes on, with other batches and other noise.
        settings = {**settings, **{name: saved.get(name) for name in ("processes", "steps")}}
    if not isinstance(saved, dict) or _fingerprint(saved) != _fingerprint(settings):
        own = saved if isinstance(saved, dict) else {}
        differing = [key for key in settings if json.dumps(own.get(key)) != json.dumps(settings[key])]
        raise CheckpointError(f"'{path}' was written by a run with other settings: {', '.join(differing)} differ")
    history = history_of(path, metadata)
    try:
        put_back(tensors, model, guide)
        cut = _cut(tensors, guide)
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _part(tensors, "optimizer.").items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = value
        _check_state(state, optimizer)
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        is_of_as_many = saved.get("processes", 1) == processes.count()
        set_random_state(_part(tensors, f"rng.{processes.rank() if is_of_as_many else 0}."), device_of(guide))
        if not is_of_as_many:
            processes.draw_apart_from_here()
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"'{path}' holds another network's training, or is damaged ({first_line(error)}); delete it to start over"
        ) from None
    return history, _part(tensors, "kept."), cut


def _cut(tensors: Mapping[str, Tensor], guide: Any) -> Cut | None:
    """What has left the training; None where nothing has.

    :raises ValueError: where it is not of this guide.
    """
    if "cut.kl" not in tensors:
        return None
    gone: dict[str, dict[int, Tensor]] = {layer: {} for layer in guide.layers}
    for name, marks in _part(tensors, "cut.gone.").items():
        axis, _, layer = name.partition(".")
        weight, *_ = guide.parameters_of(f"{layer}.weight")
        if marks.dtype != torch.bool or marks.shape != (weight.shape[int(axis)],):
            raise ValueError("what has left the training is of other layers")
        gone[layer][int(axis)] = marks
    if tensors["cut.kl"].shape != (len(guide.families),):
        raise ValueError("what has left the training is of other layers")
    return Cut(gone, tensors["cut.kl"])


def _check_state(state: Mapping[int, Mapping[str, Tensor]], optimizer: Any) -> None:
    """Look whether an optimiser's state is that of its parameters; torch would say so in the middle of a step.

    :raises ValueError: where it is not.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if len({tuple(sorted(own)) for own in state.values()}) > 1:
        raise ValueError("parts of the optimiser's state are missing")
    for index, own in state.items():
        for value in own.values():
            if not 0 <= index < len(parameters) or (value.dim() and value.shape != parameters[index].shape):
                raise ValueError("the optimiser's state is that of other parameters")


def history_of(path: str | os.PathLike[str], metadata: Mapping[str, Any]) -> list[Epoch]:
    """The course of the fit that a checkpoint was written by.

    :param metadata: of :func:`load_checkpoint`.
    :raises CheckpointError: where it holds none.
    """
    try:
        return [_epoch(record) for record in metadata["history"]]
    except (LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"'{path}' holds no course of a fit ({type(error).__name__}: {first_line(error)}); delete it to start over"
        ) from None


def _epoch(record: Mapping[str, Any]) -> Epoch:
    epoch = Epoch(**record)
    for name, value in asdict(epoch).items():
        numbers = value.values() if name in ("groups_left", "kl_by_layer", "learning_rates") else [value]
        may_be = (type(None), bool, int, float) if name in _MAY_BE_NONE else (int, float)
        if not all(type(number) in may_be for number in numbers):
            raise TypeError(f"{name} is no number")
    return epoch


def save_checkpoint(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and JSON-able metadata as one safetensors file, whole or not at all.

    :raises OutputError: where it cannot be written.
    """
    contiguous: dict[str, Tensor] = {}
    held = set()
    for name, tensor in tensors.items():
        own = tensor.detach().contiguous()
        where = own.untyped_storage().data_ptr()
        contiguous[name] = own.clone() if where in held else own  # tied weights are one tensor, and a file has two
        held.add(where)
    header = {"pyro_bc": json.dumps(metadata)}
    write_atomically(path, safetensors.torch.save(contiguous, metadata=header))


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a checkpoint.

    :raises CheckpointError: where the file is missing, damaged, or not one of ours.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"there is no checkpoint at '{path}'; start without resume")
    fault, advice = "is not a readable pyro_bc checkpoint", "delete it to start over"
    with readable(path, fault, CheckpointError, advice), safetensors.safe_open(path, framework="pt") as file:
        metadata = json.loads((file.metadata() or {})["pyro_bc"])
        if not isinstance(metadata, dict):
            raise ValueError("its header holds no settings")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors, metadata
