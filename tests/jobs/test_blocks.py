"""Small fragments together."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from jobs.blocks import MOST_FRAGMENTS, MOST_ROWS, blocks_of
from jobs.corpus import Shard
from jobs.fragments import Fragment
from jobs.run_spec import Work


def work_of(sizes: list[int]) -> list[Work]:
    """A fragment of each number of rows, and of as many bytes."""
    shard = Shard("a.parquet", "1", 1)
    return [
        Work(Fragment(f"{number:032}", shard, 0, 1, 0, rows, rows), {"a view": f"part-{number}"})
        for number, rows in enumerate(sizes)
    ]


@given(st.lists(st.integers(1, 2 * MOST_ROWS), max_size=3000))
def test_all_the_work_is_in_the_blocks_once_the_largest_first_and_equal_ones_in_their_order(
    sizes: list[int],
) -> None:
    work = work_of(sizes)
    done = [piece for block in blocks_of(work) for piece in block]
    assert done == sorted(work, key=lambda piece: -piece.fragment.num_bytes)


def test_more_views_are_more_work_and_vectors_that_are_there_less() -> None:
    small, large = work_of([10, 15])
    twice = replace(small, parts={"a view": "a", "another": "b"})
    carried = replace(large, carried="a file")
    assert list(blocks_of([carried, small, large, twice])) == [[twice], [large], [small], [carried]]


@given(st.lists(st.integers(1, 2 * MOST_ROWS), max_size=3000))
def test_only_a_fragment_alone_has_more_rows_than_a_block_should(sizes: list[int]) -> None:
    for block in blocks_of(work_of(sizes)):
        assert len(block) == 1 or sum(piece.fragment.num_rows for piece in block) <= MOST_ROWS


def test_few_fragments_go_each_alone_so_that_every_worker_has_one() -> None:
    assert [len(block) for block in blocks_of(work_of([1] * 500))] == [1] * 500


def test_tens_of_thousands_of_tiny_fragments_make_some_hundred_blocks() -> None:
    assert [len(block) for block in blocks_of(work_of([1] * 50_000))] == [MOST_FRAGMENTS] * 500
