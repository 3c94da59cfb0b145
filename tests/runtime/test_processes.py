"""Two processes fit one posterior: the objective is that of one process with both batches."""

import json
import shutil
import subprocess
import sys

import distributed_worker as worker
import pytest
import torch
import torch.distributed as distributed

import pyro_bc
from pyro_bc.inference.elbo import elbo_terms
from pyro_bc.runtime import processes


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    if not (distributed.is_available() and distributed.is_gloo_available()):
        pytest.skip("torch was built without gloo")
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", worker.__file__]
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)] + [folder / "half"]


def test_the_kl_counts_once_and_every_example_n_over_all_of_them(found):
    model, guide = worker.fresh()
    x, y = worker.data()
    guide(x, y)
    log_likelihood = 0.0
    for rank in (0, 1):
        torch.manual_seed(10 + rank)
        half = slice(rank * 100, (rank + 1) * 100)
        terms = elbo_terms(model, guide, x[half], y[half])
        # elbo_terms takes each half for a mini-batch of 200 examples: twice its own sum.
        log_likelihood = log_likelihood + terms.log_likelihood / 2
    ((0.7 * terms.total_kl() - log_likelihood) / 200).backward()
    expected = [
        torch.cat([parameter.grad.flatten() for parameter in group]) for group in worker.groups_of(model, guide)
    ]
    for rank in (0, 1):
        for gradient, wanted in zip(found[rank]["gradient"], expected, strict=True):
            assert torch.allclose(torch.tensor(gradient), wanted, rtol=1e-4, atol=1e-6)


def test_each_process_has_its_share_of_the_examples(found):
    first, second = (set(process["seen"]) for process in found[:2])
    assert len(first) == len(second) == 100 and len(first | second) == 200


def test_all_processes_end_with_the_same_posterior_from_noise_of_their_own(found):
    first, second, _ = found
    assert first["trained"] == second["trained"] and first["history"] == second["history"]
    assert first["noise"] != second["noise"]
    assert first["unseeded_noise"] != second["unseeded_noise"]


def test_the_elbo_is_that_of_one_process_with_the_same_examples_per_step(found):
    loader = pyro_bc.data.Batches(*worker.data(), 2 * worker.BATCH)
    losses, divergences = [], []
    for seed in range(3):
        model, guide = worker.fresh(seed)
        history = worker.train(model, guide, loader, seed=seed).history
        losses.append(sum(record.loss for record in history[-10:]) / 10)
        divergences.append(history[-1].kl)
    loss, spread = sum(losses) / 3, max(losses) - min(losses)
    assert sum(found[0]["history"][-10:]) / 10 == pytest.approx(loss, abs=max(spread, 0.05 * loss))
    assert found[0]["kl"] == pytest.approx(sum(divergences) / 3, rel=0.1)


def test_a_resumed_run_of_two_processes_equals_an_uninterrupted_one(found):
    for process in found[:2]:
        assert process["resumed"] == process["whole"]
        assert process["resumed_end"] == process["whole_end"]


def test_traced_steps_of_two_processes_come_to_the_same(found):
    for process in found[:2]:
        assert process["traced"] == pytest.approx(process["whole"], rel=1e-4)


def test_groups_leave_two_processes_alike_and_a_resumed_run_goes_on_without_them(found):
    first, second, _ = found
    assert first["shrunk"] == second["shrunk"] and first["weights"] == second["weights"]
    assert first["weights"][0] == 768 and first["weights"][-1] < 200 and first["weights"][16] == first["weights"][-1]
    for process in found[:2]:
        assert process["shrunk_resumed"] == process["shrunk"]


def test_a_checkpoint_of_two_processes_goes_on_on_one(found, tmp_path):
    shutil.copy(found[2], tmp_path / "checkpoint")
    model, guide = worker.fresh(seed=9)
    history = worker.train(model, guide, epochs=4, checkpoint=tmp_path / "checkpoint", resume=True).history
    losses = [record.loss for record in history]
    assert losses[:2] == found[0]["whole"][:2] and losses[2:] != found[0]["whole"][2:]
    assert losses[2:] == pytest.approx(found[0]["whole"][2:], rel=0.1)


def test_a_dense_network_is_trained_by_all(found):
    first, second, _ = found
    assert first["dense"] == second["dense"] and first["dense_error"] < 0.1


def test_codes_of_two_processes_are_the_same_and_resume_to_the_same_before_and_after_rounding(found):
    first, second, _ = found
    assert first["coded"] == second["coded"] and first["coded_bytes"] == second["coded_bytes"]
    for process in found[:2]:
        assert process["coded_resumed"] == process["coded"]
    codes = first["coded"]["locs.net.0.weight"]
    assert any(abs(code) > 1 for code in codes)


def test_curvature_is_that_of_all_processes_examples_and_so_are_price_and_codes(found):
    first, second, _ = found
    assert first["curvature"] == second["curvature"] and first["rounded"] == second["rounded"]
    assert first["rounded"][0] != first["rounded"][1]
    torch.manual_seed(0)
    net = worker.two_layers()
    x, _ = worker.data()
    model = pyro_bc.BayesianNetwork(net, pyro_bc.StandardNormal(), num_data=worker.N)
    guide = pyro_bc.CurvatureGuide(model, [x], progress=False)
    for layer, inputs in first["curvature"].items():
        assert torch.allclose(torch.tensor(inputs), guide.curvature[layer].inputs[0], rtol=1e-4, atol=1e-6)


def test_what_is_wrong_on_one_process_is_said_on_all(found):
    for process in found[:2]:
        assert process["exists"].startswith("CheckpointError") and "exists; resume it" in process["exists"]
        assert process["uneven"].startswith("UsageError") and "have 2, 5 batches" in process["uneven"]
        assert process["spoilt"].startswith("UsageError")
        assert process["not_finite"].startswith("NonFiniteLossError")


def test_one_process_needs_no_group():
    x = torch.arange(3.0)
    processes.average_([x])
    assert (processes.count(), processes.rank()) == (1, 0) and x.tolist() == [0, 1, 2]
    assert processes.gathered("own") == ["own"] and processes.from_first(lambda: 7) == 7


def test_a_process_that_is_alone_ends_as_it_would():
    assert processes.end(2) == 2
