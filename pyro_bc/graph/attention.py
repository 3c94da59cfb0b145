"""Attention with its projections as layers of their own, so that heads can be groups and fall away."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UnsupportedNetworkError


class GroupedLinear(nn.Linear):
    """``nn.Linear`` whose inputs come in groups of neighbours, which a group prior keeps or prunes together.

    :param group_size: inputs of one group.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, group_size: int):
        super().__init__(in_features, out_features, bias)
        self.group_size = group_size


class MultiheadAttention(nn.Module):
    """What ``nn.MultiheadAttention`` computes, without the weights of the attention.

    Its projections are the layers ``query``, ``key``, ``value`` (embedding to heads times features) and ``out_proj``,
    whose groups are the heads: a head that ``out_proj`` does not read is not computed.

    :param attention: the module whose weights and settings are taken over.
    :raises UnsupportedNetworkError: where it has ``bias_k``, ``bias_v`` or ``add_zero_attn``.

    Arguments of a call as ``nn.MultiheadAttention``'s; the second result is None.
    """

    # What nn.TransformerEncoderLayer asks before it takes its fused kernel: with these answers it does not.
    in_proj_weight = in_proj_bias = None
    _qkv_same_embed_dim = False
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear

    def __init__(self, attention: nn.MultiheadAttention):
        super().__init__()
        if attention.bias_k is not None or attention.bias_v is not None or attention.add_zero_attn:
            raise UnsupportedNetworkError("attention with add_bias_kv or add_zero_attn cannot be made Bayesian")
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.embed_dim, self.batch_first = attention.embed_dim, attention.batch_first
        self.dropout = attention.dropout
        if attention.in_proj_weight is not None:
            weights = attention.in_proj_weight.chunk(3)
        else:
            weights = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
        biases = (None,) * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
        for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            setattr(self, name, _filled(nn.Linear(weight.shape[1], weight.shape[0], bias is not None), weight, bias))
        out = attention.out_proj
        layer = GroupedLinear(out.in_features, out.out_features, out.bias is not None, group_size=self.head_dim)
        self.out_proj = _filled(layer, out.weight, out.bias)
        self.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        if not self.batch_first and query.dim() == 3:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        projected = (self.query(query), self.key(key), self.value(value))
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)).transpose(-2, -3) for x in projected)
        mask = _additive(attn_mask, q)
        if mask is not None and mask.dim() == 3:
            mask = mask.unflatten(0, (-1, self.num_heads))
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, q)
            assert padding is not None
            padding = padding[..., None, None, :]
            mask = padding if mask is None else mask + padding
        dropout = self.dropout if self.training else 0.0
        heads = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal and mask is None)
        result = self.out_proj(heads.transpose(-2, -3).flatten(-2))
        return (result.transpose(0, 1) if not self.batch_first and result.dim() == 3 else result), None


def _filled(layer: nn.Linear, weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer.to(weight.device)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def _additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A mask as numbers to add: boolean ones, in which True is left out, become minus infinity."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


def separate_heads(net: nn.Module) -> nn.Module:
    """Put :class:`MultiheadAttention` in place of every ``nn.MultiheadAttention`` of a network, which is changed."""
    for name, child in net.named_children():
        if isinstance(child, nn.MultiheadAttention):
            setattr(net, name, MultiheadAttention(child))
        else:
            separate_heads(child)
    return net
