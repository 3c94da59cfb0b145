"""Bayesian recurrent layers: ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` whose matrices and biases are latent."""

from typing import Any

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from ..errors import UnsupportedNetworkError
from ..graph.read import PACKED
from ..priors.base import Prior
from .layers import BayesianLinear

_KINDS: tuple[type[nn.RNNBase], ...] = (nn.LSTM, nn.GRU, nn.RNN)


def is_recurrent(module: nn.Module) -> bool:
    """Whether :class:`BayesianRecurrent` computes what a module does: it has no projections, and torch's forward."""
    kind = next((kind for kind in _KINDS if isinstance(module, kind)), None)
    return kind is not None and type(module).forward is kind.forward and not module.proj_size


class BayesianRecurrent(PyroModule):
    """A recurrent layer whose matrices and biases are latent, with the sites of a linear layer for each matrix.

    :param module: whose weights and settings are taken over; without projections, and with torch's forward.
    :param prior: over every matrix; groups are what its columns read: inputs, or hidden units.

    Arguments and results of a call as the module's; dropout between layers is left out. Sites are
    ``<name>.weight_ih_l0.weight``, ``<name>.weight_ih_l0.bias``, ``<name>.weight_hh_l0.weight``, … . A matrix is drawn
    once for a whole batch, as all steps in time multiply with it: there is no local reparameterization that is exact.
    A hidden unit that no other one reads, nor a layer behind it, leaves with all of its gates.

    >>> import pyro_bc, torch
    >>> layer = BayesianRecurrent(torch.nn.GRU(3, 4), pyro_bc.StandardNormal())
    >>> sorted(pyro_bc.FactorizedGuide(layer)(torch.ones(5, 2, 3)))[:2]
    ['weight_hh_l0.bias', 'weight_hh_l0.weight']
    """

    def __init__(self, module: Any, prior: Prior):
        super().__init__()
        self.mode, self.bias, self.batch_first = module.mode.lower(), module.bias, module.batch_first
        self.input_size, self.hidden_size, self.num_layers = module.input_size, module.hidden_size, module.num_layers
        self.bidirectional = module.bidirectional
        directions = ("", "_reverse")[: 1 + self.bidirectional]
        ends = [f"l{layer}{direction}" for layer in range(self.num_layers) for direction in directions]
        #: names of the matrices, as torch has them.
        self.matrices = [f"weight_{part}_{end}" for end in ends for part in ("ih", "hh")]
        for name in self.matrices:
            weight = getattr(module, name).detach().clone()
            bias = getattr(module, name.replace("weight", "bias")).detach().clone() if self.bias else None
            self.add_module(name, BayesianLinear.of_weight(weight, bias, prior))

    def named_in(self, path: str) -> None:
        """Say under which name the network has this layer, for what looks its parameters up."""
        for name in self.matrices:
            own: Any = self.get_submodule(name)
            of_role = {"weight": name, "bias": name.replace("weight", "bias")}
            own.in_network = {role: (f"{path}.{parameter}", False) for role, parameter in of_role.items()}

    def flatten_parameters(self) -> None:
        """Nothing: the matrices are drawn, and lie nowhere."""

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        if isinstance(input, nn.utils.rnn.PackedSequence):
            raise UnsupportedNetworkError(PACKED)
        is_single = input.dim() == 2
        if is_single:
            input = input.unsqueeze(0 if self.batch_first else 1)
            hx = tuple(h.unsqueeze(1) for h in hx) if isinstance(hx, tuple) else None if hx is None else hx.unsqueeze(1)
        if hx is None:
            count = self.num_layers * (1 + self.bidirectional)
            zeros = input.new_zeros(count, input.shape[0 if self.batch_first else 1], self.hidden_size)
            hx = (zeros, zeros) if self.mode == "lstm" else zeros
        weights = []
        for name in self.matrices[::2]:
            both = [getattr(self, own).sample_parameters() for own in (name, name.replace("ih", "hh"))]
            weights += [weight for weight, _ in both] + [bias for _, bias in both if bias is not None]
        function: Any = getattr(torch, self.mode)
        output, *last = function(
            input, hx, weights, self.bias, self.num_layers, 0.0, False, self.bidirectional, self.batch_first
        )
        if is_single:
            output, last = output.squeeze(0 if self.batch_first else 1), [h.squeeze(1) for h in last]
        return output, tuple(last) if self.mode == "lstm" else last[0]

    def extra_repr(self) -> str:
        return f"{self.mode}, {self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"
