"""What every row of the table of operations promises: its code, its function, its rules, and that its flags are true.

A new operation joins by an example of it in ``EXAMPLES``.
"""

import hashlib
import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_bc.graph.constants import propagate
from pyro_bc.graph.layer_types import LAYER_TYPES, layer_type
from pyro_bc.graph.module import GraphNetwork
from pyro_bc.graph.nodes import Graph, Named, Node, Value, arguments, is_layer, layer_name
from pyro_bc.graph.operations import OPERATIONS
from pyro_bc.graph.units import Tracking

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
    "sin", "cos", "conv_transpose2d", "to",
]  # fmt: skip

#: layers that came later, by their codes.
LAYERS_SINCE = {
    400: "conv3d",
    401: "conv_transpose1d",
    402: "conv_transpose3d",
    403: "lookup",
    404: "rnn_tanh",
    405: "rnn_relu",
}


#: SHA-256 of the later ones, each as its code, a space and its name in a line.
LATER = "d2739e3a42fb53d842cf01457d82b8d6715b984725fc7a52176a9db2c751b09f"


def test_codes_are_those_that_files_hold():
    assert {row.code: row.name for row in OPERATIONS if row.code < len(NAMES)} == dict(enumerate(NAMES))
    assert {row.code: row.name for row in OPERATIONS if row.code >= 400} == LAYERS_SINCE
    later = sorted((row.code, row.name) for row in OPERATIONS if 92 <= row.code < 400)
    assert hashlib.sha256("".join(f"{code} {name}\n" for code, name in later).encode()).hexdigest() == LATER
    for what in ("code", "name"):
        assert len({getattr(row, what) for row in OPERATIONS}) == len(OPERATIONS)


#: arguments behind the tensor of operations that need some.
MORE = {"pow": (2,), "clamp": (-0.5, 0.5), "to": (torch.int64,), "threshold": (0.5, 2.0)}

#: results of two layers of four units each, which the operation of an example may read.
A, B = Value(0), Value(1)

PICTURES, SEQUENCES, ROWS, VOLUMES = (nn.Conv2d, (6, 6)), (nn.Conv1d, (6,)), (nn.Linear, ()), (nn.Conv3d, (4, 4, 4))


@dataclass(frozen=True)
class Example:
    """An operation's arguments, of which the layers' results are some, and who computes the same.

    :param args: of the operation; ``Value(2)`` is the result of ``before``.
    :param reference: torch's public function, which takes the same arguments, looked up.
    :param tensors: that the arguments name: shapes of random ones, or the tensors themselves.
    :param after: type of the two layers, and the dimensions of their results behind the units.
    :param before: a node between the layers and the operation.
    :param kwargs: of the operation, as a node has them.
    """

    args: tuple[Any, ...]
    reference: Callable[..., Any]
    tensors: dict[str, Any] = field(default_factory=dict)
    after: tuple[type[nn.Module], tuple[int, ...]] = PICTURES
    before: Node | None = None
    kwargs: tuple[tuple[str, Any], ...] = ()


def layer(op, weight, outputs, *more, after=PICTURES):
    """An example of a layer with a weight of this shape, behind two of another type, or of its own."""
    args = (A, Named("op.weight"), Named("op.bias"), *more)
    return Example(args, layer_type(op).function, {"op.weight": weight, "op.bias": (outputs,)}, after)


W, SHIFT, MEAN, VARIANCE = map(Named, ("w", "shift", "mean", "variance"))
CELL = tuple(map(Named, ("ih", "hh", "bih", "bhh")))


def normalised(args, reference):
    """An example of a normalisation of channels."""
    return Example(args, reference, dict.fromkeys(("w", "shift", "mean", "variance"), (4,)))


def recurrent(module, gates, state):
    def reference(x, hidden, weights, *options):
        cell = module(6, 3)
        for parameter, weight in zip(cell.parameters(), weights, strict=True):
            parameter.data = weight
        outputs, last = cell(x, tuple(hidden) if isinstance(hidden, list) else hidden)
        return (outputs, *last) if isinstance(last, tuple) else (outputs, last)

    shapes = {"h": (1, 4, 3), "ih": (3 * gates, 6), "hh": (3 * gates, 3), "bih": (3 * gates,), "bhh": (3 * gates,)}
    return Example((A, state, CELL, True, 1, 0.0, False, False, False), reference, shapes, SEQUENCES)


#: a gain that is 0 for some channels.
HALF = torch.tensor([0.5, 0.0, 1.5, 0.0])
ONE_POSITION = Node("mean", (A, (2, 3), True))
TURNED = Node("transpose", (B, 1, 2))

