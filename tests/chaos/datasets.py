"""What a dataset is, to be compared bit for bit, or nearly; and a reader that looks at it all the time."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.record_files import parse_manifest, read_manifest
from jobs.records import FileRecord, Manifest
from jobs.storage import Location, Store, open_store

# Beside parts and rejects, what an output holds when nobody is at work on it.
_OTHERS = ("_manifest.json", "_manifests/", "_changes/", "_ids/")
VECTOR = "embedding"


@dataclass(frozen=True)
class Published:
    """A dataset as its manifest names it.

    Attributes:
        manifest: Without the time of the commit and the configuration.
        files: Digest of each part and rejects file, as it lies on storage.
        num_rows: Rows that were read.
        num_vectors: By view.
        num_rejected: Rows that have none.
        strangers: Files of the output that neither this manifest nor one that is kept knows.
        store: Where it is.
    """

    manifest: Mapping[str, Any] = field(repr=False)
    files: Mapping[str, str]
    num_rows: int
    num_vectors: Mapping[str, int]
    num_rejected: int
    strangers: frozenset[str] = field(compare=False)
    store: Store = field(compare=False, repr=False)

    def rows(self, view: str) -> pa.Table:
        """All rows of a view, sorted by id."""
        paths = [receipt["parts"][view]["path"] for receipt in self.manifest["receipts"]]
        parts = [pq.ParquetFile(io.BytesIO(self.store.read(path))).read() for path in paths]
        return pa.concat_tables(parts).sort_by("id").combine_chunks()


def published(location: Location) -> Published:
    """What a reader finds; every file must be what the manifest says of it, and so must those of earlier manifests."""
    store = open_store(location)
    manifest = read_manifest(store)
    assert manifest is not None, f"nothing is published at {location.uri}"
    files = {}
    for file in _files_of(manifest):
        content = store.read(file.path)
        assert len(content) == file.num_bytes, file
        files[file.path] = hashlib.sha256(content).hexdigest()
    listed = {entry.path: entry.size_bytes for entry in store.list(temporary=True)}
    earlier = {}
    for path in listed:
        if path.startswith("_manifests/"):
            earlier |= {
                file.path: file.num_bytes for file in _files_of(parse_manifest(store.read(path), path))
            }
    assert {path: listed.get(path) for path in earlier} == earlier
    return Published(
        manifest.model_dump(mode="json", exclude={"committed_at", "run", "checksum"}),
        files,
        manifest.num_rows,
        manifest.num_vectors(),
        sum(manifest.rejected().values()),
        frozenset(path for path in {*listed} - {*files} - {*earlier} if not path.startswith(_OTHERS)),
        store,
    )


def _files_of(manifest: Manifest) -> list[FileRecord]:
    return [file for receipt in manifest.receipts for file in receipt.files()]


def assert_same(found: Published, wanted: Published, num_rows: int) -> None:
    """Equal bit for bit, nothing lost (rows = vectors + rejects in each view), and nothing else in the output."""
    assert found.files == wanted.files
    assert found == wanted
    _assert_whole(found, num_rows)


def assert_alike(found: Published, wanted: Published, num_rows: int) -> None:
    """The same where vectors were carried over from other batches: equal but for their last bits."""
    assert found.files.keys() == wanted.files.keys()
    assert _without_bytes(found.manifest) == _without_bytes(wanted.manifest)
    assert {path: digest for path, digest in found.files.items() if path.startswith("_rejects")} == {
        path: digest for path, digest in wanted.files.items() if path.startswith("_rejects")
    }
    for view in wanted.num_vectors:
        ours, theirs = found.rows(view), wanted.rows(view)
        assert ours.drop_columns([VECTOR]).equals(theirs.drop_columns([VECTOR]))
        vectors = [np.stack(rows[VECTOR].to_numpy()) for rows in (ours, theirs)]
        np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    _assert_whole(found, num_rows)


def _assert_whole(found: Published, num_rows: int) -> None:
    assert found.num_rows == num_rows
    assert {num_vectors + found.num_rejected for num_vectors in found.num_vectors.values()} == {num_rows}
    named = json.dumps(found.manifest)
    assert all(digest in named for digest in found.files.values())
    assert found.strangers == frozenset()


def _without_bytes(record: Any) -> Any:
    """A manifest without what files weigh and their checksums."""
    if isinstance(record, list):
        return [_without_bytes(one) for one in record]
    if isinstance(record, dict):
        return {key: _without_bytes(one) for key, one in record.items() if key not in {"num_bytes", "sha256"}}
    return record


class Reader(threading.Thread):
    """Polls the manifest, and looks for the files that it names, as long as the block runs.

    Attributes:
        seen: Digest of each manifest, in the order of their appearance.
        faults: What was neither the whole old nor the whole new dataset.
        num_polls: How often it looked.
    """

    def __init__(self, location: Location) -> None:
        super().__init__(daemon=True)
        self.seen: list[str] = []
        self.faults: list[str] = []
        self.num_polls = 0
        self._store = open_store(location)
        self._pause = (
            0.2 if location.uri.startswith("s3://") else 0.05
        )  # a look there is a dozen times the work
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(self._pause):
            self.look()

    def look(self) -> None:
        """One look: a manifest that cannot be read, or that names what is not there, is a fault."""
        try:
            manifest = read_manifest(self._store)
            self.num_polls += 1
            if manifest is None:
                if self.seen:
                    self.faults.append("the manifest is gone")
                return
            digest = _digest(manifest)
            if self.seen[-1:] != [digest]:
                self.seen.append(digest)
            missing = _missing(self._store, manifest)
            # A reader that was overtaken by a commit and its sweep looks again.
            if missing and (again := read_manifest(self._store)) is not None and _digest(again) == digest:
                self.faults.append(f"{digest}: {missing}")
        except Exception as error:  # a thread's exception would be lost
            self.faults.append(repr(error))

    def __enter__(self) -> Reader:
        self.look()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()
        self.look()


def _digest(manifest: Manifest) -> str:
    content = manifest.model_dump_json(exclude={"committed_at"})
    return hashlib.sha256(content.encode()).hexdigest()


def _missing(store: Store, manifest: Manifest) -> list[str]:
    sizes = {entry.path: entry.size_bytes for entry in store.list()}
    return [
        file.path
        for receipt in manifest.receipts
        for file in receipt.files()
        if sizes.get(file.path) != file.num_bytes
    ]
