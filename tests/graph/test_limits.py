"""A file takes no more than its limits say: named with both numbers, before anything is computed."""

from dataclasses import replace

import pytest
import torch
from helpers import random_network

import pyro_bc
from pyro_bc.errors import CompressedFileError, ExcessError, UnsupportedNetworkError
from pyro_bc.file.compressed import CompressedNetwork
from pyro_bc.file.contents import Contents
from pyro_bc.file.format import encode
from pyro_bc.graph.arguments import check_program
from pyro_bc.graph.forms import Form
from pyro_bc.graph.limits import Cost, Limits
from pyro_bc.graph.nodes import LAYERS, Named, Node, Value
from pyro_bc.graph.outline import outline_of_two
from pyro_bc.quantisation.fixed_point import FixedPoint

X = Value(-1)
UNITS = {"multiplications": "multiplications", "memory": "bytes", "pieces": "pieces"}


def file(nodes, shape=(), tensors=None):
    """A small file of any nodes."""
    tensors = {
        name: FixedPoint(torch.ones(own, dtype=torch.int64), 0) if isinstance(own, tuple) else own
        for name, own in (tensors or {}).items()
    }
    layers = [node.args[1].name for node in nodes if node.op in LAYERS and isinstance(node.args[1], Named)]
    ordered = {name: tensors[name] for name in dict.fromkeys(name for node in nodes for name in node.named())}
    return encode(Contents(tuple(nodes), ordered, dict.fromkeys(layers, (1, 1)), 100, shape, frozenset()))


def last_of(nodes, op, *args):
    return [*nodes, Node(op, (Value(len(nodes) - 1), *args))]


def wide(*sizes):
    return Node("expand", (X, (-1, *sizes)))


GRU = (tuple(map(Named, "wubb")), True, 1, 0.0, False, False, True)
GRU_TENSORS = {"w": (3, 1), "u": (3, 1), "b": (3,)}
STATE = [Node("size", (X, 0)), Node("zeros", ((1, Value(0), 1),))]

