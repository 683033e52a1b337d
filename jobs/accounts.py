"""Whether a manifest agrees with itself: every row of every shard ends up in each view, or is a reject, once.

    rows of a shard's cuts = rows of its fragments' receipts;   rows of a receipt = rows with a vector + rejects
    fragments are named by their shard's version, its cuts and how it was read;   every fragment is in every view once
    every file is named once, by what made it;   int8 has its space's ranges

No file but the manifest is looked at.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from jobs.corpus import Shard
from jobs.files import kind_of
from jobs.findings import Finding, compare, finding
from jobs.fragments import part_path
from jobs.records import MANIFEST, Manifest, Receipt, ShardRecord


def check_manifest(manifest: Manifest) -> list[Finding]:
    """Where the manifest contradicts itself."""
    return [
        *_check_shards(manifest),
        *(found for receipt in manifest.receipts for found in _check_receipt(manifest, receipt)),
        *_check_views(manifest),
        *_check_paths(manifest),
        *_check_ranges(manifest),
    ]


def _check_shards(manifest: Manifest) -> Iterator[Finding]:
    fragments: dict[str, dict[str, int]] = defaultdict(dict)
    for receipt in manifest.receipts:
        fragments[receipt.shard][receipt.fragment] = receipt.num_rows
    for shard in manifest.shards:
        held = fragments.pop(shard.path, {})
        of_cuts = sorted(cut.num_rows for cut in shard.cuts)
        wrong = compare(
            MANIFEST,
            f"rows of the fragments of shard {shard.path}",
            _listed(sorted(held.values())),
            _listed(of_cuts),
        )
        yield from wrong or compare(
            MANIFEST,
            f"fragments of shard {shard.path}, by its version, cuts and reading",
            ", ".join(sorted(held)),
            ", ".join(sorted(_fragments(manifest, shard))),
        )
    for shard_path, of_shard in fragments.items():
        yield finding(
            MANIFEST, f"shard {shard_path}", f"{len(of_shard)} receipts", "no shard of this dataset"
        )


def _fragments(manifest: Manifest, shard: ShardRecord) -> Iterator[str]:
    """The ids that a shard's fragments should have."""
    reading, repeated = manifest.reading.digest, manifest.repeated_ids or {}
    for cut in shard.cuts:
        fragment = cut.of(Shard(shard.path, shard.version, 0), reading)
        yield fragment.without(repeated.get(fragment.id, "")).id


def _listed(counts: list[int]) -> str:
    return f"{sum(counts)} in {len(counts)} fragments ({', '.join(map(str, counts))})"


def _check_receipt(manifest: Manifest, receipt: Receipt) -> Iterator[Finding]:
    of = f"fragment {receipt.fragment[:12]} of shard {receipt.shard}"
    for view, part in receipt.parts.items():
        accounted = part.num_embedded + receipt.num_rejected
        yield from compare(part.path, f"rows with a vector and rejects of {of}", accounted, receipt.num_rows)
        if view in manifest.views:
            record = manifest.views[view]
            made_by = (
                receipt.fragment,
                receipt.shard,
                record.task,
                record.role,
                record.space_id,
                receipt.take,
            )
            expected = part_path(*made_by)
            yield from compare(part.path, f"path of a part of {view}", part.path, expected)
        else:
            yield finding(part.path, "view", view, ", ".join(manifest.views))
    if (receipt.rejects is not None) != (receipt.num_rejected > 0):
        path = receipt.rejects.path if receipt.rejects else MANIFEST
        yield finding(
            path, f"rejects of {of}", "a file" if receipt.rejects else "no file", receipt.num_rejected
        )
    if receipt.rejects is not None and kind_of(receipt.rejects.path) != "rejects":
        yield finding(
            receipt.rejects.path,
            "path of rejects",
            receipt.rejects.path,
            "_rejects/...rejects-<digest>.parquet",
        )


def _check_views(manifest: Manifest) -> Iterator[Finding]:
    views: dict[str, Counter[str]] = defaultdict(Counter)
    for receipt in manifest.receipts:
        views[receipt.fragment].update(receipt.parts.keys())
    expected = Counter(dict.fromkeys(manifest.views, 1))
    for fragment, found in views.items():
        yield from compare(
            MANIFEST, f"parts of fragment {fragment[:12]} by view", dict(found), dict(expected)
        )


def _check_paths(manifest: Manifest) -> Iterator[Finding]:
    parts = Counter(part.path for receipt in manifest.receipts for part in receipt.parts.values())
    for path, times in parts.items():
        yield from compare(path, "times that the manifest names it", times, 1)


def _check_ranges(manifest: Manifest) -> Iterator[Finding]:
    for name, view in manifest.views.items():
        held = manifest.ranges.get(view.task)
        found = None if held is None else held.ranges.digest
        yield from compare(MANIFEST, f"ranges of {name}", found, view.ranges_digest)
