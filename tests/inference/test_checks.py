"""What cannot be trained is said before it is, and what stops a training is named; the last good checkpoint stays."""

import pyro
import pytest
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.optim import ClippedAdam
from torch import nn

from pyro_bc import (
    BayesianNetwork,
    FactorizedGuide,
    GroupHorseshoe,
    GroupNormalJeffreys,
    LearnedCode,
    LogUniform,
    StandardNormal,
    compress,
    fit,
    summarize,
)
from pyro_bc.data import Batches
from pyro_bc.errors import EmptyNetworkError, NonFiniteLossError, UsageError
from pyro_bc.inference.checkpoint import load_checkpoint

X, Y = torch.randn(48, 6, generator=torch.Generator().manual_seed(0)), torch.arange(48) % 3


def small_net():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def fitted(x=X, y=Y, net=None, prior=None, batch=16, epochs=1, **options):
    model = BayesianNetwork(net or small_net(), prior or GroupNormalJeffreys(), num_data=len(y))
    guide = FactorizedGuide(model)
    loader = Batches(x, y, batch) if isinstance(x, torch.Tensor) else x
    fit(model, guide, loader, epochs=epochs, progress=False, **options)
    return model, guide


def coded_fitted(x=X, y=Y, batch=16, **options):
    """The same for weights that are codes."""
    return fitted(x, y, batch=batch, prior=LearnedCode(), **options)


def changed(tensor, index, value):
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


BAD = {
    "NaN in one input": ({"x": changed(X, (40, 2), float("nan"))}, "inputs .*hold NaN or infinite numbers"),
    "an infinite input": ({"x": changed(X, (7, 2), float("inf"))}, "inputs .*hold NaN or infinite numbers"),
    "a label too large": ({"y": changed(Y, 40, 3)}, r"labels lie in \[0, 3\], but the network has 3 outputs"),
    "a label too small": ({"y": changed(Y, 40, -1)}, r"labels lie in \[-1, 2\], but the network has 3 outputs"),
    "labels that are floats": ({"y": Y.float()}, "class numbers of shape"),
    "too few features": ({"x": X[:, :5]}, r"cannot be run on the first batch, inputs of shape \(16, 5\)"),
    "one dimension": ({"x": X[:, 0]}, r"cannot be run on the first batch, inputs of shape \(16,\)"),
    "double precision": ({"x": X.double()}, "torch.float64: .*same dtype"),
    "bytes": ({"x": X.byte()}, "torch.uint8: .*same dtype"),
    "no example": ({"x": X[:0], "y": Y[:0]}, "loader is empty|positive integer"),
    "fewer targets": ({"y": Y[:40]}, "48 inputs, but 40 targets"),
    "batches of none": ({"batch": 0}, "batch_size is a positive integer"),
}


@pytest.mark.parametrize("train", [fitted, coded_fitted])
@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_one_clear_error_wherever_it_lies(train, name):
    arguments, message = BAD[name]
    with pytest.raises(UsageError, match=message):
        train(**arguments)


def test_batches_that_are_not_alike_are_numbered():
    batches = [(X[:16], Y[:16]), (X[16:32], Y[16:32]), (X[32:, :, None], Y[32:])]
    with pytest.raises(UsageError, match=r"batch 3 has inputs of shape \(16, 6, 1\).*the first one.*\(16, 6\)"):
        fitted(batches)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "empty"),
        ([{"x": X, "y": Y}], "pairs .*not dict"),
        ([("a", "b")], "pairs of tensors|pairs .*of tensors"),
        (iter([(X, Y)]), "list_iterator has not"),
    ],
)
def test_loaders_that_are_none_are_said(loader, message):
    with pytest.raises(UsageError, match=message):
        fitted(loader)


