"""Compressed networks as ONNX, as int8 ONNX of their codes, and packed: differences, errors and bytes.

    python analyses/examples/export.py --data-dir ../shared/data/mnist

Each is the command ``pyro-bc export`` on a file in ``analyses/results``; the table goes to
``analyses/results/export.md``. What of a packed file is no number (operations, names, steps' and shapes' descriptions)
counts as its graph.
"""

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import onnx

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS

FILES = ("lenet-*seed0/network.pbc", "records/*.pbc", "transformer-digits-ghs.pbc")


def exported(file: Path, data: str, data_dir: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        paths = {kind: f"{folder}/{kind}.onnx" for kind in ("onnx", "int8", "packed")}
        arguments = [word for kind, path in paths.items() for word in (f"--{kind}", path)]
        arguments += ["--data", data, *(["--data-dir", data_dir] if data != "digits" else []), "--json"]
        command = [sys.executable, "-m", "pyro_bc", "export", str(file), *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(done.returncode)
        numbers = sum(len(own.raw_data) for own in onnx.load(paths["packed"]).graph.initializer)
        zipped = len(gzip.compress(Path(paths["packed"]).read_bytes(), 9))
    return json.loads(done.stdout) | {"numbers": numbers, "zipped": zipped}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="folder with MNIST's original files")
    args = parser.parse_args()
    lines = [
        "# Compressed networks in ONNX Runtime",
        "",
        "`python analyses/examples/export.py --data-dir DIR`, which runs `pyro-bc export FILE --onnx … --int8 … "
        "--packed … --data …`. Test errors in PyTorch, in ONNX Runtime, and in ONNX Runtime with int8 activations "
        "(512 training pictures show the ranges) and the file's own codes as weights. The packed file computes what "
        "the int8 file does, to the last bit; numbers are its bytes that are no graph, and beside the file's all its "
        "bytes. Layers in float32 have codes of more than 8 bits, or cosine coefficients.",
        "",
        "| network | file bytes | difference to PyTorch | error % | ONNX % | int8 % | in float32 | ONNX bytes | int8 | "
        "packed | its gzip | its numbers | numbers / file |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for file in sorted(file for pattern in FILES for file in RESULTS.glob(pattern)):
        name = str(file.relative_to(RESULTS)).removesuffix("/network.pbc").removesuffix(".pbc")
        result = exported(file, "digits" if "digits" in name else "mnist", args.data_dir)
        errors, sizes, size = result["error_percent"], result["bytes"], file.stat().st_size
        lines.append(
            f"| {name} | {size:,} | {result['difference']:.1e} | {errors['pytorch']:.2f} | {errors['onnx']:.2f} | "
            f"{errors['int8']:.2f} | {len(result['float32'])} | {sizes['onnx']:,} | {sizes['int8']:,} | "
            f"{sizes['packed']:,} | {result['zipped']:,} | {result['numbers']:,} | {result['numbers'] / size:.2f} |"
        )
    text = "\n".join([*lines, ""])
    (RESULTS / "export.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
