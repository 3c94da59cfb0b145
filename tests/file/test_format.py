"""A file gives back the network that was written, byte for byte, and nothing else opens without a clear error."""

import cProfile
import hashlib
import struct
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import random_network
from hostile import outcome, with_checksum
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_decoder import File

from pyro_bc.errors import CompressedFileError, UnsupportedNetworkError
from pyro_bc.file.chain import KNOWN, Chain, Layer, prune
from pyro_bc.file.coder import Decoder, Encoder
from pyro_bc.file.compressed import CompressedNetwork, read_sections
from pyro_bc.file.contents import Contents, Floats, Input, Integers, Selection, values
from pyro_bc.file.format import decode, encode
from pyro_bc.file.tensors import ADAPTIVE, COSINES, NUMBERS, Plan, decode_tensor, encode_tensor, plans_of
from pyro_bc.graph.layer_types import LAYER_TYPES
from pyro_bc.graph.nodes import LAYERS, Named, Node, Value, replace_leaves
from pyro_bc.graph.read import read_graph
from pyro_bc.quantisation.fixed_point import FixedPoint

GOLDEN = Path(__file__).parents[1] / "golden"
CORPUS = Path(__file__).parents[1] / "corpus"
RESULTS = Path(__file__).parents[2] / "analyses" / "results"


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**31))
def test_a_file_gives_back_the_same_network_and_the_same_bytes(seed):
    network = random_network(seed)
    data = network.to_bytes()
    again = CompressedNetwork.from_bytes(data)
    assert again.to_bytes() == data
    assert (again.dense_parameters, again.input_shape) == (network.dense_parameters, network.input_shape)
    assert [(node.op, node.values(), len(node.named())) for node in again.nodes] == [
        (node.op, node.values(), len(node.named())) for node in network.nodes
    ]
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


@pytest.mark.parametrize("part", range(4))
def test_what_a_fuzzer_found_is_an_error_or_a_network_and_so_is_each_with_a_change(part):
    """The corpus of analyses/robustness/hostile.py: files that between them take every path through the reader."""
    files = sorted(CORPUS.glob("*.pbc"))
    assert len(files) > 40
    generator = np.random.default_rng(part)
    outcomes = Counter()
    for file in files[part::4]:
        data = file.read_bytes()
        outcomes[outcome(data)] += 1
        for _ in range(4):
            body = bytearray(data[8:])
            body[generator.integers(len(body))] = generator.integers(256)
            outcomes[outcome(with_checksum(bytes(body)))] += 1
    assert outcomes["refused"] > 10 and outcomes["network"] > 10


X = Value(-1)
W, INDEX = Named("w"), Named("index")
CELL = (True, 1, 0.0, False, False, True)

#: well formed files that mean harm: nodes, shape of an input (empty where unknown), tensors.
HOSTILE = {
    "an output that is a list": ([Node("chunk", (X, 2, 1))], (4,), {}),
    "an output that is a number": ([Node("size", (X, 1))], (4,), {}),
    "an output of no input": ([Node("zeros", ((2, 3),))], (4,), {}),
    "a stride by its name": ([Node("conv2d", (X, W, None), (("stride", (2, 2)),))], (), {"w": (1, 1, 1, 1)}),
    "an argument too many": ([Node("linear", (X, W, None, 7))], (4,), {"w": (3, 4)}),
    "a layer of two inputs": ([Node("linear", ((X, X), W))], (), {"w": (3, 4)}),
    "a padding that overflows": ([Node("conv2d", (X, W, None, (1, 1), (1 << 61,) * 2))], (), {"w": (4, 4, 1, 1)}),
    "a number where a type belongs": ([Node("softmax", (X, 1, 1000))], (4,), {}),
    "a text where a type belongs": ([Node("sum", (X,), (("dtype", "load"),))], (), {}),
    "a state of the file's own": (
        [Node("gru", (X, Named("z"), (W, W, Named("b"), Named("b")), *CELL)), Node("getitem", (Value(0), 0))],
        (4, 4), {"z": (1, 2, 4), "w": (12, 4), "b": (12,)},
    ),
    "chance": ([Node("scaled_dot_product_attention", (X, X, X, None, 0.5))], (2, 3, 4), {}),
    "an index that nothing has": (
        [Node("index_select", (X, 1, INDEX))], (4,), {"index": Integers(torch.tensor([1 << 24]))}
    ),
    "an index below zero": ([Node("index_select", (X, 1, INDEX))], (4,), {"index": Integers(torch.tensor([-1]))}),
    "a row that a table lacks": (
        [Node("embedding", (W, INDEX)), Node("add", (X, Value(0)))], (),
        {"w": (4, 2), "index": Integers(torch.tensor([4]))},
    ),
    "a bias of integers": (
        [Node("linear", (X, W, INDEX)), Node("add", (Value(0), INDEX))], (4,),
        {"w": (3, 4), "index": Integers(torch.ones(3, dtype=torch.int64))},
    ),
    "a weight of three dimensions": ([Node("linear", (X, W)), Node("add", (Value(0), W))], (), {"w": (1, 3, 4)}),
}  # fmt: skip


