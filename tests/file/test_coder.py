"""The range coder's round trips, and code lengths close to the entropy."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_bc.errors import CompressedFileError
from pyro_bc.file.coder import Decoder, Encoder, adaptive_bits

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


INTEGERS = st.lists(
    st.one_of(st.integers(-3, 3), st.integers(-40, 40), st.integers(-(2**25) + 1, 2**25 - 1)), min_size=1, max_size=80
)


@settings(deadline=None, max_examples=150)
@given(INTEGERS, st.integers(0, 5), st.integers(0, 2**31))
def test_adaptive_integers_come_back_between_other_sections(integers, kinds, seed):
    codes = np.array(integers)
    classes = np.random.default_rng(seed).integers(0, kinds, len(codes)) if kinds else None
    encoder = Encoder()
    encoder.uniform(np.array([5]), 4)
    encoder.adaptive(codes, classes)
    encoder.uniform(np.array([9]), 4)
    decoder = Decoder(encoder.data())
    assert decoder.uniform(1, 4).tolist() == [5]
    np.testing.assert_array_equal(decoder.adaptive(len(codes), classes), codes)
    assert decoder.uniform(1, 4).tolist() == [9]


@pytest.mark.parametrize("spread", [0.1, 0.6, 4.0])
def test_the_adaptive_code_is_shorter_than_a_table_and_close_to_the_entropy(spread):
    rng = np.random.default_rng(0)
    codes = np.rint(rng.laplace(0, spread, 2000)).astype(int)
    encoder, table = Encoder(), Encoder()
    encoder.adaptive(codes)
    table.table(codes, int(np.ptp(codes)) + 1, int(codes.min()))
    p = np.bincount(codes - codes.min()) / len(codes)
    entropy = -(p[p > 0] * np.log2(p[p > 0])).sum() * len(codes)
    decisions = min(16, np.abs(codes).max() + 1)  # each learns its probability for half a logarithm of its number
    assert 8 * len(encoder.data()) <= 1.01 * entropy + 0.5 * decisions * np.log2(len(codes)) + 32
    assert len(encoder.data()) <= len(table.data())
    decoder = Decoder(encoder.data())
    decoder.adaptive(len(codes))
    assert decoder.take_bits() == pytest.approx(adaptive_bits(codes), rel=1e-9)
    assert adaptive_bits(codes) == pytest.approx(8 * len(encoder.data()), abs=24)


def test_code_length_under_classes_is_what_the_decoder_counts():
    rng = np.random.default_rng(2)
    codes, classes = np.rint(rng.laplace(0, 3, 500)).astype(np.int64), rng.integers(0, 6, 500)
    encoder = Encoder()
    encoder.adaptive(codes, classes)
    decoder = Decoder(encoder.data())
    decoder.adaptive(len(codes), classes)
    assert decoder.take_bits() == pytest.approx(adaptive_bits(codes, classes), rel=1e-9)


def test_classes_pay_where_zeros_gather():
    rng = np.random.default_rng(0)
    classes = np.arange(3000) % 6
    codes = np.where(rng.random(3000) < 0.5 ** (1 + classes), rng.integers(1, 4, 3000), 0)
    assert adaptive_bits(codes, classes) < 0.9 * adaptive_bits(codes)
    # Classes that mean nothing cost next to nothing.
    assert adaptive_bits(codes, rng.integers(0, 6, 3000)) < 1.02 * adaptive_bits(codes)


def test_the_first_probabilities_are_those_of_the_docstring():
    codes, classes = np.array([0, 3, 0]), np.array([1, 1, 0])
    # Zero or not: 1/2; then class 1 has seen one zero, (0 + 4·1/4) / (1 + 4); then class 0, new, has the layer's 1/2.
    not_zero = [0.5, (4 * 0.25) / 5, 0.5]
    bits = -math.log2(1 - not_zero[0]) - math.log2(not_zero[1]) - math.log2(1 - not_zero[2])
    magnitude = -math.log2(0.5 * 0.5 * 0.5)  # above 1, above 2, not above 3
    assert adaptive_bits(codes, classes) == pytest.approx(bits + 1 + magnitude)


def test_an_endless_magnitude_is_refused():
    encoder = Encoder()
    encoder.adaptive(np.array([2**40]))
    with pytest.raises(CompressedFileError, match="too large"):
        Decoder(encoder.data()).adaptive(1)


def test_numbers_do_not_go_on_behind_the_data(monkeypatch):
    """Signs and digits cost a bit each, so that data have no more of them than bits: no slack is needed for that."""
    monkeypatch.setattr("pyro_bc.file.coder._SLACK", 64)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        codes = np.rint(rng.laplace(0, 10 ** rng.uniform(-1, 4), 300)).astype(np.int64)
        encoder = Encoder()
        encoder.adaptive(codes)
        assert np.array_equal(Decoder(encoder.data()).adaptive(len(codes)), codes)
    monkeypatch.setattr("pyro_bc.file.coder._SLACK", -8 * len(encoder.data()) + 5)
    with pytest.raises(CompressedFileError, match="go on where its data has ended"):
        Decoder(encoder.data()).adaptive(len(codes))
