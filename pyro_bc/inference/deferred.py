"""Tensors that are drawn only where an operation needs their values.

Operations that do not need them have a rule (:mod:`pyro_bc.inference.deferred_rules`).
"""

import warnings
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar, TypeVar

import pyro.distributions as dist
import torch
from torch import Tensor

from ..priors.base import ROLES

_D = TypeVar("_D", bound="Deferred")


class Deferred(torch.Tensor):
    """A tensor that is drawn from ``distribution`` only where an operation needs its value.

    It has shape, dtype and device, but no storage of its own. ``draw()`` returns the same draw every time, and
    that of a product or root is computed from the draws of its ``sources``, the sites that it is made of.
    """

    #: what an operation gives without a draw, or ``NotImplemented``, by torch's function.
    rules: ClassVar[dict[Callable[..., Any], Callable[..., Any]]] = {}

    distribution: Any
    guide_fn: Any = None  # of a site's value under Pyro's handlers: the guide's density, with its event dimensions
    site: str = ""  # name of the site, of a site's value
    repeats: int = 1  # how many neighbouring entries share each of the distribution's
    _rule: Callable[[], Tensor]
    _draw: Tensor | None
    _sources: tuple["Deferred", ...] = ()

    @property
    def sources(self) -> tuple["Deferred", ...]:
        """The sites that it is made of; a site's value is its own, and does not hold itself: a step's tensors would
        stay until Python looks for cycles."""
        return self._sources or (self,)

    @staticmethod
    def of(distribution: Any) -> "Deferred":
        """Defer a site's ``Normal`` or ``LogNormal`` (without ``to_event``)."""
        value = new_deferred(Deferred, distribution.loc, distribution.loc.shape, distribution.rsample)
        value.distribution = distribution
        return value

    def draw(self) -> Tensor:
        """The value, drawn with a reparameterized gradient on first use; a plain tensor."""
        if self._draw is None:
            self._draw = self._rule()
        return self._draw

    def per_example(self, x: Tensor) -> Tensor:
        """One draw for every example of ``x``, shape ``(len(x), 1, …, *self.shape)``, broadcast to ``x.dim()``."""
        q = self.distribution
        loc, scale = q.loc, q.scale
        batch = [x.shape[0]] if x.dim() > 1 else []
        ones = [1] * (x.dim() - len(batch) - loc.dim())
        normal = loc + scale * torch.randn(*batch, *ones, *loc.shape, dtype=loc.dtype, device=loc.device)
        value = normal.exp() if isinstance(q, dist.LogNormal) else normal
        return value if self.repeats == 1 else value.repeat_interleave(self.repeats, -1)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        rule = cls.rules.get(func)
        if rule is not None:
            result = rule(*args, **kwargs)
            if result is not NotImplemented:
                return result
        _say_drawn(func, args, kwargs)
        args, kwargs = torch.utils._pytree.tree_map_only(Deferred, lambda t: t.draw(), (args, kwargs))
        return func(*args, **kwargs)


# Sites and operations that a warning has named.
_SAID: set[tuple[str, str]] = set()


def _say_drawn(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Say once that a weight is drawn for the whole batch, as an operation has no rule that draws what it gives."""
    values = [v for v in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(v, Deferred)]
    name = getattr(func, "__name__", str(func))
    for site in {source.site for value in values for source in value.sources if source.site.endswith(".weight")}:
        if (site, name) not in _SAID:
            _SAID.add((site, name))
            warnings.warn(
                f"'{site}' is drawn once for the whole batch, and gradients are noisier for it: '{name}' has no rule "
                f"for a weight that is used so. There are rules for F.linear, @, einsum and convolutions with a weight "
                f"that is not transposed",
                stacklevel=4,
            )


# What can be answered without a draw.
_METADATA = {
    *(getattr(torch.Tensor, name).__get__ for name in ("shape", "dtype", "device", "layout", "ndim", "is_sparse")),
    *(getattr(torch.Tensor, name) for name in ("dim", "size", "numel", "__len__")),
}


@dataclass(frozen=True)
class Certain:
    """What stands for a distribution where a factor is a plain tensor: a weight that is known, under a random scale."""

    loc: Tensor
    variance: None = None


class DeferredProduct(Deferred):
    """A product of independent deferred tensors that broadcast against each other, still not drawn.

    Factors: any number of scales, and at most one weight (the normal of two or more dimensions).
    """

    factors: tuple[Deferred, ...]

    def per_example(self, x: Tensor) -> Tensor:
        return reduce(torch.mul, (f.per_example(x) for f in self.factors))


def new_deferred(kind: type[_D], like: Tensor, shape: torch.Size, rule: Callable[[], Tensor]) -> _D:
    """A deferred tensor of this shape, and of the dtype and device of ``like``; the rule draws it."""
    value = like.detach().new_empty(()).expand(shape).as_subclass(kind)
    value._rule, value._draw = rule, None
    return value


#: a factor of a product: its distribution, the sites behind it, and how often each entry is repeated.
Factor = tuple[Any, tuple[Deferred, ...], int]


def derived(factors: list[Factor], like: Tensor, rule: Callable[[], Tensor]) -> Deferred:
    """A deferred tensor from its independent factors."""
    parts = []
    for q, sources, repeats in factors:
        shape = q.loc.shape if repeats == 1 else torch.Size([*q.loc.shape[:-1], q.loc.shape[-1] * repeats])
        part = new_deferred(Deferred, like, shape, rule)
        part.distribution, part._sources, part.repeats = q, sources, repeats
        parts.append(part)
    if len(parts) == 1:
        return parts[0]
    shape = torch.broadcast_shapes(*(part.shape for part in parts))
    product = new_deferred(DeferredProduct, like, shape, rule)
    product.factors = tuple(parts)
    product._sources = tuple(source for part in parts for source in part.sources)
    return product


def is_deferrable(name: str, q: Any, sites: Container[str] | None = None) -> bool:
    """Whether a site belongs to a layer, one with a weight among these sites, and can be deferred.

    :param sites: the guide's; None where it is not known yet which there are.
    """
    layer, _, role = name.rpartition(".")
    of_layer = bool(layer) and role in ROLES and (sites is None or f"{layer}.weight" in sites)
    return of_layer and isinstance(q, dist.Normal | dist.LogNormal)


def plain(value: Tensor) -> Tensor:
    """The tensor's own (empty) storage, without the subclass."""
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(torch.Tensor)


def factors_of(value: Deferred) -> tuple[Deferred, ...]:
    return value.factors if isinstance(value, DeferredProduct) else (value,)
