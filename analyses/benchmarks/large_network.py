"""A convolutional network of 25 million parameters through curvature, rounding and file: seconds and memory.

    python analyses/benchmarks/large_network.py

Weights are random, as are the 2,000 inputs of 3 × 32 × 32; the last layer's are as large as makes predictions as sure
as a trained network's. Prints a line; ``--write`` puts it into
``analyses/results/large_network.md``.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import torch
from torch import nn

import pyro_bc

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS

WIDTHS = (64, 128, 256, 512, 512, 512, 512, 512, 512, 512, 512, 512, 512, 512)

SPREAD = 3.0  # of a class's logit over the inputs


def network() -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = 3
    for number, width in enumerate(WIDTHS):
        stride = 2 if number in (1, 2, 3) else 1
        layers += [nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width, momentum=1.0), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--examples", type=int, default=2000)
    args = parser.parse_args()
    torch.manual_seed(0)
    net, x = network(), torch.randn(args.examples, 3, 32, 32)
    net(x[:200])  # statistics of normalisation
    net.eval()
    with torch.no_grad():
        net[-1].weight.mul_(SPREAD / net(x[:200]).std(0).mean())
    parameters = sum(p.numel() for p in net.parameters())
    start = time.perf_counter()
    model = pyro_bc.BayesianNetwork(net, pyro_bc.StandardNormal(), num_data=50_000)
    guide = pyro_bc.CurvatureGuide(model, x.split(50))
    collected = time.perf_counter() - start
    print(f"collected in {collected:.0f} s", flush=True)
    small = pyro_bc.compress(model, guide)
    size = len(small.to_bytes())
    seconds = time.perf_counter() - start
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    line = (
        f"{parameters:,} parameters, {torch.get_num_threads()} threads: curvature of {args.examples:,} inputs in "
        f"{collected:.0f} s, a file of {size:,} bytes after {seconds:.0f} s in all, at most {gib:.1f} GiB."
    )
    print(line)
    if args.write:
        (RESULTS / "large_network.md").write_text(
            f"# A large network\n\n`python analyses/benchmarks/large_network.py --write`\n\n{line}\n"
        )


if __name__ == "__main__":
    main()
