"""Programs that no network asks for are refused or computed, in parts as whole: some hundred of analyses' many."""

import json
import os
import subprocess
import sys
from pathlib import Path

import programs


def test_a_program_is_the_same_every_time_and_changes_reach_every_operation():
    assert [programs.program(number)[1] for number in range(5)] == [programs.program(number)[1] for number in range(5)]
    changed = {change.source.node.op for change in programs.changes()}
    assert changed == {row.name for row in programs.OPERATIONS}
    assert {change.is_known for change in programs.changes()} == {True, False}


def test_programs_end_no_process_and_give_in_parts_what_they_give_whole(tmp_path):
    script = Path(programs.__file__)
    done = subprocess.run(
        [sys.executable, str(script), "--programs", "300", "--state", str(tmp_path / "counts.json")],
        capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    counted = json.loads((tmp_path / "counts.json").read_text())
    assert counted["done"] == 300 and not counted["findings"], counted["findings"]
    assert counted["counts"]["refused"] > 100 and counted["counts"]["predicted"] > 20
