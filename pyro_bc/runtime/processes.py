"""One fit on several processes and machines, by ``torch.distributed`` (``torchrun``; gloo on CPUs, NCCL on GPUs).

Each process estimates the ELBO from batches and noise of its own, and all step along the mean of their gradients. The
mean holds the KL once, and N over the number of examples in all batches: the objective of one process with a batch as
large as all batches together. Without a process group everything here is for one process, and does nothing.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from ..errors import LostProcessError, PyroBCError, UsageError
from .messages import first_line

T = TypeVar("T")


def count() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if _is_several() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return distributed.get_rank() if _is_several() else 0


def _is_several() -> bool:
    return distributed.is_available() and distributed.is_initialized()


@contextmanager
def joined(device: str) -> Iterator[str]:
    """A context in the process group that ``torchrun`` has started this process for; without it, in none.

    :param device: of torch, on which the processes compute: one GPU each, where that is ``cuda``.
    :returns: the device of this process.
    :raises UsageError: where this machine has fewer GPUs than processes, or the others are not found.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if not distributed.is_available():
        raise UsageError("torch was built without torch.distributed: run without torchrun")
    kind, own = device.partition(":")[0], int(os.environ.get("LOCAL_RANK", "0"))
    if kind == "cuda":
        if torch.cuda.device_count() <= own:
            raise UsageError(
                f"process {own + 1} of this machine has no GPU of its own: there are {torch.cuda.device_count()}; "
                f"give torchrun a lower --nproc-per-node"
            )
        device = f"cuda:{own}"
        torch.cuda.set_device(own)
    try:
        distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"the processes did not find each other ({first_line(error)})") from None
    # Behind an error the others' ends of the connections may be closed already, and threads of gloo's abort a process
    # that takes leave then, or that ends as usual: there :func:`end` is what is left.
    yield device
    leave()


def end(code: int) -> int:
    """The exit code as it is, where this process is alone; one that has not left a group ends here and now."""
    if count() > 1:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    return code


def is_started_first() -> bool:
    """Whether this is the process that torchrun counts as the first; so is one that nobody counts."""
    return os.environ.get("RANK", "0") == "0"


def leave() -> bool:
    """Leave the process group, from where on each process works alone; whether this one was the first."""
    is_first = rank() == 0
    if _is_several():
        distributed.destroy_process_group()
    return is_first


@contextmanager
def _together() -> Iterator[None]:
    """A context in which processes wait for each other.

    :raises LostProcessError: where one of them is gone.
    """
    try:
        yield
    except RuntimeError:
        raise LostProcessError(
            "another process of this run does not answer any more; continue from the last checkpoint with --resume "
            "(resume=True), on as many processes as there are"
        ) from None


def average_(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its mean over the processes.

    :raises LostProcessError: here and below, where one of them is gone.
    """
    if count() == 1:
        return
    tensors = list(tensors)
    with _together():
        for work in [distributed.all_reduce(tensor, async_op=True) for tensor in tensors]:
            work.wait()
    for tensor in tensors:
        tensor /= count()


def from_first(compute: Callable[[], T]) -> T:
    """What ``compute`` comes to on the first process; the others do not call it.

    :raises PyroBCError: on every process, where it does on the first.
    """
    if count() == 1:
        return compute()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = compute()
        except PyroBCError as error:
            outcome[1] = error
    with _together():
        distributed.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        _raise_everywhere(outcome[1])
    return outcome[0]


def gathered(value: T) -> list[T]:
    """The value of every process, in the order of their ranks."""
    values: list[Any] = [value] * count()
    if count() > 1:
        with _together():
            distributed.all_gather_object(values, value)
    return values


def on_all(compute: Callable[[], T]) -> T:
    """What ``compute`` comes to on this process.

    :raises PyroBCError: on every process, where it does on one; none waits for one that has stopped.
    """
    outcome: list[T] = []
    error = None
    try:
        outcome.append(compute())
    except PyroBCError as own:
        error = own
    for raised in gathered(error):
        if raised is not None:
            _raise_everywhere(raised)
    return outcome[0]


def _raise_everywhere(error: PyroBCError) -> NoReturn:
    if count() > 1:
        error.is_everywhere = True
        with suppress(LostProcessError), _together():
            distributed.barrier()  # none ends while another still reads what is wrong
    raise error


@torch.no_grad()
def start_alike(modules: Iterable[nn.Module]) -> None:
    """Give parameters and buffers the values that they have on the first process."""
    if count() == 1:
        return
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            value = tensor.detach().clone(memory_format=torch.contiguous_format)
            with _together():
                distributed.broadcast(value, src=0)
            tensor.copy_(value)


def average_buffers_(module: nn.Module) -> None:
    """Replace what is collected from batches, as batch statistics are, by the mean over the processes."""
    average_(buffer for buffer in module.buffers() if buffer.is_floating_point())


def draw_apart() -> None:
    """Give every process random numbers of its own; the first keeps its generator's state."""
    if count() == 1:
        return
    first = from_first(lambda: torch.initial_seed())
    if rank() > 0:
        import pyro  # here, as loaders of data do without

        pyro.set_rng_seed((first + rank() * 0x9E3779B1) % 2**32)


def draw_apart_from_here() -> None:
    """Give every process random numbers of its own, where all generators are in the same state."""
    seeds = torch.randint(2**32, (count(),), device="cpu")
    if rank() > 0:
        import pyro  # here, as loaders of data do without

        pyro.set_rng_seed(int(seeds[rank()]))


def check_steps(steps: int) -> None:
    """:raises UsageError: where the processes' loaders have different lengths, as they would wait for each other."""
    lengths = gathered(steps)
    if len(set(lengths)) > 1:
        raise UsageError(
            f"the processes' loaders have {', '.join(map(str, lengths))} batches, but all need as many; "
            f"pyro_bc.data.Batches and torch's DistributedSampler see to that"
        )


def shuffled(n: int) -> Tensor:
    """A random order of ``n`` examples, the same on every process, of which this one takes its share.

    :returns: indices, ``(n // count(),)``; by torch's global generator, on several processes by that of the first.
    """
    if count() == 1:
        return torch.randperm(n, device="cpu")
    seed = from_first(lambda: int(torch.randint(2**62, ())))
    order = torch.randperm(n, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    share = n // count()
    return order[rank() * share : (rank() + 1) * share]
