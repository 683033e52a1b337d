"""After the commit: what no longer belongs is removed.

    named by the live manifest or an earlier one that is kept      stays
    named by a manifest that falls out of the history              goes with it, at once
    a receipt or ranges that the live manifest holds               goes at once
    vectors that were carried over to a fragment                   go at once
    the ids that a commit changed                                  go with its manifest
    whatever else has a name that we give: an orphan               goes when it has lain there for the grace period
    all other files                                                are somebody else's, and stay

Orphans are what attempts of another configuration finished and nobody committed, and temporary files of killed
writers. The grace, by the store's own time of the file, is for whoever may be at work on them still.

It costs one listing and reads the manifests that are kept, one at a time; memory goes with the number of files. A
manifest goes before its files, so that none is left whose files are gone; a sweep that dies in between leaves orphans.

Only the run that has the output may remove anything, and what is live must be its own. Both are looked at before every
`_BATCH` files, behind the listing: so whatever is removed was there before anybody else had the output. What is left
is the batch in flight of a run that is suspended in it for as long as it takes to be taken for dead, and then wakes. It
may remove orphans that the next run has found and counts on; that run's own new parts were not there to be listed. And
a commit of a run that is suspended just so long before its last request may name orphans that the next run removed,
if that one had nothing to commit. `jobs.verify` finds either, and the next run makes what is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from jobs.errors import OutputBusyError
from jobs.files import kind_of
from jobs.holdings import Holdings
from jobs.manifests import digest_of, earlier, id_of, ids_among, path_of, read_all_kept
from jobs.records import CHANGES, MANIFEST, RANGES, Manifest, bits_path, receipt_path
from jobs.storage import Store

_SECONDS_OF_HOUR = 3600
# Nobody but the run that has the output is at work on these.
_DONE_AT_ONCE = ("carried", "changes")
_BATCH = 1000  # the most that one request to S3 removes


def sweep(
    store: Store,
    live: Manifest,
    version: str,
    *,
    confirm: Callable[[], None],
    keep_manifests: int,
    orphan_grace_hours: float,
) -> None:
    """Remove what neither the live manifest nor the last few before it name.

    Args:
        store: The output.
        live: Its manifest.
        version: Of that manifest's file.
        confirm: Raises if the output is not this run's any more.
        keep_manifests: How many to keep, the live one included; at least 1.
        orphan_grace_hours: How old a file must be that no manifest has named.

    Raises:
        OutputBusyError: Another run has published meanwhile.
    """
    ours = [entry for entry in store.list(temporary=True) if kind_of(entry.path)]
    manifests = [entry.path for entry in ours if kind_of(entry.path) == "manifest"]
    history = earlier(ids_among(manifests), live)
    kept, dropped = history[: keep_manifests - 1], set(history[keep_manifests - 1 :])
    stay, reported = _records_of(live, kept)
    named, forgotten = _paths(live), set[str]()
    for one, manifest in read_all_kept(store, history):
        (forgotten if one in dropped else named).update(_paths(manifest))
    _delete(store, [path for path in manifests if path not in stay], version, confirm)
    done = {*forgotten, *_committed(live)}
    youngest = time.time() - orphan_grace_hours * _SECONDS_OF_HOUR
    gone = [
        entry.path
        for entry in ours
        if kind_of(entry.path) != "manifest"
        and entry.path not in named
        and not entry.path.startswith(reported)
        and (
            entry.path in done
            or kind_of(entry.path) in _DONE_AT_ONCE
            or orphan_grace_hours == 0
            or entry.modified < youngest
        )
    ]
    _delete(store, gone, version, confirm)


def is_tidy(holdings: Holdings, keep_manifests: int) -> bool:
    """Whether a sweep would find nothing to do, from what a run knows before it has listed the output once more."""
    live = holdings.manifest
    if live is None:
        return not holdings.files and not holdings.others
    kept = earlier(ids_among(holdings.others), live)
    stay, reported = _records_of(live, kept)
    named = {file.path for receipt in holdings.committed for file in receipt.files()}
    ours = stay | live.bits_paths() | {bits_path(receipt.fragment) for receipt in holdings.committed}
    return (
        len(kept) < keep_manifests
        and holdings.files.keys() <= named
        and all(path in ours or path.startswith(reported) for path in holdings.others)
    )


def _records_of(live: Manifest, kept: Sequence[str]) -> tuple[set[str], tuple[str, ...]]:
    """Where manifests may lie that stay, and the folders of what they changed."""
    digests = (live.digest, *map(digest_of, kept))
    return {path_of(one) for one in (id_of(live), *kept)}, tuple(f"{CHANGES}/{digest}/" for digest in digests)


def _delete(store: Store, paths: Sequence[str], version: str, confirm: Callable[[], None]) -> None:
    """Remove files, some at a time, as long as that is this run's to do."""
    for start in range(0, len(paths), _BATCH):
        confirm()
        found = next(store.list(MANIFEST), None)
        if found is None or found.version != version:
            raise OutputBusyError(
                f"another run published into {store.location.uri} meanwhile; what no longer belongs is its to remove"
            )
        store.delete(paths[start : start + _BATCH])


def _paths(manifest: Manifest) -> set[str]:
    return manifest.bits_paths() | {file.path for receipt in manifest.receipts for file in receipt.files()}


def _committed(live: Manifest) -> Iterator[str]:
    """Records of attempts whose content the manifest holds."""
    for receipt in live.receipts:
        yield receipt_path(receipt.id)
    for ranges in live.ranges.values():
        yield f"{RANGES}/{ranges.sample}.json"
