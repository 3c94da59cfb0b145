"""Small networks in the styles that people write: inputs by name, shared modules, plain parameters, and the like."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Scores:
    logits: Tensor
    hidden: Tensor


class NamedInputs(nn.Module):
    """Two inputs by name, and a dataclass of two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.body = nn.Embedding(20, 8, padding_idx=0), nn.Sequential(nn.Linear(11, 24), nn.ReLU())
        self.head = nn.Linear(24, 3)

    @staticmethod
    def example() -> dict[str, Tensor]:
        return {"numbers": torch.randn(2, 3), "word": torch.randint(0, 20, (2,))}

    def forward(self, *, word: Tensor, numbers: Tensor) -> Scores:
        hidden = self.body(torch.cat([self.words(word), numbers], -1))
        return Scores(self.head(hidden), hidden)


def old_weight_norm() -> nn.Module:
    norm = nn.utils.weight_norm
    layers = (norm(nn.Conv1d(3, 16, 3, padding=1)), nn.ELU(), norm(nn.Conv1d(16, 24, 3, dilation=2)), nn.ELU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(24, 4))


class Twice(nn.Module):
    """One block that is run twice, and a layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(12, 16), nn.Linear(16, 3)
        self.block = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 16))
        self.same = self.block[1]

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        for _ in range(2):
            h = h + self.block(h)
        return self.leave(F.silu(h) + self.same(h)[:, :16])


class CrossAttention(nn.Module):
    """Questions of one input to another, in einsums over heads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(16, 32, bias=False), nn.Linear(12, 32, bias=False), nn.Linear(12, 32)
        self.out, self.mlp = nn.Linear(32, 16), nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 5))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (layer(y).unflatten(-1, (4, 8)) for layer, y in ((self.q, x), (self.k, context), (self.v, context)))
        weights = torch.einsum("bihd,bjhd->bhij", q, k).div(8**0.5).softmax(-1)
        return self.mlp((x + self.out(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2))).mean(1))


def decoder() -> nn.Module:
    def up(a: int, b: int) -> list[nn.Module]:
        return [nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.2)]

    body = (nn.Linear(6, 32 * 4), nn.Unflatten(1, (32, 2, 2)), *up(32, 24), *up(24, 16))
    return nn.Sequential(*body, nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Tanh())


class Attending(nn.Module):
    """A GRU in both directions whose states are weighed by a learned question."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.rnn = nn.Embedding(50, 12), nn.GRU(12, 16, batch_first=True, bidirectional=True)
        self.score, self.head = nn.Sequential(nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 1)), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(self.words(x))
        weights = self.score(states).softmax(1)
        return self.head((weights * states).sum(1))


class GatedTcn(nn.Module):
    """Causal convolutions with gates, skips that are added up, and a cut-off end (WaveNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv1d(4, 16, 1)
        self.gates = nn.ModuleList(nn.Conv1d(16, 64, 2, dilation=2**i, padding=2**i) for i in range(3))
        self.mix = nn.ModuleList(nn.Conv1d(32, 16, 1) for _ in range(3))
        self.skip = nn.ModuleList(nn.Conv1d(32, 24, 1) for _ in range(3))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(24, 24, 1), nn.ReLU(), nn.Conv1d(24, 6, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.enter(x), 0
        for i, gate in enumerate(self.gates):
            a, b = gate(x)[..., : x.shape[-1]].chunk(2, 1)
            h = a.tanh() * b.sigmoid()
            x, total = x + self.mix[i](h), total + self.skip[i](h)
        return self.head(total)[..., -1]


def volumes() -> nn.Module:
    layers = (nn.Conv3d(1, 8, 3, padding=1), nn.InstanceNorm3d(8, affine=True), nn.ReLU(), nn.MaxPool3d(2))
    return nn.Sequential(*layers, nn.Conv3d(8, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), nn.AdaptiveAvgPool3d(1),
                         nn.Flatten(), nn.Linear(16, 3))  # fmt: skip


class Bags(nn.Module):
    """The mean of a bag of words beside numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(30, 12, mode="mean")
        self.body = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, words: Tensor, numbers: Tensor) -> Tensor:
        return self.body(torch.cat([self.bag(words), numbers], 1))


class Parameters(nn.Module):
    """Weights that are no modules': in F.linear, behind ``@``, and a gain."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shift = nn.Parameter(torch.randn(20, 10) / 3), nn.Parameter(torch.zeros(20))
        self.second, self.gain = nn.Parameter(torch.randn(20, 16) / 4), nn.Parameter(torch.ones(16))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.linear(x, self.first, self.shift).relu()
        return self.head((h @ self.second * self.gain).tanh())
