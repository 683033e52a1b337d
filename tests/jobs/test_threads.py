"""Who wants to end does not wait for a store that hangs."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.compare import Comparison, SidedPart, compare_here
from jobs.duplicates import repeated_ids
from jobs.errors import StorageError
from jobs.id_bits import sharing
from jobs.threads import in_threads
from tests.integration.commands import REPOSITORY
from tests.jobs.builders import store_of, write_shard
from tests.jobs.test_changes import VIEW, part_of
from tests.jobs.test_duplicates import nowhere, scan_of

# Its first read fails, and no other one has an answer.
HANGING = """
import threading
from jobs.threads import in_threads

def read(number):
    if number == 0:
        raise PermissionError(13, "no")
    threading.Event().wait(60)

list(in_threads(read, range(4), 4))
"""


def test_what_is_read_comes_in_order() -> None:
    def slowly(number: int) -> int:
        time.sleep(0.01 * (number % 3))
        return number * number

    assert list(in_threads(slowly, range(20), 4)) == [number * number for number in range(20)]
    assert list(in_threads(slowly, [], 4)) == []


def test_a_process_ends_though_reads_hang() -> None:
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", HANGING], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert "PermissionError" in ended.stderr
    assert time.monotonic() - started < 30


@pytest.fixture
def hanging() -> Iterator[Callable[..., Any]]:
    """A read of which the first one fails, and all others hang."""
    hangs, first = threading.Event(), threading.Lock()

    def read(*_: Any) -> Any:
        if first.acquire(blocking=False):
            time.sleep(0.2)  # the others have begun
            raise StorageError("could not read")
        hangs.wait(60)
        raise AssertionError

    yield read
    hangs.set()


def compare_ids(folder: Path) -> None:
    """Among those of shards that hold no id twice."""
    for name in ("a", "b", "c"):
        write_shard(folder, f"{name}.parquet", {"id": [name], "text": ["t"]})
    repeated_ids("fail", scan_of(folder), None, nowhere)


def compare_bits(folder: Path) -> None:
    """Of fragments that have none saved."""
    for name in ("a", "b", "c"):
        write_shard(folder, f"{name}.parquet", {"id": [name], "text": ["t"]})
    fragments = scan_of(folder).fragments
    sharing(store_of(folder), fragments[:2], fragments[2:])


def list_changes(folder: Path) -> None:
    """Of a dataset of three parts."""
    parts = [part_of(folder, name, pa.array([1]), [1]) for name in ("a", "b", "c")]
    sided = tuple(SidedPart(VIEW, True, part) for part in parts)
    compare_here(store_of(folder).location, Comparison("id", sided, (), 1, "_changes"))


@pytest.mark.parametrize(
    ("place", "look"),
    [
        ("jobs.duplicates.Ids.keys", compare_ids),
        ("jobs.id_bits.load", compare_bits),
        ("jobs.compare.CompareSteps.ids", list_changes),
    ],
)
def test_who_wants_to_end_does_not_wait_for_a_store_that_hangs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hanging: Callable[..., Any],
    place: str,
    look: Callable[[Path], None],
) -> None:
    monkeypatch.setattr(place, hanging)
    started = time.monotonic()
    with pytest.raises(StorageError, match="could not read"):
        look(tmp_path)
    assert time.monotonic() - started < 30
