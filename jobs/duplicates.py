"""Ids that the corpus holds more than once, found before anything is embedded (`input.on_duplicate_id`).

    ids of new fragments -> 128 bits, fragment, row         one column is read, and no text
    equal bits, in the order of the corpus -> the first row, and those that repeat it
    fragments of the dataset that may hold one of these ids (`jobs.id_bits`) -> the same again, with those

A number is its own 128 bits, anything else blake2b of its bytes: that two of a billion ids meet by chance has odds of 1
to 10^20. Up to `SMALL_ROWS` it happens in this process, beyond in a shuffle on the cluster, where a process
holds one bucket. It takes one read of the id column; a million ids took 3.1 CPU seconds (numbers 1.6) and 185 MiB.

New are fragments that the committed dataset does not hold, and those of its own that lose rows to earlier ones; all
others are known to hold no id twice, nor an id of one another, so their shards are not opened. What is kept to compare
them by counts from the commit on, so a run that is refused takes it away again (`jobs.embed`).

Which row is the first is decided by ids alone: by the shard's path, then the row, and not by whether it gets a vector.
A null id is a reject of its own and repeats nothing.

Rows that repeat an id are part of what makes a fragment (`Fragment.without`), and the manifest keeps them, so the next
run need not look again as long as it has the same fragments, or fewer of a corpus that repeats nothing.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from jobs.decoding import decode
from jobs.errors import CorpusError
from jobs.fragments import Fragment, as_ranges
from jobs.id_bits import save, sharing
from jobs.parquet import quoted
from jobs.records import Manifest
from jobs.rows import Reading, decoded_ids
from jobs.sections import OnDuplicateId
from jobs.storage import Location, open_store
from jobs.threads import in_threads

SMALL_ROWS = 2_000_000
_THREADS = 16
NUM_NAMED = 5
_BITS = np.dtype([("high", "<u8"), ("low", "<u8")])

KEYS = pa.schema([("high", pa.uint64()), ("low", pa.uint64()), ("fragment", pa.int32()), ("row", pa.int32())])
REPEATS = pa.schema(
    [(name, pa.int32()) for name in ("fragment", "row", "first_fragment", "first_row")]
    + [("num_repeats", pa.int64())]
)


@dataclass(frozen=True)
class IdScan:
    """What is to be looked at, and how.

    Attributes:
        corpus: Root of the shards.
        output: Where the bits of ids are kept.
        reading: Says which column, and its type.
        fragments: All of them, in the corpus's order.
        skip_bad_shards: Take a fragment that cannot be decoded for one without ids, for its rows are rejects.
        max_fragment_bytes: See the configuration.
        limit: How many of a bucket's repeats are wanted; None: all of them.
    """

    corpus: Location
    output: Location
    reading: Reading
    fragments: tuple[Fragment, ...]
    skip_bad_shards: bool
    max_fragment_bytes: int
    limit: int | None = None

    @property
    def num_rows(self) -> int:
        """Ids at the most."""
        return sum(fragment.num_rows for fragment in self.fragments)

    def to_json(self) -> bytes:
        """The fragments, as the bytes that travel; all else is small."""
        return _FRAGMENTS.dump_json(self.fragments)

    def with_json(self, content: bytes) -> IdScan:
        """Back from the bytes that travelled."""
        return replace(self, fragments=_FRAGMENTS.validate_json(content))


_FRAGMENTS = TypeAdapter(tuple[Fragment, ...])
OnCluster = Callable[[IdScan], Iterable[Mapping[str, Any]]]


class Ids:
    """Reads them; load it once in each process."""

    def __init__(self, scan: IdScan) -> None:
        self._scan = scan
        self._store = open_store(scan.corpus)
        self._output = open_store(scan.output)

    def keys(self, number: int) -> pa.Table:
        """The bits of the ids of one fragment, and where they stand in it; half of the bits are kept."""
        ids = self.of(number)
        rows = np.flatnonzero(ids.is_valid().to_numpy(zero_copy_only=False)).astype(np.int32)
        bits = _bits_of(ids.drop_null())
        save(self._output, self._scan.fragments[number], bits["low"])
        fragment = np.full(len(rows), number, np.int32)
        return pa.table([bits["high"], bits["low"], fragment, rows], schema=KEYS)

    def of(self, number: int) -> pa.Array:
        """The ids of one fragment, null where a row has none."""
        scan, fragment = self._scan, self._scan.fragments[number]
        name = scan.reading.columns.id_column
        kind = scan.reading.carried.field(name).type
        try:
            table = decode(self._store, fragment, [name], scan.max_fragment_bytes)
        except CorpusError:
            if not scan.skip_bad_shards:
                raise
            return pa.nulls(0, kind)
        return decoded_ids(table[name], kind)


def _bits_of(ids: pa.Array) -> np.ndarray:
    bits = np.zeros(len(ids), _BITS)
    if pa.types.is_integer(ids.type):
        bits["low"] = ids.to_numpy(zero_copy_only=False).astype(np.uint64, casting="unsafe")
        return bits
    values = ids.cast(pa.large_binary()).to_pylist()
    digests = b"".join(hashlib.blake2b(value, digest_size=16).digest() for value in values)
    return np.frombuffer(digests, _BITS)


def repeats(keys: pa.Table, limit: int | None) -> pa.Table:
    """The rows whose id an earlier row has, in the order of the corpus; no more than `limit` where it is given.

    The first of them says how many there are.
    """
    high, low, fragment, row = (keys[name].to_numpy() for name in KEYS.names)
    order = np.lexsort((row, fragment, low, high))
    high, low, fragment, row = high[order], low[order], fragment[order], row[order]
    is_new = np.ones(len(order), bool)
    is_new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    first = np.maximum.accumulate(np.where(is_new, np.arange(len(order)), 0))
    found = np.flatnonzero(~is_new)
    found = found[np.lexsort((row[found], fragment[found]))]
    some = found[:limit]
    columns = [fragment[some], row[some], fragment[first[some]], row[first[some]]]
    num_repeats = np.zeros(len(some), np.int64)
    num_repeats[:1] = len(found)
    return pa.table([*columns, num_repeats], schema=REPEATS)


def repeated_ids(
    mode: OnDuplicateId,
    scan: IdScan,
    manifest: Manifest | None,
    on_cluster: OnCluster,
    *,
    is_made: Callable[[], bool] = lambda: False,
) -> Mapping[str, str] | None:
    """Rows whose id an earlier row has, as ranges, by fragment; as the manifest is to have it.

    Args:
        mode: See the configuration.
        scan: The corpus.
        manifest: The committed dataset.
        on_cluster: Does the scan where it is large.
        is_made: Whether every part of the corpus is there, so that nothing is going to be embedded.

    Raises:
        CorpusError: There are some, and `mode` is `fail`; or a shard cannot be read.
    """
    known = known_repeats(scan.fragments, manifest)
    if mode == "keep_all":
        return None if known else known  # rather what was known than another manifest of the same dataset
    if known is not None and (mode == "keep_first" or not known):
        return known
    if mode == "fail" and manifest is not None and _all_held(scan, manifest) and is_made():
        return None
    looked_at, found = _look(replace(scan, limit=NUM_NAMED if mode == "fail" else None), manifest, on_cluster)
    if mode == "fail":
        _refuse(looked_at, found, scan.num_rows)
        return {}
    rows: dict[int, list[int]] = defaultdict(list)
    for one in found:
        rows[one["fragment"]].append(one["row"])
    return {looked_at.fragments[number].id: as_ranges(sorted(rows[number])) for number in sorted(rows)}


def _look(
    scan: IdScan, manifest: Manifest | None, on_cluster: OnCluster
) -> tuple[IdScan, list[Mapping[str, Any]]]:
    """The rows that repeat an id, of all fragments, in any order; and of the scan what they are counted in."""
    knows = manifest is not None and manifest.repeated_ids is not None
    held = {receipt.fragment for receipt in manifest.receipts} if manifest and knows else set()
    new = [fragment for fragment in scan.fragments if fragment.id not in held]
    others = [fragment for fragment in scan.fragments if fragment.id in held]
    looked_at = replace(scan, fragments=tuple(new))
    found = list(_scanned(looked_at, on_cluster))
    suspects = {fragment.id for fragment in sharing(open_store(scan.output), new, others)}
    if suspects:
        wanted = {fragment.id for fragment in new} | suspects
        looked_at = replace(scan, fragments=tuple(one for one in scan.fragments if one.id in wanted))
        found = list(_scanned(looked_at, on_cluster))
    return looked_at, found


def known_repeats(fragments: Sequence[Fragment], manifest: Manifest | None) -> Mapping[str, str] | None:
    """What the committed dataset's run found, if that holds for these fragments too; None where nobody knows."""
    if manifest is None or manifest.repeated_ids is None:
        return None
    repeated = manifest.repeated_ids
    held = {receipt.fragment for receipt in manifest.receipts}
    wanted = {fragment.without(repeated.get(fragment.id, "")).id for fragment in fragments}
    return repeated if wanted == held or (not repeated and wanted <= held) else None


