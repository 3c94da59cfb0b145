"""What else one would do: networks without posteriors, pruned, rounded, and stored by our pruning of units and coder.

Every way is a function of a network with random weights, its data and a budget of epochs, and used by ``curves.py``,
whose text says what each is.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from competitors import kmeans
from six_networks import Problem
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from without_training import as_fine

import pyro_bc
from pyro_bc.compression.compress import _dense_shapes, _selections
from pyro_bc.compression.pruning import shrink
from pyro_bc.data import Batches
from pyro_bc.file.contents import Contents, Selection, integers_of
from pyro_bc.file.contents import values as values_of
from pyro_bc.file.format import encode
from pyro_bc.graph.layer_types import layer_type
from pyro_bc.graph.module import GraphNetwork
from pyro_bc.graph.nodes import is_layer, layer_name
from pyro_bc.graph.read import read_graph
from pyro_bc.posterior.summary import LayerPosterior
from pyro_bc.posterior.thresholds import choose_threshold
from pyro_bc.priors.base import group_dim
from pyro_bc.quantisation.fixed_point import FixedPoint

#: parts of the training between which zeros become more.
RAMP = (0.1, 0.7)
#: bounds of the logarithm of a unit's noise (Neklyudov et al. 2017), and below which one is as good as zero.
NOISE = (-20.0, 0.0)
GONE = math.log(2.0**-8)
#: its rate beside that of the weights: a logarithm has far to go.
NOISE_RATE = 10
#: epochs between two estimates of prior precisions, and examples of one.
EVERY, EXAMPLES = 5, 2000

#: bytes of a file, multiplications of one example, and the network in it.
Stored = tuple[int, float, nn.Module]


@dataclass(frozen=True)
class Budget:
    """What every line of a network has: epochs before and with rounded weights, examples a batch, the largest rate."""

    epochs: int
    rounded: int
    batch: int = 128
    rate: float = 1e-3

    def loader(self, data: Problem) -> Batches:
        return Batches(data.train_x, data.train_y, self.batch)


def multiplications(net: nn.Module, x: Tensor) -> float:
    """Of one example, in the network as it is stored."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x[:1])
    return counter.get_total_flops() / 2


def matrices(net: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in net.named_parameters() if p.dim() > 1 and n.endswith("weight")}


def train(
    net: nn.Module,
    data: Problem,
    budget: Budget,
    penalty: Callable[[], Tensor | float] = lambda: 0.0,
    before_step: Callable[[float], None] = lambda done: None,
    after_step: Callable[[float, float], None] = lambda done, rate: None,
    others: Any = (),
    parts: tuple[float, float] = (0.0, 1.0),
) -> None:
    """Adam, its rate linearly to 0.

    :param penalty: added to the loss of every step.
    :param before_step: called before one with the part of the training that is done.
    :param after_step: called behind one, also with the rate.
    :param others: parameters that are trained too, at ``NOISE_RATE`` times the rate.
    :param parts: from where to where in a training of the whole budget.
    """
    loader = budget.loader(data)
    optimizer = torch.optim.Adam([{"params": list(net.parameters())}], budget.rate, fused=True)
    if others:
        optimizer.add_param_group({"params": list(others)})
    steps = budget.epochs * len(loader)
    step, last = round(parts[0] * steps), round(parts[1] * steps)
    net.train()
    while step < last:
        for x, y in loader:
            if step == last:
                break
            rate = budget.rate * (1 - step / steps)
            for group, factor in zip(optimizer.param_groups, (1, NOISE_RATE), strict=False):
                group["lr"] = factor * rate
            optimizer.zero_grad()
            (F.cross_entropy(net(x), y) + penalty()).backward()
            before_step(step / steps)
            optimizer.step()
            step += 1
            after_step(step / steps, rate)
    net.eval()


# ------------------------------------------------------------------------------------------------ zeros, units, noise


