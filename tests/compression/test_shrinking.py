"""Of half of the groups, what is left of today's blocks is what the output depends on (all 18, twice, in analyses)."""

import pytest
import shrinking


@pytest.mark.parametrize(
    "name",
    [
        "ResNet block",
        "conv, activation, batch norm",
        "RepVGG",
        "GroupNorm",
        "TCN with chomp",
        "ShuffleNetV2",
        "ConvNeXt",
    ],
)
def test_parameters_left_are_those_that_are_needed(name):
    _, left, needed, difference = shrinking.measure(name, "at random")
    assert difference < 1e-5
    assert needed > 0.9 * left


@pytest.mark.parametrize("name", ["RegNet (grouped, SE)", "ViT, one qkv"])
def test_groups_of_a_grouped_convolution_and_heads_of_one_projection_go(name):
    _, left, needed, difference = shrinking.measure(name, "every second")
    assert difference < 1e-5
    assert needed > 0.9 * left
