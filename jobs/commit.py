"""The commit: when every part is vouched for and every row accounted for, one atomic write makes it count.

Until then a reader of the manifest sees the old dataset, from then on the new one. The old manifest is kept aside
before (jobs.manifests), and what no longer belongs goes afterwards (jobs.sweep), so a run that dies in between leaves
surplus files and nothing missing; the next one clears them. The configuration stands in the manifest, and so is always
that of the run that committed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from jobs.errors import AccountingError, OutputBusyError
from jobs.holdings import lost_files
from jobs.manifests import content_of, keep_aside, next_commit_time
from jobs.plan import Plan
from jobs.records import (
    MANIFEST,
    Manifest,
    RangesRecord,
    ReadingRecord,
    Receipt,
    RunRecord,
    ViewRecord,
)
from jobs.storage import Store


def build_manifest(
    plan: Plan,
    receipts: Sequence[Receipt],
    *,
    corpus: str,
    reading: ReadingRecord,
    fragment_rows: int,
    views: Mapping[str, ViewRecord],
    ranges: Mapping[str, RangesRecord],
    held: Manifest | None = None,
    repeated_ids: Mapping[str, str] | None = None,
    run: RunRecord | None = None,
) -> Manifest:
    """The dataset as it should be once committed, in place of `held`.

    Raises:
        AccountingError: The receipts do not cover the plan, or rows read are not rows written plus rejects.
    """
    _check_accounts(plan, receipts)
    return Manifest(
        committed_at=next_commit_time(held),
        corpus=corpus,
        reading=reading,
        fragment_rows=fragment_rows,
        views=views,
        ranges=ranges,
        shards=plan.shards,
        bad_shards=plan.bad_shards,
        repeated_ids=repeated_ids,
        run=run,
        # In an order of their own, whatever the order in which workers finished.
        receipts=tuple(
            sorted(receipts, key=lambda receipt: min(part.path for part in receipt.parts.values()))
        ),
    )


def _check_accounts(plan: Plan, receipts: Sequence[Receipt]) -> None:
    promised = {fragment.id: fragment.num_rows for fragment in plan.fragments}
    for receipt in receipts:
        if promised.get(receipt.fragment) != receipt.num_rows or not receipt.balances:
            written = {view: part.num_embedded for view, part in receipt.parts.items()}
            raise AccountingError(
                f"shard {receipt.shard}: {promised.get(receipt.fragment)} rows planned, {receipt.num_rows} read, "
                f"{written} written, {receipt.num_rejected} rejected; nothing is published"
            )
    num_parts = len({part.path for receipt in receipts for part in receipt.parts.values()})
    if num_parts != plan.num_parts:
        raise AccountingError(
            f"{num_parts} of {plan.num_parts} parts are vouched for; nothing is published, run the same command again"
        )


def publish(
    store: Store, manifest: Manifest, *, replacing: str | None, confirm: Callable[[], None] | None = None
) -> str:
    """Replace the manifest, after a look that the files it names are there; returns the version of its file.

    Args:
        store: The output.
        manifest: Of the dataset as it should be.
        replacing: Version of the manifest that this run took stock of; None: there was none.
        confirm: Raises if the output is not this run's any more.

    Raises:
        AccountingError: A file is missing or of another size.
        OutputBusyError: There is another manifest by now.
    """
    for file, found in lost_files(store, manifest):
        raise AccountingError(
            f"{store.location.uri}/{file.path} should have {file.num_bytes} bytes, not {found}; nothing is published. "
            "Is another run using it, or is a local path not the same folder on every machine? Run the same command "
            "again"
        )
    return go_live(store, manifest, replacing=replacing, confirm=confirm)


def go_live(
    store: Store, manifest: Manifest, *, replacing: str | None, confirm: Callable[[], None] | None = None
) -> str:
    """Let a manifest take the place of the live one, which is kept aside; returns the version of its file.

    Args:
        store: The output.
        manifest: All of whose files were there a moment ago.
        replacing: Version of the live one.
        confirm: Raises if the output is not this run's any more. Asked last of all: another run that had it since that
            moment may have removed files, and left the live manifest as it was.

    Raises:
        OutputBusyError: The live one is not the version that it was to replace.
    """
    keep_aside(store)
    if confirm is not None:
        confirm()
    version = store.swap(MANIFEST, content_of(manifest), replacing)
    if version is None:
        raise OutputBusyError(
            f"another run published into {store.location.uri} while this one was at work; its dataset stands, and "
            "nothing of this run is published; the same command takes stock again and embeds what is missing then"
        )
    return version
