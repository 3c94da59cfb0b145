"""Rows of a table as groups: those that nothing needs are 0, and the file holds the others alone."""

import numpy as np
import onnxruntime
import pyro
import pytest
import torch
from helpers import set_up
from pyro.infer import TraceMeanField_ELBO
from torch import nn

import pyro_bc
from pyro_bc.errors import UsageError
from pyro_bc.inference.elbo import elbo_terms
from pyro_bc.inspection.arviz import layer_posteriors
from pyro_bc.posterior.in_place import compressed_in_place, network_with

WORDS, COLUMNS = 300, 8
ROWS = pyro_bc.RowGroups(pyro_bc.GroupNormalJeffreys())


class Sentences(nn.Module):
    def __init__(self, bag: bool = False, words: int = WORDS):
        super().__init__()
        self.words = nn.EmbeddingBag(words, COLUMNS) if bag else nn.Embedding(words, COLUMNS)
        self.head = nn.Linear(COLUMNS, 3)

    def forward(self, x):
        found = self.words(x)
        return self.head((found if found.dim() == 2 else found.mean(1)).relu())


def sentences(count: int = 20, words: int = WORDS) -> torch.Tensor:
    return torch.randint(words, (count, 6), generator=torch.Generator().manual_seed(2))


def with_words(net, kept: torch.Tensor, x: torch.Tensor):
    """A model at the network's weights, of whose words some are none but noise."""
    model, guide = set_up(net, x, ROWS, init_log_variance=-18.0)
    with torch.no_grad():
        guide.locs.net.words.scale[~kept], guide.log_variances.net.words.scale[~kept] = 1e-3, 0.0
    return model, guide


@pytest.mark.parametrize("bag", [False, True])
def test_rows_that_are_pruned_are_zero_and_not_in_the_file(bag, tmp_path):
    torch.manual_seed(0)
    x, kept = sentences(), torch.rand(WORDS) < 0.3
    model, guide = with_words(Sentences(bag), kept, x)
    small = pyro_bc.compress(model, guide)
    (table,) = [layer for layer in small.layers if layer.name == "words"]
    assert table.weight.codes.shape == (int(kept.sum()) + 1, COLUMNS) and not table.weight.codes[0].any()
    layers = pyro_bc.summarize(guide)
    masked = network_with(model, layers, {name: compressed_in_place(own) for name, own in layers.items()})
    assert torch.equal(masked.words.weight.any(1), kept)
    everything = torch.arange(WORDS).reshape(-1, 6)
    with torch.no_grad():
        expected = masked(everything)
        torch.testing.assert_close(small.network()(everything), expected)
        size = small.save(tmp_path / "small.pbc")
        torch.testing.assert_close(pyro_bc.load(tmp_path / "small.pbc")(everything), expected)
    whole = pyro_bc.compress(model, guide, thresholds={"words": 1e3})
    assert size < 0.6 * whole.save(tmp_path / "whole.pbc")
    pyro_bc.onnx.to_onnx(small, tmp_path / "small.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "small.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: everything.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)


def test_a_row_that_is_gone_costs_next_to_nothing(tmp_path):
    torch.manual_seed(0)
    sizes = []
    for words in (400, 4000):  # of which the same hundred stay
        x = sentences(words=100)
        kept = torch.arange(words) < 100
        torch.manual_seed(1)
        net = Sentences(words=words)
        with torch.no_grad():
            net.words.weight[:100] = torch.randn(100, COLUMNS, generator=torch.Generator().manual_seed(3))
            net.head.weight.fill_(0.25)
        sizes.append(pyro_bc.compress(*with_words(net, kept, x)).save(tmp_path / "t.pbc"))
    assert sizes[1] - sizes[0] < 60


def test_few_zeros_stay_where_they_are():
    x, kept = sentences(words=40), torch.arange(40) < 30
    small = pyro_bc.compress(*with_words(Sentences(words=40), kept, x))
    assert small.layers[0].weight.codes.shape == (40, COLUMNS) and "cumsum" not in {node.op for node in small.nodes}


def test_the_bound_is_that_of_pyros_own_loop_and_rows_die():
    torch.manual_seed(0)
    x = sentences(400)
    y = (x < 20).any(1).long()  # the others do not matter
    model = pyro_bc.BayesianNetwork(Sentences(), ROWS, num_data=400)
    guide = pyro_bc.FactorizedGuide(model, init_log_variance=-4.0)
    guide(x[:8], y[:8])
    pyro.enable_validation(False)
    with torch.no_grad():
        ours = np.array([float(elbo_terms(model, guide, x[:8], y[:8]).loss()) for _ in range(100)])
        pyros = np.array([TraceMeanField_ELBO().loss(model, guide, x[:8], y[:8]) for _ in range(100)])
    assert abs(ours.mean() - pyros.mean()) < 4.5 * np.hypot(ours.std(), pyros.std()) / 10
    result = pyro_bc.fit(model, guide, pyro_bc.data.Batches(x, y, 100), epochs=60, kl_weight=0.1, learning_rate=2e-2,
                         log_learning_rate=0.1, progress=False)  # fmt: skip
    keeps = pyro_bc.summarize(guide)["net.words"].signal_to_noise() > 1
    assert keeps[:20].float().mean() > 0.8 and keeps[20:].float().mean() < 0.5
    assert result.history[-1].groups_left["net.words"] < 0.5 * WORDS


def test_check_and_export_say_that_rows_are_the_groups():
    rows = {row.name: row.groups for row in pyro_bc.check(Sentences(), sentences(), prior=ROWS).layers}
    assert rows == {"words": "300 rows", "head": "8 inputs"}
    _, guide = with_words(Sentences(), torch.ones(WORDS, dtype=torch.bool), sentences())
    data = pyro_bc.to_inference_data(guide, draws=3)
    assert data.posterior["net.words.scale"].dims[-1] == "net.words.input"
    again = layer_posteriors(data)["net.words"]
    assert again.group_dim == 0 and torch.equal(again.statistic, pyro_bc.summarize(guide)["net.words"].statistic)


def test_a_model_by_hand_and_what_has_no_groups():
    weight = pyro_bc.RowGroups(pyro_bc.GroupHorseshoe()).sample("words", (5, 2))
    assert weight.shape == (5, 2)
    trace = pyro.poutine.trace(pyro_bc.RowGroups().sample).get_trace("words", (5, 2))
    assert trace.nodes["words.local_a"]["value"].shape == (5,)
    with pytest.raises(UsageError, match="scale for groups"):
        pyro_bc.RowGroups(pyro_bc.LogUniform())
