"""Pickles of arrays are read as pickle reads them, and whatever else one asks for is an error."""

import io
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_bc.app.pickled import read_pickle

PLAIN = {
    b"data": np.arange(12, dtype=np.uint8).reshape(3, 4),
    "turned": np.asfortranarray(np.arange(6).reshape(2, 3)),
    b"labels": [1, 2, 300, 70000, -5],
    b"more": (None, True, False, b"bytes", "text", (), (1,), [], {}, [[1, 2], [3]]),
}


@pytest.mark.parametrize("protocol", range(5))
def test_plain_values_and_arrays_are_what_pickle_reads(protocol):
    read = read_pickle(pickle.dumps(PLAIN, protocol))
    assert read.keys() == PLAIN.keys() and read[b"labels"] == PLAIN[b"labels"]
    for name in (b"data", "turned"):
        assert np.array_equal(read[name], PLAIN[name]) and read[name].dtype == PLAIN[name].dtype
    assert read[b"more"] == PLAIN[b"more"]


def test_what_python_2_wrote_is_bytes():
    written = b"\x80\x02}q\x00U\x04dataU\x03\xff\x00as."
    assert read_pickle(written) == {b"data": b"\xff\x00a"} == pickle.loads(written, encoding="bytes")


def word(text):
    return b"\x8c" + bytes([len(text)]) + text.encode()


def number(value):
    return b"J" + struct.pack("<i", value)


def name(module, of):
    return word(module) + word(of) + b"\x93"


def dtype(code):
    return name("numpy", "dtype") + word(code) + b"\x89\x88\x87R"


def array(kind, count, raw):
    empty = name("numpy.core.multiarray", "_reconstruct") + name("numpy", "ndarray") + number(0) + b"\x85C\x01b\x87R"
    shape = number(1) + (count if isinstance(count, bytes) else number(count)) + b"\x85"
    return empty + b"(" + shape + kind + b"\x89B" + struct.pack("<I", len(raw)) + raw + b"tb"


FIELDS = b"}" + word("f") + dtype("O8") + number(0) + b"\x86s"
STATE = b"(" + number(3) + word("|") + b"N" + word("f") + b"\x85" + FIELDS + number(8) + number(1) + number(0) + b"tb"
NESTED = b"]" * 1000 + b"a" * 999

HOSTILE = {
    "a type whose fields are pointers": array(dtype("V8") + STATE, 1, b"A" * 8),
    "fields of a type of integers": array(dtype("u1") + STATE, 8, b"A" * 8),
    "objects": array(dtype("O8"), 1, b"A" * 8),
    "fewer bytes than it says": array(dtype("u1"), 9, b"A" * 8),
    "a size beyond all": array(dtype("u1"), b"\x8a\x10" + b"\x7f" * 16, b"A" * 8),
    "a size below zero": array(dtype("u1"), -1, b"A" * 8),
    "a function": name("builtins", "exec") + word("raise SystemExit") + b"\x85R",
    "a function by its instruction": b"cos\nsystem\n" + word("ls") + b"\x85R",
    "an object of a class": b"(ios\nsystem\n",
    "a call of a number": number(3) + number(4) + b"\x85R",
    "a type built of a list": name("numpy", "dtype") + NESTED + b"\x85R",
    "a dictionary by numbers": b"}" + number(1) + number(2) + b"s",
    "a filled number": number(1) + number(2) + b"a",
    "nothing to take": b"a",
    "a pointer to nothing": b"h\x07",
    "an instruction that is none": b"\xff",
    "a codec": name("_codecs", "encode") + word("a") + word("zlib") + b"\x86R",
    "a number of many digits": b"I" + b"9" * 100_000 + b"\n",
}


@pytest.mark.parametrize("program", HOSTILE.values(), ids=HOSTILE)
def test_what_no_data_set_holds_is_an_error(program):
    with pytest.raises(ValueError):
        read_pickle(b"\x80\x04" + program + b".")
    with pytest.raises(ValueError):
        read_pickle(b"\x80\x04" + program)


def test_a_text_is_not_turned_into_bytes_over_and_over():
    text = b"X" + struct.pack("<I", 1 << 24) + b"a" * (1 << 24) + b"\x94"
    again = name("_codecs", "encode") + b"h\x00" + word("latin1") + b"\x86R0"
    with pytest.raises(ValueError):
        read_pickle(b"\x80\x04" + text + again.replace(b"R0", b"R") * 40 + b".")


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_damage_is_an_error_or_a_value(data):
    written = bytearray(pickle.dumps(PLAIN, data.draw(st.integers(0, 4))))
    for at in data.draw(st.lists(st.integers(0, len(written) - 1), min_size=1, max_size=4)):
        written[at] = data.draw(st.integers(0, 255))
    try:
        read_pickle(bytes(written))
    except ValueError:
        return
    assert io.BytesIO(written)
