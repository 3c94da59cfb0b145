"""A device of its own to torch, built from accelerator.cpp: what is on the wrong device there is on a GPU, too."""

import os
import shutil
import subprocess
import types
from pathlib import Path

import torch
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
