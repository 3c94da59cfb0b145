"""What a network's outputs say of targets: what :mod:`pyro_bc.model.likelihoods` has, under its public name."""

from .model.likelihoods import *  # noqa: F403
