"""Compressed networks as ONNX files: :mod:`pyro_bc.file.onnx` under its public name."""

import sys

from .file import onnx as _own
from .file.onnx import *  # noqa: F403

sys.modules[__name__] = _own
