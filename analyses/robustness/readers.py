"""Files of every other kind that the command reads, damaged and forged: each is used, or refused in one line.

    python analyses/robustness/readers.py --files 20000 --seconds 90

Data sets, trained weights, and every file of a run's folder: of each a whole one is changed at random (bytes turned,
cut off, doubled, put in from another; numbers of the header set to what is at a limit), or is one that was forged to
take time or memory. The command that reads it is then run in a child process under limits on time and memory. Right is
exit code 0, or 2 with one line behind what the command says anyway, and no other file than before.
"""

import argparse
import contextlib
import gzip
import io
import math
import os
import pickle
import random
import struct
import sys
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image

sys.path.append(str(Path(__file__).parents[1]))

from children import Tally, each, shown
from common import RESULTS

from pyro_bc.app.cli import main as command
from pyro_bc.app.networks import NETWORKS

STATE = RESULTS / "readers.json"

#: bytes of memory that a file of some kilobytes may take.
_MOST_MEMORY = 1 << 29

_WHERE = Path(tempfile.gettempdir()) / "pyro-bc-readers"

#: bytes of files that are one after the other in all headers: sizes, counts, offsets.
_LIMITS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)

#: what a number in a text becomes.
_TEXTS = (b"0", b"-1", b"99999999999999999999", b"1e400", b"NaN", b"null", b"[[", b'""', b"{}")

_RUN = ("run", "--net", "lenet-300-100", "--prior", "gnj", "--data", "digits", "--widths", "8-8", "--epochs", "2",
        "--pretrain-epochs", "1", "--train-limit", "100", "--development")  # fmt: skip


