"""Networks as Pyro models: Bayesian layers, and any ``nn.Module`` made Bayesian."""

import copy
import fnmatch
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pyro
import torch
import torch.nn.functional as F
from pyro.nn import PyroModule, PyroSample
from pyro.nn.module import to_pyro_module_
from torch import Tensor, nn

from .attention import GroupedLinear, MultiheadAttention, separate_heads
from .checks import check_dtype
from .devices import default_dtype
from .errors import UnsupportedNetworkError, UsageError
from .likelihoods import Categorical, Likelihood
from .priors import GroupHorseshoe, Prior, bias_prior

#: a prior for all layers, or a rule ``(name, module) -> prior``, None to leave a layer deterministic.
PriorRule = Prior | Callable[[str, nn.Module], Prior | None]


def _density(layer: "_BayesianLayer", role: str) -> Any:
    return layer._densities[role]


class _BayesianLayer(PyroModule):
    """A layer whose weight and bias are latent, with one site for every role of its prior."""

    def __init__(self, weight_shape: tuple[int, ...], bias: bool, prior: Prior | None, group_size: int = 1):
        super().__init__()
        self.prior = GroupHorseshoe() if prior is None else prior
        #: values that a guide starts from, by role; empty for a layer made from scratch.
        self.pretrained: dict[str, Tensor] = {}
        self._shape, self._group_size = weight_shape, group_size
        self._dtype = torch.get_default_dtype()
        self._place(torch.get_default_device())
        for role in self.prior.roles:
            setattr(self, role, PyroSample(partial(_density, role=role)))
        self.bias = PyroSample(partial(_density, role="bias")) if bias else None

    def _place(self, device: torch.device) -> None:
        """Make the densities of all roles, whose draws are on this device, and of the type of the first ones."""
        self._device = device
        with torch.device(device), default_dtype(self._dtype):
            densities = self.prior.sites(self._shape, self._group_size)
            self._densities = {**densities, "bias": bias_prior(self._shape[0])}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_BayesianLayer":
        # What moves a module moves its parameters, and a layer whose parameters are latent has none.
        result: _BayesianLayer = super()._apply(fn, recurse)
        self._place(fn(torch.empty(0, device=self._device)).device)
        return result

    @classmethod
    def from_module(cls, module: Any, prior: Prior) -> Any:
        """A Bayesian layer of the same shape whose guide starts from the module's weight and bias."""
        check_dtype("a layer has weights of", module.weight.dtype)
        layer = cls._like(module, prior)
        layer._place(module.weight.device)
        layer.pretrained = {name: value.detach().clone() for name, value in module.named_parameters()}
        return layer

    @classmethod
    def _like(cls, module: Any, prior: Prior) -> Any:
        raise NotImplementedError

    def sample_parameters(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias: one ``pyro.sample`` statement per site."""
        values: dict[str, Any] = {role: getattr(self, role) for role in self.prior.roles}
        weight = self.prior.weight(values)
        bias: Any = self.bias  # a tensor: reading the attribute samples the site
        return weight, None if bias is None else self.prior.bias(values | {"bias": bias})


class BayesianLinear(_BayesianLayer):
    """``nn.Linear`` whose weight and bias are latent: sites ``scale``, …, ``weight``, ``bias`` below its name.

    :param in_features: inputs; each is one group of a group prior.
    :param out_features: outputs.
    :param bias: whether there is a bias, with a standard normal prior.
    :param prior: the prior over the weight, of shape ``(out_features, in_features)``.
    :param group_size: how many neighbouring inputs are one group, instead of each alone.
    :raises UsageError: where groups of that size do not fill the inputs.

    Input ``(batch, *, in_features)``, output ``(batch, *, out_features)``.

    >>> import pyro_bc, torch
    >>> layer = BayesianLinear(4, 3, prior=pyro_bc.GroupHorseshoe())
    >>> pyro.poutine.trace(layer).get_trace(torch.ones(2, 4)).stochastic_nodes[-2:]
    ['weight', 'bias']
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        prior: Prior | None = None,
        group_size: int = 1,
    ):
        if group_size < 1 or in_features % group_size:
            raise UsageError(f"{in_features} inputs cannot be split into groups of {group_size}")
        super().__init__((out_features, in_features), bias, prior, group_size)
        self.group_size = group_size
        self.in_features = in_features
        self.out_features = out_features

    @classmethod
    def _like(cls, module: Any, prior: Prior) -> "BayesianLinear":
        group_size = module.group_size if isinstance(module, GroupedLinear) else 1
        return cls(module.in_features, module.out_features, module.bias is not None, prior=prior, group_size=group_size)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *self.sample_parameters())

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, prior={self.prior}"


