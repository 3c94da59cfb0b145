"""A posterior without a training: the curvature of a trained network, as a guide."""

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.initialization import InitMessenger, init_to_feasible
from torch import Tensor

from ..data.loaders import inputs_of
from ..errors import UsageError
from ..graph.interface import called
from ..graph.module import evaluating, same_statistics
from ..graph.nodes import layer_groups, layer_nodes
from ..graph.read import graph_of_same
from ..model.agreement import graph_names
from ..model.network import BayesianNetwork
from ..priors.base import base_distribution, find_layers
from ..priors.kronecker_normal import KroneckerNormal
from ..priors.learned_code import code_of
from ..priors.shared import find_shared
from ..runtime.devices import device_of
from ..runtime.inputs import Batch, head, tensors_of, with_tensors
from ..runtime.random_state import seeded
from .curvature import EXAMPLES, Curvature, collect, density_of
from .guides import Posterior, point_at, posterior_of

# Inputs whose correlations a draw takes account of; those of a wider layer come in as many blocks as it takes.
_WIDEST = 1024

# The least mean square of a site's values that its prior's variance is.
_NARROWEST = 1e-12

# The largest variance at which a fit starts, beside the mean square of the layer's weights.
_NOISIEST = 0.3

# Inputs on which predictions are compared.
_KEPT = 500


