"""Files of folders and archives come one by one, however packed; what claims or inflates to more is refused."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile

import pytest

from pyro_bc.app import archives
from pyro_bc.app.archives import files_in
from pyro_bc.errors import DataError

FILES = {"a/one": b"1" * 1000, "a/b/two": bytes(range(256)) * 20, "three": b""}


def tar(files, members=()):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in members:
            archive.addfile(member)
    return data.getvalue()


def zipped(files, method=zipfile.ZIP_DEFLATED):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


PACKERS = {"tar": bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("packing", [*PACKERS, "zip", "folder"])
def test_files_are_those_that_were_packed(tmp_path, packing):
    path = tmp_path / "archive"
    if packing == "folder":
        for name, content in FILES.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    else:
        path.write_bytes(zipped(FILES) if packing == "zip" else PACKERS[packing](tar(FILES)))
    assert dict(files_in(path, lambda name: True)) == FILES
    assert dict(files_in(path, lambda name: name.endswith("two"))) == {"a/b/two": FILES["a/b/two"]}


@pytest.mark.parametrize("packing", [*PACKERS, "zip"])
def test_what_inflates_to_more_is_refused_while_it_does(tmp_path, monkeypatch, packing):
    monkeypatch.setattr(archives, "_MOST_BYTES", 1 << 20)
    files = {f"{number}": bytes(1 << 18) for number in range(6)}
    path = tmp_path / "archive"
    path.write_bytes(zipped(files) if packing == "zip" else PACKERS[packing](tar(files)))
    read = []
    with pytest.raises(DataError, match="inflates to more than 1,048,576 bytes"):
        read += [name for name, _ in files_in(path, lambda name: False)]
    monkeypatch.setattr(archives, "_MOST_BYTES", 1 << 22)
    monkeypatch.setattr(archives, "_MOST_OF_A_FILE", 1 << 17)
    with pytest.raises(DataError, match=r"'0' in .* is larger than 131,072 bytes"):
        list(files_in(path, lambda name: True))
    assert not list(files_in(path, lambda name: False))  # a large file that nobody asked for
    monkeypatch.setattr(archives, "_MOST_FILES", 5)
    with pytest.raises(DataError, match="more than 5 files"):
        list(files_in(path, lambda name: False))


def test_a_header_that_claims_to_be_long_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_MOST_BYTES", 1 << 20)
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.REGTYPE):
        member = tarfile.TarInfo("long")
        member.type, member.size = kind, 1 << 32
        path = tmp_path / "archive"
        path.write_bytes(gzip.compress(member.tobuf() + bytes(1 << 21)))
        with pytest.raises(DataError, match=r"inflates to more|not a readable"):
            list(files_in(path, lambda name: True))


@pytest.mark.parametrize("packing", [*PACKERS, "zip"])
def test_every_truncation_is_one_error(tmp_path, packing):
    data = zipped(FILES) if packing == "zip" else PACKERS[packing](tar(FILES))
    whole = dict(FILES)
    for length in range(0, len(data) - 600 if packing == "tar" else len(data), max(1, len(data) // 60)):
        path = tmp_path / "archive"
        path.write_bytes(data[:length])
        try:
            found = dict(files_in(path, lambda name: True))
        except DataError as error:
            assert "not a readable archive" in str(error)
        else:  # what was cut off is padding, or files of a tar that was not packed
            assert found.items() <= whole.items()


def test_links_and_devices_are_no_files(tmp_path):
    members = []
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        member = tarfile.TarInfo(f"link{len(members)}")
        member.type, member.linkname = kind, "/etc/passwd"
        members.append(member)
    path = tmp_path / "archive"
    path.write_bytes(tar(FILES, members))
    assert dict(files_in(path, lambda name: True)) == FILES