def forged(nodes, shape, tensors):
    """A file of any nodes, whether they make sense or not."""
    stored = {
        name: FixedPoint(torch.ones(own, dtype=torch.int64), 0) if isinstance(own, tuple) else own
        for name, own in tensors.items()
    }
    layers = [node.args[1].name for node in nodes if node.op in LAYERS and isinstance(node.args[1], Named)]
    ordered = {name: stored[name] for name in dict.fromkeys(name for node in nodes for name in node.named())}
    return encode(Contents(tuple(nodes), ordered, dict.fromkeys(layers, (1, 1)), 100, shape, frozenset()))


@pytest.mark.parametrize("nodes,shape,tensors", HOSTILE.values(), ids=HOSTILE)
def test_a_program_that_no_network_is_is_refused_before_it_runs(nodes, shape, tensors):
    data = forged(nodes, shape, tensors)
    with pytest.raises(CompressedFileError, match=r"asks for what no network does|do not fit together") as error:
        CompressedNetwork.from_bytes(data)
    assert str(error.value).isprintable()


def test_what_no_file_may_ask_for_is_not_written():
    network = random_network(3)
    node = replace(network.nodes[-1], kwargs=(("dtype", "load"),))
    with pytest.raises(UnsupportedNetworkError, match="'dtype' cannot be 'load'"):
        replace(network, nodes=(*network.nodes[:-1], node)).to_bytes()


def test_a_network_without_layers_or_numbers_has_figures():
    network = CompressedNetwork.from_bytes(forged([Node("relu", (X,))], (4,), {}))
    assert network.layers == network.architecture == () and network.compression().pruning == 100
    assert torch.equal(network.network()(torch.tensor([[-1.0, 2.0]])), torch.tensor([[0.0, 2.0]]))


def test_newer_versions_and_other_files_say_so():
    data = random_network(1).to_bytes()
    with pytest.raises(CompressedFileError, match=r"version 7.*update"):
        CompressedNetwork.from_bytes(data[:3] + b"\x07" + data[4:])
    with pytest.raises(CompressedFileError, match=r"not a \.pbc file"):
        CompressedNetwork.from_bytes(b"PK\x03\x04")


def test_a_file_without_its_graph_survives_damage_as_a_clear_error():
    net = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    graph = read_graph(net, torch.rand(2, 6))
    weights = {name: FixedPoint((16 * tensor).round().long(), 4) for name, tensor in graph.tensors.items()}
    shapes = {"0.weight": (4, 6), "2.weight": (3, 4)}
    data = encode(Contents(graph.nodes, weights, shapes, 43, (6,), frozenset()), graph)
    assert decode(data, lambda shape: graph)[0].nodes == decode(encode(decode(data, lambda s: graph)[0]))[0].nodes
    outcomes = {"network": 0, "refused": 0}
    for position in range(8, len(data)):
        for change in (1, 2, 16, 255):
            body = bytearray(data[8:])
            body[position - 8] ^= change
            damaged = data[:4] + struct.pack("<I", zlib.crc32(bytes(body))) + bytes(body)
            try:
                decode(damaged, lambda shape: graph)
                outcomes["network"] += 1
            except CompressedFileError:
                outcomes["refused"] += 1
    assert outcomes["refused"] > 20 and sum(outcomes.values()) == 4 * (len(data) - 8)


