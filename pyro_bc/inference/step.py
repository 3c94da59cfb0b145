"""One training step, from a mini-batch to gradients; as Python runs it, or traced once and compiled.

A step of a small network is mostly Python (Pyro's handlers, autograd's bookkeeping) and passes over memory. The model
stays the one description of it: :func:`~pyro_bc.inference.elbo.elbo_terms` runs under ``make_fx`` for one batch,
backward pass included, and the tensor operations that it came to are one function, which torch's compiler fuses.
"""

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.torch_version import TorchVersion

from ..model.guide import FactorizedGuide
from ..runtime.random_state import same_random_state
from .elbo import elbo_terms


@dataclass(frozen=True)
class StepResult:
    """What a step came to, in nats, detached.

    :param log_likelihood: of the training set, estimated from the batch, scalar.
    :param kl: divergence of each latent site, ``(sites,)``, in the order of ``guide.families``.
    :param loss: what was differentiated: the negative ELBO with a weight on the KL, per training example, scalar.
    :param error: mean error of the batch, in the unit of the likelihood's ``metric``, scalar.
    """

    loss: Tensor
    log_likelihood: Tensor
    kl: Tensor
    error: Tensor


class FlatParameters:
    """A context in which the parameters of several modules, and their gradients, are views of a few long vectors.

    An optimiser, or an exchange between processes, then has a few tensors to pass over instead of hundreds.

    :param groups: the parameters that make up each of the vectors, of one dtype and device.
    """

    def __init__(self, groups: list[list[nn.Parameter]]):
        self.groups = groups
        self.vectors: list[Tensor] = []
        self.gradients: list[Tensor] = []  # what autograd adds to
        for group in groups:
            vector = torch.cat([parameter.detach().reshape(-1) for parameter in group])
            gradient = torch.zeros_like(vector)
            self.vectors.append(vector)
            self.gradients.append(gradient)
            parts = zip(group, self.split(vector, group), self.split(gradient, group), strict=True)
            for parameter, value, slot in parts:
                parameter.data, parameter.grad = value, slot

    @staticmethod
    def split(vector: Tensor, like: list[nn.Parameter]) -> list[Tensor]:
        """Views of a vector in the parameters' shapes."""
        parts = vector.split([parameter.numel() for parameter in like])
        return [part.view(parameter.shape) for part, parameter in zip(parts, like, strict=True)]

    def __enter__(self) -> "FlatParameters":
        return self

    def __exit__(self, *error: Any) -> None:
        for group in self.groups:
            for parameter in group:
                parameter.data, parameter.grad = parameter.detach().clone(), None


#: what a network's products are computed in; parameters, sums and the KL are in single precision.
PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bf16": torch.bfloat16}


