"""Numbers as integer codes: grids, rounding by posterior variance, cosine coefficients."""