def random_chain(seed: int, known: Chain | None = None) -> CompressedNetwork:
    """A chain with some codes as cosine coefficients and some layers too large for the adaptive code."""
    rng = np.random.default_rng(seed)
    chain = known or Chain(
        (2, 9, 9),
        (Layer(6, 3, 2, 1, bool(seed % 2)), 3, 1, Layer(5, 1), 0, 2, Layer(7, bias=bool(seed % 3)), 4, Layer(400), 0,
         Layer(3)),
    )  # fmt: skip
    layers = [step for step in chain.steps if isinstance(step, Layer)]
    widths = [int(layer.outputs ** rng.uniform()) for layer in layers[:-1]]  # every width, most of them small
    pruned = prune(chain, (*widths, layers[-1].outputs))
    tensors = {}
    for name, shape in pruned.shapes.items():
        codes = torch.from_numpy(np.rint(rng.laplace(0, 10.0 ** rng.uniform(-1, 2), shape)).astype(np.int64))
        grid = pruned.grids.get(name, ()) if rng.random() < 0.5 else ()
        tensors[name] = FixedPoint(codes, int(rng.integers(-4, 20)), grid if len(grid) > 1 else ())
    dense, parameters = pruned.dense_shapes, pruned.dense_parameters
    return CompressedNetwork(pruned.nodes, tensors, dense, parameters, chain.input_shape, frozenset(), {})


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from([None, *KNOWN]))
def test_a_chain_comes_back_from_a_short_header(seed, known):
    network = random_chain(seed, known)
    data = network.to_bytes()
    again, sections = read_sections(data)
    assert again.to_bytes() == data and sections["header"] < (90 if known is None else 60)
    assert again.nodes == tuple(replace(node, args=replace_leaves(node.args, renamed(again))) for node in network.nodes)
    assert again.dense_parameters == network.dense_parameters and again.architecture == network.architecture
    for ours, theirs in zip(network.tensors.values(), again.tensors.values(), strict=True):
        assert ours.grid == theirs.grid and torch.equal(ours.codes, theirs.codes)
        assert torch.equal(ours.values(), theirs.values())
    x = torch.rand(3, *network.input_shape)
    assert torch.equal(network.network()(x), again.network()(x))


def renamed(again: CompressedNetwork):
    names = {f"tensor{number}": name for number, name in enumerate(again.tensors)}
    return lambda leaf: Named(names[leaf.name]) if isinstance(leaf, Named) else leaf


def test_every_truncation_and_changed_byte_of_a_chain_is_noticed_under_a_right_checksum_too():
    whole = random_chain(5, KNOWN[2]).to_bytes()
    outcomes = {"network": 0, "refused": 0}
    for length in range(8, min(300, len(whole)), 7):
        with pytest.raises(CompressedFileError):
            CompressedNetwork.from_bytes(whole[:length])
    for position in [*range(8, 40), *range(40, len(whole), len(whole) // 12)]:
        for change in (1, 16, 255):
            body = bytearray(whole[8:])
            body[position - 8] ^= change
            try:
                assert CompressedNetwork.from_bytes(with_checksum(bytes(body))).to_bytes()
                outcomes["network"] += 1
            except CompressedFileError:
                outcomes["refused"] += 1
    assert outcomes["refused"] > 20 and outcomes["network"] > 5  # the rest: other numbers


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"\x09", "unknown form, 9"),
        (b"\x01\x09\x02\x04\x04\x00", "2 dimensions"),
        (b"\x01\x09\x01\x04\x00", "empty network"),
        (b"\x01\x09\x01\x04\x01\x63", "unknown operation, 95"),
        (b"\x01\x09\x01\x04\x01\x01\x04\x00\x01\x00", "impossible convolution"),
        (b"\x01\x09\x01\x04\x01\x00\x04\x05", "impossible widths"),
        (b"\x01\x09\x01\x04\x01\x00\x04\x04\x02", "does not fit it"),  # cosine coefficients without a grid
        (b"\x01\x09\x01\xff\xff\xff\x07\x01\x00\xff\xff\xff\x07\xff\xff\xff\x07", "impossible size"),
        (b"\x01\x09\x01\xff\xff\x3f\x01\x00\x04\x04\x01", "more numbers than it can hold"),
        (b"\x01\x09\x01\xc0\x9a\x0c\x01\x00\x04\x01\x01" + bytes(200), "too large for how they are coded"),
        # A picture of 1 x 1,048,576 as one grid: its cosines would be a matrix of terabytes.
        (b"\x01\x09\x03\x01\x01\x80\x80\x40\x02\x06\x02\x01\x01\x02" + bytes(4000), "does not fit it"),
        (b"\x01\x09\x01\x04\xff\xff\x03", "at most 1024"),
    ],
)
def test_impossible_chains_are_refused_before_anything_is_allocated(body, message):
    with pytest.raises(CompressedFileError, match=message):
        decode(with_checksum(body))


def test_files_of_version_2_still_open():
    """Files that an older version wrote, beside what this one writes of them."""
    files = [*RESULTS.glob("*/network.pbc"), *GOLDEN.glob("2-*.pbc")]
    assert len(files) > 3
    for file in files:
        data = file.read_bytes()
        if data[3] != 2:
            continue
        small = CompressedNetwork.from_bytes(data)
        again = CompressedNetwork.from_bytes(small.to_bytes())
        assert again.to_bytes()[3] == 3 and len(again.to_bytes()) <= len(data) + 4
        for ours, theirs in zip(small.tensors.values(), again.tensors.values(), strict=True):
            assert torch.equal(values(ours), values(theirs))


