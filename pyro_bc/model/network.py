"""Networks as Pyro models: Bayesian layers, and any ``nn.Module`` made Bayesian."""

import copy
import fnmatch
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence

import pyro
import torch
from pyro.nn import PyroModule
from pyro.nn.module import to_pyro_module_
from torch import Tensor, nn

from ..errors import UnsupportedNetworkError, UsageError
from ..graph.attention import MultiheadAttention
from ..graph.interface import Output, called
from ..graph.module import evaluating
from ..graph.read import read_graph
from ..priors.base import GroupPrior, Prior
from ..priors.horseshoe import GroupHorseshoe
from ..priors.learned_code import LearnedCode
from ..quantisation.grids import spatial_grids
from ..runtime.inputs import Batch, tensors_of
from .layers import BAYESIAN, BayesianLayer, layer_class
from .likelihoods import Categorical, Likelihood
from .ownership import claim_parameters
from .prepare import prepared

#: a prior for all layers, or a rule ``(name, module) -> prior``, None to leave a layer deterministic.
PriorRule = Prior | Callable[[str, nn.Module], Prior | None]


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
    ``nn.MultiheadAttention`` becomes :class:`~pyro_bc.graph.attention.MultiheadAttention`, whose heads are groups.

    :param module: the network; it is not changed.
    :param prior: one prior for all layers, or a rule ``(name, module) -> Prior | None``, where None leaves a
        layer deterministic.
    :param deterministic: layers to leave as they are: names (``"head"``, ``"stem.*"``), types (``nn.Conv1d``), or
        functions ``(name, module) -> bool``. Layers whose weight does not require a gradient always are, and stay
        as they are; so do other modules with weights (recurrent cells, embeddings), which a warning says unless they
        are named here.
    :raises UnsupportedNetworkError: where no layer becomes Bayesian, or one's weight belongs to another module too.
    :raises UsageError: where a layer's weights are not of torch's default dtype.

    >>> import pyro_bc, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> net = bayesianize(net, pyro_bc.GroupNormalJeffreys(), deterministic=["2"])
    >>> [type(layer).__name__ for layer in net]
    ['BayesianLinear', 'PyroReLU', 'PyroLinear']
    """
    return _bayesian(prepared(module), prior, deterministic)


def _bayesian(net: nn.Module, prior: PriorRule, deterministic: Iterable[Choice]) -> nn.Module:
    """What :func:`bayesianize` makes of a prepared network, which is used up."""
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
            kind = layer_class(layer)
            if id(layer) in chosen and kind is not None:
                converted[id(layer)] = BAYESIAN[kind].from_module(layer, chosen[id(layer)])
            else:
                for name, child in list(layer._modules.items()):
                    if child is not None:
                        setattr(layer, name, convert(child))
        return converted[id(layer)]

    result = convert(net)
    to_pyro_module_(result)
    _keep_frozen_(result)
    return result


def _keep_frozen_(net: nn.Module) -> None:
    """Make buffers of the parameters that are not to be trained: Pyro trains whatever is a parameter."""
    for module in net.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and not parameter.requires_grad:
                del module._parameters[name]
                module.register_buffer(name, parameter.detach())


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
    frozen: list[str] = []
    for name, layer in modules.items():
        if _chosen(name, layer, deterministic):
            continue
        kind = layer_class(layer)
        if kind is None:
            if any(parameter.dim() > 1 for key, parameter in layer.named_parameters(recurse=False) if "weight" in key):
                left.append(f"'{name}' ({type(layer).__name__})")
            continue
        if not layer.weight.requires_grad:
            frozen.append(name)
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
        raise UnsupportedNetworkError(_no_layer(left, frozen))
    if left:
        warnings.warn(
            f"left deterministic, and neither pruned nor rounded by a posterior: {', '.join(left)}", stacklevel=4
        )
    return chosen


def _no_layer(left: list[str], frozen: list[str]) -> str:
    """Why a network has no layer that may become Bayesian, and what to do."""
    if frozen:
        return f"all layers are frozen ({', '.join(frozen)}): call requires_grad_(True) on those that need a posterior"
    kinds = ", ".join(kind.__name__ for kind in BAYESIAN if kind.__module__.startswith("torch"))
    others = f"; what it has are {', '.join(left)}" if left else ""
    return (
        f"the network has no layer to make Bayesian{others}. Needed is one that is trained and computes as one of "
        f"{kinds} does: a subclass with a forward of its own is none"
    )


def _code_over_grids(net: nn.Module) -> dict[str, BayesianLayer]:
    """Give weights the grids that their prior names; the layers whose grids are found with the first batch are left.

    :raises UsageError: where a grid is given for what is no coded weight, or does not fit it.
    """
    found: dict[str, BayesianLayer] = {}
    given: dict[str, Sequence[int]] = {}
    coded: list[str] = []
    for name, layer in net.named_modules():
        if not isinstance(layer, BayesianLayer) or layer.weight_code is None:
            continue
        weights = layer.prior.weights if isinstance(layer.prior, GroupPrior) else layer.prior
        grids = weights.grids if isinstance(weights, LearnedCode) else None
        coded.append(f"{name}.weight")
        if grids == "auto":
            found[name] = layer
        else:
            own = dict(grids) if isinstance(grids, Mapping) else {}
            layer.code_over(own.get(f"{name}.weight", ()))
            given |= own
    for name in given:
        if name not in coded:
            raise UsageError(f"a grid is given for '{name}', but the coded weights are {', '.join(coded)}")
    return found


class BayesianNetwork(PyroModule):
    """Net + prior + likelihood = a Pyro model ``model(x, y=None)`` of one mini-batch, on the network's device.

    :param net: any network with fully connected layers or convolutions, pretrained or not; it is copied.
    :param prior: a prior, or a rule per layer as in :func:`bayesianize`.
    :param deterministic: layers to leave as they are, as in :func:`bayesianize`.
    :param output: which of several outputs of the network the likelihood is of: its name, or its position; None for
        the only one, or ``logits``.
    :param num_data: size of the training set N, by which the mini-batch likelihood is scaled (N/B).
    :param likelihood: of the targets given the outputs.
    :raises UsageError: where ``num_data`` is not a positive integer.

    A batch of inputs is a tensor, or a tuple or a dictionary of tensors, which then go in by name.

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
        output: Output = None,
    ):
        super().__init__()
        self.output = output
        if isinstance(num_data, bool) or not (isinstance(num_data, int) and num_data > 0):
            raise UsageError(f"num_data is the number of training examples, a positive integer, not {num_data!r}")
        ready = prepared(net)
        skeleton = copy.deepcopy(ready)
        self.net = _bayesian(ready, GroupHorseshoe() if prior is None else prior, deterministic)
        self.likelihood = Categorical() if likelihood is None else likelihood
        self.num_data = num_data
        self._over_pictures = _code_over_grids(self.net)
        # What compression fills with the posterior's weights. In a tuple, so that it is no submodule.
        self._skeleton = (skeleton,)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "BayesianNetwork":
        self._skeleton[0]._apply(fn, recurse)
        result: BayesianNetwork = super()._apply(fn, recurse)
        return result

    @property
    def skeleton(self) -> nn.Module:
        """The deterministic network that this model was made from, its deterministic parameters as trained."""
        self._skeleton[0].load_state_dict(self.net.state_dict(), strict=False)
        return self._skeleton[0]

    def _code_over_pictures(self, x: Batch) -> None:
        """Say over what codes are cosine coefficients, where the shape of the input says it, before they are used."""
        layers, self._over_pictures = self._over_pictures, {}
        if layers:
            with torch.no_grad(), evaluating(self.skeleton) as net:
                called(net, x, self.output)  # what does not fit is said as it is of a network without codes
            grids = spatial_grids(read_graph(self.skeleton, x, self.output))
            for name, layer in layers.items():
                layer.code_over(grids.get(f"{name}.weight", ()))

    def forward(self, x: Batch, y: Tensor | None = None) -> Tensor:
        claim_parameters(self, f"{self._pyro_name}." if self._pyro_name else "")
        self._code_over_pictures(x)
        outputs = called(self.net, x, self.output)
        density = self.likelihood(outputs)
        with pyro.plate("data", self.num_data, subsample=tensors_of(x)[0], dim=-1):
            pyro.sample("y", density, obs=y)
        return outputs
