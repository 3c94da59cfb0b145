"""Networks as Pyro models: Bayesian layers, and any ``nn.Module`` made Bayesian."""

import contextlib
import copy
import fnmatch
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, cast

import pyro
import torch
from pyro.nn import PyroModule
from pyro.nn.module import to_pyro_module_
from torch import Tensor, nn

from ..errors import UnsupportedNetworkError, UsageError
from ..graph.attention import MultiheadAttention
from ..graph.interface import Output, called
from ..graph.layer_types import layer_type
from ..graph.module import evaluating
from ..graph.nodes import Graph, layer_groups, layer_nodes
from ..graph.read import graph_of_same
from ..priors.base import GroupPrior, Prior
from ..priors.horseshoe import GroupHorseshoe
from ..priors.learned_code import LearnedCode
from ..priors.shared import ResidualWidth
from ..quantisation.grids import spatial_grids
from ..runtime.inputs import Batch, tensors_of
from .layers import BAYESIAN, BayesianLayer, layer_class
from .likelihoods import Categorical, Likelihood
from .ownership import claim_parameters
from .prepare import prepared
from .readers import read_from
from .recurrent import BayesianRecurrent, is_recurrent
from .residual import share_scales_

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
    """A Bayesian copy of a network, a ``PyroModule``: linear layers, convolutions, tables and recurrent layers become
    Bayesian ones.

    Sites are named after the modules (``fc1.weight``). The guide starts from the network's present weights,
    whether they were pretrained or freshly initialised. Everything else, deterministic parameters included,
    is copied as it is. A module that is used in several places stays one, under the last of its names.
    ``nn.MultiheadAttention`` becomes :class:`~pyro_bc.graph.attention.MultiheadAttention`, whose heads are groups.

    :param module: the network; it is not changed.
    :param prior: one prior for all layers, or a rule ``(name, module) -> Prior | None``, where None leaves a
        layer deterministic.
    :param deterministic: layers to leave as they are: names (``"head"``, ``"stem.*"``), types (``nn.Conv1d``), or
        functions ``(name, module) -> bool``. Layers whose weight does not require a gradient always are, and stay
        as they are; so do other modules with weights, which a warning says unless they are named here. A weight that
        several modules have is one site, of the first of them that is no table; one of them here keeps it as it is.
    :raises UnsupportedNetworkError: where no layer becomes Bayesian.
    :raises UsageError: where a layer's weights are not of torch's default dtype.

    >>> import pyro_bc, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> net = bayesianize(net, pyro_bc.GroupNormalJeffreys(), deterministic=["2"])
    >>> [type(layer).__name__ for layer in net]
    ['BayesianLinear', 'ReLU', 'Linear']
    """
    if isinstance(prior, ResidualWidth):
        raise UsageError(
            "channels that cross layers are found in a network's graph, which takes an input: give ResidualWidth to "
            "BayesianNetwork, and the layers' own prior here"
        )
    return _bayesian(prepared(module), prior, deterministic, ())


def _bayesian(net: nn.Module, prior: PriorRule, deterministic: Iterable[Choice], plain: Collection[str]) -> nn.Module:
    """What :func:`bayesianize` makes of a prepared network, which is used up.

    :param plain: parameters of no layer that may become latent once an input is known.
    """
    for layer in net.modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            layer.p = 0.0
        elif isinstance(layer, MultiheadAttention):
            layer.dropout = 0.0
    chosen = _layer_priors(net, prior, list(deterministic), plain)
    converted: dict[int, nn.Module] = {}

    def convert(layer: nn.Module) -> nn.Module:
        if id(layer) not in converted:
            converted[id(layer)] = layer
            kind = layer_class(layer)
            if id(layer) in chosen and is_recurrent(layer):
                converted[id(layer)] = BayesianRecurrent(layer, chosen[id(layer)])
            elif id(layer) in chosen and kind is not None:
                converted[id(layer)] = BAYESIAN[kind].from_module(layer, chosen[id(layer)])
            else:
                for name, child in list(layer._modules.items()):
                    if child is not None:
                        setattr(layer, name, convert(child))
        return converted[id(layer)]

    weights = {id(layer.weight): layer for layer in net.modules() if id(layer) in chosen and layer_class(layer)}
    shared = [
        (module, key, weights[id(parameter)])
        for module in net.modules()
        for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
        if id(parameter) in weights and weights[id(parameter)] is not module
    ]
    result = convert(net)
    to_pyro_module_(result)
    _name_classes_as_before(result)
    for name, module in result.named_modules():
        if isinstance(module, BayesianRecurrent):
            module.named_in(name)
    for module, key, owner in shared:
        read_from(module, key, cast(BayesianLayer, converted[id(owner)]))
        padding = getattr(module, "padding_idx", None)
        if padding is not None and not bool(cast(Tensor, owner.weight)[padding].any()):
            cast(BayesianLayer, converted[id(owner)]).hold_zero(padding)
    _keep_frozen_(result)
    return result


