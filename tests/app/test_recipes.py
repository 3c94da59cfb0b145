"""Settings override the recipe, and nothing else does."""

import pytest

from pyro_bc.app.networks import NETWORKS
from pyro_bc.app.recipes import recipe
from pyro_bc.app.settings import Settings


def test_settings_override_the_recipe_and_nothing_else():
    plain = recipe(Settings("lenet-300-100", "gnj", "digits"))
    changed = recipe(Settings("lenet-300-100", "gnj", "digits", epochs=3, kl_weight=1.0))
    assert (changed.epochs, changed.kl_weight) == (3, 1.0)
    assert (changed.learning_rate, changed.pretrain_epochs) == (plain.learning_rate, plain.pretrain_epochs)


def test_a_pretrained_network_is_not_pretrained_again_unless_asked_to():
    settings = {"net": "lenet-300-100", "prior": "gnj", "data": "mnist", "pretrained": "net.safetensors"}
    assert recipe(Settings(**settings)).pretrain_epochs == 0
    assert recipe(Settings(**settings, pretrain_epochs=3)).pretrain_epochs == 3


@pytest.mark.parametrize("net", NETWORKS)
def test_zero_is_a_setting_too(net):
    plan = recipe(Settings(net, "ghs", "cifar-10", finetune_epochs=0, shift=0, kl_weight=0.0))
    assert (plan.finetune_epochs, plan.shift, plan.kl_weight) == (0, 0, 0.0)
