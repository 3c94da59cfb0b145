"""The prior on the page "Extending" goes all the way, from its sites to the file and back from ArviZ."""

import re
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from helpers import fitted, two_layers
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

import pyro_bc
from pyro_bc.inference.elbo import elbo_terms
from pyro_bc.inspection.arviz import arviz_package, layer_posteriors
from pyro_bc.priors.base import GroupPrior, Prior, base_distribution
from pyro_bc.priors.standard_normal import STANDARD_NORMAL

PAGE = Path(__file__).parents[2] / "docs" / "extending.rst"


def shown_prior():
    block = re.search(r"\.\. code-block:: python\n\n(.*?)\n\n\S", PAGE.read_text(), flags=re.DOTALL).group(1)
    code = "\n".join(line[3:] for line in block.splitlines())
    names = {"dataclass": dataclass, "pyro_bc": pyro_bc, "torch": torch, "dist": dist,
             "base_distribution": base_distribution, "__name__": __name__}  # fmt: skip
    exec(code, names)
    return names["GroupGamma"]


def test_the_prior_that_the_page_shows_is_one_subclass(tmp_path):
    prior = shown_prior()()
    torch.manual_seed(0)
    x = torch.randn(200, 6)
    y = (x[:, 0] > 0).long()
    model, guide, _ = fitted(two_layers(), x, y, prior, epochs=60, learning_rate=1e-2, log_learning_rate=3e-2)
    assert guide.layers["net.0"].prior is prior
    small = pyro_bc.compress(model, guide)
    assert (small.network()(x).argmax(1) != y).float().mean() < 0.1
    pyro_bc.save_inference_data(tmp_path / "posterior.nc", guide, draws=5)
    again = layer_posteriors(arviz_package().from_netcdf(tmp_path / "posterior.nc"))
    assert again["net.2"].prior == prior and torch.equal(
        again["net.2"].statistic, pyro_bc.summarize(guide)["net.2"].statistic
    )


@dataclass(frozen=True)
class RegularisedHorseshoe(GroupPrior):
    """Piironen and Vehtari 2017 (1707.01694), eq. 2.8: the scale is no product, and no site has a closed-form KL."""

    weights: Prior = STANDARD_NORMAL
    global_scale: float = 0.1
    roles: ClassVar[tuple[str, ...]] = ("local", "whole", "slab", "weight")

    def scale_sites(self, groups):
        return {
            "local": dist.HalfCauchy(torch.ones(groups)).to_event(1),
            "whole": dist.HalfCauchy(torch.tensor(self.global_scale)),
            "slab": dist.Exponential(torch.tensor(1.0)),
        }

    @classmethod
    def recognise(cls, sites):
        return cls() if {"local", "whole", "slab"} <= sites.keys() else None

    def scale(self, values):
        product = values["local"] * values["whole"]
        return values["slab"] * product / (values["slab"].square() + product.square()).sqrt()

    def initial_values(self, sites):
        ones = {role: torch.ones(sites[role].shape()) for role in ("local", "whole", "slab")}
        return super().initial_values(sites) | ones

    def group_scale(self, q):
        local, whole = (base_distribution(q[role]) for role in ("local", "whole"))
        spread = (local.scale.square() + whole.scale.square()).sqrt()
        return dist.LogNormal(local.loc + whole.loc, spread, validate_args=False)

    def statistic(self, q):
        scale = self.group_scale(q)
        return scale.scale.square() - scale.loc


def test_a_scale_that_is_no_product_trains_in_and_out_of_the_handler():
    torch.manual_seed(0)
    x = torch.randn(200, 6)
    y = (x[:, 0] > 0).long()
    model, guide, history = fitted(two_layers(), x, y, RegularisedHorseshoe(), epochs=60, learning_rate=1e-2)
    assert history[-1].loss < history[0].loss and history[-1].error < 15
    assert (pyro_bc.compress(model, guide).network()(x).argmax(1) != y).float().mean() < 0.15
    estimates = []
    pyro.enable_validation(False)
    for handler in (nullcontext(), pyro_bc.local_reparameterization()):
        with handler, torch.no_grad():
            for elbo in (TraceMeanField_ELBO(), Trace_ELBO()):
                estimates.append(np.array([elbo.loss(model, guide, x, y) for _ in range(150)]))
    with torch.no_grad():
        estimates.append(np.array([float(elbo_terms(model, guide, x, y).loss()) for _ in range(150)]))
    for found in estimates[1:]:
        error = np.hypot(found.std(), estimates[0].std()) / np.sqrt(150)
        assert abs(found.mean() - estimates[0].mean()) < 4.5 * error
