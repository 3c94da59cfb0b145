"""Six networks of six kinds, trained for minutes as anyone would: what is compressed without a training afterwards.

    python analyses/beyond/six_networks.py --data-dir ../shared/data

trains those that ``runs/six-networks`` does not hold yet, and prints their errors; the ResNet-20, which takes twenty
minutes on a core, is in ``six-networks`` beside this script. LeNet-300-100 and LeNet-5-Caffe on MNIST, a ResNet-20 and
a network of depthwise convolutions on the JPEG copy of CIFAR-10, a transformer encoder on the rows of the digits, and a
network of fully connected layers on scikit-learn's table of breast cancers.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import track
from safetensors.torch import load_file
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

from pyro_bc.app.datasets import load_dataset
from pyro_bc.app.networks import BasicBlock, lenet_5_caffe, lenet_300_100
from pyro_bc.compression.batch_norm import fold_batch_norm

RUNS, KEPT = Path("runs/six-networks"), Path(__file__).parent / "six-networks"


@dataclass(frozen=True)
class Problem:
    """Pictures or rows: what a network is trained on, what choices are made on, and what is read once."""

    train_x: Tensor
    train_y: Tensor
    held_x: Tensor
    held_y: Tensor
    test_x: Tensor
    test_y: Tensor


def resnet_20() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    inputs = 16
    for outputs in (16, 32, 64):
        for block in range(3):
            layers.append(BasicBlock(inputs, outputs, 2 if block == 0 and outputs > 16 else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def depthwise() -> nn.Module:
    """Depthwise and pointwise convolutions in turn, as in MobileNet (Howard et al. 2017)."""
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    inputs = 32
    for outputs, stride in ((64, 1), (128, 2), (128, 1), (192, 2), (192, 1)):
        layers += [
            nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False), nn.BatchNorm2d(inputs), nn.ReLU(),
            nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
        ]  # fmt: skip
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


class Encoder(nn.Module):
    """A transformer encoder that reads a digit row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 64)
        self.place = nn.Parameter(0.02 * torch.randn(8, 64))
        layer = nn.TransformerEncoderLayer(64, 4, 128, 0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x.squeeze(1)) + self.place).mean(1))


def table_network() -> nn.Module:
    return nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


def breast_cancer(folder: str | None) -> Problem:
    x, y = (torch.from_numpy(part) for part in load_breast_cancer(return_X_y=True))
    x = ((x - x.mean(0)) / x.std(0)).float()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    train, test = order[:400], order[400:]
    return _split(x[train], y[train], x[test], y[test], 80)


def _split(x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor, held: int) -> Problem:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    first, last = order[:-held], order[-held:]
    return Problem(x[first], y[first], x[last], y[last], test_x, test_y)


def of_dataset(name: str, held: int, mean: float = 0.0, std: float = 1.0) -> Callable[[str | None], Problem]:
    def load(folder: str | None) -> Problem:
        data = load_dataset(name, folder if name != "digits" else None)
        parts = ((data.train_x - mean) / std, data.train_y, (data.test_x - mean) / std, data.test_y)
        return _split(*parts, held)

    return load


#: by name: the network, its data, epochs, the largest learning rate, and whether pictures are mirrored and moved.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[str | None], Problem], int, float, bool]] = {
    "lenet-300-100": (lenet_300_100, of_dataset("mnist", 5000), 15, 2e-3, False),
    "lenet-5-caffe": (lenet_5_caffe, of_dataset("mnist", 5000), 4, 2e-3, False),
    "resnet-20": (resnet_20, of_dataset("cifar-10-jpeg", 5000, 0.47, 0.25), 6, 1e-2, True),
    "depthwise": (depthwise, of_dataset("cifar-10-jpeg", 5000, 0.47, 0.25), 8, 1e-2, True),
    "table": (table_network, breast_cancer, 60, 5e-3, False),
    "transformer": (Encoder, of_dataset("digits", 300), 150, 2e-3, False),
}


def augmented(x: Tensor) -> Tensor:
    padded = F.pad(x, (4, 4, 4, 4), mode="reflect")
    top, left = (int(v) for v in torch.randint(0, 9, (2,)))
    moved = padded[:, :, top : top + x.shape[2], left : left + x.shape[3]]
    mirrored = torch.rand(len(x)) < 0.5
    return torch.where(mirrored[:, None, None, None], moved.flip(3), moved)


def train(net: nn.Module, data: Problem, epochs: int, rate: float, augment: bool, name: str) -> None:
    torch.manual_seed(0)
    steps = epochs * -(-len(data.train_x) // 128)
    optimizer = torch.optim.AdamW(net.parameters(), rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    net.train()
    for _ in track(range(epochs), name):
        for index in torch.randperm(len(data.train_x)).split(128):
            x = data.train_x[index]
            optimizer.zero_grad()
            F.cross_entropy(net(augmented(x) if augment else x), data.train_y[index]).backward()
            optimizer.step()
            schedule.step()
    net.eval()


@torch.no_grad()
def error(net: nn.Module, x: Tensor, y: Tensor) -> float:
    return 100 * float((torch.cat([net(part) for part in x.split(500)]).argmax(1) != y).float().mean())


def trained(name: str, folder: str | None) -> tuple[nn.Module, Problem]:
    """A network with its batch normalisation folded, and its data."""
    build, load, epochs, rate, augment = NETWORKS[name]
    data = load(folder)
    torch.manual_seed(0)
    net, file, kept = build(), RUNS / f"{name}.pt", KEPT / f"{name}.safetensors"
    if kept.exists():
        net.load_state_dict(load_file(kept), strict=False)  # but for how many batches have been seen
    elif file.exists():
        net.load_state_dict(torch.load(file))
    else:
        train(net, data, epochs, rate, augment, name)
        RUNS.mkdir(parents=True, exist_ok=True)
        torch.save(net.state_dict(), file)
    net.eval()
    return fold_batch_norm(net, data.train_x[:2]) if name in ("resnet-20", "depthwise") else net, data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder with mnist/ and cifar10-jpeg/")
    parser.add_argument("--only", nargs="*", default=list(NETWORKS))
    args = parser.parse_args()
    for name in args.only:
        net, data = trained(name, args.data_dir)
        size = sum(p.numel() for p in net.parameters())
        print(f"{name}: {size:,} parameters, held out {error(net, data.held_x, data.held_y):.2f} %", flush=True)


if __name__ == "__main__":
    main()
