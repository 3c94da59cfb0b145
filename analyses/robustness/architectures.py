"""Random architectures, half of them pruned at random: model, masked network, pruned network, file and ONNX are one.

    python analyses/robustness/architectures.py --count 2000

Each is drawn from a seed: convolutions (grouped, depthwise, strided, padded, transposed), batch norm before and behind
activations, residual sums, gates, concatenations, shared layers, pools of all kinds, layer norm, fully connected
layers, what today's networks are made of (:class:`Tail`), three priors. Groups are given huge dropout rates at random,
at times all of a layer's. Writes ``analyses/results/architectures.md``.
"""

import argparse
import copy
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pyro
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
from common import RESULTS
from removal import remove_normalisation_

import pyro_bc
from pyro_bc.errors import EmptyNetworkError
from pyro_bc.graph.module import evaluating
from pyro_bc.inference.straight_through import settle_codes_

ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Softplus, nn.ELU)
PRIORS = (pyro_bc.GroupNormalJeffreys(), pyro_bc.GroupHorseshoe(1.0), pyro_bc.LogUniform())
#: largest difference, as a part of the largest output.
TOLERANCE = 1e-4


class Block(nn.Module):
    """Layers between two tensors of channels, in one of several forms."""

    def __init__(self, rng: np.random.Generator, channels: int, form: str):
        super().__init__()
        self.form = form
        inner = int(rng.integers(2, 7))
        kernel, padding = [(1, 0), (3, 1)][rng.integers(2)]
        bias = bool(rng.random() < 0.7)
        self.act = ACTIVATIONS[rng.integers(len(ACTIVATIONS))]()
        self.norm = nn.BatchNorm2d(channels) if rng.random() < 0.5 else nn.Identity()
        self.out = channels
        if form == "plain":
            self.out = inner
            self.a = nn.Conv2d(channels, inner, kernel, padding=padding, bias=bias, stride=int(rng.integers(1, 3)))
            self.norm = nn.BatchNorm2d(inner) if rng.random() < 0.5 else nn.Identity()
        elif form == "grouped":
            groups = [g for g in (2, channels) if channels % g == 0][-1]
            self.a = nn.Conv2d(channels, channels, kernel, padding=padding, groups=groups, bias=bias)
        elif form in ("residual", "twice"):
            self.a = nn.Conv2d(channels, inner, kernel, padding=padding, bias=bias)
            self.b = nn.Conv2d(inner, channels, 1, bias=bias)
        elif form == "gate":
            self.a, self.b = nn.Linear(channels, inner, bias=bias), nn.Linear(inner, channels)
        else:
            self.out = channels + inner
            self.a = nn.Conv2d(channels, inner, kernel, padding=padding, bias=bias)

    def forward(self, h: Tensor) -> Tensor:
        if self.form == "plain":
            return self.norm(self.act(self.a(h)))
        if self.form == "grouped":
            return self.act(self.norm(self.a(h)))
        if self.form == "residual":
            return self.norm(h + self.b(self.act(self.a(h))))
        if self.form == "twice":  # one module in two places
            return h + self.b(self.act(self.a(self.norm(h)))) - self.b(self.act(self.a(h)))
        if self.form == "gate":
            gate = torch.sigmoid(self.b(self.act(self.a(h.mean((2, 3))))))
            return h * gate[:, :, None, None]
        return torch.cat([h, self.act(self.a(h))], 1)


