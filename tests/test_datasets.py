"""Data sets have the stated sizes and ranges; every way in which a file can be wrong is one clear error."""

import pytest
import torch

from pyro_bc.datasets import Batches, load_dataset
from pyro_bc.errors import DataError


def test_digits_are_pictures_split_by_class():
    data = load_dataset("digits")
    assert data.train_x.shape == (1437, 1, 8, 8) and data.test_x.shape == (360, 1, 8, 8)
    assert data.train_x.min() == 0 and data.train_x.max() == 1
    assert (torch.bincount(data.test_y) - 36).abs().max() <= 1
    train = {tuple(x.flatten().tolist()) for x in data.train_x}
    assert not any(tuple(x.flatten().tolist()) in train for x in data.test_x)


def test_development_never_touches_the_test_set():
    data = load_dataset("digits")
    held = data.development()
    assert torch.equal(torch.cat([held.train_x, held.test_x]), data.train_x) and len(held.test_x) == 180


def test_batches_cover_the_set_once_in_an_order_of_torchs_generator():
    x = torch.arange(10.0)
    torch.manual_seed(1)
    first = torch.cat([a for a, _ in Batches(x, x, 3)])
    torch.manual_seed(1)
    assert torch.equal(first, torch.cat([a for a, _ in Batches(x, x, 3)])) and torch.equal(first.sort()[0], x)
    assert not torch.equal(first, x)
    assert [len(a) for a, _ in Batches(x, x, 3, shuffle=False)] == [3, 3, 3, 1] and len(Batches(x, x, 3)) == 4


def test_mnist_is_read_from_the_original_files(mnist_folder, monkeypatch):
    data = load_dataset("mnist", mnist_folder)
    assert data.train_x.shape == (60_000, 1, 28, 28) and data.test_x.shape == (10_000, 1, 28, 28)
    assert data.train_y[:5].tolist() == [5, 0, 4, 1, 9] and data.test_y[:5].tolist() == [7, 2, 1, 0, 4]
    assert data.train_x.max() == 1 and data.train_x.mean().item() == pytest.approx(0.1307, abs=1e-4)
    monkeypatch.setenv("PYRO_BC_DATA", str(mnist_folder.parent))  # the folder above it is found by name
    assert torch.equal(load_dataset("mnist").test_y, data.test_y)


def test_unknown_names_missing_folders_and_files_and_wrong_checksums(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="digits, mnist, fashion-mnist"):
        load_dataset("mnist2")
    with pytest.raises(DataError, match="does not exist"):
        load_dataset("mnist", tmp_path / "none")
    with pytest.raises(DataError, match=r"does not hold train-images-idx3-ubyte\.gz"):
        load_dataset("mnist", tmp_path)
    monkeypatch.setenv("PYRO_BC_DATA", str(tmp_path))
    with pytest.raises(DataError, match="does not hold"):
        load_dataset("fashion-mnist")
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"x")
    with pytest.raises(DataError, match="md5 9dd4e461268c8034f5c8564e155c67a6, not f68b3c2dcbeaaa9fbdd348bbdeb94873"):
        load_dataset("mnist", tmp_path)


def test_a_download_that_fails_names_both_ways_out(monkeypatch):
    import pooch

    def fail(*args, **options):
        raise OSError("Name or service not known")

    monkeypatch.delenv("PYRO_BC_DATA", raising=False)
    monkeypatch.setattr(pooch, "retrieve", fail)
    with pytest.raises(DataError, match=r"Name or service not known.*--data-dir or \$PYRO_BC_DATA"):
        load_dataset("mnist")
