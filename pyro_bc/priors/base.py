r"""What a prior over the weights of a layer is, and how its sites are told from others.

A layer ``fc1`` is a set of Pyro sites named ``fc1.<role>``. A prior fixes the roles, their densities, how the values
combine to a weight, and the statistics by which groups and weights are pruned. It is a scale for groups over a prior
for weights:

=============================  ====================================================  =================================
scale for groups               sites                                                 a group is kept where small
=============================  ====================================================  =================================
none
:class:`GroupNormalJeffreys`   ``scale``                                             log dropout rate of the scale
:class:`GroupHorseshoe`        ``local_a``, ``local_b``, ``global_a``, ``global_b``  negative log-mode of the scale
=============================  ====================================================  =================================

=============================  ====================================================  =================================
prior for weights              site ``weight``                                       a weight is kept where small
=============================  ====================================================  =================================
:class:`StandardNormal`        a weight                                              all are
:class:`LogUniform`            a weight                                              log dropout rate of the weight
:class:`LearnedCode`           an integer code                                       codes that are not 0 are
=============================  ====================================================  =================================

``GroupHorseshoe()`` has standard normal weights, as in the paper; ``GroupHorseshoe(weights=LogUniform())`` prunes
weights as well as groups, and ``LogUniform()`` alone is Sparse VD. A group is an input unit of a fully connected layer
and an output filter of a convolution. Every layer may also have a site ``bias``, with a standard normal prior or a
code of its own. In a fully connected layer it belongs to no group; that of a convolution is multiplied by its filter's
scale, so that a pruned filter's output is zero.

A new prior is one subclass of :class:`Prior`, or of :class:`GroupPrior`; nothing else changes. A Pyro model written by
hand uses the same names, either through :meth:`Prior.sample` or with its own ``pyro.sample`` statements, and is
recognised by them (:func:`find_layers`).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ..errors import UsageError
from ..graph.layer_types import LayerType, layer_type_of_shape


def group_dim(weight_shape: Sequence[int]) -> int:
    """Dimension of a weight that indexes its groups: inputs of a linear layer, filters of a convolution."""
    return layer_type_of_shape(weight_shape).group_axis


def base_distribution(fn: Any) -> Any:
    """The density itself, without ``to_event`` and masks around it."""
    while hasattr(fn, "base_dist") and isinstance(fn, (dist.Independent, dist.MaskedDistribution)):
        fn = fn.base_dist
    return fn


#: what a site's last name part may be for the site to belong to a layer; priors add theirs.
ROLES: set[str] = {"bias"}
_KNOWN: list[type["Prior"]] = []


class Prior(ABC):
    """One prior over a layer's weights: its sites, its statistics and its moments.

    ``q`` in the methods below is the guide of one layer: a mapping from role to the site's variational
    distribution, a ``Normal`` or ``LogNormal`` of the site's shape. ``layer`` is the layer's type, None where the
    shape of its weight says it.
    """

    #: roles of the layer's sites in the order in which they are sampled; ``weight`` comes last.
    roles: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "roles" in cls.__dict__:
            _KNOWN.append(cls)
            ROLES.update(cls.roles)

    @abstractmethod
    def sites(self, weight_shape: Sequence[int], groups: int | None = None) -> dict[str, Any]:
        """Prior density of every role for a weight of shape ``(out, in)`` or ``(out, in, *kernel)``.

        The densities are made on torch's default device, and made anew where a layer moves to another one: what they
        depend on are numbers, not tensors.

        :param groups: how many groups there are; None for one of every entry of the axis that counts them.
        """

    @classmethod
    @abstractmethod
    def recognise(cls, sites: Mapping[str, Any]) -> "Prior | None":
        """The prior behind a layer's sites (role to density), or None where it is another one's."""

    def scale_sites(self, groups: int) -> dict[str, Any]:
        """Prior density of every role behind the scale; none without groups."""
        return {}

    def code(self, values: Tensor, grid: Sequence[int]) -> Any | None:
        """What is learned of one tensor's prior, a module; None where nothing is (:class:`~pyro_bc.LearnedCode`).

        :param values: where the tensor starts.
        :param grid: over which its last entries are coded as cosine coefficients; empty for none.
        """
        return None

    def scale(self, values: Mapping[str, Tensor]) -> Tensor | None:
        """The groups' scales from a value of every role, ``(groups,)``; None without groups."""
        return None

    def weight(self, values: Mapping[str, Tensor], layer: LayerType | None = None) -> Tensor:
        """The layer's weight from a value of every role."""
        weight, scale = values["weight"], self.scale(values)
        if scale is None:
            return weight
        return (layer or layer_type_of_shape(weight.shape)).over_groups(scale, weight.shape) * weight

    def bias(self, values: Mapping[str, Tensor], layer: LayerType | None = None) -> Tensor:
        """The layer's bias from a value of every role, ``bias`` among them, ``(out,)``.

        A convolution's scales multiply its filters' whole output, bias included (Louizos et al. 2017, appendix).
        """
        if not (layer or layer_type_of_shape(values["weight"].shape)).scales_outputs:
            return values["bias"]
        scale = self.scale(values)
        return values["bias"] if scale is None else scale * values["bias"]

    @abstractmethod
    def group_scale(self, q: Mapping[str, Any]) -> Any | None:
        """Marginal posterior of the scale :math:`z_i`, shape ``(groups,)``; None without groups."""

    @abstractmethod
    def statistic(self, q: Mapping[str, Any]) -> Tensor | None:
        """What is thresholded: large means prunable. ``(groups,)``, the weight's shape, or None."""

    def weight_statistic(self, q: Mapping[str, Any]) -> Tensor | None:
        """The statistic of single weights where :meth:`statistic` is that of groups; of the weight's shape, or None."""
        return None

    def initial_values(self, sites: Mapping[str, Any]) -> dict[str, Tensor]:
        """Values at which a guide starts, so that the expected scale is about 1."""
        fn = sites["weight"]
        shape = fn.event_shape or fn.batch_shape
        kind = fn.of_layer[1] if hasattr(fn, "of_layer") else layer_type_of_shape(shape)
        weight = initial_weight(shape, kind)
        return {"weight": fn.of_code.encoded(weight) if hasattr(fn, "of_code") else weight}

    def moments(self, q: Mapping[str, Any], layer: LayerType | None = None) -> tuple[Tensor, Tensor]:
        r"""Posterior mean and variance of every weight (Louizos et al. 2017, eq. 11 and appendix).

        :math:`E[w_{ij}] = E[z_i]\,\mu_{ij}` and
        :math:`V[w_{ij}] = V[z_i](\sigma_{ij}^2 + \mu_{ij}^2) + \sigma_{ij}^2 E[z_i]^2`, which holds for any
        scale that is independent of :math:`\tilde w`.

        :returns: pair of tensors of the weight's shape.
        """
        weight, scale = base_distribution(q["weight"]), self.group_scale(q)
        if scale is None:
            return weight.mean, weight.variance
        shape = weight.mean.shape
        kind = layer or layer_type_of_shape(shape)
        return scaled_moments(weight, kind.over_groups(scale.mean, shape), kind.over_groups(scale.variance, shape))

    def bias_moments(self, q: Mapping[str, Any], layer: LayerType | None = None) -> tuple[Tensor, Tensor]:
        """Posterior mean and variance of the bias that the layer adds, each ``(out,)``; see :meth:`bias`."""
        bias, scale = base_distribution(q["bias"]), self.group_scale(q)
        kind = layer or layer_type_of_shape(base_distribution(q["weight"]).mean.shape)
        if scale is None or not kind.scales_outputs:
            return bias.mean, bias.variance
        return scaled_moments(bias, scale.mean, scale.variance)

    def densities(
        self,
        weight_shape: Sequence[int],
        group_size: int = 1,
        layer: LayerType | None = None,
        bias: bool = False,
        coded: bool = False,
    ) -> dict[str, Any]:
        """:meth:`sites`, and that of a bias if there is one, each of which knows the prior and the layer's type.

        :param group_size: how many neighbouring inputs of a linear layer, a head of an attention, are one group.
        :param coded: whether weight and bias are codes, whose densities (:meth:`code`) are left out.
        """
        kind = layer or layer_type_of_shape(weight_shape)
        groups = weight_shape[kind.group_axis] // group_size
        densities = self.scale_sites(groups) if coded else self.sites(weight_shape, groups)
        if bias and not coded:
            densities = {**densities, "bias": bias_prior(weight_shape[kind.output_axis])}
        for density in densities.values():
            density.of_layer = (self, kind)
        return densities

    def sample(
        self, name: str, weight_shape: Sequence[int], group_size: int = 1, layer: LayerType | None = None
    ) -> Tensor:
        """Sample a layer's weight in a Pyro model: one ``pyro.sample`` statement per role.

        The densities are on torch's default device (``torch.set_default_device``, ``with torch.device(…)``).

        :param name: the layer's name; the sites are called ``<name>.<role>``.
        :param weight_shape: ``(out, in)`` or ``(out, in, *kernel)``.
        :param group_size: how many neighbouring inputs of a linear layer are one group.
        :param layer: the layer's type, where its weight has another shape's.
        :returns: the weight, to be used in ``torch.nn.functional.linear`` or ``conv*d``.
        :raises UsageError: for a prior that learns something, which needs a layer to keep it.

        >>> from pyro_bc import GroupHorseshoe
        >>> weight = GroupHorseshoe().sample("fc1", (3, 2))
        >>> weight.shape
        torch.Size([3, 2])
        """
        densities = self.densities(weight_shape, group_size, layer)
        values = {role: pyro.sample(f"{name}.{role}", fn) for role, fn in densities.items()}
        return self.weight(values, layer)

    def description(self) -> dict[str, Any]:
        """The prior as JSON-able values, from which :func:`described_prior` makes an equal one."""
        itself: Any = self
        values: dict[str, Any] = {}
        if is_dataclass(self):
            values = {own.name: getattr(self, own.name) for own in fields(itself)}
        told = {name: v.description() if isinstance(v, Prior) else v for name, v in values.items()}
        return {"type": type(self).__name__, **told}


