"""What a commit changes, by id, for those who keep a copy of the vectors in a database.

    OUT/_changes/<digest of the new manifest>/since=<digest of the old one, or nothing>/
        change=added/task=<task>/role=<role>/part-<bucket>.parquet        id, text_hash, text_hash_before
        change=updated/...   change=deleted/...
        change=unchanged/...                                              id, text_hash
        change=unchanged/_parts.json                                      by view, parts whose ids are all unchanged
        _report.json                                                      counts; written last

Parts that both manifests hold are named and not read: their ids stand in them. Of the others two columns are read, id
and text_hash, and brought together by id: up to `SMALL_ROWS` in one process, above in a shuffle on the cluster
(`jobs.joins`). So a report costs what a commit wrote, and not what the dataset holds. A first run has nothing to
compare with, and reads its own parts to list them as added. A run that changes nothing commits nothing, and its report
is its summary (`nothing_changed`).

An id is updated when its text has changed, or all of them when the view has become one of another space. Ids are
taken to be unique; the rows of one id, chunks say, count as one text. Kept columns are not compared.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, TypeAdapter

from jobs.cargo import grouped
from jobs.errors import OutputError
from jobs.holdings import Holdings
from jobs.parquet import open_plain, reason_of
from jobs.records import CHANGES, Manifest, PartRecord
from jobs.storage import Location, Store, open_store
from jobs.threads import in_threads

SMALL_ROWS = 1_000_000
_BUCKET_ROWS = 4_000_000
_THREADS = 16
_STAYS = "change=unchanged/_parts.json"
_NOTHING = "nothing"  # what a first commit is compared with

KINDS = (ADDED, UPDATED, DELETED, UNCHANGED) = ("added", "updated", "deleted", "unchanged")


class Changes(BaseModel):
    """How many ids of each view a commit adds, updates, deletes and leaves.

    Attributes:
        since: Digest of the manifest before; None where there was none.
        manifest: Digest of the manifest after; of the same one, where nothing changed.
        views: Counts by view, then by kind of change.
        lost: Parts of the manifest before that were not there, so nobody knows what was in them; where there are some,
            load the dataset anew.
    """

    since: str | None
    manifest: str
    views: Mapping[str, Mapping[str, int]]
    lost: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Where the ids are, in the output."""
        return f"{CHANGES}/{self.manifest}/since={self.since or _NOTHING}"

    def count(self, change: str) -> int:
        """Over all views."""
        return sum(counts.get(change, 0) for counts in self.views.values())


@dataclass(frozen=True)
class SidedPart:
    """A part that only one of two manifests holds, and the view that it is of."""

    view: str
    is_new: bool
    record: PartRecord


@dataclass(frozen=True)
class Comparison:
    """What is to be brought together, and where the result goes.

    Attributes:
        id_column: Name of the ids.
        parts: Of both sides.
        respaced: Views whose space is another than before.
        num_buckets: Files that the ids of one kind are spread over, by id.
        folder: Of the report.
    """

    id_column: str
    parts: tuple[SidedPart, ...]
    respaced: tuple[str, ...]
    num_buckets: int
    folder: str

    def to_json(self) -> bytes:
        """As the bytes that travel."""
        return _COMPARISON.dump_json(self)

    @staticmethod
    def from_json(content: bytes) -> Comparison:
        """Back from the bytes that travelled."""
        return _COMPARISON.validate_json(content)


_COMPARISON = TypeAdapter(Comparison)
OnCluster = Callable[[Location, Comparison], Counter[tuple[str, str]]]