#: by the name of the operation; of the element-wise ones only those whose function has another name in torch.
EXAMPLES: dict[str, list[Example]] = {
    "linear": [layer("linear", (3, 4), 3, after=ROWS), layer("linear", (3, 6), 3)],
    "conv1d": [layer("conv1d", (3, 4, 3), 3, (1,), (1,), after=SEQUENCES)],
    "conv2d": [
        layer("conv2d", (3, 4, 3, 3), 3, (2, 2), (1, 1)),
        layer("conv2d", (4, 1, 1, 1), 4, (1, 1), (0, 0), (1, 1), 4),
        layer("conv2d", (6, 2, 1, 1), 6, (1, 1), (0, 0), (1, 1), 2),
    ],
    "lookup": [
        Example(
            (Named("rows"), Named("op.weight"), None, 2),
            lambda rows, weight, bias, padding: F.embedding(rows, weight, padding),
            {"rows": torch.tensor([[0, 2], [3, 1], [3, 3]]), "op.weight": (4, 3), "op.bias": (3,)},
        )
    ],
    "conv3d": [
        layer("conv3d", (6, 4, 3, 3, 3), 6, (2, 1, 2), (1, 1, 1), (1, 1, 1), 1, after=VOLUMES),
        layer("conv3d", (6, 2, 1, 2, 3), 6, (1, 1, 1), (0, 1, 0), (2, 1, 1), 2, after=VOLUMES),
    ],
    "conv_transpose1d": [
        layer("conv_transpose1d", (4, 3, 3), 3, (2,), (1,), (1,), 1, (2,), after=SEQUENCES),
        layer("conv_transpose1d", (4, 3, 3), 6, (2,), (0,), (0,), 2, (1,), after=SEQUENCES),
    ],
    "conv_transpose3d": [
        layer("conv_transpose3d", (4, 3, 3, 2, 3), 3, (2, 1, 2), (1, 0, 1), (1, 0, 1), 1, (2, 1, 1), after=VOLUMES),
    ],
    "conv_transpose2d": [
        layer("conv_transpose2d", (4, 3, 3, 3), 3, (2, 2), (1, 1), (1, 1), 1, (2, 2)),
        layer("conv_transpose2d", (4, 3, 3, 3), 6, (2, 2), (0, 0), (0, 0), 2, (1, 1)),
    ],
    "max_pool2d": [Example((A, (2, 2), (2, 2)), F.max_pool2d), Example((A, (3, 3), (1, 1), (1, 1)), F.max_pool2d)],
    "avg_pool2d": [
        Example((A, (2, 2), (2, 2)), F.avg_pool2d),
        Example((A, (3, 3), (1, 1), (1, 1)), F.avg_pool2d),
        Example((A, (3, 3), (1, 1), (1, 1), False, False), F.avg_pool2d),
        Example((A, (2, 2), (2, 2), (0, 0), False, True, 3), F.avg_pool2d),
        Example((A, (3, 2), (2, 2), (0, 0), True, True, 5), F.avg_pool2d),
        Example((A, (3, 2), (2, 2), (0, 0), True), F.avg_pool2d),
    ],
    "adaptive_avg_pool2d": [Example((A, (2, 3)), F.adaptive_avg_pool2d)],
    "adaptive_max_pool2d": [Example((A, (2, 2)), lambda x, size: F.adaptive_max_pool2d(x, size, True))],
    "max_pool1d": [Example((A, (2,), (2,)), F.max_pool1d, after=SEQUENCES)],
    "avg_pool1d": [
        Example((A, (2,), (2,)), F.avg_pool1d, after=SEQUENCES),
        Example((A, (3,), (1,), (1,)), F.avg_pool1d, after=SEQUENCES),
    ],
    "adaptive_avg_pool1d": [Example((A, (3,)), F.adaptive_avg_pool1d, after=SEQUENCES)],
    "upsample_nearest2d": [
        Example((A, None, (2.0, 2.0)), lambda x, _, scales: F.interpolate(x, scale_factor=tuple(scales)))
    ],
    "flatten": [Example((A, 1), torch.flatten), Example((A, 2), torch.flatten)],
    "batch_norm": [
        normalised(
            (A, W, SHIFT, MEAN, VARIANCE, False, 0.1, 1e-5, False),
            lambda x, w, b, m, v, training, momentum, eps, _: F.batch_norm(x, m, v, w, b, training, momentum, eps),
        )
    ],
    "instance_norm": [
        normalised(
            (A, W, SHIFT, None, None, True, 0.1, 1e-5, False),
            lambda x, w, b, m, v, own, momentum, eps, _: F.instance_norm(x, m, v, w, b, own, momentum, eps),
        )
    ],
    "group_norm": [
        normalised((A, 2, W, SHIFT, 1e-5), F.group_norm),
        Example((A, 2, W, SHIFT, 1e-5), F.group_norm, {"w": HALF, "shift": (4,)}),
    ],
    "layer_norm": [
        Example((A, (6, 6), W, SHIFT, 1e-5), F.layer_norm, {"w": (6, 6), "shift": (6, 6)}),
        Example((A, (4,), W, SHIFT, 1e-5), F.layer_norm, {"w": HALF, "shift": (4,)}, after=ROWS),
    ],
    "rms_norm": [
        Example((A, (6, 6), W, 1e-5), F.rms_norm, {"w": (6, 6)}),
        Example((A, (4,), W, 1e-5), F.rms_norm, {"w": (4,)}, after=ROWS),
    ],
    **{
        name: [
            Example((A, B), getattr(torch, name)),
            Example((A, W), getattr(torch, name), {"w": (4, 1, 1)}),
            Example((A, Value(2)), getattr(torch, name), before=ONE_POSITION),
        ]
        for name in ("add", "sub", "mul", "div", "maximum", "minimum")
    },
    "matmul": [Example((A, B), torch.matmul), Example((A, Value(2)), torch.matmul, after=SEQUENCES, before=TURNED)],
    "bmm": [Example((A, Value(2)), torch.bmm, after=SEQUENCES, before=TURNED)],
    "cat": [Example(((A, B), 1), torch.cat), Example(((A, B), 2), torch.cat)],
    "stack": [Example(((A, B), 1), torch.stack)],
    "index_select": [
        Example((A, 1, W), torch.index_select, {"w": torch.tensor([3, 1, 2])}),
        Example((A, -1, W), torch.index_select, {"w": torch.tensor([3, 1])}),
    ],
    "mean": [Example((A, (2, 3)), torch.mean), Example((A, (-1,), True), torch.mean)],
    "sum": [Example((A, (2, 3)), torch.sum), Example((A, (1,)), torch.sum)],
    "amax": [Example((A, (2, 3)), torch.amax), Example((A, (-1,), True), torch.amax)],
    "view": [Example((A, (-1, 4, 36)), lambda x, shape: x.view(shape))],
    "reshape": [Example((A, (-1, 144)), torch.reshape), Example((A, (-1, 2, 2, 36)), torch.reshape)],
    "unflatten": [Example((A, 1, (2, 2)), torch.unflatten), Example((A, 2, (2, 3)), torch.unflatten)],
    "squeeze": [Example((Value(2), (2, 3)), torch.squeeze, before=ONE_POSITION)],
    "unsqueeze": [Example((A, 1), torch.unsqueeze), Example((A, -1), torch.unsqueeze)],
    "transpose": [Example((A, 1, 2), torch.transpose)],
    "permute": [Example((A, (0, 2, 3, 1)), torch.permute)],
    "t": [Example((A,), torch.t, after=ROWS)],
    "select": [Example((A, 2, 1), torch.select), Example((A, 1, 2), torch.select)],
    "slice": [
        Example((A, 2, 1, 3), lambda x, _, start, end: x[:, :, start:end]),
        Example((A, 1, 1, 3), lambda x, _, start, end: x[:, start:end]),
    ],
    "expand": [Example((Value(2), (-1, 4, 5, 6)), lambda x, size: x.expand(size), before=ONE_POSITION)],
    "pad": [Example((A, (1, 1), "constant", 0.5), F.pad), Example((A, (0, 0, 0, 0, 1, 0)), F.pad)],
    "chunk": [Example((A, 2, 1), torch.chunk)],
    "split": [Example((A, 2, 1), torch.split)],
    "softmax": [Example((A, 1), torch.softmax), Example((A, 2), torch.softmax)],
    "log_softmax": [Example((A, 1), torch.log_softmax), Example((A, 2), torch.log_softmax)],
    "scaled_dot_product_attention": [Example((A, B, A), F.scaled_dot_product_attention)],
    "pixel_shuffle": [Example((A, 2), F.pixel_shuffle)],
    "prelu": [Example((A, W), F.prelu, {"w": (4,)})],
    "embedding": [
        Example((W, SHIFT), lambda w, index: F.embedding(index, w), {"w": (5, 3), "shift": torch.tensor([[4, 0]])})
    ],
    "gru": [recurrent(nn.GRU, 3, Named("h"))],
    "rnn_tanh": [recurrent(nn.RNN, 1, Named("h"))],
    "rnn_relu": [recurrent(partial(nn.RNN, nonlinearity="relu"), 1, Named("h"))],
    "lstm": [recurrent(nn.LSTM, 4, (Named("h"), Named("h")))],
    "zeros": [Example(((2, 3),), torch.zeros)],
    "getitem": [Example(((A, B), 1), operator.getitem)],
    "size": [Example((A, 1), lambda x, axis: x.shape[axis])],
    "int_add": [Example((7, 3), operator.add)],
    "int_sub": [Example((7, 3), operator.sub)],
    "int_mul": [Example((7, 3), operator.mul)],
    "int_floordiv": [Example((7, 3), operator.floordiv)],
    "log_sigmoid": [Example((A,), F.logsigmoid)],
    "to": [Example((A,), lambda x, dtype: x.to(dtype), kwargs=(("dtype", "int64"),))],
    "contiguous": [Example((A,), lambda x: x.contiguous())],
}  # fmt: skip


