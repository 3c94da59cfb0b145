r"""Priors over the weights of a layer, and what each says about pruning.

A layer ``fc1`` is a set of Pyro sites named ``fc1.<role>``. A prior fixes the roles, their densities, how
the values combine to a weight, and the statistic by which groups are pruned:

=============================  ================================================================  ===================
prior                          sites of a layer (all non-centred)                                pruned
=============================  ================================================================  ===================
:class:`GroupNormalJeffreys`   ``scale``, ``weight``                                             groups
:class:`GroupHorseshoe`        ``local_a``, ``local_b``, ``global_a``, ``global_b``, ``weight``  groups
:class:`LogUniform`            ``weight``                                                        single weights
:class:`StandardNormal`        ``weight``                                                        nothing
=============================  ================================================================  ===================

A group is an input unit of a fully connected layer and an output filter of a convolution. Every layer may
also have a site ``bias`` with a standard normal prior. In a fully connected layer it belongs to no group; that
of a convolution is multiplied by its filter's scale, so that a pruned filter's output is zero.

A new prior is one subclass of :class:`Prior`; nothing else changes. A Pyro model written by hand uses the
same names, either through :meth:`Prior.sample` or with its own ``pyro.sample`` statements, and is
recognised by them (:func:`find_layers`).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor


def group_dim(weight_shape: torch.Size | tuple[int, ...]) -> int:
    """Dimension of a weight that indexes its groups: inputs of a linear layer, filters of a convolution."""
    return 1 if len(weight_shape) == 2 else 0


def over_groups(value: Tensor, weight_shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Shape a tensor of one entry per group, ``(groups,)``, for broadcasting against its weight (or bias).

    Where a linear layer has more inputs than groups, a group is as many neighbouring inputs as fit.
    """
    if len(weight_shape) > 2:
        return value.reshape(-1, *[1] * (len(weight_shape) - 1))
    size = weight_shape[-1] // len(value)
    return value if size == 1 else value.repeat_interleave(size)


def base_distribution(fn: Any) -> Any:
    """The density itself, without ``to_event`` and masks around it."""
    while hasattr(fn, "base_dist") and isinstance(fn, (dist.Independent, dist.MaskedDistribution)):
        fn = fn.base_dist
    return fn


#: what a site's last name part may be for the site to belong to a layer; priors add theirs.
ROLES: set[str] = {"bias"}

_KNOWN: list[type["Prior"]] = []


