"""A network by its name: one of ours, or what a user's module or file makes."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..graph.interface import chosen
from .networks import NETWORKS


def network(name: str) -> Callable[[tuple[int, ...], int], nn.Module]:
    """What makes a network of the shape of one input and a number of classes, 0 where targets are no classes.

    :param name: one of ``pyro_bc.app.networks.NETWORKS``; or ``package.module:function``, or
        ``path/to/file.py:Class``: what is called without arguments and returns an ``nn.Module``. Of several outputs
        of it the one named ``logits`` is meant.
    :raises UsageError: where there is no such network; what it returns raises it where none can be made.
    """
    if ":" in name:
        return partial(_called, name, _found(name))
    if name not in NETWORKS:
        raise UsageError(
            f"unknown network '{name}'; there are {', '.join(NETWORKS)}, and your own as package.module:function "
            f"or path/to/file.py:Class"
        )
    return partial(_of_ours, name)


def is_own(name: str) -> bool:
    """Whether a name stands for a user's network."""
    return ":" in name


def _of_ours(name: str, shape: tuple[int, ...], classes: int) -> nn.Module:
    if not classes:
        raise UsageError(f"'{name}' is built for a number of classes, and the data have no targets that say one")
    if len(shape) != 3 and name != "lenet-300-100":
        raise UsageError(f"'{name}' takes pictures (channels, height, width), and one input has shape {shape}")
    return NETWORKS[name](shape, classes)


def _called(name: str, make: Callable[[], Any], shape: tuple[int, ...], classes: int) -> nn.Module:
    try:
        net = make()
    except Exception as error:  # whatever a user's code raises
        raise UsageError(f"'{name}' could not be called without arguments: {type(error).__name__}: {error}") from error
    if not isinstance(net, nn.Module):
        raise UsageError(f"'{name}' returned a {type(net).__name__}, not an nn.Module")
    wide = [p.dtype for p in net.parameters() if p.is_floating_point() and p.dtype != torch.float32]
    if wide:
        raise UsageError(f"'{name}' has parameters of {wide[0]}, and the command trains float32: return net.float()")
    net.register_forward_hook(_meant)
    return net


def _meant(net: nn.Module, inputs: Any, outputs: Any) -> Tensor:
    """The one of a network's outputs that the likelihood is of, in place of all of them."""
    return chosen(outputs)


def _found(name: str) -> Callable[[], Any]:
    """The function or class that a user's name stands for."""
    where, _, attribute = name.rpartition(":")
    try:
        module = _of_file(Path(where)) if where.endswith(".py") else _of_package(where)
    except Exception as error:  # whatever importing a user's code raises
        raise UsageError(f"'{where}' could not be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, attribute, None)
    if not callable(found):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"'{where}' has no function or class '{attribute}'; it has {', '.join(known) or 'none'}")
    return found


def _of_package(name: str) -> Any:
    """A module as ``python -m`` finds it: what lies in the working folder, too."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def _of_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file '{path}'")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # classes of it may be looked up there
    sys.path.insert(0, str(path.parent))  # what lies beside it may be imported
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module