def zeros(sizes: dict[str, Tensor], share: float, over_all: bool) -> dict[str, Tensor]:
    """Which weights are left where the smallest are zero.

    :param over_all: whether sizes of all layers are compared.
    """
    everything = torch.cat([s.flatten() for s in sizes.values()])
    masks = {}
    for n, s in sizes.items():
        among = everything if over_all else s.flatten()
        masks[n] = (s > among.kthvalue(max(1, int(share * among.numel()))).values).float()
    return masks


@torch.no_grad()
def masked_(net: nn.Module, masks: dict[str, Tensor]) -> None:
    for n, p in matrices(net).items():
        p.mul_(masks[n])


def gradual_(net: nn.Module, data: Problem, budget: Budget, share: float, over_all: bool) -> None:
    """Magnitude pruning while training (Zhu and Gupta 2017), by weights beside the spread that their layer began with
    where all layers are compared, so that a layer may lose more than another."""
    scales = {n: float(p.detach().std()) for n, p in matrices(net).items()}
    masks: dict[str, Tensor] = {}
    count = 0

    def after_step(done: float, rate: float) -> None:
        nonlocal count
        count += 1
        part = min(1.0, max(0.0, (done - RAMP[0]) / (RAMP[1] - RAMP[0])))
        if (count % 10 == 0 and part < 1) or not masks or done == 1:
            sizes = {n: p.detach().abs() / scales[n] for n, p in matrices(net).items()}
            masks.update(zeros(sizes, share * (1 - (1 - part) ** 3), over_all))
        masked_(net, masks)

    train(net, data, budget, after_step=after_step)


def lasso_(net: nn.Module, data: Problem, budget: Budget, penalty: float) -> None:
    """A proximal step on the norm of every input unit or filter with each of Adam's (Wen et al. 2016)."""

    @torch.no_grad()
    def after_step(done: float, rate: float) -> None:
        for p in matrices(net).values():
            axis = group_dim(p.shape)
            dims = [d for d in range(p.dim()) if d != axis]
            size = math.sqrt(p.numel() / p.shape[axis])
            norm = p.square().sum(dims, keepdim=True).sqrt().clamp_min(1e-12)
            p.mul_((1 - 30 * rate * penalty * size / norm).clamp_min(0))

    train(net, data, budget, after_step=after_step)


def torch_pruned(net: nn.Module, data: Problem, budget: Budget, ratio: float) -> nn.Module:
    """Torch-Pruning's group-norm pruner (Fang et al. 2023, 2301.12900): a third of the training with its regulariser,
    units out in five steps of a tenth of it, and the rest without."""
    import torch_pruning as tp

    last = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
    pruner = tp.pruner.GroupNormPruner(
        net, data.train_x[:2], importance=tp.importance.GroupMagnitudeImportance(), pruning_ratio=ratio,
        global_pruning=True, max_pruning_ratio=0.99, iterative_steps=5, ignored_layers=[last],
    )  # fmt: skip
    pruner.update_regularizer()
    train(net, data, budget, before_step=lambda done: pruner.regularize(net), parts=(0.0, 0.3))
    for step in range(5):
        pruner.step()
        train(net, data, budget, parts=(0.3 + 0.05 * step, 0.35 + 0.05 * step))
    train(net, data, budget, parts=(0.55, 1.0))
    return net


