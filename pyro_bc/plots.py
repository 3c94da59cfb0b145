"""Pictures of a posterior: :mod:`pyro_bc.inspection.plots` under its public name."""

import sys

from .inspection import plots as _own
from .inspection.plots import *  # noqa: F403

sys.modules[__name__] = _own
