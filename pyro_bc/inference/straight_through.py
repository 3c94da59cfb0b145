r"""Rounding in the loop as an effect handler: the network computes with the codes that a file will hold.

A code's site in the guide is a :class:`~pyro_bc.priors.cells.Cell`, and a draw from it is its centre plus uniform
noise. Inside the handler the model is given the rounded centre, with the gradient of the centre itself (straight
through, Bengio et al. 2013, 1308.3432). The KL stays that of the cells: the model's density scores a draw from the
cell, whose expectation has a gradient where a rounded code has none. Before::

    code ~ Cell(centre);           w = step * code;           KL = -log p(code)

After::

    code = round(centre);          w = step * code;           KL = -log p(draw),   draw ~ Cell(centre)
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor
from torch.distributions import constraints

from ..model.guide import FactorizedGuide
from ..posterior.summary import summarize
from ..posterior.thresholds import choose_threshold
from ..priors.base import base_distribution
from ..priors.cells import Cell
from ..priors.learned_code import code_of


def rounded(centre: Tensor) -> Tensor:
    """The nearest integers, with the gradient of ``centre``; of its shape."""
    return centre + (centre.round() - centre).detach()


class _ScoredAtADraw(TorchDistribution):
    """A code's prior, which scores a draw from the guide's cell whatever value it is given."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, fn: Any, cell: Any):
        self.fn, self.cell = fn, cell
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return self.fn.support

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "_ScoredAtADraw":
        return _ScoredAtADraw(self.fn.expand(batch_shape), self.cell)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.fn.sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.fn.log_prob(self.cell.rsample())


class RoundedCodesMessenger(Messenger):
    """Gives the model rounded codes inside it; guide and model must both run there."""

    def __init__(self) -> None:
        super().__init__()
        self._cells: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        q = base_distribution(msg["fn"])
        if msg["is_observed"]:
            return
        if isinstance(q, Cell):  # the guide
            self._cells[msg["name"]] = msg["fn"]
            if msg["value"] is None:
                msg["value"] = rounded(q.centre)
                msg["done"] = True
        elif msg["name"] in self._cells and msg["value"] is not None:  # the model, replayed against it
            msg["fn"] = _ScoredAtADraw(msg["fn"], self._cells[msg["name"]])


def rounded_codes() -> RoundedCodesMessenger:
    """Context manager in which a network computes with rounded codes, for the last part of a training.

    Before it, :func:`settle_codes_` makes the steps powers of two, as a file holds them.

    >>> import pyro, pyro_bc, torch
    >>> from pyro.infer import SVI, TraceMeanField_ELBO
    >>> pyro.clear_param_store()
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3))
    >>> model = pyro_bc.BayesianNetwork(net, prior=pyro_bc.LearnedCode(), num_data=8)
    >>> guide = pyro_bc.FactorizedGuide(model)
    >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), TraceMeanField_ELBO())
    >>> with rounded_codes():
    ...     loss = svi.step(torch.ones(8, 4), torch.zeros(8, dtype=torch.long))
    """
    return RoundedCodesMessenger()


def is_rounding() -> bool:
    """Whether this runs inside :func:`rounded_codes`."""
    return any(isinstance(handler, RoundedCodesMessenger) for handler in _PYRO_STACK)


@torch.no_grad()
def settle_codes_(guide: FactorizedGuide) -> None:
    """Round the steps of all codes to powers of two, as a file holds them, and leave them there.

    Weights stay what they are. Where groups have scales, their means go into the codes, those of groups that would be
    pruned as 0; from then on the scales multiply nothing, and the codes alone are the layer.

    :param guide: set up; a layer whose codes are settled stays as it is.
    """
    coded = {name: code for name, layer in guide.layers.items() if (code := code_of(layer.sites["weight"])) is not None}
    if all(code.is_settled for code in coded.values()):
        return
    posterior, summaries = guide.posterior(), summarize(guide)
    for name, code in coded.items():
        prior, sites, kind = guide.layers[name]
        if code.is_settled:
            continue
        scale = prior.group_scale({role: posterior[f"{name}.{role}"] for role in sites})
        bias_code = code_of(sites["bias"]) if "bias" in sites else None
        (codes,) = guide.parameters_of(f"{name}.weight")
        if scale is not None:
            kept = choose_threshold(summaries[name]).keeps(summaries[name]).to(codes.device)
            mean = torch.where(kept, scale.mean, torch.zeros_like(scale.mean))
            codes.mul_(kind.over_groups(mean, codes.shape))
            if bias_code is not None and kind.scales_outputs:
                guide.parameters_of(f"{name}.bias")[0].mul_(mean)
        codes.mul_(code.settle_())
        if bias_code is not None:
            guide.parameters_of(f"{name}.bias")[0].mul_(bias_code.settle_())
