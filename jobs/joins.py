"""Rows of many files brought together on the cluster: the steps of `jobs.carry`, with a shuffle before each.

Ray Data's hash shuffle moves rows by tasks through the object store, and spills to disk what memory does not hold.
Its own join is not used: it would move every old vector to where it is not wanted, and its aggregators stay for as
long as the job lasts. Each step is one function of one bucket, which a retry repeats without harm.

These are the dataset operations beside those of `jobs.pipeline`: there a row is a fragment and never meets another.
"""

from __future__ import annotations

import functools
import math
import pickle
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import RayError

from encoders.space import digest
from jobs.carry import CarryPlan, Steps, grouped, match
from jobs.config import ComputeConfig
from jobs.pipeline import configure, own_cause
from jobs.records import CARRIED
from jobs.run_spec import RunSpec
from jobs.storage import open_store

# What one process holds of a step.
_BUCKET_ROWS = 4_000_000
_BUCKET_BYTES = 256 * 2**20
_FILES_PER_TASK = 16


def carry_on_cluster(compute: ComputeConfig, run: RunSpec, plan: CarryPlan) -> None:
    """The steps of carrying over, each on all machines.

    Raises:
        TaskvecError: What a step raised on purpose.
        JobError: Anything else that a step died of.
    """
    configure(compute.no_progress_timeout_seconds)
    content = plan.to_json()
    path = f"{CARRIED}/{digest(content.decode())}.plan"  # too large for arguments of a large job's tasks
    open_store(run.output).create(path, content)
    shipped = {"run": pickle.dumps(run), "plan": path}
    num_files = len(plan.work) + len(plan.parts)
    num_rows = sum(work.fragment.num_rows for work in plan.work) + sum(
        part.record.num_rows for part in plan.parts
    )
    num_hashes = math.ceil(num_rows / _BUCKET_ROWS)
    num_vectors = math.ceil(sum(part.record.num_bytes for part in plan.parts) / _BUCKET_BYTES)
    saved = (
        ray.data.from_items(
            [{"file": number} for number in range(num_files)],
            override_num_blocks=math.ceil(num_files / _FILES_PER_TASK),
        )
        .map_batches(_keys, fn_kwargs=shipped, batch_size=None, batch_format="pyarrow")
        .repartition(num_hashes, keys=["bucket"])
        .map_batches(match, batch_size=None, batch_format="pyarrow")
        .repartition(num_vectors, keys=["part"])
        .map_batches(_fetch, fn_kwargs=shipped, batch_size=None, batch_format="pyarrow")
        .repartition(num_vectors, keys=["fragment"])
        .map_batches(_save, fn_kwargs=shipped, batch_size=None, batch_format="pyarrow")
    )
    try:
        for _ in saved.iter_rows():
            pass
    except RayError as error:
        raise own_cause(error) from error


@functools.lru_cache(1)
def _steps(run: bytes, plan: str) -> Steps:
    """Once in each process, whatever the number of its tasks."""
    spec: RunSpec = pickle.loads(run)
    return Steps(spec, CarryPlan.from_json(open_store(spec.output).read(plan)))


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