def report_changes(store: Store, holdings: Holdings, after: Manifest, on_cluster: OnCluster) -> Changes:
    """Write what a commit will change, before it; a report that an earlier attempt finished is taken as it is.

    Raises:
        OutputError: A part cannot be read.
    """
    before = holdings.manifest
    empty = Changes(since=before.digest if before else None, manifest=after.digest, views={})
    path = f"{empty.folder}/_report.json"
    if store.exists(path):
        return Changes.model_validate_json(store.read(path))
    old = _parts(before) if before else {}
    new = _parts(after)
    counts = {
        view: Counter(dict.fromkeys(KINDS, 0))
        for view in sorted({*after.views, *(before.views if before else ())})
    }
    stays = defaultdict[str, list[str]](list)
    for part_path in sorted(old.keys() & new.keys()):
        view, record = new[part_path]
        counts[view][UNCHANGED] += record.num_embedded
        stays[view].append(part_path)
    gone = [SidedPart(view, False, record) for name, (view, record) in old.items() if name not in new]
    came = [SidedPart(view, True, record) for name, (view, record) in new.items() if name not in old]
    lost = {part.record.path for part in gone} - {
        part.record.path for part in gone if holdings.files.get(part.record.path) == part.record.num_bytes
    }
    there = [part for part in (*gone, *came) if part.record.path not in lost]
    sides = sorted(there, key=lambda part: part.record.path)
    for parts in _comparable(before, after, sides):
        num_rows = sum(part.record.num_rows for part in parts)
        comparison = Comparison(
            after.reading.id_column,
            parts,
            _respaced(before, after),
            1 if num_rows <= SMALL_ROWS else -(-num_rows // _BUCKET_ROWS),
            empty.folder,
        )
        compared = (
            compare_here(store.location, comparison)
            if num_rows <= SMALL_ROWS
            else on_cluster(store.location, comparison)
        )
        for (view, change), count in compared.items():
            counts[view][change] += count
    changes = empty.model_copy(update={"views": counts, "lost": tuple(sorted(lost))})
    if stays:
        store.create(f"{empty.folder}/{_STAYS}", json.dumps(stays).encode())
    store.create(path, changes.model_dump_json(indent=2).encode())
    return changes


def nothing_changed(manifest: Manifest) -> Changes:
    """What a run changes that finds its dataset there: of each view, every id is what it was."""
    counts = {view: Counter(dict.fromkeys(KINDS, 0)) for view in manifest.views}
    for view, record in _parts(manifest).values():
        counts[view][UNCHANGED] += record.num_embedded
    return Changes(since=manifest.digest, manifest=manifest.digest, views=counts)


def _parts(manifest: Manifest) -> dict[str, tuple[str, PartRecord]]:
    return {
        part.path: (view, part)
        for receipt in manifest.receipts
        for view, part in receipt.parts.items()
        if part.num_rows
    }


def _respaced(before: Manifest | None, after: Manifest) -> tuple[str, ...]:
    held = before.views if before else {}
    return tuple(
        view for view, new in after.views.items() if view in held and held[view].space_id != new.space_id
    )


def _comparable(
    before: Manifest | None, after: Manifest, parts: list[SidedPart]
) -> list[tuple[SidedPart, ...]]:
    """All parts together; ids of another name or type are never the same, so such parts are listed apart."""
    key = after.reading.id_column
    if before is None or (before.reading.id_column, dict(before.reading.carried).get(key)) == (
        key,
        dict(after.reading.carried)[key],
    ):
        return [tuple(parts)]
    return [tuple(part for part in parts if part.is_new == is_new) for is_new in (False, True)]


def compare_here(location: Location, comparison: Comparison) -> Counter[tuple[str, str]]:
    """All in this process; returns how many ids each view has of each kind of change."""
    steps = CompareSteps(location, comparison)
    rows = list(in_threads(steps.ids, range(len(comparison.parts)), _THREADS))
    return steps.save(pa.concat_tables(rows, promote_options="permissive")) if rows else Counter()


class CompareSteps:
    """The steps that touch storage; load it once in each process."""

    def __init__(self, location: Location, comparison: Comparison) -> None:
        self._store = open_store(location)
        self._comparison = comparison
        self._views = sorted({part.view for part in comparison.parts})

    def ids(self, number: int) -> pa.Table:
        """The rows of a part: bucket, view, is_new, id, text_hash."""
        part = self._comparison.parts[number]
        try:
            with self._store.open(part.record.path) as file:
                parquet = open_plain(file)
                names = parquet.schema_arrow.names
                table = parquet.read([names[0], "text_hash"])  # the id comes first, whatever its name was
        except (pa.ArrowException, OSError) as error:
            raise OutputError(
                f"{self._store.location.uri}/{part.record.path} cannot be read: {reason_of(error)}; the "
                "ids that change are listed from it. Bring it back, or remove it and run again"
            ) from error
        ids = table.column(0)
        buckets = [zlib.crc32(str(one).encode()) % self._comparison.num_buckets for one in ids.to_pylist()]
        view = np.full(len(ids), self._views.index(part.view), np.int32)
        return pa.table(
            {
                "bucket": pa.array(buckets, pa.int64()),
                "view": pa.array(view),
                "is_new": pa.array(np.full(len(ids), part.is_new)),
                "id": ids,
                "text_hash": table.column("text_hash"),
            }
        )

    def save(self, rows: pa.Table) -> Counter[tuple[str, str]]:
        """Write the changes of whole buckets, a file a kind and view."""
        counts: Counter[tuple[str, str]] = Counter()
        for bucket, inside in grouped(rows, "bucket"):
            compared = compare(inside)
            for number, ids in grouped(compared, "view"):
                view = self._views[number]
                for change, some in _by_change(ids, respaced=view in self._comparison.respaced).items():
                    counts[view, change] += some.num_rows
                    if some.num_rows:
                        self._write(bucket, view, change, some)
        return counts

    def _write(self, bucket: int, view: str, change: str, ids: pa.Table) -> None:
        table = ids.select(["id", "text_hash", *(["text_hash_before"] if change != UNCHANGED else [])])
        table = table.rename_columns({"id": self._comparison.id_column}).sort_by(self._comparison.id_column)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", use_dictionary=False)
        task, role = view.split("/")
        folder = f"{self._comparison.folder}/change={change}/task={task}/role={role}"
        self._store.create(f"{folder}/part-{bucket:05}.parquet", sink.getvalue().to_pybytes())


def compare(rows: pa.Table) -> pa.Table:
    """Each id of each view once, with its text's hash after and before, null where it was not there."""
    new, old = (
        _texts(rows.filter(side).drop_columns(["is_new"]))
        for side in (rows["is_new"], pc.invert(rows["is_new"]))
    )
    old = old.rename_columns(["view", "id", "text_hash_before"])
    return new.join(old, keys=["view", "id"], join_type="full outer")


def _texts(rows: pa.Table) -> pa.Table:
    """View, id and the hash of its text; of several rows, the hash of theirs."""
    rows = rows.select(["view", "id", "text_hash"])
    gathered = rows.group_by(["view", "id"]).aggregate([("text_hash", "list")]).combine_chunks()
    hashes = gathered["text_hash_list"].to_pylist()
    said = [one[0] if len(one) == 1 else _digest_of(one) for one in hashes]
    return pa.table(
        {"view": gathered["view"], "id": gathered["id"], "text_hash": pa.array(said, pa.binary(16))}
    )


def _digest_of(hashes: list[bytes]) -> bytes:
    return hashlib.blake2b(b"".join(sorted(hashes)), digest_size=16).digest()


def _by_change(ids: pa.Table, *, respaced: bool) -> dict[str, pa.Table]:
    is_added, is_deleted = pc.is_null(ids["text_hash_before"]), pc.is_null(ids["text_hash"])
    is_same = pc.fill_null(pc.equal(ids["text_hash"], ids["text_hash_before"]), False)
    if respaced:
        is_same = pc.and_(is_same, False)
    is_updated = pc.invert(pc.or_(pc.or_(is_added, is_deleted), is_same))
    masks = {ADDED: is_added, UPDATED: is_updated, DELETED: is_deleted, UNCHANGED: is_same}
    return {change: ids.filter(mask) for change, mask in masks.items()}
