"""TensorBoard's log, read back by TensorBoard's own reader."""

import sys

import pytest
from helpers import fresh, two_layers, two_of_six

import pyro_bc
from pyro_bc.errors import OutputError, UsageError
from pyro_bc.inference.history import Epoch
from pyro_bc.inference.tensorboard import scalars, tensorboard_log


def test_where_it_is_not_installed_that_is_said_at_once(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match=r"pip install 'pyro-bc\[tensorboard\]'"):
        tensorboard_log(tmp_path / "log")
    assert not (tmp_path / "log").exists()


def test_a_resumed_fit_goes_on_in_the_same_log(tmp_path, monkeypatch):
    monkeypatch.setattr("pyro_bc.inference.fit._BETWEEN_CHECKPOINTS", 0)  # each epoch is written
    pytest.importorskip("tensorboard", reason="the log needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log, epochs = tmp_path / "log", []

    def fit(**options):
        model, guide = fresh(two_layers())
        batches = pyro_bc.data.Batches(*two_of_six(), 50)
        tell = [epochs.append, tensorboard_log(log), *options.pop("also", [])]
        held_out = [two_of_six(100)]
        path = tmp_path / "c"
        return pyro_bc.fit(
            model, guide, batches, epochs=5, held_out=held_out, checkpoint=path, progress=False, after_epoch=tell,
            **options,
        )  # fmt: skip

    def stop(epoch):
        if epoch.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(also=[stop])
    history = fit(resume=True).history
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3, 4, 5]
    read = EventAccumulator(str(log)).Reload()
    for name in ("bound/negative ELBO", "KL by layer/net.0", "KL weight", "groups left/net.2", "compressed/error",
                 "compressed/bytes", "learning rate/means"):  # fmt: skip
        assert [event.step for event in read.Scalars(name)] == [1, 2, 3, 4, 5], name
        expected = [dict(scalars(own))[name] for own in history]
        assert [event.value for event in read.Scalars(name)] == pytest.approx(expected, rel=1e-6), name


def test_a_log_that_cannot_be_written_any_more_is_said_with_its_folder(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="the log needs the extra tensorboard")

    def full(*_):
        raise OSError(28, "No space left on device")

    write = tensorboard_log(tmp_path / "log")
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", full)
    epoch = Epoch(1, 1.0, 1.0, 0.0, 1.0, 0.0, {}, 0.1)
    with pytest.raises(OutputError, match=r"the log in '.*log' cannot be written: No space left"):
        write(epoch)


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    pytest.importorskip("tensorboard", reason="the log needs the extra tensorboard")
    (tmp_path / "log").write_text("mine")
    with pytest.raises(OutputError, match="cannot be written into"):
        tensorboard_log(tmp_path / "log")
    assert (tmp_path / "log").read_text() == "mine"