class GroupPrior(Prior):
    """A scale for every group over a prior for weights: what :class:`GroupNormalJeffreys` and the like add a scale to.

    Subclasses are dataclasses with a field ``weights``, the prior for weights, which has no groups of its own.
    """

    weights: Prior

    def __post_init__(self) -> None:
        if not isinstance(self.weights, Prior) or self.weights.roles != ("weight",):
            raise UsageError(
                f"{type(self).__name__} takes a prior for weights without groups of its own: StandardNormal(), "
                f"LogUniform() or LearnedCode(), not {self.weights!r}"
            )

    @abstractmethod
    def scale_sites(self, groups: int) -> dict[str, Any]:
        """Prior density of every role behind the scale."""

    def sites(self, weight_shape: Sequence[int], groups: int | None = None) -> dict[str, Any]:
        count = weight_shape[group_dim(weight_shape)] if groups is None else groups
        return {**self.scale_sites(count), **self.weights.sites(weight_shape)}

    def code(self, values: Tensor, grid: Sequence[int]) -> Any | None:
        return self.weights.code(values, grid)

    def weight_statistic(self, q: Mapping[str, Any]) -> Tensor | None:
        return self.weights.statistic(q)

    def balanced_roles(self, layer: LayerType) -> tuple[str, ...]:
        """Normal sites that :meth:`balance_` gives a size: what a scale multiplies that of 1, and the scale its own.

        None where the prior has no such freedom, or :meth:`balance_` does not know it.
        """
        return ()

    def balance_(self, parameters: Mapping[str, tuple[Tensor, ...]], layer: LayerType) -> None:
        """Give the scales the size of what they multiply, in place: the same posterior of weights, and a smaller KL.

        Called where there are :meth:`balanced_roles`.

        :param parameters: location and log-variance of the guide's site of every role, ``bias`` where it is scaled.
        """


