"""The rows of two manifests' parts brought together by id: who is new, gone, changed or as before.

Two columns of each part are read, the id and the hash of its text, and put into buckets by id, so that what belongs
together can meet in one process or in many. What is compared, and what is said of it, stands in `jobs.changes`.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from jobs.cargo import grouped
from jobs.errors import OutputError
from jobs.parquet import open_plain, reason_of
from jobs.records import PartRecord
from jobs.storage import Location, open_store
from jobs.threads import in_threads

_THREADS = 16

KINDS = (ADDED, UPDATED, DELETED, UNCHANGED) = ("added", "updated", "deleted", "unchanged")


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