BITS = Node("gt.Scalar", (A, 0.2))
SMALL = Node("mul", (A, 0.1))
BOTH, ONE, THREE = (A, B), (A, 1), (A, W, B)
PICK, PLACES = torch.tensor([[2, 0], [1, 3]]), torch.tensor([[[[0, 1], [2, 0]]]])
MIDDLE = {"w": (4, 1, 1)}


def further(name, *cases, reference=None, tensors=None, before=None, after=PICTURES, **kwargs):
    """Examples of one of ATen's overloads: torch's public function of its name takes the same arguments."""
    packet = name.partition(".")[0]
    for found in (torch, F, torch.Tensor):
        reference = reference or getattr(found, packet, None)
    for prefix, home in (("fft_", torch.fft), ("linalg_", torch.linalg)):
        if packet.startswith(prefix):
            reference = getattr(home, packet.removeprefix(prefix))
    tensors = MIDDLE if tensors is None else tensors
    return name, [Example(case, reference, tensors, after, before, tuple(kwargs.items())) for case in cases]


def by_mode(name, mode, after=PICTURES, **more):
    """Examples of an interpolation; those that take the nearest number have no corners to align."""
    scales, align = (2.0,) * (len(after[1])), () if "nearest" in mode else (False,)

    def reference(x, size, *rest):
        return F.interpolate(x, size, rest[-1], mode, *align, **more)

    return further(name, (A, None, *align, scales), reference=reference, after=after)


