"""Imports go down only: which folder may import which, and what the file wing does without."""

import ast
import importlib
from pathlib import Path

import pytest

import pyro_bc

PACKAGE = Path(__file__).parents[2] / "pyro_bc"
#: folders by their level in the data flow, the lowest first; one may import what is on a lower level, and itself.
LEVELS = (
    {"errors"},
    {"runtime"},
    {"data", "graph"},
    {"quantisation"},
    {"file", "priors"},
    {"model"},
    {"posterior"},
    {"compression"},
    {"inference"},
    {"inspection"},
    {"app"},
)
LEVEL = {folder: level for level, folders in enumerate(LEVELS) for folder in folders}


def imported(file: Path) -> set[tuple[str, str]]:
    """What a module imports from the package: folder and module."""
    found = set()
    here = ("pyro_bc", *file.relative_to(PACKAGE).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1]
            full = (*base, *(node.module.split(".") if node.module else ()))
            for alias in node.names:
                path = (*full, alias.name)[1:]
                found.add((path[0], path[1] if len(path) > 1 else ""))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyro_bc"):
            found.add((*node.module.split(".")[1:], "", "")[:2])
    return found


def modules():
    return [file for file in sorted(PACKAGE.rglob("*.py")) if file.parent != PACKAGE]


def test_every_module_lies_in_a_folder_of_a_level():
    assert {file.relative_to(PACKAGE).parts[0] for file in modules()} == set(LEVEL) - {"errors"}
    public = {file.name for file in PACKAGE.glob("*.py")} - {"__init__.py", "__main__.py", "errors.py"}
    assert public == {"diagnostics.py", "likelihoods.py", "onnx.py", "plots.py"}


@pytest.mark.parametrize("place", ["inspection.diagnostics", "model.likelihoods", "file.onnx", "inspection.plots"])
def test_a_public_module_has_what_is_public_under_its_public_name(place):
    own, public = (importlib.import_module(f"pyro_bc.{name}") for name in (place, place.partition(".")[2]))
    assert public is getattr(pyro_bc, place.partition(".")[2])
    names = [name for name, value in vars(own).items() if getattr(value, "__module__", "") == own.__name__]
    assert names and all(getattr(public, name) is getattr(own, name) for name in names if name[0] != "_")


@pytest.mark.parametrize("file", modules(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_module_imports_only_what_lies_below_it(file):
    own = file.relative_to(PACKAGE).parts[0]
    for folder, module in imported(file):
        assert folder in LEVEL, f"{file} imports {folder}.{module} of the package's top level"
        assert folder == own or LEVEL[folder] < LEVEL[own], f"{file} imports {folder}.{module}"


def test_no_two_modules_import_each_other():
    graph = {}
    for file in modules():
        folder, name = file.relative_to(PACKAGE).parts[0], file.stem
        graph[folder, name] = {target for target in imported(file) if target != (folder, name)}
    done, path = set(), []

    def visit(module):
        assert module not in path, " imports ".join("/".join(step) for step in [*path[path.index(module) :], module])
        if module in done or module not in graph:
            return
        path.append(module)
        for target in graph[module]:
            visit(target)
        path.pop()
        done.add(module)

    for module in graph:
        visit(module)
