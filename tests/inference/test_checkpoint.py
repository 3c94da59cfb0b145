"""Tensors come back as they were; what is no checkpoint is refused by name."""

from dataclasses import asdict

import pytest
import torch
from torch import nn

from pyro_bc.errors import CheckpointError
from pyro_bc.inference.checkpoint import load_checkpoint, restore_fit, save_checkpoint, save_fit
from pyro_bc.inference.history import Epoch


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


EPOCH = Epoch(1, 0.5, 0.4, 0.1, 1.0, 3.0, {"fc": 4}, 0.2)
SETTINGS = {"epochs": 3}


def trained(seed):
    """Two modules, an optimiser that has made a step, and one that has not."""
    torch.manual_seed(seed)
    model, guide = nn.Linear(3, 2), nn.Linear(2, 2)
    optimizer = torch.optim.Adam([*model.parameters(), *guide.parameters()])
    guide(model(torch.ones(1, 3))).sum().backward()
    optimizer.step()
    return model, guide, optimizer


def test_a_fit_is_put_back_as_it_was(tmp_path):
    model, guide, optimizer = trained(0)
    save_fit(tmp_path / "c", model, guide, optimizer, SETTINGS, [EPOCH], {})
    others = trained(1)
    assert restore_fit(tmp_path / "c", *others, SETTINGS) == ([EPOCH], {}, None)
    assert torch.equal(others[0].weight, model.weight)
    moments = [optimizer.state_dict()["state"][0]["exp_avg"] for optimizer in (optimizer, others[2])]
    assert torch.equal(*moments)


def history(records):
    return lambda tensors, metadata: metadata | {"history": records}


def without(prefix):
    def change(tensors, metadata):
        for name in [name for name in tensors if name.startswith(prefix)]:
            del tensors[name]
        return metadata

    return change


def of_another_shape(prefix):
    def change(tensors, metadata):
        tensors |= {name: torch.zeros(7, 7) for name in tensors if name.startswith(prefix)}
        return metadata

    return change


def renamed(tensors, metadata):
    tensors["optimizer.first.step"] = torch.zeros(1)
    return metadata


CHANGES = {
    "no history": lambda tensors, metadata: {"settings": SETTINGS},
    "text as history": history("text"),
    "a number as history": history(3),
    "records of another version": history([{"epoch": 1}]),
    "records with more": history([asdict(EPOCH) | {"more": 1}]),
    "text as a loss": history([asdict(EPOCH) | {"loss": "low"}]),
    "a list as groups": history([asdict(EPOCH) | {"groups_left": [1]}]),
    "a list as settings": lambda tensors, metadata: metadata | {"settings": [1]},
    "a list as header": lambda tensors, metadata: [metadata],
    **{f"without {part}": without(part) for part in ("guide.", "model.", "rng.", "optimizer.0.exp_avg")},
    **{f"of another shape: {part}": of_another_shape(part) for part in ("guide.", "rng.", "optimizer.")},
    "an optimiser's state of nothing": renamed,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_checkpoint_of_other_content_is_one_error(tmp_path, change):
    model, guide, optimizer = trained(0)
    save_fit(tmp_path / "c", model, guide, optimizer, SETTINGS, [EPOCH], {})
    tensors, metadata = load_checkpoint(tmp_path / "c")
    save_checkpoint(tmp_path / "c", tensors, change(tensors, metadata))
    with pytest.raises(CheckpointError, match=r"/c' "):
        restore_fit(tmp_path / "c", *trained(1), SETTINGS)


def test_tied_tensors_are_written_once_each(tmp_path):
    one = torch.arange(6.0).reshape(2, 3)
    save_checkpoint(tmp_path / "tied", {"a": one, "b": one, "row": one[1]}, {})
    found, _ = load_checkpoint(tmp_path / "tied")
    assert torch.equal(found["a"], one) and torch.equal(found["b"], one) and torch.equal(found["row"], one[1])