def _share_tensors_(net: nn.Module, skeleton: nn.Module) -> None:
    """Let what the guide starts from be the skeleton's own tensors, which nobody changes, where it is the same."""
    own = dict(skeleton.named_parameters(remove_duplicate=False))
    for name, layer in net.named_modules():
        for role, value in getattr(layer, "pretrained", {}).items():
            same = own.get(f"{name}.{role}".removeprefix("."))
            if same is not None and same.shape == value.shape and torch.equal(same, value):
                cast(Any, layer).pretrained[role] = same.detach()


def _keep_frozen_(net: nn.Module) -> None:
    """Make buffers of the parameters that are not to be trained: Pyro trains whatever is a parameter."""
    for module in net.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and not parameter.requires_grad:
                del module._parameters[name]
                module.register_buffer(name, parameter.detach())


def _rule(prior: PriorRule) -> Callable[[str, nn.Module], Prior | None]:
    return prior if callable(prior) else lambda name, layer: prior


def _name_classes_as_before(net: nn.Module) -> None:
    """Give the classes that Pyro made of a network's own their names: a forward may look something up by its class."""
    for kind in {type(module) for module in net.modules()}:
        if kind.__qualname__.endswith("<locals>.result") and issubclass(kind, PyroModule):
            before = kind.__bases__[0]
            kind.__name__, kind.__qualname__, kind.__module__ = (
                before.__name__,
                before.__qualname__,
                before.__module__,
            )


def _layer_priors(
    net: nn.Module, prior: PriorRule, deterministic: list[Choice], plain: Collection[str]
) -> dict[int, Prior]:
    """The prior of every layer that becomes Bayesian, by its ``id``; of those that share a weight, of one."""
    rule = _rule(prior)
    modules = dict(net.named_modules())
    owners = _owners(modules)
    kept = {
        id(p) for name, m in modules.items() if _chosen(name, m, deterministic) for p in m.parameters(recurse=False)
    }
    chosen: dict[int, Prior] = {}
    left: list[str] = []
    frozen: list[str] = []
    frozen_biases: list[str] = []
    for name, layer in modules.items():
        if _chosen(name, layer, deterministic):
            continue
        if is_recurrent(layer):
            if not all(parameter.requires_grad for parameter in layer.parameters()):
                frozen.append(name)
            elif (layer_prior := rule(name, layer)) is not None:
                chosen[id(layer)] = layer_prior
            continue
        if layer_class(layer) is None:
            own = [key for key, p in layer.named_parameters(recurse=False) if "weight" in key and p.dim() > 1]
            if any(f"{name}.{key}".removeprefix(".") not in plain for key in own):
                left.append(f"'{name}' ({type(layer).__name__})")
            continue
        weight = cast(Tensor, layer.weight)
        if not weight.requires_grad:
            frozen.append(name)
            continue
        if owners[id(weight)] != name or id(weight) in kept:
            continue
        layer_prior = rule(name, layer)
        if layer_prior is not None:
            chosen[id(layer)] = layer_prior
            bias = getattr(layer, "bias", None)
            if isinstance(bias, Tensor) and not bias.requires_grad:
                frozen_biases.append(name)
    if frozen_biases:
        warnings.warn(
            f"a bias that is frozen is no more where its layer becomes Bayesian: {', '.join(frozen_biases)}. Freeze "
            f"the weight, too, or name the layer in deterministic",
            stacklevel=4,
        )
    if not chosen and not plain:
        raise UnsupportedNetworkError(_no_layer(left, frozen))
    if left:
        _say_left(left)
    return chosen


def _owners(modules: Mapping[str, nn.Module]) -> dict[int, str]:
    """The name of the layer that has the site of each weight, by the weight's ``id``: a table only where none else."""
    owners: dict[int, str] = {}
    for is_table in (False, True):
        for name, layer in modules.items():
            kind = layer_class(layer)
            if kind is not None and BAYESIAN[kind].layer_type.is_lookup == is_table:
                owners.setdefault(id(layer.weight), name)
    return owners


