"""Further operations that a graph may hold: ATen's by name, in groups that are followed alike, each with its code.

A name is that of one overload of ATen (``max.dim``), so that torch's own schema says its arguments and their types; the
overload ``default`` is left out. All of them are pure: they neither write into their arguments nor read beyond them,
draw nothing at random, and have results whose shapes follow from the shapes of what they read.
"""

#: each element by itself, and what is not a number stays none.
ELEMENTWISE = {
    92: "floor", 93: "ceil", 94: "round", 95: "trunc", 96: "frac", 97: "reciprocal", 98: "exp2", 99: "expm1",
    100: "log2", 101: "log10", 102: "log1p", 103: "tan", 104: "asin", 105: "acos", 106: "atan", 107: "sinh",
    108: "cosh", 109: "asinh", 110: "acosh", 111: "atanh", 112: "erfc", 113: "softshrink", 114: "hardshrink",
    115: "logit", 116: "erfinv", 117: "deg2rad",
}  # fmt: skip

#: each element by itself, to truth values, or to numbers also where there was none.
CLASSIFYING = {
    120: "sign", 121: "isnan", 122: "isinf", 123: "isfinite", 124: "logical_not",
    126: "nan_to_num", 127: "threshold", 128: "signbit",
}  # fmt: skip

#: elements of several tensors, the smaller of which are repeated.
JOINT = {
    130: "eq.Tensor", 131: "eq.Scalar", 132: "ne.Tensor", 133: "ne.Scalar", 134: "lt.Tensor", 135: "lt.Scalar",
    136: "le.Tensor", 137: "le.Scalar", 138: "gt.Tensor", 139: "gt.Scalar", 140: "ge.Tensor", 141: "ge.Scalar",
    142: "logical_and", 143: "logical_or", 144: "logical_xor", 145: "bitwise_and.Tensor", 146: "bitwise_and.Scalar",
    147: "bitwise_or.Tensor", 148: "bitwise_or.Scalar", 149: "bitwise_xor.Tensor", 150: "bitwise_xor.Scalar",
    151: "where.self", 152: "where.ScalarSelf", 153: "where.ScalarOther", 154: "where.Scalar",
    155: "masked_fill.Scalar", 156: "masked_fill.Tensor", 157: "atan2", 158: "fmod.Tensor", 159: "fmod.Scalar",
    160: "remainder.Tensor", 161: "remainder.Scalar", 162: "floor_divide", 163: "clamp.Tensor", 164: "clamp_min.Tensor",
    165: "clamp_max.Tensor", 166: "addcmul", 167: "addcdiv", 168: "lerp.Tensor", 169: "lerp.Scalar", 170: "fmax",
    171: "fmin", 172: "xlogy.Tensor", 173: "logaddexp", 174: "copysign.Tensor", 175: "hypot", 176: "div.Tensor_mode",
    177: "div.Scalar_mode", 125: "bitwise_not",
}  # fmt: skip

#: each channel alone, over as many last dimensions as the name says.
SPATIAL = {
    180: "upsample_bilinear2d.vec", 181: "upsample_bicubic2d.vec", 182: "upsample_linear1d.vec",
    183: "upsample_nearest1d.vec", 184: "upsample_nearest3d.vec", 185: "upsample_trilinear3d.vec",
    186: "_upsample_nearest_exact1d.vec", 187: "_upsample_nearest_exact2d.vec", 188: "_upsample_nearest_exact3d.vec",
    189: "_upsample_bilinear2d_aa.vec", 190: "_upsample_bicubic2d_aa.vec", 191: "max_pool3d", 192: "avg_pool3d",
    193: "adaptive_avg_pool3d",
}  # fmt: skip

#: entries along the dimensions that the second argument names become one.
REDUCING = {
    200: "amin", 201: "logsumexp", 202: "prod.dim_int", 203: "any.dim", 204: "all.dim", 205: "argmax", 206: "argmin",
    207: "var.correction", 208: "std.correction", 209: "var.dim", 210: "std.dim", 211: "any.dims", 212: "all.dims",
    213: "count_nonzero.dim_IntList",
}  # fmt: skip

#: entries along the dimensions that the second argument names know of each other, and stay as many.
ALONG = {
    216: "cumsum", 217: "cumprod", 218: "logcumsumexp", 220: "argsort", 222: "_safe_softmax",
}  # fmt: skip

#: everything else: what these read is kept whole.
OTHERS = {
    221: "glu",
    230: "max.dim", 231: "min.dim", 232: "max", 233: "min", 234: "linalg_vector_norm", 235: "norm.ScalarOpt_dim",
    236: "norm.Scalar", 237: "cummax", 238: "cummin", 239: "topk", 240: "sort", 241: "median.dim",
    242: "var_mean.correction", 243: "std_mean.correction", 244: "aminmax", 245: "any", 246: "all", 247: "kthvalue",
    250: "prod", 251: "std", 252: "var", 253: "trace", 254: "nansum", 255: "nanmean",
    260: "index.Tensor", 261: "gather", 263: "repeat_interleave.self_int", 264: "roll", 265: "tril",
    266: "triu", 267: "diagonal", 268: "diag_embed", 269: "unfold", 270: "im2col", 271: "col2im", 272: "expand_as",
    273: "slice_scatter", 274: "select_scatter", 275: "scatter.src", 276: "scatter.value", 277: "scatter_add",
    278: "index_add", 279: "index_put", 280: "index_copy", 281: "index_fill.int_Scalar",
    283: "take_along_dim", 284: "pixel_unshuffle", 285: "channel_shuffle", 286: "view_as_real", 287: "view_as_complex",
    288: "rot90", 289: "tile", 290: "unbind.int", 291: "split_with_sizes", 292: "meshgrid", 293: "constant_pad_nd",
    294: "diag", 295: "diagonal_scatter",
    300: "einsum", 301: "mm", 302: "addmm", 303: "baddbmm", 304: "addbmm", 305: "mv", 306: "dot", 307: "outer",
    308: "tensordot", 309: "cdist", 310: "cosine_similarity", 311: "bilinear", 312: "linalg_cross", 313: "kron",
    314: "pairwise_distance",
    326: "grid_sampler", 327: "affine_grid_generator",
    329: "adaptive_max_pool1d", 330: "adaptive_max_pool3d", 331: "max_pool2d_with_indices",
    350: "fft_fft", 351: "fft_ifft", 352: "fft_fft2", 353: "fft_ifft2", 354: "fft_fftn", 355: "fft_ifftn",
    356: "fft_rfft", 357: "fft_irfft", 358: "fft_rfft2", 359: "fft_irfft2", 360: "real", 361: "imag", 362: "complex",
    363: "polar", 364: "angle",
    370: "bucketize.Tensor", 371: "searchsorted.Tensor", 372: "isin.Tensor_Tensor",
}  # fmt: skip

#: tensors that are made from numbers alone, where the input is.
CREATING = {
    380: "full", 381: "ones", 382: "arange", 383: "arange.start", 384: "arange.start_step", 385: "scalar_tensor",
    386: "eye", 387: "eye.m",
}  # fmt: skip

#: tensors of the shape, or only the type, of another.
LIKE = {390: "zeros_like", 391: "ones_like", 392: "full_like", 393: "new_zeros", 394: "new_ones", 395: "new_full"}

#: integers of sizes, by the name of Python's function.
ON_INTEGERS = {396: "int_mod", 397: "int_max", 398: "int_min"}
