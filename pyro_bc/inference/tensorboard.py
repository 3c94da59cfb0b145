"""The course of a fit for TensorBoard, written by torch's own writer."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import OutputError, UsageError
from ..runtime import processes
from .history import Epoch


def tensorboard_log(folder: str | Path) -> Callable[[Epoch], None]:
    """What writes every epoch of a fit into a folder, for ``fit(…, after_epoch=tensorboard_log("logs"))``.

    The bound and its parts, the KL by layer and its weight, groups left, error and bytes of the compressed network
    where held-out data are looked at, learning rates. A fit that is resumed goes on in the same log: what was written
    of epochs that are trained again is replaced. On several processes the first one writes.

    :param folder: made where there is none.
    :raises UsageError: where TensorBoard is not installed.
    :raises OutputError: where the folder cannot be written into, at once or later.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError("the log needs TensorBoard: pip install 'pyro-bc[tensorboard]', or leave it out") from None
    folder = Path(folder)
    if processes.rank() > 0:
        return lambda epoch: None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".written").touch()
        (folder / ".written").unlink()
    except OSError as error:
        raise OutputError(f"'{folder}' cannot be written into: {error.strerror or error}") from None
    writers: list[Any] = []

    def write(epoch: Epoch) -> None:
        try:
            if not writers:
                writers.append(SummaryWriter(str(folder), purge_step=epoch.epoch))
            for name, value in scalars(epoch):
                writers[0].add_scalar(name, value, epoch.epoch)
            writers[0].flush()  # a fit may be killed
        except OSError as error:
            raise OutputError(f"the log in '{folder}' cannot be written: {error.strerror or error}") from None

    return write


def scalars(epoch: Epoch) -> Iterator[tuple[str, float]]:
    """What is written of an epoch, by its name in TensorBoard."""
    yield "bound/negative ELBO", epoch.loss
    yield "bound/negative log-likelihood", epoch.negative_log_likelihood
    yield "bound/KL", epoch.kl
    yield "KL weight", epoch.kl_weight
    yield "error of drawn weights", epoch.error
    for name, value in epoch.kl_by_layer.items():
        yield f"KL by layer/{name}", value
    for name, left in epoch.groups_left.items():
        yield f"groups left/{name}", left
    for name, rate in epoch.learning_rates.items():
        yield f"learning rate/{name}", rate
    for name, found in (("error", epoch.held_out_error), ("bytes", epoch.file_bytes), ("slack", epoch.slack)):
        if found is not None:
            yield f"compressed/{name}", found