# SHA-256 of all codes (int64, little-endian), as the version that wrote the file had them.
DIGESTS = {
    "2-lenet-300-100-digits": "91fd3287328d70b7efa7cd89cb7722e87541bd5679f3b2dbd355f563c6af5cdf",
    "2-regression": "0980c11c2f073c7f4304d3c96c7cab252652f5af81b41b9d7c8af9096520ac79",
    "2-transformer": "769c761bbfa1d1a6e9c7c9f4d102db600c74d3e355976b772c787cbc1593f661",
    "3-chain": "b4cafcbe3aa3ac16e43acf3ce418fe6289a23d5d682be186e777586ece7f29de",
    "3-large-codes": "16e03f220a13f9db2782d090bfa83f8bb34e7315b7db6e2a4069ef8f4396df63",
    "3-lenet-5-caffe": "f14a3b8ba0f56c6022a06ccf2914ba097e7b28ce188d2bb1c11dd820a0df8563",
    "3-operations": "066d691b3b8ec0fbb489ec5e565a033b4ff2892d5c3b640535e3673ae8c54db3",
}


@pytest.mark.parametrize("name", DIGESTS)
def test_golden_files_hold_what_they_held(name):
    """Read by this package, and by a second reader that knows the format's description only."""
    digest = hashlib.sha256()
    for own in codes_of_both_readers((GOLDEN / f"{name}.pbc").read_bytes()):
        digest.update(own.contiguous().numpy().astype("<i8").tobytes())
    assert digest.hexdigest() == DIGESTS[name]


def codes_of_both_readers(data):
    """Codes of every tensor of a file, which the second reader must have read too."""
    small, file = CompressedNetwork.from_bytes(data), File(data)
    found = []
    for tensor, codes, numbers in zip(small.tensors.values(), file.tensors, file.values, strict=True):
        own = tensor.indices if isinstance(tensor, Selection) else tensor.codes
        assert own.flatten().tolist() == codes
        own_numbers = values(tensor).flatten().float().tolist()
        assert [np.float32(float(number)) for number in numbers] == own_numbers
        found.append(own)
    return found


def typed_network(seed: int) -> CompressedNetwork:
    """A network of integer inputs, with tensors of every type that a file may hold."""
    rng = np.random.default_rng(seed)
    exponents = 10.0 ** rng.uniform(-38, 38, (2, 5))
    mask = np.where(rng.random((3, 5)) < 0.5, -np.inf, 0.0)
    nodes: list[Node] = [Node("to", (Value(-1),), (("dtype", "float32"),))]
    tensors = {
        "wide": Floats(torch.from_numpy(rng.choice([-1, 1], (2, 5)) * exponents).float()),
        "mask": Floats(torch.from_numpy(mask).float()),
        "one": Floats(torch.full((5,), 0.1)),
        "w.weight": Floats(torch.from_numpy(rng.normal(size=(4, 5))).float()),
        "w.bias": FixedPoint(torch.from_numpy(rng.integers(-50, 50, 4)), 4),
        "long": Integers(torch.from_numpy(rng.integers(-(2**20), 2**20, 4))),
        "bool": Integers(torch.from_numpy(rng.integers(0, 2, 4)), torch.bool),
        "byte": Integers(torch.from_numpy(rng.integers(0, 256, 4)), torch.uint8),
        "short": Integers(torch.from_numpy(rng.integers(-(2**15), 2**15, 4)), torch.int16),
    }
    nodes.append(Node("mul", (Value(0), Named("one"))))
    nodes.append(Node("linear", (Value(1), Named("w.weight"), Named("w.bias"))))
    for name in ("long", "bool", "byte", "short"):
        nodes.append(Node("mul", (Value(len(nodes) - 1), Named(name))))
    nodes.append(Node("sum", (Named("wide"), (0, 1))))
    nodes.append(Node("amax", (Named("mask"), (0, 1))))
    nodes.append(Node("mul", (Value(len(nodes) - 3), Value(len(nodes) - 2))))
    nodes.append(Node("mul", (Value(len(nodes) - 1), Value(len(nodes) - 2))))
    order = dict.fromkeys(name for node in nodes for name in node.named())
    tensors = {name: tensors[name] for name in order}
    buffers = frozenset({"mask", "one"})
    dense = {"w.weight": (4, 5)}
    return CompressedNetwork(tuple(nodes), tensors, dense, 99, (5,), buffers, {}, input_dtype=torch.int32)


