"""A progress bar in a terminal, and in a notebook that has no widgets."""

import sys
from types import ModuleType

import pytest
from rich import get_console

from pyro_bc.runtime.progress import progress_bar


class Notebook:
    """What ``IPython.display`` does: a handle whose text can be written anew."""

    def __init__(self):
        self.texts = []

    def display(self, bundle, raw, display_id):
        assert raw and display_id
        self.update(bundle, raw)
        return self

    def update(self, bundle, raw):
        self.texts.append(bundle["text/plain"])


@pytest.fixture
def notebook(monkeypatch):
    page, module = Notebook(), ModuleType("IPython.display")
    module.display = page.display
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(get_console(), "is_jupyter", True)
    return page


def test_a_notebook_shows_text_that_ends_with_what_was_said_last(notebook, capsys):
    with progress_bar("epoch", 500) as bar:
        for step in range(500):
            bar(1, state=f"[loss] {step}")
    assert notebook.texts[0].startswith("epoch") and "0/500" in notebook.texts[0]
    assert "500/500" in notebook.texts[-1] and "[loss] 499" in notebook.texts[-1]
    assert len(notebook.texts) < 100  # not one for every step
    assert "\x1b" not in "".join(notebook.texts) and capsys.readouterr().out == ""


def test_the_text_stays_where_a_training_is_stopped(notebook):
    with pytest.raises(KeyboardInterrupt), progress_bar("epoch", 4) as bar:
        bar(3)
        raise KeyboardInterrupt
    assert "3/4" in notebook.texts[-1]


def test_a_terminal_shows_the_end_and_nothing_where_nothing_is_to_be_shown(capsys):
    with progress_bar("curvature", 10, shown=False) as bar:
        bar(10, state="said", total=10)
    assert capsys.readouterr().out == ""
    with progress_bar("curvature", 10) as bar:
        bar(7)
        bar(total=7)  # there were fewer
    assert "7/7" in capsys.readouterr().out
