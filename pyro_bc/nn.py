"""Networks as Pyro models: Bayesian layers, and any ``nn.Module`` made Bayesian."""

import copy
from collections.abc import Callable
from typing import Any

import pyro
import torch
import torch.nn.functional as F
from pyro.nn import PyroModule, PyroSample
from pyro.nn.module import to_pyro_module_
from torch import Tensor, nn

from .errors import UnsupportedNetworkError, UsageError
from .likelihoods import Categorical, Likelihood
from .priors import GroupHorseshoe, Prior, bias_prior

#: a prior for all layers, or a rule ``(name, module) -> prior``, None to leave a layer deterministic.
PriorRule = Prior | Callable[[str, nn.Module], Prior | None]


class BayesianLinear(PyroModule):
    """``nn.Linear`` whose weight and bias are latent: sites ``scale``, …, ``weight``, ``bias`` below its name.

    :param in_features: inputs; each is one group of a group prior.
    :param out_features: outputs.
    :param bias: whether there is a bias, with a standard normal prior.
    :param prior: the prior over the weight, of shape ``(out_features, in_features)``.

    Input ``(batch, *, in_features)``, output ``(batch, *, out_features)``.

    >>> import pyro_bc, torch
    >>> layer = BayesianLinear(4, 3, prior=pyro_bc.GroupHorseshoe())
    >>> pyro.poutine.trace(layer).get_trace(torch.ones(2, 4)).stochastic_nodes[-2:]
    ['weight', 'bias']
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, prior: Prior | None = None):
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.prior = GroupHorseshoe() if prior is None else prior
        #: values that a guide starts from, by role; empty for a layer made from scratch.
        self.pretrained: dict[str, Tensor] = {}
        for role, fn in self.prior.sites((out_features, in_features)).items():
            setattr(self, role, PyroSample(fn))
        self.bias = PyroSample(bias_prior(out_features)) if bias else None

    @classmethod
    def from_module(cls, module: nn.Linear, prior: Prior) -> "BayesianLinear":
        """A Bayesian layer of the same shape whose guide starts from the module's weight and bias."""
        if module.weight.dtype != torch.get_default_dtype():
            raise UsageError(
                f"a layer has weights of {module.weight.dtype}, but priors are {torch.get_default_dtype()}: convert "
                f"the network, or call torch.set_default_dtype first"
            )
        layer = cls(module.in_features, module.out_features, module.bias is not None, prior=prior)
        layer.pretrained = {name: value.detach().clone() for name, value in module.named_parameters()}
        return layer

    def forward(self, x: Tensor) -> Tensor:
        weight = self.prior.weight({role: getattr(self, role) for role in self.prior.roles})
        bias: Any = self.bias  # a tensor: reading the attribute samples the site
        return F.linear(x, weight, bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, prior={self.prior}"


_BAYESIAN: dict[type[nn.Module], Any] = {nn.Linear: BayesianLinear}


def bayesianize(module: nn.Module, prior: PriorRule) -> nn.Module:
    """A Bayesian copy of a network, a ``PyroModule``: each ``nn.Linear`` becomes a :class:`BayesianLinear`.

    Sites are named after the modules (``fc1.weight``). The guide starts from the network's present weights,
    whether they were pretrained or freshly initialised. Everything else, deterministic parameters included,
    is copied as it is.

    :param module: the network; it is not changed.
    :param prior: one prior for all layers, or a rule ``(name, module) -> Prior | None``, where None leaves a
        layer deterministic.
    :raises UnsupportedNetworkError: where no layer becomes Bayesian, or one is used under two names.
    :raises UsageError: where a layer's weights are not of torch's default dtype.

    >>> import pyro_bc, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> net = bayesianize(net, pyro_bc.GroupNormalJeffreys())
    >>> type(net[2]).__name__
    'BayesianLinear'
    """
    rule = prior if callable(prior) else lambda name, layer: prior
    converted = 0

    def convert(name: str, layer: nn.Module) -> nn.Module:
        nonlocal converted
        bayesian = _BAYESIAN.get(type(layer))
        layer_prior = None if bayesian is None else rule(name, layer)
        if bayesian is None or layer_prior is None:
            for child_name, child in layer.named_children():
                new = convert(f"{name}.{child_name}" if name else child_name, child)
                if new is not child:
                    setattr(layer, child_name, new)
            return layer
        converted += 1
        return bayesian.from_module(layer, layer_prior)

    seen: dict[int, str] = {}
    for name, layer in module.named_modules(remove_duplicate=False):
        if type(layer) in _BAYESIAN and seen.setdefault(id(layer), name) != name:
            raise UnsupportedNetworkError(
                f"layers '{seen[id(layer)]}' and '{name}' are one and the same; shared layers cannot be made Bayesian"
            )
    result = convert("", copy.deepcopy(module))
    if not converted:
        kinds = ", ".join(kind.__name__ for kind in _BAYESIAN)
        raise UnsupportedNetworkError(f"the network has no layer to make Bayesian; needed is at least one of: {kinds}")
    to_pyro_module_(result)
    return result


class BayesianNetwork(PyroModule):
    """Net + prior + likelihood = a Pyro model ``model(x, y=None)`` of one mini-batch.

    :param net: any network of ``nn.Linear`` layers, pretrained or not; it is copied.
    :param prior: a prior, or a rule per layer as in :func:`bayesianize`.
    :param num_data: size of the training set N, by which the mini-batch likelihood is scaled (N/B).
    :param likelihood: of the targets given the outputs.
    :raises UsageError: where ``num_data`` is not a positive integer.

    Sites: ``net.<layer>.<role>`` for every layer, those of the likelihood, and the observed ``y`` inside the
    plate ``data``. Returns the network's outputs.

    >>> import pyro, pyro_bc, torch
    >>> model = BayesianNetwork(torch.nn.Linear(4, 3), prior=pyro_bc.GroupHorseshoe(), num_data=100)
    >>> trace = pyro.poutine.trace(model).get_trace(torch.ones(2, 4), torch.tensor([0, 2]))
    >>> trace.nodes["y"]["scale"]
    50.0
    """

    def __init__(
        self,
        net: nn.Module,
        prior: PriorRule | None = None,
        *,
        num_data: int,
        likelihood: Likelihood | None = None,
    ):
        super().__init__()
        if isinstance(num_data, bool) or not (isinstance(num_data, int) and num_data > 0):
            raise UsageError(f"num_data is the number of training examples, a positive integer, not {num_data!r}")
        self.net = bayesianize(net, GroupHorseshoe() if prior is None else prior)
        self.likelihood = Categorical() if likelihood is None else likelihood
        self.num_data = num_data
        # What compression fills with the posterior's weights. In a tuple, so that it is no submodule.
        self._skeleton = (copy.deepcopy(net),)

    @property
    def skeleton(self) -> nn.Module:
        """The deterministic network that this model was made from, its deterministic parameters as trained."""
        self._skeleton[0].load_state_dict(self.net.state_dict(), strict=False)
        return self._skeleton[0]

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        outputs = self.net(x)
        density = self.likelihood(outputs)
        with pyro.plate("data", self.num_data, subsample=x, dim=-1):
            pyro.sample("y", density, obs=y)
        return outputs
