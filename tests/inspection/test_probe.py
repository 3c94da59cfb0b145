"""A NetCDF file of somebody else is read in a process of its own first, under limits, and nothing but it."""

import h5py
import numpy as np
import pytest

from pyro_bc.inspection import probe
from pyro_bc.inspection.probe import check_netcdf


def made(path, name):
    with h5py.File(path / "file.nc", "w") as file:
        if name == "whole":
            file.create_group("posterior").create_dataset("x", data=np.arange(9.0)).attrs["dims"] = "draw"
        elif name == "a terabyte of zeros":
            file.create_dataset("x", (1 << 37,), "f8", chunks=(1 << 10,), compression="gzip")
        elif name == "another file's bytes":
            (path / "other").write_bytes(b"secret  ")
            file.create_dataset("x", (1,), "f8", external=[(str(path / "other"), 0, 8)])
        elif name == "a link to another file":
            file["x"] = h5py.ExternalLink("other.nc", "/x")
        else:
            file["x"] = h5py.SoftLink("/x")
    return path / "file.nc"


def test_a_whole_file_passes(tmp_path):
    check_netcdf(made(tmp_path, "whole"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a terabyte of zeros", "inflates to far more than it has"),
        ("another file's bytes", "asks for what is in other files"),
        ("a link to another file", "points to what is elsewhere"),
        ("a link to itself", "points to what is elsewhere"),
    ],
)
def test_what_is_not_in_the_file_is_refused(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        check_netcdf(made(tmp_path, name))


def test_what_is_damaged_or_does_not_end_is_said(tmp_path, monkeypatch):
    (tmp_path / "file.nc").write_bytes(b"\x89HDF\r\n\x1a\n torn")
    with pytest.raises(ValueError, match="Unable"):
        check_netcdf(tmp_path / "file.nc")
    monkeypatch.setattr(probe, "_SECONDS", 1)
    endless = probe._program().replace("    import h5py\n", "    while True:\n        pass\n")
    monkeypatch.setattr(probe, "_program", lambda: endless)
    with pytest.raises(ValueError, match="does not come to its end"):
        check_netcdf(tmp_path / "file.nc")
