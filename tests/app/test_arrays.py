"""Arrays of numpy's and safetensors: every type as a network takes it, mapped where a file allows; each refusal."""

import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pyro_bc.app import examples
from pyro_bc.app.own_data import load_data
from pyro_bc.data import Streamed
from pyro_bc.errors import DataError

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(30, 4))
Y = np.arange(30) % 3


def saved(path, **arrays):
    if path.suffix == ".npy":
        np.save(path, arrays["x"])
    elif path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}, path)
    return str(path)


def rows(data):
    return torch.cat([data.train_x[:], data.test_x[:]])


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
@pytest.mark.parametrize("is_large", [False, True])
def test_inputs_and_targets_stay_together(tmp_path, monkeypatch, ending, is_large):
    if is_large:
        monkeypatch.setattr(examples, "_IN_MEMORY", 10)
    path = saved(tmp_path / f"set{ending}", x=X.astype(np.float32), y=Y, test_x=X[:5].astype(np.float32), test_y=Y[:5])
    data = load_data(path)
    assert isinstance(data.train_x, Streamed) is is_large and data.classes == 3 and data.test_part == "test set"
    assert torch.equal(data.test_x[:], torch.from_numpy(X[:5]).float()) and data.test_y.tolist() == Y[:5].tolist()
    where = {tuple(row): int(y) for row, y in zip(X.astype(np.float32).tolist(), Y, strict=True)}
    assert [where[tuple(row)] for row in data.train_x[:].tolist()] == data.train_y.tolist()


def test_large_stored_archives_are_mapped_and_packed_ones_read(tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "_IN_MEMORY", 10)
    large = RANDOM.normal(size=(5000, 40))
    np.savez(tmp_path / "stored.npz", x=large)
    np.savez_compressed(tmp_path / "packed.npz", x=large)
    np.save(tmp_path / "alone.npy", np.asfortranarray(large))
    for name, is_mapped in (("stored.npz", True), ("packed.npz", False), ("alone.npy", True)):
        data = load_data(str(tmp_path / name))
        assert isinstance(data.train_x, Streamed)
        assert isinstance(data.train_x.read.args[1], np.memmap) is is_mapped
        assert torch.equal(rows(data).sort(0)[0], torch.from_numpy(large).float().sort(0)[0])


@pytest.mark.parametrize(
    ("x", "shape", "dtype"),
    [
        (RANDOM.integers(0, 256, (30, 4, 6), dtype=np.uint8), (1, 4, 6), torch.float32),
        (RANDOM.integers(0, 256, (30, 3, 4, 6), dtype=np.uint8), (3, 4, 6), torch.float32),
        (RANDOM.integers(0, 256, (30, 4, 6, 3), dtype=np.uint8), (3, 4, 6), torch.float32),
        (RANDOM.integers(0, 9, (30, 7), dtype=np.int32), (7,), torch.int64),
        (RANDOM.integers(0, 9, (30, 7), dtype=np.uint8), (7,), torch.int64),
        (X.astype(np.float16), (4,), torch.float32),
        (X.astype(">f8"), (4,), torch.float32),
    ],
)
def test_bytes_are_pictures_and_other_types_stay_numbers(tmp_path, x, shape, dtype):
    data = load_data(saved(tmp_path / "set.npy", x=x))
    assert data.picture_shape == shape and data.train_x.dtype == dtype and not data.has_targets
    found = rows(data)
    if x.dtype == np.uint8 and x.ndim > 2:
        assert found.max() <= 1
        found = (found * 255).round()
    assert found.double().sum().item() == pytest.approx(x.astype(float).sum())


