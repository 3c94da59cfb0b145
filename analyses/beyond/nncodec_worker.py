"""NNCodec 2.1 in its own environment (it needs numpy < 2): ``net.pt`` of a folder to bytes, and back to ``QP.pt``.

    python -m venv nnc && nnc/bin/pip install 'numpy<2' torch==2.13.0 pybind11 scikit-learn pandas h5py
    nnc/bin/pip install --no-deps --no-build-isolation nncodec

What it imports for data sets and networks that are not used here is stood in for.
"""

import importlib.abc
import importlib.machinery
import sys
import types
from unittest.mock import MagicMock

import numpy as np
import torch

STAND_INS = ("torchvision", "cv2", "ptflops", "torchmetrics", "wandb", "flwr", "tensorflow", "timm")


class StandIn(types.ModuleType):
    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock()


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in STAND_INS:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return StandIn(spec.name)

    def exec_module(self, module):
        pass


if __name__ == "__main__":
    sys.meta_path.insert(0, Finder())
    from nncodec.nn import decode, encode

    folder = sys.argv[1]
    state = {k: v.float().numpy() for k, v in torch.load(f"{folder}/net.pt").items() if v.is_floating_point()}
    for qp in map(int, sys.argv[2:]):
        data = encode(dict(state), args={"qp": qp, "use_dq": True})
        decoded = {name: torch.as_tensor(np.array(value)) for name, value in decode(data).items()}
        torch.save(decoded, f"{folder}/{qp}.pt")
        print("RESULT", qp, len(data), flush=True)
