"""The commit: when every part is vouched for and every row accounted for, one atomic write makes it count.

Until then a reader of the manifest sees the old dataset, from then on the new one. What no longer belongs goes
afterwards, so a run that dies in between leaves surplus files and nothing missing; the next one clears them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from jobs.errors import AccountingError
from jobs.holdings import data_files
from jobs.plan import Plan
from jobs.records import (
    CARRIED,
    CONFIG,
    MANIFEST,
    RANGES,
    RECEIPTS,
    Manifest,
    RangesRecord,
    ReadingRecord,
    Receipt,
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
) -> Manifest:
    """The dataset as it should be once committed.

    Raises:
        AccountingError: The receipts do not cover the plan, or rows read are not rows written plus rejects.
    """
    _check_accounts(plan, receipts)
    return Manifest(
        committed_at=datetime.now(UTC).isoformat(timespec="seconds"),
        corpus=corpus,
        reading=reading,
        fragment_rows=fragment_rows,
        views=views,
        ranges=ranges,
        shards=plan.shards,
        bad_shards=plan.bad_shards,
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


def publish(store: Store, manifest: Manifest, configuration: Mapping[str, object]) -> None:
    """Replace the manifest, after a look that the files it names are there.

    Raises:
        AccountingError: A file is missing or of another size.
    """
    files = data_files(store)
    for receipt in manifest.receipts:
        for file in receipt.files():
            if files.get(file.path) != file.num_bytes:
                raise AccountingError(
                    f"{store.location.uri}/{file.path} should have {file.num_bytes} bytes, not {files.get(file.path)};"
                    " nothing is published. Is another run using it? Run the same command again"
                )
    store.replace(CONFIG, json.dumps(configuration, indent=2).encode())
    store.replace(MANIFEST, manifest.model_dump_json().encode())


def sweep(store: Store, manifest: Manifest) -> None:
    """Remove parts that the dataset does not hold, and scratch, all of which it holds or does not want."""
    live = {file.path for receipt in manifest.receipts for file in receipt.files()}
    store.delete([path for path in data_files(store) if path not in live])
    for folder in (CARRIED, RANGES, RECEIPTS):
        store.delete([entry.path for entry in store.list(folder)])
