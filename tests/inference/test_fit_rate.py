"""Training shortens codes at the price of likelihood, resumes to the same result, and says what is wrong."""

import math

import pyro
import pytest
import torch
from torch import nn

from pyro_bc import Batches, Normal
from pyro_bc.errors import CheckpointError, UsageError
from pyro_bc.inference.fit_rate import code_bytes, fit_rate
from pyro_bc.priors.learned_code import CellGuide, RateNetwork

TRUE = torch.tensor([[2.0, 0.0, 0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.5, 0.0, 0.0, 0.0], [0.0] * 6])


def problem(examples: int = 200):
    torch.manual_seed(0)
    x = torch.randn(examples, 6)
    return Batches(x, (x @ TRUE.T).argmax(-1), 50)


def fresh():
    torch.manual_seed(1)
    model = RateNetwork(nn.Sequential(nn.Linear(6, 3)), num_data=200)
    return model, CellGuide(model)


def test_more_weight_on_the_divergence_makes_smaller_codes():
    sizes, errors = [], []
    for kl_weight in (0.01, 1.0, 10.0):
        model, guide = fresh()
        history = fit_rate(
            model, guide, problem(), epochs=80, kl_weight=kl_weight, learning_rate=0.2, progress=False
        ).history
        sizes.append(code_bytes(model, guide))
        errors.append(history[-1].error)
        nats = sum(
            -float(model.prior(n).log_prob(c.detach().round()).sum().detach())
            for n, c in zip(guide.names, guide.codes, strict=True)
        )
        assert sum(history[-1].kl_by_layer.values()) * 200 == pytest.approx(nats, rel=1e-5)
        assert history[-1].loss == pytest.approx(history[-1].negative_log_likelihood + history[-1].kl)
        assert sizes[-1] == pytest.approx(nats / math.log(2) / 8, rel=1e-5)
    assert sizes[0] > 1.1 * sizes[1] > 1.1 * 1.1 * sizes[2] and errors[0] < 10


def test_what_is_stored_is_rounded_and_in_steps_of_powers_of_two():
    model, guide = fresh()
    fit_rate(model, guide, problem(), epochs=4, rounding=0.0, progress=False)
    exponents = model.steps().log2()
    assert torch.allclose(exponents, exponents.round(), atol=1e-5)


def test_an_interrupted_training_resumes_to_the_same_result(tmp_path):
    class Stopped(Exception):
        pass

    def stop_after(epoch):
        def after(record):
            if record.epoch == epoch:
                raise Stopped

        return after

    whole, resumed = fresh(), fresh()
    result = fit_rate(*whole, problem(), epochs=8, progress=False)
    for epoch in (2, 6):  # before and after the codes are rounded
        with pytest.raises(Stopped):
            fit_rate(
                *resumed, problem(), epochs=8, progress=False, checkpoint=tmp_path / "c", resume=epoch > 2,
                after_epoch=stop_after(epoch),
            )  # fmt: skip
        resumed = fresh()
    again = fit_rate(*resumed, problem(), epochs=8, progress=False, checkpoint=tmp_path / "c", resume=True)
    assert [record.loss for record in again.history] == [record.loss for record in result.history]
    assert all(torch.equal(a, b) for a, b in zip(whole[1].codes, resumed[1].codes, strict=True))
    assert torch.equal(whole[0].log_steps, resumed[0].log_steps)
    with pytest.raises(CheckpointError, match="exists"):
        fit_rate(*fresh(), problem(), epochs=8, progress=False, checkpoint=tmp_path / "c")
    with pytest.raises(CheckpointError, match="kl_weight"):
        fit_rate(*fresh(), problem(), epochs=8, kl_weight=2.0, progress=False, checkpoint=tmp_path / "c", resume=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0}, {"epochs": 2.5}, {"kl_weight": -1.0}, {"kl_weight": math.inf}, {"learning_rate": 0.0},
        {"rounding": 1.1}, {"warmup": -0.1},
    ],
)  # fmt: skip
def test_arguments_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        fit_rate(*fresh(), problem(), **{"epochs": 2, "progress": False} | wrong)


def test_the_figures_of_an_epoch_are_those_of_its_steps():
    model, guide = fresh()
    x, y = torch.randn(200, 6), torch.randint(3, (200,))
    torch.manual_seed(0)
    record = fit_rate(model, guide, [(x, y)], epochs=1, rounding=0.0, warmup=0.0, kl_weight=0.5, seed=5).history[0]
    again, guide = fresh()
    pyro.set_rng_seed(5)
    drawn = {
        name: centre + torch.rand_like(centre) - 0.5 for name, centre in zip(guide.names, guide.codes, strict=True)
    }
    outputs = torch.func.functional_call(again.net, again.weights(drawn), (x,))
    nll = nn.functional.cross_entropy(outputs, y).item()
    nats = -sum(again.prior(name).log_prob(code).sum().item() for name, code in drawn.items())
    assert record.negative_log_likelihood == pytest.approx(nll, rel=1e-5)
    assert record.kl == pytest.approx(nats / 200, rel=1e-5)
    assert record.error == pytest.approx(100 * (outputs.argmax(-1) != y).float().mean().item())


def test_a_likelihood_with_sites_of_its_own_is_refused():
    torch.manual_seed(1)
    model = RateNetwork(nn.Sequential(nn.Linear(6, 1)), num_data=200, likelihood=Normal())
    with pytest.raises(UsageError, match="Normal has a site 'precision'"):
        fit_rate(model, CellGuide(model), [(torch.rand(4, 6), torch.rand(4))], epochs=1, progress=False)


def test_data_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="empty"):
        fit_rate(*fresh(), [], epochs=1, progress=False)
    with pytest.raises(UsageError, match="labels"):
        fit_rate(*fresh(), [(torch.rand(2, 6), torch.tensor([0, 3]))], epochs=1, progress=False)
    with pytest.raises(UsageError, match="inputs of batch 1 hold NaN"):
        fit_rate(*fresh(), [(torch.full((2, 6), torch.nan), torch.tensor([0, 1]))], epochs=1, progress=False)
