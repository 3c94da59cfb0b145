"""Files that mean harm: every truncation, every changed byte, random bytes, and what a fuzzer finds by coverage.

    pip install atheris && python analyses/robustness/hostile.py --seconds 900

Each is a ``CompressedFileError`` or a network that can be written again to the same numbers; anything else ends the
script with the file that did it. Checksums are corrected, unless it is said that they are not, since they would
refuse nearly all. Well formed programs whose arguments, operations and connections are changed at random are loaded and
predict, each under limits on memory and time, in a child process that a signal may end. Counts go to
``analyses/results/hostile.md``; the fuzzer's corpus, made small, to ``tests/corpus/``, where the tests read it.
"""

import argparse
import contextlib
import json
import math
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress, track
from torch import nn

from pyro_bc.errors import CompressedFileError
from pyro_bc.file.chain import KNOWN, Chain, Layer, prune
from pyro_bc.file.compressed import CompressedNetwork, read_sections
from pyro_bc.file.contents import Contents, Integers
from pyro_bc.file.format import encode
from pyro_bc.graph.nodes import Named, Node, Value, is_layer
from pyro_bc.graph.operations import OPERATIONS
from pyro_bc.graph.read import read_graph
from pyro_bc.quantisation.fixed_point import FixedPoint

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS

CORPUS = Path(__file__).parents[2] / "tests" / "corpus"
MOST_FILES, MOST_BYTES = 120, 600  # of the corpus that is kept, and of each of its files


class Branches(nn.Module):
    """Operations of every kind: branches, pieces, normalisations, integers, a recurrent cell."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1, groups=2)
        self.norm, self.groups = nn.BatchNorm2d(4), nn.GroupNorm(2, 4)
        self.cell = nn.LSTM(8, 3, batch_first=True)
        self.head = nn.Linear(15, 3)
        self.position = nn.Parameter(torch.zeros(1, 4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x)) + self.position
        a, b = x.chunk(2, 1)
        x = torch.cat([a.relu(), nn.functional.gelu(b, approximate="tanh")], 1)
        x = self.groups(nn.functional.max_pool2d(x, 2))
        x = x.reshape(x.shape[0], x.shape[2] * x.shape[3], -1).transpose(1, 2).reshape(x.shape[0], -1, 8)
        x = nn.functional.pad(self.cell(x)[0].flatten(1), (0, 12))[:, :15]
        return self.head(x).log_softmax(1)


def from_module(net: nn.Module, shape: tuple[int, ...], spread: float = 6.0) -> Contents:
    """A network's graph with random codes."""
    graph = read_graph(net.eval(), torch.rand(2, *shape))
    tensors = {}
    for name, tensor in graph.tensors.items():
        codes = (spread * torch.randn(tensor.shape)).round().long()
        tensors[name] = FixedPoint(codes, 4) if tensor.is_floating_point() else Integers(tensor)
    layers = [node.args[1].name for node in graph.nodes if is_layer(node)]
    shapes = {name: (graph.tensors[name].shape[0], graph.tensors[name].shape[1]) for name in layers}
    return Contents(graph.nodes, tensors, shapes, 100, shape, graph.buffers)


def from_chain(chain: Chain, widths: tuple[int, ...], cosines: bool, spread: float) -> Contents:
    pruned = prune(chain, widths)
    tensors = {}
    for name, shape in pruned.shapes.items():
        grid = pruned.grids.get(name, ()) if cosines else ()
        tensors[name] = FixedPoint((spread * torch.randn(shape)).round().long(), 3, grid if len(grid) > 1 else ())
    return Contents(pruned.nodes, tensors, pruned.dense_shapes, pruned.dense_parameters, chain.input_shape, frozenset())


