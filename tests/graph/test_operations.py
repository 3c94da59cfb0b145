"""What every row of the table of operations promises: its code, and that its flags are true."""

import pytest
import torch

from pyro_bc.graph.operations import OPERATIONS

# The names in the order of their codes, written out: files depend on them.
NAMES = [
    "linear", "conv2d", "conv1d", "max_pool2d", "flatten", "batch_norm", "add", "cat", "index_select", "sub",
    "mul", "div", "avg_pool2d", "adaptive_avg_pool2d", "mean", "view", "reshape", "transpose", "permute",
    "squeeze", "unsqueeze", "unflatten", "select", "slice", "layer_norm", "softmax",
    "scaled_dot_product_attention", "expand", "pad", "matmul", "bmm", "sum", "amax", "max_pool1d",
    "avg_pool1d", "adaptive_avg_pool1d", "group_norm", "log_softmax", "upsample_nearest2d",
    "adaptive_max_pool2d", "gru", "lstm", "zeros", "getitem", "size", "int_add", "int_sub", "int_mul",
    "int_floordiv", "maximum", "minimum", "prelu", "rms_norm", "chunk", "split", "stack", "embedding",
    "pixel_shuffle", "instance_norm", "t", "relu", "tanh", "sigmoid", "gelu", "silu", "softplus", "elu",
    "leaky_relu", "relu6", "hardtanh", "hardsigmoid", "hardswish", "selu", "mish", "celu", "log_sigmoid",
    "neg", "abs", "exp", "log", "sqrt", "rsqrt", "square", "pow", "clamp", "contiguous", "clone", "erf",
    "sin", "cos", "conv_transpose2d",
]  # fmt: skip


def test_codes_are_those_that_files_hold():
    assert {row.code: row.name for row in OPERATIONS} == dict(enumerate(NAMES))
    assert len(OPERATIONS) == len(NAMES) == len(set(NAMES))


#: arguments behind the tensor of operations that need some.
MORE = {"pow": (2,), "clamp": (-0.5, 0.5)}


@pytest.mark.parametrize("row", [row for row in OPERATIONS if row.elementwise], ids=lambda row: row.name)
def test_an_elementwise_operation_does_to_one_element_what_it_does_to_all(row):
    x = torch.linspace(0.1, 3, 24).reshape(2, 3, 4)
    whole = row.function(x, *MORE.get(row.name, ()))
    alone = [row.function(element.reshape(1), *MORE.get(row.name, ())) for element in x.flatten()]
    torch.testing.assert_close(whole, torch.cat(alone).reshape(x.shape))


@pytest.mark.parametrize("row", [row for row in OPERATIONS if row.monotone], ids=lambda row: row.name)
def test_a_monotone_operation_keeps_the_order(row):
    assert row.elementwise
    assert (row.function(torch.linspace(-20, 20, 4001)).diff() >= 0).all()
