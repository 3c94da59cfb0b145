"""What is left of today's blocks when half of all groups are forced out, against the least that computes the same.

    python analyses/robustness/shrinking.py

Small networks of each kind, random weights and statistics. Half of the groups of every layer (filters of convolutions,
inputs of fully connected layers, heads of attention) are pruned: every second one, or at random. "Needed" counts the
parameters that are not pruned and have a gradient in the masked network (``needed.py``); "left" is what the pruned
graph holds. Writes ``analyses/results/shrinking.md``.
"""

import argparse
import copy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
from common import RESULTS
from needed import needed, of_the_masked

from pyro_bc import GroupNormalJeffreys, LayerPosterior
from pyro_bc.compression.batch_norm import fold_batch_norm
from pyro_bc.compression.pruning import shrink
from pyro_bc.graph.attention import GroupedLinear, separate_heads
from pyro_bc.graph.layer_types import LAYER_TYPES
from pyro_bc.graph.module import GraphNetwork
from pyro_bc.graph.read import read_graph
from pyro_bc.posterior.thresholds import Threshold

TYPES = {row.module: row for row in LAYER_TYPES} | {GroupedLinear: LAYER_TYPES[0]}


class Forward(nn.Module):
    """Modules by name, and a function of them that is the forward."""

    def __init__(self, forward: Callable[..., Tensor], **modules: nn.Module):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def conv(a: int, b: int, k: int = 3, **options: int) -> nn.Conv2d:
    return nn.Conv2d(a, b, k, padding=k // 2, bias=False, **options)


def classifier(body: nn.Module, features: int) -> nn.Sequential:
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, 10))


def stem(width: int) -> nn.Sequential:
    return nn.Sequential(conv(3, width), nn.BatchNorm2d(width), nn.GELU())


def residual() -> nn.Module:
    block = lambda: Forward(  # noqa: E731
        lambda m, x: F.gelu(x + m.n2(m.c2(F.gelu(m.n1(m.c1(x)))))),
        c1=conv(16, 16), n1=nn.BatchNorm2d(16), c2=conv(16, 16), n2=nn.BatchNorm2d(16),
    )  # fmt: skip
    return classifier(nn.Sequential(stem(16), block(), block()), 16)


def pre_activation() -> nn.Module:
    block = lambda: Forward(  # noqa: E731
        lambda m, x: x + m.c2(F.gelu(m.n2(m.c1(F.gelu(m.n1(x)))))),
        n1=nn.BatchNorm2d(16), c1=conv(16, 16), n2=nn.BatchNorm2d(16), c2=conv(16, 16),
    )  # fmt: skip
    return classifier(nn.Sequential(conv(3, 16), block(), block(), nn.BatchNorm2d(16), nn.GELU()), 16)


def conv_act_norm() -> nn.Module:
    part = lambda a, b: [conv(a, b), nn.GELU(), nn.BatchNorm2d(b)]  # noqa: E731
    return classifier(nn.Sequential(*part(3, 16), *part(16, 24), *part(24, 24)), 24)


def repvgg() -> nn.Module:
    def block(a: int, b: int) -> nn.Module:
        same = {"n0": nn.BatchNorm2d(a)} if a == b else {}
        return Forward(
            lambda m, x: F.gelu(m.n3(m.c3(x)) + m.n1(m.c1(x)) + (m.n0(x) if hasattr(m, "n0") else 0)),
            c3=conv(a, b), n3=nn.BatchNorm2d(b), c1=conv(a, b, 1), n1=nn.BatchNorm2d(b), **same,
        )  # fmt: skip

    return classifier(nn.Sequential(block(3, 16), block(16, 16), block(16, 24), block(24, 24)), 24)


def group_norm() -> nn.Module:
    part = lambda a, b: [conv(a, b), nn.GroupNorm(4, b), nn.GELU()]  # noqa: E731
    return classifier(nn.Sequential(*part(3, 16), *part(16, 32), *part(32, 32)), 32)


def squeeze(width: int) -> nn.Module:
    return Forward(
        lambda m, x: x * torch.sigmoid(m.up(F.gelu(m.down(x.mean((2, 3), keepdim=True))))),
        down=nn.Conv2d(width, 8, 1), up=nn.Conv2d(8, width, 1),
    )  # fmt: skip


def regnet() -> nn.Module:
    block = lambda: Forward(  # noqa: E731
        lambda m, x: F.gelu(x + m.n3(m.c3(m.se(F.gelu(m.n2(m.c2(F.gelu(m.n1(m.c1(x))))))))) ),
        c1=conv(24, 32, 1), n1=nn.BatchNorm2d(32), c2=conv(32, 32, 3, groups=4), n2=nn.BatchNorm2d(32), se=squeeze(32),
        c3=conv(32, 24, 1), n3=nn.BatchNorm2d(24),
    )  # fmt: skip
    return classifier(nn.Sequential(stem(24), block(), block()), 24)