def seeds() -> list[bytes]:
    """Small valid files of every kind."""
    torch.manual_seed(0)
    own = Chain((1, 9, 9), (Layer(4, 3, 2, 1), 3, 1, Layer(3, 1, bias=False), 0, 2, Layer(4), 4, Layer(3)))
    transformer = nn.TransformerEncoderLayer(4, 2, 6, 0.0, batch_first=True)
    found = [
        encode(from_chain(KNOWN[2], (3, 2, 10), True, 0.3)),
        encode(from_chain(KNOWN[1], (1, 2, 3, 10), True, 0.2)),
        encode(from_chain(own, (2, 2, 3, 3), False, 0.5)),
        encode(from_chain(own, (3, 2, 3, 3), True, 200.0)),
        encode(from_module(nn.Sequential(nn.Linear(5, 3), nn.Softplus(), nn.Linear(3, 2)), (5,), 3000.0)),
        encode(from_module(Branches(), (2, 4, 4))),
        encode(from_module(nn.Sequential(transformer, nn.Flatten(), nn.Linear(8, 2)), (2, 4), 1.0)),
        encode(from_module(nn.Sequential(nn.Conv1d(2, 2, 3), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(4, 2)), (2, 6))),
    ]
    return found


def with_checksum(body: bytes, version: int = 3) -> bytes:
    return b"PBC" + bytes([version]) + struct.pack("<I", zlib.crc32(body)) + body


def outcome(data: bytes) -> str:
    """``refused``, or ``network`` where the file is one that can be written again to the same numbers."""
    try:
        network, sections = read_sections(data)
    except CompressedFileError:
        return "refused"
    assert sections["header"] >= 8
    again = CompressedNetwork.from_bytes(network.to_bytes())
    for ours, theirs in zip(network.tensors.values(), again.tensors.values(), strict=True):
        assert type(ours) is type(theirs) and vars(ours).keys() == vars(theirs).keys()
        for key, value in vars(ours).items():
            other = vars(theirs)[key]
            if isinstance(value, torch.Tensor) and value.is_floating_point():  # NaN is a bit pattern, too
                value, other = value.view(torch.int32), other.view(torch.int32)
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
    return "network"


def checked(data: bytes, slowest: list[float]) -> str:
    started = time.perf_counter()
    try:
        found = outcome(data)
    except BaseException:
        Path("hostile.pbc").write_bytes(data)
        print("hostile.pbc did this:", file=sys.stderr)
        raise
    slowest[0] = max(slowest[0], time.perf_counter() - started)
    return found


def rows() -> list[tuple[str, Counter, float]]:
    files, table = sorted(seeds(), key=len)[:5], []
    for name, kind in (("truncations", truncations), ("changed bytes, checksum as it was", changes)):
        slowest = [0.0]
        counts = Counter(checked(data, slowest) for file in track(files, name) for data in kind(file))
        assert counts["network"] == 0, name
        table.append((f"all {name}, {len(files)} files", counts, slowest[0]))
    slowest = [0.0]
    changed = (with_checksum(data[8:]) for file in track(files, "changed bytes") for data in changes(file, 8))
    table.append(
        (
            f"all changed bytes, checksum right, {len(files)} files",
            Counter(checked(data, slowest) for data in changed),
            slowest[0],
        )
    )
    slowest, generator = [0.0], random.Random(0)
    noise = (with_checksum(generator.randbytes(generator.randrange(200))) for _ in track(range(20_000), "random bytes"))
    table.append(("random bytes, checksum right", Counter(checked(data, slowest) for data in noise), slowest[0]))
    return table


def truncations(file: bytes):
    return (file[:length] for length in range(len(file)))


def changes(file: bytes, first: int = 0):
    """The file with one byte changed, in every way; of a long one every position in the first 200 bytes."""
    positions = range(first, min(len(file), 200))
    return (file[:p] + bytes([file[p] ^ change]) + file[p + 1 :] for p in positions for change in range(1, 256))


#: what an argument becomes: what is at a limit, beyond it, of another kind, or is acted on by a terminal.
_NUMBERS = (0, 1, -1, 2, 3, 7, 16, 100, 4096, 1 << 16, 1 << 24, 1 << 28, 1 << 31, 1 << 40, 1 << 61, -(1 << 40))
_OTHERS = (
    None,
    True,
    False,
    0.0,
    0.5,
    -1.0,
    math.inf,
    math.nan,
    1e30,
    "same",
    "float32",
    "tanh",
    "\x1b[31m",
    (),
    (1, 1),
)
_KEYWORDS = ("dtype", "dim", "stride", "alpha", "approximate", "out_dtype", "memory_format", "bogus")

