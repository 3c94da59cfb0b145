"""A file gives back the network that was written, byte for byte, and nothing else opens without a clear error."""

import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_bc.chain import ACTIVATIONS, ActivationStep, FlattenStep, LinearStep, NormalizeStep
from pyro_bc.compressed import CompressedNetwork, read_sections
from pyro_bc.errors import CompressedFileError
from pyro_bc.fileformat import StoredLayer
from pyro_bc.precision import FixedPoint


def random_network(seed: int) -> CompressedNetwork:
    rng = np.random.default_rng(seed)
    depth = rng.integers(1, 4)
    widths = rng.integers(1, 9, depth + 1)
    layers, chain = [], [NormalizeStep((0.5,), (0.25,)), FlattenStep()]
    for i in range(depth):
        spread = 10.0 ** rng.uniform(0, 6.5)
        weight = torch.from_numpy(np.rint(rng.laplace(0, spread, (widths[i + 1], widths[i]))).astype(np.int64))
        bias = torch.from_numpy(rng.integers(-500, 500, widths[i + 1])) if rng.random() < 0.7 else None
        dense = (int(widths[i + 1] + rng.integers(0, 5)), int(widths[i] + rng.integers(0, 5)))
        t = int(rng.integers(-8, 30))
        layers.append(
            StoredLayer(
                dense, FixedPoint(weight.clamp(-(2**23), 2**23 - 1), t), None if bias is None else FixedPoint(bias, 4)
            )
        )
        chain += [LinearStep(str(i + 1)), ActivationStep(list(ACTIVATIONS)[rng.integers(len(ACTIVATIONS))])]
    total = layers[0].dense_shape[1]
    inputs = torch.from_numpy(np.sort(rng.permutation(total)[: widths[0]])) if widths[0] < total else None
    return CompressedNetwork(tuple(chain), tuple(layers), inputs, int(rng.integers(1, 10**9)), (1, total), {})


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**31))
def test_a_file_gives_back_the_same_network_and_the_same_bytes(seed):
    network = random_network(seed)
    data = network.to_bytes()
    again = CompressedNetwork.from_bytes(data)
    assert again.to_bytes() == data
    assert (again.chain, again.dense_parameters, again.input_shape) == (
        network.chain,
        network.dense_parameters,
        network.input_shape,
    )
    for ours, theirs in zip(network.layers, again.layers, strict=True):
        assert ours.dense_shape == theirs.dense_shape
        assert torch.equal(ours.weight.values(), theirs.weight.values()) and ours.weight.bits == theirs.weight.bits
        assert (ours.bias is None) == (theirs.bias is None)
        assert ours.bias is None or torch.equal(ours.bias.values(), theirs.bias.values())
    x = torch.rand(3, 1, network.input_shape[1])
    assert torch.equal(network.network()(x), again.network()(x))


def test_every_truncation_and_every_changed_byte_is_noticed():
    data = random_network(5).to_bytes()
    for length in range(len(data)):
        with pytest.raises(CompressedFileError):
            CompressedNetwork.from_bytes(data[:length])
    for position in range(len(data)):
        for change in (1, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[position] ^= change
            with pytest.raises(CompressedFileError):
                CompressedNetwork.from_bytes(bytes(damaged))


def with_checksum(body: bytes) -> bytes:
    return b"PBC\x01" + struct.pack("<I", zlib.crc32(body)) + body


@settings(deadline=None, max_examples=400)
@given(st.integers(0, 2**31), st.binary(min_size=1, max_size=12))
def test_changes_under_a_right_checksum_are_a_clear_error_or_a_network(seed, noise):
    body = bytearray(random_network(5).to_bytes()[8:])
    position = seed % len(body)
    body[position : position + len(noise)] = noise
    try:
        network, sections = read_sections(with_checksum(bytes(body)))
    except CompressedFileError:
        return
    assert network.to_bytes() and sections["header"] > 8


def test_newer_versions_and_other_files_say_so():
    data = random_network(1).to_bytes()
    with pytest.raises(CompressedFileError, match="version 2"):
        CompressedNetwork.from_bytes(data[:3] + b"\x02" + data[4:])
    with pytest.raises(CompressedFileError, match=r"not a \.pbc file"):
        CompressedNetwork.from_bytes(b"PK\x03\x04")
