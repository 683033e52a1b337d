"""Ids that stand twice, among more of them than fit in memory.

Each id becomes 64 bits (a number becomes itself, stirred; anything else Python's keyed hash of it), and goes with the
number of its file into one of 256 temporary files by its first bits. Equal ids meet in one of them, so a bucket at a
time is sorted and searched. Two ids of equal bits are hardly equal by chance (one pair among 6 billion ids), but they
may be, so the few files that hold a pair are read again, and only equal ids count.

On disk that is 12 bytes an id; in memory a 256th of them at a time, so a billion ids take 12 GB and a few hundred MB.
"""

from __future__ import annotations

import tempfile
import threading
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt
import pyarrow as pa

_NUM_BUCKETS = 256
_RECORD = np.dtype([("bits", "<u8"), ("file", "<u4")])

Bits = npt.NDArray[np.uint64]


def bits_of(ids: pa.Array, space: int, index: pa.Array | None = None) -> Bits:
    """64 bits for each id `[num_rows]`; those of equal ids are equal in one process.

    Args:
        ids: Of any type, without nulls.
        space: Number of the view: an id may stand once in each.
        index: Number of the chunk, where an id may stand once for each of these too.
    """
    if pa.types.is_temporal(ids.type):
        ids = ids.view(pa.int64() if ids.type.bit_width == 64 else pa.int32())
    if pa.types.is_integer(ids.type):
        numbers = ids.to_numpy(zero_copy_only=False)
        bits = numbers.astype(np.uint64 if ids.type == pa.uint64() else np.int64).view(np.uint64)
    else:
        values = ids.to_pylist()
        if values and not isinstance(values[0], str | bytes):
            values = [repr(value) for value in values]
        bits = np.fromiter(map(hash, values), np.int64, len(values)).view(np.uint64)
    bits = stirred(bits ^ stirred(np.array([space], np.uint64)))
    return bits if index is None else stirred(bits ^ index.to_numpy(zero_copy_only=False).astype(np.uint64))


def stirred(bits: Bits) -> Bits:
    """Every bit depends on every bit, and no two numbers become one. Source: Steele et al. 2014, SplitMix64."""
    with np.errstate(over="ignore"):
        bits = bits + np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return bits ^ (bits >> np.uint64(31))


class Register:
    """All ids of a dataset, on disk; for any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        with ExitStack() as stack:
            self._buckets = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(_NUM_BUCKETS)]
            self._files = stack.pop_all()

    def __enter__(self) -> Register:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def add(self, file: int, bits: Bits) -> None:
        """Take note of the ids of a file."""
        records = np.empty(len(bits), _RECORD)
        records["bits"], records["file"] = np.sort(bits), file
        ends = np.searchsorted(records["bits"] >> np.uint64(56), np.arange(_NUM_BUCKETS + 1, dtype=np.uint64))
        with self._lock:
            for bucket in np.flatnonzero(np.diff(ends)):
                self._buckets[bucket].write(records[ends[bucket] : ends[bucket + 1]].tobytes())

    def repeated(self, limit: int) -> tuple[int, dict[int, list[int]]]:
        """How many bits stand more than once, and the files of the first `limit` of them."""
        count, first = 0, dict[int, list[int]]()
        for bucket in self._buckets:
            bucket.seek(0)
            records = np.frombuffer(bucket.read(), _RECORD)
            records = records[np.argsort(records["bits"])]
            bits, starts, times = np.unique(records["bits"], return_index=True, return_counts=True)
            for place in np.flatnonzero(times > 1)[: limit - len(first)]:
                files = records["file"][starts[place] : starts[place] + times[place]]
                first[int(bits[place])] = sorted(set(files.tolist()))
            count += int((times > 1).sum())
        return count, first
