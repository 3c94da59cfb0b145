"""A training step, as Python runs it and compiled: plain Pyro's ELBO and gradients, whoever computes them."""

import pytest
import torch
from helpers import fitted as fitted_net
from helpers import needs_compiler, set_up
from pyro.infer import TraceMeanField_ELBO
from torch import nn

import pyro_bc
from pyro_bc.app.settings import PRIORS
from pyro_bc.errors import UsageError
from pyro_bc.inference import fit as infer
from pyro_bc.inference import step as training_step
from pyro_bc.inference.elbo import elbo_terms
from pyro_bc.inference.schedule import Schedule, trained_parameters
from pyro_bc.inference.step import FlatParameters, compiled_step, eager_step


def small_net():
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4))


def groups_of(model, guide):
    return [trained.parameters for trained in trained_parameters(model, guide, Schedule())]


def problem(prior, net=small_net):
    torch.manual_seed(0)
    x, y = torch.rand(10, 1, 6, 6), torch.randint(4, (10,))
    return *set_up(net(), x, PRIORS[prior], y, num_data=50, init_log_variance=-3.0), x, y


def reference(model, guide, x, y):
    """Loss, gradients by name and buffers of one step with Pyro's own ELBO."""
    torch.manual_seed(1)
    with pyro_bc.local_reparameterization():
        loss = TraceMeanField_ELBO().differentiable_loss(model, guide, x, y) / model.num_data
    parameters = dict(guide.named_parameters()) | dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return loss.detach(), dict(zip(parameters, gradients, strict=True)), buffers