# Limits on one program: seconds, and bytes of memory beside what the libraries take.
_SECONDS, _MEMORY = 20, 6 << 30


def forged(generator: random.Random, contents: Contents) -> bytes:
    """A network's file with one to three changes to its program; shapes known or not."""
    nodes = list(contents.nodes)
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        at = generator.randrange(len(nodes))
        nodes[at] = _changed(generator, at, nodes[at], tuple(contents.tensors))
    names = dict.fromkeys(name for node in nodes for name in node.named())
    weights = {node.args[1].name for node in nodes if is_layer(node)}
    tensors = {name: contents.tensors[name] for name in names}
    dense = {name: contents.dense_shapes.get(name, (1, 1)) for name in weights}
    shape = contents.input_shape if generator.random() < 0.6 else ()
    return encode(Contents(tuple(nodes), tensors, dense, 100, shape, contents.buffers.intersection(names)))


def _changed(generator: random.Random, at: int, node: Node, names: tuple[str, ...]) -> Node:
    kind, args = generator.random(), list(node.args)
    if kind < 0.1:
        return replace(node, op=generator.choice(OPERATIONS).name)
    if kind < 0.2:
        return replace(node, args=(*args, _other(generator, at, names)))
    if kind < 0.3:
        return replace(node, kwargs=(*node.kwargs, (generator.choice(_KEYWORDS), _other(generator, at, names))))
    if kind < 0.35 or not args:
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
    if kind < 0.5:
        return generator.choice(_NUMBERS)
    if kind < 0.7:
        return generator.choice(_OTHERS)
    return Value(generator.randrange(-1, at)) if kind < 0.85 or not names else Named(generator.choice(names))


def predicted(data: bytes, shape: tuple[int, ...]) -> str:
    """``refused``; ``no prediction`` where the network raises on three inputs; or ``predicted``."""
    if outcome(data) == "refused":
        return "refused"
    net = CompressedNetwork.from_bytes(data).network()
    try:
        with torch.no_grad():
            assert isinstance(net(torch.rand(3, *shape)), torch.Tensor)
    except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError):
        return "no prediction"
    return "predicted"


def programs(count: int, batch: int = 250) -> tuple[Counter, float]:
    """Forged programs in child processes; :raises SystemExit: with the file, where one ends its process."""
    torch.manual_seed(0)
    transformer = nn.TransformerEncoderLayer(4, 2, 6, 0.0, batch_first=True)
    networks = [
        from_module(Branches(), (2, 4, 4)),
        from_module(nn.Sequential(transformer, nn.Flatten(), nn.Linear(8, 2)), (2, 4), 1.0),
        from_module(nn.Sequential(nn.Conv1d(2, 2, 3), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(4, 2)), (2, 6)),
        from_module(
            nn.Sequential(
                nn.ConvTranspose2d(1, 2, 3, 2), nn.PReLU(), nn.Upsample(scale_factor=2), nn.AdaptiveAvgPool2d(2)
            ),
            (1, 4, 4),
        ),
        from_module(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.InstanceNorm2d(2), nn.PixelShuffle(1)), (1, 4, 4)),
    ]
    counts, slowest, done = Counter[str](), 0.0, 0
    with Progress() as progress:
        shown = progress.add_task("forged programs", total=count)
        while done < count:
            reader, writer = os.pipe()
            child = os.fork()
            if not child:
                with contextlib.suppress(BaseException):
                    _batch(networks, range(done, min(count, done + batch)), writer)
                    os._exit(0)
                os._exit(1)
            os.close(writer)
            with os.fdopen(reader) as told:
                lines = [line.split(";") for line in told.read().splitlines()]
            ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if ended == -signal.SIGALRM:
                lines.append(["too long", str(_SECONDS)])
            elif ended:
                sys.exit(f"the process of program {done + len(lines)} ended with {ended}; hostile.pbc did it")
            counts.update(what for what, _ in lines)
            slowest = max(slowest, *(float(seconds) for _, seconds in lines))
            done += len(lines)
            progress.update(shown, completed=done)
    return counts, slowest


