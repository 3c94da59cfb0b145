"""LeNet-300-100 on MNIST, fitted by several processes.

    torchrun --standalone --nproc-per-node 2 analyses/examples/distributed.py --data-dir ../shared/data/mnist

On several machines: the same command on each, with torchrun's ``--nnodes`` and ``--rdzv-endpoint``. Each process takes
its share of the training set; killed and started again, the fit goes on from its checkpoint.
"""

import argparse
from pathlib import Path

import pyro
import torch
import torch.distributed as distributed

import pyro_bc
from pyro_bc.app.datasets import load_dataset
from pyro_bc.app.networks import lenet_300_100
from pyro_bc.inspection.diagnostics import error_percent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-dir")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64, help="of each process")
    parser.add_argument("--out", type=Path, default=Path("runs/distributed"))
    arguments = parser.parse_args()

    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    first = distributed.get_rank() == 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    data = load_dataset(arguments.data, arguments.data_dir)
    pyro.set_rng_seed(0)
    net = lenet_300_100(data.picture_shape, data.classes)
    model = pyro_bc.BayesianNetwork(net, pyro_bc.GroupNormalJeffreys(), num_data=len(data.train_x))
    guide = pyro_bc.FactorizedGuide(model)
    batches = pyro_bc.data.Batches(data.train_x, data.train_y, arguments.batch_size)
    checkpoint = arguments.out / "checkpoint"
    result = pyro_bc.fit(
        model, guide, batches, epochs=arguments.epochs, kl_weight=0.2, checkpoint=checkpoint, resume=checkpoint.exists()
    )
    if first:
        last = result.history[-1]
        small = pyro_bc.compress(model, guide)
        size = small.save(arguments.out / "network.pbc")
        error = error_percent(small.network(), data.test_x, data.test_y)
        print(f"negative ELBO {last.loss:.4f} nats per example, KL {last.kl:.4f}, {last.seconds:.1f} s an epoch")
        print(f"{size:,} bytes, error {error:.2f} %")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
