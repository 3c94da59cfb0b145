"""Checkpoints: one safetensors file, with JSON in its header."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from .errors import CheckpointError
from .files import write_atomically


def save_checkpoint(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and JSON-able metadata as one safetensors file, whole or not at all.

    :raises OutputError: where it cannot be written.
    """
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    header = {"pyro_bc": json.dumps(metadata)}
    write_atomically(path, safetensors.torch.save(contiguous, metadata=header))


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a checkpoint.

    :raises CheckpointError: where the file is missing, damaged, or not one of ours.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"there is no checkpoint at '{path}'; start without resume")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["pyro_bc"])
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (safetensors.SafetensorError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(
            f"'{path}' is not a readable pyro_bc checkpoint ({error}); delete it to start over"
        ) from None
