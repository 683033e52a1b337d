"""A fragment that is put down is no danger; one that never is ends the run, with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.deaths import MOST_DEATHS, Deaths, refuse_deadly
from jobs.errors import JobError
from jobs.run_spec import Work
from tests.jobs.builders import plan_of, write_shard


@pytest.fixture
def works(tmp_path: Path) -> tuple[Work, ...]:
    """Two fragments of ten rows."""
    write_shard(tmp_path, "half=0/s.parquet", {"id": range(20), "text": ["a"] * 20}, row_group_size=10)
    return plan_of(tmp_path).work


def hold(deaths: Deaths, work: Work, doing: str = "encoded") -> None:
    refuse_deadly(doing, work, deaths.begin(doing, work.id))


def test_the_fifth_worker_in_a_row_does_not_touch_the_fragment_and_says_where_it_stands(
    works: tuple[Work, ...],
) -> None:
    deaths = Deaths()
    for _ in range(MOST_DEATHS - 1):  # before these there was one that nobody saw
        hold(deaths, works[1])
    place = "5 worker processes in a row died while rows 10 to 19 of shard 'half=0/s.parquet'"
    with pytest.raises(JobError, match=place):
        hold(deaths, works[1])


def test_what_was_put_down_counts_from_the_start(works: tuple[Work, ...]) -> None:
    deaths = Deaths()
    for _ in range(3 * MOST_DEATHS):
        hold(deaths, works[0])
        deaths.end("encoded", works[0].id)


def test_fragments_and_stages_are_counted_apart(works: tuple[Work, ...]) -> None:
    deaths = Deaths()
    for doing in ("read and tokenized", "encoded", "written"):
        for work in works:
            for _ in range(MOST_DEATHS - 1):
                hold(deaths, work, doing)
