"""The kill drill in small; `benchmarks/kill_drill.py` is the drill itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

_DRILL = Path(__file__).parents[2] / "benchmarks" / "kill_drill.py"


@pytest.mark.slow
def test_a_run_survives_whatever_happens_to_it(tmp_path: Path) -> None:
    """Else what a killed job leaves behind could not be resumed, or not to the bit."""
    figures = tmp_path / "figures.json"
    words = ["--kills", "4", "--json", figures, "--folder", tmp_path / "drill", "--data", tmp_path / "none"]
    done = subprocess.run([sys.executable, _DRILL, *words], capture_output=True, text=True, check=False)
    told = json.loads(figures.read_text(encoding="utf-8")) if figures.exists() else {}
    assert done.returncode == 0, done.stdout + done.stderr
    assert told["problems"] == []
    assert told["kills"] >= 4
    assert told["inside"] >= 0.3 * told["kills"]
    # What was hurt last went on like what was hurt before.
    assert all(row["resumed"] == row["times"] for row in told["rows"])
    kinds = {row["kind"].partition(" (")[0] for row in told["rows"]}
    assert {"full disk", "SIGKILL of the launcher", "SIGKILL of the whole group"} <= kinds
