"""Programs that no network asks for: drawn from the operations' rows, loaded, and predicted with, each by itself.

    python analyses/robustness/programs.py --programs 100000 --seconds 90

A program is an example of an operation with one argument changed (every argument of every example, to each of the
values in ``VALUES``), or several examples behind each other with operations, arguments, connections, tensors and the
input's shape changed at random; its input's shape is in the file or not. It is read, and predicts two batches of
different size, in parts and whole, in a child process under limits on time and memory; where a signal or the clock ends
that, it was the program that the child was at, and a new child goes on with the next. A number says which program it
is, so that each can be made again: ``--only 4711``.

Counts are kept in ``analyses/results/programs.json``, and a later call goes on from there.
"""

import argparse
import math
import random
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "tests")]

from children import SECONDS, Tally, each, memory, shown
from common import RESULTS
from graph.test_operations import Example, examples

from pyro_bc.errors import CompressedFileError, PyroBCError
from pyro_bc.file.compressed import CompressedNetwork
from pyro_bc.file.contents import Contents, Floats, Integers, Stored
from pyro_bc.file.format import encode
from pyro_bc.graph import fast
from pyro_bc.graph.arguments import signatures
from pyro_bc.graph.functions import GATES
from pyro_bc.graph.nodes import DTYPE_NAMES, Named, Node, Value, is_layer, leaves, replace_leaves
from pyro_bc.graph.operations import OPERATIONS
from pyro_bc.quantisation.fixed_point import FixedPoint

STATE = RESULTS / "programs.json"

#: bytes that a program of a small file may take, and how long such a file is.
MOST_MEMORY, SMALL_FILE = 1 << 30, 10_000

#: what an argument becomes: what is at a limit, beyond it, or of another kind.
VALUES = (
    0, -1, 2, 7, 4096, 1 << 24, 1 << 31, 1 << 61, -(1 << 40), 0.5, math.nan, None, True, "same", (), (1, 1),
    Value(-1), Named("other"),
)  # fmt: skip

_OTHER_VALUES = (1, 3, 16, 100, 1 << 12, 1 << 16, 1 << 28, 1 << 40, -2, -7, 0.0, -1.0, 1e30, math.inf, False, "float32",
                 "int64", "complex64", "tanh", "\x1b[31m", (2, 2), (0, 0), (1,), (-1, 4), ((1, 1), (1, 1)))  # fmt: skip

#: how often an operation is repeated, and to how many numbers an input is repeated first.
_REPEATS, _LENGTHS = (2, 5, 20, 100, 500), tuple(1 << k for k in (4, 10, 16, 20, 24, 26, 27, 28))

#: inputs of examples behind layers of these dimensions.
_PICTURE = (4, 6, 6)

# A batch is not asked for where one example takes more bytes, or seconds of the processor: limits are of one example,
# and a batch is predicted four times, and compared.
_LARGE, _LONG = 1 << 26, 0.3

# No prediction with more numbers of input than this: it would be whoever predicts who asks for them.
_MOST_INPUT = 1 << 20


@dataclass(frozen=True)
class Program:
    """What a file is made of.

    :param shape: of one input, also where the file does not say it.
    :param is_known: whether it does.
    :param what: in a few words, for who reads a finding.
    """

    nodes: tuple[Node, ...]
    tensors: dict[str, Stored]
    shape: tuple[int, ...]
    is_known: bool
    what: str

    def written(self) -> bytes:
        """As a file; whatever even our writer needs is an error of its own."""
        names = dict.fromkeys(name for node in self.nodes for name in node.named())
        tensors = {name: self.tensors[name] for name in names}
        dense = {node.args[1].name: (1, 1) for node in self.nodes if is_layer(node)}
        shape = self.shape if self.is_known else ()
        return encode(Contents(self.nodes, tensors, dense, 100, shape, frozenset()))


@dataclass(frozen=True)
class Source:
    """An example of an operation as a program: what it reads, and the operation.

    :param is_variant: whether it is of an example that there is already.
    """

    before: tuple[Node, ...]
    node: Node
    tensors: dict[str, Tensor]
    shape: tuple[int, ...]
    is_variant: bool = False


