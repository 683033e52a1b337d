"""Rows of many files brought together on the cluster: steps of `carry`, `changes` and `duplicates`, and shuffles.

Ray Data's hash shuffle moves rows by tasks through the object store, and spills to disk what memory does not hold.
Its own join is not used: it would move every old vector to where it is not wanted, and its aggregators stay for as
long as the job lasts. Each step is one function of one bucket, which a retry repeats without harm.

A process holds a few copies of a bucket, or of what it takes in hand at once to spread over all buckets: of 256 MiB
1.6 GiB were measured, of Ray's default of 1 GiB 4 GiB. Spreading makes (bytes / in hand) x (bytes / bucket) pieces, and
the driver knows each of them, so where they would be too many more is taken in hand: 1 GiB for the vectors of a
billion rows of 768 bytes.

These are the dataset operations beside those of `jobs.pipeline`: there a row is a fragment and never meets another.
"""

from __future__ import annotations

import functools
import math
import pickle
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import DataContext, Dataset
from ray.data.exceptions import ExecutionTimeoutError

from encoders.space import digest
from jobs.cargo import grouped
from jobs.carry import CarryPlan, Steps, match
from jobs.compare import CompareSteps, Comparison
from jobs.config import ComputeConfig
from jobs.duplicates import Ids, IdScan, repeats
from jobs.errors import StorageError
from jobs.pipeline import NOTHING_ENDED, PIPELINE_ERRORS, configure, own_cause
from jobs.records import CARRIED
from jobs.run_spec import RunSpec, other_disk
from jobs.storage import Location, open_store
from jobs.unique import stirred
from jobs.watch import Need, nobody_came

# What one process holds of a step.
_BUCKET_ROWS = 4_000_000
_BUCKET_BYTES = 256 * 2**20
_MOST_PIECES = 2**21
_KEY_BYTES = 40  # of a row that is compared by a hash
_FILES_PER_TASK = 16
_COUNTS = pa.schema([("view", pa.string()), ("change", pa.string()), ("num_ids", pa.int64())])


