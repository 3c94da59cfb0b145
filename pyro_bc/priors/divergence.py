"""The KL of one site: in closed form, or of one draw where there is none, as ``TraceMeanField_ELBO`` has it."""

from typing import Any

from torch import Tensor
from torch.distributions import kl_divergence

from ..errors import UsageError
from ..runtime.messages import first_line


def divergence(name: str, q: Any, p: Any, value: Any = None) -> Tensor:
    r"""KL of a site's guide from its prior; without a closed form :math:`\log q(v) - \log p(v)` of a draw :math:`v`.

    :param name: of the site.
    :param value: the site's, where it has been drawn; None for another draw.
    :raises UsageError: where the prior scores no draw of the guide, either; names the site.
    """
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        pass
    if value is None:
        value = q.rsample() if q.has_rsample else q.sample()
    try:
        return q.log_prob(value) - p.log_prob(value)
    except (NotImplementedError, ValueError, RuntimeError) as error:
        reason = first_line(error)
        raise UsageError(
            f"site '{name}' has no KL: there is no closed form from {type(q).__name__} to {type(p).__name__}, and the "
            f"prior has no density of a draw ({reason}). Give it a prior with a log_prob, or register one with "
            f"torch.distributions.kl.register_kl"
        ) from error
