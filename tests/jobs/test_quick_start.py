"""A process imports what it uses: no client of S3 where nothing is on S3, no Ray and no torch before there is work."""

from __future__ import annotations

from pathlib import Path

from tests.encoders.repositories import write_repository
from tests.imports import printed_without
from tests.jobs.builders import write_shard

S3 = {"s3fs", "aiobotocore", "botocore"}
WORK = {"ray", "torch", "transformers"}
WORKER = """
import jobs.actors, jobs.read, jobs.write
from jobs.errors import StorageError
from jobs.storage import Location, open_store
try:
    open_store(Location(sys.argv[1])).read(300 * "n")  # longer than names may be, which no clause knows by itself
except StorageError as error:
    print(error)
"""


def exit_code(*argv: str) -> int:
    """What the command ends with, in a process that starts nothing."""
    script = "from jobs.embed import main\nprint(main(sys.argv[1:]))"
    return int(printed_without(S3 | WORK, script, *argv).splitlines()[-1])


def test_help_needs_nothing_of_a_run() -> None:
    assert exit_code("--help") == 0


def test_a_run_that_is_refused_starts_nothing(tmp_path: Path) -> None:
    model = str(write_repository(tmp_path / "model"))
    argv = ("--input", str(tmp_path / "none"), "--output", str(tmp_path / "out"), "--model", model)
    assert exit_code(*argv, "--task", "clustering") == 2


def test_nor_does_a_plan(tmp_path: Path) -> None:
    write_shard(tmp_path / "corpus", "s.parquet", {"id": [1], "text": ["one"]})
    model = str(write_repository(tmp_path / "model"))
    argv = ("--input", str(tmp_path / "corpus"), "--output", str(tmp_path / "out"), "--model", model)
    assert exit_code(*argv, "--task", "clustering", "--dry-run") == 0


def test_a_worker_between_folders_knows_no_s3_and_still_says_what_failed(tmp_path: Path) -> None:
    said = printed_without(S3, WORKER, str(tmp_path))
    assert said.startswith(f"could not read {tmp_path}/nnn")
    assert "OSError: File name too long; check that the path exists" in said
