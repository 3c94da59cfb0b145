"""How far a fit can be trusted: :mod:`pyro_bc.inspection.diagnostics` under its public name."""

import sys

from .inspection import diagnostics as _own
from .inspection.diagnostics import *  # noqa: F403

sys.modules[__name__] = _own
