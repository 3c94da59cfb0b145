"""How far a fit can be trusted: importance ratios, calibration, agreement of several fits.

What ArviZ has is ArviZ's: ``az.loo``, ``az.waic`` and ``az.compare`` take what :func:`~pyro_bc.to_inference_data`
gives for points of the training set.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..model.network import BayesianNetwork
from ..posterior.guides import Posterior, posterior_of
from ..posterior.in_place import network_with
from ..posterior.predictive import observed_sites, outputs, sites
from ..posterior.summary import summarize
from ..runtime.random_state import seeded
from .arviz import arviz_package, is_before_1

#: above this k the importance ratios have no finite mean that a sample could find (Vehtari et al. 2024).
RELIABLE_K = 0.7

# Logarithms of ratios that are no further apart are alike.
_ALIKE = 1e-3


@torch.no_grad()
def error_percent(net: nn.Module, x: Tensor, y: Tensor, batch_size: int = 1000) -> float:
    """Classification error in percent, from the count of wrong answers."""
    net.eval()
    wrong = sum(
        int((net(part).argmax(1) != target).sum())
        for part, target in zip(x.split(batch_size), y.split(batch_size), strict=True)
    )
    return 100 * wrong / len(x)


@dataclass(frozen=True)
class ImportanceRatios:
    """Pareto smoothed importance sampling of a fit (Yao et al. 2018).

    :param k: shape of the generalised Pareto distribution of the largest ratios :math:`p(D, w)/q(w)`; infinite where
        one ratio outweighs all others, so that nothing can be fitted.
    :param log_ratios: of every draw up to a constant, ``(draws,)``.
    """

    k: float
    log_ratios: np.ndarray

    @property
    def message(self) -> str:
        """What this k says, in words."""
        figure = f"Pareto k = {self.k:.2f} from {len(self.log_ratios)} draws"
        if not np.isfinite(self.k):
            figure = f"No Pareto k, as one of {len(self.log_ratios)} draws outweighs all others: as good as infinite"
        if self.k <= 0.5:
            return f"{figure}: the fit is close to the posterior; importance weights would correct what is left."
        if self.k <= RELIABLE_K:
            return f"{figure}: the fit is good enough for importance weights to correct it, slowly."
        return (
            f"{figure}, above {RELIABLE_K}: the fit and the exact posterior differ too much for importance weights to "
            f"correct one by the other. A factorised posterior of a neural network always looks like that: it has one "
            f"mode and no correlations. Read its variances as how much each weight may be changed around this mode, "
            f"and judge the network by its error on held-out data."
        )


@torch.no_grad()
def importance_ratios(
    guide: Any, x: Tensor, y: Tensor, *, draws: int = 200, kl_weight: float = 1.0, seed: int = 0
) -> ImportanceRatios:
    """Importance ratios of the exact posterior over the fitted one.

    :param guide: fitted.
    :param x: inputs of the whole training set, or of a part: its log-likelihood then stands for all (N over its size).
    :param y: their targets.
    :param draws: from the fitted posterior, each one pass over the points.
    :param kl_weight: with which the guide was fitted: the posterior it aims at has the likelihood to the power
        ``1 / kl_weight``.
    :raises UsageError: on fewer than 25 draws, whose tail says nothing, or a ``kl_weight`` that is not positive.
    """
    if draws < 25:
        raise UsageError(f"a Pareto tail needs 25 draws or more, not {draws}")
    if not kl_weight > 0:
        raise UsageError(f"without a KL (kl_weight {kl_weight!r}) there is no posterior to compare the fit with")
    posterior = posterior_of(guide)
    model = posterior.model
    ratios = []
    count = _examples(model, posterior.centre(), x, y)
    with seeded(seed, posterior.device):
        for _ in range(draws):
            draw = _one_draw(posterior)
            log_q = posterior.log_prob(draw)
            log_likelihood = 0.0
            for x_part, y_part in zip(x.split(1000), y.split(1000), strict=True):
                for site in observed_sites(model, draw, x_part, y_part).values():
                    log_likelihood = log_likelihood + site["fn"].log_prob(site["value"]).sum()
            log_likelihood = log_likelihood * (count / len(x))
            latent = sites(model, draw, x[:2], y[:2])
            log_prior = sum(latent[name]["fn"].log_prob(draw[name]).sum() for name in draw)
            ratios.append(float(log_likelihood / kl_weight + log_prior - log_q))
    log_ratios = np.array(ratios)
    return ImportanceRatios(pareto_k(log_ratios), log_ratios)


def _examples(model: Any, draw: Mapping[str, Tensor], x: Tensor, y: Tensor) -> float:
    """How many training examples a model counts: its ``num_data``, or what scales what it observes, such as a plate."""
    if hasattr(model, "num_data"):
        return float(model.num_data)
    sizes = [
        max(float(site["scale"]) * count for site in observed_sites(model, draw, x[:count], y[:count]).values())
        for count in (1, 2)
    ]
    return sizes[1] if math.isclose(*sizes) else float(len(x))


def pareto_k(log_ratios: np.ndarray) -> float:
    """Shape of the Pareto tail of importance ratios, by ArviZ.

    :param log_ratios: ``(draws,)``, up to a constant.
    """
    centred = log_ratios - log_ratios.max()
    if np.ptp(centred) < _ALIKE:
        return 0.0  # there is no tail
    return float(_smoothed(centred[None])[1][0])


@dataclass(frozen=True)
class LeaveOneOut:
    """Leave-one-out cross-validation by Pareto smoothed importance sampling (Vehtari et al. 2017), by ArviZ.

    :param elpd: expected log predictive density of the points, in nats.
    :param se: its standard error.
    :param p: effective number of parameters.
    :param points: how many there are.
    :param unreliable: of how many the Pareto k is above :data:`RELIABLE_K`.
    """

    elpd: float
    se: float
    p: float
    points: int
    unreliable: int


def leave_one_out(data: Any) -> LeaveOneOut:
    r"""Leave-one-out cross-validation by importance sampling (Vehtari, Gelman, Gabry 2017), its warning as a count.

    A fit whose KL had the weight :math:`\lambda` is the posterior of the likelihood to the power :math:`1/\lambda`, so
    that a point is left out by ratios :math:`p(y \mid w)^{-1/\lambda}`; at :math:`\lambda = 1` it is ``az.loo``, in all
    versions of ArviZ.

    :param data: of :func:`~pyro_bc.to_inference_data`, for points of the training set; its attribute ``kl_weight`` is
        the weight.
    """
    kl_weight = float(data["log_likelihood"].attrs.get("kl_weight", 1.0))
    if kl_weight not in (0.0, 1.0):
        return _tempered(data, kl_weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: Any = arviz_package().loo(data, pointwise=True, reff=1.0)  # draws are independent
    elpd, p = (getattr(found, old, None) or getattr(found, old.split("_")[0]) for old in ("elpd_loo", "p_loo"))
    k = np.asarray(found.pareto_k)
    return LeaveOneOut(float(elpd), float(found.se), float(p), int(k.size), int((k > RELIABLE_K).sum()))


def _tempered(data: Any, kl_weight: float) -> LeaveOneOut:
    """Leave-one-out where a point's ratio is its likelihood to the power −1 over the KL's weight."""
    (name,) = data["log_likelihood"].data_vars
    values = np.asarray(data["log_likelihood"][name].values)
    log_likelihood = values.reshape(values.shape[0] * values.shape[1], -1).T.astype(np.float64)  # (points, draws)
    log_weights, k = _smoothed(-log_likelihood / kl_weight)
    elpd = np.logaddexp.reduce(log_weights + log_likelihood, axis=1)
    lppd = np.logaddexp.reduce(log_likelihood, axis=1) - math.log(log_likelihood.shape[1])
    deviation = math.sqrt(len(elpd) * float(elpd.var()))
    return LeaveOneOut(
        float(elpd.sum()), deviation, float((lppd - elpd).sum()), int(k.size), int((k > RELIABLE_K).sum())
    )


def _smoothed(log_ratios: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pareto-smoothed importance weights of every row, their logarithms normalised, and the rows' Pareto k.

    Where no tail can be fitted, weights stay as they are: k is 0 where all draws are alike, and infinite where all but
    a few are as good as zero beside the largest.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        weights, k = _of_arviz(log_ratios)
    has_tail = np.isfinite(k) & ~np.isnan(weights).any(1)
    weights = np.where(has_tail[:, None], weights, log_ratios)
    without = np.where(np.ptp(log_ratios, axis=1) < _ALIKE, 0.0, np.inf)
    return weights - np.logaddexp.reduce(weights, axis=1, keepdims=True), np.where(has_tail, k, without)


def _of_arviz(log_ratios: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What ArviZ makes of every row; a k that is not finite where it fits no tail."""
    arviz = arviz_package()
    if is_before_1():
        weights, k = arviz.psislw(log_ratios)
        return np.asarray(weights), np.asarray(k)
    from arviz_stats.base import array_stats

    try:
        weights, k = array_stats.psislw(-log_ratios, axis=-1)  # which takes log-likelihoods
    except ValueError:  # of a row in which the others are as good as zero beside the largest
        if len(log_ratios) == 1:
            return log_ratios, np.array([np.inf])
        rows = [_of_arviz(row[None]) for row in log_ratios]
        weights, k = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    return np.asarray(weights), np.asarray(k)


