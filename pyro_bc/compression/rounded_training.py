r"""A few epochs more, in which the network computes with the codes that its file will hold.

Every step rounds each weight to what costs least under the posterior together with the length of its code
(:mod:`pyro_bc.quantisation.conditional`), and the gradient reaches the weight itself (straight through, Bengio et al.
2013, 1308.3432). So a code changes where the data move a weight by more than the posterior's price of a change, and
never back and forth for a step's noise. The price of a bit rises while the training goes on: codes become 0 in the
order of what they cost, and what is left makes up for them. The loss is the negative log-likelihood and, at the price
of a bit, the length of the codes, smoothed as that of a Laplace density.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor

from ..data.loaders import first_batch, loader_steps
from ..errors import NonFiniteLossError
from ..graph.layer_types import LayerType
from ..graph.module import GraphNetwork
from ..graph.nodes import Graph, layer_groups, layer_nodes
from ..model.likelihoods import Likelihood
from ..posterior.curvature import density_of
from ..posterior.summary import LayerPosterior
from ..quantisation.conditional import CodeLengths, cheapest_entries
from ..quantisation.fixed_point import STEPS_PER_OCTAVE
from ..runtime import processes
from ..runtime.gradients import check_differentiates
from ..runtime.inputs import tensors_of
from ..runtime.progress import progress_bar
from .rate import CodedRows, Entries, Priced, conditioned, entries_of, stored_rows

# What a training of enough steps makes up for: bits that are so much dearer (measured at equal held-out error: 3 to 5
# times), and the zeros of layers whose step is so many times the spread of their weights. There most codes are 0
# whatever they start from, and a start that makes up for each of them by others costs twice the bits.
_ENOUGH_STEPS, _DEARER, _REDUNDANT = 500, 3.0, 4.0

# The price of a bit at the first step, beside the last, and the part of the training in which it rises, where codes do
# not make up for each other from the start.
_FIRST_PRICE, _RISES = 0.1, 0.6

# Rates of the first steps: of weights, beside the spread of their layer's, and of all else.
_RATE, _OTHER_RATE = 0.02, 1e-3

# The median magnitude of a normal, in deviations: a spread that a few large weights do not move.
_NORMAL_MEDIAN = 0.6745

# Steps after which the lengths of codes are counted anew.
_RECOUNT = 20

# What the codes' spread is at least, in steps, where their length is smoothed.
_NARROWEST = 0.05


def price_with_training(nats_per_bit: float, steps: int) -> float:
    """The price of a bit after so many steps of training, at about the error that this price has without any."""
    return nats_per_bit * (1 + (_DEARER - 1) * min(1.0, steps / _ENOUGH_STEPS))


def train_rounded(
    graph: Graph,
    posterior: Mapping[str, LayerPosterior],
    prices: Mapping[str, Priced | None],
    nats_per_bit: float,
    likelihood: Likelihood,
    loader: Iterable[Any],
    *,
    epochs: int,
    num_data: int,
    kl_weight: float = 1.0,
    progress: bool = True,
) -> tuple[Graph, dict[str, LayerPosterior]]:
    """Train weights with their codes in the loop; all else that the network multiplies with or adds, as it is.

    On several processes each has a loader of its own, and all step along the mean of their gradients.

    :param prices: of :func:`~pyro_bc.compression.rate.priced`; batch normalisation folded, as there.
    :param nats_per_bit: price of a bit at the end.
    :param loader: batches ``(x, y)`` of the training set; it is passed over ``epochs`` times.
    :param num_data: size of the training set.
    :param kl_weight: that the posterior's KL had in its fit: so many nats of the data are one of the posterior's.
    :returns: the graph with what else was trained, and the posterior with codes for its layers.
    :raises UsageError: where the loader has no length or gives no pairs, or targets do not fit the likelihood.
    :raises NonFiniteLossError: where the loss is not finite.
    """
    check_differentiates("training with rounded weights")
    nodes = layer_nodes(graph)
    layers = {
        name: _Layer(posterior[name].layer_type, layer_groups(nodes[name]), posterior[name].weight_mean.shape,
                     entries_of(posterior[name], price, layer_groups(nodes[name]), nats_per_bit))
        for name, price in prices.items()
    }  # fmt: skip
    network = GraphNetwork(graph.nodes, graph.tensors, graph.buffers)
    weights = {f"{name}.weight" for name in layers}
    others = {name: parameter for name, parameter in network.named_parameters() if name not in weights}
    steps = epochs * loader_steps(loader)
    for name, layer in layers.items():
        price = prices[name]
        if price is not None and (steps < _ENOUGH_STEPS or not layer.is_redundant):
            with torch.no_grad():
                layer.condition_(price, others.get(f"{name}.bias"), nats_per_bit)
    x, y = first_batch(loader)
    network = network.to(y.device)
    others = {name: parameter for name, parameter in network.named_parameters() if name in others}
    for layer in layers.values():
        layer.to_(y.device)
    groups = [{"params": [layer.values], "lr": _RATE * layer.spread} for layer in layers.values()]
    optimizer = torch.optim.Adam([*groups, {"params": list(others.values()), "lr": _OTHER_RATE}])
    rates = [group["lr"] for group in optimizer.param_groups]
    with torch.no_grad():
        likelihood.check(network(*tensors_of(x)), y)
    with torch.enable_grad(), progress_bar("training, rounded", steps, shown=progress) as bar:
        for step, (x, y) in enumerate(chain.from_iterable(repeat(loader, epochs))):
            done = step / steps
            rising = nats_per_bit * _FIRST_PRICE ** max(0.0, 1 - done / _RISES)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (1 - done)
            length = torch.zeros((), device=y.device)
            rounded = {}
            for name, layer in layers.items():
                if step % _RECOUNT == 0:
                    layer.count()
                own = nats_per_bit if layer.is_conditioned else rising
                rounded[f"{name}.weight"] = layer.rounded(own)
                length = length + own * layer.smooth_length()
            density = density_of(likelihood, torch.func.functional_call(network, rounded, tensors_of(x)))
            loss = kl_weight * length / num_data - density.log_prob(y).mean()
            if not torch.isfinite(loss):
                raise NonFiniteLossError(
                    f"the loss is {loss.item()} in step {step + 1} of the training with rounded weights: take a lower "
                    f"price of a bit (nats_per_bit), or fewer epochs"
                )
            optimizer.zero_grad()
            loss.backward()
            processes.average_(p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None)
            optimizer.step()
            bar(1, state=f"loss {loss.item():.3f}" if step % _RECOUNT == 0 else None)
    result = dict(posterior)
    tensors = {**graph.tensors, **{name: value.detach().cpu() for name, value in others.items()}}
    for name, layer in layers.items():
        layer.rounded(nats_per_bit)
        bias = tensors.get(f"{name}.bias") if posterior[name].bias_mean is not None else None
        coded = CodedRows(layer.codes.cpu(), layer.exponents, bias, layer.bias_step)
        result[name] = replace(posterior[name], bias_mean=bias, codes=stored_rows(posterior[name], nodes[name], coded))
    return replace(graph, tensors=tensors), result


class _Layer:
    """The weights of a layer, the codes that they are rounded to, and what rounding costs."""

    def __init__(self, kind: LayerType, groups: int, shape: torch.Size, entries: Entries):
        self.kind, self.groups, self.shape = kind, groups, shape
        self.values = entries.means.clone().requires_grad_()
        self.spread = float(entries.means.abs().median()) / _NORMAL_MEDIAN
        self.price, self.exponents, self.bias_step = entries.price, entries.exponents, entries.bias_step
        self.steps = torch.exp2(entries.exponents / STEPS_PER_OCTAVE)[:, None]
        self.codes = (entries.means / self.steps).round().long()
        self.is_conditioned = False

    @property
    def is_redundant(self) -> bool:
        """Whether the steps are so coarse that most weights are 0."""
        return bool(self.steps.mean() > _REDUNDANT * self.spread)

    def to_(self, device: torch.device) -> None:
        """Move the layer to a device, before anything trains it."""
        self.values = self.values.detach().to(device).requires_grad_()
        self.price, self.steps, self.codes = (t.to(device) for t in (self.price, self.steps, self.codes))

    @torch.no_grad()
    def condition_(self, price: Priced, bias: Tensor | None, nats_per_bit: float) -> None:
        """Move the weights, and the bias, to the conditional means at which they are rounded without a training."""
        codes, means = conditioned(price, price.rows, self.steps[:, 0], nats_per_bit)
        count = self.values.shape[1]
        self.values.copy_(means[:, :count])
        self.codes, self.is_conditioned = codes[:, :count], True
        if price.has_bias and bias is not None:
            bias.copy_(means[:, -1])

    def count(self) -> None:
        """Lengths of codes, and the slope of their smoothed length, as the codes are now."""
        self.lengths = CodeLengths(self.codes)
        self.slope = 1 / (math.log(2) * (float(self.codes.abs().float().mean()) + _NARROWEST))

    def rounded(self, nats_per_bit: float) -> Tensor:
        """The weight in its own shape as codes, with the gradient of what they were rounded from."""
        values = self.values.detach()
        self.codes = cheapest_entries(values, self.price, self.steps, nats_per_bit, self.lengths)
        moved = self.values + (self.codes * self.steps - values)
        return self.kind.from_rows(moved, self.shape, self.groups)

    def smooth_length(self) -> Tensor:
        """Bits of the codes under a Laplace density of their spread, but for a constant; it has a gradient."""
        return self.slope * (self.values / self.steps).abs().sum()
