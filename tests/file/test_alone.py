"""A compressed network is loaded and predicts where torch, NumPy and constriction are all there is."""

import json
import subprocess
import sys
from pathlib import Path

import torch

import pyro_bc

GOLDEN = Path(__file__).parents[1] / "golden"
#: packages that posteriors, pictures, data sets and the command need, and files do not.
OTHERS = (
    "pyro", "arviz", "arviz_stats", "xarray", "h5netcdf", "h5py", "matplotlib", "sklearn", "scipy", "rich",
    "safetensors", "pooch", "PIL", "filelock",
)  # fmt: skip
#: packages and modules of torch that take long to import, and that loading a network of the paper leaves alone.
SLOW = ("torch._dynamo", "torch._inductor", "torch.onnx", "torch.export.exported_program", "sympy")

PROGRAM = f"""
import json, sys

class Without:  # a finder that does not find the other packages, as where they are not installed
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {OTHERS} else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
try:
    import pyro
except ModuleNotFoundError:
    pass
else:
    sys.exit("packages are not hidden")
import torch

before = set(sys.modules)
import pyro_bc

outputs = []
for file in sys.argv[1:]:
    net = pyro_bc.load(file)
    torch.manual_seed(0)
    x = torch.rand(3, *pyro_bc.read(file).input_shape)
    with torch.no_grad():
        outputs.append(net(x).tolist())
print(json.dumps({{"outputs": outputs, "imported": sorted(set(sys.modules) - before)}}))
"""


def loaded_alone(*files: Path) -> dict:
    """What a process without the other packages predicts from files, and which modules it imported beyond torch's."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *map(str, files)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_files_are_loaded_and_predict_without_the_other_packages():
    files = sorted(GOLDEN.glob("*.pbc"))
    alone = loaded_alone(*files)
    for file, found in zip(files, alone["outputs"], strict=True):
        torch.manual_seed(0)
        x = torch.rand(3, *pyro_bc.read(file).input_shape)
        with torch.no_grad():
            y = pyro_bc.load(file)(x)
        torch.testing.assert_close(torch.tensor(found), y, rtol=0, atol=0, equal_nan=True, msg=file.stem)
    own = {name.split(".")[1] for name in alone["imported"] if name.startswith("pyro_bc.")}
    assert own == {"errors", "file", "graph", "quantisation", "runtime"}


def test_what_takes_long_to_import_is_not_imported():
    names = ["2-lenet-300-100-digits", "3-lenet-5-caffe", "3-chain", "2-regression"]
    imported = loaded_alone(*(GOLDEN / f"{name}.pbc" for name in names))["imported"]
    assert [module for module in imported if module.startswith(SLOW)] == []
    assert {module.partition(".")[0] for module in imported} == {"constriction", "html", "pyro_bc", "torch"}
