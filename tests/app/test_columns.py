"""Tables become numbers in their units: which column is the target, what texts become, and each refusal."""

import sys

import pandas
import pytest
import torch

from pyro_bc.app.own_data import load_data
from pyro_bc.errors import DataError, UsageError

FRAME = pandas.DataFrame(
    {
        "size": [1.5, 2.5, -3.0, 40.0] * 10,
        "colour": ["red", "green", "blue", "red"] * 10,
        "new": [True, False, False, True] * 10,
        "kind": ["a", "b", "a", "b"] * 10,
        "price": [10.25, 20.0, 30.0, 40.0] * 10,
    }
)


def table(path, frame=FRAME, **options):
    frame.to_csv(path, index=False, **options)
    return str(path)


def test_numbers_stay_and_texts_become_columns_of_their_own(tmp_path):
    data = load_data(table(tmp_path / "set.csv"))
    assert data.columns == ("size", "colour=blue", "colour=green", "colour=red", "new", "kind=b")
    assert data.classes == 0 and data.train_y.dtype == torch.float32 and type(data.likelihood).__name__ == "Normal"
    want = {10.25: [1.5, 0, 0, 1, 1, 0], 20: [2.5, 0, 1, 0, 0, 1], 30: [-3, 1, 0, 0, 0, 0], 40: [40, 0, 0, 1, 1, 1]}
    for x, y in ((data.train_x, data.train_y), (data.test_x, data.test_y)):
        assert x.tolist() == [want[price] for price in y.tolist()]
    assert len(data.train_x) == 36 and len(data.test_x) == 4


@pytest.mark.parametrize("separator", [";", "\t"])
def test_separators_are_found(tmp_path, separator):
    data = load_data(table(tmp_path / "set.csv", sep=separator))
    assert len(data.columns) == 6


def test_the_target_is_named_or_called_so_or_last(tmp_path):
    path = table(tmp_path / "set.csv")
    by_name = load_data(path, target="colour")
    assert by_name.class_names == ("blue", "green", "red") and by_name.classes == 3 and "price" in by_name.columns
    called = load_data(table(tmp_path / "called.csv", FRAME.rename(columns={"kind": "Class"})))
    assert called.class_names == ("a", "b") and "price" in called.columns
    assert by_name.what.endswith(" and the target colour") and called.what.endswith(" and the target Class")
    numbered = load_data(table(tmp_path / "numbered.csv", FRAME.assign(y=[3, 5, 3, 9] * 10)))
    assert numbered.class_names == ("3", "5", "9") and numbered.train_y.max() == 2
    counted = load_data(table(tmp_path / "counted.csv", FRAME.assign(y=[0, 1, 2, 1] * 10)))
    assert counted.class_names == () and counted.classes == 3
    assert load_data(str(tmp_path / "numbered.csv"), likelihood="normal").train_y.max() == 9


@pytest.mark.parametrize(
    ("frame", "options", "message"),
    [
        (FRAME.assign(size=FRAME["size"].where(FRAME["size"] > 0)), {}, "10 of 40 values of column 'size'.*in row 3"),
        (FRAME.assign(colour=[f"c{i}" for i in range(40)]), {"target": "price"}, None),
        (pandas.concat([FRAME] * 3).assign(colour=[f"c{i}" for i in range(120)]), {}, "120 different texts"),
        (FRAME, {"target": "weight"}, "no column 'weight'; it has size, colour"),
        (FRAME, {"target": "colour", "likelihood": "normal"}, "holds texts, such as 'red', not numbers"),
        (FRAME.assign(size=1e9 + FRAME["size"]), {}, "cannot tell the numbers of column 'size' apart"),
        (FRAME.assign(size=FRAME["size"] * float("inf")), {}, "infinite"),
        (FRAME[["price"]], {}, "40 rows of 1 columns"),
        (FRAME.rename(columns={"size": "Unnamed: 0"}), {}, "column 1 has no name in the first line"),
        (FRAME.assign(size=pandas.date_range("2020-01-01", periods=40)), {}, "'size' holds dates or times"),
        (FRAME.assign(size=["2020-01-01 10:00", "2021-02-03 00:00"] * 20), {}, "'size' holds dates or times"),
        (FRAME[["size", "price"]].set_axis(["1.5", "10.25"], axis=1), {}, "give the columns names"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, frame, options, message):
    path = table(tmp_path / "set.csv", frame)
    if message is None:
        assert len(load_data(path, **options).columns) == 43
        return
    with pytest.raises(DataError, match=message):
        load_data(path, **options)


def test_columns_of_texts_are_those_of_another_table_where_they_are_known_from_there(tmp_path):
    known = dict(load_data(table(tmp_path / "first.csv")).categories)
    assert known == {"colour": ("blue", "green", "red"), "kind": ("a", "b")}
    some = FRAME[FRAME["colour"] != "blue"].assign(kind="b")
    data = load_data(table(tmp_path / "some.csv", some), categories=known)
    assert data.columns == ("size", "colour=blue", "colour=green", "colour=red", "new", "kind=b")
    assert data.train_x[:, 1].tolist() == [0] * len(data.train_x) and data.train_x[:, 5].tolist() == [1] * 27
    # Of two texts the first is no column: another in its place would be taken for it.
    other = table(tmp_path / "other.csv", FRAME.replace({"kind": {"a": "0"}}))
    assert load_data(other).columns == load_data(table(tmp_path / "first.csv")).columns
    with pytest.raises(DataError, match=r"column 'kind' holds '0', which the table of the run had not: it had a, b"):
        load_data(other, categories=known)


def test_parquet_is_read_or_its_package_named(tmp_path, monkeypatch):
    path = tmp_path / "set.parquet"
    path.write_bytes(b"PAR1")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(DataError, match=r"pip install 'pyro-bc\[parquet\]'"):
            load_data(str(path))
    pytest.importorskip("pyarrow", reason="Parquet needs the extra parquet: pip install -e '.[parquet]'")
    with pytest.raises(DataError, match="not a readable"):
        load_data(str(path))
    FRAME.to_parquet(path)
    for limit, said in (
        ("_MOST_CELLS", "holds [0-9,]+ values; at most 8 are read"),
        ("_MOST_BYTES", "inflates to more"),
    ):
        with monkeypatch.context() as patch, pytest.raises(DataError, match=said):
            patch.setattr(f"pyro_bc.app.columns.{limit}", 8)
            load_data(str(path))
    data = load_data(str(path))
    assert data.columns == ("size", "colour=blue", "colour=green", "colour=red", "new", "kind=b")


def test_options_of_other_data_are_refused(tmp_path):
    path = table(tmp_path / "set.csv")
    with pytest.raises(UsageError, match="--picture-size is for a folder of pictures"):
        load_data(path, picture_size=8)
    with pytest.raises(UsageError, match="--target is for a table"):
        load_data("digits", target="price")
