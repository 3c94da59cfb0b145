"""Every compressed network of the main job as ONNX and int8 ONNX: differences, errors and bytes.

    python analyses/examples/export.py --data-dir ../shared/data/mnist

Each is the command ``pyro-bc export`` on a file in ``analyses/results``; the table goes to
``analyses/results/export.md``.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS


def exported(file: Path, data: str, data_dir: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        onnx, int8 = Path(folder) / "network.onnx", Path(folder) / "network.int8.onnx"
        arguments = ["--onnx", str(onnx), "--int8", str(int8), "--data", data, "--json"]
        arguments += ["--data-dir", data_dir] if data != "digits" else []
        command = [sys.executable, "-m", "pyro_bc", "export", str(file), *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="folder with MNIST's original files")
    args = parser.parse_args()
    lines = [
        "# Compressed networks in ONNX Runtime",
        "",
        "`python analyses/examples/export.py --data-dir DIR`, which runs `pyro-bc export FILE --onnx … "
        "--int8 … --data …`. Test "
        "errors in PyTorch, in ONNX Runtime, and in ONNX Runtime with int8 weights and activations (512 training "
        "pictures show the ranges). ONNX files are not entropy-coded.",
        "",
        "| network | file bytes | difference to PyTorch | error % | ONNX % | int8 % | ONNX bytes | int8 bytes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for file in sorted(RESULTS.glob("lenet-*/network.pbc")):
        name = file.parent.name
        result = exported(file, "mnist" if "-mnist-" in name else "digits", args.data_dir)
        errors, sizes = result["error_percent"], result["bytes"]
        lines.append(
            f"| {name} | {file.stat().st_size:,} | {result['difference']:.1e} | {errors['pytorch']:.2f} | "
            f"{errors['onnx']:.2f} | {errors['int8']:.2f} | {sizes['onnx']:,} | {sizes['int8']:,} |"
        )
    text = "\n".join([*lines, ""])
    (RESULTS / "export.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
