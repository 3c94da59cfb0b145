"""Attributes of modules that are what a Bayesian layer draws: parameters that several modules share, or of no layer.

A network may multiply with a parameter of its own, ``F.linear(x, self.projection)``, or give one weight to two modules,
``head.weight = words.weight``. There is one site then, in one layer, from which all others who have it read it.
A parameter that stays one may have a scale that is drawn: it is read as their product.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from pyro.nn import PyroModule
from torch import Tensor, nn

from .layers import BayesianLayer

_READINGS = "_readings"


class _Reading:
    """What a module's class becomes a subclass of, so that it can be copied and pickled."""

    def __reduce__(self) -> Any:
        kind: Any = type(self).__bases__[1]
        new, args, state = kind.__reduce__(self)
        return _Rebuilt, (new, args, tuple(state[_READINGS])), state


class _Rebuilt:
    """An empty object of such a class, whose state comes behind."""

    def __new__(cls, new: Any, args: tuple[Any, ...], names: tuple[str, ...]) -> Any:
        module = new(*args)
        _become_reading(module, names)
        return module


def read_from(module: nn.Module, name: str, layer: BayesianLayer, role: str = "weight", turned: bool = False) -> None:
    """Let an attribute of a module be a layer's weight or bias, as it is drawn, instead of a parameter.

    :param module: a ``PyroModule``.
    :param name: of the attribute, whose parameter is taken away.
    :param layer: the layer that has the sites.
    :param role: ``weight`` or ``bias``.
    :param turned: whether the attribute is the transpose of the weight.
    """
    module._parameters.pop(name, None)
    _let_read(module, name, partial(_of_layer, layer, role, turned))


def scale_reading(module: nn.Module, name: str, times: Callable[[Tensor], Tensor]) -> None:
    """Let a parameter or buffer of a module be read as what a function makes of it; it stays the module's own.

    :param module: a ``PyroModule``.
    :param name: of the attribute.
    """
    _let_read(module, name, partial(_of_own, name, times))


def _let_read(module: nn.Module, name: str, read: Callable[[nn.Module], Tensor | None]) -> None:
    # Functions keep the modules that they know from being submodules a second time.
    module.__dict__.setdefault(_READINGS, {})[name] = read
    _become_reading(module, (name,))


def _become_reading(module: nn.Module, names: tuple[str, ...]) -> None:
    own: Any = type(module)
    if not issubclass(own, _Reading):
        own = type(own)(own.__name__, (_Reading, own), {"__module__": own.__module__})
        module.__class__ = own
    for name in names:
        setattr(own, name, property(partial(_read, name=name)))


def _read(module: nn.Module, name: str) -> Tensor | None:
    value: Tensor | None = module.__dict__[_READINGS][name](module)
    return value


def _of_layer(layer: BayesianLayer, role: str, turned: bool, module: nn.Module) -> Tensor | None:
    value: Tensor | None = getattr(layer, role)
    return value.T if turned and value is not None else value


def _of_own(name: str, times: Callable[[Tensor], Tensor], module: Any) -> Tensor:
    return times(PyroModule.__getattr__(module, name))
