"""Settings override the recipe, and nothing else does; what has no recipe takes what suits any network."""

import pytest

from pyro_bc.app.networks import NETWORKS
from pyro_bc.app.recipes import RECIPES, recipe
from pyro_bc.app.settings import PRIORS, Settings
from pyro_bc.errors import UsageError


def test_settings_override_the_recipe_and_nothing_else():
    plain = recipe(Settings.of("lenet-300-100", "gnj", "digits"), 1000)
    changed = recipe(Settings.of("lenet-300-100", "gnj", "digits", epochs=3, kl_weight=1.0), 1000)
    assert (changed.fit.epochs, changed.fit.kl_weight) == (3, 1.0)
    assert changed.fit.learning_rate == plain.fit.learning_rate and changed.dense == plain.dense


def test_a_pretrained_network_is_not_pretrained_again_unless_asked_to():
    settings = {"net": "lenet-300-100", "prior": "gnj", "data": "mnist", "pretrained": "net.safetensors"}
    assert recipe(Settings.of(**settings), 1000).dense.epochs == 0
    assert recipe(Settings.of(**settings, pretrain_epochs=3), 1000).dense.epochs == 3


@pytest.mark.parametrize("net", ["vgg-16", "resnet-18", "wrn-16-4"])
def test_zero_is_a_setting_too(net):
    plan = recipe(Settings.of(net, "ghs", "cifar-10", finetune_epochs=0, shift=0, kl_weight=0.0), 1000)
    assert (plan.finetune.epochs, plan.fit.shift, plan.fit.kl_weight) == (0, 0, 0.0)


@pytest.mark.parametrize("key", RECIPES, ids="-".join)
def test_every_recipe_is_whole_and_for_what_there_is(key):
    net, data, prior = key
    assert net in NETWORKS and prior in PRIORS
    plan = recipe(Settings.of(net, prior, data), 1000)
    for stage in (plan.dense, plan.fit, plan.finetune):
        missing = [name for name, value in vars(stage).items() if value is None and name != "weights"]
        assert missing == []


def test_a_combination_without_a_recipe_takes_what_suits_any_network():
    settings = {"net": "lenet-300-100", "prior": "ghs", "data": "fashion-mnist"}
    plan = recipe(Settings.of(**settings), 1280)
    assert (plan.dense.epochs, plan.fit.epochs, plan.fit.kl_weight) == (120, None, None)  # 10 steps an epoch
    large = recipe(Settings.of(**settings), 128_000)
    assert (large.dense.epochs, large.fit.epochs) == (15, None)
    plan = recipe(Settings.of(**settings, epochs=3, pretrain_epochs=1, kl_weight=0.1), 1000)
    assert (plan.fit.epochs, plan.fit.batch_size, plan.fit.kl_weight) == (3, 128, 0.1)
    with pytest.raises(UsageError, match="no option 'epoch'"):
        Settings.of(**settings, epoch=3)


def test_a_file_of_widths_takes_the_place_of_the_recipes_widths():
    learned = {"net": "lenet-5-caffe", "prior": "learned", "data": "mnist"}
    assert recipe(Settings.of(**learned), 1000).widths == "8-12-32"
    assert recipe(Settings.of(**learned, widths=""), 1000).widths == ""
    assert recipe(Settings.of(**learned, widths_from="net.pbc"), 1000).widths == ""
