"""Make ``tutorial.ipynb`` of ``tutorial.py``: its cells, run in a kernel of Jupyter's, with what they show.

    python analyses/examples/notebook.py

It needs the extra ``notebook``. Cells begin with ``# %%``, text with ``# %% [markdown]``.
"""

import os
import re
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SCRIPT, NOTEBOOK = HERE / "tutorial.py", HERE / "tutorial.ipynb"


def cells(script: str) -> list[tuple[str, str]]:
    """Kind, ``markdown`` or ``code``, and text of every cell of a script."""
    found = []
    for is_text, body in re.findall(r"^# %%( \[markdown\])?\n(.*?)(?=^# %%|\Z)", script, re.DOTALL | re.MULTILINE):
        text = re.sub(r"^# ?", "", body, flags=re.MULTILINE) if is_text else body
        found.append(("markdown" if is_text else "code", text.strip()))
    return found


def main() -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook()
    notebook.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    make = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    notebook.cells = [make[kind](text, id=f"cell-{n}") for n, (kind, text) in enumerate(cells(SCRIPT.read_text()))]
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=600, record_timing=False, resources={"metadata": {"path": folder}}).execute()
    del notebook.metadata["language_info"]  # of the machine that ran it
    nbformat.write(notebook, NOTEBOOK)
    print(f"{NOTEBOOK}: {NOTEBOOK.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