def _say_left(left: Iterable[str]) -> None:
    warnings.warn(f"left deterministic, and neither pruned nor rounded by a posterior: {', '.join(left)}", stacklevel=5)


def _plain_parameters(net: nn.Module, prior: PriorRule, deterministic: list[Choice]) -> dict[str, Prior]:
    """Priors of the parameters of the user's own modules that are in no layer, by name: what reads them is not known.

    They become latent where the network's graph multiplies with them as a layer does.
    """
    rule = _rule(prior)
    found: dict[str, Prior] = {}
    layers = {id(parameter) for layer in net.modules() if layer_class(layer) for parameter in layer.parameters(False)}
    for owner_name, owner in net.named_modules():
        is_torchs = type(owner) is not nn.Module and type(owner).__module__.startswith("torch.nn.")
        if layer_class(owner) is not None or is_torchs:
            continue
        for key, parameter in owner.named_parameters(recurse=False):
            name = f"{owner_name}.{key}".removeprefix(".")
            if parameter.dim() < 2 or not parameter.requires_grad or id(parameter) in layers:
                continue
            if parameter.dim() > 2 and len(parameter) == 1:  # an offset of every example, such as a position's
                continue
            if parameter.dtype != torch.get_default_dtype() or _chosen(owner_name, owner, deterministic):
                continue
            own = None if _chosen(name, owner, deterministic) else rule(name, owner)
            if own is not None:
                found[name] = own
    return found