class Noise(nn.Module):
    """Log-normal noise of units between bounds, its posterior and its KL from a log-uniform (Neklyudov et al. 2017,
    1705.07283, equations 9 to 12), in double precision.

    :param units: how many.
    """

    def __init__(self, units: int):
        super().__init__()
        self.mean = nn.Parameter(torch.full((units,), -1e-2, dtype=torch.double))
        self.log_scale = nn.Parameter(torch.full((units,), -4.0, dtype=torch.double))

    def _bounds(self) -> tuple[Tensor, Tensor, Tensor]:
        scale = self.log_scale.exp()
        alpha, beta = ((bound - self.mean) / scale for bound in NOISE)
        return scale, alpha, beta

    def draw(self, examples: int) -> Tensor:
        scale, alpha, beta = self._bounds()
        low, high = torch.special.ndtr(alpha), torch.special.ndtr(beta)
        u = torch.rand(examples, len(self.mean), dtype=torch.double)
        inside = (low + (high - low) * u).clamp(1e-15, 1 - 1e-15)
        return (self.mean + scale * torch.special.ndtri(inside)).clamp(*NOISE).exp().float()

    def expected(self) -> Tensor:
        scale, alpha, beta = self._bounds()
        mass = torch.special.ndtr(beta) - torch.special.ndtr(alpha)
        moved = torch.special.ndtr(beta - scale) - torch.special.ndtr(alpha - scale)
        return ((self.mean + scale.square() / 2).exp() * moved / mass).float()

    def kl(self) -> Tensor:
        _, alpha, beta = self._bounds()
        mass = (torch.special.ndtr(beta) - torch.special.ndtr(alpha)).clamp_min(1e-12)
        density = [torch.exp(-0.5 * v.square()) / math.sqrt(2 * math.pi) for v in (alpha, beta)]
        entropy = math.log(math.sqrt(2 * math.pi * math.e)) + self.log_scale + mass.log()
        entropy = entropy + (alpha * density[0] - beta * density[1]) / (2 * mass)
        return (math.log(NOISE[1] - NOISE[0]) - entropy).sum()

    def evidence(self) -> Tensor:
        """By how much the evidence grows where the prior is reduced to noise below ``GONE`` (Bayesian model reduction,
        Wright et al. 2024, 2406.01345, with a log-uniform reduced prior)."""
        scale, alpha, beta = self._bounds()
        mass = torch.special.ndtr(beta) - torch.special.ndtr(alpha)
        below = torch.special.ndtr((GONE - self.mean) / scale) - torch.special.ndtr(alpha)
        return (below / mass).clamp_min(1e-30).log() + math.log((NOISE[1] - NOISE[0]) / (GONE - NOISE[0]))


def reduced_(net: nn.Module, data: Problem, budget: Budget, kl_weight: float) -> None:
    """BMRS: noise on every input unit or filter, KL warmed up in a fifth of the training; units without which the
    evidence is higher are zero, and the others have the mean of their noise."""
    layers = {n: m for n, m in net.named_modules() if f"{n}.weight" in matrices(net)}
    noises = {n: Noise(m.weight.shape[group_dim(m.weight.shape)]) for n, m in layers.items()}
    hooks = []
    for n, layer in layers.items():
        if isinstance(layer, nn.Linear):
            hooks.append(layer.register_forward_pre_hook(lambda m, x, own=noises[n]: (x[0] * own.draw(len(x[0])),)))
        else:
            hooks.append(
                layer.register_forward_hook(lambda m, x, y, own=noises[n]: y * own.draw(len(y))[:, :, None, None])
            )
    done_now = [0.0]

    def penalty() -> Tensor:
        weight = kl_weight * min(1.0, done_now[0] / 0.2) / len(data.train_x)
        return weight * torch.stack([own.kl() for own in noises.values()]).sum().float()

    @torch.no_grad()
    def after_step(done: float, rate: float) -> None:
        done_now[0] = done
        for own in noises.values():  # where the bounds leave some of its mass
            own.mean.clamp_(*NOISE)
            own.log_scale.clamp_(-6.0, 1.5)

    others = [p for own in noises.values() for p in own.parameters()]
    train(net, data, budget, penalty, after_step=after_step, others=others)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        for n, layer in layers.items():
            factor = torch.where(noises[n].evidence() > 0, 0.0, noises[n].expected().double()).float()
            axis = group_dim(layer.weight.shape)
            layer.weight.mul_(factor.view([-1 if d == axis else 1 for d in range(layer.weight.dim())]))
            if layer.weight.dim() > 2 and layer.bias is not None:
                layer.bias.mul_(factor)


