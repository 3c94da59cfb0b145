"""Results of convolutions, pools, interpolations and whatever else looks at pictures by windows."""

import math
from typing import Any

import torch

from .forms import (
    NUMBER,
    Form,
    Given,
    Made,
    Rule,
    Shape,
    fits,
    same_type,
    several,
    told,
    with_size,
    written,
)

#: units of a multiplication within a product of other numbers than float32, for which there are few kernels.
ODD = 16

# Channels that a kernel takes at once, and numbers of a picture for which torch looks for another.
_BLOCK, _SMALL = 16, 20_480


def product(dtype: torch.dtype, multiplications: int) -> int:
    """The work of a product of matrices."""
    return multiplications * (1 if dtype in (torch.float32, torch.float64) else ODD)


def _windows(x: Form, spatial: int, kernel: Any, stride: Any, padding: Any, dilation: Any, up: bool = False) -> Shape:
    """How many windows of this reach there are along the last dimensions.

    :param up: whether one that begins within, and ends beyond the edge, counts.
    """
    sizes = []
    for size, k, step, pad, apart in zip(x.shape[x.ndim - spatial :], kernel, stride, padding, dilation, strict=True):
        room = size + 2 * pad - apart * (k - 1) - 1
        count = (room + (step - 1) * up) // step + 1
        # The last window begins within what there is, or the padding to the left of it.
        count -= up and (count - 1) * step >= size + pad
        fits(count > 0, f"a window of {apart * (k - 1) + 1} is larger than {size + 2 * pad}")
        sizes.append(count)
    return tuple(sizes)


def _leading(x: Form, spatial: int) -> Shape:
    fits(x.ndim in (spatial + 1, spatial + 2), f"{told(x.shape)} is no batch of {spatial} dimensions and channels")
    fits(all(x.shape[x.ndim - spatial - 1 :]), "a picture is empty")
    return x.shape[: x.ndim - spatial]


def _channels(given: Given, outputs: int) -> None:
    bias = given["bias"]
    fits(bias is None or bias.shape == (outputs,), f"a bias is not one of {outputs} outputs")


