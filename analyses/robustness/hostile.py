"""Files that mean harm: every truncation, every changed byte, random bytes, and what a fuzzer finds by coverage.

    pip install atheris && python analyses/robustness/hostile.py --seconds 900

Each is a ``CompressedFileError`` or a network that can be written again to the same numbers; anything else ends the
script with the file that did it. Checksums are corrected, unless it is said that they are not, since they would
refuse nearly all. Counts go to ``analyses/results/hostile.md``, with those of programs.py and readers.py; the fuzzer's
corpus, made small, to ``tests/corpus/``, where the tests read it.
"""

import argparse
import json
import math
import random
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.progress import track
from torch import nn

from pyro_bc.errors import CompressedFileError
from pyro_bc.file.chain import KNOWN, Chain, Layer, prune
from pyro_bc.file.compressed import CompressedNetwork, read_sections
from pyro_bc.file.contents import Contents, Integers
from pyro_bc.file.format import encode
from pyro_bc.graph.nodes import is_layer
from pyro_bc.graph.read import read_graph
from pyro_bc.quantisation.fixed_point import FixedPoint

sys.path.append(str(Path(__file__).parents[1]))
from children import Tally
from common import RESULTS

STATE = RESULTS / "hostile.json"
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
        slowest, counts = [0.0], Counter()
        for file in track(files, name):
            for data in kind(file):
                found = checked(data, slowest)
                # The version is not in the checksum: later ones read the same, which is the same network.
                assert found == "refused" or data[4:] == file[4:], name
                counts[found] += 1
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


def _of_files(kept: dict) -> Iterator[str]:
    for name, counts, slowest in kept.get("bytes", []):
        tried, refused, networks = sum(counts.values()), counts.get("refused", 0), counts.get("network", 0)
        yield f"| {name} | {tried:,} | {refused:,} | {networks:,} | {slowest:.2f} s |"
    if "fuzz" in kept:
        found = kept["fuzz"]
        counts = found["counts"]
        yield (
            f"| coverage-guided (atheris), {found['seconds'] / 60:.0f} minutes, checksum right | "
            f"{sum(counts.values()):,} | {counts.get('refused', 0):,} | {counts.get('network', 0):,} | "
            f"< 20 s (its limit) |"
        )


def _of_tally(tally: Tally, what: str) -> list[str]:
    """A tally as a table; what should not be last."""
    lines = ["", f"| {what} | count |", "|---|---|"]
    for told, count in sorted(tally.counts.items(), key=lambda item: ("!" in item[0], -item[1])):
        lines.append(f"| {told.replace('! ', '**')}{'**' * ('!' in told)} | {count:,} |")
    most = f"{tally.peak >> 20:,} MiB"
    return [*lines, "", f"{tally.done:,} tried; the slowest took {tally.slowest:.1f} s, the largest {most} of memory."]


def page(kept: dict) -> str:
    """All that was tried: bytes, programs, and files of other kinds."""
    lines = [
        "# Hostile files",
        "",
        "`python analyses/robustness/hostile.py --seconds 900`, `python analyses/robustness/programs.py` and `python "
        "analyses/robustness/readers.py`, in as many calls as it takes.",
        "",
        "Compressed networks. Each is refused with a `CompressedFileError`, or is a network whose numbers come back "
        "when it is written again.",
        "",
        "| inputs | tried | refused | networks | slowest |",
        "|---|---|---|---|---|",
        *_of_files(kept),
    ]
    if "fuzz" in kept:
        found = kept["fuzz"]
        lines += [
            "",
            f"The fuzzer's corpus grew to {found['corpus']} files, of which {found['kept']} are in `tests/corpus/`; "
            f"its process never took more than {found['peak_mb']:,} MB (limit 1,500), torch included.",
        ]
    programs, files = Tally.of(RESULTS / "programs.json"), Tally.of(RESULTS / "readers.json")
    if programs.done:
        lines += [
            "",
            "Programs of the operations' rows, valid and changed, read, then asked for two batches.",
        ]
        lines += _of_tally(programs, "programs")
    if files.done:
        lines += [
            "",
            "Files of every other kind, changed at random, and the command that reads them.",
        ]
        lines += _of_tally(files, "files")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=900, help="of fuzzing; 0 for none")
    parser.add_argument("--page", action="store_true", help="write the page from what is known, and try nothing")
    args = parser.parse_args()
    kept = json.loads(STATE.read_text()) if STATE.exists() else {}
    if not args.page:
        kept["bytes"] = rows()
    if not args.page and args.seconds:
        kept["fuzz"] = fuzz(args.seconds)
    STATE.write_text(json.dumps(kept, indent=1) + "\n")
    (RESULTS / "hostile.md").write_text(page(kept))
    print(page(kept))


if __name__ == "__main__":
    main()
