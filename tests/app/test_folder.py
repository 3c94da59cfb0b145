"""A folder that cannot be gone on with is one error before anything is computed, and nothing in it is changed."""

import json

import pytest

from pyro_bc.app.folder import FILES, FOLDERS, in_folder
from pyro_bc.app.settings import CompressSettings, Settings, as_json
from pyro_bc.errors import CheckpointError, OutputError, PyroBCError

SETTINGS = Settings.of("lenet-300-100", "gnj", "digits", epochs=3)


@pytest.fixture
def folder(tmp_path):
    """A run that was interrupted."""
    in_folder(tmp_path / "run", SETTINGS, False, print, lambda folder: {})
    return tmp_path / "run"


def resumed(folder, settings=SETTINGS):
    ran = []
    metrics = in_folder(folder, settings, True, print, lambda folder: ran.append(folder) or {"new": 1})
    return metrics, ran


def test_a_run_that_was_interrupted_goes_on(folder):
    assert resumed(folder) == ({"new": 1}, [folder])


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[1]", b"3", b"[" * 100_000, b'{"a": 1}', b'{"fit": [1], "dense": "x"}', b"null"],
)
def test_settings_that_are_damaged_or_anothers_are_one_error(folder, content):
    (folder / "run.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"run\.json' is damaged|has other settings"):
        resumed(folder)
    assert (folder / "run.json").read_bytes() == content


def test_settings_of_another_kind_of_run_or_version_are_other_settings(folder):
    with pytest.raises(CheckpointError, match=r"has other settings: .*prior 'gnj'"):
        resumed(folder, CompressSettings("lenet-300-100", "digits"))
    (folder / "run.json").write_text(json.dumps(as_json(SETTINGS) | {"added": "\x1b[31m"}))
    with pytest.raises(CheckpointError, match=r"has other settings: added '\\x1b\[31m'"):
        resumed(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"dense": 3}', b'{"net": "a"}'])
def test_metrics_that_are_damaged_or_anothers_are_one_error(folder, content):
    (folder / "metrics.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"metrics\.json' .*remove it, and the run ends anew"):
        resumed(folder)
    assert (folder / "metrics.json").read_bytes() == content


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_what_is_in_a_files_or_folders_place_is_said_first(folder, name):
    place = folder / name
    if name in FILES:
        place.unlink(missing_ok=True)
        place.mkdir()
    else:
        place.write_text("")
    with pytest.raises(PyroBCError, match=r"is no f|holds no run") as error:
        resumed(folder)
    assert isinstance(error.value, OutputError if name != "run.json" else CheckpointError)


@pytest.mark.parametrize("name", ["network.pbc", "plots", ".lock"])
def test_a_link_in_a_files_or_folders_place_is_not_followed(folder, tmp_path, name):
    other = tmp_path / "other"
    other.mkdir()
    (other / "network.pbc").write_bytes(b"another run's")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(other if name == "plots" else other / "network.pbc")
    with pytest.raises(OutputError, match=f"{name}' is a symbolic link, where a run writes a f"):
        resumed(folder)
    assert (other / "network.pbc").read_bytes() == b"another run's" and len(list(other.iterdir())) == 1


def test_an_output_folder_that_is_none_is_said(tmp_path):
    (tmp_path / "file").write_text(""), (tmp_path / "link").symlink_to(tmp_path / "none")
    for name, message in (("file", "is no folder"), ("link", "is a symbolic link to nothing")):
        with pytest.raises(PyroBCError, match=f"{name}' {message}; choose a new folder"):
            in_folder(tmp_path / name, SETTINGS, False, print, lambda folder: {})
    (tmp_path / "inner").mkdir(), (tmp_path / "through").symlink_to(tmp_path / "inner")
    assert in_folder(tmp_path / "through", SETTINGS, False, print, lambda folder: {"new": 1}) == {"new": 1}
