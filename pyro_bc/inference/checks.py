"""What a training is given, looked at before it costs anything; and what went wrong, by its name, where it does."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from ..data.loaders import check_inputs
from ..errors import NonFiniteLossError, PyroBCError, UsageError
from ..model.likelihoods import Likelihood
from ..runtime.devices import check_device
from ..runtime.inputs import Batch, described, forms, tensors_of
from ..runtime.messages import first_line

_ADVICE = "A smaller learning rate usually helps; the checkpoint of the epoch before stays"


@contextmanager
def running_on(x: Batch) -> Iterator[None]:
    """A context that runs a network on its first batch, and says so where the two do not fit.

    :raises UsageError: in place of what torch raises.
    """
    try:
        yield
    except PyroBCError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = first_line(error)
        raise UsageError(
            f"the model cannot be run on the first batch, inputs of shape {described(x)}: {reason}"
        ) from error


@dataclass(frozen=True)
class BatchCheck:
    """Whether a batch is like the first one, which the model could be run on.

    :param outputs: what the model returned for the first batch.
    :param x: that batch's inputs.
    """

    likelihood: Likelihood
    outputs: Any
    x: Batch

    def __call__(self, x: Batch, y: Tensor, number: int) -> None:
        """:raises UsageError: where inputs have another shape or type, or are not finite, or targets do not fit."""
        count, device = len(tensors_of(x)[0]), tensors_of(self.x)[0].device
        if forms(x) != forms(self.x) or count != len(y):
            raise UsageError(
                f"batch {number} has inputs of shape {described(x)}, and {len(y)} targets, the first one inputs of "
                f"shape {described(self.x)}"
            )
        check_device(f"the inputs of batch {number} are", x, device)
        check_device(f"the targets of batch {number} are", y, device)
        check_inputs(x, f"the inputs of batch {number}")
        outputs = self.outputs
        if isinstance(outputs, Tensor) and outputs.dim():
            outputs = outputs[:1].expand(count, *outputs.shape[1:])
        try:
            self.likelihood.check(outputs, y)
        except UsageError as error:
            raise UsageError(f"batch {number}: {error}") from None


def not_finite(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of the tensors that hold NaN or infinite numbers."""
    return [name for name, value in named if not bool(value.isfinite().all())]


@torch.no_grad()
def first_layer_not_finite(model: nn.Module, guide: nn.Module, x: Batch, y: Tensor) -> str | None:
    """The first module whose output on a batch is not finite; None where there is none."""
    found: list[str] = []
    hooks = []
    for name, module in model.named_modules():
        if name and not any(True for _ in module.children()):

            def look(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
                if isinstance(output, Tensor) and not bool(output.isfinite().all()):
                    found.append(name)

            hooks.append(module.register_forward_hook(look))
    try:
        poutine.replay(model, trace=poutine.trace(guide).get_trace(x, y))(x, y)
    except (RuntimeError, ValueError, ArithmeticError):  # what is not finite may stop the model itself
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def not_finite_error(
    epoch: int, step: int, parts: list[str], model: nn.Module, guide: nn.Module, x: Batch, y: Tensor
) -> NonFiniteLossError:
    """What is known of a step whose loss is not finite.

    :param parts: of the loss that are not.
    """
    text = f"the loss is not finite in epoch {epoch + 1}, step {step + 1}: {', '.join(parts) or 'their sum'}"
    parameters = not_finite([*guide.named_parameters(), *model.named_parameters()])
    if parameters:
        text += f"; not finite already, after the step before: {', '.join(parameters)}"
    elif not all(bool(part.isfinite().all()) for part in tensors_of(x) if part.is_floating_point()):
        text += "; the batch's inputs hold NaN or infinite numbers"
    else:
        layer = first_layer_not_finite(model, guide, x, y)
        text += f"; the first layer whose output is not finite: {layer}" if layer else ""
    return NonFiniteLossError(f"{text}. {_ADVICE}")


def check_finite(epoch: int, model: nn.Module, guide: nn.Module) -> None:
    """:raises NonFiniteLossError: where an epoch left a parameter that is not finite, before that is written."""
    parameters = not_finite([*guide.named_parameters(), *model.named_parameters()])
    if parameters:
        raise NonFiniteLossError(
            f"the last step of epoch {epoch + 1} left parameters that are not finite, as a gradient was not: "
            f"{', '.join(parameters)}. {_ADVICE}"
        )
