"""Workers that die of a row are followed by ones that leave it out; where no row is to blame the run ends."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from jobs.cargo import unpack_table
from jobs.deaths import MOST_DEATHS, MOST_DEATHS_IN_A_ROW, Deaths, survive
from jobs.encode import EncodeFragment
from jobs.errors import JobError, TooManyRejectsError
from jobs.read import Opened, Reader
from jobs.records import Receipt
from jobs.run_spec import Work
from jobs.write import Writer
from tests.encoders.repositories import write_repository
from tests.jobs.builders import plan_of, write_shard
from tests.jobs.test_long_texts import DOCUMENT, PROMPTS, QUERY, bench_of, vectors_of

Stage = Callable[[pa.Table], pa.Table]


class Killed(BaseException):
    """What becomes of a worker without a word."""


def line_to(deaths: Deaths) -> Callable[..., Any]:
    """How a worker reaches the count; what a dead one would say in the end nobody hears."""

    def ask(method: str, *arguments: Any) -> Any:
        return None if isinstance(sys.exception(), Killed) else getattr(deaths, method)(*arguments)

    return ask


def in_workers(deaths: Deaths, doing: str, stage: Stage, row: pa.Table) -> tuple[pa.Table, int]:
    """What the first worker gives that lives, and how many died before; the first of all is asked nothing."""
    for died in itertools.count():
        try:
            return (survive(stage, doing, row, line_to(deaths)) if died else stage(row)), died
        except Killed:
            pass
    raise AssertionError("unreachable")


@pytest.fixture
def works(tmp_path: Path) -> tuple[Work, ...]:
    """Two fragments of 400 rows."""
    write_shard(tmp_path, "half=0/s.parquet", {"id": range(800), "text": ["a"] * 800}, row_group_size=400)
    return plan_of(tmp_path, fragment_rows=400).work


def row_of(work: Work) -> pa.Table:
    return pa.table({"work": pa.array([work.to_json()], pa.binary())})


@dataclass
class Whole:
    """A stage that does fragments as they are, and dies of some."""

    deadly: frozenset[str] = frozenset()

    def __call__(self, row: pa.Table) -> pa.Table:
        if Work.from_json(row["work"][0].as_py()).fragment.id in self.deadly:
            raise Killed
        return row


@dataclass
class ByRows:
    """A stage that does rows apart, and dies of some, or in opening."""

    deadly: frozenset[int] = frozenset()
    opens: bool = True
    most_at_once: int = 1000

    def __call__(self, row: pa.Table) -> pa.Table:
        return self.run(self.open(row))

    def open(self, row: pa.Table) -> list[int]:
        if not self.opens:
            raise Killed
        fragment = Work.from_json(row["work"][0].as_py()).fragment
        return list(range(fragment.first_row, fragment.first_row + fragment.num_rows))

    def keep(self, opened: list[int], numbers: npt.NDArray[np.int64]) -> list[int]:
        return [one for one in opened if one in numbers]

    def reject(self, opened: list[int], numbers: npt.NDArray[np.int64]) -> list[int]:
        return [one for one in opened if one not in numbers]

    def run(self, opened: list[int]) -> pa.Table:
        if self.deadly.intersection(opened) or len(opened) > self.most_at_once:
            raise Killed
        return pa.table({"row": pa.array(opened, pa.int64())})


def test_deadly_rows_are_left_out_and_stay_known(works: tuple[Work, ...]) -> None:
    deaths, deadly = Deaths(3), frozenset({400, 513, 799})
    for expected in (2 + 3 * 3, 1):  # the second time only the one that is asked nothing
        done, died = in_workers(deaths, "encoded", ByRows(deadly), row_of(works[1]))
        assert done["row"].to_pylist() == sorted(set(range(400, 800)) - deadly)
        assert died == expected


def test_one_row_more_than_is_allowed_ends_the_run_with_its_number(works: tuple[Work, ...]) -> None:
    deaths, deadly = Deaths(2), frozenset({17, 400, 513})
    in_workers(deaths, "encoded", ByRows(deadly), row_of(works[0]))
    match = "3 rows ended .* in shard 'half=0/s.parquet' row 400, 513, while encoded"
    with pytest.raises(TooManyRejectsError, match=match):
        in_workers(deaths, "encoded", ByRows(deadly), row_of(works[1]))


@pytest.mark.parametrize(
    ("stage", "died"),
    [
        (Whole(), MOST_DEATHS),
        (ByRows(opens=False), MOST_DEATHS),
        (ByRows(most_at_once=399), MOST_DEATHS),
        (ByRows(frozenset(range(800))), MOST_DEATHS_IN_A_ROW),
    ],
    ids=["cannot be taken apart", "dies of opening", "dies of the whole", "dies of everything"],
)
def test_where_no_row_is_to_blame_the_run_ends_with_the_fragment(
    works: tuple[Work, ...], stage: Whole | ByRows, died: int
) -> None:
    if isinstance(stage, Whole):
        stage = Whole(frozenset({works[1].fragment.id}))
    place = f"^{died} worker processes died while rows 400 to 799 of shard 'half=0/s.parquet'.* were encoded"
    with pytest.raises(JobError, match=place):
        in_workers(Deaths(100), "encoded", stage, row_of(works[1]))


def test_what_was_put_down_counts_from_the_start(works: tuple[Work, ...]) -> None:
    deaths, row = Deaths(0), row_of(works[0])
    for _ in range(3 * MOST_DEATHS):
        with pytest.raises(Killed):
            survive(Whole(frozenset({works[0].fragment.id})), "written", row, line_to(deaths))
        survive(Whole(), "written", row, line_to(deaths))


def test_fragments_and_stages_are_counted_apart(works: tuple[Work, ...]) -> None:
    deaths = Deaths(0)
    for doing, work, _ in itertools.product(("encoded", "written"), works, range(MOST_DEATHS - 1)):
        assert deaths.take(doing, work.fragment.id, range(0)).deaths == 0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("model"), settings={"prompts": PROMPTS})


class DeadlyReader(Reader):
    """Dies of one row while it tokenizes."""

    number = 1

    def run(self, opened: Opened) -> pa.Table:
        if self.number in opened.rows.row_numbers:
            raise Killed
        return super().run(opened)


class DeadlyEncoder(EncodeFragment):
    """Dies of one row while it encodes."""

    number = 1

    def run(self, row: pa.Table) -> pa.Table:
        if self.number in unpack_table(row, "row_numbers")["row"].to_pylist():
            raise Killed
        return super().run(row)


@pytest.mark.parametrize(("mode", "chunks"), [("reject", ()), ("chunk", (20,)), ("late_chunk", (20,))])
@pytest.mark.parametrize("place", ["reader", "encoder"])
def test_a_deadly_row_is_a_reject_of_all_views_with_all_its_chunks(
    tmp_path: Path, model: Path, place: str, mode: str, chunks: tuple[int, ...]
) -> None:
    bench = bench_of(tmp_path, model, mode, *chunks)
    whole, _ = bench.embed()
    gone = 4 if mode == "reject" else 1  # there the long ones are rejects as it is
    expected = {view: bench.part(whole, view) for view in (QUERY, DOCUMENT)}
    rejects = bench.rejects(whole)
    bench.out = tmp_path / "without"
    spec, work = bench.run()
    read: type[Reader] = Reader
    encode: type[EncodeFragment] = EncodeFragment
    if place == "reader":
        read = DeadlyReader
        read.number = gone
    else:
        encode = DeadlyEncoder
        encode.number = gone
    deaths, reader, encoder = Deaths(1), read(spec), encode(spec)
    tokenized, read_died = in_workers(deaths, "read and tokenized", reader, row_of(work))
    encoded, encode_died = in_workers(deaths, "encoded", encoder, tokenized)
    assert sorted((read_died, encode_died)) == [0, 4]
    receipt = Receipt.model_validate_json(Writer(spec)(encoded).to_pylist()[0]["receipt"])
    assert receipt.balances
    assert sorted(bench.rejects(receipt)) == sorted([*rejects, (gone, "killed_worker", gone)])
    for view, table in expected.items():
        kept = table.filter(pa.array([one != gone for one in table["id"].to_pylist()]))
        assert kept.num_rows < table.num_rows
        part = bench.part(receipt, view)
        assert part.drop_columns(["embedding"]).equals(kept.drop_columns(["embedding"]))
        np.testing.assert_allclose(vectors_of(part), vectors_of(kept), atol=1e-6)