@pytest.mark.parametrize("is_small", [True, False])
def test_examples_that_were_put_aside_are_those_that_choices_are_made_on(tmp_path, monkeypatch, is_small):
    monkeypatch.setattr("pyro_bc.app.examples._IN_MEMORY", 2**28 if is_small else 0)
    held, test = X[:6] + 100, X[:9] - 100
    arrays = {"x": X, "y": Y, "val_x": held, "val_y": Y[:6] + 0}
    data = load_data(saved(tmp_path / "set.npz", **arrays, test_x=test, test_y=Y[:9]))
    assert isinstance(data.train_x, torch.Tensor) is is_small and data.held_out == 6 and len(data.train_x) == 36
    chosen = data.development()
    assert sorted(chosen.test_x[:][:, 0].tolist()) == pytest.approx(sorted(held[:, 0])) and len(chosen.train_x) == 30
    assert chosen.train_x[:].max() < 50 and data.test_x[:].max() < -50
    alone = load_data(saved(tmp_path / "set.npz", **arrays))
    assert sorted(alone.test_x[:][:, 0].tolist()) == pytest.approx(sorted(held[:, 0])) and len(alone.train_x) == 30
    np.savez(tmp_path / "set.npz", x=X, y=Y, val_x=held, test_x=test, test_y=Y[:9])
    with pytest.raises(DataError, match="y and val_y are not targets of one kind"):
        load_data(str(tmp_path / "set.npz"))


def test_channels_that_come_last_are_moved_pixel_by_pixel(tmp_path):
    x = RANDOM.integers(0, 256, (30, 4, 6, 3), dtype=np.uint8)
    data = load_data(saved(tmp_path / "set.npz", x=x, y=np.arange(30)))
    assert np.array_equal((data.train_x * 255).round().numpy(), x.transpose(0, 3, 1, 2)[data.train_y.numpy()])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": X}, "holds no inputs 'x', but z"),
        ({"x": X[:, 0]}, r"shape \(30,\), not \(examples"),
        ({"x": X, "y": Y[:4]}, "4 targets, of 30 inputs"),
        ({"x": X, "test_x": X[:, :2]}, r"float64 of shape \(30, 4\), but test_x float64 of shape \(30, 2\)"),
        ({"x": np.where(X[3, 1] == X, np.nan, X)}, "NaN or infinite numbers, the first in row 3"),
        ({"x": X.astype(str)}, "holds no numbers: number the classes"),
        ({"x": np.array([{}])}, "not a readable"),
        ({"x": X, "y": np.where(Y == 0, np.inf, Y)}, "targets hold NaN or infinite"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, arrays, message):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_data(str(tmp_path / "set.npz"))


@pytest.mark.parametrize("ending", [".npy", ".npz", ".safetensors"])
def test_damaged_files_are_one_error(tmp_path, ending):
    path = tmp_path / f"set{ending}"
    path.write_bytes(b"\x93NUMPY\x01 torn")
    with pytest.raises(DataError, match=f"not a readable {ending} file"):
        load_data(str(path))


def test_what_is_damaged_inside_is_one_error_too(tmp_path):
    np.savez_compressed(tmp_path / "packed.npz", x=X)
    packed = bytearray((tmp_path / "packed.npz").read_bytes())
    packed[30 + sum(struct.unpack("<HH", packed[26:30]))] |= 7  # a kind of block that deflate does not have
    (tmp_path / "packed.npz").write_bytes(packed)
    np.save(tmp_path / "text.npy", X)
    (tmp_path / "text.npy").write_bytes((tmp_path / "text.npy").read_bytes().replace(b"(30", b"((("))
    for name in ("packed.npz", "text.npy"):
        with pytest.raises(DataError, match=f"{name}' is not a readable"):
            load_data(str(tmp_path / name))


def test_an_archive_that_inflates_to_far_more_than_it_has_is_refused_and_one_of_pictures_read(tmp_path, monkeypatch):
    monkeypatch.setattr("pyro_bc.app.arrays._INFLATED", 1000)
    for value, is_read in ((0, False), (np.random.default_rng(0).integers(0, 256, (200, 8, 8)), True)):
        np.savez_compressed(tmp_path / "set.npz", x=np.zeros((200, 8, 8), np.uint8) + np.uint8(value))
        if is_read:
            assert load_data(str(tmp_path / "set.npz")).picture_shape == (1, 8, 8)
            continue
        with pytest.raises(DataError, match=r"inflates to far more than it has; numpy\.savez writes"):
            load_data(str(tmp_path / "set.npz"))