class _Terms(nn.Module):
    """A model and its guide as a module: everything that a step's tensors depend on is below it."""

    def __init__(self, model: Any, guide: FactorizedGuide, precision: str):
        super().__init__()
        self.model, self.guide, self.dtype = model, guide, PRECISIONS[precision]

    def forward(self, x: Tensor, y: Tensor, kl_weight: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The two parts of what is minimised, per example: weighted KL and misfit; then as in :class:`StepResult`."""
        if self.dtype is not None and isinstance(x, Tensor) and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)  # which such convolutions are quickest in
        with self._arithmetic(y.device):
            terms = elbo_terms(self.model, self.guide, x, y)
        kl = torch.stack([terms.kl[name].reshape(()) for name in self.guide.families])
        parts = kl_weight * kl.sum() / self.model.num_data, -terms.log_likelihood / self.model.num_data
        with torch.no_grad():
            error = self.model.likelihood.error(terms.outputs, y).mean()
        return *parts, terms.log_likelihood.detach(), kl.detach(), error

    def _arithmetic(self, device: torch.device) -> AbstractContextManager[Any]:
        return nullcontext() if self.dtype is None else torch.autocast(device.type, self.dtype)


#: fills the gradients of the flat parameters, and says what the step came to.
Step = Callable[[Tensor, Tensor, float], StepResult]


def eager_step(model: Any, guide: FactorizedGuide, flat: FlatParameters, precision: str = "float32") -> Step:
    """The step as Python runs it.

    :param precision: of the products, one of :data:`PRECISIONS`.
    """
    terms = _Terms(model, guide, precision)

    def step(x: Tensor, y: Tensor, kl_weight: float) -> StepResult:
        for vector, gradient in zip(flat.vectors, flat.gradients, strict=True):
            vector.grad = gradient.zero_()
        penalty, misfit, log_likelihood, kl, error = terms(x, y, kl_weight)
        # One after the other: in one pass the first gradient of all weights waits for the second before it is added.
        penalty.backward(retain_graph=True)
        misfit.backward()
        return StepResult((penalty + misfit).detach(), log_likelihood, kl, error)

    return step


def compiled_step(
    model: Any, guide: FactorizedGuide, flat: FlatParameters, x: Tensor, y: Tensor, precision: str = "float32"
) -> Step:
    """The same step, compiled for batches of one shape; noise, and so the result, is that of :func:`eager_step`.

    Compilation takes ten to forty seconds, later ones of the same step fewer. The random state is left as it was.

    :param x: a batch to trace the step with; its numbers do not matter.
    """
    terms = _Terms(model, guide, precision)
    names = {id(parameter): name for name, parameter in terms.named_parameters()}
    buffers = dict(terms.named_buffers())

    count = len(flat.vectors)

    def function(*inputs: Tensor) -> tuple[Tensor, ...]:
        """Flat parameters, buffers, batch and weight in; what the step came to and gradients out."""
        vectors, (*buffer_values, x, y, kl_weight) = inputs[:count], inputs[count:]
        values = dict(zip(buffers, buffer_values, strict=True))
        for vector, group in zip(vectors, flat.groups, strict=True):
            parts = flat.split(vector, group)
            values |= {names[id(parameter)]: part for parameter, part in zip(group, parts, strict=True)}
        penalty, misfit, *results = torch.func.functional_call(terms, values, (x, y, kl_weight))
        loss = penalty + misfit
        return (loss.detach(), *(result.detach() for result in results), *torch.autograd.grad(loss, vectors))

    kl_weight = torch.zeros((), device=x.device)
    with same_random_state(x.device), pyro.validation_enabled(False):
        leaves = [vector.detach().clone().requires_grad_() for vector in flat.vectors]
        copies = [buffer.clone() for buffer in buffers.values()]  # batch statistics are added to while tracing
        traced = make_fx(function)(*leaves, *copies, x, y, kl_weight)
        inputs = [vector.detach() for vector in flat.vectors] + [*copies, x, y, kl_weight]
        with torch.no_grad():
            compiled: Any = compile_graph(traced, inputs, _options(x.device))
            compiled(*inputs)

    def step(x: Tensor, y: Tensor, weight: float) -> StepResult:
        with torch.no_grad():
            found = compiled(*flat.vectors, *buffers.values(), x, y, kl_weight.fill_(weight))
        for vector, gradient in zip(flat.vectors, found[4:], strict=True):
            vector.grad = gradient
        return StepResult(*found[:4])

    return step


def compile_graph(traced: torch.fx.GraphModule, inputs: list[Tensor], options: dict[str, Any]) -> Callable[..., Any]:
    """A traced graph as one compiled function of the same inputs.

    By the compiler alone, without the part of ``torch.compile`` that watches Python's frames: there is nothing to trace
    any more, and it once took up a generator that Python was clearing away, which stopped a training.
    """
    import torch._inductor as inductor

    for node in traced.graph.nodes:  # what tracing noted of shapes, for each tensor by itself: the compiler has its own
        node.meta.clear()
    return inductor.compile(traced, list[Any](inputs), options=options)


def _options(device: torch.device) -> dict[str, Any]:
    # Noise from torch's own generator, so that what is compiled computes what is not; and kernels that are called from
    # C++, since calling them from Python takes a tenth of a small network's step.
    return {"fallback_random": True, "cpp_wrapper": device.type == "cpu"}


def has_compiler() -> bool:
    """Whether there is what ``torch.compile`` needs to generate code for a CPU: a C++ compiler.

    And a torch whose compiled code draws the same noise as the step in Python: 2.6 does not, 2.13 and 2.14 do.
    """
    return bool(TorchVersion(torch.__version__) >= "2.13") and any(
        shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++", "cl") if name
    )