class CurvatureGuide(AutoGuide):
    r"""The Gaussian that a trained network's curvature says is its posterior (Ritter, Botev, Barber 2018).

    Means are the network's weights. The rows of a layer's weight have precision :math:`N G_o A + \tau I`
    (:mod:`pyro_bc.posterior.curvature`), biases :math:`N G_o + \tau` and independent of them; scales of groups, where
    the prior has some, are points, as is whatever belongs to no layer. G is that of softened predictions, and
    :math:`1/\tau` the mean square of the site's own values, an empirical prior: a trained network is so sure of what it
    has seen that the Fisher information of its predictions, and a prior that is wider than the weights, leave noise
    that no network bears. It is set up when it is made, in one pass over
    inputs, which need no labels, and there is nothing to train. Elsewhere it is a guide of Pyro's:
    ``guide(x, y)`` draws, and :func:`~pyro_bc.compress`, the export and the diagnostics read it.

    :param model: of a trained network; :func:`~pyro_bc.compress` folds its batch normalisation.
    :param loader: batches of inputs like those that the network will see, alone or as the first of a tuple; several
        inputs are a dictionary, or a tuple in that place.
    :param examples: that are read of them.
    :param seed: of the targets that are drawn from the network's predictions; torch's global generator stays as it is.
    :param progress: whether to show a progress bar.
    :raises UnsupportedNetworkError: where the network is none that :func:`~pyro_bc.compress` can handle.
    :raises UsageError: where the model is no :class:`~pyro_bc.BayesianNetwork`, its weights are learned codes, or the
        loader is empty.

    >>> import pyro_bc, torch
    >>> model = pyro_bc.BayesianNetwork(torch.nn.Sequential(torch.nn.Linear(4, 3)), num_data=100)
    >>> guide = CurvatureGuide(model, [torch.randn(50, 4)], progress=False)
    >>> guide(torch.ones(2, 4))["net.0.weight"].shape
    torch.Size([3, 4])
    """

    def __init__(
        self,
        model: BayesianNetwork,
        loader: Iterable[Any],
        *,
        examples: int = EXAMPLES,
        seed: int = 0,
        progress: bool = True,
    ):
        if not isinstance(model, BayesianNetwork):
            raise UsageError(f"curvature is that of a BayesianNetwork, not of a {type(model).__name__}")
        batches = iter(loader)
        first = next(batches, None)
        x = inputs_of(first)
        if first is None or not len(tensors_of(x)[0]):
            raise UsageError("curvature is collected from batches of inputs, and the loader gives none")
        super().__init__(InitMessenger(init_to_feasible)(model))
        self._source = (model,)
        graph = graph_of_same(model.skeleton, x, model.output)
        with seeded(seed, device_of(model.skeleton)):  # what is drawn to be set up with is no one else's noise
            with torch.no_grad(), evaluating(model.skeleton) as net:
                y = density_of(model.likelihood, called(net, x, model.output)).sample()
            with same_statistics(model):
                self._setup_prototype(x, y)
        assert self.prototype_trace is not None
        sites = dict(self.prototype_trace.iter_stochastic_nodes())
        self.layers = find_layers({name: site["fn"] for name, site in sites.items()})
        if find_shared({name: site["fn"] for name, site in sites.items()}):
            raise UsageError(
                "curvature has no scales that layers share: give the layers' prior alone, instead of ResidualWidth"
            )
        for name, site in sites.items():
            if code_of(site["fn"]) is not None:
                raise UsageError(f"site '{name}' is a learned code: curvature is of weights themselves")
        names = graph_names([name.removeprefix("net.") for name in self.layers], graph, model.skeleton)
        nodes = layer_nodes(graph)
        #: some of the inputs, on which predictions before and after are compared.
        self.examples: Batch = x
        collected = collect(graph, model.likelihood, self._kept(first, batches), examples=examples, seed=seed,
                            progress=progress)  # fmt: skip
        #: of every layer that the network uses, by the layer's name in the model.
        self.curvature: dict[str, Curvature] = {}
        self._groups: dict[str, int] = {}
        for layer in self.layers:
            own = names[layer.removeprefix("net.")]
            if own in collected.layers:
                self.curvature[layer], self._groups[layer] = collected.layers[own], layer_groups(nodes[own])
        #: Fisher information about numbers that belong to no layer, by the tensor's name in the network's graph.
        self.others = collected.others
        self._loc = {name: site["value"].detach().clone() for name, site in sites.items()}
        modules: dict[str, Any] = dict(model.named_modules(remove_duplicate=False))
        for layer, (prior, densities, kind) in self.layers.items():
            with seeded(seed, device_of(model.skeleton)):
                initial = prior.initial_values(densities)
            for role, value in {**initial, **modules[layer].pretrained}.items():
                site = sites[f"{layer}.{role}"]["value"]
                self._loc[f"{layer}.{role}"] = value.detach().to(site.device, copy=True)
            roles = {role: self._loc[f"{layer}.{role}"] for role in densities}
            scale = prior.scale(roles)
            if scale is not None:
                weight = roles["weight"]
                self._loc[f"{layer}.weight"] = weight / kind.over_groups(scale, weight.shape)
                if kind.scales_outputs and "bias" in roles:
                    self._loc[f"{layer}.bias"] = roles["bias"] / scale

    def _kept(self, first: Any, batches: Iterator[Any]) -> Iterator[Any]:
        """All batches; the first few inputs are kept."""
        yield first
        for batch in batches:
            kept = tensors_of(self.examples)
            if len(kept[0]) < _KEPT:
                more = zip(kept, tensors_of(inputs_of(batch)), strict=True)
                self.examples = head(with_tensors(self.examples, [torch.cat(pair) for pair in more]), _KEPT)
            yield batch

    @cached_property
    def densities(self) -> dict[str, Any]:
        """Variational density of every site, of the site's shape as an event."""
        (model,) = self._source
        found: dict[str, Any] = {}
        for name, loc in self._loc.items():
            layer, _, role = name.rpartition(".")
            curvature = self.curvature.get(layer)
            if role == "bias" and curvature is not None:
                deviation = (model.num_data * curvature.softened.to(loc) + _prior_precision(loc)).rsqrt()
                found[name] = dist.Normal(loc, deviation, validate_args=False).to_event(1)
            elif role == "weight" and curvature is not None:
                found[name] = self._weight(layer, loc, curvature, model.num_data)
            else:
                found[name] = dist.Delta(loc, event_dim=loc.dim())
        return found

    def _weight(self, layer: str, loc: Tensor, curvature: Curvature, num_data: int) -> KroneckerNormal:
        kind, groups = self.layers[layer].type, self._groups[layer]
        vectors, precision = [], []
        for inputs in curvature.of(bias=False):
            size = inputs.shape[-1]
            for part in torch.arange(size).tensor_split(-(-size // _WIDEST)):
                block = inputs[:, part[0] : part[-1] + 1, part[0] : part[-1] + 1]
                values, own = torch.linalg.eigh(block.double())
                of_rows = values.clamp_min(0).repeat_interleave(len(curvature.softened) // groups, 0)
                vectors.append(own.to(loc))
                of_data = num_data * curvature.softened[:, None].double() * of_rows
                precision.append((of_data + _prior_precision(loc)).to(loc))
        return KroneckerNormal(loc, vectors, precision, kind, groups)

    def log_variances(self) -> dict[str, Tensor]:
        r"""Where a :class:`~pyro_bc.FactorizedGuide` of the same network may start, :math:`\log\sigma^2` by site.

        The best factorised Gaussian has one over the diagonal of the precision, here of softened predictions
        (:mod:`pyro_bc.posterior.curvature`), and at most a part of the layer's own mean square: beyond, curvature at
        the trained weights says nothing of the noise that they bear. Weights of layers without a curvature are not
        among them, nor are biases and scales.
        """
        (model,) = self._source
        found = {}
        for layer, curvature in self.curvature.items():
            kind, groups, loc = self.layers[layer].type, self._groups[layer], self._loc[f"{layer}.weight"]
            diagonal = torch.cat([a.diagonal(dim1=1, dim2=2) for a in curvature.of(bias=False)], 1).to(loc)
            each = diagonal.repeat_interleave(len(curvature.softened) // groups, 0)
            precision = model.num_data * curvature.softened.to(loc)[:, None] * each + 1
            most = _NOISIEST * float(loc.square().mean())
            variance = kind.from_rows(1 / precision, loc.shape, groups).clamp(1e-12, max(most, 1e-12))
            found[f"{layer}.weight"] = variance.log()
        return found

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw every latent site; the arguments are the model's. Returns ``{site: value}``."""
        return {name: pyro.sample(name, fn) for name, fn in self.densities.items()}

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The centre of every site, ``{site: tensor}``, as in Pyro's autoguides."""
        return dict(self._loc)


def _prior_precision(loc: Tensor) -> float:
    return 1 / max(float(loc.square().mean()), _NARROWEST)


@posterior_of.register
def _curvature(guide: CurvatureGuide) -> Posterior:
    assert guide.prototype_trace is not None
    sites = dict(guide.prototype_trace.iter_stochastic_nodes())
    marginals = {}
    for name, fn in guide.densities.items():
        if isinstance(fn, KroneckerNormal):
            marginals[name] = dist.Normal(fn.mean, fn.variance.sqrt(), validate_args=False)
        elif isinstance(base_distribution(fn), dist.Normal):
            marginals[name] = base_distribution(fn)
        else:
            marginals[name] = point_at(sites[name]["fn"], guide._loc[name])

    def draws(count: int, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        return {name: guide.densities[name].sample((count,)) for name in (marginals if names is None else names)}

    def log_prob(values: Any) -> Tensor:
        free = [name for name, fn in guide.densities.items() if not isinstance(fn, dist.Delta)]
        return torch.stack([guide.densities[name].log_prob(values[name]) for name in free]).sum()

    arguments = guide.prototype_trace.nodes["_INPUT"]["args"]
    return Posterior(guide._source[0], arguments, guide.layers, marginals, draws, log_prob, curvature=guide.curvature,
                     others=guide.others, examples=guide.examples)  # fmt: skip
