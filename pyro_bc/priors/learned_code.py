r"""A network whose KL is the size of its file: the prior is a code, and the guide the quantiser's cell.

A parameter of the network is a latent site of integer-like *codes*, :math:`w = \Delta\, T^{-1} v`, with a step
:math:`\Delta` per tensor and, over kernels and pictures, the cosine transform :math:`T` (``quantisation/cosine.py``):

===================  ======================================  ==========================================================
site ``net.<name>``  density                                 learned
===================  ======================================  ==========================================================
in the model         :class:`LaplaceCells`                   scales and weights of the mixture, by layer and frequency;
                                                             :math:`\log\Delta`
in the guide         :class:`Cell`                           the centre of the cell
===================  ======================================  ==========================================================

Maximising the ELBO over all of them is empirical Bayes, and rate–distortion optimisation: the KL in nats, over
:math:`8 \ln 2`, is the bytes that the codes will take, and what ``kl_weight`` weighs against the likelihood. Weights
that the prior gives a spike at zero fall into it; so do whole units.

Training under cells makes a network robust to rounding, but it is not rounding: the last part of a training computes
with codes that are rounded (:meth:`CellGuide.rounded`), the gradient passing straight through, while the KL stays that
of the cells.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn

from ..errors import UnsupportedNetworkError, UsageError
from ..model.likelihoods import Categorical, Likelihood
from ..quantisation.cosine import frequencies, from_cosines, to_cosines
from ..runtime.devices import check_dtype
from .cells import Cell, LaplaceCells

#: components of a prior's mixture: one narrow, for zeros, and one wide.
COMPONENTS = 2

# Codes' root mean square at the start: a finer step only delays what the KL does to it.
_INITIAL_CODES = 2.5

_LOG_SCALES = (-4.0, 6.0)

_NO_WEIGHT = 1e-12  # Pyro's scales are positive


class RateNetwork(PyroModule):
    """Net + learned prior over its codes + likelihood = a Pyro model ``model(x, y=None, kl_weight=1.0, codes=None)``.

    Sites: ``net.<parameter>`` for every parameter of the network, those of the likelihood, and the observed ``y`` in
    the plate ``data``. Returns the network's outputs. ``codes`` are what the network computes with in place of the
    sites' values, if given; the prior's density is that of the values.

    :param net: any network; its weights are where the guide starts. It is kept, and its parameters are not changed.
    :param num_data: size of the training set N, by which the mini-batch likelihood is scaled.
    :param grids: by parameter, the spatial grid over which its codes are cosine coefficients
        (:func:`~pyro_bc.spatial_grids`); parameters left out are coded as they are.
    :param likelihood: of the targets given the outputs, one without latent sites: :class:`CellGuide` has none for them.
    :raises UsageError: where ``num_data`` is not positive, a parameter is not of torch's default dtype, or a grid does
        not fit its parameter.
    :raises UnsupportedNetworkError: where the network has no parameters.

    >>> import pyro, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3))
    >>> model = RateNetwork(net, num_data=100)
    >>> trace = pyro.poutine.trace(model).get_trace(torch.ones(2, 4), torch.tensor([0, 2]))
    >>> [name for name in trace.nodes if name.startswith("net.")]
    ['net.0.weight', 'net.0.bias']
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        num_data: int,
        grids: Mapping[str, tuple[int, ...]] | None = None,
        likelihood: Likelihood | None = None,
    ):
        super().__init__()
        if isinstance(num_data, bool) or not (isinstance(num_data, int) and num_data > 0):
            raise UsageError(f"num_data is the number of training examples, a positive integer, not {num_data!r}")
        parameters = {name: p.detach() for name, p in net.named_parameters()}
        if not parameters:
            raise UnsupportedNetworkError("the network has no parameters to compress")
        for name, value in parameters.items():
            check_dtype(f"'{name}' is", value.dtype)
        self._net = (net,)  # not a submodule: its parameters are values of the sites
        self.grids = dict(grids or {})
        for name, grid in self.grids.items():
            if name not in parameters:
                raise UsageError(f"a grid is given for '{name}', but the parameters are {', '.join(parameters)}")
            if not math.prod(grid) or parameters[name][0].numel() % math.prod(grid):
                raise UsageError(f"a grid of {grid} does not fit '{name}' of shape {tuple(parameters[name].shape)}")
        self.num_data = num_data
        self.likelihood = Categorical() if likelihood is None else likelihood
        self.names = tuple(parameters)
        self.shapes = {name: tuple(value.shape) for name, value in parameters.items()}
        self.log_steps = nn.Parameter(torch.stack([_initial_log_step(parameters[name]) for name in self.names]))
        spread = torch.linspace(-1.5, 1.5, COMPONENTS)
        self.log_scales, self.logits = nn.ParameterList(), nn.ParameterList()
        for index, name in enumerate(self.names):
            classes = None
            if name in self.grids:
                classes = frequencies(self.shapes[name], self.grids[name])
            self.register_buffer(f"classes{index}", classes, persistent=False)
            count = 1 if classes is None else int(classes.max()) + 1
            self.log_scales.append(nn.Parameter(spread.repeat(count, 1)))
            self.logits.append(nn.Parameter(torch.zeros(count, COMPONENTS)))
        self.to(parameters[self.names[0]].device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RateNetwork":
        self.net._apply(fn, recurse)
        result: RateNetwork = super()._apply(fn, recurse)
        return result

    @property
    def net(self) -> nn.Module:
        """The network, with the weights that it was given."""
        return self._net[0]

    def steps(self) -> Tensor:
        r"""Step :math:`\Delta` of every parameter, ``(parameters,)``."""
        return self.log_steps.exp()

    @torch.no_grad()
    def snap_steps_(self, guide: "CellGuide") -> None:
        """Round the steps to powers of two, as a file holds them, and leave them there; weights stay what they are."""
        snapped = (self.log_steps / math.log(2)).round() * math.log(2)
        for code, ratio in zip(guide.codes, (self.log_steps - snapped).exp(), strict=True):
            code.mul_(ratio)
        self.log_steps.copy_(snapped)
        self.log_steps.requires_grad_(False)

    def initial_codes(self, name: str) -> Tensor:
        """Codes, not rounded, of the weights that the network was given."""
        value = self.net.get_parameter(name).detach()
        step = self.steps()[self.names.index(name)].detach()
        return (to_cosines(value, self.grids[name]) if name in self.grids else value) / step

    def prior(self, name: str) -> LaplaceCells:
        """Prior over one parameter's codes, batch shape that of the parameter."""
        index = self.names.index(name)
        log_scales, logits = self.log_scales[index].clamp(*_LOG_SCALES), self.logits[index]
        classes = getattr(self, f"classes{index}")
        if classes is None:
            return LaplaceCells(log_scales[0], logits[0], shape=self.shapes[name])
        return LaplaceCells(log_scales, logits, classes)

    def weights(self, codes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The network's parameters from their codes, by name."""
        steps, result = self.steps(), {}
        for index, name in enumerate(self.names):
            value = steps[index] * codes[name]
            result[name] = from_cosines(value, self.grids[name]) if name in self.grids else value
        return result

    def forward(
        self,
        x: Tensor,
        y: Tensor | None = None,
        kl_weight: float = 1.0,
        codes: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        drawn = {}
        with poutine.scale(scale=max(kl_weight, _NO_WEIGHT)):
            for name in self.names:
                drawn[name] = pyro.sample(f"net.{name}", self.prior(name).to_event(len(self.shapes[name])))
        outputs = torch.func.functional_call(self.net, self.weights(codes or drawn), (x,))
        density = self.likelihood(outputs)
        with pyro.plate("data", self.num_data, subsample=x, dim=-1):
            pyro.sample("y", density, obs=y)
        return outputs


def _initial_log_step(value: Tensor) -> Tensor:
    spread = float(value.double().square().mean().sqrt())
    return torch.tensor(math.log(spread / _INITIAL_CODES) if spread > 0 else math.log(0.1))


class CellGuide(PyroModule):
    """The guide of a :class:`RateNetwork`: every code uniform over a cell.

    :param model: the model; codes start at its network's weights.

    >>> import torch
    >>> guide = CellGuide(RateNetwork(torch.nn.Sequential(torch.nn.Linear(4, 3)), num_data=8))
    >>> sorted(guide(torch.ones(2, 4)))
    ['net.0.bias', 'net.0.weight']
    """

    def __init__(self, model: RateNetwork):
        super().__init__()
        self.names = model.names
        self.codes = nn.ParameterList([nn.Parameter(model.initial_codes(name)) for name in self.names])

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample every site; the arguments are the model's."""
        values = {}
        for name, centre in zip(self.names, self.codes, strict=True):
            values[f"net.{name}"] = pyro.sample(f"net.{name}", Cell(centre).to_event(centre.dim()))
        return values

    def rounded(self) -> dict[str, Tensor]:
        """Codes as integers, by parameter; their gradient is that of the cells' centres (straight through)."""
        pairs = zip(self.names, self.codes, strict=True)
        return {name: centre + (centre.round() - centre).detach() for name, centre in pairs}

    def posterior(self) -> dict[str, Cell]:
        """Variational distribution of every site, detached."""
        return {f"net.{name}": Cell(code.detach()) for name, code in zip(self.names, self.codes, strict=True)}