@cache
def sources() -> tuple[Source, ...]:
    """All examples of all rows."""
    return tuple(source for row in OPERATIONS for example in examples(row) for source in _of_example(row.name, example))


def _of_example(op: str, example: Example) -> Iterator[Source]:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: given if isinstance(given, Tensor) else torch.rand(given, generator=generator) + 0.1
        for name, given in example.tensors.items()
    }
    shape = (4, *example.after[1])
    kwargs = tuple((key, DTYPE_NAMES.get(value, value)) for key, value in example.kwargs if key != "device")
    args = example.args[:1] if op == "to" else example.args
    kwargs = (("dtype", "int64"),) if op == "to" else kwargs
    node = Node(op, args, kwargs)
    before = [Node("relu", (Value(-1),)), Node("neg", (Value(-1),)), *filter(None, [example.before])]
    if op in GATES:  # whose states are made for the batch
        state = Value(len(before) + 1)
        before += [Node("size", (Value(-1), 1)), Node("zeros", ((1, Value(2), 3),))]
        node = replace(node, args=(args[0], (state, state) if op == "lstm" else state, *args[2:]))
    yield Source(tuple(before), node, tensors, shape)
    if op in GATES:  # the batch comes first
        before[2:] = [Node("size", (Value(-1), 0)), Node("zeros", ((1, Value(2), 3),))]
        yield Source(tuple(before), replace(node, args=(*node.args[:-1], True)), tensors, shape)
    if example.after[1] == (6, 6) and op not in GATES:  # behind a layer of the network's own
        own = {"first.weight": torch.rand(4, 4, 1, 1, generator=generator), "first.bias": torch.zeros(4)}
        layer = Node("conv2d", (Value(-1), Named("first.weight"), Named("first.bias")))
        yield Source((layer, *before[1:]), node, tensors | own, shape, is_variant=True)


def _stored(generator: random.Random, tensor: Tensor) -> Stored:
    """A tensor as one of the kinds that a file has for it."""
    if not tensor.is_floating_point():
        return Integers(tensor.long(), tensor.dtype)
    kind, codes = generator.random(), (16 * tensor).round().long()
    if kind < 0.15 and tensor.dim() > 1 and tensor.shape[-1] > 1:
        return FixedPoint(codes, 4, tuple(tensor.shape[-min(2, tensor.dim() - 1) :]))
    if kind < 0.25 and tensor.dim():
        return FixedPoint(codes, 4, rows=torch.arange(len(tensor)) % 5)
    if kind < 0.35:
        return Floats(tensor.float() if kind < 0.33 else torch.full_like(tensor, math.nan, dtype=torch.float32))
    return FixedPoint(codes, generator.choice((4, 4, 4, 20, -8)))


def _finished(nodes: list[Node]) -> tuple[Node, ...]:
    """The nodes, and what makes of the last one's result one tensor that depends on the input."""
    last, found = Value(len(nodes) - 1), {own.result for own in signatures(nodes[-1].op)}
    if found == {"List[Tensor]"}:
        nodes.append(Node("getitem", (last, 0)))
        last = Value(len(nodes) - 1)
    if found == {"int"}:
        nodes.append(Node("mul", (Value(-1), last)))
    elif not _reads_input(nodes):
        nodes += [Node("sum", (last,)), Node("add", (Value(-1), Value(len(nodes))))]
    return tuple(nodes)


def _reads_input(nodes: list[Node]) -> bool:
    reads: list[bool] = []
    for node in nodes:
        reads.append(any(index < 0 or reads[index] for index in node.values()))
    return reads[-1]


@dataclass(frozen=True)
class Change:
    """One argument of one example, and what it becomes.

    :param place: position, or name of what is given by its name.
    :param inner: position in the list that it is; None for all of it.
    """

    source: Source
    place: int | str
    inner: int | None
    value: Any
    is_known: bool


