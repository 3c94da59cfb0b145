"""A feed-forward network as a chain of steps, read from any ``nn.Module`` by ``torch.fx``.

The chain is what can be made smaller and written to a file without the user's classes: a tuple of frozen
:data:`Step` values, applied one after the other.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from .errors import UnsupportedNetworkError


class Normalize(nn.Module):
    """Input normalisation that travels with the network: ``(x - mean) / std`` per channel.

    :param mean: one value, or one per channel.
    :param std: likewise, positive.

    Input and output ``(batch, channels, *)``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        shape = [-1] + [1] * (x.dim() - 2)
        return (x - self.mean.reshape(shape)) / self.std.reshape(shape)


class Select(nn.Module):
    """The inputs that a pruned network still reads: ``x[:, indices]``."""

    indices: Tensor

    def __init__(self, indices: Tensor):
        super().__init__()
        self.register_buffer("indices", indices.long())

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.indices)


@dataclass(frozen=True)
class NormalizeStep:
    """Mean and standard deviation per channel (or one for all)."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def module(self) -> nn.Module:
        return Normalize(self.mean, self.std)


@dataclass(frozen=True)
class FlattenStep:
    """All dimensions but the first into one."""

    def module(self) -> nn.Module:
        return nn.Flatten()


#: activations by name; the order is that of the file format and only grows at the end.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "relu6": nn.ReLU6,
    "hardtanh": nn.Hardtanh,
}


@dataclass(frozen=True)
class ActivationStep:
    """An element-wise function, one of :data:`ACTIVATIONS`, with its default parameters."""

    kind: str

    def module(self) -> nn.Module:
        return ACTIVATIONS[self.kind]()


@dataclass(frozen=True)
class LinearStep:
    """A fully connected layer by its name in the network; its weights are kept beside the chain."""

    name: str


Step = NormalizeStep | FlattenStep | ActivationStep | LinearStep

_FUNCTIONS: dict[Any, str] = {getattr(torch, kind): kind for kind in ("relu", "tanh", "sigmoid")}
_FUNCTIONS |= {getattr(nn.functional, kind): kind for kind in ACTIVATIONS}
_METHODS = {"relu", "tanh", "sigmoid"}


class _Tracer(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Normalize) or super().is_leaf_module(m, module_qualified_name)


def read_chain(net: nn.Module) -> tuple[Step, ...]:
    """The chain of steps that a network computes; dropout and identities fall away.

    :raises UnsupportedNetworkError: where the network branches, or holds an operation that is not a step.
    """
    try:
        graph = _Tracer().trace(net)
    except Exception as error:  # whatever a user's forward raises when it is traced
        reason = str(error).splitlines()[0]
        raise UnsupportedNetworkError(f"the network cannot be traced as a fixed chain of layers: {reason}") from error
    steps: list[Step] = []
    previous: torch.fx.Node | None = None
    for node in graph.nodes:
        if node.op == "placeholder" and previous is None:
            previous = node
            continue
        inputs = node.all_input_nodes
        if inputs != [previous] or (previous is not None and len(previous.users) > 1):
            raise UnsupportedNetworkError(
                f"'{node.name}' takes its input from {[n.name for n in inputs]}: only chains, in which every step "
                f"feeds the next one alone, can be compressed"
            )
        previous = node
        if node.op == "output":
            break
        step = _step(net, node)
        if step is not None:
            steps.append(step)
    names = [step.name for step in steps if isinstance(step, LinearStep)]
    shared = {name for name in names if names.count(name) > 1}
    if shared:
        raise UnsupportedNetworkError(
            f"layer '{shared.pop()}' is used twice; shared layers cannot be pruned in a chain"
        )
    return tuple(steps)


def _step(net: nn.Module, node: torch.fx.Node) -> Step | None:
    if node.op == "call_module":
        module = net.get_submodule(str(node.target))
        if isinstance(module, nn.Linear):
            return LinearStep(str(node.target))
        if isinstance(module, Normalize):
            return NormalizeStep(tuple(module.mean.tolist()), tuple(module.std.tolist()))
        if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
            return FlattenStep()
        if isinstance(module, nn.Identity | nn.Dropout):
            return None
        for kind, activation in ACTIVATIONS.items():
            if type(module) is activation and _same_settings(module, activation()):
                return ActivationStep(kind)
        description = f"module '{node.target}' ({module})"
    else:
        description = f"operation '{node.name}' ({node.target})"
        arguments = [a for a in node.args if not isinstance(a, torch.fx.Node)]
        options = {k: v for k, v in node.kwargs.items() if k != "inplace" and v != _default(node.target, k)}
        if node.target in (torch.flatten, "flatten") and [*arguments, *options.values()] in ([1], [1, -1]):
            return FlattenStep()
        if node.target is nn.functional.dropout:
            return None
        if node.op == "call_method" and node.target in _METHODS:
            return ActivationStep(str(node.target))
        if node.target in _FUNCTIONS and not arguments and not options:
            return ActivationStep(_FUNCTIONS[node.target])
    raise UnsupportedNetworkError(
        f"{description} cannot be compressed; chains hold Linear, Flatten(1), Normalize, Dropout, Identity and the "
        f"activations {', '.join(ACTIVATIONS)} with default settings"
    )


def _default(function: Any, name: str) -> Any:
    """Default of a Python function's argument; None for functions of C++, which torch.fx records as called."""
    try:
        return inspect.signature(function).parameters[name].default
    except (TypeError, ValueError, KeyError):
        return None


def _same_settings(module: nn.Module, default: nn.Module) -> bool:
    def settings(m: nn.Module) -> dict:
        return {k: v for k, v in vars(m).items() if not k.startswith("_") and k not in ("training", "inplace")}

    return settings(module) == settings(default)


def linear_names(chain: Sequence[Step]) -> list[str]:
    """Names of the chain's fully connected layers, in order."""
    return [step.name for step in chain if isinstance(step, LinearStep)]


def build(chain: Sequence[Step], linears: dict[str, tuple[Tensor, Tensor | None]], inputs: Tensor | None) -> nn.Module:
    """The chain as a network.

    :param linears: weight ``(out, in)`` and bias ``(out,)`` or None of every layer by name.
    :param inputs: indices of the first layer's inputs that are kept, None for all.
    """
    modules: list[nn.Module] = []
    for step in chain:
        if not isinstance(step, LinearStep):
            modules.append(step.module())
            continue
        weight, bias = linears[step.name]
        if inputs is not None:
            modules.append(Select(inputs))
            inputs = None
        linear = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None)
        linear.weight.data = weight.clone()
        if bias is not None:
            linear.bias.data = bias.clone()
        modules.append(linear)
    return nn.Sequential(*modules).eval()