@cache
def kinds() -> dict[str, tuple[Path, tuple[str, ...], tuple[str, ...]]]:
    """By the kind: a file or folder with whole content, names of the files in it that are changed, and the command."""
    _WHERE.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    pictures, classes = rng.integers(0, 256, (40, 8, 8), np.uint8), np.arange(40) % 10
    found: dict[str, tuple[Path, tuple[str, ...], tuple[str, ...]]] = {}
    run = _WHERE / "run"
    if not (run / "metrics.json").exists():
        assert command([*_RUN, "--out", str(run)]) == 0
    network = str(run / "network.pbc")

    def data(name: str, files: dict[str, bytes], *options: str) -> None:
        folder = _WHERE / name
        for file, content in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        path = next(iter(files)) if len(files) == 1 and not options else "."
        found[name] = (folder, tuple(files), ("evaluate", network, "--data", path))

    data("npy", {"x.npy": _written(lambda file: np.save(file, pictures))})
    parts = {"x": pictures, "y": classes, "test_x": pictures, "test_y": classes}
    data("npz", {"x.npz": _written(lambda file: np.savez(file, **parts))})
    data("npz packed", {"x.npz": _written(lambda file: np.savez_compressed(file, **parts))})
    tensors = {name: torch.tensor(part) for name, part in parts.items()}
    data("safetensors", {"x.safetensors": safetensors.torch.save(tensors)})
    numbers = np.concatenate([pictures.reshape(40, 64), classes[:, None]], 1).tolist()
    rows = [[*(f"a{i}" for i in range(64)), "y"], *numbers]
    data("csv", {"x.csv": "\n".join(",".join(map(str, row)) for row in rows).encode()})
    data("tsv", {"x.tsv": "\n".join("\t".join(map(str, row)) for row in rows).encode()})
    with contextlib.suppress(ImportError):
        import pandas

        frame = pandas.DataFrame(rows[1:], columns=rows[0])
        data("parquet", {"x.parquet": _written(frame.to_parquet)})
    for ending in ("png", "jpg", "gif", "bmp", "webp", "tif", "ppm"):
        folders = ((kind, number) for kind in "ab" for number in range(3))
        data(
            f"pictures, {ending}",
            {f"{kind}/{number}.{ending}": _picture(pictures[number], ending) for kind, number in folders},
        )
    idx = {
        f"{part}-{name}": b"\0\0\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + content
        for part in ("train", "t10k")
        for name, shape, content in (
            ("images-idx3-ubyte", (40, 8, 8), pictures.tobytes()),
            ("labels-idx1-ubyte", (40,), classes.astype(np.uint8).tobytes()),
        )
    }
    data("idx", idx)
    data("idx packed", {f"{name}.gz": gzip.compress(content) for name, content in idx.items()})
    colour = rng.integers(0, 256, (2, 3072), np.uint8)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    python = {name: pickle.dumps({b"data": colour, b"labels": [1, 2]}, 2) for name in names}
    binary = {f"{name}.bin": b"".join(bytes([1]) + row.tobytes() for row in colour) for name in names}
    data("cifar, python", python)
    data("cifar, binary", binary)
    for ending, mode in (("tar", "w"), ("tar.gz", "w:gz"), ("tar.xz", "w:xz"), ("tar.bz2", "w:bz2")):
        data(f"cifar, {ending}", {f"cifar.{ending}": _tar(python, mode)})
    data("cifar, zip", {"cifar-bin.zip": _zip(binary)})

    net = NETWORKS["lenet-300-100"]((1, 8, 8), 10)
    state = net.state_dict()
    weights = _WHERE / "weights"
    weights.mkdir(exist_ok=True)
    safetensors.torch.save_file(state, weights / "w.safetensors")
    torch.save(state, weights / "w.pt")
    torch.save(state, weights / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("w.safetensors", "w.pt", "old.pth"):
        # Refused in the end, for its epochs, but not before the weights were read.
        argv = (*_RUN, "--weights", name, "--out", "none", "--threshold", "none=1")
        found[f"weights, {name}"] = (weights, (name,), argv)
    unfinished = _WHERE / "unfinished"
    if not unfinished.exists():
        unfinished.mkdir()
        for name in ("run.json", "dense.safetensors", "checkpoint"):
            (unfinished / name).write_bytes((run / name).read_bytes())
    for name in ("run.json", "dense.safetensors", "checkpoint"):
        found[f"resumed, {name}"] = (unfinished, (name,), (*_RUN, "--out", ".", "--resume"))
    for name in ("metrics.json", "run.json"):
        found[f"resumed at its end, {name}"] = (run, (name,), (*_RUN, "--out", ".", "--resume"))
    for name in ("run.json", "metrics.json", "posterior.nc", "network.pbc"):
        found[f"report, {name}"] = (run, (name,), ("report", "."))
    found["inspect"] = (run, ("network.pbc",), ("inspect", "network.pbc"))
    return found


def _picture(pixels: np.ndarray, ending: str) -> bytes:
    kind = {"jpg": "jpeg", "tif": "tiff"}.get(ending, ending)
    return _written(lambda file: Image.fromarray(pixels).save(file, kind))


def _written(write: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def _tar(files: dict[str, bytes], mode: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def _zip(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def changed(generator: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """A file with one to four changes."""
    found = bytearray(data)
    near = min(len(found), generator.choice((64, 512, 4096, 1 << 30)))  # most of a format is at its beginning
    for _ in range(generator.choice((1, 1, 2, 4))):
        at = generator.randrange(max(1, near))
        if generator.random() < 0.3:  # and at its end
            at = max(0, len(found) - 1 - generator.randrange(max(1, min(near, 400))))
        kind = generator.randrange(9)
        if kind < 2 and at < len(found):
            found[at] ^= 1 << generator.randrange(8)
        elif kind == 2 and at < len(found):
            found[at] = generator.choice((0, 1, 0x7F, 0x80, 0xFF, ord("9"), ord("-"), ord('"'), ord("[")))
        elif kind == 3:
            size = generator.choice((1, 2, 4, 8))
            number = generator.choice(_LIMITS) & ((1 << 8 * size) - 1)
            found[at : at + size] = number.to_bytes(size, generator.choice(("little", "big")))
        elif kind == 4:
            del found[at:]
        elif kind == 5:
            del found[at : at + generator.choice((1, 4, 100))]
        elif kind == 6:
            found[at:at] = found[at : at + generator.choice((1, 4, 100, 4000))]
        elif kind == 7:
            other = generator.choice(others)
            start = generator.randrange(max(1, len(other)))
            found[at : at + generator.choice((0, 8))] = other[start : start + generator.choice((8, 200))]
        else:
            numbers = [i for i in range(min(len(found), 1 << 16)) if 48 <= found[i] < 58]
            if numbers:  # digits of a text
                at = generator.choice(numbers)
                found[at : at + 1] = generator.choice(_TEXTS)
    return bytes(found)


@cache
def _content(kind: str, name: str) -> bytes:
    return (kinds()[kind][0] / name).read_bytes()


@cache
def _others() -> list[bytes]:
    return [_content(kind, names[0]) for kind, (_, names, _) in kinds().items()]


def work(chosen: list[str], number: int) -> Callable[[], str]:
    """One changed file of one of these kinds, and the command that reads it."""
    generator = random.Random(number)
    kind = chosen[number % len(chosen)]
    folder, names, argv = kinds()[kind]
    name = generator.choice(names)
    content = changed(generator, _content(kind, name), _others())
    own = _WHERE / f"child-{os.getpid()}"
    own.mkdir(exist_ok=True)
    _copied(folder, own)
    _replace(own / name, content)
    os.chdir(own)
    return lambda: f"{kind};{told(argv, own)}"


def _copied(folder: Path, own: Path) -> None:
    """Make one folder what another is, by links to files that nobody writes into."""
    for root, _, files in os.walk(own, topdown=False):
        for file in files:
            os.unlink(os.path.join(root, file))
        if root != str(own):
            os.rmdir(root)
    for file in folder.rglob("*"):
        if file.is_file() and file.name != ".lock":
            (own / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            os.link(file, own / file.relative_to(folder))


def _replace(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != ".lock")
    return {str(file): (file.stat().st_mtime_ns, file.stat().st_size) for file in files}


def told(argv: tuple[str, ...], folder: Path) -> str:
    """What the command came to."""
    before = _state(folder)
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), warnings.catch_warnings():
        warnings.simplefilter("default")
        for usual in (ResourceWarning, DeprecationWarning):  # which Python does not show
            warnings.simplefilter("ignore", usual)
        try:
            code = command(list(argv))
        except SystemExit as error:
            code = error.code
        except BaseException as error:
            return f"! {type(error).__name__}: {str(error)[:150]!r}"
    said = errors.getvalue().splitlines()
    if code == 0:
        return "used"
    if code != 2 or not said or not said[-1].startswith("pyro-bc: "):
        return f"! exit code {code}: {said[-1:]!r}"
    if any("Warning" in line for line in said):
        return f"! a warning: {next(line for line in said if 'Warning' in line)!r}"
    if _state(folder) != before and argv[0] != "run":
        return "! files changed"
    return "refused"


def tried(counted: Tally, state: Path, count: int, seconds: float, chosen: list[str]) -> None:
    """Try files until there were so many, or so much time has passed."""
    _others()  # before the fork: each child has them
    pieces = each(range(counted.done, count), partial(work, chosen), seconds, 400)
    for piece in shown(pieces, "files", counted, count, state):
        kind, _, what = piece.told.rpartition(";")
        kind = kind or chosen[piece.number % len(chosen)]
        if piece.peak > _MOST_MEMORY and not what.startswith("!"):
            what = "! more than 512 MiB"
        counted.add(piece, f"{kind}: {what}", list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=math.inf, help="of this call; a later one goes on")
    parser.add_argument("--state", type=Path, default=STATE, help="where counts are kept")
    parser.add_argument("--kinds", default="", help="only those that begin so; several with semicolons between")
    args = parser.parse_args()
    chosen = [kind for kind in kinds() if kind.startswith(tuple(args.kinds.split(";")))]
    counted = Tally.of(args.state)
    tried(counted, args.state, args.files, args.seconds, chosen)
    for told, count in sorted(counted.counts.items()):
        print(f"{count:8,} {told}")
    print(f"{counted.done:,} files, slowest {counted.slowest:.1f} s, most memory {counted.peak >> 20} MiB")


if __name__ == "__main__":
    main()
