"""Bayesian compression of neural networks with Pyro.

>>> import pyro_bc, torch
>>> _ = torch.manual_seed(0)
>>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
>>> x, y = torch.randn(64, 4), torch.randint(3, (64,))
>>> model = pyro_bc.BayesianNetwork(net, prior=pyro_bc.GroupNormalJeffreys(), num_data=64)
>>> guide = pyro_bc.FactorizedGuide(model)
>>> result = pyro_bc.fit(model, guide, pyro_bc.Batches(x, y, 32), epochs=2, progress=False)
>>> small = pyro_bc.compress(model, guide)
"""

from . import diagnostics, plots
from .coded import compress_codes, spatial_grids
from .codes_inference_data import save_codes
from .compressed import CompressedNetwork, Compression, compress, load, read
from .datasets import Affine, Batches, ShiftAndFlip, load_dataset
from .distributions import NormalJeffreys, half_cauchy_factors
from .elbo import ElboTerms, elbo_terms
from .errors import OutputError, PyroBCError
from .export import OnnxNetwork, to_int8, to_onnx
from .fit_rate import fit_rate
from .graph import Graph, GraphNetwork, read_graph
from .guides import FactorizedGuide
from .infer import Epoch, FitResult, fit
from .inference_data import save_inference_data, to_inference_data
from .likelihoods import Bernoulli, Categorical, Likelihood, Normal, SoftCategorical
from .local_reparameterization import local_reparameterization
from .narrow import narrowed
from .nn import BayesianConv1d, BayesianConv2d, BayesianLinear, BayesianNetwork, bayesianize
from .posterior import LayerPosterior, summarize
from .priors import GroupHorseshoe, GroupNormalJeffreys, LogUniform, Prior, StandardNormal
from .pruning import fold_batch_norm
from .rate import CellGuide, RateNetwork
from .teaching import TaughtBatches

__version__ = "0.1.0"

__all__ = [
    "Affine",
    "Batches",
    "BayesianConv1d",
    "BayesianConv2d",
    "BayesianLinear",
    "BayesianNetwork",
    "Bernoulli",
    "Categorical",
    "CellGuide",
    "CompressedNetwork",
    "Compression",
    "ElboTerms",
    "Epoch",
    "FactorizedGuide",
    "FitResult",
    "Graph",
    "GraphNetwork",
    "GroupHorseshoe",
    "GroupNormalJeffreys",
    "LayerPosterior",
    "Likelihood",
    "LogUniform",
    "Normal",
    "NormalJeffreys",
    "OnnxNetwork",
    "OutputError",
    "Prior",
    "PyroBCError",
    "RateNetwork",
    "ShiftAndFlip",
    "SoftCategorical",
    "StandardNormal",
    "TaughtBatches",
    "bayesianize",
    "compress",
    "compress_codes",
    "diagnostics",
    "elbo_terms",
    "fit",
    "fit_rate",
    "fold_batch_norm",
    "half_cauchy_factors",
    "load",
    "load_dataset",
    "local_reparameterization",
    "narrowed",
    "plots",
    "read",
    "read_graph",
    "save_codes",
    "save_inference_data",
    "spatial_grids",
    "summarize",
    "to_inference_data",
    "to_int8",
    "to_onnx",
]
