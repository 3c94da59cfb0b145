"""The prior on the page "Extending" goes all the way, from its sites to the file and back from ArviZ."""

import re
from dataclasses import dataclass
from pathlib import Path

import pyro.distributions as dist
import torch
from helpers import fitted, two_layers

import pyro_bc
from pyro_bc.inspection.arviz import arviz_package, layer_posteriors
from pyro_bc.priors.base import base_distribution

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
