"""Data sets have the stated sizes and ranges; every way in which a file can be wrong is one clear error."""

import tarfile

import pytest
import torch

from pyro_bc.app.datasets import Dataset, load_dataset
from pyro_bc.app.idx import FILES
from pyro_bc.data.augment import Affine, ShiftAndFlip
from pyro_bc.data.batches import Batches
from pyro_bc.errors import DataError, UsageError


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
    assert [len(a) for a, _ in Batches(x, x, 3, shuffle=False)] == [3, 3, 4] and len(Batches(x, x, 3)) == 3
    assert [len(a) for a, _ in Batches(x, x, 4)] == [4, 4, 2] and len(Batches(x, x, 1)) == 10


def test_mnist_is_read_from_the_original_files(mnist_folder, monkeypatch):
    data = load_dataset("mnist", mnist_folder)
    assert data.train_x.shape == (60_000, 1, 28, 28) and data.test_x.shape == (10_000, 1, 28, 28)
    assert data.train_y[:5].tolist() == [5, 0, 4, 1, 9] and data.test_y[:5].tolist() == [7, 2, 1, 0, 4]
    assert data.train_x.max() == 1 and data.train_x.mean().item() == pytest.approx(0.1307, abs=1e-4)
    monkeypatch.setenv("PYRO_BC_DATA", str(mnist_folder.parent))  # the folder above it is found by name
    assert torch.equal(load_dataset("mnist").test_y, data.test_y)


def test_unknown_names_missing_folders_and_files_and_damaged_ones(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="digits, mnist, fashion-mnist"):
        load_dataset("mnist2")
    with pytest.raises(DataError, match="does not exist"):
        load_dataset("mnist", tmp_path / "none")
    with pytest.raises(DataError, match=r"does not hold train-images-idx3-ubyte\.gz"):
        load_dataset("mnist", tmp_path)
    monkeypatch.setenv("PYRO_BC_DATA", str(tmp_path))
    with pytest.raises(DataError, match="does not hold"):
        load_dataset("fashion-mnist")
    for file in FILES:
        (tmp_path / f"{file}.gz").write_bytes(b"x")
    with pytest.raises(DataError, match="not a readable IDX file"):
        load_dataset("mnist", tmp_path)


def test_a_download_that_fails_names_both_ways_out(monkeypatch):
    import pooch

    def fail(*args, **options):
        raise OSError("Name or service not known")

    monkeypatch.delenv("PYRO_BC_DATA", raising=False)
    monkeypatch.setattr(pooch, "retrieve", fail)
    with pytest.raises(DataError, match=r"Name or service not known.*--data-dir or \$PYRO_BC_DATA"):
        load_dataset("mnist")


def test_the_copy_of_cifar_10_is_named_so_and_mixes_its_classes(cifar_folder, tmp_path):
    """Of the archive every tenth picture: the whole takes a quarter of a minute."""
    with (
        tarfile.open(cifar_folder / "cifar10-jpeg.tar.xz") as whole,
        tarfile.open(tmp_path / "cifar10-jpeg.tar.xz", "w:xz", preset=0) as some,
    ):
        pictures = (member for member in whole if member.name.endswith(".jpg"))
        for number, member in enumerate(pictures):
            if number % 10 == 0:
                some.addfile(member, whole.extractfile(member))
    assert number == 59_999
    data = load_dataset("cifar-10-jpeg", tmp_path)
    assert data.name == "CIFAR-10 (JPEG copy)" and data.held_out == 500
    assert data.train_x.shape == (5000, 3, 32, 32) and data.test_x.shape == (1000, 3, 32, 32)
    assert torch.bincount(data.train_y).tolist() == [500] * 10 and torch.bincount(data.test_y).tolist() == [100] * 10
    assert (torch.bincount(data.development().test_y) - 50).abs().max() < 25
    # The published means of CIFAR-10's channels: the copy is of those pictures.
    means = data.train_x.mean((0, 2, 3)).tolist()
    assert means == pytest.approx([0.4914, 0.4822, 0.4465], abs=6e-3)


