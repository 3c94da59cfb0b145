"""CIFAR-10's archives: every pixel where the format says it is, in all three formats, and nothing is executed."""

import io
import pickle
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from pyro_bc.app.cifar import CLASSES, read_binary, read_jpeg, read_python
from pyro_bc.errors import DataError

RANDOM = np.random.default_rng(0)
BATCHES = {
    name: (RANDOM.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8), RANDOM.integers(0, 10, 4).tolist())
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
}


def python_batches(protocol=2):
    for name, (pictures, labels) in BATCHES.items():
        content = {b"data": pictures.reshape(4, 3072), b"labels": labels, b"batch_label": b"made up"}
        yield f"cifar-10-batches-py/{name}", pickle.dumps(content, protocol)


def binary_batches():
    for name, (pictures, labels) in BATCHES.items():
        records = b"".join(bytes([y]) + x.tobytes() for x, y in zip(pictures, labels, strict=True))
        yield f"cifar-10-batches-bin/{name}.bin", records


def tar(path, files, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def unpack(folder, files):
    for name, data in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def check(arrays):
    train_x, train_y, test_x, test_y = arrays
    assert np.array_equal(train_x, np.concatenate([BATCHES[f"data_batch_{n}"][0] for n in range(1, 6)]))
    assert train_y.tolist() == [y for n in range(1, 6) for y in BATCHES[f"data_batch_{n}"][1]]
    assert np.array_equal(test_x, BATCHES["test_batch"][0]) and test_y.tolist() == BATCHES["test_batch"][1]


@pytest.mark.parametrize("protocol", [0, 2])
def test_python_batches_are_read_packed_and_unpacked(tmp_path, protocol):
    files = list(python_batches(protocol))
    check(read_python(tar(tmp_path / "cifar-10-python.tar.gz", files)))
    check(read_python(unpack(tmp_path, files) / "cifar-10-batches-py"))


def test_binary_batches_are_read_packed_and_unpacked(tmp_path):
    files = list(binary_batches())
    check(read_binary(tar(tmp_path / "cifar-10-binary.tar.gz", files)))
    check(read_binary(unpack(tmp_path, files) / "cifar-10-batches-bin"))


def jpegs(per_class=3):
    for part in ("train", "test"):
        for label, name in enumerate(CLASSES):
            for number in range(per_class):
                picture = np.full((32, 32, 3), (20 * label, 80 * number, 100 if part == "train" else 200), np.uint8)
                data = io.BytesIO()
                Image.fromarray(picture).save(data, "JPEG", quality=95)
                yield f"{part}/{name}/{number:04}.jpg", data.getvalue()


def test_jpeg_files_come_in_one_fixed_mixed_order_with_their_classes(tmp_path):
    packed = read_jpeg(tar(tmp_path / "cifar10-jpeg.tar.xz", jpegs(), "w:xz"))
    unpacked = read_jpeg(unpack(tmp_path / "folder", reversed(list(jpegs()))))
    for a, b in zip(packed, unpacked, strict=True):
        assert np.array_equal(a, b)
    for x, y, blue in ((*packed[:2], 100), (*packed[2:], 200)):
        assert np.bincount(y).tolist() == [3] * 10
        assert np.abs(x[:, 0].mean((1, 2)) - 20 * y).max() < 4 and np.abs(x[:, 2].astype(int) - blue).max() < 8
        assert np.any(np.diff(y) < 0)  # not in the order of the classes
    greys = tmp_path / "grey"
    unpack(greys, jpegs())
    Image.fromarray(np.full((32, 32), 7, np.uint8)).save(greys / "train" / "cat" / "0000.jpg")
    assert read_jpeg(greys)[0].shape == (30, 3, 32, 32)


class Hostile:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def test_what_is_no_cifar_is_one_clear_error_and_never_executed(tmp_path):
    files = dict(python_batches())
    files["cifar-10-batches-py/data_batch_3"] = pickle.dumps({b"data": Hostile(), b"labels": []})
    with pytest.raises(DataError, match=r"asks for builtins\.exec"):
        read_python(unpack(tmp_path / "hostile", files.items()))
    files.pop("cifar-10-batches-py/data_batch_3")
    with pytest.raises(DataError, match="does not hold data_batch_3"):
        read_python(unpack(tmp_path / "missing", files.items()))
    binary = dict(binary_batches())
    binary["cifar-10-batches-bin/test_batch.bin"] = binary["cifar-10-batches-bin/test_batch.bin"][:-1]
    with pytest.raises(DataError, match="does not hold CIFAR-10's batches"):
        read_binary(unpack(tmp_path / "short", binary.items()))
    binary["cifar-10-batches-bin/test_batch.bin"] = bytes([10]) + bytes(3072)
    with pytest.raises(DataError, match="a class is 10"):
        read_binary(unpack(tmp_path / "labels", binary.items()))
    for labels, message in (([-1], "a class is -1"), ([3, 4], "a class for each of its pictures")):
        batch = pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": labels})
        changed = dict(python_batches()) | {"cifar-10-batches-py/test_batch": batch}
        with pytest.raises(DataError, match=message):
            read_python(unpack(tmp_path / f"labels{len(labels)}", changed.items()))
    archive = tar(tmp_path / "whole.tar.gz", python_batches())
    archive.write_bytes(archive.read_bytes()[:-2000])
    with pytest.raises(DataError, match="not a readable archive"):
        read_python(archive)
    pictures = dict(jpegs())
    with pytest.raises(DataError, match="not a readable picture"):
        read_jpeg(unpack(tmp_path / "torn", (pictures | {"train/cat/0001.jpg": b"no jpeg"}).items()))
    del pictures["test/ship/0000.jpg"], pictures["test/ship/0001.jpg"], pictures["test/ship/0002.jpg"]
    with pytest.raises(DataError, match="does not hold test/<class>"):
        read_jpeg(unpack(tmp_path / "classes", pictures.items()))


def test_pictures_of_any_size_are_looked_at_by_their_header(tmp_path):
    """A thumbnail of a kilobyte claims 400 million pixels: it is refused, and not decoded first."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side in (33, 12_000, 20_000):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
        picture = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
        folder = unpack(tmp_path / str(side), (dict(jpegs()) | {"train/cat/0001.jpg": picture}).items())
        with pytest.raises(DataError, match=r"'train/cat/0001.jpg' .*pixels"):
            read_jpeg(folder)


BYTES = np.zeros((1, 3072), np.uint8)


@pytest.mark.parametrize(
    "data,labels", [([0] * 3072, [1]), (BYTES.astype(float), [1]), (BYTES, 1), (BYTES, [[1]]), (BYTES, [1 << 70])]
)
def test_batches_of_other_types_are_none(tmp_path, data, labels):
    files = {name: pickle.dumps({b"data": data, b"labels": labels}, 2) for name, _ in python_batches()}
    with pytest.raises(DataError, match="does not hold CIFAR-10's batches"):
        read_python(unpack(tmp_path, files.items()) / "cifar-10-batches-py")
