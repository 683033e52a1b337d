"""What a dataset is, to be compared bit for bit; and a reader that looks at it all the time."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.records import Manifest, read_manifest
from jobs.storage import Location, Store, open_store


@dataclass(frozen=True)
class Published:
    """A dataset as its manifest names it.

    Attributes:
        manifest: Without the time of the commit.
        files: Digest of each part and rejects file, as it lies on storage.
        num_rows: Rows that were read.
        num_vectors: Of all views.
        num_rejected: Rows that have none.
    """

    manifest: Mapping[str, Any] = field(repr=False)
    files: Mapping[str, str]
    num_rows: int
    num_vectors: int
    num_rejected: int


def published(location: Location) -> Published:
    """What a reader finds; every file must be what the manifest says of it."""
    store = open_store(location)
    manifest = read_manifest(store)
    assert manifest is not None, f"nothing is published at {location.uri}"
    files = {}
    for receipt in manifest.receipts:
        for file in receipt.files():
            content = store.read(file.path)
            assert len(content) == file.num_bytes, file
            files[file.path] = hashlib.sha256(content).hexdigest()
    return Published(
        manifest.model_dump(mode="json", exclude={"committed_at"}),
        files,
        sum(receipt.num_rows for receipt in manifest.receipts),
        sum(part.num_rows for receipt in manifest.receipts for part in receipt.parts.values()),
        sum(receipt.num_rejected for receipt in manifest.receipts),
    )


def assert_same(found: Published, wanted: Published, num_rows: int) -> None:
    """Equal bit for bit, and nothing lost: rows = vectors + rejects."""
    assert found.files == wanted.files
    assert found == wanted
    assert found.num_rows == num_rows == found.num_vectors + found.num_rejected
    named = json.dumps(found.manifest)
    assert all(digest in named for digest in found.files.values())


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
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.05):
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
