"""Fragments are runs of whole row groups, and their names say what made them."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from encoders.space import Space
from encoders.tasks import Role, View
from jobs.corpus import Shard
from jobs.footers import Footer
from jobs.fragments import Cut, Fragment, cut

SHARD = Shard("lang=en/a.parquet", "v1", 1000)
VIEW = View("retrieval", Role.DOCUMENT)
SPACE = Space("5" * 32, "model@1/retrieval/4/float32")


def footer(*rows: int) -> Footer:
    return Footer("a.parquet", rows, tuple(10 * count for count in rows), pa.schema([]))


def sizes(rows: list[int], fragment_rows: int) -> list[int]:
    return [piece.num_rows for piece in cut(footer(*rows), fragment_rows)]


def test_row_groups_are_gathered_to_about_the_wanted_rows() -> None:
    assert sizes([10] * 10, 30) == [30, 30, 30, 10]
    assert sizes([40, 40, 40], 100) == [120]  # nearer to 100 than 80 is
    assert sizes([70, 70, 70], 100) == [70, 70, 70]  # 140 is further away than 70


def test_a_row_group_larger_than_a_fragment_stays_whole() -> None:
    assert sizes([5, 1000, 5], 10) == [5, 1000, 5]
    assert sizes([1000], 1) == [1000]


def test_a_shard_without_rows_has_no_fragments() -> None:
    assert sizes([], 10) == []
    assert sizes([0, 0], 10) == []


def test_empty_row_groups_travel_along_with_others() -> None:
    assert list(cut(footer(0, 10, 0, 0, 10, 0), 10)) == [Cut(0, 4, 0, 10, 100), Cut(4, 2, 10, 10, 100)]


@given(st.lists(st.integers(0, 50)), st.integers(1, 60))
def test_cuts_cover_every_row_group_once_and_in_order(rows: list[int], fragment_rows: int) -> None:
    cuts = list(cut(footer(*rows), fragment_rows))
    next_group = next_row = 0
    for piece in cuts:
        assert (piece.first_row_group, piece.first_row) == (next_group, next_row)
        groups = rows[next_group : next_group + piece.num_row_groups]
        assert piece.num_rows == sum(groups) > 0
        assert piece.num_bytes == 10 * sum(groups)
        next_group, next_row = next_group + piece.num_row_groups, next_row + piece.num_rows
    assert next_row == sum(rows)
    assert not cuts or next_group == len(rows)


@given(st.lists(st.integers(1, 20), min_size=1), st.integers(20, 60))
def test_fragments_of_small_row_groups_miss_the_wanted_rows_by_half_a_group_at_most(
    rows: list[int], fragment_rows: int
) -> None:
    for count in sizes(rows, fragment_rows)[:-1]:
        assert abs(count - fragment_rows) <= max(rows) / 2


def test_the_id_says_path_version_row_groups_and_reading() -> None:
    piece = Cut(2, 3, 20, 30, 300)
    fragment = piece.of(SHARD, "reading")
    assert fragment == Fragment(fragment.id, SHARD, 2, 3, 20, 30, 300)
    others = [
        piece.of(replace(SHARD, path="lang=en/b.parquet"), "reading"),
        piece.of(replace(SHARD, version="v2"), "reading"),
        piece.of(SHARD, "other"),
        replace(piece, first_row_group=1).of(SHARD, "reading"),
        replace(piece, num_row_groups=4).of(SHARD, "reading"),
    ]
    assert len({fragment.id, *(other.id for other in others)}) == 6
    assert piece.of(replace(SHARD, size_bytes=1), "reading").id == fragment.id  # the version says more


def test_a_part_is_named_by_its_fragment_its_space_and_its_view() -> None:
    fragment = Cut(0, 1, 0, 10, 100).of(SHARD, "reading")
    path = fragment.part_path(VIEW, SPACE)
    assert path.startswith("task=retrieval/role=document/lang=en/part-")
    assert path.endswith(".parquet")
    assert fragment.part_path(VIEW, Space(SPACE.id, "another name for people")) == path
    assert fragment.part_path(VIEW, Space("6" * 32, SPACE.name)) != path
    assert fragment.part_path(View("retrieval", Role.QUERY), SPACE).startswith(
        "task=retrieval/role=query/lang=en/"
    )
    bare = Cut(0, 1, 0, 10, 100).of(replace(SHARD, path="a.parquet"), "reading")
    assert bare.part_path(VIEW, SPACE).count("/") == 2


def test_partition_folders_stand_in_the_part_as_they_stand_in_the_shard() -> None:
    shard = replace(SHARD, path="plain/city=S%C3%A3o%20Paulo/größe=a b/x.parquet")
    path = Cut(0, 1, 0, 1, 1).of(shard, "reading").part_path(VIEW, SPACE)
    assert path.startswith("task=retrieval/role=document/city=S%C3%A3o%20Paulo/größe=a b/part-")