class _BayesianConv(_BayesianLayer):
    """What convolutions over one and two dimensions share; arguments as torch's."""

    _module: type[Any]
    _convolution: Any

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        prior: Prior | None = None,
    ):
        # torch's own layer checks the arguments, on a device without storage.
        template = self._module(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device="meta"
        )
        super().__init__(tuple(template.weight.shape), bias, prior)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = template.kernel_size
        self.stride = template.stride
        self.padding = template.padding
        self.dilation = template.dilation
        self.groups = groups
        self.padding_mode = padding_mode
        # (left, right) of the last dimension first, as F.pad takes them; only for other modes than zeros.
        self._pad = template._reversed_padding_repeated_twice

    @classmethod
    def _like(cls, module: Any, prior: Prior) -> "_BayesianConv":
        return cls(
            module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding,
            module.dilation, module.groups, module.bias is not None, module.padding_mode, prior=prior,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._pad, mode=self.padding_mode), 0
        weight, bias = self.sample_parameters()
        return type(self)._convolution(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}, "
            f"padding_mode={self.padding_mode!r}, prior={self.prior}"
        )


class BayesianConv1d(_BayesianConv):
    """``nn.Conv1d`` whose weight and bias are latent; each output filter is one group of a group prior.

    :param in_channels: channels of the input ``(batch, in_channels, length)``.
    :param out_channels: filters; the output is ``(batch, out_channels, length')``.
    :param prior: the prior over the weight, of shape ``(out_channels, in_channels / groups, kernel_size)``.

    The other parameters are those of ``torch.nn.Conv1d``. A filter's scale multiplies its whole output, bias
    included (Louizos et al. 2017, section 3.1 and appendix).
    """

    _module = nn.Conv1d
    _convolution = staticmethod(F.conv1d)


class BayesianConv2d(_BayesianConv):
    """``nn.Conv2d`` whose weight and bias are latent; each output filter is one group of a group prior.

    :param in_channels: channels of the input ``(batch, in_channels, height, width)``.
    :param out_channels: filters; the output is ``(batch, out_channels, height', width')``.
    :param prior: the prior over the weight, of shape ``(out_channels, in_channels / groups, height, width)``.

    The other parameters are those of ``torch.nn.Conv2d``. A filter's scale multiplies its whole output, bias
    included (Louizos et al. 2017, section 3.1 and appendix).

    >>> import pyro_bc, torch
    >>> layer = BayesianConv2d(1, 4, kernel_size=3, padding=1, prior=pyro_bc.GroupNormalJeffreys())
    >>> guide = pyro_bc.FactorizedGuide(layer)
    >>> sorted(guide(torch.ones(2, 1, 8, 8)))
    ['bias', 'scale', 'weight']
    """

    _module = nn.Conv2d
    _convolution = staticmethod(F.conv2d)


_BAYESIAN: dict[type[nn.Module], Any] = {
    nn.Linear: BayesianLinear,
    GroupedLinear: BayesianLinear,
    nn.Conv1d: BayesianConv1d,
    nn.Conv2d: BayesianConv2d,
}


#: layers to leave as they are: names (with ``*`` as in file names), types, or functions ``(name, module) -> bool``.
Choice = str | type[nn.Module] | Callable[[str, nn.Module], bool]


def _chosen(name: str, module: nn.Module, choices: Iterable[Choice]) -> bool:
    """Whether a module is among some choices."""
    for choice in choices:
        if isinstance(choice, str):
            found = fnmatch.fnmatchcase(name, choice) or name.startswith(f"{choice}.")
        elif isinstance(choice, type):
            found = isinstance(module, choice)
        else:
            found = choice(name, module)
        if found:
            return True
    return False