def _make_latent_(net: nn.Module, plain: Mapping[str, Prior], graph: Graph) -> list[str]:
    """Make layers of the parameters that a graph multiplies with; the names of the others.

    :param net: a ``PyroModule`` that computes the graph.
    :param plain: priors by the names of the parameters.
    """
    left = dict.fromkeys(plain)
    parameters = dict(net.named_parameters(remove_duplicate=False))
    holders: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in net.modules():
        for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            holders.setdefault(id(parameter), []).append((module, key))
    for layer, node in layer_nodes(graph).items():
        weight = graph.origins.get(f"{layer}.weight", f"{layer}.weight")
        value = parameters.get(weight)
        names = [name for name in left if parameters.get(name) is value]
        if value is None or not names or (layer_type(node.op).is_transposed and layer_groups(node) > 1):
            continue
        bias = node.args[2].name if len(node.args) > 2 and node.args[2] is not None else ""
        bias = graph.origins.get(bias, bias)
        bias_value = parameters.get(bias)
        turned = f"{layer}.weight" in graph.turned
        own = value.detach().T.contiguous() if turned else value.detach().clone()
        own_bias = None if bias_value is None else bias_value.detach().clone()
        made = BAYESIAN[layer_type(node.op).module].of_weight(own, own_bias, plain[names[0]])
        made.in_network = {"weight": (names[0], turned), "bias": (bias, False)}
        owner, _, key = names[0].rpartition(".")
        of_weight, of_bias = holders[id(value)], holders.get(id(bias_value), [])
        for module, name in of_weight:
            module._parameters.pop(name)
        setattr(net.get_submodule(owner), key, made)
        for module, name in of_weight:
            read_from(module, name, made, "weight", turned)
        for module, name in of_bias:
            read_from(module, name, made, "bias")
        for name in names:
            del left[name]
    return list(left)


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

    :param net: any network with layers that can become Bayesian, pretrained or not; it is copied. Parameters of its own
        modules that it multiplies with as a layer does (``F.linear(x, self.w)``, ``x @ self.w``, ``F.conv2d``) become
        layers of their names with the first input, whose graph says so.
    :param prior: a prior, or a rule per layer as in :func:`bayesianize`; or :class:`~pyro_bc.ResidualWidth`, one of
        these and a prior over channels that cross layers.
    :param deterministic: layers to leave as they are, as in :func:`bayesianize`.
    :param output: which of several outputs of the network the likelihood is of: its name, or its position; None for
        the only one, or ``logits``.
    :param num_data: size of the training set N, by which the mini-batch likelihood is scaled (N/B).
    :param likelihood: of the targets given the outputs.
    :raises UsageError: where ``num_data`` is not a positive integer.

    A batch of inputs is a tensor, or a tuple or a dictionary of tensors, which then go in by name.

    Sites: ``net.<layer>.<role>`` for every layer, ``residual.<number>.<role>`` for the channels of residual streams,
    those of the likelihood, and the observed ``y`` inside the
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
        prior, deterministic = GroupHorseshoe() if prior is None else prior, list(deterministic)
        self._width = prior.width if isinstance(prior, ResidualWidth) else None
        #: scales that layers share, one for each residual stream; empty until the first input says where those are.
        self.residual: Any = cast(Any, PyroModule)[nn.ModuleList]([])
        self._plain = _plain_parameters(ready, prior, deterministic)
        self.net = _bayesian(ready, prior, deterministic, self._plain)
        self.likelihood = Categorical() if likelihood is None else likelihood
        self.num_data = num_data
        self._over_pictures = _code_over_grids(self.net)
        _share_tensors_(self.net, skeleton)
        # What compression fills with the posterior's weights. In a tuple, so that it is no submodule.
        self._skeleton = (skeleton,)
        changing = self.net.state_dict()
        #: by name, what training changes of the network itself, as it was.
        self._before = {name: own.clone() for name, own in skeleton.state_dict().items() if name in changing}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "BayesianNetwork":
        self._skeleton[0]._apply(fn, recurse)
        self._before = {name: fn(own) for name, own in self._before.items()}
        result: BayesianNetwork = super()._apply(fn, recurse)
        return result

    @property
    def skeleton(self) -> nn.Module:
        """The deterministic network that this model was made from, its deterministic parameters as trained."""
        self._skeleton[0].load_state_dict(self.net.state_dict(), strict=False)
        return self._skeleton[0]

    @property
    def original(self) -> nn.Module:
        """A copy of the network that this model was made from, as it was then; rises are counted from it."""
        net = copy.deepcopy(self._skeleton[0])
        net.load_state_dict(self._before, strict=False)
        return net

    def _code_over_pictures(self, x: Batch) -> None:
        """Say over what codes are cosine coefficients, where the shape of the input says it, before they are used."""
        layers, self._over_pictures = self._over_pictures, {}
        if layers:
            with torch.no_grad(), evaluating(self.skeleton) as net:
                called(net, x, self.output)  # what does not fit is said as it is of a network without codes
            grids = spatial_grids(graph_of_same(self.skeleton, x, self.output))
            for name, layer in layers.items():
                layer.code_over(grids.get(f"{name}.weight", ()))

    def _make_latent(self, x: Batch) -> None:
        """Make latent what the network multiplies with and is in no layer, once there is an input to read it with."""
        plain, self._plain = self._plain, {}
        if not plain:
            return
        left = list(plain)
        with contextlib.suppress(UnsupportedNetworkError):  # which the guide says
            left = _make_latent_(self.net, plain, graph_of_same(self.skeleton, x, self.output))
        if not any(isinstance(module, BayesianLayer) for module in self.net.modules()):
            raise UnsupportedNetworkError(_no_layer([f"'{name}'" for name in left], []))
        if left:
            _say_left(f"'{name}'" for name in left)

    def _share_scales(self, x: Batch) -> None:
        """Give residual streams their scales, once there is an input to read the network with."""
        if self._width is None or len(self.residual):
            return
        graph = graph_of_same(self.skeleton, x, self.output)
        for scale in share_scales_(self.net, self.skeleton, graph, self._width):
            self.residual.append(scale.to(tensors_of(x)[0].device))

    def forward(self, x: Batch, y: Tensor | None = None) -> Tensor:
        self._make_latent(x)
        self._share_scales(x)
        claim_parameters(self, f"{self._pyro_name}." if self._pyro_name else "")
        self._code_over_pictures(x)
        for shared in self.residual:  # before what they scale
            _ = shared.scale
        outputs = called(self.net, x, self.output)
        if torch.is_autocast_enabled(outputs.device.type):
            outputs = outputs.float()  # log-densities are sums
        density, examples = self.likelihood(outputs), tensors_of(x)[0]
        targets = density.batch_shape[-1:]
        if targets and targets[0] not in (1, len(examples)):
            raise UnsupportedNetworkError(
                f"the network's output does not keep its examples in front: of {len(examples)} it makes outputs of "
                f"shape {tuple(outputs.shape)}, which say {targets[0]} targets"
            )
        with pyro.plate("data", self.num_data, subsample=examples, dim=-1):
            pyro.sample("y", density, obs=y)
        return outputs
