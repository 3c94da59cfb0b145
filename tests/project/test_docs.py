"""The pages in ``docs`` are built without a warning, and show all that is public."""

import inspect
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import pyro_bc
from pyro_bc import errors
from pyro_bc.app import cli
from pyro_bc.file import onnx
from pyro_bc.inspection import diagnostics, plots
from pyro_bc.model import likelihoods

pytest.importorskip("sphinx", reason="the pages need the extra docs: pip install -e '.[docs]'")
pytest.importorskip("furo", reason="the pages need the extra docs: pip install -e '.[docs]'")

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def documented(tmp_path_factory):
    """Names that the built pages document, by domain and role, e.g. ``py:function``."""
    out = tmp_path_factory.mktemp("pages")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html"]
    # The package that this test tests, also where another one is installed.
    paths = os.pathsep.join([str(DOCS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [*command, "-d", out / "doctrees", DOCS, out / "html"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr
    header, _, packed = (out / "html" / "objects.inv").read_bytes().partition(b"zlib.\n")
    assert header.startswith(b"# Sphinx inventory version 2")
    found = {}
    for line in zlib.decompress(packed).decode().splitlines():
        name, kind = re.match(r"(.+?) (\S+) -?\d+ ", line).groups()
        found.setdefault(kind, set()).add(name)
    return found


def test_everything_that_the_package_exports_is_documented(documented):
    names = set().union(*(names for kind, names in documented.items() if kind.startswith("py:")))
    exported = [name for name in pyro_bc.__all__ if not inspect.ismodule(getattr(pyro_bc, name))]
    assert len(exported) > 25 and [name for name in exported if f"pyro_bc.{name}" not in names] == []


@pytest.mark.parametrize("module", [pyro_bc.data, pyro_bc.graph])
def test_what_packages_export_is_documented(documented, module):
    names = set().union(*(names for kind, names in documented.items() if kind.startswith("py:")))
    homes = [f"{getattr(module, name).__module__}.{name}" for name in module.__all__]
    assert homes and set(homes) - names == set()


@pytest.mark.parametrize("module", [diagnostics, plots, errors, likelihoods, onnx])
def test_public_names_of_modules_are_documented(documented, module):
    names = set().union(*(names for kind, names in documented.items() if kind.startswith("py:")))
    public = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    assert public
    # The base of all errors is on the pages as the package exports it.
    missing = [name for name in public if not {f"{module.__name__}.{name}", f"pyro_bc.{name}"} & names]
    assert missing == []


def test_every_option_of_the_command_is_documented(documented):
    commands = cli.parser()._subparsers._group_actions[0].choices
    options = {
        f"{command.prog}.{action.option_strings[0]}".replace(" ", "-")
        for command in commands.values()
        for action in command._actions
        if action.option_strings and action.dest != "help"
    }
    assert len(options) > 40
    assert options - documented["std:cmdoption"] == set()
