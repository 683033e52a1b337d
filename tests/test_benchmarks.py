"""The benchmarks that are cheap enough run at a tiny size; `make bench-smoke` runs the others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def test_growth_goes_through_all_phases_and_the_rerun_finds_nothing_to_do() -> None:
    command = [sys.executable, "benchmarks/growth.py", "30"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    _, _, *rows = done.stdout.splitlines()
    assert [row.split(" | ")[1] for row in rows] == ["first", "resume", "rerun"]
    assert "compare" in rows[-1]
