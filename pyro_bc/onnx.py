"""Compressed networks as ONNX files: what :mod:`pyro_bc.file.onnx` has, under its public name."""

from .file.onnx import *  # noqa: F403
