"""What of a network does not depend on its input, computed once: constants, and weights that are computed.

Constants that are made of numbers alone (positions, masks, indices) become tensors of the graph. What is computed from
floating point tensors of the network stays an operation, under the tensors' own names, unless a layer multiplies with
it or a graph has no such operation: those are folded, too, where the result is at most twice as large as what it is
made of, and never where a tensor is the weight or bias of one of torch's own layers, whose value a posterior may
replace.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

#: most numbers of a constant that is made of numbers alone; a larger one is computed where it is used.
MOST_FOLDED = 1 << 20

#: by name, how a tensor is made that takes no more than its type from another.
_FILLED: dict[str, Callable[..., float]] = {
    "zeros_like": lambda *args: 0,
    "ones_like": lambda *args: 1,
    "full_like": lambda x, value, *args: value,
    "empty_like": lambda *args: 0,
    "new_zeros": lambda *args: 0,
    "new_ones": lambda *args: 1,
    "new_full": lambda x, size, value, *args: value,
    "new_empty": lambda *args: 0,
}

_NUMBERS = (operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod, operator.neg)


def weights_of_layers(net: nn.Module) -> set[str]:
    """Names of the parameters of torch's own modules that compute as torch's do, and so may have a posterior."""
    found = set()
    for path, module in net.named_modules(remove_duplicate=False):
        own = [kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn.modules")]
        computes = [getattr(kind, "forward", None) for kind in (type(module), *own[:1])]
        if own and own[0] is not nn.Module and computes[0] is computes[1]:
            for name in module._parameters:
                if not name.endswith(("_g", "_v", "_orig")):  # from which old parametrizations compute the weight
                    found.add(f"{path}.{name}" if path else name)
    return found


class Constants:
    """The values of the nodes of an exported program that do not depend on its input.

    :param kept: names of the tensors from which nothing is to be folded.
    """

    def __init__(self, kept: set[str]) -> None:
        self.kept = kept
        self._values: dict[torch.fx.Node, Any] = {}
        self._sources: dict[torch.fx.Node, dict[str, int]] = {}

    def __contains__(self, node: torch.fx.Node) -> bool:
        return node in self._values

    def value(self, node: torch.fx.Node) -> Any:
        return self._values[node]

    def sources(self, node: torch.fx.Node) -> Mapping[str, int]:
        """The network's floating point tensors that a constant is computed from, and how many numbers each has."""
        return self._sources[node]

    def add(self, node: torch.fx.Node, value: Any, name: str | None = None) -> None:
        """A tensor of the network under its name, or one that was known when the network was traced."""
        is_state = name is not None and isinstance(value, Tensor) and value.is_floating_point()
        self._values[node] = value if is_state or not isinstance(value, Tensor) else value.clone()
        self._sources[node] = {name: value.numel()} if is_state and name is not None else {}

    def forget(self, node: torch.fx.Node) -> None:
        """A constant that something was written into which is none."""
        self._values.pop(node, None)

    def alias(self, node: torch.fx.Node, other: torch.fx.Node) -> None:
        """Another name of a constant."""
        self._values[node], self._sources[node] = self._values[other], self._sources[other]

    def computed(self, node: torch.fx.Node) -> bool:
        """Compute what a node makes, if all that it reads is known; whether that is so."""
        value: Any = node.meta.get("val")
        target: Any = node.target
        name = getattr(getattr(target, "overloadpacket", None), "__name__", "")
        static = isinstance(value, Tensor) and all(isinstance(size, int) for size in value.shape)
        if name in _FILLED and static and node.args[0] not in self._values and _is_plain(node.args[1:]):
            self._values[node] = torch.full(tuple(value.shape), _FILLED[name](*node.args), dtype=value.dtype)
            self._sources[node] = {}
            return True
        if not all(read in self._values for read in node.all_input_nodes):
            return False
        if isinstance(value, Tensor) and not static:
            return False
        is_operation = isinstance(target, torch._ops.OpOverload)
        if is_operation and torch.Tag.nondeterministic_seeded in target.tags:
            return False
        if not is_operation and target not in (*_NUMBERS, operator.getitem):
            return False
        sources = {k: v for read in node.all_input_nodes for k, v in self._sources[read].items()}
        mutable = is_operation and target._schema.is_mutable
        if mutable and sources:
            return False  # the network's own tensors are not written into
        if not self.kept.isdisjoint(sources):
            self._values[node] = None  # is never looked at: it is computed where it is used
        else:
            args, kwargs = torch.fx.node.map_aggregate((node.args, dict(node.kwargs)), self._looked_up)
            with torch.no_grad():
                self._values[node] = target(*args, **kwargs)
        self._sources[node] = sources
        return True

    def _looked_up(self, leaf: Any) -> Any:
        if isinstance(leaf, torch.fx.Node):
            return self._values[leaf]
        return torch.device("cpu") if isinstance(leaf, torch.device) else leaf

    def may_fold(self, node: torch.fx.Node, is_needed: bool) -> bool:
        """Whether a constant becomes a tensor of the graph.

        :param is_needed: whether a layer multiplies with it, or no operation of a graph computes it.
        """
        value, sources = self._values[node], self._sources[node]
        if not sources:
            return not isinstance(value, Tensor) or value.numel() <= MOST_FOLDED
        if not is_needed or not self.kept.isdisjoint(sources) or not isinstance(value, Tensor):
            return False
        return value.numel() <= 2 * sum(sources.values())


def _is_plain(args: tuple[Any, ...]) -> bool:
    """Whether arguments are known numbers."""
    found: list[Any] = []
    torch.fx.node.map_aggregate(args, found.append)
    return not any(isinstance(leaf, torch.fx.Node) for leaf in found)


def content(tensor: Tensor) -> tuple[Any, ...]:
    """What two tensors have in common where they are one and the same in every respect."""
    return tensor.dtype, tuple(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