def check_against_pyro(make_step, prior):
    loss, gradients, buffers = reference(*problem(prior))
    model, guide, x, y = problem(prior)
    with FlatParameters(groups_of(model, guide)) as flat:
        step = make_step(model, guide, flat, x, y)
        for _ in range(2):  # twice, as gradients must not add up
            for name, buffer in problem(prior)[0].named_buffers():
                model.get_buffer(name).copy_(buffer)
            torch.manual_seed(1)
            result = step(x, y, 1.0)
        found = {}
        for vector, group in zip(flat.vectors, flat.groups, strict=True):
            found |= {id(p): part for p, part in zip(group, flat.split(vector.grad, group), strict=True)}
        torch.testing.assert_close(result.loss, loss, rtol=1e-5, atol=1e-6)
        for name, parameter in [*guide.named_parameters(), *model.named_parameters()]:
            torch.testing.assert_close(found[id(parameter)], gradients[name], rtol=1e-4, atol=1e-6, msg=name)
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(buffer, buffers[name], rtol=1e-5, atol=1e-6, msg=name)
        torch.manual_seed(1)
        terms = elbo_terms(model, guide, x, y)
        torch.testing.assert_close(result.kl, torch.stack([terms.kl[name].detach() for name in guide.families]))
        torch.manual_seed(1)
        weighted = step(x, y, 0.25)
        expected = (0.25 * weighted.kl.sum() - weighted.log_likelihood) / 50
        torch.testing.assert_close(weighted.loss, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prior", PRIORS)
def test_a_step_has_the_loss_and_gradients_of_pyros_elbo(prior):
    check_against_pyro(lambda model, guide, flat, x, y: eager_step(model, guide, flat), prior)


@pytest.mark.parametrize("prior", ["gnj", "svd", "ghs+learned"])  # noise of every kind
def test_the_traced_step_has_the_loss_and_gradients_of_pyros_elbo(prior, monkeypatch):
    monkeypatch.setattr(training_step, "compile_graph", lambda traced, inputs, options: traced)
    check_against_pyro(compiled_step, prior)


def test_tracing_leaves_the_random_state_and_the_batch_statistics_alone(monkeypatch):
    monkeypatch.setattr(training_step, "compile_graph", lambda traced, inputs, options: traced)
    model, guide, x, y = problem("gnj")
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    state = torch.get_rng_state()
    with FlatParameters(groups_of(model, guide)) as flat:
        compiled_step(model, guide, flat, x, y)
    assert torch.equal(torch.get_rng_state(), state)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_parameters_are_views_of_vectors_inside_and_their_own_again_after():
    net = small_net()
    parameters = list(net.parameters())
    values = [p.detach().clone() for p in parameters]
    with FlatParameters([parameters[:3], parameters[3:]]) as flat:
        assert [len(vector) for vector in flat.vectors] == [sum(p.numel() for p in g) for g in flat.groups]
        for vector in flat.vectors:
            vector += 1
        for parameter, value in zip(parameters, values, strict=True):
            assert torch.equal(parameter, value + 1) and parameter.grad.shape == parameter.shape
    for vector in flat.vectors:
        vector.zero_()
    for parameter, value in zip(parameters, values, strict=True):
        assert torch.equal(parameter, value + 1) and parameter.grad is None


def fitted(compile, **options):
    torch.manual_seed(0)
    x, y = torch.rand(50, 1, 6, 6), torch.randint(4, (50,))
    # Batches of 16, 16, 16, and 2 that are not compiled for.
    return fitted_net(small_net(), x, y, PRIORS["ghs"], batch=16, epochs=3, compile=compile, **options)[1:]


@needs_compiler
def test_a_compiled_fit_comes_to_the_same_result():
    (guide, history), (other, compiled) = fitted(False), fitted(True)
    for name, parameter in guide.named_parameters():
        torch.testing.assert_close(other.get_parameter(name), parameter, rtol=1e-3, atol=2e-5, msg=name)
    assert compiled[-1].loss == pytest.approx(history[-1].loss, rel=1e-4)
    assert compiled[-1].groups_left == history[-1].groups_left


def test_a_step_is_compiled_again_for_rounded_codes_where_the_last_batch_is_smaller(monkeypatch):
    times, histories = [], []
    monkeypatch.setattr(training_step, "compile_graph", lambda traced, inputs, options: times.append(1) or traced)
    for compiled in (False, True):
        torch.manual_seed(0)
        x, y = torch.rand(50, 1, 6, 6), torch.randint(4, (50,))
        net = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
        fitted = fitted_net(net, x, y, pyro_bc.LearnedCode(), batch=16, epochs=4, compile=compiled)
        histories.append([epoch.loss for epoch in fitted[2]])
    assert histories[1] == pytest.approx(histories[0], rel=1e-4)
    assert len(times) == 2


def test_what_cannot_be_compiled_is_said_or_done_without(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no compiler today\nand more")

    monkeypatch.setattr(training_step, "compile_graph", broken)
    with pytest.raises(UsageError, match=r"cannot be compiled: no compiler today\. Leave compile out"):
        fitted(True)
    expected = fitted(None)[1][-1].loss  # so few steps are not worth it
    monkeypatch.setattr(infer, "WORTH_COMPILING", 3)
    monkeypatch.setattr(infer, "has_compiler", lambda: True)
    with pytest.warns(UserWarning, match="not compiled, and slower: no compiler today"):
        assert fitted(None)[1][-1].loss == expected
    monkeypatch.setattr(infer, "has_compiler", lambda: False)
    assert fitted(None)[1][-1].loss == expected


def test_a_compiler_is_looked_for_by_its_name_under_a_torch_that_draws_the_same_noise(monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert not training_step.has_compiler()
    (tmp_path / "mine").write_text("#!/bin/sh\n")
    (tmp_path / "mine").chmod(0o755)
    monkeypatch.setenv("CXX", "mine")
    assert training_step.has_compiler()
    monkeypatch.setattr(torch, "__version__", "2.12.1")
    assert not training_step.has_compiler()


def test_products_in_bfloat16_have_about_the_loss_and_gradients_of_single_precision():
    found = []
    for precision in ("float32", "bf16"):
        model, guide, x, y = problem("gnj")
        for log_variance in guide.log_variances.parameters():
            log_variance.data.fill_(-20.0)  # noise of another type is other noise
        with FlatParameters(groups_of(model, guide)) as flat:
            torch.manual_seed(1)
            result = eager_step(model, guide, flat, precision)(x, y, 1.0)
            assert result.loss.dtype == result.kl.dtype == torch.float32
            found.append((result, [vector.grad.clone() for vector in flat.vectors]))
    (single, gradients), (half, of_half) = found
    torch.testing.assert_close(half.log_likelihood, single.log_likelihood, rtol=0.02, atol=0)
    assert not torch.equal(half.log_likelihood, single.log_likelihood)
    assert torch.equal(half.kl, single.kl)
    for own, other in zip(of_half, gradients, strict=True):
        assert (own - other).norm() < 0.1 * other.norm()
