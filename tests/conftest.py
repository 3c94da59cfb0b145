"""Shared fixtures: a clean param store, a fixed seed that is printed, and where the real data lie."""

import os
from contextlib import contextmanager
from pathlib import Path

# Workers, and the programs that they start, share the cores: threads that do wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

import pyro
import pytest
import torch

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SEED = 20171108
#: the files that take longest; they begin first, so that no worker is left alone with one at the end.
LONGEST = ("test_devices.py", "test_crashes.py", "test_job.py", "test_readme.py", "test_processes.py", "test_cifar.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def _clean_slate():
    print(f"seed {SEED}")
    torch.set_default_dtype(torch.float32)
    pyro.clear_param_store()
    pyro.enable_validation(True)
    pyro.set_rng_seed(SEED)
    yield
    pyro.clear_param_store()


@pytest.fixture(scope="session")
def without_report():
    """A context in which jobs draw no report and compute none of its diagnostics, for tests that look at neither."""

    @contextmanager
    def context():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pyro_bc.app.report.write_report", lambda folder, metrics: None)
            patch.setattr("pyro_bc.app.job.diagnostics_of", lambda *args: {})
            patch.setattr("pyro_bc.app.job.watched_of", lambda *args: {})
            yield

    return context


@pytest.fixture
def mnist_folder() -> Path:
    folder = SHARED_DATA / "mnist"
    if not folder.is_dir():
        pytest.skip(f"MNIST is not at {folder}")
    return folder


@pytest.fixture
def cifar_folder() -> Path:
    folder = SHARED_DATA / "cifar10-jpeg"
    if not folder.is_dir():
        pytest.skip(f"CIFAR-10 (JPEG copy) is not at {folder}")
    return folder