@cache
def changes() -> tuple[Change, ...]:
    """Every argument of every example, also those that it leaves out, to each of the values, in a mixed order."""
    found = []
    for source in sources():
        if source.is_variant:
            continue
        node = source.node
        places: list[tuple[int | str, int | None]] = []
        for at, argument in enumerate(node.args):
            places.append((at, None))
            places += [(at, inner) for inner in range(min(3, len(argument)))] if isinstance(argument, tuple) else []
        names = {key for key, _ in node.kwargs}
        for signature in signatures(node.op):
            names.update(own.name for own in signature.parameters[len(node.args) :])
        places += [(name, None) for name in sorted(names)]
        found += [
            Change(source, place, inner, value, is_known)
            for place, inner in places for value in VALUES for is_known in (True, False)
        ]  # fmt: skip
    random.Random(0).shuffle(found)
    return tuple(found)


def _changed(change: Change) -> Program:
    source, node, value = change.source, change.source.node, change.value
    if isinstance(change.place, str):
        by_name = [own for found in signatures(node.op) for own in found.parameters if own.name == change.place]
        positional = [own.name for own in signatures(node.op)[0].parameters if not own.by_name]
        if by_name[0].by_name or change.place not in positional:
            node = replace(
                node, kwargs=(*(own for own in node.kwargs if own[0] != change.place), (change.place, value))
            )
        else:  # in its place, behind the defaults of those before it
            defaults = [own.default for own in signatures(node.op)[0].parameters]
            at = positional.index(change.place)
            node = replace(node, args=(*node.args, *defaults[len(node.args) : at], value), kwargs=())
    else:
        args = list(node.args)
        if change.inner is None:
            args[change.place] = value
        else:
            inner = list(args[change.place])
            inner[change.inner] = value
            args[change.place] = tuple(inner)
        node = replace(node, args=tuple(args))
    tensors = {**source.tensors, "other": torch.ones(2, 3)}
    generator = random.Random(0)
    stored = {name: _stored(generator, tensor) for name, tensor in tensors.items()}
    nodes = _finished([*source.before, node])
    return Program(nodes, stored, source.shape, change.is_known, f"{node.op}: {change.place} is {value!r}")


def _drawn(generator: random.Random) -> Program:
    """Examples behind each other, changed at random."""
    first = generator.choice(sources())
    nodes, tensors, shape = [*first.before], dict(first.tensors), first.shape
    if generator.random() < 0.15:
        length = generator.choice(_LENGTHS)
        nodes = [Node("expand", (Value(-1), (-1, length))), *_moved(nodes, 1, Value(0))]
        shape = (1,)
    nodes.append(replace(first.node, args=_moved([first.node], len(nodes) - len(first.before), Value(0))[0].args))
    for number in range(generator.choice((0, 0, 1, 1, 2, 3, 6))):
        following = generator.choice(sources())
        names = {name: f"{name}.{number}" for name in following.tensors}
        tensors |= {names[name]: tensor for name, tensor in following.tensors.items()}
        last = Value(len(nodes) - 1)
        nodes += _moved([*following.before, following.node], len(nodes), last, names)
    if generator.random() < 0.1:
        repeats = generator.choice(_REPEATS)
        again = nodes[-1]
        if any(index >= -1 for index in again.values()):
            for _ in range(repeats):
                here = Value(len(nodes) - 1)
                nodes.append(replace(again, args=(here, *again.args[1:]) if isinstance(again.args[0], Value)
                                     else replace_leaves(again.args, lambda leaf, here=here:
                                                         here if isinstance(leaf, Value) else leaf)))  # fmt: skip
    tensors["other"] = torch.ones(2, 3)
    for _ in range(generator.choice((0, 1, 1, 1, 2, 3))):
        at = generator.randrange(len(nodes))
        nodes[at] = _other_node(generator, at, nodes[at], tuple(tensors))
    stored = {name: _stored(generator, _other_tensor(generator, tensor)) for name, tensor in tensors.items()}
    if generator.random() < 0.1:
        sizes = list(shape)
        sizes[generator.randrange(len(sizes))] = generator.choice((1, 2, 3, 5, 64, 1 << 12, 1 << 20, 1 << 24))
        shape = tuple(sizes)
    ops = " ".join(node.op for node in nodes[:8])
    return Program(_finished(nodes), stored, shape, generator.random() < 0.6, ops)