@dataclass(frozen=True)
class Calibration:
    """Whether probabilities mean what they say: a reliability diagram's numbers (Guo et al. 2017).

    :param error: expected calibration error, 0 to 1: the mean distance of accuracy from confidence.
    :param confidence: mean probability of the predicted class, by bin, ``(bins,)``; NaN for empty bins.
    :param accuracy: part of predictions that are right, by bin.
    :param count: examples, by bin.
    """

    error: float
    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray


def calibration(probabilities: Tensor, y: Tensor, bins: int = 15) -> Calibration:
    """Calibration of predicted classes, in bins of equal width.

    :param probabilities: ``(n, classes)``, rows summing to 1.
    :param y: class numbers, ``(n,)``.
    :raises UsageError: where the shapes do not fit, or rows are no probabilities.
    """
    if probabilities.dim() != 2 or y.shape != probabilities.shape[:1]:
        raise UsageError(
            f"probabilities are (n, classes) and y (n,), not {tuple(probabilities.shape)} and {tuple(y.shape)}"
        )
    if not bool(((probabilities >= 0).all(1) & ((probabilities.sum(1) - 1).abs() < 1e-3)).all()):
        raise UsageError("rows of probabilities must not be negative and must sum to 1; is a softmax missing?")
    top, predicted = (value.cpu().numpy() for value in probabilities.detach().double().max(1))
    right = predicted == y.cpu().numpy()
    index = np.minimum((top * bins).astype(int), bins - 1)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(index, top, bins) / count
        accuracy = np.bincount(index, right, bins) / count
    error = float(np.nansum(count * np.abs(confidence - accuracy)) / len(y))
    return Calibration(error, confidence, accuracy, count)


