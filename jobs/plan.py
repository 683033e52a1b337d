"""What the output should hold, what of it is there, and so what is to be done.

    corpus x footers -> fragments;   fragments x views -> parts;   parts - parts that exist = work

Shards that the committed dataset was made from, and that have not changed, are not opened at all.

Some rejects say more of the machine, or its number format, than of the row. A fragment that has such can be embedded
anew: its next take has parts of other names, which take the place of those before in the commit, like those of a shard
that changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from jobs.corpus import Corpus, Shard
from jobs.footers import BadShard, Columns, Footer, check_same_columns
from jobs.fragments import Cut, Fragment, cut
from jobs.holdings import Holdings
from jobs.records import BadShardRecord, Manifest, Receipt, ShardRecord
from jobs.rows import OF_THE_MACHINE, Reading, carried_types
from jobs.run_spec import ViewSpec, Work


@dataclass(frozen=True)
class Layout:
    """How the corpus is cut, and the types of what is carried along.

    Attributes:
        cuts: Of each readable shard, by its path.
        bad_shards: Those that cannot be read.
        carried: Id and kept columns.
        repeated_ids: See the manifest.
    """

    cuts: Mapping[str, tuple[Cut, ...]]
    bad_shards: tuple[BadShard, ...]
    carried: pa.Schema
    repeated_ids: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Plan:
    """What a run has to do.

    Attributes:
        shards: What the dataset is made from.
        bad_shards: What is skipped.
        fragments: All of them, in the corpus's order.
        num_parts: How many the output should hold.
        existing: Receipts that vouch for the parts that are there, each once.
        work: What is missing.
    """

    shards: tuple[ShardRecord, ...]
    bad_shards: tuple[BadShardRecord, ...]
    fragments: tuple[Fragment, ...]
    num_parts: int
    existing: tuple[Receipt, ...]
    work: tuple[Work, ...]

    @property
    def num_rows(self) -> int:
        """Rows of the corpus."""
        return sum(fragment.num_rows for fragment in self.fragments)


def unknown_shards(
    corpus: Corpus, manifest: Manifest | None, columns: Columns, fragment_rows: int
) -> list[Shard]:
    """The shards whose footers must be read: those that no committed dataset was cut from in the same way."""
    known = _known_shards(manifest, columns, fragment_rows)
    return [
        shard
        for shard in corpus.shards
        if shard.path not in known or known[shard.path].version != shard.version
    ]


def _known_shards(manifest: Manifest | None, columns: Columns, fragment_rows: int) -> dict[str, ShardRecord]:
    if manifest is None or manifest.fragment_rows != fragment_rows or manifest.reading.columns != columns:
        return {}
    return {shard.path: shard for shard in manifest.shards}


def lay_out(
    corpus: Corpus,
    manifest: Manifest | None,
    footers: Sequence[Footer | BadShard],
    columns: Columns,
    fragment_rows: int,
) -> Layout:
    """Cut the corpus, from the footers of the unknown shards and the committed dataset's cuts of the others.

    Raises:
        CorpusError: Shards disagree about a column's type.
    """
    read = [footer for footer in footers if isinstance(footer, Footer)]
    bad = tuple(footer for footer in footers if isinstance(footer, BadShard))
    cuts = {footer.path: tuple(cut(footer, fragment_rows)) for footer in read}
    opened = cuts.keys() | {shard.path for shard in bad}
    known = _known_shards(manifest, columns, fragment_rows)
    cuts |= {shard.path: known[shard.path].cuts for shard in corpus.shards if shard.path not in opened}
    if manifest is not None and cuts.keys() - {footer.path for footer in read}:
        read.insert(0, Footer("(unchanged shards)", (), (), carried_types(manifest.reading)))
    check_same_columns(read, columns)
    return Layout(cuts, bad, _carried_schema([footer.columns for footer in read], columns))


def _carried_schema(schemas: Sequence[pa.Schema], columns: Columns) -> pa.Schema:
    """Types of the id and kept columns; one that is null in a shard takes its type from another."""
    fields = []
    for name in dict.fromkeys((columns.id_column, *columns.keep_columns)):
        kinds = [schema.field(name).type for schema in schemas]
        fields.append(pa.field(name, next((kind for kind in kinds if not pa.types.is_null(kind)), pa.null())))
    return pa.schema(fields)


def fragments_of(corpus: Corpus, layout: Layout, reading: Reading) -> tuple[Fragment, ...]:
    """The fragments of a corpus that is read in one way, in its order, without the rows that repeat an id."""
    reading_digest = reading.record().digest
    whole = (
        piece.of(shard, reading_digest)
        for shard in corpus.shards
        for piece in layout.cuts.get(shard.path, ())
    )
    repeated = layout.repeated_ids or {}
    return tuple(fragment.without(repeated.get(fragment.id, "")) for fragment in whole)


def make_plan(
    corpus: Corpus,
    layout: Layout,
    reading: Reading,
    views: Sequence[ViewSpec],
    holdings: Holdings,
    *,
    retry_rejects: bool = False,
) -> Plan:
    """Compare what the output should hold with what it holds.

    With `retry_rejects` it should hold another take of the fragments that have rejects which depend on the machine.
    """
    bad = {shard.path: shard.reason for shard in layout.bad_shards}
    shards = tuple(
        ShardRecord(path=shard.path, version=shard.version, cuts=layout.cuts[shard.path])
        for shard in corpus.shards
        if shard.path not in bad
    )
    skipped = tuple(
        BadShardRecord(path=shard.path, version=shard.version, reason=bad[shard.path])
        for shard in corpus.shards
        if shard.path in bad
    )
    held = holdings.by_part()
    takes = _takes(held.values(), retry_rejects=retry_rejects)
    fragments = tuple(
        replace(fragment, take=takes[fragment.id]) if fragment.id in takes else fragment
        for fragment in fragments_of(corpus, layout, reading)
    )
    existing: dict[int, Receipt] = {}
    wanted: set[str] = set()
    work = []
    for fragment in fragments:
        parts = {str(spec.view): fragment.part_path(spec.view, spec.space) for spec in views}
        wanted.update(parts.values())
        receipts = [held[path] for path in parts.values() if path in held]
        existing |= {id(receipt): receipt for receipt in receipts}
        missing = {view: path for view, path in parts.items() if path not in held}
        if missing:
            work.append(Work(fragment, missing))
    return Plan(
        shards=shards,
        bad_shards=skipped,
        fragments=fragments,
        num_parts=len(fragments) * len(views),
        existing=tuple(_restricted(receipt, wanted, held) for receipt in existing.values()),
        work=tuple(work),
    )


def _takes(receipts: Iterable[Receipt], *, retry_rejects: bool) -> dict[str, int]:
    """The take of each fragment that is wanted, where it is not the first: the last that there is, or the next."""
    takes: dict[str, int] = {}
    for receipt in receipts:
        again = retry_rejects and not OF_THE_MACHINE.isdisjoint(receipt.rejected)
        if (take := receipt.take + again) > takes.get(receipt.fragment, 0):
            takes[receipt.fragment] = take
    return takes


def _restricted(receipt: Receipt, wanted: set[str], held: Mapping[str, Receipt]) -> Receipt:
    """A receipt of an earlier run may vouch for parts that this one does not want, or that another vouches for."""
    parts = {
        view: part
        for view, part in receipt.parts.items()
        if part.path in wanted and held[part.path] is receipt
    }
    return receipt if len(parts) == len(receipt.parts) else receipt.model_copy(update={"parts": parts})