class RootOfNothing(nn.Module):
    """Its gradient is NaN: the root of an exact zero."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = self.first(x)
        return self.last(h + 0 * torch.sqrt((h - h).abs()))


class Explodes(nn.Module):
    """Infinite in the layer ``wide`` once there are large inputs."""

    def __init__(self):
        super().__init__()
        self.first, self.wide, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.wide(torch.exp(self.first(x) * 1e3))))


def test_gradients_that_are_not_finite_stop_before_the_checkpoint(tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"epoch 1.*not finite.*: .*net\.first\.weight"):
        fitted(net=RootOfNothing(), batch=48, checkpoint=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_what_is_not_finite_is_named_by_site_and_layer():
    with pytest.raises(NonFiniteLossError, match=r"epoch 1, step 1: .*the log-likelihood; the first layer .*net\.wide"):
        fitted(net=Explodes())
    with pytest.raises(NonFiniteLossError, match=r"step 2: KL of site 'net.0.scale'"):
        fitted(learning_rate=1e30, kl_weight=1.0)


class TurnsBad:
    """A loader whose inputs are NaN from its fourth epoch, as an augmentation may make them."""

    def __init__(self):
        self.times = 0

    def __len__(self):
        return 3

    def __iter__(self):
        self.times += 1
        x = X if self.times < 6 else X * float("nan")
        return zip(x.split(16), Y.split(16), strict=True)


def test_the_last_good_checkpoint_stays_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr("pyro_bc.inference.fit._BETWEEN_CHECKPOINTS", 0)
    model = BayesianNetwork(small_net(), num_data=48)
    guide = FactorizedGuide(model)
    settings = {"epochs": 6, "progress": False, "checkpoint": tmp_path / "c"}
    with pytest.raises(NonFiniteLossError, match=r"epoch 4, step 1: .*; the batch's inputs hold NaN"):
        fit(model, guide, TurnsBad(), **settings)
    tensors, metadata = load_checkpoint(tmp_path / "c")
    assert len(metadata["history"]) == 3 and all(bool(t.isfinite().all()) for t in tensors.values())
    again = BayesianNetwork(small_net(), num_data=48)
    result = fit(
        again, FactorizedGuide(again), list(zip(X.split(16), Y.split(16), strict=True)), resume=True, **settings
    )
    assert len(result.history) == 6


def test_codes_that_are_not_finite_are_named_by_their_sites():
    model = BayesianNetwork(small_net(), LearnedCode(), num_data=48)
    guide = FactorizedGuide(model)
    guide(X, Y)
    with torch.no_grad():
        guide.parameters_of("net.2.weight")[0].fill_(float("nan"))
    with pytest.raises(
        NonFiniteLossError, match=r"KL of site 'net.2.weight'.*not finite already.*locs\.net\.2\.weight"
    ):
        fit(model, guide, Batches(X, Y, 16), epochs=1, progress=False)


@pytest.mark.parametrize("prior", [GroupNormalJeffreys(), GroupHorseshoe(), LogUniform(), StandardNormal()])
def test_posteriors_without_variance_keep_everything_and_those_of_noise_nothing(prior):
    model, guide = fitted(prior=prior)

    def with_log_variances(value):
        with torch.no_grad():
            for parameter in guide.log_variances.parameters():
                parameter.fill_(value)
        return compress(model, guide)

    for none in (-300.0, -torch.inf):
        small = with_log_variances(none)
        assert small.architecture == (6, 8) and all(20 <= bits <= 32 for bits in small.bits)
        for layer in small.layers:
            exact = summarize(guide)[f"net.{layer.name}"].weight_mean
            assert torch.equal(layer.weight.values(), exact)  # float32's own precision
    with pytest.raises(EmptyNetworkError, match="layer '0'"):
        with_log_variances(60.0)
    with pytest.raises(UsageError, match=r"the posterior of site 'net\.0.* is NaN"):
        with_log_variances(torch.nan)


def test_a_network_that_no_longer_depends_on_its_input_is_no_result():
    net = small_net()
    with torch.no_grad():
        net[0].bias.fill_(-50.0)  # no unit of the first layer ever answers
    model, guide = fitted(net=net, prior=StandardNormal(), learning_rate=1e-6)
    with pytest.raises(EmptyNetworkError, match="the same for every input"):
        compress(model, guide)


@pytest.mark.parametrize("shape", [(1, 8), (6, 1), (1, 1)])
@pytest.mark.parametrize("prior", [GroupNormalJeffreys(), GroupHorseshoe(), LogUniform()])
def test_layers_of_one_group_and_batches_of_one(shape, prior):
    inputs, units = shape
    net = nn.Sequential(nn.Linear(inputs, units), nn.Tanh(), nn.Linear(units, 3))
    small = compress(*fitted(X[:, :inputs], Y, net, prior, batch=1, kl_weight=0.01))
    assert small.architecture == shape


def test_weights_and_inputs_that_are_not_contiguous_are_those_that_are():
    first = small_net()
    second = small_net()
    second.load_state_dict(first.state_dict())
    second[0].weight = nn.Parameter(first[0].weight.detach().T.contiguous().T)
    assert not second[0].weight.is_contiguous()
    x = X.T.contiguous().T
    files = [compress(*fitted(inputs, Y, net)).to_bytes() for inputs, net in ((X, first), (x, second))]
    assert files[0] == files[1]


def test_double_precision_is_torchs_default_dtype_and_gives_the_same_network():
    torch.set_default_dtype(torch.float64)
    try:
        double = compress(*fitted(X.double(), Y, epochs=2))
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(layer.weight.values().dtype == torch.float32 for layer in double.layers)
    with pytest.raises(UsageError, match="set_default_dtype"):
        fitted(net=small_net().double())
    with pytest.raises(UsageError, match="set_default_dtype"):
        fitted(net=small_net().double(), prior=LearnedCode())


def test_two_networks_in_one_process_do_not_share_parameters():
    """Pyro's store has one name for the sites of both."""
    alone = compress(*fitted()).to_bytes()
    first = fitted()
    other = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    second = fitted(net=other)
    assert compress(*second).architecture == (6, 5) and compress(*first).architecture == (6, 8)
    torch.manual_seed(0)
    assert len(alone) > 50


