"""Bags of a table's rows as a lookup and what is made of its rows, so that the table is a layer as any other."""

import torch.nn.functional as F
from torch import Tensor, nn


class EmbeddingBag(nn.Embedding):
    """What ``nn.EmbeddingBag`` computes of bags of one length, ``(batch, length)``, as a lookup and a reduction.

    :param bag: the module whose weight and settings are taken over; one that is a reduction over all of its rows.

    Arguments of a call as ``nn.EmbeddingBag``'s; with offsets, or weights of an example's entries, it is that itself.
    """

    def __init__(self, bag: nn.EmbeddingBag):
        super().__init__(bag.num_embeddings, bag.embedding_dim, bag.padding_idx, _weight=bag.weight.detach())
        self.weight = bag.weight
        self.mode = bag.mode
        self.train(bag.training)

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        if offsets is not None or per_sample_weights is not None:
            return F.embedding_bag(input, self.weight, offsets, mode=self.mode, per_sample_weights=per_sample_weights)
        rows = F.embedding(input, self.weight)
        if self.mode == "max":
            return rows.amax(1)
        return rows.sum(1) if self.mode == "sum" else rows.mean(1)


def is_plain(bag: nn.EmbeddingBag) -> bool:
    """Whether a bag is a reduction over all of its rows: none is left out, but zeros of a sum, and none is scaled."""
    padding = bag.padding_idx
    left_out = padding is not None and (bag.mode != "sum" or bool(bag.weight[padding].any()))
    return bag.max_norm is None and not bag.include_last_offset and not left_out


def separate_bags(net: nn.Module) -> nn.Module:
    """Put :class:`EmbeddingBag` in place of every ``nn.EmbeddingBag`` that can be one, in a network that is changed."""
    for name, child in net.named_children():
        if type(child) is nn.EmbeddingBag and is_plain(child):
            setattr(net, name, EmbeddingBag(child))
        else:
            separate_bags(child)
    return net