VOLUMES = Node("unsqueeze", (A, 2))
SQUARE = Node("mean", (A, (1,)))

EXAMPLES |= dict(
    [
        *(
            further(f"{name}.{kind}", *((BOTH, (A, W)) if kind == "Tensor" else ((A, 0.4),)))
            for name in ("eq", "ne", "lt", "le", "gt", "ge", "fmod", "remainder")
            for kind in ("Tensor", "Scalar")
        ),
        *(further(name, (Value(2), Value(2)), before=BITS) for name in ("logical_and", "logical_or", "logical_xor")),
        *(
            further(f"bitwise_{name}.{kind}", (Value(2), Value(2) if kind == "Tensor" else True), before=BITS)
            for name in ("and", "or", "xor")
            for kind in ("Tensor", "Scalar")
        ),
        *(
            further(name, BOTH, (A, W))
            for name in ("atan2", "floor_divide", "fmax", "fmin", "logaddexp", "copysign.Tensor", "hypot",
                         "clamp_min.Tensor", "clamp_max.Tensor")
        ),
        further("bitwise_not", (Value(2),), before=BITS),
        further("where.self", (Value(2), A, B), (Value(2), W, A), before=BITS),
        further("where.ScalarSelf", (Value(2), 0.5, A), before=BITS),
        further("where.ScalarOther", (Value(2), A, 0.5), before=BITS),
        further("where.Scalar", (Value(2), 0.25, 0.5), before=BITS),
        further("masked_fill.Scalar", (A, Value(2), 0.5), (A, W, 0.5), before=BITS,
                tensors={"w": torch.tensor([True, False, True, False])[:, None, None]}),
        further("masked_fill.Tensor", (A, Value(2), W), before=BITS, tensors={"w": ()}),
        further("clamp.Tensor", (A, W, None), (A, None, B)),
        further("addcmul", THREE), further("addcdiv", THREE),
        further("lerp.Tensor", THREE), further("lerp.Scalar", (A, B, 0.25)),
        further("xlogy.Tensor", (W, W)),
        further("div.Tensor_mode", BOTH, rounding_mode="floor"),
        further("div.Scalar_mode", (A, 2), rounding_mode="floor"),
        by_mode("upsample_bilinear2d.vec", "bilinear"), by_mode("upsample_bicubic2d.vec", "bicubic"),
        by_mode("_upsample_bilinear2d_aa.vec", "bilinear", antialias=True),
        by_mode("_upsample_bicubic2d_aa.vec", "bicubic", antialias=True),
        by_mode("_upsample_nearest_exact2d.vec", "nearest-exact"),
        by_mode("upsample_linear1d.vec", "linear", SEQUENCES), by_mode("upsample_nearest1d.vec", "nearest", SEQUENCES),
        by_mode("_upsample_nearest_exact1d.vec", "nearest-exact", SEQUENCES),
        *(
            further(name, (Value(2), None, *align, (1.0, 2.0, 2.0)), before=VOLUMES, reference=reference)
            for name, align, reference in (
                ("upsample_nearest3d.vec", (), lambda x, _, s: F.interpolate(x, None, s)),
                ("_upsample_nearest_exact3d.vec", (), lambda x, _, s: F.interpolate(x, None, s, "nearest-exact")),
                ("upsample_trilinear3d.vec", (False,), lambda x, _, a, s: F.interpolate(x, None, s, "trilinear", a)),
            )
        ),
        further("max_pool3d", (Value(2), (1, 2, 2)), before=VOLUMES),
        further("avg_pool3d", (Value(2), (1, 2, 2)), before=VOLUMES, reference=F.avg_pool3d),
        further("adaptive_avg_pool3d", (Value(2), (1, 3, 2)), before=VOLUMES),
        *(further(name, (A, (2, 3)), (A, (1,), True)) for name in ("amin", "logsumexp")),
        *(further(name, (A, 2), (A, 1, True)) for name in ("prod.dim_int", "argmax", "argmin")),
        *(further(name, (Value(2), 2), (Value(2), 1, True), before=BITS) for name in ("any.dim", "all.dim")),
        *(further(name, (Value(2), (2, 3)), before=BITS) for name in ("any.dims", "all.dims")),
        *(further(f"{name}.correction", (A, (2, 3)), correction=1) for name in ("var", "std")),
        *(further(f"{name}.dim", (A, (2, 3), False)) for name in ("var", "std")),
        further("count_nonzero.dim_IntList", (Value(2), (2, 3)), before=BITS),
        *(further(name, ONE, (A, -1)) for name in ("cumsum", "cumprod", "logcumsumexp", "argsort")),
        further("_safe_softmax", ONE, (A, -1), reference=torch.softmax), further("flip", (A, (2, 3)), (A, (1,))),
        further("glu", ONE),
        *(further(name, ONE) for name in ("max.dim", "min.dim", "cummax", "cummin", "median.dim")),
        *(further(name, (A,)) for name in ("max", "min", "prod", "std", "var", "nansum", "nanmean", "aminmax")),
        *(further(name, (Value(2),), before=BITS) for name in ("any", "all")),
        further("linalg_vector_norm", (A, 2, (1,), True)), further("norm.ScalarOpt_dim", (A, 2, (1,), True)),
        further("norm.Scalar", (A, 2)), further("topk", (A, 2, 1)), further("kthvalue", (A, 2, 1)),
        further("sort", (A, 1, True)), further("var_mean.correction", (A, (1,)), correction=0),
        further("std_mean.correction", (A, (1,)), correction=0), further("trace", (W,), tensors={"w": (3, 3)}),
        further("index.Tensor", (A, (None, W)), tensors={"w": PICK}, reference=lambda x, index: x[:, index[1]]),
        further("gather", (A, 2, Value(2)), before=Node("argsort", (B, 2))),
        further("repeat", (A, (1, 2, 1, 1)), reference=torch.Tensor.repeat), further("tile", (A, (2, 1, 1, 1))),
        further("repeat_interleave.self_int", (A, 2, 1)), further("roll", (A, (1, 2), (2, 3)), (A, (1,), (1,))),
        *(further(name, (A, 1)) for name in ("tril", "triu")), further("diagonal", (A, 0, 2, 3)),
        further("diag_embed", (A,)), further("diag", (W,), tensors={"w": (3,)}),
        further("unfold", (A, 2, 3, 1), reference=lambda x, *sizes: x.unfold(*sizes)),
        further("im2col", (A, (2, 2), (1, 1), (0, 0), (2, 2)), reference=lambda x, k, d, p, s: F.unfold(x, k, d, p, s)),
        further("col2im", (Value(2), (6, 6), (2, 2), (1, 1), (0, 0), (2, 2)), reference=F.fold,
                before=Node("im2col", (A, (2, 2), (1, 1), (0, 0), (2, 2)))),
        further("expand_as", (Value(2), B), before=ONE_POSITION, reference=torch.Tensor.expand_as),
        further("slice_scatter", (A, Value(2), 2, 1, 3), before=Node("slice", (B, 2, 0, 2))),
        further("select_scatter", (A, Value(2), 2, 1), before=Node("select", (B, 2, 0))),
        further("diagonal_scatter", (A, Value(2), 0, 2, 3), before=Node("diagonal", (B, 0, 2, 3))),
        further("scatter.src", (A, 1, W, B), tensors={"w": PLACES}),
        further("scatter.value", (A, 1, W, 0.5), tensors={"w": PLACES}),
        further("scatter_add", (A, 1, W, B), tensors={"w": PLACES}),
        *(further(name, (A, 2, W, B),
                tensors={"w": torch.tensor([5, 4, 3, 2, 1, 0])}) for name in ("index_add", "index_copy")),
        further("index_fill.int_Scalar", (A, 2, W, 0.5), tensors={"w": torch.tensor([1, 3])}),
        further("index_put", (A, (W,), SHIFT), tensors={"w": torch.tensor([1, 0]), "shift": (2, 4, 6, 6)},
                reference=lambda x, i, y: x.index_put(tuple(i), y)),
        further("take_along_dim", (A, Value(2), 2), before=Node("argsort", (B, 2))),
        further("pixel_unshuffle", (A, 2)),
        further("channel_shuffle", (A, 2), reference=lambda x, n: nn.ChannelShuffle(n)(x)),
        further("view_as_complex", (Value(2),), before=Node("unflatten", (A, 3, (3, 2)))),
        further("view_as_real", (Value(2),), before=Node("complex", (A, B))),
        *(further(name, (Value(2),), before=Node("complex", (A, B))) for name in ("real", "imag", "angle")),
        further("complex", BOTH), further("polar", BOTH), further("rot90", (A, 1, (2, 3))),
        further("unbind.int", ONE), further("split_with_sizes", (A, (1, 3), 1)),
        further("meshgrid", ((W, W),), tensors={"w": (3,)}, reference=lambda xs: torch.meshgrid(xs, indexing="ij")),
        further("constant_pad_nd", (A, (1, 1), 0.5), reference=lambda x, sizes, value: F.pad(x, sizes, value=value)),
        further("einsum", ("bchw,bdhw->bcd", BOTH), reference=lambda text, xs: torch.einsum(text, *xs)),
        further("mm", (A, W), tensors={"w": (4, 3)}, after=ROWS),
        further("mv", (A, W), tensors={"w": (4,)}, after=ROWS),
        further("addmm", (SHIFT, A, W), tensors={"w": (4, 3), "shift": (3,)}, after=ROWS),
        *(further(name, (W, A, Value(2)),
                tensors={"w": (4, 4)}, after=SEQUENCES, before=TURNED) for name in ("baddbmm", "addbmm")),
        *(further(name, (W, W), tensors={"w": (3,)}) for name in ("dot", "outer", "kron", "linalg_cross")),
        further("tensordot", (A, W, (1,), (0,)),
                tensors={"w": (4, 3)}, reference=lambda x, w, a, b: torch.tensordot(x, w, (a, b))),
        *(further(name, BOTH) for name in ("cdist", "cosine_similarity", "pairwise_distance")),
        further("bilinear", (A, B, W), tensors={"w": (3, 4, 4)}, after=ROWS),
        further("grid_sampler", (A, Value(2), 0, 0, False), before=Node("slice", (A, 3, 0, 2)),
                reference=lambda x, grid, *_: F.grid_sample(x, grid, align_corners=False)),
        further("affine_grid_generator", (W, (2, 1, 3, 3), False), tensors={"w": (2, 2, 3)}, reference=F.affine_grid),
        further("adaptive_max_pool1d", (A, (2,)), after=SEQUENCES,
                reference=lambda x, n: F.adaptive_max_pool1d(x, n, True)),
        further("adaptive_max_pool3d", (Value(2), (1, 2, 2)), before=VOLUMES,
                reference=lambda x, n: F.adaptive_max_pool3d(x, n, True)),
        further("max_pool2d_with_indices", (A, (2, 2)), reference=lambda x, n: F.max_pool2d(x, n, return_indices=True)),
        *(further(f"fft_{name}", (A,)) for name in ("fft", "ifft", "fft2", "ifft2", "fftn", "ifftn", "rfft", "rfft2")),
        *(further(f"fft_{name}", (Value(2),), before=Node("complex", (A, B))) for name in ("irfft", "irfft2")),
        further("bucketize.Tensor", (A, W), tensors={"w": torch.tensor([-1.0, 0.0, 1.0])}),
        further("searchsorted.Tensor", (W, A), tensors={"w": torch.tensor([-1.0, 0.0, 1.0])}),
        further("isin.Tensor_Tensor", (A, W)), further("full", ((2, 3), 0.5)), further("ones", ((2, 3),)),
        further("arange", (5,)), further("arange.start", (2, 5)), further("arange.start_step", (2, 9, 3)),
        further("scalar_tensor", (0.5,)), further("eye", (3,)), further("eye.m", (3, 2)),
        *(further(name, (A,)) for name in ("zeros_like", "ones_like")), further("full_like", (A, 0.5)),
        *(further(name, (A, (2, 3)), reference=getattr(torch.Tensor, name)) for name in ("new_zeros", "new_ones")),
        further("new_full", (A, (2, 3), 0.5), reference=torch.Tensor.new_full),
        further("int_mod", (7, 3), reference=operator.mod), further("int_max", (7, 3), reference=max),
        further("int_min", (7, 3), reference=min),
    ]
)  # fmt: skip