@pytest.mark.parametrize("seed", range(8))
def test_tensors_of_every_type_and_the_inputs_type_are_read_by_both_readers(seed):
    network = typed_network(seed)
    data = network.to_bytes()
    assert data[3] == 4  # older versions say that they are too old
    codes_of_both_readers(data)
    again = CompressedNetwork.from_bytes(data)
    assert again.to_bytes() == data and again.input_dtype == torch.int32 and File(data).input_type == 3
    for stored, found in zip(network.tensors.values(), again.tensors.values(), strict=True):
        assert values(found).dtype == values(stored).dtype and torch.equal(values(found), values(stored))
    x = torch.randint(0, 9, (3, 5), dtype=torch.int32)
    torch.testing.assert_close(again.network()(x), network.network()(x), equal_nan=True)
    for position in range(8, len(data)):
        body = bytearray(data[8:])
        body[position - 8] ^= 1 << seed % 8
        assert outcome(with_checksum(bytes(body), 4)) in ("refused", "network")


def network_of_inputs() -> CompressedNetwork:
    """Embeddings of some integers, those of a mask, beside the first of a row of numbers."""
    nodes = (
        Node("embedding", (Named("table"), Value(-1))),
        Node("masked_fill.Scalar", (Value(0), Value(-2), 0.5)),
        Node("select", (Value(-3), 1, 0)),
        Node("add", (Value(1), Value(2))),
    )
    tensors = {"table": FixedPoint(torch.arange(15).reshape(5, 3), 2)}
    further = (Input("mask", (4, 1), torch.bool), Input("rest", (2, 4, 3), torch.float32))
    return CompressedNetwork(
        nodes, tensors, {}, 15, (4,), frozenset(), {}, input_dtype=torch.int64, input_name="ids", further_inputs=further
    )


def test_several_inputs_are_read_by_both_readers_and_go_in_by_position_or_name():
    network = network_of_inputs()
    data = network.to_bytes()
    assert data[3] == 6  # older versions say that they are too old
    codes_of_both_readers(data)
    file = File(data)
    assert file.input_name == "ids" and file.further_inputs == [("mask", [4, 1], 2), ("rest", [2, 4, 3], 0)]
    again = CompressedNetwork.from_bytes(data)
    assert again.inputs == network.inputs and again.to_bytes() == data
    ids, mask, rest = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[[True], [False]] * 2]), torch.rand(1, 2, 4, 3)
    expected = torch.where(mask, 0.5, torch.arange(12.0).reshape(1, 4, 3) / 4) + rest[:, 0]
    net = again.network()
    with torch.no_grad():
        assert torch.equal(net(ids, mask, rest), expected) and torch.equal(net(ids, rest=rest, mask=mask), expected)
    for wrong in ({"mask": mask}, {"mask": mask, "rest": rest, "more": rest}, {"mask": mask, "other": rest}):
        with pytest.raises(TypeError, match="inputs are ids, mask, rest"):
            net(ids, **wrong)
    for position in range(8, len(data)):
        body = bytearray(data[8:])
        body[position - 8] ^= 1 << position % 8
        assert outcome(with_checksum(bytes(body), 6)) in ("refused", "network")


def network_of_rows(seed: int) -> CompressedNetwork:
    """A network whose rows have steps of their own, some of them 0."""
    rng = np.random.default_rng(seed)
    spread = np.exp(rng.normal(0, 1.5, (7, 1, 1, 1))) * np.exp(rng.normal(0, 1.5, (1, 5, 3, 3)))
    kernels = torch.from_numpy(np.rint(rng.laplace(0, 1, (7, 5, 3, 3)) * spread).astype(np.int64))
    matrix = torch.from_numpy(np.rint(rng.laplace(0, 2, (4, 7))).astype(np.int64))
    tensors = {
        "a.weight": FixedPoint(kernels, int(rng.integers(-3, 12)), rows=torch.from_numpy(rng.integers(0, 40, 7))),
        "a.bias": FixedPoint(torch.from_numpy(rng.integers(-9, 9, 7)), 4),
        "b.weight": FixedPoint(matrix, 3, rows=torch.from_numpy(rng.integers(0, 9, 4))),
    }
    nodes = (
        Node("conv2d", (Value(-1), Named("a.weight"), Named("a.bias"), (1, 1), (1, 1))),
        Node("mean", (Value(0), (2, 3))),
        Node("linear", (Value(1), Named("b.weight"))),
    )
    return CompressedNetwork(nodes, tensors, {"a.weight": (9, 5), "b.weight": (4, 9)}, 999, (5, 6, 6), frozenset(), {})


