"""The posterior of codes as ArviZ reads it.

===================  ===============================================================================
``posterior``        draws of every parameter's codes, ``net.<parameter>``, in steps of its quantiser
``prior``            the same from the learned prior
``constant_data``    the rounded codes, as they are stored
``sample_stats``     the course of the fit, by epoch
===================  ===============================================================================
"""

import os
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from ..errors import UsageError
from ..inference.history import Epoch
from ..priors.learned_code import CellGuide, RateNetwork
from ..runtime.devices import device_of
from ..runtime.random_state import seeded
from .arviz import add_history, common_attributes
from .netcdf import Content, Variable, write_content

_BLOCK = 10

_KINDS = ("output", "input", "row", "column")


def save_codes(
    path: str | os.PathLike[str],
    model: RateNetwork,
    guide: CellGuide,
    *,
    draws: int = 100,
    history: Iterable[Epoch] = (),
    seed: int = 0,
) -> None:
    """Write a fitted posterior of codes as a netCDF file for ``arviz.from_netcdf``, whole or not at all.

    :param draws: from the posterior and from the learned prior, independent of each other.
    :param history: of :class:`~pyro_bc.FitResult`.
    :param seed: of the draws; torch's global generator is left as it is.
    :raises UsageError: where ``draws`` is not positive.
    """
    if not (isinstance(draws, int) and draws > 0):
        raise UsageError(f"draws must be a positive integer, not {draws!r}")
    variables: dict[tuple[str, str], Variable] = {}
    coords: dict[str, np.ndarray] = {"chain": np.arange(1), "draw": np.arange(draws)}

    def add_values(group: str, name: str, dims: tuple[str, ...], values: np.ndarray) -> None:
        variables[group, name] = Variable(group, name, dims, values.shape, values.dtype, values)

    for name, code in zip(guide.names, guide.codes, strict=True):
        dims = tuple(f"net.{name}.{kind}" for kind in _KINDS[: code.dim()])
        coords |= {dim: np.arange(size) for dim, size in zip(dims, code.shape, strict=True)}
        for group in ("posterior", "prior"):
            variables[group, f"net.{name}"] = Variable(
                group, f"net.{name}", ("chain", "draw", *dims), (1, draws, *code.shape)
            )
        add_values("constant_data", f"net.{name}", dims, code.detach().round().int().cpu().numpy())
    add_history(list(history), add_values, coords)

    def blocks() -> Iterator[tuple[int, dict[tuple[str, str], np.ndarray]]]:
        with seeded(seed, device_of(guide)), torch.no_grad():
            for start in range(0, draws, _BLOCK):
                size = (min(_BLOCK, draws - start),)
                drawn = {("posterior", site): q.rsample(size) for site, q in guide.posterior().items()}
                drawn |= {("prior", f"net.{name}"): model.prior(name).sample(size) for name in model.names}
                yield start, {key: value[None].cpu().numpy() for key, value in drawn.items()}

    write_content(path, Content(variables, coords, common_attributes("learned", model.num_data, seed, draws), blocks))
