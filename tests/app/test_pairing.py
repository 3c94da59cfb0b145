"""A network and data go together or are refused at once; scales found from data are in the network, and are those."""

import pytest
import torch
from torch import nn

from pyro_bc.app.dense import load_weights
from pyro_bc.app.examples import Examples, dataset_of
from pyro_bc.app.normalised import Normalised, Scales
from pyro_bc.app.observed import training_loss
from pyro_bc.app.own_network import network
from pyro_bc.app.pairing import check_network, check_outputs, normalised, paired
from pyro_bc.data import Streamed
from pyro_bc.errors import UnsupportedNetworkError, UsageError
from pyro_bc.model.likelihoods import Bernoulli, Categorical, Normal, Poisson
from pyro_bc.priors.horseshoe import GroupHorseshoe

X = torch.randn(300, 3) * torch.tensor([0.1, 1.0, 3000.0]) + torch.tensor([0.0, 1e6, -7.0])


def data_of(x, y, likelihood=None):
    return dataset_of("set", Examples("numbers", x, y), likelihood)


def test_scales_are_near_means_and_deviations_and_take_few_bits():
    found = Scales.of(X)
    ratio = found.deviation / X.double().std(0)
    assert (
        ratio.min() > 0.7 and ratio.max() < 1.42 and torch.equal(found.deviation.log2().round().exp2(), found.deviation)
    )
    assert ((found.mean - X.double().mean(0)) / found.deviation).abs().max() < 0.13
    assert torch.equal((found.mean / found.deviation * 4).round(), found.mean / found.deviation * 4)
    pictures = torch.rand(50, 3, 4, 4) * torch.tensor([1.0, 4.0, 0.0])[:, None, None]
    by_channel = Scales.of(pictures)
    assert by_channel.mean.shape == (3, 1, 1) and by_channel.deviation.flatten().tolist() == [0.25, 1.0, 1.0]
    assert Scales.of(torch.randn(9, 5, 4)).mean.numel() == 1 and Scales.of(X[:, 0]).mean.shape == ()
    read = []
    streamed = Streamed(lambda rows: read.append(len(rows)) or torch.ones(len(rows), 1), torch.arange(100_000), (1,))
    assert float(Scales.of(streamed).mean) == 1 and sum(read) < 5000


def test_a_network_for_own_units_is_the_network_between_two_scales():
    data = paired(net := nn.Linear(3, 1), data_of(X, 500 + 30 * X[:, 1:2] - 3e7))
    wrapped = normalised(net, data)
    assert isinstance(wrapped, Normalised) and set(wrapped.scales()) == {
        "input_mean", "input_deviation", "output_mean", "output_deviation"
    }  # fmt: skip
    x = (X[:5] - Scales.of(data.train_x).mean) / Scales.of(data.train_x).deviation
    y = Scales.of(data.train_y)
    assert torch.allclose(wrapped(X[:5]), net(x) * y.deviation + y.mean)
    rate = data.likelihood.rate / Normal().rate  # the noise begins in units of the targets
    assert rate == pytest.approx(float(data.train_y.double().var()))
    counts = paired(net, data_of(X, torch.full((300,), 20), "poisson"))
    assert isinstance(counts.likelihood, Poisson) and normalised(net, counts).output_mean == 3.0  # log 20 is 2.996


def test_a_network_that_ends_in_an_activation_keeps_its_range():
    data = data_of(X, 500 + 30 * X[:, 1:2].abs())
    positive, share = (nn.Sequential(nn.Linear(3, 1), end) for end in (nn.Softplus(), nn.Sigmoid()))
    wrapped, y = normalised(positive, paired(positive, data)), Scales.of(data.train_y)
    x = (X[:5] - Scales.of(data.train_x).mean) / Scales.of(data.train_x).deviation
    assert torch.allclose(wrapped(X[:5]), positive(x) * y.deviation)  # shifted, none would be below the mean
    assert torch.allclose(normalised(share, paired(share, data))(X[:5]), share(x))


