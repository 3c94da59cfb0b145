"""Small networks with residual streams, of every way in which channels cross layers."""

import torch
import torch.nn.functional as F
from torch import nn


class Encoder(nn.Module):
    """Tokens with positions, attention and two layers, each added to the stream; normalised behind sums, or before."""

    def __init__(self, width: int = 8, before: bool = False):
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.position = nn.Parameter(0.5 * torch.randn(4, width))
        self.block = nn.TransformerEncoderLayer(width, 2, 12, 0.0, batch_first=True, norm_first=before)
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        return self.head(self.block(self.embed(x) + self.position).mean(1))


class MeanSquare(nn.Module):
    """A normalisation as Llama writes it."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


class Gated(nn.Module):
    """Words, a block behind a mean square, gated; the head is the table of words."""

    def __init__(self, width: int = 8, own: bool = True):
        super().__init__()
        self.words = nn.Embedding(11, width)
        self.norm, self.last = (MeanSquare(width) if own else nn.RMSNorm(width) for _ in range(2))
        self.gate, self.up, self.down = nn.Linear(width, 10), nn.Linear(width, 10), nn.Linear(10, width)
        self.head = nn.Linear(width, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x):
        h = self.words(x)
        n = self.norm(h)
        h = h + self.down(F.silu(self.gate(n)) * self.up(n))
        return self.head(self.last(h))


class Pictures(nn.Module):
    """Two stages of convolutions with shortcuts and batch norms."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.a, self.norm_a = nn.Conv2d(6, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.b, self.norm_b = nn.Conv2d(5, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.c, self.norm_c = nn.Conv2d(6, 8, 3, 2, padding=1), nn.BatchNorm2d(8)
        self.short, self.norm_short = nn.Conv2d(6, 8, 1, 2), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.norm_b(self.b(F.relu(self.norm_a(self.a(x))))))
        return self.head(F.relu(self.norm_c(self.c(x)) + self.norm_short(self.short(x))).mean((2, 3)))


def example(net: nn.Module, count: int = 6) -> torch.Tensor:
    """Inputs of one of these."""
    generator = torch.Generator().manual_seed(1)
    if isinstance(net, Gated):
        return torch.randint(11, (count, 5), generator=generator)
    return torch.randn((count, 1, 6, 6) if isinstance(net, Pictures) else (count, 4, 3), generator=generator)


def shaken(net: nn.Module) -> nn.Module:
    """The network with no number of its own at 0 or 1, in evaluation mode."""
    with torch.no_grad():
        for tensor in (*net.parameters(), *(b for b in net.buffers() if b.is_floating_point())):
            tensor.add_(0.2 * torch.rand(tensor.shape) + 0.05)
    return net.eval()


KINDS = {
    "normalised behind": Encoder,
    "normalised before": lambda: Encoder(before=True),
    "mean squares, tied head": Gated,
    "RMSNorm": lambda: Gated(own=False),
    "convolutions": Pictures,
}
