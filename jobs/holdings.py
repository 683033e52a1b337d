"""What an output holds already: the committed dataset, and what earlier attempts finished but did not commit.

A part counts as held only if a record vouches for it and a listing shows it with that size, so a file that somebody
removed is made again. Memory goes with the number of fragments, never of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from jobs.errors import OutputError
from jobs.records import (
    CARRIED,
    RANGES,
    RECEIPTS,
    REJECTS,
    Manifest,
    RangesRecord,
    Receipt,
    ViewRecord,
    parse_ranges,
    parse_receipt,
    read_manifest,
)
from jobs.storage import Store

R = TypeVar("R", Receipt, RangesRecord)

_READ_THREADS = 32
_PART_PREFIX = "task="


@dataclass(frozen=True)
class Holdings:
    """What is there.

    Attributes:
        manifest: The committed dataset, if there is one.
        receipts: Of the manifest, and of attempts that it does not know.
        files: Size of every part and rejects file, by path.
        ranges: Calibrated by attempts that the manifest does not know.
        carried: Paths of vectors that an attempt had carried over.
    """

    manifest: Manifest | None
    receipts: tuple[Receipt, ...]
    files: Mapping[str, int]
    ranges: tuple[RangesRecord, ...] = ()
    carried: tuple[str, ...] = ()

    @property
    def is_tidy(self) -> bool:
        """Whether nothing is there but what the committed dataset holds."""
        committed = self.manifest.receipts if self.manifest else ()
        live = {file.path for receipt in committed for file in receipt.files()}
        scratch = self.ranges or self.carried
        return len(self.receipts) == len(committed) and self.files.keys() <= live and not scratch

    def by_part(self) -> dict[str, Receipt]:
        """The receipt that vouches for each part; only receipts all of whose files are there."""
        return {
            part.path: receipt
            for receipt in self.receipts
            if all(self.files.get(file.path) == file.num_bytes for file in receipt.files())
            for part in receipt.parts.values()
        }


def take_stock(store: Store) -> Holdings:
    """Read the manifest and the loose receipts, and list the files of an output."""
    manifest = read_manifest(store)
    loose = _read_all(store, RECEIPTS, parse_receipt)
    committed = manifest.receipts if manifest else ()
    carried = tuple(entry.path for entry in store.list(CARRIED))
    ranges = _read_all(store, RANGES, parse_ranges)
    return Holdings(manifest, (*committed, *loose), data_files(store), ranges, carried)


def _read_all(store: Store, folder: str, parse: Callable[[bytes, str], R]) -> tuple[R, ...]:
    """The records of a folder."""
    paths = [entry.path for entry in store.list(folder) if entry.path.endswith(".json")]
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        return tuple(pool.map(lambda path: parse(store.read(path), f"{store.location.uri}/{path}"), paths))


def data_files(store: Store) -> dict[str, int]:
    """Size of every part and rejects file of an output, by path, committed or not."""
    return {
        entry.path: entry.size_bytes
        for entry in store.list()
        if entry.path.startswith((_PART_PREFIX, f"{REJECTS}/"))
    }


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