@pytest.mark.parametrize(
    ("end", "likelihood"), [(nn.Softmax(-1), "categorical"), (nn.Sigmoid(), "bernoulli"), (nn.Softplus(), "poisson")]
)
def test_a_network_that_ends_in_what_the_likelihood_applies_is_refused(end, likelihood):
    y = (X[:, 0] > 0).long()
    net = nn.Sequential(nn.Linear(3, 2 if likelihood == "categorical" else 1), end)
    data = paired(net, data_of(X, y, likelihood))
    with pytest.raises(UsageError, match="the network ends in"):
        check_outputs(normalised(net, data), data)


def test_a_checkpoint_is_read_whatever_is_in_front_of_its_names(tmp_path):
    net, again = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    own = net.state_dict()
    wrapped, twice = ({f"{front}.{name}": own[name] for name in own} for front in ("module", "net.model"))
    for content in (wrapped, {"epoch": 3, "model": own}, {"state_dict": twice, "loss": 0.1}):
        torch.save(content, tmp_path / "last.ckpt")
        nn.init.zeros_(again[0].weight)
        assert torch.equal(load_weights(again, tmp_path / "last.ckpt")(X), net(X))
    torch.save({"model": own, "average": own}, tmp_path / "two.pt")
    with pytest.raises(UsageError, match="2 dictionaries of tensors, 'model', 'average': save"):
        load_weights(again, tmp_path / "two.pt")
    torch.save(net, tmp_path / "whole.pt")
    with pytest.raises(UsageError, match=r"something else than a dictionary of tensors: save net\.state_dict\(\)"):
        load_weights(again, tmp_path / "whole.pt")


def test_of_several_outputs_the_logits_are_meant(tmp_path, monkeypatch):
    (tmp_path / "many.py").write_text(
        "from torch import nn\n"
        "class Named(nn.Linear):\n"
        "    def __init__(self): super().__init__(3, 2)\n"
        "    def forward(self, x):\n"
        "        y = super().forward(x)\n"
        "        return {'hidden': x, 'logits': y}\n"
        "class Pair(Named):\n"
        "    def forward(self, x): return x, x\n"
        "def wide(): return Named().double()\n"
    )
    data = data_of(X, (X[:, 0] > 0).long())
    net = network(f"{tmp_path}/many.py:Named")((3,), 2)
    assert paired(net, data).likelihood == Categorical() and torch.equal(net(X), net.forward(X)["logits"])
    with pytest.raises(UnsupportedNetworkError, match="return one, or a dictionary with 'logits'"):
        paired(network(f"{tmp_path}/many.py:Pair")((3,), 2), data)
    with pytest.raises(UsageError, match=r"parameters of torch\.float64.*return net\.float\(\)"):
        network(f"{tmp_path}/many.py:wide")((3,), 2)


def test_what_a_run_wrote_of_a_normalised_network_is_read_again(tmp_path):
    wrapped = normalised(net := nn.Linear(3, 2), paired(net, data_of(X, (X[:, 0] > 0).long())))
    torch.save(wrapped.state_dict(), tmp_path / "net.pt")
    again = load_weights(nn.Linear(3, 2), tmp_path / "net.pt")
    assert isinstance(again, Normalised) and torch.equal(again(X), wrapped(X))
    torch.save(net.state_dict(), tmp_path / "plain.pt")
    assert torch.equal(load_weights(nn.Linear(3, 2), tmp_path / "plain.pt")(X), net(X))


def test_integers_are_the_networks_own_or_numbers():
    tokens = torch.randint(7, (300, 4))
    y = torch.randint(2, (300,))
    embedding = nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(12, 2))
    data = paired(embedding, data_of(tokens, y))
    assert data.train_x.dtype == torch.int64 and normalised(embedding, data) is embedding
    linear = nn.Linear(4, 2)
    data = paired(linear, data_of(tokens, y))
    assert data.train_x.dtype == data.test_x.dtype == torch.float32
    assert isinstance(normalised(linear, data), Normalised)