#: files of some bytes: nodes, shape of an input, tensors, and what is too much of them.
HOSTILE = {
    "copies that all live": (
        [wide(1 << 27), *[Node("clone", (Value(0),))] * 30,
         Node("cat", (tuple(map(Value, range(1, 31))), 1)), Node("sum", (Value(31), (1,), True))],
        (1,), {}, "memory",
    ),
    "a convolution of a large kernel": (
        [wide(1, 8192, 8192), Node("conv2d", (Value(0), Named("k"), None))], (1, 1, 1), {"k": (1, 1, 255, 255)},
        "multiplications",
    ),
    "maxima in large windows": (
        [wide(1, 8192, 8192), Node("max_pool2d", (Value(0), (4096, 4096), (1, 1)))], (1, 1, 1), {}, "multiplications",
    ),
    "exponentials of exponentials": (
        [wide(1 << 24), *(Node("exp", (Value(at),)) for at in range(300))], (1,), {}, "multiplications",
    ),
    "products of matrices": (
        [wide(4096, 4096), *(Node("matmul", (Value(at), Value(at))) for at in range(100))], (1, 1), {},
        "multiplications",
    ),
    "steps of many cells": (
        [*STATE, *[Node("gru", (X, Value(1), *GRU))] * 300, Node("relu", (X,))], (4096, 1), GRU_TENSORS,
        "multiplications",
    ),
    "pieces without end": ([*[Node("chunk", (X, 4096, 1))] * 1000, Node("relu", (X,))], (4096,), {}, "pieces"),
    "a picture that is padded": (
        [Node("pad", (X, (1 << 11,) * 4)), Node("exp", (Value(0),)), Node("amax", (Value(1), (2, 3)))], (8, 1, 1), {},
        "memory",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_small_file_cannot_ask_for_more_than_a_machine_has(name):
    nodes, shape, tensors, what = HOSTILE[name]
    data = file(nodes, shape, tensors)
    assert len(data) < 10_000
    with pytest.raises(
        CompressedFileError, match=rf"for a prediction: it takes [\d,]+ {UNITS[what]}, and the limit is"
    ):
        CompressedNetwork.from_bytes(data)
    net = CompressedNetwork.from_bytes(file(nodes, (), tensors)).network()
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(ExcessError, match=f"{UNITS[what]}, and the limit is"):
            net(torch.zeros(1, *shape))


def test_limits_are_what_an_application_says(tmp_path):
    data = file([wide(1 << 20), Node("exp", (Value(0),))], (1,))
    (tmp_path / "net.pbc").write_bytes(data)
    net = pyro_bc.load(tmp_path / "net.pbc")
    assert net(torch.zeros(1, 1)).shape == (1, 1 << 20)
    less = Limits(memory=1 << 22, memory_per_byte=0)  # bytes of the result, but not of what else is there
    with pytest.raises(CompressedFileError, match=r"net.pbc': .* it takes 4,194,308 bytes, and the limit is 4,194,304"):
        pyro_bc.load(tmp_path / "net.pbc", limits=less)
    assert pyro_bc.read(tmp_path / "net.pbc", limits=replace(less, memory=5 << 20)).network()(torch.zeros(1, 1)).numel()
    assert pyro_bc.load(tmp_path / "net.pbc", limits=replace(less, memory_per_byte=1)) is not None


def test_another_shape_than_the_files_is_looked_at_when_it_comes():
    nodes = [Node("upsample_nearest2d", (X, None, (64.0, 64.0))), Node("amax", (Value(0), (2, 3)))]
    net = CompressedNetwork.from_bytes(file(nodes, (1, 2, 2))).network()
    with torch.no_grad():
        assert net(torch.zeros(3, 1, 4, 4)).shape == (3, 1)
        with pytest.raises(ExcessError, match="bytes, and the limit is"):
            net(torch.zeros(1, 1, 256, 256))
        with pytest.raises(UnsupportedNetworkError, match="operation 1, upsample_nearest2d"):
            net(torch.zeros(1, 4))


def test_tensors_are_counted_before_they_are_decoded():
    codes = torch.zeros(1, 1024, dtype=torch.int64)
    tensors = {f"t{at}": FixedPoint(codes, 0, (1024,)) for at in range(700)}
    data = file([Node("add", (X, Named(name))) for name in tensors], (1024,), tensors)
    with pytest.raises(CompressedFileError, match=r"to be read: it takes [0-9,]+ multiplications, and the limit is"):
        CompressedNetwork.from_bytes(data)


@pytest.mark.parametrize(
    "nodes",
    [[Node("sum", (X, (0,)))], [Node("reshape", (X, (2, -1)))], [Node("transpose", (X, 0, 1))], [Node("sum", (X, ()))]],
)
def test_an_output_keeps_its_examples_in_front(nodes):
    with pytest.raises(CompressedFileError, match="does not keep its examples in front"):
        CompressedNetwork.from_bytes(file(nodes, (4,)))
    net = CompressedNetwork.from_bytes(file(nodes)).network()
    with pytest.raises(UnsupportedNetworkError, match="does not keep its examples in front"):
        net(torch.zeros(2, 4))


class Program:
    """Nodes one after the other, with the shapes of their tensors."""

    def __init__(self):
        self.nodes, self.tensors = [], {}

    def add(self, op, *args):
        self.nodes.append(Node(op, args))
        return Value(len(self.nodes) - 1)

    def layer(self, op, x, *shape, more=()):
        name = f"w{len(self.tensors)}"
        self.tensors[name] = Form(shape)
        return self.add(op, x, Named(name), None, *more)

    def numbers(self):
        return sum(form.numbers for form in self.tensors.values())


def vgg_16(p: Program) -> tuple:
    x, channels = X, 3
    for blocks, filters in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        for _ in range(blocks):
            x = p.add("relu", p.layer("conv2d", x, filters, channels, 3, 3, more=((1, 1), (1, 1))))
            channels = filters
        x = p.add("max_pool2d", x, (2, 2))
    x = p.add("flatten", x, 1)
    for inputs, outputs in ((25088, 4096), (4096, 4096), (4096, 1000)):
        x = p.layer("linear", x, outputs, inputs)
    return 3, 224, 224


def resnet_152(p: Program) -> tuple:
    x = p.add("max_pool2d", p.layer("conv2d", X, 64, 3, 7, 7, more=((2, 2), (3, 3))), (3, 3), (2, 2), (1, 1))
    channels = 64
    for blocks, width, stride in ((3, 64, 1), (8, 128, 2), (36, 256, 2), (3, 512, 2)):
        for block in range(blocks):
            step = (stride if block == 0 else 1,) * 2
            y = p.add("relu", p.layer("conv2d", x, width, channels, 1, 1))
            y = p.add("relu", p.layer("conv2d", y, width, width, 3, 3, more=(step, (1, 1))))
            y = p.layer("conv2d", y, 4 * width, width, 1, 1)
            x = p.layer("conv2d", x, 4 * width, channels, 1, 1, more=(step,)) if block == 0 else x
            x, channels = p.add("relu", p.add("add", y, x)), 4 * width
    p.layer("linear", p.add("mean", x, (2, 3)), 1000, 2048)
    return 3, 224, 224


def transformer(p: Program, blocks: int, width: int, heads: int, wider: int) -> None:
    x = X
    for _ in range(blocks):
        parts = [p.layer("linear", x, width, width) for _ in range(3)]
        split = [p.add("transpose", p.add("unflatten", part, 2, (heads, -1)), 1, 2) for part in parts]
        scores = p.add("softmax", p.add("matmul", split[0], p.add("transpose", split[1], 2, 3)), -1)
        mixed = p.add("flatten", p.add("transpose", p.add("matmul", scores, split[2]), 1, 2), 2)
        x = p.add("add", x, p.layer("linear", mixed, width, width))
        y = p.add("gelu", p.layer("linear", p.add("layer_norm", x, (width,)), wider, width))
        x = p.add("add", x, p.layer("linear", y, width, wider))


def vit_large(p: Program) -> tuple:
    transformer(p, 24, 1024, 16, 4096)
    return 197, 1024


def llama_block(p: Program) -> tuple:
    transformer(p, 1, 4096, 32, 11008)
    return 2048, 4096


def u_net(p: Program) -> tuple:
    x = p.layer("conv2d", X, 64, 3, 3, 3, more=((1, 1), (1, 1)))
    for _ in range(3):
        x = p.add("relu", p.layer("conv2d", x, 64, 64, 3, 3, more=((1, 1), (1, 1))))
    return 3, 512, 512


@pytest.mark.parametrize("make", [vgg_16, resnet_152, vit_large, llama_block, u_net])
def test_large_and_honest_networks_are_far_below(make):
    """Each as a file of half a bit for each of its weights."""
    program = Program()
    shape = make(program)
    limits = Limits().of_file(program.numbers() // 16)
    outline_of_two(check_program(program.nodes), [Form(shape)], program.tensors, limits)


def test_a_convolution_of_a_small_file_over_large_pictures_is_honest():
    program = Program()
    x = program.layer("conv2d", X, 16, 3, 3, 3, more=((1, 1), (1, 1)))
    for _ in range(4):
        x = program.add("relu", program.layer("conv2d", x, 16, 16, 3, 3, more=((1, 1), (1, 1))))
    program.add("mean", x, (2, 3))
    outline_of_two(check_program(program.nodes), [Form((3, 224, 224))], program.tensors, Limits().of_file(3000))


def test_limits_are_told_with_both_numbers():
    limits = Limits(multiplications=10, multiplications_per_byte=2).of_file(5)
    assert limits.of_file(1000) == limits
    limits.check(Cost(multiplications=20))
    with pytest.raises(ExcessError, match=r"it takes 21 multiplications, and the limit is 20 \(limits=… raises it\)"):
        limits.check(Cost(multiplications=21))


def test_an_honest_file_is_within_its_limits():
    small = random_network(1)
    assert CompressedNetwork.from_bytes(small.to_bytes()).limits == Limits().of_file(len(small.to_bytes()))