def fisher(net: nn.Module, data: Problem) -> dict[str, Tensor]:
    """Diagonal of the Fisher information of the whole training set, from some examples and labels that the network
    draws."""
    parameters = {n: p.detach() for n, p in net.named_parameters()}
    number = torch.randperm(len(data.train_x))[:EXAMPLES]
    found = {n: torch.zeros_like(p) for n, p in parameters.items()}

    def loss(own: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(net, own, (x[None],)), y[None])

    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))
    for part in number.split(50):
        x = data.train_x[part]
        with torch.no_grad():
            y = torch.distributions.Categorical(logits=net(x)).sample()
        for n, gradient in each(parameters, x, y).items():
            found[n] += gradient.square().sum(0)
    return {n: value * (len(data.train_x) / len(number)) for n, value in found.items()}


def shaved(net: nn.Module, data: Problem, budget: Budget) -> dict[str, Tensor]:
    """SpaM (Dhahri et al. 2024, 2402.15978): prior precisions of single weights by the evidence of a diagonal Laplace
    posterior while training; returns half the posterior precision times the squared weight, by which they prune."""
    precision = {n: torch.full_like(p, 1.0) for n, p in matrices(net).items()}
    per_epoch = len(budget.loader(data))
    count = 0

    def penalty() -> Tensor:
        squares = [(precision[n] * p.square()).sum() for n, p in matrices(net).items()]
        return 0.5 * torch.stack(squares).sum() / len(data.train_x)

    def after_step(done: float, rate: float) -> None:
        nonlocal count
        count += 1
        if count % (EVERY * per_epoch) == 0 and done > 0.1:
            net.eval()
            known = fisher(net, data)
            for n, p in matrices(net).items():
                determined = known[n] / (known[n] + precision[n])
                precision[n] = (determined / p.detach().square().clamp_min(1e-12)).clamp(1e-2, 1e5)
            net.train()

    train(net, data, budget, penalty, after_step=after_step)
    known = fisher(net, data)
    return {n: 0.5 * (known[n] + precision[n]) * p.detach().square() for n, p in matrices(net).items()}


# ------------------------------------------------------------------------------------------------ rounding and storing


def train_on(
    net: nn.Module,
    data: Problem,
    budget: Budget,
    parameters: Iterable[Tensor],
    weights: Callable[[], dict[str, Tensor]],
) -> None:
    """Train for the epochs at the end, at a third of the rate, with weights that are computed in every step.

    :param parameters: of which they are computed; all others of the network are trained as they are.
    """
    loader, own = budget.loader(data), matrices(net)
    others = {n: p for n, p in net.named_parameters() if n not in own}
    optimizer = torch.optim.Adam([*parameters, *others.values()], budget.rate / 3, fused=True)
    steps, step = budget.rounded * len(loader), 0
    for _ in range(budget.rounded):
        for x, y in loader:
            optimizer.param_groups[0]["lr"] = budget.rate / 3 * (1 - step / steps)
            optimizer.zero_grad()
            F.cross_entropy(torch.func.functional_call(net, {**others, **weights()}, (x,)), y).backward()
            optimizer.step()
            step += 1