def test_classes_per_place_are_found_where_the_outputs_count_them():
    y = torch.randint(3, (300, 5))
    first = nn.Sequential(nn.Linear(3, 15), nn.Unflatten(1, (3, 5)))
    last = nn.Sequential(nn.Linear(3, 15), nn.Unflatten(1, (5, 3)))
    assert paired(first, data_of(X, y)).likelihood == Categorical(class_dim=1)
    assert paired(last, data_of(X, y)).likelihood == Categorical()


@pytest.mark.parametrize(
    ("net", "y", "likelihood", "message"),
    [
        (nn.Linear(4, 2), torch.ones(300).long(), None, r"cannot be run on inputs \(270, 3\), numbers: mat1"),
        (
            nn.Linear(3, 2),
            torch.arange(300) % 3,
            None,
            r"labels lie in \[0, 2\], but the network has 2 outputs.*normal",
        ),
        (nn.Linear(3, 2), torch.rand(300), None, r"does not fit targets of shape.*give another --likelihood"),
        (nn.Linear(3, 1), torch.arange(300) % 3, "bernoulli", "targets are 0 or 1"),
        (nn.Linear(3, 1), -torch.ones(300), "poisson", "counts"),
        (nn.LSTM(3, 2), torch.ones(300).long(), None, "output is a tuple"),
    ],
)
def test_what_does_not_go_together_is_said(net, y, likelihood, message):
    with pytest.raises((UsageError, UnsupportedNetworkError), match=message):
        paired(net, data_of(X, y, likelihood))


def test_classes_with_names_are_as_many_as_outputs():
    data = dataset_of("set", Examples("numbers", X, torch.arange(300) % 2, classes=("cat", "dog")), None)
    assert paired(nn.Linear(3, 2), data).class_names == ("cat", "dog")
    with pytest.raises(UsageError, match=r"2 classes \(cat, dog\), but the network 3 outputs"):
        paired(nn.Linear(3, 3), data)


def test_a_network_that_no_file_can_hold_is_refused_and_nothing_is_changed():
    class Odd(nn.Linear):
        def forward(self, x):
            return super().forward(x.sort(0)[0])

    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    data = paired(net, data_of(X, (X[:, 0] > 0).long()))
    before = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    check_network(net, data, GroupHorseshoe())
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before[0].items())
    assert torch.equal(before[1], torch.get_rng_state())
    with pytest.raises(UnsupportedNetworkError):
        check_network(Odd(3, 2), data, GroupHorseshoe())


@pytest.mark.parametrize("likelihood", [Categorical(), Bernoulli(), Normal(), Poisson()])
def test_the_loss_of_a_dense_training_is_the_likelihoods(likelihood):
    classes = isinstance(likelihood, Categorical)
    outputs = torch.randn(6, 3 if classes else 1)
    y = torch.tensor([0, 1, 2, 0, 1, 1]) if classes else torch.tensor([0.0, 1, 1, 0, 1, 0])
    z = outputs[:, 0]
    expected = {
        Categorical: lambda: -outputs.log_softmax(1)[torch.arange(6), y].mean(),
        Bernoulli: lambda: nn.functional.binary_cross_entropy_with_logits(z, y),
        Normal: lambda: nn.functional.gaussian_nll_loss(z, y, torch.full((6,), 0.1), full=True),
        Poisson: lambda: nn.functional.poisson_nll_loss(z, y) + torch.lgamma(y + 1).mean(),
    }[type(likelihood)]()
    assert training_loss(likelihood, outputs, y) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_all_of_a_set_is_each_example_once(is_streamed):
    x = torch.arange(40.0).reshape(20, 2)
    own = Streamed(lambda rows: x[rows], torch.arange(20), (2,)) if is_streamed else x
    data = data_of(own, x.sum(1))
    whole = data.whole("all")
    order = whole.test_x[:][:, 0].argsort()
    assert (len(data.test_x), len(whole.test_x), whole.test_part) == (2, 20, "all")
    assert torch.equal(whole.test_x[:][order], x) and torch.equal(whole.test_y[order], x.sum(1))
    assert data.split_from and data.split_from == data_of(x.clone(), x.sum(1)).split_from
    assert data.split_from != data_of(x, x.sum(1) + 1).split_from