class Prior(ABC):
    """One prior over a layer's weights: its sites, its statistic and its moments.

    ``q`` in the methods below is the guide of one layer: a mapping from role to the site's variational
    distribution, a ``Normal`` or ``LogNormal`` of the site's shape.
    """

    #: roles of the layer's sites in the order in which they are sampled; ``weight`` comes last.
    roles: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "roles" in cls.__dict__:
            _KNOWN.append(cls)
            ROLES.update(cls.roles)

    @abstractmethod
    def sites(self, weight_shape: torch.Size | tuple[int, ...], group_size: int = 1) -> dict[str, Any]:
        """Prior density of every role for a weight of shape ``(out, in)`` or ``(out, in, *kernel)``.

        The densities are made on torch's default device, and made anew where a layer moves to another one: what they
        depend on are numbers, not tensors.

        :param group_size: how many neighbouring inputs of a linear layer, a head of an attention, are one group.
        """

    @classmethod
    @abstractmethod
    def recognise(cls, sites: Mapping[str, Any]) -> "Prior | None":
        """The prior behind a layer's sites (role to density), or None where it is another one's."""

    def scale(self, values: Mapping[str, Tensor]) -> Tensor | None:
        """The groups' scales from a value of every role, ``(groups,)``; None without groups."""
        return None

    def weight(self, values: Mapping[str, Tensor]) -> Tensor:
        """The layer's weight from a value of every role."""
        weight, scale = values["weight"], self.scale(values)
        return weight if scale is None else over_groups(scale, weight.shape) * weight

    def bias(self, values: Mapping[str, Tensor]) -> Tensor:
        """The layer's bias from a value of every role, ``bias`` among them, ``(out,)``.

        A convolution's scales multiply its filters' whole output, bias included (Louizos et al. 2017, appendix).
        """
        bias, scale = values["bias"], self.scale(values)
        return bias if scale is None or group_dim(values["weight"].shape) else scale * bias

    @abstractmethod
    def group_scale(self, q: Mapping[str, Any]) -> Any | None:
        """Marginal posterior of the scale :math:`z_i`, shape ``(groups,)``; None without groups."""

    @abstractmethod
    def statistic(self, q: Mapping[str, Any]) -> Tensor | None:
        """What is thresholded: large means prunable. ``(groups,)``, the weight's shape, or None."""

    def initial_values(self, sites: Mapping[str, Any]) -> dict[str, Tensor]:
        """Values at which a guide starts, so that the expected scale is about 1."""
        shape = sites["weight"].event_shape or sites["weight"].batch_shape
        bound = 1 / math.sqrt(math.prod(shape[1:]))  # as torch.nn.Linear and torch.nn.Conv do
        return {"weight": torch.empty(shape).uniform_(-bound, bound)}

    def moments(self, q: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        r"""Posterior mean and variance of every weight (Louizos et al. 2017, eq. 11 and appendix).

        :math:`E[w_{ij}] = E[z_i]\,\mu_{ij}` and
        :math:`V[w_{ij}] = V[z_i](\sigma_{ij}^2 + \mu_{ij}^2) + \sigma_{ij}^2 E[z_i]^2`, which holds for any
        scale that is independent of :math:`\tilde w`.

        :returns: pair of tensors of the weight's shape.
        """
        weight = base_distribution(q["weight"])
        return _scaled_moments(weight, self.group_scale(q))

    def bias_moments(self, q: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Posterior mean and variance of the bias that the layer adds, each ``(out,)``; see :meth:`bias`."""
        is_linear = group_dim(base_distribution(q["weight"]).loc.shape) == 1
        return _scaled_moments(base_distribution(q["bias"]), None if is_linear else self.group_scale(q))

    def sample(self, name: str, weight_shape: torch.Size | tuple[int, ...], group_size: int = 1) -> Tensor:
        """Sample a layer's weight in a Pyro model: one ``pyro.sample`` statement per role.

        The densities are on torch's default device (``torch.set_default_device``, ``with torch.device(…)``).

        :param name: the layer's name; the sites are called ``<name>.<role>``.
        :param weight_shape: ``(out, in)`` or ``(out, in, *kernel)``.
        :param group_size: as in :meth:`sites`.
        :returns: the weight, to be used in ``torch.nn.functional.linear`` or ``conv*d``.

        >>> weight = GroupHorseshoe().sample("fc1", (3, 2))
        >>> weight.shape
        torch.Size([3, 2])
        """
        values = {role: pyro.sample(f"{name}.{role}", fn) for role, fn in self.sites(weight_shape, group_size).items()}
        return self.weight(values)


def _scaled_moments(normal: Any, scale: Any | None) -> tuple[Tensor, Tensor]:
    """Mean and variance of a normal times an independent scale per group, if any."""
    mean, variance = normal.loc, normal.variance
    if scale is None:
        return mean, variance
    z_mean, z_variance = over_groups(scale.mean, mean.shape), over_groups(scale.variance, mean.shape)
    return z_mean * mean, z_variance * (variance + mean.square()) + variance * z_mean.square()


def standard_normal(shape: torch.Size | tuple[int, ...]) -> Any:
    one_number = dist.Normal(torch.zeros(()), torch.ones(()), validate_args=False)
    return one_number.expand(torch.Size(shape)).to_event(len(shape))


def known_priors() -> tuple[type[Prior], ...]:
    """Every prior class that there is, those of users too."""
    return tuple(_KNOWN)


def bias_prior(features: int) -> Any:
    """Standard normal over a layer's bias, event shape ``(features,)``."""
    return standard_normal((features,))


def find_layers(densities: Mapping[str, Any]) -> dict[str, tuple[Prior, dict[str, Any]]]:
    """Group a model's latent sites into layers by their names, and tell each layer's prior.

    :param densities: site name to prior density, in the order of the trace.
    :returns: layer name to its prior and its ``{role: density}``, in the order of first use. Sites that
        belong to no layer (a noise scale, say) are left out.
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
        for prior_class in _KNOWN:
            prior = prior_class.recognise(sites)
            if prior is not None:
                layers[layer] = (prior, sites)
                break
    return layers
