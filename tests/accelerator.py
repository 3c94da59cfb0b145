"""A device of its own to torch, built from accelerator.cpp: what is on the wrong device there is on a GPU, too."""

import os
import shutil
import subprocess
import types
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.cpp_extension import include_paths, library_paths

NAME = "pretend"


def compiler() -> str | None:
    """The C++ compiler, if there is one."""
    return next(
        (path for name in (os.environ.get("CXX"), "g++", "clang++") if name and (path := shutil.which(name))), None
    )


def build(folder: Path) -> Path:
    """Compile the device; some ten seconds."""
    library = folder / "accelerator.so"
    command = [
        str(compiler()), "-shared", "-fPIC", "-O0", "-w", "-std=c++20", str(Path(__file__).with_suffix(".cpp")),
        *(f"-I{path}" for path in include_paths()), *(f"-L{path}" for path in library_paths()),
        "-ltorch", "-ltorch_cpu", "-lc10", "-o", str(library),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]
    return library


def register(library: Path) -> None:
    """Make ``torch.device("pretend")`` known in this process, with what torch's devices have in Python."""
    torch.ops.load_library(str(library))
    generator = torch.ops.pretend
    module = types.ModuleType(f"torch.{NAME}")
    module.is_available = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module._is_in_bad_fork = lambda: False
    module.manual_seed = module.manual_seed_all = generator.manual_seed
    module.get_rng_state = lambda device=0: generator.get_state()
    module.set_rng_state = lambda state, device=0: generator.set_state(state)
    torch._register_device_module(NAME, module)
    torch.utils.generate_methods_for_privateuse1_backend()


class AsStrictAsAGpu(TorchDispatchMode):
    """A context with a GPU's rules: operations that this device leaves to the CPU would take tensors from anywhere."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = list(_tensors((*args, *kwargs.values())))
        if len({tensor.device.type for tensor in tensors}) > 1 and not any(isinstance(t, FakeTensor) for t in tensors):
            _check_devices(func._schema.name.removeprefix("aten::"), tensors)
        result = func(*args, **kwargs)
        generator = kwargs.get("generator")
        if generator is not None:
            for tensor in _tensors([result]):
                if tensor.device.type != generator.device.type:
                    raise RuntimeError(f"{func._schema.name} on {tensor.device} takes no {generator.device} generator")
        return result


def _tensors(values):
    """The tensors among an operation's arguments, those in its lists included."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _check_devices(name, tensors):
    if name in ("copy_", "_to_copy", "_copy_from", "_copy_from_and_resize", "set_", "resize_"):
        return
    if name in ("index", "index_put", "index_put_", "_unsafe_index"):  # by indices of the CPU, too
        tensors = tensors[:1] + [tensor for tensor in tensors[1:] if tensor.device.type != "cpu"]
    kinds = {tensor.device.type for tensor in tensors if tensor.dim() or tensor.device.type != "cpu"}
    if len(kinds) > 1:
        raise RuntimeError(f"{name} takes tensors of one device, not of {' and '.join(sorted(kinds))}")
