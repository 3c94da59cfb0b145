r"""The paper's factorised variational families as one Pyro autoguide.

=====================  ===================  ==============================================
density of a site      family               parameters in the param store
=====================  ===================  ==============================================
on the real line       ``Normal``           ``FactorizedGuide.locs.<site>`` and
of positive numbers    ``LogNormal``        ``FactorizedGuide.log_variances.<site>``
a learned code         ``Cell``             ``FactorizedGuide.locs.<site>``
=====================  ===================  ==============================================

The log-normal's parameters are those of its logarithm. Variances are kept as unconstrained logarithms,
since the rate at which they may grow, :math:`d\log\sigma^2/dt`, sets how soon groups die and deserves a
learning rate of its own (:func:`pyro_bc.fit`).
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from operator import attrgetter
from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.initialization import InitMessenger, init_to_feasible
from pyro.infer.autoguide.utils import deep_setattr
from pyro.nn import PyroModule, PyroParam
from pyro.ops.tensor_utils import periodic_repeat
from torch import Tensor, nn
from torch.distributions import constraints

from ..errors import UnsupportedSiteError, UsageError
from ..graph.layer_types import LayerType
from ..graph.module import same_statistics
from ..priors.base import GroupPrior, LayerSites, base_distribution, find_layers
from ..priors.cells import Cell, LaplaceCells
from ..priors.mean_field_normal import MeanFieldNormal
from ..priors.shared import SharedScale, find_shared, initial_scale
from .agreement import obstacle
from .ending import said_of_outputs
from .ownership import claim_parameters, forget_others


def _family(name: str, fn: Any) -> Any:
    """``MeanFieldNormal``, ``LogNormal`` or ``Cell``, by the density ``fn`` at site ``name`` or its support."""
    if isinstance(base_distribution(fn), LaplaceCells):
        return Cell
    support = base_distribution(fn).support
    if support is constraints.real:
        return MeanFieldNormal
    half_lines = (constraints.greater_than, constraints.greater_than_eq)
    if isinstance(support, half_lines) and bool(torch.as_tensor(support.lower_bound == 0).all()):
        return dist.LogNormal
    raise UnsupportedSiteError(
        f"site '{name}' ({type(base_distribution(fn)).__name__}) has support {fn.support}; FactorizedGuide covers "
        f"real and positive sites. Give this site a guide of its own and combine both with AutoGuideList"
    )


# Where log-variances start, as in the reference code of Louizos et al. 2017.
_INITIAL_LOG_VARIANCE = -9.0

# The least log-variance whose exponential is still a positive float32.
_SMALLEST = -170.0


class FactorizedGuide(AutoGuide):
    r"""Mean-field guide of a model whose layers carry the priors of :mod:`pyro_bc.priors.base`.

    It behaves like Pyro's autoguides: it sets itself up on the first call, with that call's arguments, and
    works with ``SVI``, with ``Trace_ELBO`` and ``TraceMeanField_ELBO``, as an ``nn.Module`` under a torch
    optimiser, and with ``Predictive``. Unlike ``AutoNormal`` it puts the family itself at each site, so that
    ``TraceMeanField_ELBO`` finds the closed-form KL.

    Layers start from the weights of the network they were made from, if any, with an expected scale near 1;
    sites of no layer start at ``init_loc_fn``.

    :param model: a Pyro model: a :class:`~pyro_bc.BayesianNetwork` or any callable.
    :param init_log_variance: where every :math:`\log\sigma^2` starts (the reference code: −9); or tensors by the names
        of sites, of their shapes, such as :meth:`pyro_bc.CurvatureGuide.log_variances`, and −9 for the others.
    :param init_loc_fn: per-site initialisation of sites that are in no layer, as in Pyro's autoguides.
    :raises UnsupportedSiteError: on the first call, where a site is neither real nor positive.
    :raises UsageError: there, where Pyro's store holds parameters of these names, but of other shapes, or a tensor of
        ``init_log_variance`` does not fit its site.

    >>> import pyro_bc, torch
    >>> model = pyro_bc.BayesianNetwork(torch.nn.Linear(4, 3), prior=pyro_bc.GroupNormalJeffreys(), num_data=8)
    >>> guide = FactorizedGuide(model)
    >>> sorted(guide(torch.ones(2, 4), torch.tensor([0, 1])))
    ['net.bias', 'net.scale', 'net.weight']
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        init_log_variance: float | Mapping[str, Tensor] = _INITIAL_LOG_VARIANCE,
        init_loc_fn: Callable[..., Any] = init_to_feasible,
        create_plates: Callable[..., Any] | None = None,
    ):
        super().__init__(InitMessenger(init_loc_fn)(model), create_plates=create_plates)
        self._source = (model,)  # not a submodule: its parameters are the model's
        self.init_log_variance = init_log_variance
        self.layers: dict[str, LayerSites] = {}
        #: scales that layers share, by the name of their sites.
        self.shared: dict[str, SharedScale] = {}
        #: weight that the KL had in :func:`~pyro_bc.fit`; 1 for a loop of one's own, which may say another.
        self.kl_weight = 1.0
        #: why :func:`~pyro_bc.compress` will refuse the model's network, as far as it is known; None where it will not.
        self.obstacle: str | None = None

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        forget_others(f"{self._pyro_name}.", self)
        with same_statistics(self._source[0]):  # values of latents are no one's yet
            super()._setup_prototype(*args, **kwargs)
        assert self.prototype_trace is not None
        sites = dict(self.prototype_trace.iter_stochastic_nodes())
        self.families = {name: _family(name, site["fn"]) for name, site in sites.items()}
        densities = {name: site["fn"] for name, site in sites.items()}
        self.layers, self.shared = find_layers(densities), find_shared(densities)
        self.locs = PyroModule()
        self.log_variances = PyroModule()
        initial = self._initial_values()
        for name, site in sites.items():
            value = initial.get(name, site["value"]).detach().clone().to(site["value"].device)
            for frame in site["cond_indep_stack"]:
                full_size = frame.full_size or frame.size
                if full_size != frame.size:  # a site inside a subsampled plate has one entry per datum
                    value = periodic_repeat(value, full_size, frame.dim - site["fn"].event_dim).contiguous()
            loc = value.log() if self.families[name] is dist.LogNormal else value
            event_dim = site["fn"].event_dim
            trees = [(self.locs, loc)]
            if self.families[name] is not Cell:  # a cell is as wide as a step
                trees.append((self.log_variances, self._initial_log_variance(name, loc)))
            for tree, parameter in trees:
                # In a plate, Pyro cuts a parameter with an event dimension down to the mini-batch.
                local = PyroParam(parameter, constraints.real, event_dim) if site["cond_indep_stack"] else None
                deep_setattr(tree, name, local or nn.Parameter(parameter))
                if attrgetter(name)(tree).shape != parameter.shape:
                    raise UsageError(
                        f"Pyro's parameter store holds another model's parameters for site '{name}', of another shape; "
                        f"call pyro.clear_param_store() before a new guide's first call"
                    )
        claim_parameters(self, f"{self._pyro_name}.")
        (model,) = self._source
        for site in sites.values():  # of which shapes are asked for, and no numbers
            site["value"] = site["value"].new_zeros(()).expand(site["value"].shape)
        self.obstacle = obstacle(model, self.layers, self.shared, self._centre(), args)
        if self.obstacle is not None:
            warnings.warn(f"the network cannot be compressed: {self.obstacle}", stacklevel=6)
        if said := said_of_outputs(model, args):
            warnings.warn(said, stacklevel=6)

    def _initial_log_variance(self, name: str, loc: Tensor) -> Tensor:
        given = self.init_log_variance
        if not isinstance(given, Mapping):
            return torch.full_like(loc, given)
        if name not in given:
            return torch.full_like(loc, _INITIAL_LOG_VARIANCE)
        if given[name].shape != loc.shape:
            raise UsageError(
                f"init_log_variance['{name}'] has shape {tuple(given[name].shape)}, but the site {tuple(loc.shape)}"
            )
        return given[name].detach().to(loc).clone()

    def _initial_values(self) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        for layer, (prior, densities, _) in self.layers.items():
            for role, value in prior.initial_values(densities).items():
                values[f"{layer}.{role}"] = value
        for name, own in self.shared.items():
            values |= {f"{name}.{role}": value for role, value in initial_scale(own).items()}
        (model,) = self._source
        for path, module in model.named_modules(remove_duplicate=False) if isinstance(model, nn.Module) else ():
            for role, value in getattr(module, "pretrained", {}).items():
                code = getattr(module, f"{role}_code", None)
                values[f"{path}.{role}" if path else role] = value if code is None else code.encoded(value)
        return values

    def _require_setup(self) -> None:
        if self.prototype_trace is None:
            raise RuntimeError(
                "the guide has not been set up: call it, or one training step, with a batch of data first"
            )

    def distribution(self, name: str) -> Any:
        """The variational distribution of one site, of its shape: a ``Normal``, ``LogNormal`` or ``Cell``."""
        return self.build(name, *(attrgetter(name)(tree) for tree in self._trees(name)))

    def _trees(self, name: str) -> list[Any]:
        """The modules that hold the parameters of one site."""
        return [self.locs] if self.families[name] is Cell else [self.locs, self.log_variances]

    @torch.no_grad()
    def balance_(self) -> None:
        """Let scales have the size of their groups' weights, in place: the same posterior of the network's weights.

        Trained weights are small beside the N(0, 1) of which priors are made, and scales start at 1. As a product they
        stay what they are, and the KL of weights falls at once by what a training would need thousands of steps for
        (:meth:`~pyro_bc.priors.base.GroupPrior.balance_`).
        """
        for prior, kind, parameters in self.balanced():
            prior.balance_(parameters, kind)

    def balanced(self) -> Iterator[tuple[GroupPrior, LayerType, dict[str, tuple[Tensor, ...]]]]:
        """Of layers whose product :meth:`balance_` knows: prior, type, and the parameters of their sites by role.

        Those are what a prior made: whoever writes ``pyro.sample`` statements for scale and weight multiplies them by
        a rule of their own.
        """
        for name, (prior, densities, kind) in self.layers.items():
            own = [role for role, density in densities.items() if hasattr(density, "of_layer")]
            if "weight" in own and isinstance(prior, GroupPrior) and prior.balanced_roles(kind):
                yield prior, kind, {role: self.parameters_of(f"{name}.{role}") for role in own}

    def parameters_of(self, name: str) -> tuple[Tensor, ...]:
        """Location and, but for a cell, log-variance of one site, read without ``pyro.param`` statements."""
        path, _, leaf = name.rpartition(".")
        found = []
        for tree in self._trees(name):
            own = tree.get_submodule(path)._parameters
            # A site in a plate has an unconstrained one; it is real all the same.
            found.append(cast(Tensor, own[leaf if leaf in own else f"{leaf}_unconstrained"]))
        return tuple(found)

    def build(self, name: str, loc: Tensor, *log_variances: Tensor) -> Any:
        """The variational distribution of one site with these parameters."""
        if self.families[name] is Cell:
            return Cell(loc)
        (log_variance,) = log_variances
        if self.families[name] is MeanFieldNormal:
            return MeanFieldNormal(loc, log_variance)
        # A scale must not be 0, however small.
        return dist.LogNormal(loc, (0.5 * log_variance.clamp_min(_SMALLEST)).exp(), validate_args=False)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample every latent site; the arguments are the model's. Returns ``{site: value}``."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        else:
            claim_parameters(self, f"{self._pyro_name}.")
        assert self.prototype_trace is not None
        plates = self._create_plates(*args, **kwargs)
        result = {}
        for name, site in self.prototype_trace.iter_stochastic_nodes():
            with ExitStack() as stack:
                for frame in site["cond_indep_stack"]:
                    if frame.vectorized:
                        stack.enter_context(plates[frame.name])
                q = self.distribution(name)
                result[name] = pyro.sample(name, q.to_event(site["fn"].event_dim))
        return result

    def posterior(self) -> dict[str, Any]:
        """Variational distribution of every site, detached: ``{site: Normal | LogNormal | Cell}``.

        :raises UsageError: where a site's is NaN.
        """
        self._require_setup()
        for name in self.families:
            if any(bool(parameter.isnan().any()) for parameter in self.parameters_of(name)):
                raise UsageError(f"the posterior of site '{name}' is NaN; fit it anew, with smaller learning rates")
        return {
            name: self.build(name, *(parameter.detach() for parameter in self.parameters_of(name)))
            for name in self.families
        }

    def _centre(self) -> dict[str, Tensor]:
        """Medians as they lie in the parameters, which a copy of large layers would double."""
        found = {}
        for name, family in self.families.items():
            loc = self.parameters_of(name)[0].detach()
            found[name] = loc.exp() if family is dist.LogNormal else loc
        return found

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Posterior median of every site, ``{site: tensor}``, as in Pyro's autoguides."""
        return {name: values[0] for name, values in self.quantiles([0.5]).items()}

    def quantiles(self, quantiles: Iterable[float], *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Posterior quantiles, ``{site: tensor of shape (len(quantiles), *site)}``.

        >>> import pyro_bc, torch
        >>> guide = FactorizedGuide(pyro_bc.BayesianNetwork(torch.nn.Linear(4, 3), num_data=8))
        >>> _ = guide(torch.ones(2, 4), torch.tensor([0, 1]))
        >>> guide.quantiles([0.05, 0.95])["net.weight"].shape
        torch.Size([2, 3, 4])
        """
        levels = torch.as_tensor(list(quantiles), dtype=torch.get_default_dtype())
        result = {}
        for name, q in self.posterior().items():
            level = levels.to(q.mean).reshape(-1, *[1] * q.mean.dim())
            result[name] = q.icdf(level.expand(-1, *q.mean.shape))
        return result
