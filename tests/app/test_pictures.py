"""Pictures by class: every pixel and class where the folders say, in memory or decoded when asked for; each refusal."""

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_bc.app import examples, pictures
from pyro_bc.app.own_data import load_data
from pyro_bc.data import Streamed
from pyro_bc.errors import DataError


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path)


def grey(root, classes=("a", "b", "c"), count=4, size=(3, 5)):
    for number, name in enumerate(classes):
        for i in range(count):
            save(root / name / f"{i}.png", np.full(size, 20 * number + i))
    return root


def cut(path):
    save(path, np.random.default_rng(0).integers(0, 256, (3, 5)))
    path.write_bytes(path.read_bytes()[:50])


def test_pixels_and_classes_are_where_the_folders_say(tmp_path):
    data = load_data(str(grey(tmp_path / "pics")))
    assert data.picture_shape == (1, 3, 5) and data.classes == 3 and data.class_names == ("a", "b", "c")
    assert data.what == "grey pictures of 3 x 5 pixels, in [0, 1]" and len(data.train_x) + len(data.test_x) == 12
    for x, y in ((data.train_x, data.train_y), (data.test_x, data.test_y)):
        values = (x * 255).round()
        assert torch.equal(values.amax((1, 2, 3)), values.amin((1, 2, 3)))
        assert torch.equal(values[:, 0, 0, 0] // 20, y.float())


def test_one_picture_of_colour_makes_all_so_and_channels_come_first(tmp_path):
    root = grey(tmp_path)
    save(root / "b" / "0.png", np.full((3, 5, 3), (10, 20, 30)))
    data = load_data(str(root))
    assert data.picture_shape == (3, 3, 5) and data.what.startswith("colour")
    found = torch.cat([data.train_x, data.test_x])[:, :, 0, 0].mul(255).round()
    assert (10, 20, 30) in {tuple(row.tolist()) for row in found} and (40, 40, 40) in {tuple(r.tolist()) for r in found}


def test_large_sets_are_decoded_when_asked_for_and_are_the_same(tmp_path, monkeypatch):
    root = grey(tmp_path, count=9)
    whole = load_data(str(root))
    monkeypatch.setattr(examples, "_IN_MEMORY", 10)
    monkeypatch.setattr(examples, "_KNOWN_BY", 2)
    seen = []
    decode = pictures._picture
    monkeypatch.setattr(pictures, "_picture", lambda path, shape: seen.append(path) or decode(path, shape))
    streamed = load_data(str(root))
    assert isinstance(streamed.train_x, Streamed) and len(seen) == 2  # by which the set is known again
    seen.clear()
    assert torch.equal(streamed.train_x[:4], whole.train_x[:4]) and len(seen) == 4
    assert torch.equal(streamed.test_x[:], whole.test_x) and torch.equal(streamed.train_y, whole.train_y)
    assert torch.equal(torch.cat(list(streamed.development().test_x.split(2))), whole.development().test_x)
    streamed.train_x.read.args[0][0].write_bytes(b"torn")
    with pytest.raises(DataError, match="not a readable picture"):
        list(streamed.train_x.split(100))


def test_parts_in_folders_of_their_own(tmp_path):
    root = tmp_path / "parts"
    for part, count in (("train", 5), ("val", 2), ("test", 3)):
        grey(root / part, count=count)
    data = load_data(str(root))
    assert (len(data.train_x), len(data.test_x), data.held_out, data.test_part) == (21, 9, 6, "test set")
    assert len(data.development().test_x) == 6
    (root / "test").rename(root / "other")
    assert (len(load_data(str(root)).train_x), len(load_data(str(root)).test_x)) == (15, 6)  # measured on val
    grey(root / "val", classes=("d",))
    with pytest.raises(DataError, match="a class 'd' that the training pictures do not have"):
        load_data(str(root))


def test_pictures_of_different_sizes_are_scaled_and_their_middle_cut_out(tmp_path):
    root = grey(tmp_path)
    save(root / "c" / "9.png", np.tile([0] * 4 + [200] * 4 + [0] * 4, (4, 1)))  # 4 high, 12 wide
    with pytest.raises(
        DataError, match=r"different sizes: '.*0\.png' has 3 x 5 pixels, '.*9\.png' 4 x 12.*--picture-size"
    ):
        load_data(str(root))
    data = load_data(str(root), picture_size=4)
    assert data.picture_shape == (1, 4, 4) and "middle cut out" in data.what
    assert max(float(x.min()) for x in torch.cat([data.train_x, data.test_x])) == pytest.approx(200 / 255)
    assert load_data(str(root), input_shape=(3, 2, 2)).picture_shape == (3, 2, 2)  # as a network has it


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "a" / "0.png").write_bytes(b"no picture"), r"a/0\.png' is not a readable picture"),
        (lambda root: cut(root / "a" / "0.png"), "not a readable"),
        (lambda root: save(root / "loose.png", [[1]]), "lies in no folder of a class"),
        (lambda root: (root / "d").mkdir(), r"d' holds no pictures"),
        (lambda root: Image.new("I;16", (5, 3)).save(root / "a" / "5.png"), "more than 8 bits"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, message):
    root = grey(tmp_path)
    change(root)
    with pytest.raises(DataError, match=message):
        load_data(str(root))


def test_one_class_and_huge_pictures_are_refused(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="two classes or more"):
        load_data(str(grey(tmp_path / "one", classes=("a",))))
    monkeypatch.setattr(pictures, "_MOST_PIXELS", 14)
    with pytest.raises(DataError, match=r"5 x 3 pixels; at most 14"):
        load_data(str(grey(tmp_path / "huge")))


def test_a_program_that_is_called_a_picture_is_none(tmp_path):
    (grey(tmp_path) / "a" / "0.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 3\n%%EndComments\n")
    with pytest.raises(DataError, match=r"a/0\.png' is not a readable picture"):
        load_data(str(tmp_path))


def test_a_long_picture_is_not_scaled_to_more_pixels_than_are_read(tmp_path, monkeypatch):
    root = grey(tmp_path)
    save(root / "a" / "0.png", [[1] * 60])
    monkeypatch.setattr(pictures, "_MOST_PIXELS", 200)
    with pytest.raises(DataError, match=r"of 1 x 60 pixels is too long to be brought to 4 x 4"):
        load_data(str(root), picture_size=4)