def bayesianize(module: nn.Module, prior: PriorRule, deterministic: Iterable[Choice] = ()) -> nn.Module:
    """A Bayesian copy of a network, a ``PyroModule``: linear layers and convolutions become Bayesian ones.

    Sites are named after the modules (``fc1.weight``). The guide starts from the network's present weights,
    whether they were pretrained or freshly initialised. Everything else, deterministic parameters included,
    is copied as it is. A module that is used in several places stays one, under the last of its names.
    ``nn.MultiheadAttention`` becomes :class:`~pyro_bc.attention.MultiheadAttention`, whose heads are groups.

    :param module: the network; it is not changed.
    :param prior: one prior for all layers, or a rule ``(name, module) -> Prior | None``, where None leaves a
        layer deterministic.
    :param deterministic: layers to leave as they are: names (``"head"``, ``"stem.*"``), types (``nn.Conv1d``), or
        functions ``(name, module) -> bool``. Other modules with weights (recurrent cells, embeddings) always are,
        which a warning says unless they are named here.
    :raises UnsupportedNetworkError: where no layer becomes Bayesian, or one's weight belongs to another module too.
    :raises UsageError: where a layer's weights are not of torch's default dtype.

    >>> import pyro_bc, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> net = bayesianize(net, pyro_bc.GroupNormalJeffreys(), deterministic=["2"])
    >>> [type(layer).__name__ for layer in net]
    ['BayesianLinear', 'PyroReLU', 'PyroLinear']
    """
    net = separate_heads(copy.deepcopy(module))
    for layer in net.modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            layer.p = 0.0
        elif isinstance(layer, MultiheadAttention):
            layer.dropout = 0.0
    chosen = _layer_priors(net, prior, list(deterministic))
    converted: dict[int, nn.Module] = {}

    def convert(layer: nn.Module) -> nn.Module:
        if id(layer) not in converted:
            converted[id(layer)] = layer
            if id(layer) in chosen:
                converted[id(layer)] = _BAYESIAN[type(layer)].from_module(layer, chosen[id(layer)])
            else:
                for name, child in list(layer._modules.items()):
                    if child is not None:
                        setattr(layer, name, convert(child))
        return converted[id(layer)]

    result = convert(net)
    to_pyro_module_(result)
    return result


def _layer_priors(net: nn.Module, prior: PriorRule, deterministic: list[Choice]) -> dict[int, Prior]:
    """The prior of every layer that becomes Bayesian, by its ``id``."""
    rule = prior if callable(prior) else lambda name, layer: prior
    owners: dict[int, list[str]] = {}
    modules = dict(net.named_modules())
    for name, layer in modules.items():
        for parameter in layer.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    chosen: dict[int, Prior] = {}
    left: list[str] = []
    for name, layer in modules.items():
        if _chosen(name, layer, deterministic):
            continue
        if type(layer) not in _BAYESIAN:
            if any(parameter.dim() > 1 for key, parameter in layer.named_parameters(recurse=False) if "weight" in key):
                left.append(f"'{name}' ({type(layer).__name__})")
            continue
        layer_prior = rule(name, layer)
        if layer_prior is None:
            continue
        shared = [owner for p in layer.parameters(recurse=False) for owner in owners[id(p)] if owner != name]
        if shared:
            raise UnsupportedNetworkError(
                f"layers '{name}' and '{shared[0]}' share a weight, which two sites cannot; use one module in both "
                f"places, or leave them deterministic: deterministic=[{name!r}, {shared[0]!r}]"
            )
        chosen[id(layer)] = layer_prior
    if not chosen:
        kinds = ", ".join(kind.__name__ for kind in _BAYESIAN)
        raise UnsupportedNetworkError(f"the network has no layer to make Bayesian; needed is at least one of: {kinds}")
    if left:
        warnings.warn(
            f"left deterministic, and neither pruned nor rounded by a posterior: {', '.join(left)}", stacklevel=4
        )
    return chosen


class BayesianNetwork(PyroModule):
    """Net + prior + likelihood = a Pyro model ``model(x, y=None)`` of one mini-batch, on the network's device.

    :param net: any network with fully connected layers or convolutions, pretrained or not; it is copied.
    :param prior: a prior, or a rule per layer as in :func:`bayesianize`.
    :param deterministic: layers to leave as they are, as in :func:`bayesianize`.
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
        deterministic: Iterable[Choice] = (),
    ):
        super().__init__()
        if isinstance(num_data, bool) or not (isinstance(num_data, int) and num_data > 0):
            raise UsageError(f"num_data is the number of training examples, a positive integer, not {num_data!r}")
        self.net = bayesianize(net, GroupHorseshoe() if prior is None else prior, deterministic)
        self.likelihood = Categorical() if likelihood is None else likelihood
        self.num_data = num_data
        # What compression fills with the posterior's weights. In a tuple, so that it is no submodule.
        self._skeleton = (separate_heads(copy.deepcopy(net)),)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "BayesianNetwork":
        self._skeleton[0]._apply(fn, recurse)
        result: BayesianNetwork = super()._apply(fn, recurse)
        return result

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
