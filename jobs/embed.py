"""The main job: a corpus into a dataset of embeddings.

    python -m jobs.embed [job.yaml] --input URI --output URI --model ID --task retrieval --role document

It makes a Parquet dataset of embeddings equal to what a corpus and an encoder say it should be:

    read the configuration, resolve the encoder's protocol                               (wrong: exit code 2)
    have the output to itself, take stock of it   (another run has it: exit code 1; another dataset: 2)
    plan      list shards, cut them into fragments, subtract the parts that exist already
              (int8 only, and only once: calibrate its ranges, for they are part of what names a part)
    carry     vectors of texts that the dataset holds already to the fragments that want them
    embed     what is missing, on Ray                                                    (failed: exit code 1)
    commit    if receipts cover the plan and counts balance, list the ids that change, replace the manifest; then sweep

The same command is the first run, the resume after anything that went wrong, and the scheduled reindex.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console

from encoders.chunking import Chunker
from encoders.tokenizer import Tokenizer
from jobs.carry import plan_carrying
from jobs.cli import PROGRAM, Invocation, parse
from jobs.command import Answer, carry_out, under_way
from jobs.config import EncoderConfig, JobConfig
from jobs.corpus import list_corpus
from jobs.duplicates import IdScan, known_repeats, repeated_ids
from jobs.errors import ConfigurationError, CorpusError, FileChangedError, OutputBusyError, StorageError
from jobs.executor import Executor
from jobs.finish import finish
from jobs.footers import check_columns
from jobs.job import Job, know_output, set_up
from jobs.lease import Lease, Patience, held_lease
from jobs.machine import check_machine
from jobs.plan import Layout, Plan, fragments_of, lay_out, make_plan, unknown_shards
from jobs.progress import Tally
from jobs.protocols import show_protocol
from jobs.ranges import CALIBRATION_ROWS, calibrated, keep, sample_of, with_ranges
from jobs.records import CARRIED, IDS, LongTextRecord
from jobs.rejects import RejectLimit
from jobs.rows import Reading
from jobs.run_spec import MOST_DEADLY_ROWS, RunSpec, Work
from jobs.summary import Times, show_plan, show_run

# A corpus that changes faster than it is listed is not one that a run can be about.
_MOST_REPLANS = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    stopped = "nothing is published, the same command goes on from here"
    return carry_out(PROGRAM, lambda: parse(argv), _answer, stopped=stopped)


def _answer(asked: Invocation, console: Console) -> Answer:
    if isinstance(asked.config, EncoderConfig):
        return Answer(show_protocol(asked.config, console))
    return Answer(run(asked.config, console, dry_run=asked.dry_run))


def run(config: JobConfig, console: Console, *, dry_run: bool = False) -> dict[str, Any]:
    """Make the output equal to what the configuration says; returns the summary.

    Raises:
        ConfigurationError: The configuration cannot work.
        OutputError: The output holds something that must not be mixed or replaced.
        OutputBusyError: Another run has the output.
        CorpusError: The input is not what was promised.
        JobError: The run failed; nothing is published.
    """
    started = time.monotonic()
    executor = Executor(config.compute, console)
    job = set_up(config)
    if dry_run:
        job = know_output(job)
        layout, reading = _lay_out(job, executor)
        if config.input.on_duplicate_id == "keep_first":  # as far as it is known without reading ids
            known = known_repeats(fragments_of(job.corpus, layout, reading), job.holdings.manifest)
            layout = replace(layout, repeated_ids=known)
        plan = _plan(job, layout, reading)
        if plan.work:
            check_machine(config.compute)
        return show_plan(console, plan, job.records, job.store.location.uri, raw_views=job.raw_views)
    patience = Patience(wait=config.output.lease_wait_seconds)
    with held_lease(
        job.store, lambda text: console.print(text, markup=False, highlight=False), patience
    ) as lease:
        for replans_left in reversed(range(_MOST_REPLANS + 1)):
            ready = know_output(job)
            try:
                return _make(ready, executor, lease, console, started)
            except FileChangedError as error:
                if config.input.on_changed_shard == "fail" or not replans_left:
                    raise
                console.print(f"{error}\nListing the corpus anew", markup=False, highlight=False)
                job = replace(job, corpus=list_corpus(config.input.location()))
    raise AssertionError("unreachable")


@contextlib.contextmanager
def _nothing_left_of_a_refusal(job: Job, lease: Lease) -> Iterator[None]:
    """A run that is refused after it has looked at ids leaves the output as it was, if that is still its own."""
    try:
        yield
    except (ConfigurationError, CorpusError):
        with contextlib.suppress(OutputBusyError, StorageError):
            lease.confirm()
            found = [entry.path for folder in (IDS, CARRIED) for entry in job.store.list(folder)]
            there = set(job.holdings.others)
            job.store.delete(
                path for path in found if path not in there and path.endswith((".bits", ".plan"))
            )
        raise


def _make(job: Job, executor: Executor, lease: Lease, console: Console, started: float) -> dict[str, Any]:
    """Make the output of a job whose corpus is listed and whose stock is taken; returns the summary."""
    job.store.delete(job.holdings.void_records())
    layout, reading = _lay_out(job, executor)
    with _nothing_left_of_a_refusal(job, lease):
        layout = _without_repeats(job, layout, reading, executor)
        job = _calibrate(job, layout, reading, executor)
        plan = _plan(job, layout, reading)
        if plan.work:
            _check_chunks(job, reading)
            executor.start()
    tally = Tally()
    limit = _reject_limit(job, plan)
    with under_way():
        if plan.work:
            spec = replace(executor.spec(job, reading), most_deadly=min(MOST_DEADLY_ROWS, limit.left))
            work = _carry_over(job, plan, spec, executor)
            with contextlib.closing(executor.embed(spec, work, tally)) as receipts:
                for receipt in receipts:
                    lease.check()
                    limit.add(receipt)
        try:
            manifest, changes = finish(job, plan, tally, layout, reading.record(), lease)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                "readers see the old dataset or the new one, whole; the same command goes on from here"
            ) from None
    times = Times(total=time.monotonic() - started, ray_start=executor.start_seconds)
    uri = job.store.location.uri
    return show_run(console, plan, tally, manifest, times, uri, changes=changes, raw_views=job.raw_views)


def _lay_out(job: Job, executor: Executor) -> tuple[Layout, Reading]:
    """The corpus in fragments; reads the footers of the shards that no committed dataset knows."""
    source, columns, location = job.config.input, job.config.input.columns(), job.corpus.location
    shards = unknown_shards(job.corpus, job.holdings.manifest, columns, source.fragment_rows)
    if len(shards) == len(job.corpus.shards):  # the dataset's own shards have them
        check_columns(location, shards, columns, source.max_fragment_bytes)
    footers = executor.read_footers(location, shards, columns, source.max_fragment_bytes)
    layout = lay_out(job.corpus, job.holdings.manifest, footers, columns, source.fragment_rows)
    if layout.bad_shards and source.on_bad_shard == "fail":
        first = "; ".join(f"{shard.path}: {shard.reason}" for shard in layout.bad_shards[:5])
        raise CorpusError(
            f"{len(layout.bad_shards)} of {len(job.corpus.shards)} shards cannot be read ({first}); "
            "mend them, or go on without them: input.on_bad_shard=skip"
        )
    return layout, Reading(columns, source.text_joiner, layout.carried, _long_text(job))


def _without_repeats(job: Job, layout: Layout, reading: Reading, executor: Executor) -> Layout:
    """The layout without rows that repeat an id."""
    source = job.config.input
    scan = IdScan(
        corpus=job.corpus.location,
        output=job.store.location,
        reading=reading,
        fragments=fragments_of(job.corpus, layout, reading),
        skip_bad_shards=source.on_bad_shard == "skip",
        max_fragment_bytes=source.max_fragment_bytes,
    )
    repeated = repeated_ids(
        source.on_duplicate_id,
        scan,
        job.holdings.manifest,
        executor.compare_ids,
        is_made=lambda: not make_plan(job.corpus, layout, reading, job.views, job.holdings).work,
    )
    return replace(layout, repeated_ids=repeated)


def _calibrate(job: Job, layout: Layout, reading: Reading, executor: Executor) -> Job:
    """The job with all the ranges that it needs."""
    views = [spec for spec in job.views if spec.view.task not in job.ranges]
    if job.config.encoder.precision != "int8" or not views:
        return job
    fragments = fragments_of(job.corpus, layout, reading)
    if not fragments:
        return job
    sample = sample_of(fragments, job.config.output.calibration_rows or CALIBRATION_ROWS)
    found = sample.ranges(views, job.holdings)
    missing = [spec for spec in views if spec.view.task not in found]
    if missing:
        executor.start()
        with under_way():
            spec = replace(executor.spec(job, reading), views=tuple(missing), precision="float32")
            new = calibrated(executor.calibrate(spec, sample.work(missing)), sample, missing)
            found |= {task: keep(job.store, record) for task, record in new.items()}
    specs, records = with_ranges(job.views, job.records, found)
    return replace(job, views=specs, records=records, ranges={**job.ranges, **found})


def _plan(job: Job, layout: Layout, reading: Reading) -> Plan:
    retry = job.config.output.retry_rejects
    plan = make_plan(job.corpus, layout, reading, job.views, job.holdings, retry_rejects=retry)
    if not plan.num_rows:
        raise CorpusError(
            f"the corpus {job.config.input.uri} has {len(job.corpus.shards)} shards and not one row; an empty dataset "
            "is not published in place of a full one: check what writes the corpus"
        )
    return plan


def _long_text(job: Job) -> LongTextRecord | None:
    encoder = job.config.encoder
    if encoder.long_text == "truncate":
        return None
    return LongTextRecord(
        mode=encoder.long_text,
        chunk_tokens=encoder.chunk_tokens,
        chunk_overlap=encoder.chunk_overlap,
        prompts=tuple(sorted({(spec.prompt.prefix, spec.prompt.suffix) for spec in job.views})),
    )


def _check_chunks(job: Job, reading: Reading) -> None:
    """Refuse chunks that do not fit here, before Ray starts: there the reason would be at the end of a long page."""
    if reading.long_text is not None and reading.long_text.chunks:
        prompts = [spec.prompt for spec in job.views]
        Chunker(
            Tokenizer(job.protocol), prompts, reading.long_text.chunk_tokens, reading.long_text.chunk_overlap
        )


def _reject_limit(job: Job, plan: Plan) -> RejectLimit:
    """What the rejects of this run count against; those of the fragments that are there count already."""
    output = job.config.output
    limit = RejectLimit(
        plan.num_rows, output.max_rejected_rows, output.max_rejected_fraction, job.store.location.uri
    )
    for receipt in plan.existing:
        limit.add(receipt)
    return limit


def _carry_over(job: Job, plan: Plan, spec: RunSpec, executor: Executor) -> tuple[Work, ...]:
    """The work, after the vectors of texts that the output holds were brought to the fragments that want them."""
    if not job.config.output.carry_over:
        return plan.work
    carrying, rest = plan_carrying(plan, job.holdings, job.views, spec.reading)
    return (*executor.carry_over(spec, job.store, carrying), *rest) if carrying.work else rest


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    sys.stdout = sys.stderr  # what Ray has to say of workers that died comes when it ends, behind the summary
    sys.exit(exit_code)
