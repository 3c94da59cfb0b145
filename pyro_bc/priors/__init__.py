"""Priors over the weights of a layer, with their densities and KL divergences."""
