"""What a program computes and takes, told before it runs: every result's shape and type, and what that costs.

The rules of the operations are followed for two sizes of the batch. What a network makes of its input must keep the
batch in front, and what two and three examples cost says what one does.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import UnsupportedNetworkError
from .arguments import Call
from .forms import NUMBER, Form, Made, Misfit
from .limits import Cost, Limits
from .nodes import DTYPES_BY_NAME, Named, Value, last_reads
from .operations import BY_NAME

#: numbers that a result has at most, for one example.
MOST_NUMBERS = 1 << 28

#: sizes of the batch that a program is followed for: not one, which could be repeated for any other number.
BATCHES = (2, 3)

# What calling an operation takes, whatever it does.
_CALL = 1 << 17


@dataclass(frozen=True)
class Outline:
    """What a program comes to.

    :param results: of every node: one tensor, several, or an integer.
    """

    results: tuple[Form | tuple[Form, ...] | int, ...]
    cost: Cost

    def shapes(self) -> list[tuple[int, ...] | None]:
        """The shape of every result, None of what is not one tensor."""
        return [result.shape if isinstance(result, Form) else None for result in self.results]


def outline(
    calls: Sequence[Call], inputs: Sequence[Form], tensors: Mapping[str, Form], batch: int, limits: Limits | None = None
) -> Outline:
    """Follow a program.

    :param inputs: with the batch in front; none where they are not known, and only what does not depend on them is
        looked at.
    :param tensors: by name.
    :param batch: examples in it.
    :param limits: of one example: where all have come to more, nothing more is followed.
    :raises UnsupportedNetworkError: where something does not fit together; names the operation.
    :raises ExcessError: where it is more than the limits say.
    """
    results: list[Any] = []

    def known(leaf: Any) -> Any:
        if isinstance(leaf, tuple):
            return tuple(known(part) for part in leaf) if leaf else leaf
        if isinstance(leaf, Value):
            return results[leaf.index] if leaf.index >= 0 else inputs[-1 - leaf.index]
        return tensors[leaf.name] if isinstance(leaf, Named) else leaf

    memory = _Memory(sum(form.bytes for form in (*inputs, *tensors.values())))
    work = pieces = 0
    done = last_reads([call.node for call in calls])
    for index, call in enumerate(calls):
        node = call.node
        if not inputs and any(value < 0 or results[value] is None for value in node.values()):
            results.append(None)
            memory.add(Made(()), (), ())
            continue
        given = {name: known(value) for name, value in call.given.items()}
        for name in _TYPES:
            if type(given.get(name)) is str:
                given[name] = DTYPES_BY_NAME[given[name]]
        try:
            made = BY_NAME[node.op].result(given)
            forms = _forms(made)
            for form in forms:
                if form.numbers > batch * MOST_NUMBERS:
                    raise Misfit(f"what it computes for one input has more than {MOST_NUMBERS} numbers")
        except (Misfit, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise UnsupportedNetworkError(f"operation {index + 1}, {node.op}: {error}") from None
        results.append(made.result)
        written = 0 if made.is_view else sum(form.numbers for form in forms)
        work += _CALL + made.work + NUMBER * written
        pieces += len(forms) if isinstance(made.result, tuple) else 0
        memory.add(made, forms, [value for value in node.values() if value >= 0])
        memory.free(done[index])
        if limits is not None:
            limits.check(Cost(work // batch, memory.most // batch, pieces // batch))
    return Outline(tuple(results), Cost(work, memory.most, pieces))


_TYPES = ("dtype", "out_dtype")


def _forms(made: Made) -> Sequence[Form]:
    if isinstance(made.result, tuple):
        return made.result
    return (made.result,) if isinstance(made.result, Form) else ()


class _Memory:
    """How many bytes live at the same time.

    Several results may be views of one place, which is free when the last of them is.
    """

    def __init__(self, always: int) -> None:
        self.now = self.most = always
        self._sizes: list[int] = []
        self._readers: list[int] = []
        self._held: list[tuple[int, ...]] = []

    def add(self, made: Made, forms: Sequence[Form], read: Iterable[int]) -> None:
        """One result more, which may share its place with those that it was made of."""
        own = 0 if made.is_view else sum(form.bytes for form in forms)
        held: list[int] = []
        if made.shares:
            # What is copied rather than shared has no more than it was copied from.
            places = dict.fromkeys(place for index in read for place in self._held[index])
            held = [place for place in places if made.is_view or self._sizes[place] > own]
        if own:
            held.append(len(self._sizes))
            self._sizes.append(own)
            self._readers.append(0)
        for place in held:
            self._readers[place] += 1
        self._held.append(tuple(held))
        self.now += own
        self.most = max(self.most, self.now + made.memory)

    def free(self, indices: Iterable[int]) -> None:
        """These results are not read any more."""
        for index in indices:
            for place in self._held[index] if index >= 0 else ():
                self._readers[place] -= 1
                if not self._readers[place]:
                    self.now -= self._sizes[place]


def outline_of_two(
    calls: Sequence[Call], inputs: Sequence[Form], tensors: Mapping[str, Form], limits: Limits | None = None
) -> Outline:
    """The outline of a program for two examples.

    :param inputs: one example of each.
    :param limits: on what one of them costs.
    :raises UnsupportedNetworkError: where something does not fit together, or the output does not keep the batch first.
    :raises ExcessError: where it is more than the limits say.
    """
    found = []
    for batch in BATCHES:
        batched = [Form((batch, *form.shape), form.dtype) for form in inputs]
        found.append(outline(calls, batched, tensors, batch, limits))
        last = found[-1].results[-1]
        if not isinstance(last, Form) or last.shape[:1] != (batch,):
            told = tuple(last.shape) if isinstance(last, Form) else "no shape"
            raise UnsupportedNetworkError(
                f"the network's output does not keep its examples in front: of {batch} it makes {told}"
            )
    two, three = (vars(own.cost) for own in found)
    if limits is not None:
        limits.check(Cost(**{name: max(2 * two[name] - three[name], three[name] - two[name]) for name in two}))
    return found[0]


def form_of(tensor: torch.Tensor) -> Form:
    """A tensor's form, with the least and the largest of its integers."""
    bounds = None
    if tensor.dtype in (torch.int64, torch.int32) and tensor.numel() and tensor.device.type != "meta":
        bounds = int(tensor.min()), int(tensor.max())
    return Form(tuple(tensor.shape), tensor.dtype, bounds)
