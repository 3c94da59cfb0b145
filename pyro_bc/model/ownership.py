"""Whose parameters Pyro's store holds: those of the module that runs, and not an earlier one's of the same names.

Pyro keeps parameters in one store by name, and a module takes over what it finds there. Two networks of one process
have the same names (``net.fc1.weight``), so that the second would start from the first one's fit, or train it instead.
What came from elsewhere, ``pyro.get_param_store().load(…)``, is nobody's and is taken over as ever.
"""

import weakref
from typing import Any

import pyro
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

# The module of this package that each parameter belongs to, by a weak reference.
_OWNERS: Any = WeakTensorKeyDictionary()


def claim_parameters(module: nn.Module, prefix: str = "") -> None:
    """Take out of Pyro's store what another module of this package left under the names of this one's parameters.

    :param prefix: what Pyro puts before the names of the module's parameters.
    """
    store = pyro.get_param_store()
    for path, parameter in module.named_parameters():
        name = prefix + path.removesuffix("_unconstrained")
        held = store._params.get(name)
        if held is not parameter or parameter not in _OWNERS:
            if held is not None and _is_anothers(held, module):
                del store[name]
            _OWNERS[parameter] = weakref.ref(module)


def forget_others(prefix: str, module: nn.Module) -> None:
    """Take out of Pyro's store what other modules of this package left under all names that begin like this."""
    store = pyro.get_param_store()
    for name in [
        name for name, held in store._params.items() if name.startswith(prefix) and _is_anothers(held, module)
    ]:
        del store[name]


def _is_anothers(held: Any, module: nn.Module) -> bool:
    owner = _OWNERS.get(held)
    return owner is not None and owner() is not module