def test_every_example_is_of_a_row():
    assert set(EXAMPLES) <= {row.name for row in OPERATIONS}


def examples(row):
    if row.elementwise and row.name not in EXAMPLES:
        found = getattr(torch, row.name, None) or getattr(F, row.name)
        return [Example((A, *MORE.get(row.name, ())), found)]
    return EXAMPLES[row.name]


CASES = pytest.mark.parametrize(
    "row,example",
    [pytest.param(row, case, id=f"{row.name}-{i}") for row in OPERATIONS for i, case in enumerate(examples(row))],
)


class Case:
    """An example as a graph: two layers, perhaps a node, the operation, and a size, for which no unit must stay."""

    def __init__(self, row, example, seed=0):
        self.row, self.generator = row, torch.Generator().manual_seed(seed)
        module, positions = example.after
        self.kind = next(kind for kind in LAYER_TYPES if kind.module is module)
        self.input_shape = (3, *positions)
        self.kernel = (1,) * self.kind.spatial
        shapes = {"weight": (4, 3, *self.kernel), "bias": (4,)}
        tensors = {f"{name}.{role}": self.random(*shape) - 0.5 for name in "ab" for role, shape in shapes.items()}
        for name, given in example.tensors.items():
            tensors[name] = given if isinstance(given, torch.Tensor) else self.random(*given)
        nodes = [Node(self.kind.op, (Value(-1), Named(f"{x}.weight"), Named(f"{x}.bias"))) for x in "ab"]
        nodes += [example.before] if example.before else []
        self.at = len(nodes)
        nodes += [Node(row.name, example.args, example.kwargs), Node("size", (Value(self.at), 0))]
        self.nodes, self.tensors = tuple(nodes), tensors
        two, three = ([self.input(n), *self.results(tensors, self.input(n))] for n in (2, 3))
        self.graph = Graph(self.nodes, tensors, tuple(map(_symbolic_shape, two, three)))

    def random(self, *shape):
        """Numbers between 0.1 and 1.1, which every operation takes."""
        return torch.rand(shape, generator=self.generator) + 0.1

    def input(self, n):
        return torch.randn(n, *self.input_shape, generator=self.generator)

    def results(self, tensors, x):
        """Results of all nodes but the last, for tensors of these values."""
        with torch.no_grad():
            return list(GraphNetwork(self.nodes[:-1], tensors).results(self.nodes[:-1], x))

    def with_constants(self, outputs):
        """Tensors with which the two layers compute these constants, and what the rule makes of them."""
        tensors = dict(self.tensors)
        for name, constants in outputs.items():
            reads = torch.from_numpy(np.isnan(constants))
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"] * self.kind.over_outputs(reads, (4, 3, *self.kernel))
            tensors[f"{name}.bias"] = tensors[f"{name}.bias"].where(reads, torch.from_numpy(constants).float())
        node = self.nodes[self.at]
        none = {layer_name(node): np.full(len(tensors["op.bias"]), np.nan)} if is_layer(node) else {}
        return tensors, propagate(replace(self.graph, tensors=tensors), outputs | none)[self.at]

    def computed(self, values, tensors):
        """The operation alone, given the results of the nodes before it."""

        def lookup(leaf):
            if isinstance(leaf, Value):
                return values[leaf.index]
            return tensors[leaf.name] if isinstance(leaf, Named) else leaf

        args, kwargs = arguments(self.nodes[self.at], lookup)
        return args, self.row.function(*args, **kwargs)


