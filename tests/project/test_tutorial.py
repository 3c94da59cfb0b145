"""The notebook is the script beside it, run, with its pictures."""

import json

import pytest
from examples.notebook import NOTEBOOK, SCRIPT, cells

import pyro_bc


@pytest.fixture(scope="module")
def notebook():
    return json.loads(NOTEBOOK.read_text())


def test_its_cells_are_the_scripts(notebook):
    own = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    assert own == cells(SCRIPT.read_text())
    assert sum(kind == "code" for kind, _ in own) <= 10


def test_every_cell_ran_and_shows_what_it_is_for(notebook):
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    shown = [output.get("data", {}) for output in outputs]
    assert sum("image/png" in data for data in shown) >= 3
    assert sum("text/html" in data for data in shown) >= 4  # check, fit, sensitivity, what was reached
    assert any("epoch" in "".join(data.get("text/plain", "")) for data in shown)  # the progress bar
    assert NOTEBOOK.stat().st_size < 1_000_000
    assert any("<svg" in "".join(data.get("text/html", "")) for data in shown)
    assert pyro_bc.__version__ and "/work" not in NOTEBOOK.read_text()
