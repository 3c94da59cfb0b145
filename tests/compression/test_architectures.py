"""Random architectures, pruned at random: the masked, the pruned and the stored network are one (2,000 in analyses)."""

import warnings

import pytest
from architectures import compare, compare_codes
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(deadline=None, max_examples=18)
@given(st.integers(0, 2**31))
def test_masked_pruned_and_stored_networks_are_one(seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        what, difference = compare(seed)
    assert what in ("pruned", "empty"), (what, difference)


# A tied weight whose inputs are pruned; one for ONNX; a part of one kept unit; a whole branch of a chain.
@pytest.mark.parametrize("seed", [36, 50, 340, 1495])
def test_seeds_that_failed_once(seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert compare(seed, onnx=True, tail=False)[0] in ("pruned", "empty")


# Eight channels of eight by eight: all alike, constants do not say along which axis they are.
def test_constants_are_along_the_axis_that_moved():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert compare(362880)[0] in ("pruned", "empty")


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**31))
def test_codes_are_what_is_stored_of_them(seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        what, difference = compare_codes(seed)
    assert what in ("pruned", "empty"), (what, difference)


# A gate behind which a constant branch gives the places.
@pytest.mark.parametrize("seed", [27, 201])
def test_seeds_of_codes_that_failed_once(seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert compare_codes(seed)[0] in ("pruned", "empty")