def tcn() -> nn.Module:
    def block(a: int, b: int, step: int) -> nn.Module:
        return Forward(
            lambda m, x: F.gelu(m.down(x) + F.gelu(m.c2(F.gelu(m.c1(x)[:, :, : -2 * step]))[:, :, : -2 * step])),
            c1=nn.Conv1d(a, b, 3, padding=2 * step, dilation=step),
            c2=nn.Conv1d(b, b, 3, padding=2 * step, dilation=step), down=nn.Conv1d(a, b, 1),
        )  # fmt: skip

    body = nn.Sequential(block(1, 25, 1), block(25, 25, 2), block(25, 25, 4))
    return nn.Sequential(nn.Flatten(2), body, Forward(lambda m, x: x[:, :, -1]), nn.Linear(25, 10))


def squeeze_and_excitation() -> nn.Module:
    block = lambda: Forward(  # noqa: E731
        lambda m, x: F.gelu(x + m.se(m.n2(m.c2(F.gelu(m.n1(m.c1(x))))))),
        c1=conv(16, 16), n1=nn.BatchNorm2d(16), c2=conv(16, 16), n2=nn.BatchNorm2d(16), se=squeeze(16),
    )  # fmt: skip
    return classifier(nn.Sequential(stem(16), block(), block()), 16)


def dense_block() -> nn.Module:
    def block(a: int) -> nn.Module:
        return Forward(
            lambda m, x: torch.cat([x, m.c2(F.gelu(m.n2(m.c1(F.gelu(m.n1(x))))))], 1),
            n1=nn.BatchNorm2d(a), c1=conv(a, 16, 1), n2=nn.BatchNorm2d(16), c2=conv(16, 8),
        )  # fmt: skip

    body = nn.Sequential(conv(3, 16), block(16), block(24), block(32), nn.BatchNorm2d(40), nn.GELU())
    return classifier(body, 40)


def mobilenet() -> nn.Module:
    block = lambda: Forward(  # noqa: E731
        lambda m, x: x + m.n3(m.c3(F.gelu(m.n2(m.c2(F.gelu(m.n1(m.c1(x)))))))),
        c1=conv(16, 48, 1), n1=nn.BatchNorm2d(48), c2=conv(48, 48, 3, groups=48), n2=nn.BatchNorm2d(48),
        c3=conv(48, 16, 1), n3=nn.BatchNorm2d(16),
    )  # fmt: skip
    return classifier(nn.Sequential(stem(16), block(), block()), 16)


def shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def shufflenet() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        right = F.gelu(m.n3(m.c3(m.n2(m.c2(F.gelu(m.n1(m.c1(right))))))))
        return shuffled(torch.cat([left, right], 1), 2)

    block = lambda: Forward(  # noqa: E731
        forward, c1=conv(16, 16, 1), n1=nn.BatchNorm2d(16), c2=conv(16, 16, 3, groups=16), n2=nn.BatchNorm2d(16),
        c3=conv(16, 16, 1), n3=nn.BatchNorm2d(16),
    )  # fmt: skip
    return classifier(nn.Sequential(stem(32), block(), block()), 32)


def unet() -> nn.Module:
    part = lambda a, b: nn.Sequential(conv(a, b), nn.BatchNorm2d(b), nn.GELU())  # noqa: E731
    return Forward(
        lambda m, x: m.end(m.up(torch.cat([h := m.a(x), m.t(m.b(F.max_pool2d(h, 2)))], 1))),
        a=part(3, 12), b=part(12, 24), t=nn.ConvTranspose2d(24, 12, 2, 2), up=part(24, 12), end=nn.Conv2d(12, 2, 1),
    )  # fmt: skip


def patches(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.Flatten(2), Forward(lambda m, x: x.transpose(1, 2)))


