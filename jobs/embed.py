"""The main job: a corpus into a dataset of embeddings.

    python -m jobs.embed [job.yaml] --input URI --output URI --model ID --task retrieval --role document

It makes a Parquet dataset of embeddings equal to what a corpus and an encoder say it should be:

    read the configuration, resolve the encoder's protocol, take stock of the output     (wrong: exit code 2)
    plan      list shards, cut them into fragments, subtract the parts that exist already
              (int8 only, and only once: calibrate its ranges, for they are part of what names a part)
    embed     what is missing, on Ray                                                    (failed: exit code 1)
    commit    if receipts cover the plan and counts balance, replace the manifest; then sweep

The same command is the first run, the resume after anything that went wrong, and the scheduled reindex.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import click
from rich.console import Console

from encoders.chunking import Chunker
from encoders.errors import EncoderError, TaskvecError
from encoders.late_chunking import refuse_late_chunking
from encoders.protocol import Protocol
from encoders.quantization import check_dim
from encoders.tasks import view_of
from encoders.tokenizer import Tokenizer
from jobs.cli import PROGRAM, parse
from jobs.commit import build_manifest, publish, sweep
from jobs.config import EncoderConfig, JobConfig, dump_config
from jobs.corpus import Corpus, list_corpus, refuse_overlap
from jobs.errors import ConfigurationError, CorpusError, OutputError
from jobs.footers import BadShard, Footer, read_footers
from jobs.holdings import Holdings, refuse_other_dataset, take_stock
from jobs.parts import refuse_clashes
from jobs.plan import Layout, Plan, fragments_of, lay_out, make_plan, unknown_shards
from jobs.progress import ProgressLine, Tally
from jobs.protocols import resolve, show_protocol
from jobs.ranges import CALIBRATION_ROWS, calibrated, held_ranges, keep, ranges_from, sample_of, with_ranges
from jobs.records import LongTextRecord, Manifest, RangesRecord, ReadingRecord, ViewRecord
from jobs.rows import Reading
from jobs.run_spec import RunSpec, ViewSpec
from jobs.storage import Location, Store, open_store
from jobs.summary import Times, show_plan, show_run

# Up to here a thread pool reads footers faster than Ray starts; beyond, they are tasks on the cluster.
_FOOTERS_ON_DRIVER = 512
_PACKAGES = ("ray", "torch", "transformers", "peft", "tokenizers", "pyarrow", "numpy", "s3fs", "safetensors")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    console = Console(stderr=True, soft_wrap=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        invocation = parse(argv)
        with contextlib.redirect_stdout(
            sys.stderr
        ):  # Ray prints its notices to stdout, which is the summary's
            config = invocation.config
            summary = (
                show_protocol(config, console)
                if isinstance(config, EncoderConfig)
                else run(config, console, dry_run=invocation.dry_run)
            )
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.UsageError as error:
        error.show()
        return error.exit_code
    except TaskvecError as error:
        console.print(f"{PROGRAM}: {error}", style="red", markup=False, highlight=False)
        return 2 if isinstance(error, ConfigurationError | OutputError | EncoderError) else 1
    except KeyboardInterrupt as stop:
        state = str(stop) or "nothing is published"
        console.print(f"{PROGRAM}: stopped; {state}, the same command goes on from here", style="red")
        return 1
    sys.stdout.write(json.dumps(summary) + "\n")
    return 0


@dataclass(frozen=True)
class _Job:
    """What is known before anything is read or started."""

    config: JobConfig
    protocol: Protocol
    views: tuple[ViewSpec, ...]
    records: Mapping[str, ViewRecord]
    corpus: Corpus
    store: Store
    holdings: Holdings
    ranges: Mapping[str, RangesRecord]

    @property
    def raw_views(self) -> tuple[str, ...]:
        """Views that get raw text because nobody says anything of prompts."""
        prompts = self.protocol.prompts
        return tuple(str(spec.view) for spec in self.views if prompts.is_raw(spec.view))


def run(config: JobConfig, console: Console, *, dry_run: bool = False) -> dict[str, Any]:
    """Make the output equal to what the configuration says; returns the summary.

    Raises:
        ConfigurationError: The configuration cannot work.
        OutputError: The output holds something that must not be mixed or replaced.
        CorpusError: The input is not what was promised.
        JobError: The run failed; nothing is published.
    """
    started = time.monotonic()
    job = _set_up(config)
    ray_seconds = 0.0
    footers, seconds = _read_footers(job)
    ray_seconds += seconds
    layout, reading = _lay_out(job, footers)
    if not dry_run:
        job, seconds = _calibrate(job, layout, reading, console)
        ray_seconds += seconds
    plan = _plan(job, layout, reading)
    if dry_run:
        return show_plan(console, plan, job.records, job.store.location.uri, raw_views=job.raw_views)
    tally = Tally()
    if plan.work:
        _check_chunks(job, reading)
        ray_seconds += _connect(config)
        _embed(job, plan, reading, tally, console)
    try:
        manifest, changed = _commit(job, plan, tally, reading.record())
    except KeyboardInterrupt:
        raise KeyboardInterrupt("readers see the old dataset or the new one, whole") from None
    times = Times(total=time.monotonic() - started, ray_start=ray_seconds)
    uri = job.store.location.uri
    return show_run(console, plan, tally, manifest, times, uri, changed=changed, raw_views=job.raw_views)


def _set_up(config: JobConfig) -> _Job:
    encoder = config.encoder
    try:
        protocol = resolve(encoder)
        check_dim(protocol.repository.name, protocol.dim, encoder.precision)
        if encoder.long_text == "late_chunk":
            refuse_late_chunking(protocol)
        records = {}
        views = []
        for asked in config.output.views:
            view = view_of(asked.task, asked.role)
            if str(view) in records:
                raise ConfigurationError(
                    f"output.views names {view} twice (a symmetric task's only side is document)"
                )
            prompt = protocol.prompt(view)  # first, for its error names the view
            adapter = protocol.adapter(view)
            space = protocol.space(view.task, encoder.precision, late_chunk=encoder.long_text == "late_chunk")
            records[str(view)] = ViewRecord(
                task=view.task,
                role=view.role,
                space_id=space.id,
                space_name=space.name,
                model=protocol.repository.name,
                revision=protocol.repository.revision,
                adapter=None if adapter is None else str(protocol.adapters.folder(adapter)),
                prompt=prompt.prefix,
                suffix=prompt.suffix or None,
                dim=protocol.dim,
                precision=encoder.precision,
                normalized=protocol.normalize,
            )
            labels = {
                name: str(value) for name, value in records[str(view)].model_dump(exclude_none=True).items()
            }
            views.append(ViewSpec(view, prompt, space, labels, adapter))
    except EncoderError as error:
        raise ConfigurationError(str(error)) from error
    source, target = config.input.location(), config.output.location()
    corpus = list_corpus(source)
    chunks = encoder.long_text in ("chunk", "late_chunk")
    refuse_clashes(corpus.partition_keys, config.input.columns(), chunks=chunks)
    refuse_overlap(corpus, source, target)
    store = open_store(target)
    holdings = take_stock(store)
    held = None if config.output.overwrite else holdings.manifest
    ranges: Mapping[str, RangesRecord] = {}
    if encoder.ranges_from is not None:
        ranges = ranges_from(Location(encoder.ranges_from, target.endpoint_url), views)
    elif held is not None:
        ranges = held_ranges(held, views)
    specs, records = with_ranges(views, records, ranges)
    if held is not None:
        refuse_other_dataset(held, _folder(source.uri), records)
    return _Job(config, protocol, specs, records, corpus, store, holdings, ranges)


def _folder(uri: str) -> str:
    """A URI as the manifest names it: a folder is the same with and without a last "/"."""
    return uri.rstrip("/") or "/"


def _read_footers(job: _Job) -> tuple[list[Footer | BadShard], float]:
    """Footers of the shards that no committed dataset knows; and how long Ray took to start, where it was needed."""
    location, columns = job.corpus.location, job.config.input.columns()
    shards = unknown_shards(job.corpus, job.holdings.manifest, columns, job.config.input.fragment_rows)
    try:
        read_footers(location, shards[:1], columns)
    except CorpusError as error:  # the very first shard: rather a wrong name than a wrong corpus
        raise ConfigurationError(str(error)) from error
    if len(shards) <= _FOOTERS_ON_DRIVER:
        return read_footers(location, shards, columns), 0.0
    from jobs.pipeline import read_footers_on_cluster

    seconds = _connect(job.config)
    return read_footers_on_cluster(location, shards, columns), seconds


def _lay_out(job: _Job, footers: Sequence[Footer | BadShard]) -> tuple[Layout, Reading]:
    source = job.config.input
    layout = lay_out(job.corpus, job.holdings.manifest, footers, source.columns(), source.fragment_rows)
    if layout.bad_shards and source.on_bad_shard == "fail":
        first = "; ".join(f"{shard.path}: {shard.reason}" for shard in layout.bad_shards[:5])
        raise CorpusError(
            f"{len(layout.bad_shards)} of {len(job.corpus.shards)} shards cannot be read ({first}); "
            "mend them, or go on without them: input.on_bad_shard=skip"
        )
    return layout, Reading(source.columns(), source.text_joiner, layout.carried, _long_text(job))


def _calibrate(job: _Job, layout: Layout, reading: Reading, console: Console) -> tuple[_Job, float]:
    """The job with all the ranges that it needs; and how long Ray took to start, where it was needed."""
    views = [spec for spec in job.views if spec.view.task not in job.ranges]
    fragments = fragments_of(job.corpus, layout, reading)
    if job.config.encoder.precision != "int8" or not views or not fragments:
        return job, 0.0
    sample = sample_of(fragments, job.config.output.calibration_rows or CALIBRATION_ROWS)
    found = sample.ranges(views, job.holdings)
    missing = [spec for spec in views if spec.view.task not in found]
    seconds = 0.0
    if missing:
        from jobs.pipeline import calibrate_fragments

        seconds = _connect(job.config)
        console.print(f"Calibrating the ranges of int8 on {sum(sample.rows.values()):,} rows")
        run = replace(_run_spec(job, reading), views=tuple(missing), precision="float32")
        bounds = calibrate_fragments(run, sample.work(missing), job.config.compute)
        new = calibrated(bounds, sample, missing)
        found |= {task: keep(job.store, record) for task, record in new.items()}
    specs, records = with_ranges(job.views, job.records, found)
    return replace(job, views=specs, records=records, ranges={**job.ranges, **found}), seconds


def _plan(job: _Job, layout: Layout, reading: Reading) -> Plan:
    plan = make_plan(job.corpus, layout, reading, job.views, job.holdings)
    if not plan.num_rows:
        raise CorpusError(
            f"the corpus {job.config.input.uri} has {len(job.corpus.shards)} shards and not one row; an empty dataset "
            "is not published in place of a full one: check what writes the corpus"
        )
    return plan


def _long_text(job: _Job) -> LongTextRecord | None:
    encoder = job.config.encoder
    if encoder.long_text == "truncate":
        return None
    return LongTextRecord(
        mode=encoder.long_text,
        chunk_tokens=encoder.chunk_tokens,
        chunk_overlap=encoder.chunk_overlap,
        prompts=tuple(sorted({(spec.prompt.prefix, spec.prompt.suffix) for spec in job.views})),
    )


def _check_chunks(job: _Job, reading: Reading) -> None:
    """Refuse chunks that do not fit here, before Ray starts: there the reason would be at the end of a long page."""
    if reading.long_text is not None and reading.long_text.chunks:
        prompts = [spec.prompt for spec in job.views]
        Chunker(
            Tokenizer(job.protocol), prompts, reading.long_text.chunk_tokens, reading.long_text.chunk_overlap
        )


def _connect(config: JobConfig) -> float:
    from jobs.pipeline import connect

    started = time.monotonic()
    connect(config.compute.ray_address, config.compute.num_cpus)
    return time.monotonic() - started


def _embed(job: _Job, plan: Plan, reading: Reading, tally: Tally, console: Console) -> None:
    from jobs.pipeline import embed_fragments

    spec = _run_spec(job, reading)
    num_rows = sum(work.fragment.num_rows for work in plan.work)
    with ProgressLine(console, len(plan.work), num_rows) as line:
        for spent in embed_fragments(spec, plan.work, job.config.compute):
            tally.add(spent)
            line.update(tally)


def _run_spec(job: _Job, reading: Reading) -> RunSpec:
    from jobs.pipeline import choose_cores, choose_device

    compute = job.config.compute
    device = choose_device(compute)
    return RunSpec(
        corpus=job.corpus.location,
        reading=reading,
        skip_bad_shards=job.config.input.on_bad_shard == "skip",
        protocol=job.protocol,
        views=job.views,
        device=device,
        num_threads=choose_cores(compute) if device == "cpu" else None,
        dtype=job.config.encoder.dtype,
        precision=job.config.encoder.precision,
        preflight=compute.preflight,
        max_batch_tokens=compute.max_batch_tokens,
        output=job.store.location,
        compression_level=job.config.output.compression_level,
        row_group_rows=job.config.output.row_group_rows,
    )


def _commit(job: _Job, plan: Plan, tally: Tally, reading: ReadingRecord) -> tuple[Manifest, bool]:
    """The dataset's manifest, and whether it had to be written."""
    held = job.holdings.manifest
    manifest = build_manifest(
        plan,
        [*plan.existing, *tally.receipts],
        corpus=_folder(job.config.input.location().uri),
        reading=reading,
        fragment_rows=job.config.input.fragment_rows,
        views=job.records,
        ranges=job.ranges,
    )
    if held is not None and manifest.digest == held.digest:
        if not job.holdings.is_tidy:  # an earlier run died between its commit and its sweep
            sweep(job.store, held)
        return held, False
    versions = {package: importlib.metadata.version(package) for package in _PACKAGES}
    publish(
        job.store,
        manifest,
        {"configuration": dump_config(job.config), "python": platform.python_version(), "packages": versions},
    )
    sweep(job.store, manifest)
    return manifest, True


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    sys.stdout = sys.stderr  # what Ray has to say of workers that died comes when it ends, behind the summary
    sys.exit(exit_code)