@torch.no_grad()
def sampled_probabilities(guide: Any, x: Tensor, *, draws: int = 50, seed: int = 0) -> Tensor:
    """Posterior predictive probabilities of classes: softmax outputs, averaged over draws of the weights.

    :param guide: of a :class:`~pyro_bc.BayesianNetwork` with a categorical likelihood, fitted.
    :returns: ``(n, classes)``.
    """
    posterior = posterior_of(guide)
    total: Any = 0.0
    with seeded(seed, posterior.device):
        for _ in range(draws):
            draw = _one_draw(posterior)
            total = total + torch.cat([outputs(posterior.model, draw, part) for part in x.split(1000)]).softmax(-1)
    return total / draws


def _one_draw(posterior: Posterior) -> dict[str, Tensor]:
    return {name: values[0] for name, values in posterior.draws(1).items()}


def mean_network(model: BayesianNetwork, guide: Any) -> nn.Module:
    """The network with every weight at its posterior mean, neither pruned nor rounded, in evaluation mode."""
    return network_with(model, summarize(guide), {})


def compare_fits(guides: Sequence[Any], *, draws: int = 200, seed: int = 0) -> dict[str, np.ndarray]:
    r"""Agreement of several fits of one network (other seeds) on which groups matter: :math:`\hat R` of their scales.

    Each fit is a chain of draws of a group's log-scale. The groups of all layers but the first are in no order that two
    fits share, so they are compared by rank of their expected scale. 1 is agreement; above 1.1, a group that one fit
    keeps may be one that another prunes.

    :returns: by layer, ``(groups,)``; layers without group scales are left out.
    :raises UsageError: on fewer than two fits, or fits of different networks.
    """
    if len(guides) < 2:
        raise UsageError("two fits or more can agree; train with other seeds")
    fits = [posterior_of(guide) for guide in guides]
    first, *others = (list(fit.layers) for fit in fits)
    if any(names != first for names in others):
        raise UsageError("the fits are of different networks")
    result = {}
    with seeded(seed, fits[0].device):
        for position, layer in enumerate(first):
            chains = []
            for fit in fits:
                prior, sites, _ = fit.layers[layer]
                scale = prior.group_scale({role: fit.marginals[f"{layer}.{role}"] for role in sites})
                if scale is None:
                    break
                values = scale.sample((draws,)).abs().clamp(min=1e-30).log()
                chains.append(values if position == 0 else values[:, scale.mean.abs().argsort()])
            else:
                if len({chain.shape for chain in chains}) > 1:
                    raise UsageError(f"layer '{layer}' has different groups in the fits")
                stacked = torch.stack(chains).double().cpu().numpy()  # (chains, draws, groups)
                result[layer] = np.array(
                    [float(arviz_package().rhat(stacked[..., group])) for group in range(stacked.shape[2])]
                )
    return result
