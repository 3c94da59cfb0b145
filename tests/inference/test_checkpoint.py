"""Tensors come back as they were; what is no checkpoint is refused by name."""

import pytest
import torch

from pyro_bc.errors import CheckpointError
from pyro_bc.inference.checkpoint import load_checkpoint, save_checkpoint


def test_tensors_and_metadata_come_back(tmp_path):
    tensors = {"a.b": torch.randn(3, 4).T, "rng": torch.get_rng_state(), "step": torch.tensor(3.0)}
    save_checkpoint(tmp_path / "c", tensors, {"history": [{"loss": 0.1 + 0.2}], "seed": None})
    loaded, metadata = load_checkpoint(tmp_path / "c")
    assert metadata == {"history": [{"loss": 0.1 + 0.2}], "seed": None}
    assert loaded.keys() == tensors.keys() and all(torch.equal(loaded[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("damage", [lambda d: d[: len(d) // 2], lambda d: b"", lambda d: b"\xff" * len(d)])
def test_damaged_checkpoints_are_refused(tmp_path, damage):
    path = tmp_path / "c"
    save_checkpoint(path, {"a": torch.zeros(100)}, {})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match="not a readable"):
        load_checkpoint(path)


def test_missing_checkpoints_and_those_of_others_are_refused(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_checkpoint(tmp_path / "none")
    save_file({"a": torch.zeros(2)}, tmp_path / "other")
    with pytest.raises(CheckpointError, match="not a readable"):
        load_checkpoint(tmp_path / "other")
