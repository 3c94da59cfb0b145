"""What the fit knows about each layer: moments of every weight, and the statistic that prunes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UsageError
from ..model.guide import FactorizedGuide
from ..priors.base import Prior, group_dim

_BEYOND = 1e4


@dataclass(frozen=True)
class LayerPosterior:
    """Posterior summary of one layer; all tensors detached and on the CPU.

    :param name: the layer's name in the model (``net.fc1``).
    :param prior: its prior.
    :param weight_mean: ``(out, in)`` or ``(out, in, *kernel)``.
    :param weight_variance: the same shape.
    :param bias_mean: ``(out,)`` or None.
    :param bias_variance: ``(out,)`` or None.
    :param statistic: large where prunable: ``(groups,)``, the weight's shape, or None (nothing is pruned).
    """

    name: str
    prior: Prior
    weight_mean: Tensor
    weight_variance: Tensor
    bias_mean: Tensor | None
    bias_variance: Tensor | None
    statistic: Tensor | None

    @property
    def group_dim(self) -> int:
        """Dimension of the weight that indexes its groups."""
        return group_dim(self.weight_mean.shape)

    def over_weights(self, per_group: Tensor) -> Tensor:
        """A tensor of one entry per group, shaped for broadcasting against the weight."""
        size = self.weight_mean.shape[self.group_dim]
        shape = [1] * self.weight_mean.dim()
        shape[self.group_dim] = size
        return per_group.repeat_interleave(size // len(per_group)).reshape(shape)

    def signal_to_noise(self) -> Tensor:
        r"""The largest :math:`E[w]^2 / V[w]` in each group, ``(groups,)``; that of each weight for per-weight priors.

        At most 1 means that no weight of the group is told from zero by more than its own noise.
        """
        ratio = self.weight_mean.square() / self.weight_variance
        return ratio if self.per_weight else self._by_group(ratio).amax(1)

    def information(self) -> Tensor:
        r"""What the posterior knows of each group, in nats: :math:`\tfrac12 \sum \log(1 + E[w]^2/V[w])`.

        It is the rate at which a Gaussian channel of that signal and noise carries the weights. ``(groups,)``; of
        each weight for per-weight priors.
        """
        nats = 0.5 * torch.log1p(self.weight_mean.square() / self.weight_variance)
        return nats if self.per_weight else self._by_group(nats).sum(1)

    def _by_group(self, values: Tensor) -> Tensor:
        """Values of the weight's shape as rows, one for each group, ``(groups, …)``."""
        groups = values.shape[self.group_dim] if self.statistic is None else len(self.statistic)
        return values.movedim(self.group_dim, 0).reshape(groups, -1)

    @property
    def per_weight(self) -> bool:
        """Whether single weights are pruned instead of groups."""
        return self.statistic is not None and self.statistic.shape == self.weight_mean.shape


@torch.no_grad()
def summarize(guide: FactorizedGuide) -> dict[str, LayerPosterior]:
    """Posterior summary of every layer of a fitted guide, in the order of the network.

    :raises RuntimeError: where the guide has not been set up by a first call.
    :raises UsageError: where a site's posterior is NaN.
    """
    guide._require_setup()
    for name in guide.families:
        if any(bool(parameter.isnan().any()) for parameter in guide.parameters_of(name)):
            raise UsageError(f"the posterior of site '{name}' is NaN; fit it anew, with smaller learning rates")
    q = guide.posterior()
    layers = {}
    for name, (prior, sites) in guide.layers.items():
        layer_q = {role: q[f"{name}.{role}"] for role in sites}
        mean, variance = prior.moments(layer_q)
        bias_mean, bias_variance = prior.bias_moments(layer_q) if "bias" in layer_q else (None, None)
        statistic = prior.statistic(layer_q)
        layers[name] = LayerPosterior(
            name=name,
            prior=prior,
            weight_mean=mean.cpu(),
            weight_variance=variance.cpu(),
            bias_mean=None if bias_mean is None else bias_mean.cpu(),
            bias_variance=None if bias_variance is None else bias_variance.cpu(),
            # Logarithms of variances that are 0 or infinite, as numbers beyond all others.
            statistic=None if statistic is None else statistic.cpu().clamp(-_BEYOND, _BEYOND),
        )
    return layers