def _moved(nodes: list[Node], by: int, x: Value, names: dict[str, str] | None = None) -> list[Node]:
    """Nodes that come so many later, and read something else than the input."""

    def leaf(own: Any) -> Any:
        if isinstance(own, Value):
            return x if own.index < 0 else Value(own.index + by)
        return Named((names or {}).get(own.name, own.name)) if isinstance(own, Named) else own

    return [Node(node.op, replace_leaves(node.args, leaf), replace_leaves(node.kwargs, leaf)) for node in nodes]


def _other_node(generator: random.Random, at: int, node: Node, names: tuple[str, ...]) -> Node:
    kind, args = generator.random(), list(node.args)
    if kind < 0.15:
        return replace(node, op=generator.choice(OPERATIONS).name)
    if kind < 0.25 or not args:
        return replace(node, args=(*args, _other(generator, at, names)))
    if kind < 0.35:
        parameters = [own for found in signatures(node.op) for own in found.parameters]
        return replace(node, kwargs=(*node.kwargs, (generator.choice(parameters).name, _other(generator, at, names))))
    if kind < 0.4:
        return replace(node, args=tuple(args[:-1]))
    place = generator.randrange(len(args))
    if isinstance(args[place], tuple) and args[place] and generator.random() < 0.7:
        inner = list(args[place])
        inner[generator.randrange(len(inner))] = _other(generator, at, names)
        args[place] = tuple(inner)
    else:
        args[place] = _other(generator, at, names)
    return replace(node, args=tuple(args))


def _other(generator: random.Random, at: int, names: tuple[str, ...]) -> Any:
    kind = generator.random()
    if kind < 0.6:
        return generator.choice((*VALUES[:16], *_OTHER_VALUES))
    return Value(generator.randrange(-1, at)) if kind < 0.85 else Named(generator.choice(names))


def _other_tensor(generator: random.Random, tensor: Tensor) -> Tensor:
    """Mostly the tensor; else one of another shape, or with integers that are far off."""
    kind = generator.random()
    if kind < 0.9:
        return tensor
    if kind < 0.93 and not tensor.is_floating_point():
        return torch.full_like(tensor, generator.choice((-1, 7, 1 << 20, (1 << 24) - 1)) if tensor.dtype != torch.bool
                               else True)  # fmt: skip
    sizes = list(tensor.shape)
    if sizes and kind < 0.97:
        sizes[generator.randrange(len(sizes))] = generator.choice((1, 2, 3, 8, 100))
    else:
        sizes = [generator.choice((1, 2, 4, 6)) for _ in range(generator.randrange(5))]
    return torch.ones(sizes, dtype=tensor.dtype)


def program(number: int) -> tuple[Program, bytes]:
    """The program of this number, and its file."""
    turn, kind = divmod(number, 3)
    if kind < 2:
        every = changes()
        found = _changed(every[(2 * turn + kind) % len(every)])
        try:
            return found, found.written()
        except _UNWRITTEN:
            pass  # even our writer needs some sense
    generator = random.Random(number)
    while True:
        try:
            found = _drawn(generator)
            return found, found.written()
        except _UNWRITTEN:
            continue


_UNWRITTEN = (LookupError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError, struct.error)

#: what an operation may raise when it computes.
_RAISED = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, NotImplementedError)