class Tail(nn.Module):
    """What today's networks are made of, between pictures of some channels and of 8."""

    FORMS = ("shuffle", "group norm", "channels last", "branches", "gated", "chomp", "attention", "instance norm")

    def __init__(self, rng: np.random.Generator, channels: int):
        super().__init__()
        self.form = str(rng.choice(self.FORMS))
        bias = bool(rng.random() < 0.7)
        self.act = ACTIVATIONS[rng.integers(len(ACTIVATIONS))]()
        wide = 16 if self.form == "gated" else 8
        padding = 2 if self.form == "instance norm" else 1  # of a single pixel there is no variance
        self.a = nn.Conv2d(channels, wide, 3, padding=padding, bias=bias)
        if self.form == "shuffle":
            self.b, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=bias), nn.BatchNorm2d(8)
        elif self.form in ("group norm", "instance norm"):
            grouped = self.form == "group norm"
            self.norm = nn.GroupNorm(int(rng.choice([1, 2, 4])), 8) if grouped else nn.InstanceNorm2d(8, affine=True)
        elif self.form == "channels last":
            self.norm, self.b, self.c = nn.LayerNorm(8), nn.Linear(8, 6, bias=bias), nn.Linear(6, 8, bias=bias)
        elif self.form == "branches":
            self.b, self.c = nn.Conv2d(8, 8, 3, padding=1, bias=bias), nn.Conv2d(8, 8, 1, bias=bias)
            self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        elif self.form == "chomp":
            self.b = nn.Conv2d(8, 8, 3, padding=2, bias=bias)
        elif self.form == "attention":
            self.norm, self.qkv, self.proj = nn.LayerNorm(8), nn.Linear(8, 24, bias=bias), nn.Linear(8, 8, bias=bias)

    def forward(self, h: Tensor) -> Tensor:
        h = self.act(self.a(h))
        if self.form == "shuffle":
            n, c, height, width = h.shape
            mixed = h.view(n, 2, c // 2, height, width).transpose(1, 2).reshape(n, c, height, width)
            return self.act(self.norm(self.b(mixed)))
        if self.form in ("group norm", "instance norm"):
            return self.act(self.norm(h))
        if self.form == "channels last":
            return h + self.c(self.act(self.b(self.norm(h.permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)
        if self.form == "branches":
            return self.act(self.norms[0](self.b(h)) + self.norms[1](self.c(h)) + self.norms[2](h))
        if self.form == "gated":
            value, gate = h.chunk(2, 1)
            return value * torch.sigmoid(gate)
        if self.form == "chomp":
            return self.act(self.b(h)[:, :, :-2, 1:-1])
        x = h.flatten(2).transpose(1, 2)
        n, length, _ = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2]).transpose(1, 2).reshape(n, length, 8)
        return (x + self.proj(heads)).transpose(1, 2).reshape(h.shape)


class Network(nn.Module):
    """Blocks, a pool, and a head of fully connected layers, one of which may be tied or follow a layer norm."""

    def __init__(self, rng: np.random.Generator, extra: np.random.Generator, tail: np.random.Generator | None):
        super().__init__()
        channels = int(rng.integers(1, 4))
        self.input_shape = (channels, 8, 8)
        forms = ("plain", "plain", "grouped", "residual", "twice", "gate", "concatenated")
        self.blocks = nn.ModuleList()
        for number in range(int(rng.integers(1, 5))):
            block = Block(rng, channels, "plain" if not number else str(rng.choice(forms)))
            self.blocks.append(block)
            channels = block.out
        self.pool = [nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d(2), nn.MaxPool2d(2, ceil_mode=False)][
            rng.integers(2)
        ]
        self.extra = _extra(extra, channels)
        if isinstance(self.extra, nn.ConvTranspose2d):
            channels = self.extra.out_channels
        self.tail = None if tail is None else Tail(tail, channels)
        channels = channels if tail is None else 8
        features = channels * (1 if self.pool.output_size == 1 else 4)
        self.hidden = int(rng.integers(2, 9))
        self.fc = nn.Linear(features, self.hidden)
        self.norm = nn.LayerNorm(self.hidden) if rng.random() < 0.2 else nn.Identity()
        self.act = ACTIVATIONS[rng.integers(len(ACTIVATIONS))]()
        self.tied = bool(rng.random() < 0.15)
        self.head = nn.Linear(features if self.tied else self.hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        x = self.extra(x)
        if self.tail is not None:
            x = self.tail(x)
        h = self.act(self.norm(self.fc(self.pool(x).flatten(1))))
        return self.head(F.linear(h, self.fc.weight.t()) if self.tied else h)


def _extra(rng: np.random.Generator, channels: int) -> nn.Module:
    """What stands before the last pool in half of the networks: a pool of another kind, or a transposed convolution."""
    if rng.random() < 0.5:
        return nn.Identity()
    outputs, kernel = int(rng.integers(2, 6)), int(rng.integers(1, 4))
    kinds = (
        nn.AvgPool2d(2, 1, padding=1),
        nn.AvgPool2d(3, 1, padding=1, count_include_pad=False),
        nn.AvgPool2d(1, divisor_override=3),
        nn.MaxPool2d(3, 1, padding=1),
        nn.ConvTranspose2d(channels, outputs, kernel, stride=int(rng.integers(1, 3))),
        nn.Upsample(scale_factor=2),
    )
    return kinds[rng.integers(len(kinds))]


def _drawn(seed: int, tail: bool) -> tuple[np.random.Generator, Network, Tensor]:
    """What draws on, a seed's network, and inputs."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    of_tail = np.random.default_rng([seed, 2])
    net = Network(rng, np.random.default_rng([seed, 1]), of_tail if tail and of_tail.random() < 0.7 else None)
    for module in net.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.InstanceNorm2d) and tail:
            module.bias.data.normal_()
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight.data, module.bias.data, module.running_mean):
                values.copy_(torch.randn_like(values))
            module.running_var.uniform_(0.3, 2.0)
    return rng, net, torch.randn(6, *net.input_shape)


def compare_codes(seed: int) -> tuple[str, float]:
    """The same of learned codes, most of them 0, whole rows and columns too: the model with its rounded codes, and what
    is stored."""
    rng, net, x = _drawn(seed, True)
    pyro.clear_param_store()
    model = pyro_bc.BayesianNetwork(net, pyro_bc.LearnedCode(), num_data=6)
    guide = pyro_bc.FactorizedGuide(model)
    with evaluating(model):
        guide(x, torch.zeros(6, dtype=torch.long))
    if guide.obstacle is not None:
        return f"refused: {guide.obstacle[:60]}", 0.0
    with torch.no_grad():
        for name in guide.posterior():
            (centre,) = guide.parameters_of(name)
            codes = torch.from_numpy(rng.integers(-4, 5, centre.shape)).to(centre)
            codes *= torch.from_numpy(rng.random(centre.shape) < rng.choice([0.3, 0.6, 1.0])).to(centre)
            for axis in range(min(2, centre.dim())):
                left = rng.random(centre.shape[axis]) > rng.choice([0.0, 0.2, 0.5])
                codes *= torch.from_numpy(left).to(centre).reshape(-1, *[1] * (centre.dim() - 1 - axis))
            centre.copy_(codes)
    settle_codes_(guide)
    with torch.no_grad():
        values = {name: q.centre.round() for name, q in guide.posterior().items()}
        with evaluating(model):
            outputs = pyro.poutine.condition(model, values)(x)
    try:
        small = pyro_bc.compress(model, guide)
    except EmptyNetworkError:
        spread = float((outputs - outputs[:1]).abs().max())
        return ("empty", 0.0) if spread <= 1e-5 * float(outputs.abs().max()) else ("wrongly empty", spread)
    with torch.no_grad():
        stored = pyro_bc.CompressedNetwork.from_bytes(small.to_bytes()).network()(x)
    difference = float((stored - outputs).abs().max()) / max(1.0, float(outputs.abs().max()))
    return ("pruned" if difference < TOLERANCE else "differs"), difference


def compare(seed: int, onnx: bool = False, tail: bool = True) -> tuple[str, float]:
    """What became of a seed's architecture (``pruned``, ``empty``, …), and the largest difference.

    :param tail: whether seven in ten networks have a :class:`Tail`.
    """
    rng, net, x = _drawn(seed, tail)
    prior = PRIORS[rng.integers(len(PRIORS))]
    pyro.clear_param_store()
    model = pyro_bc.BayesianNetwork(net, prior, num_data=6)
    guide = pyro_bc.FactorizedGuide(model, init_log_variance=-24.0)
    with evaluating(model):
        guide(x, torch.zeros(6, dtype=torch.long))
    if guide.obstacle is not None:
        return f"refused: {guide.obstacle[:60]}", 0.0
    layers = pyro_bc.summarize(guide)
    thresholds, expected, removed = {}, copy.deepcopy(model.skeleton), {}
    for name, layer in layers.items():
        share = float(rng.choice([0.0, 0.3, 0.6, 1.0], p=[0.25, 0.4, 0.3, 0.05]))
        dead = torch.from_numpy(rng.random(layer.statistic.shape) < share)
        _kill(guide, name, layer, dead)
        own = name.removeprefix("net.")
        thresholds[own] = 2.0
        module = expected.get_submodule(own)
        if layer.layer_type.scales_outputs and not layer.per_weight:
            removed[own] = dead
        mask = ~dead if layer.per_weight else layer.over_weights(~dead).expand_as(module.weight)
        with torch.no_grad():
            module.weight.copy_(layer.weight_mean * mask)
            if layer.bias_mean is not None:
                kept = ~dead if layer.layer_type.scales_outputs and not layer.per_weight else 1.0
                module.bias.copy_(layer.bias_mean * kept)
    remove_normalisation_(expected.eval(), removed, x)
    with torch.no_grad():
        outputs = expected(x)
    try:
        small = pyro_bc.compress(model, guide, thresholds=thresholds, noise_ratio=1e-9)
    except EmptyNetworkError:
        spread = float((outputs - outputs[:1]).abs().max())
        return ("empty", 0.0) if spread < 1e-5 * float(outputs.abs().max()) else ("wrongly empty", spread)
    data = small.to_bytes()
    again = pyro_bc.CompressedNetwork.from_bytes(data)
    scale = max(1.0, float(outputs.abs().max()))
    with torch.no_grad():
        pruned, loaded = small.network()(x), again.network()(x)
    difference = float((pruned - outputs).abs().max()) / scale
    if not torch.equal(pruned, loaded):
        return "file differs", float((pruned - loaded).abs().max())
    if onnx:
        with tempfile.TemporaryDirectory() as folder:
            pyro_bc.onnx.to_onnx(small, Path(folder) / "net.onnx")
    return ("pruned" if difference < TOLERANCE else "differs"), difference


@torch.no_grad()
def _kill(guide: pyro_bc.FactorizedGuide, name: str, layer: pyro_bc.LayerPosterior, dead: Tensor) -> None:
    """Give groups (or weights) a statistic above 2, and leave the moments of the others as they are."""
    sites = guide.layers[name].sites
    if layer.per_weight:
        guide.parameters_of(f"{name}.weight")[1][dead] = 20.0
    elif "scale" in sites:
        guide.parameters_of(f"{name}.scale")[1][dead] = 20.0
    else:
        guide.parameters_of(f"{name}.local_a")[1][dead] = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--onnx-every", type=int, default=50)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    found: Counter[str] = Counter()
    largest, start = 0.0, time.perf_counter()
    for seed in range(args.first, args.first + args.count):
        try:
            what, difference = compare(seed, onnx=seed % args.onnx_every == 0)
        except Exception as error:  # whatever it is, it is a finding
            what, difference = f"{type(error).__name__}: {str(error)[:80]}", 0.0
        found[what] += 1
        largest = max(largest, difference if what == "pruned" else 0.0)
        if what not in ("pruned", "empty"):
            print(f"seed {seed}: {what} ({difference:.2g})", flush=True)
    lines = [
        "# Random architectures",
        "",
        f"`python analyses/robustness/architectures.py --count {args.count} --first {args.first}`: masked network, "
        f"pruned network and file compared on six inputs, every {args.onnx_every}th in ONNX Runtime too. Largest "
        f"difference of those that agree, as a part of the largest output: {largest:.1e}. "
        f"{time.perf_counter() - start:.0f} s.",
        "",
        "| what became of it | architectures |",
        "|---|---|",
        *(f"| {what} | {count:,} |" for what, count in found.most_common()),
    ]
    (RESULTS / "architectures.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
