"""Networks, guides and checkpoints on another device than the CPU, and from one to the other.

There need not be a GPU: the device is one of the tests' own (accelerator.cpp), whose memory torch keeps apart from the
CPU's, and whose noise comes from a generator of its own.
"""

import json
import subprocess
import sys
from pathlib import Path

import accelerator
import numpy as np
import pytest
import torch
from torch.torch_version import TorchVersion

WORKER = Path(__file__).parents[1] / "device_worker.py"
CPU, DEVICE = "cpu", accelerator.NAME


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    if accelerator.compiler() is None:
        pytest.skip("the device is written in C++, and there is no compiler")
    if TorchVersion(torch.__version__) < "2.13":
        pytest.skip("the device is written for torch 2.13 and newer")
    folder = tmp_path_factory.mktemp("devices")
    command = [sys.executable, str(WORKER), str(accelerator.build(folder)), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize(
    ("fit", "tolerance"),
    [("dense-svd", 1e-6), ("convolutional-ghs", 1e-2), ("attention-gnj", 1e-2)],
)
def test_a_fit_is_the_same_there_and_stays_there(found, fit, tolerance):
    fit = found["fits"][fit]
    assert fit["on"] == [[CPU], [DEVICE]]
    assert fit["difference"] <= tolerance
    assert abs(fit["bytes"][0] - fit["bytes"][1]) <= 4


@pytest.mark.parametrize("second", [CPU, DEVICE])
@pytest.mark.parametrize("first", [CPU, DEVICE])
def test_a_checkpoint_is_read_bit_for_bit_wherever_it_was_written(found, first, second):
    checkpoint = found["checkpoints"][f"{first}-{second}"]
    assert checkpoint["read"] == 0 and checkpoint["same_file"]
    assert checkpoint["on"] == [second]


@pytest.mark.parametrize("device", [CPU, DEVICE])
def test_a_resumed_run_equals_an_uninterrupted_one_on_the_same_device(found, device):
    checkpoint = found["checkpoints"][f"{device}-{device}"]
    assert checkpoint["resumed"] == 0 and checkpoint["losses"] == checkpoint["losses_uninterrupted"]


@pytest.mark.parametrize(("first", "second"), [(CPU, DEVICE), (DEVICE, CPU)])
def test_a_run_goes_on_on_another_device_with_other_but_determined_noise(found, first, second):
    checkpoint = found["checkpoints"][f"{first}-{second}"]
    losses, others = checkpoint["losses"], checkpoint["losses_uninterrupted"]
    assert losses[:2] == others[:2] and losses[2:] != others[2:]
    assert np.allclose(losses, others, rtol=0.01)
    assert checkpoint["again"] == 0


def test_a_posterior_says_the_same_wherever_it_is(found):
    there, here = found["posteriors"]
    for what in ("scale", "agreement", "mean", "file"):
        assert there[what] == here[what]
    assert there["k"] == pytest.approx(here["k"], rel=1e-6)
    # Labels that are drawn and not used come from the CPU's generator there: other weights.
    assert np.allclose(there["probabilities"], here["probabilities"], atol=0.1)
    assert there["calibration"] == pytest.approx(here["calibration"], abs=0.05)


def test_diagnostics_leave_the_generators_of_both_devices_as_they_are(found):
    assert all(result["state_kept"] for result in found["posteriors"])


def test_a_file_from_there_loads_on_the_cpu_and_predicts_the_same_on_both(found):
    files = found["files"]
    assert files["there"] == files["stays"] == DEVICE  # to_onnx leaves the network where it is
    assert files["difference"] < 1e-6 and files["difference_of_short"] == 0 and files["onnx"] < 1e-5
    assert 0 < files["again"] < 1000


def test_codes_are_the_same_there_and_their_checkpoints_move(found):
    here, there = found["codes"]
    assert here["loss"] == pytest.approx(there["loss"], rel=1e-6)
    assert here["file"] == there["file"]
    assert here["on"] == there["moved"] == [CPU] and there["on"] == here["moved"] == [DEVICE]
    assert here["read"] == there["read"] == 0


def test_models_move_before_and_after_their_guide_has_seen_data(found):
    moved = found["moved_later"]
    assert moved["before"] == moved["after"] == [DEVICE] and moved["bytes"] > 0


def test_pyros_own_loop_and_torchs_default_device(found):
    by_hand = found["by_hand"]
    assert by_hand["losses"][-1] < by_hand["losses"][0] - 50 and by_hand["drawn"] == DEVICE
    assert by_hand["written_losses"][-1] < by_hand["written_losses"][0] - 50 and by_hand["written_on"] == [DEVICE]
    assert by_hand["on_by_default"] == [DEVICE] and by_hand["onnx"] < 1e-5
    assert by_hand["loaded_on"] == [CPU] and by_hand["same_bytes"] and by_hand["shapes"] == [64, 3]


@pytest.mark.parametrize(
    ("case", "what", "where"),
    [
        ("inputs", "the first batch's inputs are", (CPU, DEVICE)),
        ("targets", "the first batch's targets are", (CPU, DEVICE)),
        ("later", "the inputs of batch 2 are", (CPU, DEVICE)),
        ("later targets", "the targets of batch 2 are", (CPU, DEVICE)),
        ("other way", "the first batch's inputs are", (DEVICE, CPU)),
        ("points", "the points are", (CPU, DEVICE)),
        ("codes", "the first batch's inputs are", (CPU, DEVICE)),
    ],
)
def test_data_on_another_device_than_the_network_are_one_clear_error(found, case, what, where):
    data, network = (f"{name}:0" if name == DEVICE else name for name in where)
    assert (
        found["wrong"][case] == f"UsageError: {what} on {data}, the network on {network}: move one of them with .to(…)"
    )


@pytest.mark.parametrize("job", ["keep", "coded"])
def test_the_main_jobs_run_there_and_go_on_on_the_cpu(found, job):
    result = found["runs"][job]
    assert result["error"] == result["evaluated"] < 60  # chance is 90
    assert result["dense"][0] == result["dense"][1]  # the dense network was read back on both devices
    assert result["resumed"] < 60
    assert {"metrics.json", "network.pbc", "posterior.nc"} <= set(result["files"])
    assert ("report.html" in result["files"]) is (job == "keep")


def test_a_device_that_is_not_there_is_one_clear_error_before_anything_is_written(found):
    for case, name in (("no such device", "cuda"), ("not a device", "gpu")):
        assert found["runs"][case].startswith(f"UsageError: the device '{name}' cannot be used: ")
    assert found["runs"]["nothing written"]


@pytest.mark.parametrize("net", ["dense", "convolutional"])
def test_a_target_is_found_there_by_networks_of_files(found, net):
    there, here = (found["judged"][net][which] for which in ("found", "again"))
    assert here == pytest.approx(there, rel=1e-4)


def test_curvature_rounding_and_int8_read_data_that_are_there(found):
    curvature = found["judged"]["curvature"]
    assert max(curvature["differences"]) < 1e-5
    assert curvature["file"] > 0 and set(curvature["int8"].values()) == {"int8"}


def test_loaders_give_batches_where_their_data_are(found):
    assert found["loaders"] == [DEVICE]