def rounded(net: nn.Module, data: Problem, budget: Budget, fineness: float) -> dict[str, Tensor]:
    """Train on with weights on a grid, straight through; zeros stay zero. Changes the network, returns the codes.

    :param fineness: octaves of the step below the deviation of a layer's weights that are not zero.
    """
    weights = matrices(net)
    masks = {n: (p.detach() != 0).float() for n, p in weights.items()}
    empty = [n for n, mask in masks.items() if not mask.any()]
    if empty:
        raise pyro_bc.errors.EmptyNetworkError(f"nothing is left of {empty[0]}")
    of_left = {n: float(p.detach()[p.detach() != 0].square().mean().sqrt()) for n, p in weights.items()}
    exponents = {n: round(4 * math.log2(of_left[n] * 2.0**-fineness)) for n in weights}

    def on_grid() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        codes = {n: (p.detach() / 2.0 ** (exponents[n] / 4)).round() * masks[n] for n, p in weights.items()}
        return codes, {n: p + (codes[n] * 2.0 ** (exponents[n] / 4) - p.detach()) for n, p in weights.items()}

    train_on(net, data, budget, weights.values(), lambda: on_grid()[1])
    codes = on_grid()[0]
    return {
        n: FixedPoint(c.long(), -(exponents[n] // 4), rows=torch.full((len(c),), exponents[n] % 4))
        for n, c in codes.items()
    }


def stored(net: nn.Module, codes: dict[str, FixedPoint], data: Problem) -> Stored:
    """Bytes of a file with these codes, without the units that nothing reads or that read nothing."""
    graph = read_graph(net, data.train_x[:2])
    layers = {layer_name(node): layer_type(node.op) for node in graph.nodes if is_layer(node)}
    posterior = {}
    for name, kind in layers.items():
        own = {"weight": codes[f"{name}.weight"]}
        bias = graph.tensors.get(f"{name}.bias")
        if bias is not None:
            own["bias"] = as_fine(bias)
        known = {role: torch.full(numbers.codes.shape, 1e-12) for role, numbers in own.items()}
        values = {role: numbers.values() for role, numbers in own.items()}
        posterior[name] = LayerPosterior(
            name, pyro_bc.StandardNormal(), values["weight"], known["weight"], values.get("bias"), known.get("bias"),
            None, codes=own, type=kind,
        )  # fmt: skip
    pruned = shrink(graph, posterior, {name: choose_threshold(layer) for name, layer in posterior.items()})
    selections = _selections(pruned.graph)
    tensors: dict[str, Any] = {}
    for whole, tensor in pruned.graph.tensors.items():
        layer_of, _, role = whole.rpartition(".")
        layer = pruned.layers.get(layer_of)
        if whole in selections:
            tensors[whole] = Selection(tensor, selections[whole])
        elif not tensor.is_floating_point():
            tensors[whole] = integers_of(whole, tensor)
        else:
            tensors[whole] = layer.codes[role] if layer is not None and role in layer.codes else as_fine(tensor)
    shapes = {name: shape for name, shape in _dense_shapes(graph).items() if name in tensors}
    parameters = sum(p.numel() for p in net.parameters())
    nodes, buffers = pruned.graph.nodes, pruned.graph.buffers
    content = encode(Contents(nodes, tensors, shapes, parameters, tuple(data.train_x.shape[1:]), buffers))
    network = GraphNetwork(nodes, {n: values_of(t) for n, t in tensors.items()}, buffers)
    return len(content), multiplications(network, data.train_x), network


def stored_shared(net: nn.Module, data: Problem, budget: Budget, clusters: int) -> Stored:
    """Weights that are not zero take one of so many values a layer, which are trained (Han et al. 2016, section 3.3)
    and stored in 16 bits each; the file's coder codes which it is."""
    weights = matrices(net)
    centres, at, codes = {}, {}, {}
    for n, p in weights.items():
        flat = p.detach().flatten()
        left = flat.nonzero()[:, 0]
        found, nearest = kmeans(flat[left], min(clusters, len(left)))
        order = found.argsort()
        rank = torch.arange(len(found)) - int((found < 0).sum())
        rank = torch.where(rank >= 0, rank + 1, rank)
        number = torch.zeros(len(flat), dtype=torch.int64)
        number[left] = rank[order.argsort()[nearest]]
        codes[n] = FixedPoint(number.view(p.shape), 0)
        index = torch.zeros(len(flat), dtype=torch.int64)
        index[left] = nearest + 1
        centres[n], at[n] = found.clone().requires_grad_(), index.view(p.shape)

    def shared() -> dict[str, Tensor]:
        return {n: F.pad(centres[n], (1, 0))[at[n]] for n in weights}

    train_on(net, data, budget, centres.values(), shared)
    size, products, _ = stored(net, codes, data)
    with torch.no_grad():
        for n, value in shared().items():
            weights[n].copy_(value)
    return size + 2 * sum(map(len, centres.values())), products, net


# ------------------------------------------------------------------------------------------------------------- points

SHARES = (0.8, 0.9, 0.95, 0.97, 0.98, 0.99)
FINENESS = (0.0, 0.5, 1.0)
PENALTIES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
RATIOS = (0.5, 0.7, 0.85, 0.93, 0.97)
KL_WEIGHTS = (1.0, 3.0, 10.0, 30.0)
#: steps of the network that is not pruned, as octaves below a layer's deviation, and values a layer.
WIDTHS, CLUSTERS = (-1.0, 0.0, 1.0, 2.0, 3.0), (4, 8, 16)
WAYS = ("global", "layers", "kmeans", "lasso", "torch-pruning", "bmrs", "spam", "bits")

Make = Callable[[nn.Module], Any]


def started(label: str, make: Make, build: Callable[[], nn.Module], seed: int, runs: Path) -> Any:
    """What was trained so before, or is now: the network that ``make`` changed, or what it returned; a copy of its own.

    :param label: of the file in ``runs``.
    """
    runs.mkdir(parents=True, exist_ok=True)
    file = runs / f"{label}-{seed}.pt"
    if not file.exists():
        torch.manual_seed(seed)
        net = build()
        torch.save(make(net) or net, file)
    torch.manual_seed(seed)
    return torch.load(file, weights_only=False)


def plain_points(
    way: str, build: Callable[[], nn.Module], data: Problem, budget: Budget, seed: int, runs: Path
) -> Iterator[tuple[str, Callable[[], Stored]]]:
    """Settings of a way, and what makes a point of each.

    :param runs: folder for what several settings begin with.
    """

    def start(label: str, make: Make) -> Callable[[], Any]:
        return lambda: started(label, make, build, seed, runs)

    def coarse(net: Callable[[], nn.Module], fineness: float) -> Callable[[], Stored]:
        def point() -> Stored:
            own = net().eval()
            return stored(own, rounded(own, data, budget, fineness), data)

        return point

    if way == "spam":
        scored = start("spam", lambda net: (net, shaved(net, data, budget)))
        for share in SHARES:

            def pruned(share: float = share) -> nn.Module:
                net, scores = scored()
                masked_(net, zeros(scores, share, True))
                return net

            for fineness in FINENESS:
                yield f"{share} {fineness:g}", coarse(pruned, fineness)
        return
    starts: dict[str, Make] = {}
    if way in ("global", "kmeans"):
        starts = {f"global-{v}": lambda net, v=v: gradual_(net, data, budget, v, True) for v in SHARES}
    elif way == "layers":
        starts = {f"layers-{v}": lambda net, v=v: gradual_(net, data, budget, v, False) for v in SHARES}
    elif way == "lasso":
        starts = {f"lasso-{v:g}": lambda net, v=v: lasso_(net, data, budget, v) for v in PENALTIES}
    elif way == "torch-pruning":
        starts = {f"torch-pruning-{v}": lambda net, v=v: torch_pruned(net, data, budget, v) for v in RATIOS}
    elif way == "bmrs":
        starts = {f"bmrs-{v:g}": lambda net, v=v: reduced_(net, data, budget, v) for v in KL_WEIGHTS}
    else:
        starts = {"dense": lambda net: train(net, data, budget)}
    for label, make in starts.items():
        net = start(label, make)
        if way == "kmeans":
            for clusters in CLUSTERS:

                def shared(net: Callable[[], nn.Module] = net, clusters: int = clusters) -> Stored:
                    return stored_shared(net().eval(), data, budget, clusters)

                yield f"{label} {clusters}", shared
        else:
            for fineness in WIDTHS if way == "bits" else FINENESS:
                yield f"{label} {fineness:g}", coarse(net, fineness)
