"""The network with pruned groups removed, by torch's hooks alone: what the shrinking is compared with.

A filter that is pruned gives 0, and takes its normalisation with it: where a normalisation reads a channel that only
pruned filters make, it gives 0 there as well.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# Normalisations, with the axis of their input that counts channels.
NORMS = {
    nn.BatchNorm1d: 1, nn.BatchNorm2d: 1, nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 1, nn.GroupNorm: 1, nn.LayerNorm: -1,
}  # fmt: skip


@torch.no_grad()
def remove_normalisation_(net: nn.Module, dead: Mapping[str, Tensor], x: Tensor) -> None:
    """Let normalisations give 0 in the channels that only pruned filters make.

    Every layer gives noise but at its pruned filters, which give 0: what a normalisation reads without any noise is
    theirs.

    :param net: changed: its normalisations get a hook.
    :param dead: by the name of a layer, which of its outputs are pruned, ``(out,)``.
    :param x: a batch of inputs.
    """
    found: dict[nn.Module, list[Tensor]] = {}
    handles = []

    def noisy(off: Tensor | None, axis: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            noise = torch.randn_like(output)
            return noise if off is None else noise * ~_along(off, output.dim(), axis)

        return hook

    def watching(axis: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            own = args[0].movedim(axis, 0).flatten(1)
            found.setdefault(module, []).append((own == own[:, :1]).all(1))
            return torch.randn_like(output) * ~_along(found[module][-1], output.dim(), axis)

        return hook

    for name, module in net.named_modules():
        if isinstance(module, LAYERS):
            axis = -1 if isinstance(module, nn.Linear) else 1
            handles.append(module.register_forward_hook(noisy(dead.get(name), axis)))
        elif type(module) in NORMS and getattr(module, "weight", None) is not None:
            handles.append(module.register_forward_hook(watching(NORMS[type(module)])))
    net(x[torch.arange(64) % len(x)])  # of few examples, all may be cut off by an activation
    for handle in handles:
        handle.remove()
    for module, several in found.items():
        off = torch.stack(several).all(0)
        if off.any():
            axis = NORMS[type(module)]
            module.register_forward_hook(lambda m, args, out, off=off, axis=axis: out * ~_along(off, out.dim(), axis))


def _along(entries: Tensor, ndim: int, axis: int) -> Tensor:
    return entries.reshape([-1 if other == axis % ndim else 1 for other in range(ndim)])
