"""Bayesian layers: linear layers, convolutions and tables whose weight and bias are latent."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from pyro.nn import PyroModule
from torch import Tensor, nn

from ..errors import UsageError
from ..graph.attention import GroupedLinear
from ..graph.bags import EmbeddingBag
from ..graph.layer_types import LINEAR, LOOKUP, LayerType, layer_type
from ..priors.base import Prior, initial_weight
from ..priors.horseshoe import GroupHorseshoe
from ..priors.rows import RowGroups
from ..quantisation.grids import is_grid
from ..runtime.devices import check_dtype, default_dtype


def _density(layer: "BayesianLayer", role: str) -> Any:
    code: Any = getattr(layer, f"{role}_code", None)
    if code is None:
        return layer._densities[role]
    density: Any = code.density().to_event(len(code.shape))
    density.of_layer, density.of_code = (layer.prior, layer.layer_type), code
    return density


class BayesianLayer(PyroModule):
    """A layer whose weight and bias are latent, with one site for every role of its prior."""

    #: what is known of layers of this type.
    layer_type: LayerType

    def __init__(self, weight_shape: tuple[int, ...], bias: bool, prior: Prior | None, group_size: int = 1):
        super().__init__()
        if isinstance(prior, RowGroups):
            prior, self.layer_type = prior.of_layer(self.layer_type)
        self.prior = GroupHorseshoe() if prior is None else prior
        #: values that a guide starts from, by role; empty for a layer made from scratch.
        self.pretrained: dict[str, Tensor] = {}
        #: what multiplies weight and bias beside the layer's own scales, by role.
        self._shared: dict[str, list[Callable[[Tensor], Tensor]]] = {}
        #: by role, the parameter of the network that it is, and whether that is its transpose; empty for its own.
        self.in_network: dict[str, tuple[str, bool]] = {}
        self._shape, self._group_size, self._has_bias = weight_shape, group_size, bias
        self._dtype = torch.get_default_dtype()
        self.weight_code: Any = None
        self.bias_code: Any = None
        if self.prior.code(torch.zeros(1), ()) is not None:
            self._start_codes(self._initial_values())
        self._place(torch.get_default_device())
        for role in (*self.prior.roles, *["bias"] * bias):
            self.__dict__["_pyro_samples"][role] = partial(_density, role=role)

    def _initial_values(self) -> dict[str, Tensor]:
        weight = initial_weight(self._shape, self.layer_type)
        outputs = self._shape[self.layer_type.output_axis]
        return {"weight": weight} | ({"bias": torch.zeros(outputs)} if self._has_bias else {})

    def _start_codes(self, values: dict[str, Tensor], grid: Sequence[int] | None = None) -> None:
        """Code the layer's tensors, from these values on; the weight over a grid, None for its kernel."""
        self.pretrained = values
        own = tuple(self._shape[2:]) if grid is None else tuple(grid)
        fits = is_grid(self._shape, own) and math.prod(own) > 1
        if grid and not fits:
            raise UsageError(f"a grid of {own} does not fit a weight of shape {self._shape}")
        self.weight_code = self.prior.code(values["weight"], own if fits else ())
        if "bias" in values:
            self.bias_code = self.prior.code(values["bias"], ())
        if fits and not self.layer_type.spatial:
            self._group_size = math.prod(own)  # coefficients of one grid stand and fall together

    def code_over(self, grid: Sequence[int]) -> None:
        """Code the weight as cosine coefficients over a grid in its last entries; empty for none.

        To be called before a guide has seen the layer.

        :raises UsageError: where the grid does not fit the weight.
        """
        self._start_codes({role: value.to(self._device) for role, value in self.pretrained.items()}, grid)
        self._place(self._device)

    def _place(self, device: torch.device) -> None:
        """Make the densities of all roles, whose draws are on this device, and of the type of the first ones."""
        self._device = device
        with torch.device(device), default_dtype(self._dtype):
            self._densities = self.prior.densities(
                self._shape, self._group_size, self.layer_type, self._has_bias, coded=self.weight_code is not None
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "BayesianLayer":
        # What moves a module moves its parameters, and a layer whose parameters are latent has none.
        result: BayesianLayer = super()._apply(fn, recurse)
        self._place(fn(torch.empty(0, device=self._device)).device)
        return result

    @classmethod
    def from_module(cls, module: Any, prior: Prior) -> Any:
        """A Bayesian layer of the same shape, with the module's hooks, whose guide starts from its weight and bias."""
        layer = cls._like(module, prior)
        layer._start_from({name: value.detach().clone() for name, value in module.named_parameters()})
        for hooks in (
            "_forward_hooks",
            "_forward_hooks_with_kwargs",
            "_forward_pre_hooks",
            "_forward_pre_hooks_with_kwargs",
        ):
            layer.__dict__[hooks] = module.__dict__[hooks]
        return layer

    @classmethod
    def of_weight(cls, weight: Tensor, bias: Tensor | None, prior: Prior) -> Any:
        """A Bayesian layer whose guide starts from this weight and bias, to hold the sites of what others compute."""
        outputs, inputs = cls.layer_type.dense_shape(weight.shape)
        kernel = [tuple(weight.shape[2:])] * bool(cls.layer_type.spatial)
        options = {} if cls.layer_type.is_lookup else {"bias": bias is not None}
        make: Any = cls
        layer = make(inputs, outputs, *kernel, **options, prior=prior)
        layer._start_from({"weight": weight} | ({} if bias is None else {"bias": bias}))
        return layer

    def _start_from(self, values: dict[str, Tensor]) -> None:
        check_dtype("a layer has weights of", values["weight"].dtype)
        if self.weight_code is not None:
            self._start_codes(values)
        self._place(values["weight"].device)
        self.pretrained = values

    def hold_zero(self, row: int) -> None:
        """Let a row of the weight be 0, whatever its site is."""
        self.layer_type = replace(self.layer_type, zero_row=row)
        self._place(self._device)

    @classmethod
    def covers(cls, module: Any) -> bool:
        """Whether a module of the layer's type can become one: what cannot stays as it is."""
        return True

    @classmethod
    def _like(cls, module: Any, prior: Prior) -> Any:
        raise NotImplementedError

    def _site(self, role: str) -> Any:
        """The value of one site, which the first reading samples."""
        return PyroModule.__getattr__(self, role)

    @property
    def weight(self) -> Tensor:
        """The weight that the layer multiplies with, whoever reads it; the site of this name may be a part of it."""
        return self.sample_parameters()[0]

    @property
    def bias(self) -> Tensor | None:
        """The bias that the layer adds, or None."""
        return self.sample_parameters()[1]

    def share(self, role: str, times: Callable[[Tensor], Tensor]) -> None:
        """Let weight or bias, as the layer's own prior makes it, be what a function makes of it."""
        self._shared.setdefault(role, []).append(times)

    def sample_parameters(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias: one ``pyro.sample`` statement per site."""
        weight, bias = self._own_parameters()
        for times in self._shared.get("weight", ()):
            weight = times(weight)
        if bias is not None:
            for times in self._shared.get("bias", ()):
                bias = times(bias)
        return weight, bias

    def _own_parameters(self) -> tuple[Tensor, Tensor | None]:
        """The same, under the layer's own scales alone."""
        values: dict[str, Any] = {role: self._site(role) for role in self.prior.roles}
        bias: Any = self._site("bias") if self._has_bias else None
        if self.weight_code is None and values["weight"].dim() != len(self._shape):
            raise UsageError(
                "weights were drawn several at a time, as vectorize_particles and Predictive(…, parallel=True) do, and "
                "a network computes with one draw of them: leave that out"
            )
        if self.weight_code is not None:
            values["weight"] = self.weight_code.decoded(values["weight"])
            if bias is not None:
                bias = self.bias_code.decoded(bias)
            if self.weight_code.is_settled:  # scales are in the codes
                return self.layer_type.held(values["weight"]), bias
        weight = self.layer_type.held(self.prior.weight(values, self.layer_type))
        return weight, None if bias is None else self.prior.bias(values | {"bias": bias}, self.layer_type)


class BayesianLinear(BayesianLayer):
    """``nn.Linear`` whose weight and bias are latent: sites ``scale``, …, ``weight``, ``bias`` below its name.

    :param in_features: inputs; each is one group of a group prior.
    :param out_features: outputs.
    :param bias: whether there is a bias, with a standard normal prior.
    :param prior: the prior over the weight, of shape ``(out_features, in_features)``.
    :param group_size: how many neighbouring inputs are one group, instead of each alone.
    :raises UsageError: where groups of that size do not fill the inputs.

    Input ``(batch, *, in_features)``, output ``(batch, *, out_features)``.

    >>> import pyro, pyro_bc, torch
    >>> layer = BayesianLinear(4, 3, prior=pyro_bc.GroupHorseshoe())
    >>> pyro.poutine.trace(layer).get_trace(torch.ones(2, 4)).stochastic_nodes[-2:]
    ['weight', 'bias']
    """

    layer_type = LINEAR

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        prior: Prior | None = None,
        group_size: int = 1,
    ):
        if group_size < 1 or in_features % group_size:
            raise UsageError(f"{in_features} inputs cannot be split into groups of {group_size}")
        super().__init__((out_features, in_features), bias, prior, group_size)
        self.group_size = group_size
        self.in_features = in_features
        self.out_features = out_features

    @classmethod
    def _like(cls, module: Any, prior: Prior) -> "BayesianLinear":
        group_size = module.group_size if isinstance(module, GroupedLinear) else 1
        return cls(module.in_features, module.out_features, module.bias is not None, prior=prior, group_size=group_size)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *self.sample_parameters())

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self._has_bias}, prior={self.prior}"


