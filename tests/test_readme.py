"""README's Pyro example, run as written."""

import re
import subprocess
import sys
from pathlib import Path

import pyro_bc

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_ten_lines_run_and_give_a_small_network_that_works(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    data = pyro_bc.load_dataset("digits")
    net = pyro_bc.load(tmp_path / "net.pbc")
    wrong = (net(data.test_x).argmax(1) != data.test_y).float().mean()
    assert wrong < 0.15
    assert (tmp_path / "net.pbc").stat().st_size < 4 * 7_510 / 4