def vit() -> nn.Module:
    def attention(m: nn.Module, x: Tensor) -> Tensor:
        n, length, width = x.shape
        qkv = m.qkv(x).reshape(n, length, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return m.proj(heads.transpose(1, 2).reshape(n, length, width))

    def block() -> nn.Module:
        return Forward(
            lambda m, x: (h := x + m.a(m.n1(x))) + m.down(F.gelu(m.up(m.n2(h)))),
            n1=nn.LayerNorm(24), n2=nn.LayerNorm(24), up=nn.Linear(24, 48), down=nn.Linear(48, 24),
            a=Forward(attention, qkv=nn.Linear(24, 72), proj=GroupedLinear(24, 24, group_size=6)),
        )  # fmt: skip

    return nn.Sequential(
        patches(24), block(), block(), nn.LayerNorm(24), Forward(lambda m, x: x.mean(1)), nn.Linear(24, 10)
    )


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(24, 4, 48, batch_first=True, norm_first=True, activation="gelu")
    body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return separate_heads(nn.Sequential(patches(24), body, Forward(lambda m, x: x.mean(1)), nn.Linear(24, 10)))


def convnext() -> nn.Module:
    def block(m: nn.Module, x: Tensor) -> Tensor:
        h = m.down(F.gelu(m.up(m.norm(m.dw(x).permute(0, 2, 3, 1))))) * m.scale.gamma
        return x + h.permute(0, 3, 1, 2)

    def one() -> nn.Module:
        scale = nn.Module()
        scale.gamma = nn.Parameter(torch.rand(24) + 0.5)
        return Forward(
            block, dw=nn.Conv2d(24, 24, 7, padding=3, groups=24), norm=nn.LayerNorm(24), up=nn.Linear(24, 96),
            down=nn.Linear(96, 24), scale=scale,
        )  # fmt: skip

    return classifier(nn.Sequential(nn.Conv2d(3, 24, 4, 4), one(), one()), 24)


def glu() -> nn.Module:
    def block() -> nn.Module:
        return Forward(
            lambda m, x: x + m.down((h := m.up(m.norm(x)).chunk(2, -1))[0] * F.silu(h[1])),
            norm=nn.LayerNorm(24), up=nn.Linear(24, 96), down=nn.Linear(48, 24),
        )  # fmt: skip

    return nn.Sequential(patches(24), block(), block(), Forward(lambda m, x: x.mean(1)), nn.Linear(24, 10))


def mixer() -> nn.Module:
    def block() -> nn.Module:
        return Forward(
            lambda m, x: (
                (h := x + m.t2(F.gelu(m.t1(m.n1(x).transpose(1, 2)))).transpose(1, 2))
                + m.c2(F.gelu(m.c1(m.n2(h))))
            ),
            n1=nn.LayerNorm(24), t1=nn.Linear(16, 32), t2=nn.Linear(32, 16), n2=nn.LayerNorm(24), c1=nn.Linear(24, 48),
            c2=nn.Linear(48, 24),
        )  # fmt: skip

    return nn.Sequential(patches(24), block(), block(), nn.LayerNorm(24), Forward(lambda m, x: x.mean(1)),
                         nn.Linear(24, 10))  # fmt: skip


def folded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: fold_batch_norm(randomised(make()), torch.rand(2, 3, 16, 16))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ResNet block": residual,
    "ResNet block, folded": folded(residual),
    "pre-activation ResNet": pre_activation,
    "conv, activation, batch norm": conv_act_norm,
    "RepVGG": repvgg,
    "GroupNorm": group_norm,
    "RegNet (grouped, SE)": regnet,
    "TCN with chomp": tcn,
    "squeeze and excitation": squeeze_and_excitation,
    "dense block": dense_block,
    "MobileNetV2": mobilenet,
    "ShuffleNetV2": shufflenet,
    "U-Net": unet,
    "ViT, one qkv": vit,
    "nn.TransformerEncoder": encoder,
    "ConvNeXt": convnext,
    "gated feed-forward": glu,
    "MLP-Mixer": mixer,
}


PATTERNS = ("every second", "at random")
# Parameters that were left of each at commit 77abd4b, for either pattern.
BEFORE = {
    "ResNet block": (9_818, 9_808),
    "ResNet block, folded": (2_650, 3_912),
    "pre-activation ResNet": (9_866, 9_856),
    "conv, activation, batch norm": (6_714, 5_574),
    "RepVGG": (13_010, 13_000),
    "GroupNorm": (14_586, 14_586),
    "RegNet (grouped, SE)": (7_346, 8_264),
    "TCN with chomp": (9_866, 9_866),
    "squeeze and excitation": (10_114, 10_114),
    "dense block": (2_890, 2_332),
    "MobileNetV2": (1_626, 2_372),
    "ShuffleNetV2": (1_426, 1_786),
    "U-Net": (4_526, 4_526),
    "ViT, one qkv": (5_866, 5_866),
    "nn.TransformerEncoder": (4_882, 4_882),
    "ConvNeXt": (7_450, 7_450),
    "gated feed-forward": (5_098, 5_098),
    "MLP-Mixer": (4_202, 4_202),
}


