"""A process imports what it uses: no client of S3 where nothing is on S3, no Ray and no torch before there is work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.encoders.repositories import write_repository
from tests.jobs.builders import write_shard

S3 = {"s3fs", "aiobotocore", "botocore"}
WORK = {"ray", "torch", "transformers"}
COMMAND = """
from jobs.embed import main
code = main(sys.argv[1:])
"""
WORKER = """
import jobs.actors, jobs.read, jobs.write
from jobs.errors import StorageError
from jobs.storage import Location, open_store
try:
    open_store(Location(sys.argv[1])).open("nowhere", "1", 1)
except StorageError:
    code = 0
"""


def exit_code(script: str, unwanted: set[str], *argv: str) -> int:
    """What a script ends with that imports nothing unwanted."""
    check = f"found = {unwanted!r} & set(sys.modules)\nassert not found, found\nsys.exit(code)"
    command = [sys.executable, "-c", f"import sys\n{script}\n{check}", *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode


def test_help_needs_nothing_of_a_run() -> None:
    assert exit_code(COMMAND, S3 | WORK, "--help") == 0


def test_a_run_that_is_refused_starts_nothing(tmp_path: Path) -> None:
    model = str(write_repository(tmp_path / "model"))
    argv = ("--input", str(tmp_path / "none"), "--output", str(tmp_path / "out"), "--model", model)
    assert exit_code(COMMAND, S3 | WORK, *argv, "--task", "clustering") == 2


def test_nor_does_a_plan(tmp_path: Path) -> None:
    write_shard(tmp_path / "corpus", "s.parquet", {"id": [1], "text": ["one"]})
    model = str(write_repository(tmp_path / "model"))
    argv = ("--input", str(tmp_path / "corpus"), "--output", str(tmp_path / "out"), "--model", model)
    assert exit_code(COMMAND, S3 | WORK, *argv, "--task", "clustering", "--dry-run") == 0


def test_a_worker_between_folders_knows_no_s3_and_still_says_what_failed(tmp_path: Path) -> None:
    assert exit_code(WORKER, S3, str(tmp_path)) == 0