def test_cifar_10_is_found_in_either_format_or_named_as_missing(tmp_path, monkeypatch):
    from app.test_cifar import binary_batches, python_batches, unpack

    monkeypatch.delenv("PYRO_BC_DATA", raising=False)
    found = [load_dataset("cifar-10", unpack(tmp_path / "py", python_batches()))]
    found.append(load_dataset("cifar-10", unpack(tmp_path / "bin" / "cifar-10", binary_batches()).parent))
    assert torch.equal(found[0].train_x, found[1].train_x) and found[0].name == "CIFAR-10"
    assert found[0].train_x.max() <= 1 and found[0].train_y.dtype == torch.int64
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"does not hold cifar-10-python\.tar\.gz"):
        load_dataset("cifar-10", tmp_path / "empty")
    for folder in (tmp_path / "empty", None):
        with pytest.raises(DataError, match=r"holds cifar10-jpeg\.tar\.xz"):
            load_dataset("cifar-10-jpeg", folder)
    with pytest.raises(DataError, match="does not exist"):
        load_dataset("cifar-10-jpeg", tmp_path / "none")


def test_shifted_pictures_are_the_picture_moved_with_black_behind_it():
    x = torch.rand(300, 2, 5, 4) + 0.1
    moved = ShiftAndFlip(shift=2)(x)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    places = [padded[:, :, r : r + 5, c : c + 4] for r in range(5) for c in range(5)]
    equal = torch.stack([(place == moved).flatten(1).all(1) for place in places])
    assert torch.equal(equal.sum(0), torch.ones(300, dtype=torch.int64))  # each is exactly one of the 25
    assert equal.sum(1).min() >= 1  # and every one of them occurs
    assert torch.equal(ShiftAndFlip()(x), x)
    flipped = ShiftAndFlip(flip=True)(x)
    same, mirrored = ((flipped == y).flatten(1).all(1) for y in (x, x.flip(3)))
    assert torch.equal(same, ~mirrored) and 100 < int(same.sum()) < 200


def test_only_shuffled_batches_are_augmented():
    x = torch.zeros(6, 1, 2, 2)
    for shuffle, expected in ((True, 1.0), (False, 0.0)):
        batches = Batches(x, x, 4, shuffle, augment=lambda batch: batch + 1)
        assert all(a.unique().tolist() == [expected] for a, _ in batches)


def test_a_limited_set_keeps_its_test_part():
    data = load_dataset("digits")
    few = data.limited(20)
    assert isinstance(few, Dataset) and torch.equal(few.train_y, data.train_y[:20])
    assert torch.equal(few.test_x, data.test_x)
    for examples in (0, 1438):
        with pytest.raises(DataError, match="1,437 examples"):
            data.limited(examples)


def test_affine_pictures_keep_their_ink_and_move_it():
    x = torch.zeros(200, 2, 28, 28)
    x[:, :, 12:16, 12:16] = 1.0
    moved = Affine()(x)
    assert moved.shape == x.shape and moved.min() >= 0 and moved.max() <= 1
    ink = moved.sum((1, 2, 3)) / x.sum((1, 2, 3))
    assert ink.mean().item() == pytest.approx(1, abs=0.03) and ink.min() > 0.75  # scaled by 8 % either way, twice
    rows = torch.arange(28.0)[:, None]
    centre = (moved[:, 0] * rows).sum((1, 2)) / moved[:, 0].sum((1, 2)) - 13.5
    assert centre.abs().max() < 1.7 and centre.std().item() == pytest.approx(1.5 / 3**0.5, abs=0.15)
    assert torch.equal(moved[:, 0], moved[:, 1])
    assert torch.allclose(Affine(0, 0, 0, 0)(x), x, atol=1e-5)


def test_affine_rotates_about_the_centre():
    x = torch.zeros(1, 1, 29, 29)
    x[0, 0, 14, 4:25] = 1.0  # a horizontal line
    found = set()
    for _ in range(40):
        turned = Affine(90.0, 0, 0, 0)(x)[0, 0]
        assert turned[14, 14] > 0.5
        found.add(bool(turned.sum(0).count_nonzero() < 15))
    assert found == {True, False}  # steep ones and flat ones


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:77"])
def test_a_device_that_cannot_be_used_is_named(device):
    with pytest.raises(UsageError, match=f"the device '{device}' cannot be used: "):
        load_dataset("digits").to(device)
