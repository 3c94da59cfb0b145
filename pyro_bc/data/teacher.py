"""A teacher's opinion of training pictures: targets that say more than a class, computed once.

A small network learns more from the probabilities that a better one gives (Hinton et al. 2015, 1503.02531) than from
labels. Asking the teacher anew about every augmented picture would cost more than the small network's whole step, so
each of a few augmented passes over the data is made and judged once, and trained on many times.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .batches import Batches

_PART = 1000


class TaughtBatches:
    """Mini-batches ``(x, probabilities)`` of several augmented passes over the same pictures.

    One iteration is one pass, chosen at random, in a new order (by torch's global generator).

    :param x: pictures ``(N, C, H, W)`` in [0, 1]; passes are kept in steps of 1/255.
    :param y: class numbers ``(N,)``.
    :param teacher: network of logits ``(batch, classes)``, in evaluation mode; None to learn from labels alone.
    :param classes: number of classes.
    :param share: of the teacher in the targets, 0 to 1; the rest is the label.
    :param augment: changes a batch of pictures at random; None for a single pass of the pictures themselves.
    :param passes: how many augmented passes; the first is of the pictures themselves.
    :raises UsageError: where ``share``, ``passes`` or pictures are out of range.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        teacher: nn.Module | None,
        *,
        classes: int,
        share: float = 0.7,
        augment: Callable[[Tensor], Tensor] | None = None,
        passes: int = 12,
        batch_size: int = 256,
    ):
        if not (0 <= share <= 1 and passes >= 1):
            raise UsageError(f"share lies between 0 and 1 and passes is at least 1, not {share} and {passes}")
        if len(x) and not (float(x.min()) >= 0 and float(x.max()) <= 1):
            raise UsageError("pictures are numbers between 0 and 1; normalisation belongs into the network")
        passes = 1 if augment is None else passes
        self.batch_size, self.length = batch_size, len(Batches(x, y, batch_size))
        self.x = torch.empty(passes, *x.shape, dtype=torch.uint8, device=x.device)
        self.y = torch.empty(passes, len(x), classes, device=x.device)
        labels = nn.functional.one_hot(y, classes).float()
        with torch.no_grad():
            for number in range(passes):
                for start in range(0, len(x), _PART):
                    part = slice(start, start + _PART)
                    pictures = x[part] if augment is None or not number else augment(x[part])
                    self.x[number, part] = pictures.mul(255).round().to(torch.uint8)
                    self.y[number, part] = labels[part]
                    if teacher is not None:
                        opinion = teacher(self.x[number, part].float() / 255).softmax(-1)
                        self.y[number, part] = torch.lerp(labels[part], opinion, share)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        number = int(torch.randint(len(self.x), ()))
        for x, y in Batches(self.x[number], self.y[number], self.batch_size):
            yield x.float() / 255, y
