"""What is built from the sources is the package, whole and alone, and it runs where the sources are not."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import pyro_bc

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "golden" / "3-lenet-5-caffe.pbc"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    sources = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    shutil.copytree(ROOT / "pyro_bc", sources / "pyro_bc", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(sources / "dist"), str(sources)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "No matching distribution found for setuptools" in done.stderr:
        pytest.skip("setuptools, which builds the wheel, cannot be had here")
    assert done.returncode == 0, done.stderr
    (built,) = (sources / "dist").glob("*.whl")
    return built


def test_the_wheel_holds_the_package_its_types_and_its_licence(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        info = f"pyro_bc-{pyro_bc.__version__}.dist-info"
        assert f"Version: {pyro_bc.__version__}\n" in file.read(f"{info}/METADATA").decode()
        assert "pyro-bc = pyro_bc.app.cli:main" in file.read(f"{info}/entry_points.txt").decode()
    files = (path for path in (ROOT / "pyro_bc").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    modules = {path.relative_to(ROOT).as_posix() for path in files}
    assert {name for name in names if not name.startswith(info)} == modules and "pyro_bc/py.typed" in modules
    assert f"{info}/licenses/LICENSE" in names


def test_an_installed_wheel_reads_a_file_far_from_its_sources(wheel, tmp_path):
    site = str(tmp_path / "site")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    code = "import sys, pyro_bc; from pyro_bc.app.cli import main; print(pyro_bc.__file__, file=sys.stderr); main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", str(GOLDEN), "--json"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": site}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert site in done.stderr
    assert json.loads(done.stdout)["file_bytes"] == GOLDEN.stat().st_size
