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

from .app.datasets import load_dataset
from .compression.batch_norm import fold_batch_norm
from .compression.compress import compress
from .data.augment import Affine, ShiftAndFlip
from .data.batches import Batches
from .data.teacher import TaughtBatches
from .errors import OutputError, PyroBCError
from .file.compressed import CompressedNetwork, Compression, load, read
from .graph.module import GraphNetwork
from .graph.nodes import Graph
from .graph.onnx import OnnxNetwork, to_int8, to_onnx
from .graph.read import read_graph
from .inference.elbo import ElboTerms, elbo_terms
from .inference.fit import fit
from .inference.history import Epoch, FitResult
from .inference.local_reparameterization import local_reparameterization
from .inference.schedule import Schedule
from .inference.straight_through import rounded_codes
from .inspection import diagnostics, plots
from .inspection.arviz import save_inference_data, to_inference_data
from .model.guide import FactorizedGuide
from .model.layers import BayesianConv1d, BayesianConv2d, BayesianLinear
from .model.likelihoods import Bernoulli, Categorical, Likelihood, Normal, SoftCategorical
from .model.network import BayesianNetwork, bayesianize
from .posterior.summary import LayerPosterior, summarize
from .priors.base import Prior
from .priors.horseshoe import GroupHorseshoe, half_cauchy_factors
from .priors.learned_code import LearnedCode
from .priors.normal_jeffreys import GroupNormalJeffreys, LogUniform, NormalJeffreys
from .priors.standard_normal import StandardNormal

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
    "LearnedCode",
    "Likelihood",
    "LogUniform",
    "Normal",
    "NormalJeffreys",
    "OnnxNetwork",
    "OutputError",
    "Prior",
    "PyroBCError",
    "Schedule",
    "ShiftAndFlip",
    "SoftCategorical",
    "StandardNormal",
    "TaughtBatches",
    "bayesianize",
    "compress",
    "diagnostics",
    "elbo_terms",
    "fit",
    "fold_batch_norm",
    "half_cauchy_factors",
    "load",
    "load_dataset",
    "local_reparameterization",
    "plots",
    "read",
    "read_graph",
    "rounded_codes",
    "save_inference_data",
    "summarize",
    "to_inference_data",
    "to_int8",
    "to_onnx",
]
