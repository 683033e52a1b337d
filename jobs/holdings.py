"""What an output holds already: the committed dataset, and what earlier attempts finished but did not commit.

A part counts as held only if a record vouches for it and a listing shows it with that size, so a file that somebody
removed is made again. Records are the live manifest, the earlier ones that are kept (what a corpus held before and
holds again costs nothing), and loose receipts. Memory goes with the number of fragments, never of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

from jobs.errors import OutputError
from jobs.files import kind_of
from jobs.manifests import ids_among, read_all_kept
from jobs.record_files import find_manifest, parse_ranges, parse_receipt
from jobs.records import FileRecord, Manifest, RangesRecord, Receipt, ViewRecord, receipt_path
from jobs.storage import Store
from jobs.threads import in_threads

R = TypeVar("R", Receipt, RangesRecord)

_READ_THREADS = 32
_DATA = ("part", "rejects")


@dataclass(frozen=True)
class Holdings:
    """What is there.

    Attributes:
        manifest: The committed dataset, if there is one.
        receipts: Of the manifest, of earlier ones, and of attempts that no manifest knows.
        files: Size of every part and rejects file, by path.
        ranges: Calibrated by attempts that the manifest does not know.
        others: Paths of our other files.
        version: Of the manifest's file; None where there is none.
        loose: The receipts of attempts that no manifest knows, or did not when they were written.
    """

    manifest: Manifest | None
    receipts: tuple[Receipt, ...]
    files: Mapping[str, int]
    ranges: tuple[RangesRecord, ...] = ()
    others: tuple[str, ...] = ()
    version: str | None = None
    loose: tuple[Receipt, ...] = ()

    @property
    def committed(self) -> tuple[Receipt, ...]:
        """The receipts that manifests hold, the live one and those that are kept."""
        return self.receipts[: len(self.receipts) - len(self.loose)]

    def by_part(self) -> dict[str, Receipt]:
        """The receipt that vouches for each part; only receipts all of whose files are there."""
        return {
            part.path: receipt
            for receipt in self.receipts
            if self._has_files_of(receipt)
            for part in receipt.parts.values()
        }

    def void_records(self) -> list[str]:
        """Paths of loose receipts of which a file is gone or another: what is made again has other bytes, maybe."""
        return [receipt_path(one.id) for one in self.loose if not self._has_files_of(one)]

    def _has_files_of(self, receipt: Receipt) -> bool:
        return all(self.files.get(file.path) == file.num_bytes for file in receipt.files())


def take_stock(store: Store) -> Holdings:
    """List the files of an output, and read the manifests and what is loose."""
    manifest, version = find_manifest(store)
    files: dict[str, int] = {}
    others: list[str] = []
    for entry in store.list(temporary=True):
        kind = kind_of(entry.path)
        if kind in _DATA:
            files[entry.path] = entry.size_bytes
        elif kind is not None:
            others.append(entry.path)
    # Of two that vouch for one part the later counts: a part that was lost and made again has other bytes, maybe.
    known: dict[tuple[tuple[str, str], ...], Receipt] = {}
    earlier = (one for _, one in read_all_kept(store, reversed(ids_among(others))))
    for one in chain(earlier, [manifest] if manifest else []):
        for receipt in one.receipts:
            key = tuple((file.path, file.sha256) for file in receipt.files())
            known.pop(key, None)
            known[key] = receipt
    loose = _read_all(store, [path for path in others if kind_of(path) == "receipt"], parse_receipt)
    receipts = (*known.values(), *loose)
    ranges = _read_all(store, [path for path in others if kind_of(path) == "ranges"], parse_ranges)
    return Holdings(manifest, receipts, files, ranges, tuple(others), version, loose)


def _read_all(store: Store, paths: Sequence[str], parse: Callable[[bytes, str], R]) -> tuple[R, ...]:
    if not paths:
        return ()

    def read(path: str) -> R | None:
        try:
            return parse(store.read(path), f"{store.location.uri}/{path}")
        except FileNotFoundError:  # a run that has the output clears up, while this one only looks
            return None

    return tuple(one for one in in_threads(read, paths, _READ_THREADS) if one is not None)


def lost_files(store: Store, manifest: Manifest) -> list[tuple[FileRecord, int | None]]:
    """The files of a manifest that are not there, or of another size, which comes with them."""
    found = {entry.path: entry.size_bytes for entry in store.list() if kind_of(entry.path) in _DATA}
    named = (file for receipt in manifest.receipts for file in receipt.files())
    return [(file, found.get(file.path)) for file in named if found.get(file.path) != file.num_bytes]


def refuse_other_dataset(manifest: Manifest, corpus: str, views: Mapping[str, ViewRecord]) -> None:
    """Refuse to turn a dataset into one of another corpus, of other spaces, or of fewer views.

    A run makes the output equal to what its configuration says, so each of these would remove embeddings that
    somebody meant to keep.

    Raises:
        OutputError: It would; with both sides named.
    """
    mend = "use another output, or output.overwrite=true to replace the dataset"
    for name, held in manifest.views.items():
        if name not in views:
            raise OutputError(
                f"the output holds the view {name} ({held.space_name}), and this run makes only {', '.join(views)}, so "
                f"it would remove the others; list all views, {mend}"
            )
        wanted = views[name]
        if wanted.space_id != held.space_id:
            raise OutputError(
                f"the output holds {name} in the space {held.space_name} ({held.space_id[:12]}), and this run makes "
                f"{wanted.space_name} ({wanted.space_id[:12]}); vectors of two spaces cannot be compared: {mend}"
            )
    if manifest.corpus != corpus:
        raise OutputError(f"the output was made from {manifest.corpus}, and this run reads {corpus}; {mend}")