def _symbolic_shape(two, three):
    if not isinstance(two, torch.Tensor):
        return None
    return tuple(a if a == b else "batch" for a, b in zip(two.shape, three.shape, strict=True))


@CASES
def test_a_row_computes_what_torchs_function_does(row, example):
    case = Case(row, example)
    args, found = case.computed(case.results(case.tensors, case.input(2)), case.tensors)
    kwargs = arguments(Node(row.name, (), example.kwargs), lambda leaf: leaf)[1]
    torch.testing.assert_close(found, example.reference(*args, **kwargs), equal_nan=True)


@CASES
def test_the_units_of_a_row_reach_no_entry_but_their_own(row, example):
    """Where a unit that need not stay changes, no entry of the result does but those of the unit."""
    case = Case(row, example)
    tracking = Tracking(case.graph)
    units, axes, node = tracking.units, tracking.values[case.at], case.nodes[case.at]
    for axis, along in axes.items():
        shape = case.graph.shape(case.at)
        assert 0 <= axis < len(shape) and along.shape == (shape[axis],)
    values = case.results(case.tensors, case.input(2))[: case.at]
    result = case.computed(values, case.tensors)[1]

    def roots(*several):
        return {int(unit) for followed in several for along in followed.values() for unit in units.roots(along)}

    read = {index: tracking.values[index] for index in node.values()}
    named = {name: tracking.tensors[name] for name in node.named()}
    free = roots(*read.values(), *named.values()) - units.fixed()
    # All that a layer computes depends on a unit that its weight reads: pruning sets those weights to zero. Statistics
    # depend on all units: only those that are 0 go.
    for unit in free & roots(axes) if is_layer(node) else free if not row.statistics else ():
        others = [_changed(x, _entries(units, read.get(index, {}), unit)) for index, x in enumerate(values)]
        tensors = {name: _changed(x, _entries(units, named.get(name, {}), unit)) for name, x in case.tensors.items()}
        again = case.computed(others, tensors)[1]
        if isinstance(result, torch.Tensor):
            apart = ~_of(result, _entries(units, axes, unit))
            torch.testing.assert_close(again[apart], result[apart], equal_nan=True)
        else:
            torch.testing.assert_close(again, result)


