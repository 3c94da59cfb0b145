"""The folder of a run: its settings first, its metrics last, one run at a time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, OutputError, UsageError
from ..runtime.files import is_empty, only_run_in, write_atomically
from .settings import CompressSettings, Settings, as_json, flat


def in_folder(
    out: Path,
    settings: Settings | CompressSettings,
    resume: bool,
    say: Callable[[str], None],
    job: Callable[[Path], dict[str, Any]],
) -> dict[str, Any]:
    """Do a job in a new folder, with its settings in it, or go on with one; no other run can be in it meanwhile.

    :param job: takes the folder and returns metrics; where it is complete, those in it are returned instead.
    :raises CheckpointError: where there is nothing to resume, or it has other settings.
    :raises UsageError: where a new run's folder is in use.
    :raises OutputError: where it cannot be written.
    """
    in_use = UsageError(
        f"'{out}' exists and is not empty; choose a new folder, or continue the run in it with --resume"
    )
    if resume:
        _check_settings(out, settings)
    elif out.exists() and (not out.is_dir() or not is_empty(out)):
        raise in_use
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"'{out}' cannot be written: {error.strerror}") from None
    with only_run_in(out):
        if not resume:
            if not is_empty(out):  # another run came first
                raise in_use
            write_atomically(out / "run.json", (json.dumps(as_json(settings), indent=2) + "\n").encode())
        if (out / "metrics.json").exists():
            say(f"{out} is complete; nothing to resume")
            return json.loads((out / "metrics.json").read_text())
        return job(out)


def _check_settings(out: Path, settings: Settings | CompressSettings) -> None:
    file = out / "run.json"
    if not file.is_file():
        raise CheckpointError(f"'{out}' holds no run to resume; leave out --resume to start one")
    try:
        saved = json.loads(file.read_text())
        assert isinstance(saved, dict)
    except (OSError, ValueError, AssertionError):
        raise CheckpointError(f"'{file}' is damaged; start the run anew in another folder") from None
    saved = flat(saved)
    given = flat(json.loads(json.dumps(as_json(settings))))
    differing = [key for key in sorted({*given, *saved}) if saved.get(key) != given.get(key)]
    if differing:
        text = ", ".join(f"{key} {saved.get(key)!r}" for key in differing)
        raise CheckpointError(
            f"the run in '{out}' has other settings: {text}. Resume it with those, or use a new folder"
        )
