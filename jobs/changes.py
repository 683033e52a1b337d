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

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

from pydantic import BaseModel

from jobs.compare import KINDS, UNCHANGED, Comparison, SidedPart, compare_here
from jobs.holdings import Holdings
from jobs.records import CHANGES, Manifest, PartRecord
from jobs.storage import Location, Store

SMALL_ROWS = 1_000_000
_BUCKET_ROWS = 4_000_000
_STAYS = "change=unchanged/_parts.json"
_NOTHING = "nothing"  # what a first commit is compared with


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