def _configure(compute: ComputeConfig, num_bytes: int, num_buckets: int) -> None:
    """Settings of a dataset that shuffles so many bytes."""
    configure(compute.no_progress_timeout_seconds)
    context = DataContext.get_current()
    context.shuffle_input_batch_bytes = max(_BUCKET_BYTES, num_bytes * num_buckets // _MOST_PIECES)
    context.shuffle_compression = "lz4"  # hashes and vectors are noise: zstd takes longer and gains nothing


def carry_on_cluster(compute: ComputeConfig, run: RunSpec, plan: CarryPlan) -> None:
    """The steps of carrying over, each on all machines.

    Raises:
        TaskvecError: What a step raised on purpose.
        JobError: Anything else that a step died of.
    """
    shipped = {"run": pickle.dumps(run), "plan": _ship(run.output, plan.to_json())}
    num_files = len(plan.work) + len(plan.parts)
    num_rows = sum(work.fragment.num_rows for work in plan.work) + sum(
        part.record.num_rows for part in plan.parts
    )
    num_hashes = math.ceil(num_rows / _BUCKET_ROWS)
    num_bytes = sum(part.record.num_bytes for part in plan.parts)
    num_vectors = math.ceil(num_bytes / _BUCKET_BYTES)
    _configure(compute, num_bytes, num_vectors)
    saved = (
        _files(num_files)
        .map_batches(_keys, fn_kwargs=shipped, batch_size=None, batch_format="pyarrow")
        .repartition(num_hashes, keys=["bucket"])
        .map_batches(match, batch_size=None, batch_format="pyarrow")
        .repartition(num_vectors, keys=["part"])
        .map_batches(_fetch, fn_kwargs=shipped, batch_size=None, batch_format="pyarrow")
        .repartition(num_vectors, keys=["fragment"])
        .map_batches(_save, fn_kwargs=shipped, batch_size=None, batch_format="pyarrow")
    )
    for _ in _rows(saved):
        pass


def repeats_on_cluster(compute: ComputeConfig, scan: IdScan) -> Iterator[dict[str, Any]]:
    """The rows of `jobs.duplicates.repeats`, of all buckets in any order.

    Raises:
        TaskvecError: What a step raised on purpose.
        JobError: Anything else that a step died of.
    """
    num_buckets = math.ceil(scan.num_rows / _BUCKET_ROWS)
    _configure(compute, scan.num_rows * _KEY_BYTES, num_buckets)
    shipped = {
        "scan": pickle.dumps(replace(scan, fragments=())),
        "plan": _ship(scan.output, scan.to_json()),
        "num_buckets": num_buckets,
    }
    found = (
        _files(len(scan.fragments))
        .map_batches(_id_keys, fn_kwargs=shipped, batch_size=None, batch_format="pyarrow")
        .repartition(num_buckets, keys=["bucket"])
        .map_batches(_repeats, fn_kwargs={"limit": scan.limit}, batch_size=None, batch_format="pyarrow")
    )
    return _rows(found)


def compare_on_cluster(
    compute: ComputeConfig, location: Location, comparison: Comparison
) -> Counter[tuple[str, str]]:
    """The ids of two manifests brought together on all machines; how many each view has of each kind of change.

    Raises:
        TaskvecError: What a step raised on purpose.
        JobError: Anything else that a step died of.
    """
    num_rows = sum(part.record.num_rows for part in comparison.parts)
    _configure(compute, num_rows * _KEY_BYTES, comparison.num_buckets)
    shipped = {"location": pickle.dumps(location), "comparison": _ship(location, comparison.to_json())}
    saved = (
        _files(len(comparison.parts))
        .map_batches(_ids, fn_kwargs=shipped, batch_size=None, batch_format="pyarrow")
        .repartition(comparison.num_buckets, keys=["bucket"])
        .map_batches(_save_changes, fn_kwargs=shipped, batch_size=None, batch_format="pyarrow")
    )
    counts: Counter[tuple[str, str]] = Counter()
    for row in _rows(saved):
        counts[row["view"], row["change"]] += row["num_ids"]
    return counts


def _ship(location: Location, content: bytes) -> str:
    """Put what all tasks are told where they find it: it grows with the dataset, as arguments must not."""
    path = f"{CARRIED}/{digest(content.decode())}.plan"
    open_store(location).create(path, content)
    return path


def _files(num_files: int) -> Dataset:
    return ray.data.from_items(
        [{"file": number} for number in range(num_files)],
        override_num_blocks=math.ceil(num_files / _FILES_PER_TASK),
    )


def _rows(dataset: Dataset) -> Iterator[dict[str, Any]]:
    try:
        yield from dataset.iter_rows()
    except ExecutionTimeoutError as error:
        timeout = dataset.context.execution_no_progress_timeout_s
        raise nobody_came(timeout, [Need("comparing rows", 1)], NOTHING_ENDED) from error
    except PIPELINE_ERRORS as error:
        raise own_cause(error) from error


def _shipped(location: Location, path: str) -> bytes:
    """What `_ship` has put there.

    Raises:
        StorageError: It is not there, so this machine has another disk than the driver's.
    """
    store = open_store(location)
    try:
        return store.read(path)
    except FileNotFoundError as error:
        raise StorageError(other_disk(store.location.uri)) from error


@functools.lru_cache(1)
def _steps(run: bytes, plan: str) -> Steps:
    """Once in each process, whatever the number of its tasks."""
    spec: RunSpec = pickle.loads(run)
    return Steps(spec, CarryPlan.from_json(_shipped(spec.output, plan)))


def _keys(files: pa.Table, run: bytes, plan: str) -> Iterator[pa.Table]:
    steps = _steps(run, plan)
    for number in files["file"].to_pylist():
        keys = steps.keys(number)
        hashes = np.frombuffer(b"".join(keys["text_hash"].to_pylist()), np.uint32)[::4]
        yield keys.append_column("bucket", pa.array(hashes))


def _fetch(matches: pa.Table, run: bytes, plan: str) -> Iterator[pa.Table]:
    for _, rows in grouped(matches, "part"):
        yield _steps(run, plan).fetch(rows)


def _save(vectors: pa.Table, run: bytes, plan: str) -> pa.Table:
    return pa.table({"num_texts": [_steps(run, plan).save(vectors)]})


@functools.lru_cache(1)
def _ids_of(scan: bytes, plan: str) -> Ids:
    small: IdScan = pickle.loads(scan)
    return Ids(small.with_json(_shipped(small.output, plan)))


def _id_keys(files: pa.Table, scan: bytes, plan: str, num_buckets: int) -> Iterator[pa.Table]:
    for number in files["file"].to_pylist():
        keys = _ids_of(scan, plan).keys(number)
        bits = keys["high"].to_numpy() ^ stirred(keys["low"].to_numpy())
        yield keys.append_column("bucket", pa.array((bits % num_buckets).astype(np.int64)))


def _repeats(keys: pa.Table, limit: int | None) -> pa.Table:
    return repeats(keys, limit)


@functools.lru_cache(1)
def _compare_steps(location: bytes, comparison: str) -> CompareSteps:
    where: Location = pickle.loads(location)
    return CompareSteps(where, Comparison.from_json(_shipped(where, comparison)))


def _ids(files: pa.Table, location: bytes, comparison: str) -> Iterator[pa.Table]:
    for number in files["file"].to_pylist():
        yield _compare_steps(location, comparison).ids(number)


def _save_changes(rows: pa.Table, location: bytes, comparison: str) -> pa.Table:
    counts = _compare_steps(location, comparison).save(rows)
    said = [{"view": view, "change": change, "num_ids": count} for (view, change), count in counts.items()]
    return pa.Table.from_pylist(said, _COUNTS)