def described_prior(description: Mapping[str, Any]) -> Prior:
    """The prior that :meth:`Prior.description` describes.

    :raises UsageError: where its class is not known here.
    """
    kinds = {kind.__name__: kind for kind in _KNOWN}
    values = dict(description)
    name = values.pop("type")
    if name not in kinds:
        raise UsageError(f"the prior '{name}' is not known here: import the module that defines it")
    kind: Any = kinds[name]
    return kind(**{key: described_prior(v) if isinstance(v, dict) and "type" in v else v for key, v in values.items()})


def initial_weight(shape: Sequence[int], layer: LayerType) -> Tensor:
    """Random weights as ``torch.nn.Linear`` and ``torch.nn.Conv`` start with."""
    bound = 1 / math.sqrt(layer.fan_in(shape))
    return torch.empty(tuple(shape)).uniform_(-bound, bound)


def scaled_roles(layer: LayerType) -> tuple[str, ...]:
    """What a group's scale multiplies."""
    return ("weight", "bias") if layer.scales_outputs else ("weight",)


def is_product_of(kind: type[Prior], prior: Prior) -> bool:
    """Whether a prior's weights are the product that they are in this class, and not one of a subclass's own."""
    own = ("scale_sites", "sites", "scale", "weight", "bias", "group_scale", "moments", "bias_moments")
    return all(getattr(type(prior), name) is getattr(kind, name) for name in own)


