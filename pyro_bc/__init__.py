"""Bayesian compression of neural networks with Pyro.

>>> import pyro_bc, torch
>>> _ = torch.manual_seed(0)
>>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
>>> x, y = torch.randn(64, 4), torch.randint(3, (64,))
>>> model = pyro_bc.BayesianNetwork(net, prior=pyro_bc.GroupNormalJeffreys(), num_data=64)
>>> guide = pyro_bc.FactorizedGuide(model)
>>> result = pyro_bc.fit(model, guide, pyro_bc.data.Batches(x, y, 32), epochs=2, progress=False)
>>> small = pyro_bc.compress(model, guide)

Names are imported where they are first used: loading a compressed network needs neither Pyro nor ArviZ.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import data as data
    from . import diagnostics as diagnostics
    from . import errors as errors
    from . import graph as graph
    from . import likelihoods as likelihoods
    from . import onnx as onnx
    from . import plots as plots
    from .compression.check import check as check
    from .compression.compress import compress as compress
    from .compression.sensitivity import sensitivity as sensitivity
    from .compression.target import Target as Target
    from .compression.target import compress_to as compress_to
    from .errors import PyroBCError as PyroBCError
    from .file.compressed import CompressedNetwork as CompressedNetwork
    from .file.compressed import Compression as Compression
    from .file.compressed import load as load
    from .file.compressed import read as read
    from .graph.limits import Limits as Limits
    from .inference.fit import fit as fit
    from .inference.history import Epoch as Epoch
    from .inference.history import FitResult as FitResult
    from .inference.local_reparameterization import local_reparameterization as local_reparameterization
    from .inference.schedule import Schedule as Schedule
    from .inference.straight_through import rounded_codes as rounded_codes
    from .inference.tensorboard import tensorboard_log as tensorboard_log
    from .inspection.arviz import save_inference_data as save_inference_data
    from .inspection.arviz import to_inference_data as to_inference_data
    from .model.guide import FactorizedGuide as FactorizedGuide
    from .model.layers import BayesianConv1d as BayesianConv1d
    from .model.layers import BayesianConv2d as BayesianConv2d
    from .model.layers import BayesianConv3d as BayesianConv3d
    from .model.layers import BayesianConvTranspose1d as BayesianConvTranspose1d
    from .model.layers import BayesianConvTranspose2d as BayesianConvTranspose2d
    from .model.layers import BayesianConvTranspose3d as BayesianConvTranspose3d
    from .model.layers import BayesianEmbedding as BayesianEmbedding
    from .model.layers import BayesianEmbeddingBag as BayesianEmbeddingBag
    from .model.layers import BayesianLinear as BayesianLinear
    from .model.network import BayesianNetwork as BayesianNetwork
    from .model.network import bayesianize as bayesianize
    from .model.recurrent import BayesianRecurrent as BayesianRecurrent
    from .posterior.curvature_guide import CurvatureGuide as CurvatureGuide
    from .posterior.summary import LayerPosterior as LayerPosterior
    from .posterior.summary import summarize as summarize
    from .priors.base import GroupPrior as GroupPrior
    from .priors.base import Prior as Prior
    from .priors.horseshoe import GroupHorseshoe as GroupHorseshoe
    from .priors.learned_code import LearnedCode as LearnedCode
    from .priors.normal_jeffreys import GroupNormalJeffreys as GroupNormalJeffreys
    from .priors.normal_jeffreys import LogUniform as LogUniform
    from .priors.rows import RowGroups as RowGroups
    from .priors.shared import ResidualWidth as ResidualWidth
    from .priors.standard_normal import StandardNormal as StandardNormal

__version__ = "0.1.0"

#: where each public name is.
_NAMES = {
    "BayesianConv1d": "model.layers",
    "BayesianConv2d": "model.layers",
    "BayesianConv3d": "model.layers",
    "BayesianConvTranspose1d": "model.layers",
    "BayesianConvTranspose2d": "model.layers",
    "BayesianConvTranspose3d": "model.layers",
    "BayesianEmbedding": "model.layers",
    "BayesianEmbeddingBag": "model.layers",
    "BayesianLinear": "model.layers",
    "BayesianRecurrent": "model.recurrent",
    "BayesianNetwork": "model.network",
    "CompressedNetwork": "file.compressed",
    "Compression": "file.compressed",
    "CurvatureGuide": "posterior.curvature_guide",
    "Epoch": "inference.history",
    "FactorizedGuide": "model.guide",
    "FitResult": "inference.history",
    "GroupHorseshoe": "priors.horseshoe",
    "GroupNormalJeffreys": "priors.normal_jeffreys",
    "GroupPrior": "priors.base",
    "LayerPosterior": "posterior.summary",
    "LearnedCode": "priors.learned_code",
    "Limits": "graph.limits",
    "LogUniform": "priors.normal_jeffreys",
    "Prior": "priors.base",
    "PyroBCError": "errors",
    "ResidualWidth": "priors.shared",
    "RowGroups": "priors.rows",
    "Schedule": "inference.schedule",
    "StandardNormal": "priors.standard_normal",
    "Target": "compression.target",
    "bayesianize": "model.network",
    "check": "compression.check",
    "compress": "compression.compress",
    "compress_to": "compression.target",
    "fit": "inference.fit",
    "load": "file.compressed",
    "local_reparameterization": "inference.local_reparameterization",
    "read": "file.compressed",
    "rounded_codes": "inference.straight_through",
    "save_inference_data": "inspection.arviz",
    "sensitivity": "compression.sensitivity",
    "summarize": "posterior.summary",
    "tensorboard_log": "inference.tensorboard",
    "to_inference_data": "inspection.arviz",
}
_MODULES = ("data", "diagnostics", "errors", "graph", "likelihoods", "onnx", "plots")

__all__ = [*_NAMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(import_module(f".{_NAMES[name]}", __name__), name)
    elif name in _MODULES:
        value = import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module 'pyro_bc' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