def _batch(networks: list[Contents], numbers: range, writer: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    torch.set_num_threads(1)
    for number in numbers:
        generator = random.Random(number)
        contents = generator.choice(networks)
        started = time.perf_counter()
        try:
            data = forged(generator, contents)
        except (LookupError, TypeError, ValueError, AttributeError, AssertionError, struct.error):
            os.write(writer, b"never written;0\n")  # even our writer needs some sense
            continue
        Path("hostile.pbc").write_bytes(data)
        signal.alarm(_SECONDS)
        found = predicted(data, contents.input_shape)
        signal.alarm(0)
        os.write(writer, f"{found};{time.perf_counter() - started}\n".encode())
    Path("hostile.pbc").unlink(missing_ok=True)


def fuzz(seconds: int) -> dict:
    """Atheris in a process of its own, from the corpus and the seeds; the corpus is then made small."""
    with tempfile.TemporaryDirectory() as folder:
        start, grown, stats = (Path(folder) / name for name in ("start", "grown", "stats.json"))
        for path in (start, grown):
            path.mkdir()
        for number, data in enumerate([*seeds(), *(file.read_bytes() for file in sorted(CORPUS.glob("*.pbc")))]):
            (start / str(number)).write_bytes(bytes([data[3]]) + data[8:])
        worker = [sys.executable, str(Path(__file__).with_name("hostile_fuzz.py")), str(stats)]
        limits = ["-rss_limit_mb=1500", "-timeout=20", "-max_len=2048", "-verbosity=1", "-print_final_stats=1"]
        done = subprocess.run([*worker, str(grown), str(start), f"-max_total_time={seconds}", *limits])
        if done.returncode:
            sys.exit(f"the fuzzer ended with {done.returncode}; its crash-…, oom-… or timeout-… file lies here")
        found = sorted((file.read_bytes() for file in grown.iterdir()), key=len)
        few = [data for data in found if 1 < len(data) <= MOST_BYTES]
        kept = few[:: max(1, math.ceil(len(few) / MOST_FILES))]
        for file in CORPUS.glob("*.pbc"):
            file.unlink()
        CORPUS.mkdir(exist_ok=True)
        for number, data in enumerate(kept):
            (CORPUS / f"{number:03}.pbc").write_bytes(with_checksum(data[1:], 2 if data[0] == 2 else 3))
        return json.loads(stats.read_text()) | {"corpus": len(found), "kept": len(kept)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=900, help="of fuzzing")
    parser.add_argument("--programs", type=int, default=100_000, help="forged programs")
    args = parser.parse_args()
    counts, slowest = programs(args.programs)
    table = rows()
    found = fuzz(args.seconds)
    lines = [
        "# Hostile files",
        "",
        f"`python analyses/robustness/hostile.py --seconds {args.seconds} --programs {args.programs}`. Each is refused "
        "with a `CompressedFileError`, or "
        "is a network whose numbers come back when it is written again.",
        "",
        "| inputs | tried | refused | networks | slowest |",
        "|---|---|---|---|---|",
    ]
    for name, counts, slowest in table:
        lines.append(
            f"| {name} | {sum(counts.values()):,} | {counts['refused']:,} | {counts['network']:,} | {slowest:.2f} s |"
        )
    loaded = counts["predicted"] + counts["no prediction"] + counts["too long"]
    lines.append(
        f"| well formed programs, arguments, operations and connections changed | {loaded + counts['refused']:,} | "
        f"{counts['refused']:,} | {loaded:,}, of which {counts['no prediction']:,} raise at a prediction and "
        f"{counts['too long']:,} take longer than {_SECONDS} s | {slowest:.2f} s |"
    )
    counts = found["counts"]
    lines.append(
        f"| coverage-guided (atheris), {found['seconds'] / 60:.0f} minutes, checksum right | "
        f"{sum(counts.values()):,} | {counts.get('refused', 0):,} | {counts.get('network', 0):,} | < 20 s (its limit) |"
    )
    lines += [
        "",
        f"The fuzzer's corpus grew to {found['corpus']} files, of which {found['kept']} are in `tests/corpus/`; its "
        f"process never took more than {found['peak_mb']:,} MB (limit 1,500), torch included.",
    ]
    text = "\n".join(lines) + "\n"
    (RESULTS / "hostile.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