def randomised(net: nn.Module) -> nn.Module:
    """Statistics, gains and shifts that a training would have moved."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_()
    return net.eval()


def halved(net: nn.Module, pattern: str, generator: torch.Generator) -> dict[str, Tensor]:
    """Which groups of every layer stay; the classifier's inputs, too."""
    keeps = {}
    for name, layer in net.named_modules():
        if type(layer) in TYPES:
            size = layer.weight.shape[TYPES[type(layer)].group_axis]
            groups = size // getattr(layer, "group_size", 1)
            order = torch.randperm(groups, generator=generator)
            keeps[name] = torch.arange(groups) % 2 == 0 if pattern == "every second" else order < (groups + 1) // 2
    if outputs := [name for name in keeps if name == "end"]:  # convolutions that give the network's outputs
        keeps[outputs[0]][:] = True
    return keeps


def shrunk(net: nn.Module, keeps: dict[str, Tensor], x: Tensor) -> tuple[int, GraphNetwork]:
    """Parameters of the pruned graph, and the graph."""
    posterior = {}
    for name, keep in keeps.items():
        layer = net.get_submodule(name)
        own = getattr(layer, "bias", None)
        bias = None if own is None else own.detach()
        posterior[name] = LayerPosterior(
            name=name, prior=GroupNormalJeffreys(), weight_mean=layer.weight.detach(),
            weight_variance=torch.full_like(layer.weight, 1e-4), bias_mean=bias,
            bias_variance=None if bias is None else torch.full_like(bias, 1e-4),
            statistic=torch.where(keep, -1.0, 1.0), type=TYPES[type(layer)],
        )  # fmt: skip
    graph = shrink(read_graph(net, x), posterior, dict.fromkeys(keeps, Threshold(0.0, "explicit"))).graph
    network = GraphNetwork(graph.nodes, graph.tensors, graph.buffers)
    return sum(p.numel() for p in network.parameters()), network


def measured(net: nn.Module, keeps: dict[str, Tensor], x: Tensor) -> tuple[int, int, float]:
    """Parameters left and needed, and the largest difference as a part of the largest output."""
    left, small = shrunk(net, keeps, x[:2])
    masked = copy.deepcopy(net).double().eval()
    dead, masks = {}, {}
    for name, keep in keeps.items():
        layer = masked.get_submodule(name)
        kind = TYPES[type(layer)]
        masks[f"{name}.weight"] = kind.over_groups(keep, layer.weight.shape).expand_as(layer.weight)
        if kind.scales_outputs:
            dead[f"{name}.weight"] = ~keep
            masks[f"{name}.bias"] = keep
        for role in ("weight", "bias"):
            if f"{name}.{role}" in masks and getattr(layer, role, None) is not None:
                getattr(layer, role).data *= masks[f"{name}.{role}"]
    inputs = x.double() if x.is_floating_point() else x
    run = of_the_masked(masked, dead, inputs, lambda network, batch: network(batch))
    with torch.no_grad():
        expected = run(inputs)
        difference = float((small(x) - expected).abs().max() / expected.abs().max())
    return left, sum(needed(masked, masks, run, inputs).values()), difference


def measure(name: str, pattern: str, seed: int = 0) -> tuple[int, int, int, float]:
    """Parameters of the network, left, and needed, and the largest difference as a part of the largest output."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = randomised(NETWORKS[name]())
    x = torch.randn(64, 3, 16, 16)
    if name == "TCN with chomp":
        x = torch.randn(64, 1, 8, 6)
    return sum(p.numel() for p in net.parameters()), *measured(net, halved(net, pattern, generator), x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(NETWORKS))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    lines, largest = [], 0.0
    for name in args.only:
        cells = [name]
        for pattern, before in zip(PATTERNS, BEFORE[name], strict=True):
            dense, left, least, difference = measure(name, pattern)
            largest = max(largest, difference)
            cells += [f"{dense:,}"] if len(cells) == 1 else []
            cells += [f"{least:,}", f"{before:,}", f"{left:,}", f"{least / before:.2f}", f"{least / left:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    if len(lines) < len(NETWORKS):
        return
    head = "needed | left before | left | needed / before | needed / left"
    text = [
        "# What is left of today's blocks",
        "",
        "`python analyses/robustness/shrinking.py`: half of the groups of every layer forced out, every second one "
        "(columns 3 to 7) or at random (8 to 12). Needed: parameters that are not pruned and on which the output of "
        "the masked network depends, counted by their gradients. Fewer are left where normalisations and constants "
        "were folded, more where zeros are stored. Before: commit 77abd4b. Largest difference of the pruned network's "
        "outputs from those of the masked one in double precision, as a part of the largest output: "
        f"{largest:.1e}.",
        "",
        f"| network | parameters | {head} | {head} |",
        "|---" * 12 + "|",
        *lines,
    ]
    (RESULTS / "shrinking.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