def outcome(found: Program, data: bytes) -> str:
    """What came of a program, in words; what begins with ``!`` should not be."""
    try:
        small = CompressedNetwork.from_bytes(data)
    except CompressedFileError as error:
        return "refused" if str(error).isprintable() else "! a message that is not printable"
    except Exception as error:
        return f"! reading raises {type(error).__name__}"
    net, before = small.network(), memory("VmRSS")
    if math.prod(found.shape) > _MOST_INPUT:
        return "read, and too large for a prediction"
    told: set[str] = set()
    started = time.process_time()
    with torch.no_grad():
        one, peak = _computed(net, torch.rand(1, *found.shape)), memory("VmHWM")
    is_large = peak - before > _LARGE or time.process_time() - started > _LONG
    if isinstance(one, Tensor) and is_large:
        return "predicted one example, a large one"  # of which a batch takes as much for each
    for examples_of_batch in (2, 5):
        x = torch.rand(examples_of_batch, *found.shape)
        with torch.no_grad():
            parts = _computed(net, x)
            if isinstance(parts, PyroBCError):  # the shape of its input was not known before
                told.add("refused at the prediction")
                continue
            whole = _computed(super(fast.PredictionNetwork, net), x)
        for own in (parts, whole):
            if isinstance(own, Exception) and (isinstance(own, MemoryError) or "allocate memory" in str(own)):
                return "! a prediction asks for more memory than there is"
            if isinstance(own, Exception) and not isinstance(own, _RAISED):
                return f"! a prediction raises {type(own).__name__}"
        if isinstance(whole, Exception) or isinstance(parts, Exception):
            if type(whole) is not type(parts):
                return "! a prediction in parts ends otherwise than the whole"
            told.add("the prediction raises")
            continue
        if not isinstance(whole, Tensor):
            return "! the output is no tensor"
        if parts.shape != whole.shape or parts.dtype != whole.dtype or not _same(parts, whole):
            return "! a prediction in parts is not the whole"
        told.add("predicted")
    return "predicted one batch of two" if len(told) > 1 else told.pop()


def _computed(net: Any, x: Tensor) -> Any:
    """A network's output, or what it raises."""
    try:
        return net.forward(x)
    except Exception as error:
        error.__context__ = error.__cause__ = None
        return error.with_traceback(None)  # which holds what was computed until then


def _same(ours: Tensor, theirs: Tensor) -> bool:
    if not ours.is_floating_point() and not ours.is_complex():
        return torch.equal(ours, theirs)
    # Flat, as torch compares no more than 64 dimensions.
    return torch.allclose(ours.flatten(), theirs.flatten(), rtol=1e-3, atol=1e-4, equal_nan=True)


def _work(number: int) -> Callable[[], str]:
    found, data = program(number)
    return lambda: f"{len(data)};{outcome(found, data)}"


def _about(number: int) -> list[Any]:
    found, data = program(number)
    return [len(data), found.what[:150]]


def tried(counted: Tally, state: Path, count: int, seconds: float) -> None:
    """Try programs until there were so many, or so much time has passed."""
    changes()  # before the fork: each child has them
    fast.PART = 2  # so that every batch goes through in parts, where it may
    for piece in shown(each(range(counted.done, count), _work, seconds), "programs", counted, count, state):
        size, _, told = piece.told.rpartition(";")
        if piece.peak > MOST_MEMORY and int(size) < SMALL_FILE and not told.startswith("!"):
            told = "! more than 1 GiB"
        counted.add(piece, told, partial(_about, piece.number))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=math.inf, help="of this call; a later one goes on")
    parser.add_argument("--state", type=Path, default=STATE, help="where counts are kept")
    parser.add_argument("--only", type=int, help="one program, shown")
    args = parser.parse_args()
    if args.only is not None:
        found, data = program(args.only)
        print(found.what, found.shape, "known" if found.is_known else "unknown", f"{len(data)} bytes", sep="; ")
        for node in found.nodes[:30]:
            print("  ", node)
        for name, stored in found.tensors.items():
            if name in {leaf.name for node in found.nodes for leaf in leaves((node.args, node.kwargs))
                        if isinstance(leaf, Named)}:  # fmt: skip
                print("  ", name, type(stored).__name__, tuple(getattr(stored, "codes", torch.empty(0)).shape))
        torch.set_num_threads(1)
        fast.PART = 2
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        print(outcome(found, data))
        return
    counted = Tally.of(args.state)
    tried(counted, args.state, args.programs, args.seconds)
    for told, count in counted.counts.most_common():
        print(f"{count:8,} {told}")
    print(f"{counted.done:,} programs, {counted.done / max(1, counted.seconds):.0f} a second, slowest "
          f"{counted.slowest:.1f} s, most memory {counted.peak >> 20} MiB")  # fmt: skip


if __name__ == "__main__":
    main()