def test_a_loop_with_svi_starts_from_its_own_networks_parameters():
    """Pyro's store has another model's under the same names, of the same shapes or of others."""

    def loop(units, steps):
        torch.manual_seed(units)
        net = nn.Sequential(nn.Linear(6, units), nn.BatchNorm1d(units), nn.ReLU(), nn.Linear(units, 3))
        model = BayesianNetwork(net, num_data=48)
        guide = FactorizedGuide(model)
        svi = SVI(model, guide, ClippedAdam({"lr": 0.05}), TraceMeanField_ELBO())
        svi.evaluate_loss(X, Y)
        assert torch.equal(guide.parameters_of("net.0.weight")[0], net[0].weight)
        assert torch.equal(model.net[1].weight, net[1].weight)
        for _ in range(steps):
            svi.step(X, Y)
        return net, model, guide, svi

    first = loop(8, 3)
    loop(8, 3)
    other = loop(9, 0)
    before = [guide.parameters_of("net.0.weight")[0].clone() for guide in (first[2], other[2])]
    normalised = first[1].net[1].weight.clone()
    first[3].step(X, Y)  # each trains its own, also in turns
    assert not torch.equal(first[2].parameters_of("net.0.weight")[0], before[0])
    assert not torch.equal(first[1].net[1].weight, normalised)
    assert torch.equal(other[2].parameters_of("net.0.weight")[0], before[1])


def test_parameters_that_were_read_from_a_file_are_taken_over(tmp_path):
    model = BayesianNetwork(small_net(), num_data=48)
    guide = FactorizedGuide(model)
    guide(X, Y)
    pyro.get_param_store().save(tmp_path / "store")
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "store")
    again = FactorizedGuide(BayesianNetwork(small_net(), num_data=48))
    again(X, Y)
    assert torch.equal(again.parameters_of("net.0.weight")[0], guide.parameters_of("net.0.weight")[0])
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "store")
    wider = BayesianNetwork(nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)), num_data=48)
    with pytest.raises(UsageError, match="clear_param_store"):
        FactorizedGuide(wider)(X, Y)