@pytest.mark.parametrize("seed", range(8))
def test_rows_with_steps_of_their_own_are_read_by_both_readers(seed, monkeypatch):
    network = network_of_rows(seed)
    for most in (1 << 20, 20):  # in contexts, and where a file may not hold so many by a table
        monkeypatch.setattr("pyro_bc.file.tensors.MOST_ADAPTIVE", most)
        data = network.to_bytes()
        assert data[3] == 5
        codes_of_both_readers(data)
        again = CompressedNetwork.from_bytes(data)
        assert again.to_bytes() == data
        for stored, found in zip(network.tensors.values(), again.tensors.values(), strict=True):
            assert torch.equal(found.values(), stored.values())
        x = torch.rand(3, 5, 6, 6)
        assert torch.equal(again.network()(x), network.network()(x))
        for position in range(8, len(data), 3):
            body = bytearray(data[8:])
            body[position - 8] ^= 1 << seed % 8
            assert outcome(with_checksum(bytes(body), 5)) in ("refused", "network")
            assert outcome(with_checksum(bytes(body[: position - 8]), 5)) in ("refused", "network")


def test_more_rows_than_a_file_may_hold_are_refused_before_they_are_decoded():
    """A header of a few bytes that asks for millions of rows, each decoded bit by bit."""
    codes = torch.zeros(1 << 21, 1, dtype=torch.long)
    tensor = FixedPoint(codes, 0, rows=torch.zeros(1 << 21, dtype=torch.long))
    node = Node("linear", (Value(-1), Named("a.weight")))
    network = CompressedNetwork((node,), {"a.weight": tensor}, {"a.weight": (1 << 21, 1)}, 9, (1,), frozenset(), {})
    with pytest.raises(UnsupportedNetworkError, match="rows"):
        network.to_bytes()
    data = bytearray(network_of_rows(0).to_bytes()[8:])
    at = data.index(bytes([16 * 8 + 2, 4, 7]))  # the last tensor's kind and shape
    data[at : at + 3] = bytes([16 * 9 + 2, 0xFF, 0xFF, 0xFF, 0x07, 1])
    with pytest.raises(CompressedFileError):
        CompressedNetwork.from_bytes(with_checksum(bytes(data), 5))


@pytest.mark.parametrize("dtype,code", [(torch.bool, 2), (torch.uint8, 256), (torch.int16, 1 << 15)])
def test_integers_beyond_their_type_are_refused(dtype, code):
    node = Node("mul", (Value(-1), Named("a")))
    network = CompressedNetwork((node,), {"a": Integers(torch.tensor([code, 0]), dtype)}, {}, 9, (2,), frozenset(), {})
    with pytest.raises(CompressedFileError, match="beyond their type"):
        CompressedNetwork.from_bytes(network.to_bytes())


@pytest.mark.parametrize("kind", LAYER_TYPES, ids=lambda kind: kind.op)
def test_a_layer_of_every_type_is_read_by_both_readers(kind):
    """Also where its bias is computed, so that it is no layer but says its dense shape all the same."""
    made = kind.module(3, 2, *[2] * bool(kind.spatial))
    weight = FixedPoint(torch.randint(-9, 9, made.weight.shape), 3)
    bias = FixedPoint(torch.randint(-9, 9, (2,)), 3)
    pictures = (3, *[4] * kind.spatial)
    layer = (Node(kind.op, (Value(-1), Named("a.weight"), Named("a.bias"))),)
    computed = Node("neg", (Named("a.bias"),)), Node(kind.op, (Value(-1), Named("a.weight"), Value(0)))
    cases, x = [(layer, {"a.weight": (6, 7)}), (computed, {})], torch.randn(2, *pictures)
    if kind.is_lookup:  # of indices, and without a bias
        layer = (Node(kind.op, (Value(-1), Named("a.weight"))),)
        cases, x = [(layer, {"a.weight": (6, 7)}), (layer, {})], torch.randint(3, (2, 3))
    for nodes, dense in cases:
        names = {name: {"a.weight": weight, "a.bias": bias}[name] for node in nodes for name in node.named()}
        network = CompressedNetwork(nodes, names, dense, 99, pictures, frozenset(), {}, input_dtype=x.dtype)
        data = network.to_bytes()
        assert all(
            torch.equal(found, stored.codes)
            for found, stored in zip(codes_of_both_readers(data), names.values(), strict=True)
        )
        again = CompressedNetwork.from_bytes(data)
        assert list(again.dense_shapes.values()) == [dense.get("a.weight", (2, 3))]
        assert torch.equal(again.network()(x), network.network()(x))


