"""The fuzzer's process of hostile.py: atheris, guided by the coverage of the code that reads files.

    python analyses/robustness/hostile_fuzz.py STATS.json [libFuzzer's arguments]

An input is a version byte and what follows the checksum.
"""

import json
import resource
import sys
import time
from collections import Counter
from pathlib import Path

import atheris
import torch

with atheris.instrument_imports(include=["pyro_bc"]):
    from hostile import outcome, with_checksum

STATS = Path(sys.argv[1])
COUNTS: Counter = Counter()
STARTED = time.perf_counter()


def one_input(data: bytes) -> None:
    if len(data) < 2:
        return
    COUNTS[outcome(with_checksum(data[1:], 2 if data[0] == 2 else 3))] += 1
    if sum(COUNTS.values()) % 500 == 0:  # libFuzzer ends the process without a chance to write
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        seconds = round(time.perf_counter() - STARTED)
        STATS.write_text(json.dumps({"counts": COUNTS, "peak_mb": peak, "seconds": seconds}))


torch.set_num_threads(1)
atheris.Setup([sys.argv[0], *sys.argv[2:]], one_input)
atheris.Fuzz()
