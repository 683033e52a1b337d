"""The steps of a run that Ray does where they are large; it starts with the first of them that needs it.

So a run that finds nothing to do never waits for Ray, and one that is refused seldom. Ray is imported here and below,
and only when it is needed: the command's help and its complaints come at once.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from rich.console import Console

from jobs.carry import CarryPlan, carry_over
from jobs.config import ComputeConfig
from jobs.corpus import Shard
from jobs.duplicates import IdScan
from jobs.footers import BadShard, Columns, Footer, read_footers
from jobs.job import Job
from jobs.machine import check_machine
from jobs.progress import ProgressLine, Tally
from jobs.records import Receipt
from jobs.rows import Reading
from jobs.run_spec import RunSpec, Work
from jobs.storage import Location, Store

# Up to here a thread pool reads footers faster than Ray starts; beyond, they are tasks on the cluster.
_FOOTERS_ON_DRIVER = 512


class Executor:
    """Has the steps done.

    Args:
        compute: The cluster, and what each worker gets of it.
        console: Where the steps that take time are named.

    Attributes:
        start_seconds: How long the run has waited for Ray to start.
    """

    def __init__(self, compute: ComputeConfig, console: Console) -> None:
        self._compute = compute
        self._console = console
        self._has_started = False
        self.start_seconds = 0.0

    def start(self) -> None:
        """Have a Ray with room for encoders; one that is there already is taken. Once is enough.

        Raises:
            ConfigurationError: This machine has no room for them.
            JobError: Ray cannot be joined or started.
        """
        if self._has_started:
            return
        from jobs.cluster import connect

        check_machine(self._compute)
        started = time.monotonic()
        connect(self._compute.ray_address, self._compute.num_cpus)
        self.start_seconds = time.monotonic() - started
        self._has_started = True

    def read_footers(
        self, location: Location, shards: Sequence[Shard], wanted: Columns, max_fragment_bytes: int
    ) -> list[Footer | BadShard]:
        """Footers of shards, in their order."""
        if len(shards) <= _FOOTERS_ON_DRIVER:
            return read_footers(location, shards, wanted, max_fragment_bytes)
        from jobs.pipeline import read_footers_on_cluster

        self.start()
        return read_footers_on_cluster(location, shards, wanted, max_fragment_bytes, self._compute)

    def compare_ids(self, scan: IdScan) -> Iterator[dict[str, Any]]:
        """What `jobs.duplicates` asks of a cluster."""
        from jobs.joins import repeats_on_cluster

        self.start()
        self._console.print(f"Comparing {scan.num_rows:,} ids")
        return repeats_on_cluster(self._compute, scan)

    def spec(self, job: Job, reading: Reading) -> RunSpec:
        """What every worker of this run is told; after the start, for devices and threads are those of the nodes."""
        from jobs.cluster import choose_cores, choose_device

        config = job.config
        device = choose_device(self._compute)
        return RunSpec(
            corpus=job.corpus.location,
            reading=reading,
            skip_bad_shards=config.input.on_bad_shard == "skip",
            protocol=job.protocol,
            views=job.views,
            device=device,
            num_threads=choose_cores(self._compute) if device == "cpu" else None,
            dtype=config.encoder.dtype,
            precision=config.encoder.precision,
            preflight=self._compute.preflight,
            max_batch_tokens=self._compute.max_batch_tokens,
            output=job.store.location,
            compression_level=config.output.compression_level,
            row_group_rows=config.output.row_group_rows,
            max_fragment_bytes=config.input.max_fragment_bytes,
            landmarks=job.landmarks,
        )

    def calibrate(self, spec: RunSpec, work: Sequence[Work]) -> Iterator[dict[str, Any]]:
        """What `jobs.ranges` asks of a sample."""
        from jobs.pipeline import calibrate_fragments

        num_rows = sum(piece.num_sampled or 0 for piece in work)
        self._console.print(f"Calibrating the ranges of int8 on {num_rows:,} rows")
        return calibrate_fragments(spec, work, self._compute)

    def carry_over(self, spec: RunSpec, store: Store, carrying: CarryPlan) -> tuple[Work, ...]:
        """The work that vectors are carried to, once they are where it looks for them."""
        from jobs.joins import carry_on_cluster

        self._console.print(
            f"Looking for vectors to carry over in {len(carrying.parts):,} parts that fall away"
        )
        return carry_over(spec, store, carrying, functools.partial(carry_on_cluster, self._compute))

    def embed(self, spec: RunSpec, work: Sequence[Work], tally: Tally) -> Generator[Receipt, None, None]:
        """Embed fragments; yields the receipt of each as it is done."""
        from jobs.pipeline import embed_fragments

        num_rows = sum(piece.fragment.num_rows for piece in work)
        with (
            ProgressLine(self._console, len(work), num_rows) as line,
            contextlib.closing(embed_fragments(spec, work, self._compute)) as finished,
        ):
            for spent in finished:
                tally.add(spent)
                line.update(tally)
                yield tally.receipts[-1]
