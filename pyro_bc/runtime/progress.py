"""Progress bars, in a terminal and in a notebook.

A notebook shows the bar as text that is written anew, so that it needs no widgets and stays in the saved page.
"""

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

from rich import get_console
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from . import processes

# Seconds between two texts of a notebook, and their width.
_PAUSE, _WIDTH = 0.5, 160


class Bar(Protocol):
    """Moves a progress bar on by so much; ``state`` is what is said beside it, ``total`` another end."""

    def __call__(self, advance: float = 0, *, state: str | None = None, total: float | None = None) -> None: ...


@contextmanager
def progress_bar(what: str, total: float, *, shown: bool = True) -> Iterator[Bar]:
    """A bar with the time that is left, which goes when the context does; on several processes the first one's.

    :param what: is under way.
    """
    if not shown or processes.rank() > 0:
        yield lambda advance=0, *, state=None, total=None: None
        return
    in_notebook = get_console().is_jupyter
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[state]}", markup=False),
        disable=in_notebook,
    )  # fmt: skip
    task = bar.add_task(what, total=total, state="")
    page = _Page(bar) if in_notebook else None

    def move(advance: float = 0, *, state: str | None = None, total: float | None = None) -> None:
        said: dict[str, Any] = {} if state is None else {"state": state}
        bar.update(task, advance=advance, total=total, **said)
        if page is not None and time.monotonic() > page.written + _PAUSE:
            page.write()

    try:
        with nullcontext() if in_notebook else bar:
            yield move
    finally:
        if page is not None:
            page.write()


class _Page:
    """A notebook's output, which holds a bar as text."""

    def __init__(self, bar: Progress):
        from IPython.display import display

        self.bar = bar
        self.handle = display({"text/plain": self.text()}, raw=True, display_id=True)
        self.written = time.monotonic()

    def write(self) -> None:
        self.handle.update({"text/plain": self.text()}, raw=True)
        self.written = time.monotonic()

    def text(self) -> str:
        console = Console(file=io.StringIO(), width=_WIDTH, force_jupyter=False, color_system=None)
        with console.capture() as capture:
            console.print(self.bar.get_renderable())
        return capture.get().rstrip()