class _BayesianConv(BayesianLayer):
    """What convolutions over one to three dimensions share; arguments as torch's."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        prior: Prior | None = None,
    ):
        # torch's own layer checks the arguments, on a device without storage.
        kind: Any = self.layer_type.module
        template = kind(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device="meta"
        )
        super().__init__(tuple(template.weight.shape), bias, prior)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = template.kernel_size
        self.stride = template.stride
        self.padding = template.padding
        self.dilation = template.dilation
        self.groups = groups
        self.padding_mode = padding_mode
        # (left, right) of the last dimension first, as F.pad takes them; only for other modes than zeros.
        self._pad = template._reversed_padding_repeated_twice

    @classmethod
    def _like(cls, module: Any, prior: Prior) -> "_BayesianConv":
        return cls(
            module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding,
            module.dilation, module.groups, module.bias is not None, module.padding_mode, prior=prior,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._pad, mode=self.padding_mode), 0
        weight, bias = self.sample_parameters()
        return self.layer_type.function(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, bias={self._has_bias}, "
            f"padding_mode={self.padding_mode!r}, prior={self.prior}"
        )


class BayesianConv1d(_BayesianConv):
    """``nn.Conv1d`` whose weight and bias are latent; each output filter is one group of a group prior.

    :param in_channels: channels of the input ``(batch, in_channels, length)``.
    :param out_channels: filters; the output is ``(batch, out_channels, length')``.
    :param prior: the prior over the weight, of shape ``(out_channels, in_channels / groups, kernel_size)``.

    The other parameters are those of ``torch.nn.Conv1d``. A filter's scale multiplies its whole output, bias
    included (Louizos et al. 2017, section 3.1 and appendix).
    """

    layer_type = layer_type("conv1d")


class BayesianConv2d(_BayesianConv):
    """``nn.Conv2d`` whose weight and bias are latent; each output filter is one group of a group prior.

    :param in_channels: channels of the input ``(batch, in_channels, height, width)``.
    :param out_channels: filters; the output is ``(batch, out_channels, height', width')``.
    :param prior: the prior over the weight, of shape ``(out_channels, in_channels / groups, height, width)``.

    The other parameters are those of ``torch.nn.Conv2d``. A filter's scale multiplies its whole output, bias
    included (Louizos et al. 2017, section 3.1 and appendix).

    >>> import pyro_bc, torch
    >>> layer = BayesianConv2d(1, 4, kernel_size=3, padding=1, prior=pyro_bc.GroupNormalJeffreys())
    >>> guide = pyro_bc.FactorizedGuide(layer)
    >>> sorted(guide(torch.ones(2, 1, 8, 8)))
    ['bias', 'scale', 'weight']
    """

    layer_type = layer_type("conv2d")


class BayesianConv3d(_BayesianConv):
    """``nn.Conv3d`` whose weight and bias are latent; each output filter is one group of a group prior.

    :param in_channels: channels of the input ``(batch, in_channels, depth, height, width)``.
    :param out_channels: filters; the output is ``(batch, out_channels, depth', height', width')``.
    :param prior: the prior over the weight, of shape ``(out_channels, in_channels / groups, depth, height, width)``.

    The other parameters are those of ``torch.nn.Conv3d``; scales as for :class:`BayesianConv2d`.
    """

    layer_type = layer_type("conv3d")


class _BayesianConvTranspose(BayesianLayer):
    """What transposed convolutions over one to three dimensions share; arguments as torch's."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        output_padding: int | tuple[int, ...] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | tuple[int, ...] = 1,
        *,
        prior: Prior | None = None,
    ):
        if groups != 1:
            raise UsageError(
                f"a transposed convolution of {groups} groups cannot be Bayesian; name it in deterministic=[…]"
            )
        make: Any = self.layer_type.module
        template = make(
            in_channels, out_channels, kernel_size, stride, padding, output_padding, 1, bias, dilation, device="meta"
        )
        super().__init__(tuple(template.weight.shape), bias, prior)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, template.kernel_size
        self.stride, self.padding, self.dilation = template.stride, template.padding, template.dilation
        self.output_padding = template.output_padding

    @classmethod
    def covers(cls, module: Any) -> bool:
        return bool(module.groups == 1)

    @classmethod
    def _like(cls, module: Any, prior: Prior) -> "_BayesianConvTranspose":
        return cls(
            module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding,
            module.output_padding, module.groups, module.bias is not None, module.dilation, prior=prior,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.sample_parameters()
        return self.layer_type.function(
            x, weight, bias, self.stride, self.padding, self.output_padding, 1, self.dilation
        )

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, output_padding={self.output_padding}, dilation={self.dilation}, "
            f"bias={self._has_bias}, prior={self.prior}"
        )


class BayesianConvTranspose1d(_BayesianConvTranspose):
    """``nn.ConvTranspose1d`` whose weight and bias are latent; each output filter is one group of a group prior.

    :param in_channels: channels of the input ``(batch, in_channels, length)``.
    :param out_channels: filters; the output is ``(batch, out_channels, length')``.
    :param prior: the prior over the weight, of shape ``(in_channels, out_channels, kernel_size)``.
    :raises UsageError: where ``groups`` is not 1: a filter's scale would be that of one filter of each group.

    The other parameters are those of ``torch.nn.ConvTranspose1d``.
    """

    layer_type = layer_type("conv_transpose1d")


class BayesianConvTranspose2d(_BayesianConvTranspose):
    """``nn.ConvTranspose2d`` whose weight and bias are latent; each output filter is one group of a group prior.

    :param in_channels: channels of the input ``(batch, in_channels, height, width)``.
    :param out_channels: filters; the output is ``(batch, out_channels, height', width')``.
    :param prior: the prior over the weight, of shape ``(in_channels, out_channels, height, width)``.
    :raises UsageError: where ``groups`` is not 1: a filter's scale would be that of one filter of each group.

    The other parameters are those of ``torch.nn.ConvTranspose2d``.
    """

    layer_type = layer_type("conv_transpose2d")


class BayesianConvTranspose3d(_BayesianConvTranspose):
    """``nn.ConvTranspose3d`` whose weight and bias are latent; each output filter is one group of a group prior.

    :param in_channels: channels of the input ``(batch, in_channels, depth, height, width)``.
    :param out_channels: filters; the output is ``(batch, out_channels, depth', height', width')``.
    :param prior: the prior over the weight, of shape ``(in_channels, out_channels, depth, height, width)``.
    :raises UsageError: where ``groups`` is not 1: a filter's scale would be that of one filter of each group.

    The other parameters are those of ``torch.nn.ConvTranspose3d``.
    """

    layer_type = layer_type("conv_transpose3d")


class BayesianEmbedding(BayesianLayer):
    """``nn.Embedding`` whose weight is latent; each column, a feature of all entries, is one group of a group prior, or
    each row (:class:`~pyro_bc.RowGroups`).

    :param num_embeddings: rows of the table.
    :param embedding_dim: columns.
    :param padding_idx: a row that is 0 and stays so; None for none.
    :param prior: the prior over the weight, of shape ``(num_embeddings, embedding_dim)``.

    Input integers ``(batch, *)``, output ``(batch, *, embedding_dim)``. A pruned column is not looked up, and what
    reads it has an input less; a row without signal among the columns that are left is 0, and takes next to no bits.

    >>> import pyro_bc, torch
    >>> layer = BayesianEmbedding(10, 4, prior=pyro_bc.GroupNormalJeffreys())
    >>> pyro_bc.FactorizedGuide(layer)(torch.tensor([[1, 2]]))["scale"].shape
    torch.Size([4])
    """

    layer_type = LOOKUP

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None, *, prior: Prior | None = None
    ):
        super().__init__((num_embeddings, embedding_dim), False, prior)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx = padding_idx
        if padding_idx is not None:
            self.hold_zero(padding_idx)

    @classmethod
    def covers(cls, module: Any) -> bool:
        padded = module.padding_idx is None or not bool(module.weight[module.padding_idx].any())
        return padded and module.max_norm is None

    @classmethod
    def _like(cls, module: Any, prior: Prior) -> "BayesianEmbedding":
        return cls(module.num_embeddings, module.embedding_dim, module.padding_idx, prior=prior)

    def forward(self, x: Tensor) -> Tensor:
        return F.embedding(x, self.weight)

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}, prior={self.prior}"


