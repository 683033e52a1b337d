"""The end of a run: the manifest of what is there now, the ids that it changes, the commit, the clean-up behind it."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from collections import Counter

from jobs.changes import Changes, nothing_changed, report_changes
from jobs.commit import build_manifest, publish
from jobs.compare import Comparison
from jobs.config import JobConfig, dump_config
from jobs.errors import OutputBusyError, StorageError
from jobs.job import Job, folder_of
from jobs.lease import Lease
from jobs.manifests import id_of
from jobs.plan import Layout, Plan
from jobs.progress import Tally
from jobs.records import Manifest, ReadingRecord, RunRecord
from jobs.storage import Location
from jobs.sweep import is_tidy, sweep

_PACKAGES = ("ray", "torch", "transformers", "peft", "tokenizers", "pyarrow", "numpy", "s3fs", "safetensors")


def finish(
    job: Job, plan: Plan, tally: Tally, layout: Layout, reading: ReadingRecord, lease: Lease
) -> tuple[Manifest, Changes]:
    """Publish what is there now and clear up behind it; returns the manifest, and what it changed.

    Raises:
        AccountingError: The receipts do not cover the plan, or a file is missing; nothing is published.
        OutputBusyError: Another run has the output by now.
        StorageError: The store failed; behind the commit the error says that it stands.
    """
    held = job.holdings.manifest
    manifest = build_manifest(
        plan,
        [*plan.existing, *tally.receipts],
        corpus=folder_of(job.config.input.location().uri),
        reading=reading,
        fragment_rows=job.config.input.fragment_rows,
        views=job.records,
        ranges=job.ranges,
        held=held,
        repeated_ids=layout.repeated_ids,
        run=RunRecord(
            configuration=dump_config(job.config),
            python=platform.python_version(),
            packages={package: importlib.metadata.version(package) for package in _PACKAGES},
            encoders=tuple(sorted(tally.ways, key=str)),
        ),
    )
    if held is not None and manifest.equals(held):
        if not is_tidy(job.holdings, job.config.output.keep_manifests):
            _sweep(job, held, job.holdings.version, lease)
        return held, nothing_changed(held)
    changes = report_changes(job.store, job.holdings, manifest, functools.partial(_compare, job.config))
    version = publish(job.store, manifest, replacing=job.holdings.version, confirm=lease.confirm)
    _sweep(job, manifest, version, lease)
    return manifest, changes


def _compare(config: JobConfig, location: Location, comparison: Comparison) -> Counter[tuple[str, str]]:
    from jobs.cluster import connect
    from jobs.joins import compare_on_cluster

    connect(config.compute.ray_address, config.compute.num_cpus)
    return compare_on_cluster(config.compute, location, comparison)


def _sweep(job: Job, live: Manifest, version: str | None, lease: Lease) -> None:
    """Clear up behind a commit; where that fails, the error says that the commit stands."""
    output = job.config.output
    assert version is not None
    published = f"the dataset is published ({id_of(live)}); only the clean-up behind it was not finished"
    try:
        sweep(
            job.store,
            live,
            version,
            confirm=lease.confirm,
            keep_manifests=output.keep_manifests,
            orphan_grace_hours=output.orphan_grace_hours,
        )
    except StorageError as error:
        raise StorageError(f"{published}: {error}; the next run clears up") from error
    except OutputBusyError as error:
        raise OutputBusyError(f"{published}: another run has the output by now, and clears up") from error