def group_sizes(parameters: Mapping[str, tuple[Tensor, ...]], layer: LayerType) -> Tensor:
    """Root of the mean square of what each group's scale multiplies, ``(groups,)``: where the KL from N(0, 1) is least.

    :param parameters: location and log-variance by role.
    """
    own, groups = squares(parameters["weight"]), len(parameters["scale"][0])
    of = layer.over_groups(torch.arange(groups, device=own.device), own.shape).expand(own.shape)
    total = own.new_zeros(groups).index_add(0, of.reshape(-1), own.reshape(-1))
    count = torch.bincount(of.reshape(-1), minlength=groups).to(total)
    if layer.scales_outputs and "bias" in parameters:
        total, count = total + squares(parameters["bias"]), count + 1
    return (total / count).sqrt()


def squares(parameters: tuple[Tensor, ...]) -> Tensor:
    """Expected square of a normal's variable, of location and log-variance."""
    loc, log_variance = parameters
    return loc.square() + log_variance.exp()


def divide_(parameters: tuple[Tensor, ...], size: Tensor) -> None:
    """Divide a normal's variable, of location and log-variance, in place."""
    loc, log_variance = parameters
    loc.div_(size)
    log_variance.sub_(2 * size.log())


def scaled_moments(value: Any, scale_mean: Tensor, scale_variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of a density's variable times an independent scale; shapes broadcast."""
    mean, variance = value.mean, value.variance
    return scale_mean * mean, scale_variance * (variance + mean.square()) + variance * scale_mean.square()


def standard_normal(shape: Sequence[int]) -> Any:
    """Independent standard normals, event shape ``shape``."""
    one_number = dist.Normal(torch.zeros(()), torch.ones(()), validate_args=False)
    return one_number.expand(torch.Size(shape)).to_event(len(shape))


def bias_prior(features: int) -> Any:
    """Standard normal over a layer's bias, event shape ``(features,)``."""
    return standard_normal((features,))


class LayerSites(NamedTuple):
    """A layer among a model's sites.

    :param prior: over its weights.
    :param sites: prior density by role.
    :param type: of the layer.
    """

    prior: Prior
    sites: dict[str, Any]
    type: LayerType


def find_layers(densities: Mapping[str, Any]) -> dict[str, LayerSites]:
    """Group a model's latent sites into layers by their names, and tell each layer's prior.

    :param densities: site name to prior density, in the order of the trace.
    :returns: by layer name, in the order of first use. Sites that belong to no layer (a noise scale, say) are left
        out.
    """
    grouped: dict[str, dict[str, Any]] = {}
    for name, fn in densities.items():
        layer, _, role = name.rpartition(".")
        if layer and role in ROLES:
            grouped.setdefault(layer, {})[role] = fn
    layers = {}
    for layer, sites in grouped.items():
        if "weight" not in sites:
            continue
        weight = sites["weight"]
        if hasattr(weight, "of_layer"):
            prior, kind = weight.of_layer
            layers[layer] = LayerSites(prior, sites, kind)
            continue
        recognised = recognised_prior(sites)
        if recognised is not None:
            layers[layer] = LayerSites(recognised, sites, layer_type_of_shape(weight.event_shape or weight.batch_shape))
    return layers


def recognised_prior(sites: Mapping[str, Any]) -> Prior | None:
    """The known prior that recognises these sites as its own, the most specific class where one is another's subclass.

    :raises UsageError: where several do that are not each other's subclasses.
    """
    found = [prior for kind in _KNOWN if (prior := kind.recognise(sites)) is not None]
    specific = [p for p in found if not any(type(q) is not type(p) and isinstance(q, type(p)) for q in found)]
    kinds = sorted({type(prior).__name__ for prior in specific})
    if len(kinds) > 1:
        raise UsageError(
            f"the sites {', '.join(sites)} are recognised by {' and by '.join(kinds)}: make the weight by "
            f"prior.sample(name, shape), which says whose it is, or let recognise of one of them ask for more"
        )
    return specific[0] if specific else None
