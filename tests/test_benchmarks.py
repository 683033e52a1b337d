"""The benchmarks that are cheap enough run at a tiny size; `make bench-smoke` runs the others."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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


def test_each_reindex_has_its_share_of_the_texts_changed_and_of_the_rows_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    names = runpy.run_path(str(REPOSITORY / "benchmarks" / "reindex.py"))
    seen: list[dict[str, str]] = []

    def run_job(corpus: Path, *_: Any) -> dict[str, Any]:
        table = pq.read_table(corpus)
        seen.append(dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)))
        counts = dict.fromkeys(("rows", "embedded", "carried", "deleted", "tokens"), 0)
        return {**counts, "seconds": 1.0, "ray_start_seconds": 0.0}

    names["time_reindex"].__globals__["run_job"] = run_job
    ids = [str(number) for number in range(200)]
    pq.write_table(pa.table({"id": ids, "text": ids}), tmp_path / "docs.parquet")
    names["time_reindex"](tmp_path, str(tmp_path / "docs.parquet"), "", 200)
    assert [len(one) for one in seen] == [200, 200, 198, 179, 90]
    for before, after in pairwise(seen):
        assert before.keys() >= after.keys()
    changed = [sum(before[one] != text for one, text in after.items()) for before, after in pairwise(seen)]
    assert changed == [0, 1, 17, 90]
