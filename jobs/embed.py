"""The main job: a corpus into a dataset of embeddings.

    python -m jobs.embed [job.yaml] --input URI --output URI --model ID --task retrieval --role document

It makes a Parquet dataset of embeddings equal to what a corpus and an encoder say it should be:

    read the configuration, resolve the encoder's protocol, take stock of the output     (wrong: exit code 2)
    plan      list shards, cut them into fragments, subtract the parts that exist already
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
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console

from encoders.errors import EncoderError, TaskvecError
from encoders.protocol import EncoderOptions, Protocol, resolve_protocol
from encoders.tasks import view_of
from jobs.cli import PROGRAM, parse
from jobs.commit import build_manifest, publish, sweep
from jobs.config import JobConfig, dump_config
from jobs.corpus import Corpus, list_corpus, refuse_overlap
from jobs.errors import ConfigurationError, CorpusError, OutputError
from jobs.footers import BadShard, Footer, read_footers
from jobs.holdings import Holdings, refuse_other_dataset, take_stock
from jobs.parts import refuse_clashes
from jobs.plan import Plan, lay_out, make_plan, unknown_shards
from jobs.progress import ProgressLine, Tally
from jobs.records import Manifest, ReadingRecord, ViewRecord
from jobs.rows import Reading
from jobs.run_spec import RunSpec, ViewSpec
from jobs.storage import Store, open_store
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
            summary = run(invocation.config, console, dry_run=invocation.dry_run)
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.UsageError as error:
        error.show()
        return error.exit_code
    except TaskvecError as error:
        console.print(f"{PROGRAM}: {error}", style="red", markup=False, highlight=False)
        return 2 if isinstance(error, ConfigurationError | OutputError | EncoderError) else 1
    except KeyboardInterrupt:
        console.print(
            f"{PROGRAM}: stopped; nothing is published, the same command goes on from here", style="red"
        )
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
    plan, reading = _plan(job, footers)
    if dry_run:
        return show_plan(console, plan, job.records, job.store.location.uri)
    tally = Tally()
    if plan.work:
        ray_seconds += _connect(config)
        _embed(job, plan, reading, tally, console)
    manifest, changed = _commit(job, plan, tally, reading.record())
    times = Times(total=time.monotonic() - started, ray_start=ray_seconds)
    return show_run(console, plan, tally, manifest, times, job.store.location.uri, changed=changed)


def _set_up(config: JobConfig) -> _Job:
    encoder = config.encoder
    options = EncoderOptions(
        prompt=encoder.prompt,
        prompts=encoder.prompts,
        adapters={task: None if given == "none" else given for task, given in encoder.adapters.items()},
        truncate_dim=encoder.truncate_dim,
        normalize=encoder.normalize,
        max_seq_length=encoder.max_seq_length,
        trust_remote_code=encoder.trust_remote_code,
    )
    try:
        protocol = resolve_protocol(encoder.model, encoder.revision, options)
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
            space = protocol.space(view.task, encoder.precision)
            records[str(view)] = ViewRecord(
                task=view.task,
                role=view.role,
                space_id=space.id,
                space_name=space.name,
                model=protocol.repository.name,
                revision=protocol.repository.revision,
                adapter=None if adapter is None else str(protocol.adapters.folder(adapter)),
                prompt=prompt,
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
    refuse_clashes(corpus.partition_keys, config.input.columns())
    refuse_overlap(corpus, source, target)
    store = open_store(target)
    holdings = take_stock(store)
    if holdings.manifest is not None and not config.output.overwrite:
        refuse_other_dataset(holdings.manifest, _folder(source.uri), records)
    return _Job(config, protocol, tuple(views), records, corpus, store, holdings)


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


def _plan(job: _Job, footers: Sequence[Footer | BadShard]) -> tuple[Plan, Reading]:
    source = job.config.input
    layout = lay_out(job.corpus, job.holdings.manifest, footers, source.columns(), source.fragment_rows)
    if layout.bad_shards and source.on_bad_shard == "fail":
        first = "; ".join(f"{shard.path}: {shard.reason}" for shard in layout.bad_shards[:5])
        raise CorpusError(
            f"{len(layout.bad_shards)} of {len(job.corpus.shards)} shards cannot be read ({first}); "
            "mend them, or go on without them: input.on_bad_shard=skip"
        )
    reading = Reading(source.columns(), source.text_joiner, layout.carried)
    plan = make_plan(job.corpus, layout, reading, job.views, job.holdings)
    if not plan.num_rows:
        raise CorpusError(
            f"the corpus {source.uri} has {len(job.corpus.shards)} shards and not one row; an empty dataset is not "
            "published in place of a full one: check what writes the corpus"
        )
    return plan, reading


def _connect(config: JobConfig) -> float:
    from jobs.pipeline import connect

    started = time.monotonic()
    connect(config.compute.ray_address, config.compute.num_cpus)
    return time.monotonic() - started


def _embed(job: _Job, plan: Plan, reading: Reading, tally: Tally, console: Console) -> None:
    from jobs.pipeline import choose_cores, choose_device, embed_fragments

    compute = job.config.compute
    device = choose_device(compute)
    spec = RunSpec(
        corpus=job.corpus.location,
        reading=reading,
        skip_bad_shards=job.config.input.on_bad_shard == "skip",
        protocol=job.protocol,
        views=job.views,
        device=device,
        num_threads=choose_cores(compute) if device == "cpu" else None,
        dtype=job.config.encoder.dtype,
        precision=job.config.encoder.precision,
        max_batch_tokens=compute.max_batch_tokens,
        output=job.store.location,
        compression_level=job.config.output.compression_level,
        row_group_rows=job.config.output.row_group_rows,
    )
    num_rows = sum(work.fragment.num_rows for work in plan.work)
    with ProgressLine(console, len(plan.work), num_rows) as line:
        for spent in embed_fragments(spec, plan.work, compute):
            tally.add(spent)
            line.update(tally)


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
    sys.exit(main())