def hostile_graphs():
    x, size = Value(-1), Node("size", (Value(-1), 0))
    doubled = [Node("int_mul", (Value(i), Value(i))) for i in range(40)]
    lists = [Node("add", ((1, 2), (3, 4))), *(Node("add", (Value(i), Value(i))) for i in range(40))]
    grown = [Node("expand", (x, (2, 1 << 20))), *(Node("cat", ((Value(i), Value(i)), 1)) for i in range(40))]
    cell = [Named(f"w{i}") for i in range(4)]
    sequence = [size, Node("zeros", ((1, Value(0), 1),)), Node("expand", (x, (1 << 24, -1, 1))),
                Node("gru", (Value(2), Value(1), tuple(cell), True, 1, 0.0, False, False, False)),
                Node("getitem", (Value(3), 0)), Node("select", (Value(4), 0, -1))]  # fmt: skip
    pieces = [Node("expand", (x, (2, 1 << 24))), Node("split", (Value(0), 1, 1)), Node("getitem", (Value(1), 0))]
    return {
        "integers without end": ([size, *doubled, Node("zeros", ((Value(40),),))], "more than is allowed"),
        "a list times a number": ([Node("int_mul", ((1, 2), 3)), Node("mul", (x, Value(0)))], "'a' cannot be a list"),
        "a list in a tensor's place": (lists, "'self' cannot be a list"),
        "millions of pieces": (pieces, "4096 pieces"),
        "results without end": (grown, "bytes, and the limit is"),
        "a recurrent cell of many steps": (sequence, "multiplications, and the limit is"),
        "code in a keyword": ([Node("gelu", (x,), (("a=print(1), b", 1),))], "keyword that is none"),
        "a keyword of Python's": ([Node("gelu", (x,), (("lambda", 1),))], "keyword that is none"),
        "a tensor to write into": ([Node("relu", (x,), (("out", Named("w0")),))], "keyword that is none"),
        "something of torch's as a type": ([Node("sum", (x,), (("dtype", "load"),))], "'dtype' cannot be 'load'"),
    }


@pytest.mark.parametrize("name", hostile_graphs())
def test_a_graph_cannot_ask_for_more_than_a_network_would(name):
    nodes, message = hostile_graphs()[name]
    shapes = {"w0": (3, 1), "w1": (3, 1), "w2": (3,), "w3": (3,)}
    used = {leaf for node in nodes for leaf in node.named()}
    tensors = {name: FixedPoint(torch.ones(shapes[name], dtype=torch.int64), 0) for name in sorted(used)}
    data = encode(Contents(tuple(nodes), tensors, {}, 100, (1,), frozenset()))
    assert len(data) < 500
    with pytest.raises(CompressedFileError, match=message):
        decode(data)


def test_a_small_file_cannot_claim_many_numbers_and_a_network_of_zeros_is_written_longer():
    zeros = CompressedNetwork(
        (Node("linear", (Value(-1), Named("a"), None)),),
        {"a": FixedPoint(torch.zeros(2000, 1000, dtype=torch.int64), 0)},
        {"a": (2000, 1000)}, 1, (1000,), frozenset(), {},
    )  # fmt: skip
    data = zeros.to_bytes()
    assert 1800 < len(data) < 2000 and data.endswith(bytes(1700))
    assert CompressedNetwork.from_bytes(data).layers[0].weight.codes.shape == (2000, 1000)
    shorter = with_checksum(data[8:1000])
    with pytest.raises(CompressedFileError, match="more numbers than it can hold"):
        CompressedNetwork.from_bytes(shorter)
    indices = Selection(torch.arange(2), 1 << 27)
    nodes = (Node("index_select", (Value(-1), 1, Named("i"))),)
    claims = encode(Contents(nodes, {"i": Selection(torch.arange(2), 3)}, {}, 1, (3,), frozenset()))
    assert claims.count(b"\x03") and indices.size > 1 << 20
    with pytest.raises(CompressedFileError, match="more numbers than it can hold"):
        decode(with_checksum(claims[8:].replace(b"\x21\x02\x03", b"\x21\x02\x80\x80\x80\x40")))


