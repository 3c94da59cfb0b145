"""What a network's outputs say of targets: :mod:`pyro_bc.model.likelihoods` under its public name."""

import sys

from .model import likelihoods as _own
from .model.likelihoods import *  # noqa: F403

sys.modules[__name__] = _own
