"""Which groups go: by the mixture and a signal, or by the mixture and what a group is worth; and how finely is stored.

    python analyses/paper/cuts.py RUN [RUN …] --data-dir ../shared/data

Each RUN is the folder of a ``pyro-bc run … --finetune-epochs 0 --development`` with the prior gnj or ghs. Rules
for a group beside the threshold that a mixture of its layer's statistics gives:

``signal``    some weight has more signal than noise (the default)
``λ``         its removal costs more nats than λ times the bits that it takes (:mod:`pyro_bc.posterior.thresholds`)
``evidence``  λ = log 2 for every bit: a comparison of two models of the data by their description lengths

and the rounding noise r of the posterior rule. Errors are those of held-out data. Writes ``analyses/results/cuts.md``.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import pyro

import pyro_bc
from pyro_bc.app.datasets import load_dataset
from pyro_bc.app.own_network import network
from pyro_bc.app.settings import PRIORS
from pyro_bc.inference.checkpoint import load_checkpoint
from pyro_bc.inspection.diagnostics import error_percent

sys.path.append(str(Path(__file__).parents[1]))
from common import RESULTS

RULES = {"signal": None, "λ = 0.02": 0.02, "λ = 0.03": 0.03, "λ = 0.05": 0.05, "λ = 0.1": 0.1, "evidence": math.log(2)}
NOISES = (0.05, 0.2, 0.4, 0.8)


def rows(folder: Path, data_dir: str | None) -> list[str]:
    run = json.loads((folder / "run.json").read_text())
    data = load_dataset(run["data"], data_dir if run["data"] != "digits" else None).development()
    pyro.clear_param_store()
    tensors, metadata = load_checkpoint(folder / "checkpoint")
    net = network(run["net"])(data.picture_shape, data.classes)
    model = pyro_bc.BayesianNetwork(net, PRIORS[run["prior"]], num_data=len(data.train_x))
    guide = pyro_bc.FactorizedGuide(model)
    guide(data.train_x[:4], data.train_y[:4])
    for module, prefix in ((guide, "guide."), (model, "model.")):
        module.load_state_dict({n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)})
    found = []
    title = f"{run['net']} on {run['data']}, {run['prior']}, {len(metadata['history'])} epochs"
    for name, price in RULES.items():
        cells = []
        for noise in NOISES:
            try:
                small = pyro_bc.compress(model, guide, group_nats_per_bit=price, noise_ratio=noise)
            except pyro_bc.PyroBCError:
                cells.append("nothing left")
                continue
            error = error_percent(small.network(), data.test_x, data.test_y)
            cells.append(f"{len(small.to_bytes()):,} at {error:.2f}")
            widths = "-".join(map(str, small.architecture))
        if cells[0] == "nothing left":
            widths = ""
        found.append(f"| {title} | {name} | {widths} | {' | '.join(cells)} |")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data-dir", help="folder with mnist/")
    args = parser.parse_args()
    lines = [
        "# Which groups go, and how finely what is left is stored", "",
        "`python analyses/paper/cuts.py RUN …`, of `pyro-bc run … --finetune-epochs 0 --development` with the recipes "
        "at hand, one seed: bytes at held-out error %, by rule and rounding noise r.", "",
        f"| posterior | a group stays where | groups | {' | '.join(f'r = {noise}' for noise in NOISES)} |",
        f"|---|---|---|{'---|' * len(NOISES)}",
    ]  # fmt: skip
    for folder in args.runs:
        lines += rows(folder, args.data_dir)
    (RESULTS / "cuts.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
