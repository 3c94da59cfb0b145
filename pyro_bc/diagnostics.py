"""How far a fit can be trusted: what :mod:`pyro_bc.inspection.diagnostics` has, under its public name."""

from .inspection.diagnostics import *  # noqa: F403
