"""The range coder's round trips, and code lengths close to the entropy."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_bc.codec import Decoder, Encoder
from pyro_bc.errors import CompressedFileError

SECTION = st.one_of(
    st.tuples(st.just("uniform"), st.integers(0, 24), st.integers(0, 40), st.integers(0, 2**31)),
    st.tuples(st.just("table"), st.integers(1, 300), st.integers(1, 60), st.integers(0, 2**31)),
)


@settings(deadline=None, max_examples=150)
@given(st.lists(SECTION, min_size=1, max_size=5))
def test_sections_of_all_kinds_come_back_in_order(sections):
    encoder, expected = Encoder(), []
    for kind, size, count, seed in sections:
        rng = np.random.default_rng(seed)
        if kind == "uniform":
            symbols = rng.integers(0, 1 << size, count)
            encoder.uniform(symbols, size)
        else:
            symbols = np.minimum(rng.geometric(rng.uniform(0.01, 1), count) - 1, size - 1)
            encoder.table(symbols, size)
        expected.append(symbols)
    decoder = Decoder(encoder.data())
    for (kind, size, count, _), symbols in zip(sections, expected, strict=True):
        decoded = decoder.uniform(count, size) if kind == "uniform" else decoder.table(count, size)
        np.testing.assert_array_equal(decoded, symbols)


@pytest.mark.parametrize("spread", [0.4, 3.0, 40.0])
def test_code_length_is_close_to_of_the_entropy(spread):
    symbols = np.rint(np.random.default_rng(0).laplace(0, spread, 20_000)).astype(int)
    symbols -= symbols.min()
    size = symbols.max() + 1
    encoder = Encoder()
    encoder.table(symbols, size)
    p = np.bincount(symbols) / len(symbols)
    entropy = -(p[p > 0] * np.log2(p[p > 0])).sum()
    table, words = 5 * size, 64
    assert 8 * len(encoder.data()) <= len(symbols) * (entropy + 0.012) + table + words
    decoder = Decoder(encoder.data())
    decoder.table(len(symbols), size)
    assert decoder.take_bits() == pytest.approx(8 * len(encoder.data()), abs=64)
    assert decoder.take_bits() == 0


@pytest.mark.parametrize("size", [0, 1 << 17])
def test_tables_of_impossible_size_are_refused(size):
    with pytest.raises(CompressedFileError, match="symbols"):
        Decoder(b"\1\2\3\4").table(3, size)


def test_a_table_without_symbols_is_refused():
    encoder = Encoder()
    encoder.uniform(np.zeros(7, dtype=int), 5)
    with pytest.raises(CompressedFileError, match="without symbols"):
        Decoder(encoder.data()).table(3, 7)


def test_many_symbols_need_little_memory_beside_them():
    rng = np.random.default_rng(0)
    codes = rng.integers(-20, 20, 3 << 20) + rng.integers(-20, 20, 3 << 20)
    held = codes.nbytes
    for method, argument in (("table", 79), ("uniform", 7), ("uniform", 20)):
        encoder = Encoder()
        tracemalloc.start()
        getattr(encoder, method)(codes, argument, -40)
        assert tracemalloc.get_traced_memory()[1] < 1.2 * held
        tracemalloc.stop()
        data = encoder.data()
        tracemalloc.start()
        decoded = getattr(Decoder(data), method)(len(codes), argument, -40)
        assert tracemalloc.get_traced_memory()[1] < 2.2 * held
        tracemalloc.stop()
        assert np.array_equal(decoded, codes)
