"""What shapes a graph's results have, by the rules of its operations and without computing anything."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .nodes import Named, Node, Value, arguments
from .operations import BY_NAME


def shapes_by_rules(
    nodes: tuple[Node, ...], tensors: Mapping[str, Tensor], input_shape: tuple[int, ...], most: int
) -> list[tuple[int, ...]] | None:
    """The shape of every node's result; None where not all of them are known and of at most so many numbers.

    :param tensors: by name; they need no storage.
    :param input_shape: with the number of examples in front.
    :param most: numbers in any result.
    """
    results: list[Tensor] = []
    x = torch.empty(input_shape, device="meta")

    def lookup(leaf: Any) -> Any:
        if isinstance(leaf, Value):
            return x if leaf.index == -1 else results[leaf.index]
        return tensors[leaf.name] if isinstance(leaf, Named) else leaf

    for node in nodes:
        rule = BY_NAME[node.op].shape
        args, kwargs = arguments(node, lookup)
        shape = None if rule is None or kwargs else rule(args)
        if shape is None:
            return None
        results.append(torch.empty(shape, device="meta"))
        if results[-1].numel() > most:
            return None
    return [tuple(result.shape) for result in results]
