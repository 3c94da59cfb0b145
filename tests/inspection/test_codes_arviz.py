"""ArviZ reads the posterior of codes: draws within their cells, the prior's own spread, the course of the fit."""

import numpy as np
import pytest
import torch
from torch import nn

from pyro_bc import Batches
from pyro_bc.errors import UsageError
from pyro_bc.inference import fit_rate
from pyro_bc.inspection.arviz import arviz_package
from pyro_bc.inspection.codes_arviz import save_codes
from pyro_bc.priors.learned_code import CellGuide, RateNetwork


def test_what_is_written_is_the_fit(tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    model = RateNetwork(net, num_data=20, grids={"0.weight": (3, 3)})
    guide = CellGuide(model)
    loader = Batches(torch.rand(20, 1, 4, 4), torch.arange(20) % 2, 10)
    history = fit_rate(model, guide, loader, epochs=3, progress=False).history
    state = torch.get_rng_state()
    save_codes(tmp_path / "posterior.nc", model, guide, draws=25, history=history)
    assert torch.equal(torch.get_rng_state(), state)
    data = arviz_package().from_netcdf(tmp_path / "posterior.nc")
    drawn = data["posterior"]["net.0.weight"]
    assert drawn.dims == ("chain", "draw", *(f"net.0.weight.{d}" for d in ("output", "input", "row", "column")))
    assert drawn.shape == (1, 25, 3, 1, 3, 3)
    centre = guide.codes[0].detach().numpy()
    assert np.abs(drawn.values - centre).max() <= 0.5 and drawn.values.std(1).min() > 0.1
    assert np.array_equal(data["constant_data"]["net.0.weight"].values, centre.round())
    spread = model.prior("3.weight").sample((4000,)).abs().mean().item()
    assert np.abs(data["prior"]["net.3.weight"].values).mean() == pytest.approx(spread, rel=0.2)
    assert data["sample_stats"]["kl"].values.tolist() == [epoch.kl for epoch in history]
    assert data["posterior"].attrs["prior"] == "learned"
    arviz_package().summary(data, var_names=["net.3.bias"])
    with pytest.raises(UsageError, match="draws"):
        save_codes(tmp_path / "other.nc", model, guide, draws=0)
    assert not (tmp_path / "other.nc").exists()