class BayesianEmbeddingBag(BayesianEmbedding):
    """``nn.EmbeddingBag`` of bags of one length whose weight is latent; groups as in :class:`BayesianEmbedding`.

    :param mode: what is made of a bag's rows: ``sum``, ``mean`` or ``max``.

    The other parameters are those of :class:`BayesianEmbedding`. Input integers ``(batch, length)``, output
    ``(batch, embedding_dim)``.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        mode: str = "mean",
        *,
        prior: Prior | None = None,
    ):
        super().__init__(num_embeddings, embedding_dim, padding_idx, prior=prior)
        self.mode = mode

    @classmethod
    def _like(cls, module: Any, prior: Prior) -> "BayesianEmbeddingBag":
        return cls(module.num_embeddings, module.embedding_dim, module.padding_idx, module.mode, prior=prior)

    def forward(self, x: Tensor) -> Tensor:
        return F.embedding_bag(x, self.weight, mode=self.mode)


#: the Bayesian layer in place of each of torch's.
BAYESIAN: dict[type[nn.Module], Any] = {
    GroupedLinear: BayesianLinear,
    EmbeddingBag: BayesianEmbeddingBag,
    **{
        layer.layer_type.module: layer
        for layer in (
            BayesianLinear,
            BayesianConv1d,
            BayesianConv2d,
            BayesianConv3d,
            BayesianConvTranspose1d,
            BayesianConvTranspose2d,
            BayesianConvTranspose3d,
            BayesianEmbedding,
        )
    },
}


def layer_class(module: nn.Module) -> type[nn.Module] | None:
    """The class of :data:`BAYESIAN` as which a module computes: its own, or one that it inherits ``forward`` from.

    None where there is none, or where the Bayesian layer does not cover the module's settings.
    """
    for kind in (type(module), *BAYESIAN):
        computes_alike = all(getattr(type(module), f, 0) is getattr(kind, f, 0) for f in _COMPUTES)
        if kind in BAYESIAN and isinstance(module, kind) and computes_alike and BAYESIAN[kind].covers(module):
            return kind
    return None


# The methods that a layer computes with.
_COMPUTES = ("forward", "_conv_forward", "__call__")
