"""Pictures of a posterior: what :mod:`pyro_bc.inspection.plots` has, under its public name."""

from .inspection.plots import *  # noqa: F403
