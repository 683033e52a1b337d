"""The ranges of int8 vectors: given, found in the output, or calibrated on a sample of the corpus.

They are part of the space, so they must be known before the first part is named, and the same for all workers:

    encoder.ranges_from              another dataset's, so that vectors of both may be compared
    the output's manifest            what is there stays comparable, until output.overwrite
    the output's _ranges/            an attempt that was stopped had calibrated them on the same sample
    a sample of the corpus           encoded before all else; written once to _ranges/, and read back from there

The sample is a function of corpus and configuration: rows at even distances, from 32 places at even distances. A value
of a corpus lies outside of the range of n of its rows with a probability of 2 / (n + 1), whatever its distribution, so
1,000 rows leave 2 in 1,000 to be clipped, and more of them cost time and make the steps coarser for the sake of
outliers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from encoders.quantization import merge
from encoders.space import Space, digest
from jobs.cargo import as_vectors, unpack_table
from jobs.errors import ConfigurationError, CorpusError
from jobs.fragments import Fragment
from jobs.holdings import Holdings
from jobs.record_files import parse_ranges, read_manifest
from jobs.records import RANGES, Manifest, RangesRecord, ViewRecord
from jobs.run_spec import RunSpec, ViewSpec, Work
from jobs.storage import Location, Store, open_store

CALIBRATION_ROWS = 1000
_NUM_PLACES = 32  # each is a fragment to be read, of which few rows are encoded


def held_ranges(manifest: Manifest, views: Sequence[ViewSpec]) -> dict[str, RangesRecord]:
    """The ranges of a committed dataset by task, where they make the run's spaces into the dataset's."""
    ids = {view.task: view.space_id for view in manifest.views.values()}
    return {
        task: manifest.ranges[task]
        for task, space in _spaces(views).items()
        if task in manifest.ranges
        and space.quantized(manifest.ranges[task].ranges.digest).id == ids.get(task)
    }


def ranges_from(location: Location, views: Sequence[ViewSpec]) -> dict[str, RangesRecord]:
    """The ranges of another dataset by task.

    Raises:
        ConfigurationError: It has none for a task, or those of another model or protocol.
    """
    manifest = read_manifest(open_store(location))
    if manifest is None:
        raise ConfigurationError(
            f"encoder.ranges_from: {location.uri} holds no manifest, so nothing was published there; run that job "
            "first, or leave ranges_from out"
        )
    held = held_ranges(manifest, views)
    for task, space in _spaces(views).items():
        if task not in held:
            there = ", ".join(f"{name} in {view.space_name}" for name, view in manifest.views.items())
            raise ConfigurationError(
                f"encoder.ranges_from: {location.uri} holds {there}; this run needs ranges for {space.name}, of the "
                "same model, task, dimension and protocol; name a dataset that has them, or leave ranges_from out"
            )
    return held


def with_ranges(
    views: Sequence[ViewSpec], records: Mapping[str, ViewRecord], ranges: Mapping[str, RangesRecord]
) -> tuple[tuple[ViewSpec, ...], dict[str, ViewRecord]]:
    """Views and their records in the spaces that the ranges make; those of tasks without ranges as they were."""
    specs, labelled = [], {}
    for spec in views:
        record = records[str(spec.view)]
        if spec.view.task in ranges:
            chosen = ranges[spec.view.task].ranges
            space = spec.space.quantized(chosen.digest)
            changes = {"space_id": space.id, "space_name": space.name, "ranges_digest": chosen.digest}
            record = record.model_copy(update=changes)
            spec = replace(spec, space=space, labels={**spec.labels, **changes}, ranges=chosen)
        specs.append(spec)
        labelled[str(spec.view)] = record
    return tuple(specs), labelled


@dataclass(frozen=True)
class Sample:
    """The rows of a corpus that ranges are calibrated on.

    Attributes:
        rows: How many of each fragment.
        fragments: Those that have some, in the corpus's order.
    """

    rows: Mapping[str, int]
    fragments: tuple[Fragment, ...]

    def key(self, task: str, views: Sequence[ViewSpec]) -> str:
        """Digest of all that decides the ranges of one task; views of one task share them."""
        (space,) = {spec.space.id for spec in views if spec.view.task == task}
        names = sorted(str(spec.view) for spec in views if spec.view.task == task)
        return digest([space, names, [[piece.id, self.rows[piece.id]] for piece in self.fragments]])

    def ranges(self, views: Sequence[ViewSpec], holdings: Holdings) -> dict[str, RangesRecord]:
        """Ranges by task that an output holds of this very sample, in its manifest or left by a stopped attempt."""
        committed = holdings.manifest.ranges.values() if holdings.manifest else ()
        known = {record.sample: record for record in (*holdings.ranges, *committed)}
        keys = {task: self.key(task, views) for task in _spaces(views)}
        return {task: known[key] for task, key in keys.items() if key in known}

    def work(self, views: Sequence[ViewSpec]) -> list[Work]:
        """What is to be encoded; nothing of it is written."""
        parts = {str(spec.view): "" for spec in views}
        return [Work(piece, parts, self.rows[piece.id]) for piece in self.fragments]


def sample_of(fragments: Sequence[Fragment], num_rows: int) -> Sample:
    """Rows in equal shares from places at even distances; all rows of a corpus that has no more."""
    total = sum(fragment.num_rows for fragment in fragments)
    if total <= num_rows:
        return Sample({piece.id: piece.num_rows for piece in fragments}, tuple(fragments))
    ends = np.cumsum([fragment.num_rows for fragment in fragments])
    num_places = min(_NUM_PLACES, num_rows)
    rows: Counter[str] = Counter()
    for place in range(num_places):
        middle = (2 * place + 1) * total // (2 * num_places)
        share = num_rows * (place + 1) // num_places - num_rows * place // num_places
        rows[fragments[int(np.searchsorted(ends, middle, side="right"))].id] += share
    taken = tuple(fragment for fragment in fragments if fragment.id in rows)
    return Sample({piece.id: min(rows[piece.id], piece.num_rows) for piece in taken}, taken)


class Calibrator:
    """Last stage of a calibration: the smallest and largest value of each dimension, for each view of a fragment."""

    def __init__(self, run: RunSpec) -> None:
        self._run = run

    def __call__(self, row: pa.Table) -> pa.Table:
        """One row a view that has vectors: task, num_vectors, low, high."""
        work = Work.from_json(row["work"][0].as_py())
        table, encodings = unpack_table(row, "vectors"), self._run.encodings(work)
        bounds = []
        for spec in self._run.specs(work):
            vectors = as_vectors(table[f"embedding_{encodings.index(spec.encoding)}"])
            if len(vectors):
                bounds.append((spec.view.task, len(vectors), vectors.min(axis=0), vectors.max(axis=0)))
        tasks, counts, lows, highs = zip(*bounds, strict=True) if bounds else ([], [], [], [])
        ends = pa.list_(pa.float32())
        return pa.table(
            {
                "task": pa.array(tasks, pa.string()),
                "num_vectors": pa.array(counts, pa.int64()),
                "low": pa.array(lows, ends),
                "high": pa.array(highs, ends),
            }
        )


def calibrated(
    bounds: Iterable[Mapping[str, Any]], sample: Sample, views: Sequence[ViewSpec]
) -> dict[str, RangesRecord]:
    """Ranges by task from what the calibrators said, in any order.

    Raises:
        CorpusError: No sampled row has a vector.
    """
    by_task = defaultdict(list)
    for said in bounds:
        by_task[said["task"]].append(said)
    records = {}
    for task in _spaces(views):
        if not by_task[task]:
            raise CorpusError(
                f"none of the {sum(sample.rows.values())} rows that int8 was to be calibrated on has a vector; raise "
                "output.calibration_rows, or give the ranges of another dataset: encoder.ranges_from"
            )
        ends = [[np.asarray(said[end], np.float32) for end in ("low", "high")] for said in by_task[task]]
        records[task] = RangesRecord(
            ranges=merge((low, high) for low, high in ends),
            sample=sample.key(task, views),
            num_vectors=sum(said["num_vectors"] for said in by_task[task]),
        )
    return records


def keep(store: Store, record: RangesRecord) -> RangesRecord:
    """Write ranges once, and give those that are there: all attempts and all runs at the same time use the first."""
    path = f"{RANGES}/{record.sample}.json"
    store.create(path, record.model_dump_json().encode())
    return parse_ranges(store.read(path), f"{store.location.uri}/{path}")


def _spaces(views: Sequence[ViewSpec]) -> dict[str, Space]:
    return {spec.view.task: spec.space for spec in views}
