"""What a perfect hand would leave of a network of which groups are pruned, by torch alone.

The parameters that are not pruned and on which an output still depends, counted by their gradients in the masked
network, in double precision. Functions are watched where torch calls them, whatever module does: nothing here reads a
graph. A filter that is pruned takes its normalisation with it: where a normalisation reads a channel that only pruned
filters make, and no parameter beside them such as a table of positions, it gives 0 there.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_LAYERS = {
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "embedding",
}  # fmt: skip
#: normalisations, with the axis of their input that counts channels.
_NORMS = {"batch_norm": 1, "instance_norm": 1, "group_norm": 1, "layer_norm": -1}
#: what stands for activations that have a slope of 0, so that a gradient is 0 only where nothing is read.
_SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.silu, "relu_": F.silu, "relu6": F.silu, "hardswish": F.silu, "hardtanh": torch.tanh,
    "hardsigmoid": torch.sigmoid, "leaky_relu": F.silu,
}  # fmt: skip


class _Watching(TorchFunctionMode):
    """Runs every function, and lets a rule change what layers and normalisations give.

    :param smooth: whether activations are replaced by those of :data:`_SMOOTH`.
    """

    def __init__(self, change: Callable[[str, tuple[Any, ...], Tensor], Tensor], smooth: bool):
        super().__init__()
        self.change, self.smooth = change, smooth

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        if name == "to":
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        if name == "float":
            return func.__self__.double() if not args else args[0].double()
        if self.smooth and name in _SMOOTH and args:
            return _SMOOTH[name](args[0])
        result = func(*args, **kwargs)
        if (name in _LAYERS or name in _NORMS) and isinstance(result, Tensor):
            own = (*args, *(kwargs[key] for key in ("input", "weight") if key in kwargs))
            result = self.change(name, own, result)
        return result


def _along(entries: Tensor, ndim: int, axis: int) -> Tensor:
    return entries.reshape([-1 if other == axis % ndim else 1 for other in range(ndim)])


def _beside_layers(net: nn.Module) -> list[nn.Parameter]:
    """Parameters of modules that are none of torch's own."""
    own = [m for m in net.modules() if not type(m).__module__.startswith("torch.nn.")]
    return [parameter for module in own for parameter in module.parameters(recurse=False)]


def of_the_masked(net: nn.Module, dead: Mapping[str, Tensor], x: Any, call: Callable[[nn.Module, Any], Tensor]) -> Any:
    """A function that runs the network with its pruned filters' normalisations at 0.

    :param net: its weights are 0 where they are pruned, all in double precision, in evaluation mode.
    :param dead: by the name of a weight, which of its layer's outputs are pruned, ``(out,)``.
    :param x: a batch of inputs.
    :param call: what runs a network on a batch.
    :returns: a function of a batch, and of whether activations are to be smooth.
    """
    named = net.named_parameters(remove_duplicate=False)
    of_weight = {id(parameter): dead[name] for name, parameter in named if name in dead}
    silent: list[Any] = []

    firsts: list[Any] = []

    def noisy(name: str, args: tuple[Any, ...], result: Tensor) -> Tensor:
        noise = torch.randn_like(result)
        if name in _NORMS:
            axis = _NORMS[name]
            own = args[0].movedim(axis, 0).flatten(1)
            off = (own == own[:, :1]).all(1)
            weight = next((a for a in args[1:] if isinstance(a, nn.Parameter)), None)
            silent.append((id(weight) if weight is not None else -len(silent) - 1, off, own[:, 0].clone()))
            return noise * ~_along(off, result.dim(), axis)
        off = of_weight.get(id(args[1])) if len(args) > 1 else None
        axis = -1 if name in ("linear", "embedding") else result.dim() - 1 - int(name[-2])
        if off is None or len(off) != result.shape[axis]:  # a table that is a layer's weight, too
            return noise
        return noise * ~_along(off, result.dim(), axis)

    for moves in (0.0, 1.0):  # what depends on parameters that are no layer's is not made by pruned filters alone
        firsts, silent = silent, []
        held = [parameter.clone() for parameter in _beside_layers(net)]
        with torch.no_grad(), _Watching(noisy, smooth=True):
            for parameter in _beside_layers(net):
                parameter += moves
            call(net, x)
            for parameter, own in zip(_beside_layers(net), held, strict=True):
                parameter.copy_(own)
    silent = [
        (key, off & (values == others)) for (key, off, values), (_, _, others) in zip(silent, firsts, strict=True)
    ]
    everywhere: dict[int, Tensor] = {}  # one that is used in several places gives 0 where it does in all of them
    for key, off in silent:
        everywhere[key] = everywhere[key] & off if key in everywhere else off

    def run(batch: Any, smooth: bool = False) -> Tensor:
        order = iter(silent)

        def silenced(name: str, args: tuple[Any, ...], result: Tensor) -> Tensor:
            if name not in _NORMS:
                return result
            off = everywhere[next(order)[0]]
            return result * ~_along(off, result.dim(), _NORMS[name]) if bool(off.any()) else result

        with _Watching(silenced, smooth):
            return call(net, batch)

    return run


def needed(net: nn.Module, masks: Mapping[str, Tensor], run: Any, x: Any) -> dict[str, int]:
    """Parameters that are not pruned and that the output depends on, by name.

    What torch cannot compute without counts as needed: a matrix between the hidden units of a recurrent cell is square.

    :param masks: by a parameter's name, which of its entries are not pruned; all of the others.
    :param run: what :func:`of_the_masked` gave.
    """
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    masks = {names[id(p)]: masks[n] for n, p in net.named_parameters(remove_duplicate=False) if n in masks}
    tables = {id(m.weight) for m in net.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    recurrent = [module for module in net.modules() if isinstance(module, nn.RNNBase)]
    squares = {id(p) for module in recurrent for name, p in module.named_parameters() if name.startswith("weight_hh")}
    net.zero_grad()
    outputs = run(x, smooth=True)
    torch.manual_seed(1)
    (outputs * torch.randn_like(outputs)).nan_to_num(0.0, 0.0, 0.0).sum().backward()
    found = {}
    for name, parameter in net.named_parameters():
        if parameter.grad is not None:
            used = parameter.grad != 0
            if id(parameter) in tables:  # rows are those of words that other inputs have
                used = used.any(0).expand_as(used)
            used = used & masks[name] if name in masks else used
            if id(parameter) in squares:  # every hidden unit that there is reads all of them
                rows = int(used.any(1).sum())
                found[name] = rows * (rows * parameter.shape[1] // parameter.shape[0])
            else:
                found[name] = int(used.sum())
    return found