def _in_blocks(channels: int) -> int:
    return -(-channels // _BLOCK) * _BLOCK


def _effort(
    x: Form, weight: Form, groups: int, channels: tuple[int, int], positions: int, columns: int
) -> tuple[int, int]:
    """Work of a convolution, and bytes that it needs while it computes.

    Kernels of float32 take channels in blocks, however few there are; of other types, and of very small pictures,
    windows are written out as the columns of a matrix.

    :param channels: that it reads and that it makes.
    :param positions: at which a kernel lies, in the whole batch.
    :param columns: numbers of that matrix.
    """
    inputs, outputs = (own // groups for own in channels)
    kernel = math.prod(weight.shape[2:])
    products = positions * groups * inputs * outputs * kernel
    if x.dtype != torch.float32:
        return ODD * products + NUMBER * columns, (columns + x.numbers) * x.dtype.itemsize
    blocks = positions * groups * kernel * _in_blocks(inputs) * _in_blocks(outputs)
    work = max(products, blocks // (4 if inputs == outputs == 1 else 1))
    wide = sum(map(_in_blocks, channels)) * max(positions, x.numbers // max(1, channels[0]))
    memory = wide + groups * kernel * _in_blocks(inputs) * _in_blocks(outputs)
    if math.prod(x.shape[1:4]) <= _SMALL:
        return work + NUMBER * columns, (memory + columns) * x.dtype.itemsize
    return work, memory * x.dtype.itemsize


def convolution(spatial: int) -> Rule:
    """The rule of a convolution over so many dimensions."""

    def rule(given: Given) -> Made:
        x, weight, groups = given["input"], given["weight"], given["groups"]
        stride, dilation = several(given["stride"], spatial), several(given["dilation"], spatial)
        lead = _leading(x, spatial)
        dtype = same_type(x, weight, given["bias"])
        fits(weight.ndim == spatial + 2 and all(weight.shape), f"{told(weight.shape)} is no kernel here")
        fits(
            lead[-1] == weight.shape[1] * groups and weight.shape[0] % groups == 0,
            f"a kernel {told(weight.shape)} of {groups} groups does not fit {lead[-1]} channels",
        )
        _channels(given, weight.shape[0])
        kernel, padding = weight.shape[2:], given["padding"]
        if padding == "same":
            fits(set(stride) == {1}, "a result of the same size has a stride of 1")
            sizes: Shape = x.shape[x.ndim - spatial :]
            padding = tuple(-(-apart * (k - 1) // 2) for k, apart in zip(kernel, dilation, strict=True))
        else:
            padding = (0,) * spatial if padding == "valid" else several(padding, spatial)
            sizes = _windows(x, spatial, kernel, stride, padding, dilation)
        shape, positions = (*lead[:-1], weight.shape[0], *sizes), math.prod(lead[:-1]) * math.prod(sizes)
        columns = positions * lead[-1] * math.prod(kernel) * (math.prod(kernel) > 1)
        work, memory = _effort(x, weight, groups, (lead[-1], weight.shape[0]), positions, columns)
        return written(shape, dtype, work, memory)

    return rule


def transposed(spatial: int) -> Rule:
    """The rule of a transposed convolution over so many dimensions."""

    def rule(given: Given) -> Made:
        x, weight, groups = given["input"], given["weight"], given["groups"]
        lead, ndim = _leading(x, spatial), x.ndim
        dtype = same_type(x, weight, given["bias"])
        fits(weight.ndim == spatial + 2 and all(weight.shape), f"{told(weight.shape)} is no kernel here")
        fits(
            lead[-1] == weight.shape[0] and weight.shape[0] % groups == 0,
            f"a kernel {told(weight.shape)} of {groups} groups does not fit {lead[-1]} channels",
        )
        outputs = weight.shape[1] * groups
        _channels(given, outputs)
        names = ("stride", "padding", "output_padding", "dilation")
        options = zip(*(several(given[name], spatial) for name in names), strict=True)
        sizes = []
        for size, k, (step, pad, more, apart) in zip(x.shape[ndim - spatial :], weight.shape[2:], options, strict=True):
            fits(more < max(step, apart), "an output's padding is not smaller than stride or dilation")
            sizes.append((size - 1) * step - 2 * pad + apart * (k - 1) + more + 1)
        fits(min(sizes) > 0, "a picture becomes empty")
        shape = (*lead[:-1], outputs, *sizes)
        positions = math.prod(lead[:-1]) * math.prod(x.shape[ndim - spatial :])
        columns = positions * outputs * math.prod(weight.shape[2:])
        work, memory = _effort(x, weight, groups, (lead[-1], outputs), positions, columns)
        # Its result is laid out in blocks, too.
        blocks = _in_blocks(outputs) * math.prod(lead[:-1]) * math.prod(sizes)
        return written(shape, dtype, work, memory + blocks * dtype.itemsize)

    return rule


def pool(spatial: int, with_places: bool = False) -> Rule:
    """The rule of means or maxima in windows over so many dimensions.

    :param with_places: whether where maxima were found is a second result.
    """

    def rule(given: Given) -> Made:
        x = given["self"]
        kernel = several(given["kernel_size"], spatial)
        stride = several(given["stride"], spatial) if given["stride"] else kernel
        padding = several(given["padding"], spatial)
        dilation = several(given.get("dilation", 1), spatial)
        lead = _leading(x, spatial)
        reach = ((k - 1) * apart + 1 for k, apart in zip(kernel, dilation, strict=True))
        fits(all(2 * pad <= k for pad, k in zip(padding, reach, strict=True)), "half a window is less than its padding")
        shape = (*lead, *_windows(x, spatial, kernel, stride, padding, dilation, given["ceil_mode"]))
        work = NUMBER * math.prod(shape) * math.prod(kernel)
        # Maxima are computed with their places, whether these are asked for or not.
        own, places = Form(shape, x.dtype), Form(shape, torch.int64)
        return Made((own, places) if with_places else own, work, x.bytes + (0 if with_places else places.bytes))

    return rule


def adaptive(spatial: int, with_places: bool = False) -> Rule:
    """The rule of pools into as many windows as are asked for."""

    def rule(given: Given) -> Made:
        x, sizes = given["self"], given["output_size"]
        fits(len(sizes) == spatial, f"{spatial} sizes are needed")
        shape = (*_leading(x, spatial), *sizes)
        fits(min(sizes) >= 0, f"{told(sizes)} is no size")
        windows = zip(x.shape[x.ndim - spatial :], sizes, strict=True)
        work = NUMBER * math.prod(shape) * math.prod(size // max(1, n) + 2 for size, n in windows)
        own, places = Form(shape, x.dtype), Form(shape, torch.int64)
        return Made((own, places) if with_places else own, work, x.bytes)

    return rule


def interpolation(spatial: int, taps: int, smooth: bool = False) -> Rule:
    """The rule of an interpolation over so many dimensions.

    :param taps: numbers along a dimension that one of the result comes from.
    :param smooth: whether these are more where a picture becomes smaller.
    """

    def rule(given: Given) -> Made:
        x, sizes = given["input"] if "input" in given else given["self"], given["output_size"]
        fits(
            x.ndim == spatial + 2 and all(x.shape), f"{told(x.shape)} is no batch of {spatial} dimensions and channels"
        )
        own, factors = x.shape[2:], given.get("scale_factors")
        fits(sizes is None or factors is None or "self" in given, "it is told both sizes and factors")
        if sizes is None:
            factors = factors or ()
            fits(len(factors) == spatial, "it is told neither sizes nor factors")
            sizes = [int(size * float(factor)) for size, factor in zip(own, factors, strict=True)]
        sizes = several(sizes, spatial)
        fits(min(sizes) > 0, f"{told(sizes)} is no size")
        if smooth:
            reached = sum(taps * -(-max(size, n) // n) + 1 for size, n in zip(own, sizes, strict=True))
            largest = math.prod(max(size, n) for size, n in zip(own, sizes, strict=True))
            numbers = math.prod(x.shape[:2]) * largest
            return written((*x.shape[:2], *sizes), x.dtype, NUMBER * numbers * reached, 2 * numbers * x.dtype.itemsize)
        numbers = math.prod(x.shape[:2]) * math.prod(sizes)
        memory = x.bytes + numbers * x.dtype.itemsize
        return written((*x.shape[:2], *sizes), x.dtype, NUMBER * numbers * taps**spatial, memory)

    return rule


def _shuffle(given: Given) -> Made:
    x, factor = given["self"], given["upscale_factor"]
    fits(x.ndim > 2 and x.shape[-3] % factor**2 == 0, f"{told(x.shape)} has not {factor}² times as many channels")
    channels, height, width = x.shape[-3:]
    return written((*x.shape[:-3], channels // factor**2, height * factor, width * factor), x.dtype)


def _unshuffle(given: Given) -> Made:
    x, factor = given["self"], given["downscale_factor"]
    fits(x.ndim > 2 and x.shape[-1] % factor == 0 and x.shape[-2] % factor == 0, f"{told(x.shape)} is not divided so")
    channels, height, width = x.shape[-3:]
    return written((*x.shape[:-3], channels * factor**2, height // factor, width // factor), x.dtype)


def _channel_shuffle(given: Given) -> Made:
    x = given["self"]
    fits(x.ndim > 2 and x.shape[1] % given["groups"] == 0, f"{told(x.shape)} has no such groups of channels")
    return written(x.shape, x.dtype)


def _pad(given: Given) -> Made:
    x, pad = given["self"], given["pad"]
    mode = given.get("mode", "constant")
    fits(len(pad) % 2 == 0 and len(pad) // 2 <= x.ndim, f"{len(pad)} paddings do not fit {x.ndim} dimensions")
    spatial = len(pad) // 2
    if mode != "constant":
        fits(
            1 <= spatial <= 3 and x.ndim in (spatial + 1, spatial + 2), f"{mode} pads the last one to three dimensions"
        )
    shape = x.shape
    for place in range(spatial):
        axis, (left, right) = x.ndim - 1 - place, pad[2 * place : 2 * place + 2]
        size = shape[axis] + left + right
        most = shape[axis] - (mode == "reflect")
        fits(mode not in ("reflect", "circular") or max(left, right) <= most, f"{mode} pads with less than there is")
        fits(size >= 0 if mode == "constant" else size > 0, "a padding takes more than there is")
        shape = with_size(shape, axis, size)
    return written(shape, x.dtype, 0, 0 if mode == "constant" else math.prod(shape) * x.dtype.itemsize)


def _of_columns(given: Given) -> list[tuple[int, ...]]:
    found = [given[name] for name in ("kernel_size", "dilation", "padding", "stride")]
    fits(all(len(numbers) == 2 for numbers in found), "columns are told by two numbers each")
    return found


def _columns(given: Given) -> Made:
    x = given["self"]
    kernel, dilation, padding, stride = _of_columns(given)
    lead = _leading(x, 2)
    sizes = _windows(x, 2, kernel, stride, padding, dilation)
    shape = (*lead[:-1], lead[-1] * math.prod(kernel), math.prod(sizes))
    return written(shape, x.dtype, NUMBER * math.prod(shape))


def _from_columns(given: Given) -> Made:
    x, output = given["self"], given["output_size"]
    kernel, dilation, padding, stride = _of_columns(given)
    fits(x.ndim in (2, 3) and len(output) == 2 and min(output) > 0, f"{told(x.shape)} are no columns")
    windows = math.prod(_windows(Form(output), 2, kernel, stride, padding, dilation))
    fits(x.shape[-1] == windows and x.shape[-2] % math.prod(kernel) == 0, f"{told(x.shape)} are not these columns")
    return written((*x.shape[:-2], x.shape[-2] // math.prod(kernel), *output), x.dtype, NUMBER * x.numbers)


def _sampled(given: Given) -> Made:
    x, grid = given["input"], given["grid"]
    spatial = x.ndim - 2
    dtype = same_type(x, grid)
    fits(spatial in (2, 3) and grid.ndim == x.ndim and grid.shape[-1] == spatial, "a grid does not fit its picture")
    fits(grid.shape[0] == x.shape[0] and all(x.shape[2:]), "a grid does not fit its picture")
    fits(given["interpolation_mode"] in (0, 1, 2) and given["padding_mode"] in (0, 1, 2), "there is no such mode")
    shape = (*x.shape[:2], *grid.shape[1:-1])
    taps = 16 if given["interpolation_mode"] == 2 else 2**spatial
    return written(shape, dtype, 4 * NUMBER * taps * math.prod(shape), grid.bytes)


def _affine_grid(given: Given) -> Made:
    theta, size = given["theta"], given["size"]
    spatial = len(size) - 2
    fits(spatial in (2, 3) and min(size) > 0, f"{told(size)} is no size of a grid")
    fits(theta.shape == (size[0], spatial, spatial + 1), f"{told(theta.shape)} are no maps of {spatial} dimensions")
    shape = (size[0], *size[2:], spatial)
    return written(shape, theta.dtype, 4 * NUMBER * math.prod(shape), 2 * math.prod(shape) * theta.dtype.itemsize)


RULES: dict[str, Rule] = {
    **{f"conv{n}d": convolution(n) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": transposed(n) for n in (1, 2, 3)},
    **{f"{kind}_pool{n}d": pool(n) for n in (1, 2, 3) for kind in ("max", "avg")},
    "max_pool2d_with_indices": pool(2, with_places=True),
    **{f"adaptive_avg_pool{n}d": adaptive(n) for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d": adaptive(n, with_places=True) for n in (1, 2, 3)},
    "upsample_nearest2d": interpolation(2, 1),
    **{
        f"{kind}{n}d.vec": interpolation(n, 1)
        for n in (1, 2, 3)
        for kind in ("upsample_nearest", "_upsample_nearest_exact")
        if (n, kind) != (2, "upsample_nearest")
    },
    "upsample_linear1d.vec": interpolation(1, 2),
    "upsample_bilinear2d.vec": interpolation(2, 2),
    "upsample_trilinear3d.vec": interpolation(3, 2),
    "upsample_bicubic2d.vec": interpolation(2, 4),
    "_upsample_bilinear2d_aa.vec": interpolation(2, 2, smooth=True),
    "_upsample_bicubic2d_aa.vec": interpolation(2, 4, smooth=True),
    "pixel_shuffle": _shuffle,
    "pixel_unshuffle": _unshuffle,
    "channel_shuffle": _channel_shuffle,
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    "im2col": _columns,
    "col2im": _from_columns,
    "grid_sampler": _sampled,
    "affine_grid_generator": _affine_grid,
}
