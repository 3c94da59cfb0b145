"""Raw idx files whatever their packing: of a published set what they hold decides, a user's own are read by a path."""

import gzip
import struct

import numpy as np
import pytest
import torch

from pyro_bc.app import datasets
from pyro_bc.app.datasets import load_dataset
from pyro_bc.app.idx import FILES, Published, read_idx
from pyro_bc.app.own_data import load_data
from pyro_bc.errors import DataError

RANDOM = np.random.default_rng(0)
COUNTS = ((6,) * 10, (2,) * 10)


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def parts():
    for count in (60, 20):
        yield RANDOM.integers(0, 200, (count, 28, 28), dtype=np.uint8)
        yield (np.arange(count) % 10).astype(np.uint8)


@pytest.mark.parametrize("name", ["{}.gz", "{}", "dotted"])
def test_packed_anew_or_unpacked_files_are_read_and_others_refused(tmp_path, monkeypatch, name):
    arrays = list(parts())
    means = tuple(arrays[i].mean() / 255 for i in (0, 2))
    published = Published("http://where.it.is/", ("0" * 32,) * 4, COUNTS, means)
    monkeypatch.setitem(datasets._DATASETS, "made-up", datasets._idx_set("made-up", published))
    paths = [tmp_path / (file.replace("-idx", ".idx") if name == "dotted" else name.format(file)) for file in FILES]
    for path, array in zip(paths, arrays, strict=True):
        path.write_bytes(gzip.compress(idx(array), 1) if path.suffix == ".gz" else idx(array))
    data = load_dataset("made-up", tmp_path)
    assert (
        np.array_equal((data.train_x[:, 0] * 255).round().numpy(), arrays[0])
        and data.test_y.tolist() == [*range(10)] * 2
    )
    own = load_data(str(tmp_path))  # the same by its path, in a mixed order
    assert own.is_own and torch.equal(own.test_x, data.test_x) and own.classes == 10
    assert torch.equal(own.train_x.flatten(1).sum(1).sort()[0], data.train_x.flatten(1).sum(1).sort()[0])
    for wrong in (arrays[0] + 55, arrays[0][:59]):  # another set of the same shape; one that is cut
        paths[0].write_bytes(idx(wrong))
        with pytest.raises(DataError, match=r"damaged or not those of made-up.*http://where\.it\.is/.*--data"):
            load_dataset("made-up", tmp_path)


def test_a_users_own_files_may_lack_a_test_part_but_not_their_classes(tmp_path):
    x, y, *_ = parts()
    (tmp_path / "mine-train-images-idx3-ubyte").write_bytes(idx(x[:, :5, :4]))
    with pytest.raises(DataError, match="no train_y beside"):
        load_data(str(tmp_path))
    (tmp_path / "mine-train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(y)))
    data = load_data(str(tmp_path))
    assert data.picture_shape == (1, 5, 4) and (len(data.train_x), len(data.test_x)) == (54, 6)
    (tmp_path / "mine-train-labels-idx1-ubyte").write_bytes(idx(y))
    with pytest.raises(DataError, match="several files of train labels"):
        load_data(str(tmp_path))


def test_a_repacked_mnist_is_mnist(tmp_path, mnist_folder):
    for file in FILES:
        (tmp_path / f"{file}.gz").symlink_to(mnist_folder / f"{file}.gz")
    labels = gzip.decompress((mnist_folder / f"{FILES[3]}.gz").read_bytes())
    (tmp_path / f"{FILES[3]}.gz").unlink()
    (tmp_path / FILES[3]).write_bytes(labels)
    assert load_dataset("mnist", tmp_path).test_y[:5].tolist() == [7, 2, 1, 0, 4]
    with pytest.raises(DataError, match="not those of fashion-mnist"):
        load_dataset("fashion-mnist", tmp_path)


@pytest.mark.parametrize("data", [b"", b"\x1f\x8b torn", b"\0\0\x0d\x01\0\0\0\x01abcd", b"\0\0\x08\x01\0\0\0\x09abcd"])
def test_what_is_no_idx_file_is_refused(tmp_path, data):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(DataError, match="not a readable IDX file"):
        read_idx(tmp_path / "file")


@pytest.mark.parametrize(
    ("sizes", "count", "message"),
    [((4,), 5, "holds more than the 4 bytes"), ((4,), 3, "holds less than"), ((1 << 16, 1 << 16), 3, "at most")],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_idx_file_holds_as_much_as_it_says_however_much_it_inflates_to(tmp_path, sizes, count, message, pack):
    data = bytes((0, 0, 8, len(sizes))) + b"".join(size.to_bytes(4, "big") for size in sizes) + bytes(count)
    (tmp_path / "file").write_bytes(pack(data))
    with pytest.raises(DataError, match=message):
        read_idx(tmp_path / "file")
    data = bytes((0, 0, 8, 2)) + b"".join(size.to_bytes(4, "big") for size in (0, 28))
    (tmp_path / "file").write_bytes(pack(data))
    assert read_idx(tmp_path / "file").shape == (0, 28)
