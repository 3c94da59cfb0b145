"""The folder of a run: its settings first, its metrics last, one run at a time."""

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, OutputError, UsageError
from ..runtime import processes
from ..runtime.files import is_empty, only_run_in, read_object, write_atomically
from ..runtime.messages import first_line
from .settings import CompressSettings, Settings, as_json, flat
from .tables import markdown

#: what a run writes into its folder.
FILES = (
    "run.json", "dense.safetensors", "teacher.safetensors", "checkpoint", "posterior.nc", "finetune", "finetune.nc",
    "network.pbc", "report.md", "report.html", "metrics.json",
)  # fmt: skip
FOLDERS = ("plots",)


def in_folder(
    out: Path,
    settings: Settings | CompressSettings,
    resume: bool,
    say: Callable[[str], None],
    job: Callable[[Path], dict[str, Any]],
) -> dict[str, Any]:
    """Do a job in a new folder, with its settings in it, or go on with one; no other run can be in it meanwhile.

    On several processes the first one's folder is the run's; the others need none.

    :param job: takes the folder and returns metrics; where it is complete, those in it are returned instead.
    :raises CheckpointError: where there is nothing to resume, or it has other settings.
    :raises UsageError: where a new run's folder is in use.
    :raises OutputError: where it cannot be written.
    """
    with ExitStack() as held:
        metrics = processes.from_first(lambda: _opened(out, settings, resume, held))
        if metrics is not None:
            say(f"{out} is complete; nothing to resume")
            return metrics
        return job(out)


def _opened(out: Path, settings: Settings | CompressSettings, resume: bool, held: ExitStack) -> dict[str, Any] | None:
    """Make a run's folder, or find it, and lock it until ``held`` ends; its metrics, where it is complete."""
    in_use = UsageError(
        f"'{out}' exists and is not empty; choose a new folder, or continue the run in it with --resume"
    )
    if resume:
        _check_settings(out, settings)
        check_places(out)
    elif os.path.lexists(out) and not out.is_dir():
        what = "a symbolic link to nothing" if out.is_symlink() and not out.exists() else "no folder"
        raise UsageError(f"'{out}' is {what}; choose a new folder")
    elif out.exists() and not is_empty(out):
        raise in_use
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"'{out}' cannot be written: {error.strerror}") from None
    held.enter_context(only_run_in(out))
    if not resume:
        if not is_empty(out):  # another run came first
            raise in_use
        write_atomically(out / "run.json", (json.dumps(as_json(settings), indent=2) + "\n").encode())
    return _complete(out / "metrics.json") if (out / "metrics.json").exists() else None


def check_places(out: Path) -> None:
    """Look whether every file of a run can be written, and read where it is there: nothing else is in its place.

    :raises OutputError: for the first that cannot.
    """
    for name in (*FILES, *FOLDERS):
        place, is_folder = out / name, name in FOLDERS
        if not os.path.lexists(place):
            continue
        kind = "folder" if is_folder else "file"
        if place.is_symlink():  # which may lead into another run's folder
            raise OutputError(f"'{place}' is a symbolic link, where a run writes a {kind}; move it out of the way")
        if not (place.is_dir() if is_folder else place.is_file()):
            raise OutputError(f"'{place}' is no {kind}, where a run writes a {kind}; move it out of the way")
        if not os.access(place, os.R_OK | (os.W_OK | os.X_OK if is_folder else 0)):
            raise OutputError(f"'{place}' cannot be {'written' if is_folder else 'read'}: its permissions forbid it")


def _complete(file: Path) -> dict[str, Any]:
    """The metrics of a run that has ended.

    :raises CheckpointError: where they are damaged, or those of another version.
    """
    metrics = read_object(file, CheckpointError, "remove it, and the run ends anew")
    try:
        markdown(metrics)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"'{file}' does not hold what this version writes ({type(error).__name__}: {first_line(error)}); remove "
            f"it, and the run ends anew"
        ) from None
    return metrics


def _check_settings(out: Path, settings: Settings | CompressSettings) -> None:
    file = out / "run.json"
    if not file.is_file():
        raise CheckpointError(f"'{out}' holds no run to resume; leave out --resume to start one")
    saved = read_object(file, CheckpointError, "start the run anew in another folder")
    saved = flat(saved)
    given = flat(json.loads(json.dumps(as_json(settings))))
    differing = [key for key in sorted({*given, *saved}) if saved.get(key) != given.get(key)]
    if differing:
        text = ", ".join(f"{key} {saved.get(key)!r}" for key in differing)
        raise CheckpointError(
            f"the run in '{out}' has other settings: {text}. Resume it with those, or use a new folder"
        )