def _all_held(scan: IdScan, manifest: Manifest) -> bool:
    return {fragment.id for fragment in scan.fragments} <= {receipt.fragment for receipt in manifest.receipts}


def _refuse(scan: IdScan, found: Sequence[Mapping[str, Any]], num_rows: int) -> None:
    """Refuse a corpus that repeats an id, with the first few and where they stand."""
    if not found:
        return
    ids = Ids(scan)
    named = [
        f"{quoted(ids.of(one['fragment'])[one['row']].as_py())} in {_place(scan, one['fragment'], one['row'])}, "
        f"before in {_place(scan, one['first_fragment'], one['first_row'])}"
        for one in sorted(found, key=lambda one: (one["fragment"], one["row"]))[:NUM_NAMED]
    ]
    count = sum(one["num_repeats"] for one in found)
    if count > NUM_NAMED:
        named.append("...")
    raise CorpusError(
        f"{count:,} of {num_rows:,} rows repeat the id of an earlier one ({'; '.join(named)}); mend the corpus, "
        "name another input.id_column, or say what is wanted: input.on_duplicate_id=keep_first makes rejects of the "
        "later rows, keep_all gives each row its vector"
    )


def _place(scan: IdScan, number: int, row: int) -> str:
    fragment = scan.fragments[number]
    return f"{fragment.shard.path!r} row {fragment.first_row + row}"


def _scanned(scan: IdScan, on_cluster: OnCluster) -> Iterable[Mapping[str, Any]]:
    if scan.num_rows > SMALL_ROWS:
        return on_cluster(scan)
    ids = Ids(scan)
    keys = pa.concat_tables([KEYS.empty_table(), *in_threads(ids.keys, range(len(scan.fragments)), _THREADS)])
    found: list[dict[str, Any]] = repeats(keys, scan.limit).to_pylist()
    return found