def test_reading_a_large_graph_takes_time_in_proportion():
    """Operations that are counted, not seconds: a graph of twice the nodes may be looked at twice as often."""
    looks = []
    for count in (1000, 2000):
        nodes = [Node("relu", (Value(i - 1),)) for i in range(count)]
        data = encode(Contents(tuple(nodes), {}, {}, 1, (3,), frozenset()))
        profile = cProfile.Profile()
        profile.runcall(decode, data)
        looks.append(sum(entry.callcount for entry in profile.getstats()))
    assert looks[1] < 2.2 * looks[0]
    with pytest.raises(CompressedFileError, match="at most 16384"):
        decode(with_checksum(b"\x00\x01\x00\x81\x80\x01"))


def test_more_cosine_coefficients_than_a_file_takes_are_said_when_it_is_written():
    for rows, columns, grid in ((1 << 11, 1 << 10, (32, 32)), (2, 1 << 11, (1 << 11,))):
        codes = torch.zeros(1, dtype=torch.int64).expand(rows, columns)
        nodes = (Node("linear", (Value(-1), Named("a"), None)),)
        tensors, shapes = {"a": FixedPoint(codes, 0, grid)}, {"a": (rows, columns)}
        with pytest.raises(UnsupportedNetworkError, match="leave a grid out"):
            CompressedNetwork(nodes, tensors, shapes, 1, (columns,), frozenset(), {}).to_bytes()


def test_cosine_coefficients_that_would_overflow_are_refused_by_writer_and_reader():
    nodes = (Node("linear", (Value(-1), Named("a"), None)),)

    def network(largest):
        codes = torch.zeros(2, 4096, dtype=torch.int64)
        codes[1, 7] = -largest
        return CompressedNetwork(
            nodes, {"a": FixedPoint(codes, 0, (64, 64))}, {"a": (2, 4096)}, 8192, (4096,), frozenset(), {}
        )

    fits = network((1 << 15) - 1)
    assert CompressedNetwork.from_bytes(fits.to_bytes()).tensors["layer1.weight"].codes[1, 7] == 1 - (1 << 15)
    with pytest.raises(UnsupportedNetworkError, match="'a' are larger than a file can hold exactly"):
        network(1 << 15).to_bytes()
    coder = Encoder()
    plan = Plan(COSINES, (2, 4096), grid=(64, 64))
    encode_tensor(coder, network(1 << 15).tensors["a"], plan)
    with pytest.raises(CompressedFileError, match="larger than is allowed"):
        decode_tensor(Decoder(coder.data()), plan)


def test_buffers_of_zeros_stay_buffers():
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    graph = read_graph(net, torch.rand(2, 1, 5, 5))
    tensors = {name: FixedPoint((16 * tensor).round().long(), 4) for name, tensor in graph.tensors.items()}
    contents = Contents(graph.nodes, tensors, {"0.weight": (2, 1)}, 24, (1, 5, 5), graph.buffers)
    again = decode(encode(contents))[0]
    assert len(again.buffers) == len(graph.buffers) == 2
    assert encode(again) == encode(contents)


def test_a_chain_that_counts_against_another_network_says_so():
    network = random_chain(3, KNOWN[2])
    other = replace(network, dense_parameters=network.dense_parameters + 600)  # batch normalisation was folded
    again = CompressedNetwork.from_bytes(other.to_bytes())
    assert again.dense_parameters == other.dense_parameters and again.to_bytes() == other.to_bytes()
    assert read_sections(other.to_bytes())[1]["header"] < 60


def test_the_adaptive_code_is_kept_for_as_many_numbers_as_a_file_may_have():
    codes = torch.zeros(1 << 8, 1 << 8, dtype=torch.int64)
    tensors = {f"w{i}": FixedPoint(codes, 0) for i in range(20)}
    kinds = [plan.kind for plan in plans_of(tensors).values()]
    assert kinds == [ADAPTIVE] * 16 + [NUMBERS] * 4


def test_long_chains_are_refused_before_they_take_time():
    with pytest.raises(CompressedFileError, match="at most 1024"):
        decode(with_checksum(b"\x01\x09\x01\x04\x81\x08" + bytes([4]) * 1025))


def test_a_layers_bias_that_an_operation_takes_by_name_is_renamed_with_it():
    tensors = {"w": FixedPoint(torch.ones(3, 4, dtype=torch.int64), 0), "b": FixedPoint(torch.ones(3).long(), 0)}
    nodes = (
        Node("linear", (Value(-1), Named("w"), Named("b"))),
        Node("add", (Value(0),), (("other", Named("b")),)),
    )
    small = CompressedNetwork.from_bytes(encode(Contents(nodes, tensors, {"w": (3, 4)}, 15, (4,), frozenset())))
    assert torch.equal(small.network()(torch.ones(2, 4)), torch.full((2, 3), 6.0))
