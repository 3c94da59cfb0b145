"""A network as its user brings it, made ready: what only wraps or computes its weights is taken away."""

import copy
import warnings

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..graph.attention import separate_heads
from ..graph.bags import separate_bags


def prepared(module: nn.Module) -> nn.Module:
    """A copy of a network without what stands between it and its weights.

    ``torch.compile`` and ``DataParallel`` are unwrapped. Parametrizations, weight normalisation and the masks of
    ``torch.nn.utils.prune`` are taken away, their present result staying as the weight, which a warning says.
    ``nn.MultiheadAttention`` becomes :class:`~pyro_bc.graph.attention.MultiheadAttention`, whose heads are groups, and
    ``nn.EmbeddingBag`` a lookup (:class:`~pyro_bc.graph.bags.EmbeddingBag`).

    :param module: the network; it is not changed.
    """
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = module.module
        if not isinstance(inner, nn.Module):
            break
        module = inner
    # A weight that was computed is no leaf of autograd's graph, and such tensors cannot be copied.
    computed = [t for m in module.modules() for t in vars(m).values() if isinstance(t, Tensor) and not t.is_leaf]
    net = copy.deepcopy(module, {id(tensor): tensor.detach().clone() for tensor in computed})
    removed = [
        f"{name}.{tensor}" if name else tensor for name, layer in net.named_modules() for tensor in _plain_(layer)
    ]
    if removed:
        warnings.warn(
            f"became plain weights, since a posterior has no use for how they were computed: {', '.join(removed)}",
            stacklevel=5,
        )
    return separate_bags(separate_heads(net))


def _plain_(layer: nn.Module) -> list[str]:
    """Make plain parameters of what a layer computes its parameters from; the names of those."""
    found = []
    if parametrize.is_parametrized(layer):
        # Not by torch's own function, which changes the class that the user's network still has.
        values = {name: getattr(layer, name).detach().clone() for name in layer.parametrizations}  # type: ignore[union-attr]
        del layer.parametrizations
        layer.__class__ = type(layer).__bases__[0]
        for name, value in values.items():
            layer.register_parameter(name, nn.Parameter(value))
            found.append(name)
    for key, hook in list(layer._forward_pre_hooks.items()):
        kind, name = type(hook), getattr(hook, "name", None) or getattr(hook, "_tensor_name", None)
        module = kind.__module__
        if name is None or not module.startswith(
            ("torch.nn.utils.prune", "torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm")
        ):
            continue
        hook(layer, ())  # the weight as it is now
        value = getattr(layer, name).detach()
        del layer._forward_pre_hooks[key]
        for part in [p for p in (*layer._parameters, *layer._buffers) if p.startswith(f"{name}_")]:
            layer._parameters.pop(part, None), layer._buffers.pop(part, None)
        layer.__dict__.pop(name, None)
        layer.register_parameter(name, nn.Parameter(value.clone()))
        found.append(name)
    return found