def _entries(units, axes, unit):
    """Which entries along each followed axis are of the unit."""
    return {axis: torch.from_numpy(units.roots(along) == unit) for axis, along in axes.items()}


def _of(x, entries):
    """Which elements of a tensor are of a unit, by those of its axes."""
    found = torch.zeros(x.shape, dtype=torch.bool)
    for axis, own in entries.items():
        found |= own.reshape([-1 if other == axis else 1 for other in range(x.dim())])
    return found


def _changed(x, entries):
    return torch.where(_of(x, entries), ~x if x.dtype == torch.bool else 0.5 * x + 0.2, x) if entries else x


@CASES
@pytest.mark.parametrize("known", [[np.nan, 0.0, np.nan, 0.0], [np.nan, 0.0, 0.4, 0.7]], ids=["zeros", "numbers"])
def test_constants_of_a_row_are_what_it_computes(row, example, known):
    case = Case(row, example)
    tensors, found = case.with_constants({"a": np.array(known), "b": np.array([np.nan, 0.5, np.nan, 0.0])})
    if found is None:
        return
    axis, constants = found
    for n in (2, 3):
        result = case.results(tensors, case.input(n))[case.at]
        assert result.shape[axis] == len(constants)
        for entry, value in zip(result.movedim(axis, 0), constants, strict=True):
            if not np.isnan(value):
                torch.testing.assert_close(entry, torch.full_like(entry, value), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("row", [row for row in OPERATIONS if row.constants], ids=lambda row: row.name)
def test_a_rule_for_constants_knows_some(row):
    known = {name: np.array([np.nan, 0.0, 0.5, 1.5]) for name in "ab"}
    assert any(Case(row, example).with_constants(known)[1] is not None for example in examples(row))


@pytest.mark.parametrize("row", [row for row in OPERATIONS if row.per_example], ids=lambda row: row.name)
def test_examples_of_a_per_example_operation_do_not_see_each_other(row):
    for example in examples(row):
        case = Case(row, example)
        values = case.results(case.tensors, case.input(3))[: case.at]
        together = case.computed(values, case.tensors)[1]
        alone = [case.computed([value[i : i + 1] for value in values], case.tensors)[1] for i in range(3)]
        torch.testing.assert_close(together, torch.cat(alone), equal_nan=True)


@pytest.mark.parametrize("row", [row for row in OPERATIONS if row.elementwise], ids=lambda row: row.name)
def test_an_elementwise_operation_does_to_one_element_what_it_does_to_all(row):
    x = torch.linspace(0.1, 3, 24).reshape(2, 3, 4)
    whole = row.function(x, *MORE.get(row.name, ()))
    alone = [row.function(element.reshape(1), *MORE.get(row.name, ())) for element in x.flatten()]
    torch.testing.assert_close(whole, torch.cat(alone).reshape(x.shape), equal_nan=True)


@pytest.mark.parametrize("row", [row for row in OPERATIONS if row.monotone], ids=lambda row: row.name)
def test_a_monotone_operation_keeps_the_order(row):
    assert row.elementwise
    assert (row.function(torch.linspace(-20, 20, 4001)).diff() >= 0).all()
