"""Shards cut into fragments: the unit of work, retry and completion.

A fragment is a run of whole row groups of one shard, as near to the wanted number of rows as whole groups allow.
Its id is a digest of what it was made from, so a shard that was replaced makes other fragments, and the same shard
makes the same ones in every run, with any number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace

from encoders.space import Space, digest
from encoders.tasks import View
from jobs.corpus import Shard, partitions_of
from jobs.footers import Footer

# Part of every digest: raised when what a part holds changes, so that parts of another make are embedded anew.
LAYOUT = 1


@dataclass(frozen=True)
class Fragment:
    """A run of whole row groups of one shard.

    Attributes:
        id: Digest of the shard's path and version, the row groups, and how rows become texts.
        shard: Where the rows are.
        first_row_group: Index of the first row group in the shard.
        num_row_groups: How many follow one another, at least 1.
        first_row: Number of the first row in the shard.
        num_rows: What the footer promises.
        num_bytes: Compressed bytes of the columns that are read.
        dropped: Which of its rows repeat an id and become rejects, counted from its first, as ranges: "3,7-9".
        take: How often it was embedded anew because a machine could not do all of its rows; its parts differ by that.
    """

    id: str
    shard: Shard
    first_row_group: int
    num_row_groups: int
    first_row: int
    num_rows: int
    num_bytes: int
    dropped: str = ""
    take: int = 0

    def without(self, dropped: str) -> Fragment:
        """The fragment without some rows: another one, for its parts hold something else."""
        return replace(self, id=digest([self.id, dropped]), dropped=dropped) if dropped else self

    def part_path(self, view: View, space: Space) -> str:
        """Where this fragment's embeddings in one view go; the name says everything that made them."""
        return part_path(self.id, self.shard.path, view.task, view.role, space.id, self.take)


def part_path(fragment: str, shard: str, task: str, role: str, space_id: str, take: int) -> str:
    """The same by names alone."""
    made_by = [fragment, space_id, f"{task}/{role}", *([take] if take else [])]
    name = f"part-{digest(made_by)}.parquet"
    return "/".join(filter(None, [f"task={task}", f"role={role}", partitions_of(shard), name]))


@dataclass(frozen=True)
class Cut:
    """Where a fragment begins and ends; the numbers of a `Fragment`, without what they mean."""

    first_row_group: int
    num_row_groups: int
    first_row: int
    num_rows: int
    num_bytes: int

    def of(self, shard: Shard, reading: str) -> Fragment:
        """The fragment that this cut makes of a shard whose rows become texts as `reading` (a digest) says."""
        groups = [self.first_row_group, self.num_row_groups]
        made_from = digest([LAYOUT, shard.path, shard.version, groups, reading])
        return Fragment(made_from, shard, *astuple(self))


def cut(footer: Footer, fragment_rows: int) -> Iterator[Cut]:
    """The cuts of one shard, in its order; none where it has no rows. A larger row group stays whole."""
    first = first_row = rows = num_bytes = 0
    for index, group_rows in enumerate(footer.row_group_rows):
        # Take the group in where that brings the fragment nearer to the wanted size.
        if rows and abs(rows + group_rows - fragment_rows) > abs(rows - fragment_rows):
            yield Cut(first, index - first, first_row, rows, num_bytes)
            first, first_row, rows, num_bytes = index, first_row + rows, 0, 0
        rows += group_rows
        num_bytes += footer.row_group_bytes[index]
    if rows:
        yield Cut(first, len(footer.row_group_rows) - first, first_row, rows, num_bytes)


def as_ranges(rows: Sequence[int]) -> str:
    """Row numbers, ascending, as text: "3,7-9"."""
    ranges: list[list[int]] = []
    for row in rows:
        if ranges and ranges[-1][1] + 1 == row:
            ranges[-1][1] = row
        else:
            ranges.append([row, row])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def rows_in(ranges: str) -> list[int]:
    """Row numbers back from their text."""
    rows: list[int] = []
    for one in filter(None, ranges.split(",")):
        first, _, last = one.partition("-")
        rows.extend(range(int(first), int(last or first) + 1))
    return rows
