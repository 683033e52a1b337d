"""What a run knows before it reads or starts anything: its model, views, corpus and output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from encoders.errors import EncoderError
from encoders.late_chunking import refuse_late_chunking
from encoders.protocol import Protocol
from encoders.quantization import check_dim
from encoders.tasks import view_of
from jobs.config import JobConfig
from jobs.corpus import Corpus, list_corpus, refuse_overlap
from jobs.errors import ConfigurationError
from jobs.holdings import Holdings, refuse_other_dataset, take_stock
from jobs.lease import LOCK
from jobs.parts import refuse_clashes
from jobs.protocols import resolve, space_of
from jobs.ranges import held_ranges, ranges_from, with_ranges
from jobs.records import RangesRecord, ViewRecord
from jobs.run_spec import ViewSpec
from jobs.storage import Location, Store, open_store

# In the path of what `ray job submit --working-dir` brings, which is the job's current directory.
_UNPACKED = "/runtime_resources/working_dir_files/"


@dataclass(frozen=True)
class Job:
    """What is known before anything is read or started; holdings and ranges once stock is taken."""

    config: JobConfig
    protocol: Protocol
    views: tuple[ViewSpec, ...]
    records: Mapping[str, ViewRecord]
    corpus: Corpus
    store: Store
    holdings: Holdings = field(default_factory=lambda: Holdings(None, (), {}))
    ranges: Mapping[str, RangesRecord] = field(default_factory=dict)

    @property
    def landmarks(self) -> tuple[tuple[str, ...], ...]:
        """What a worker must see of a corpus and an output on paths: one of some shards, and the lock of this run."""
        shards, store = self.corpus.shards, self.store.location.uri
        few = (shards[0], shards[len(shards) // 2], shards[-1])  # one may go while the run is under way
        groups = (tuple(f"{self.corpus.location.uri}/{shard.path}" for shard in few), (f"{store}/{LOCK}",))
        return tuple(group for group in groups if not group[0].startswith("s3://"))

    @property
    def raw_views(self) -> tuple[str, ...]:
        """Views that get raw text because nobody says anything of prompts."""
        prompts = self.protocol.prompts
        return tuple(str(spec.view) for spec in self.views if prompts.is_raw(spec.view))


def set_up(config: JobConfig) -> Job:
    """All that can be known without looking at the output.

    Raises:
        ConfigurationError: The configuration cannot work.
    """
    encoder = config.encoder
    try:
        protocol = resolve(encoder)
        protocol.check_weights()
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
            protocol.prompts.check_name(asked.task, view)
            adapter = protocol.adapter(view)
            space = space_of(protocol, encoder, view.task)
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
    _refuse_place(target)
    corpus = list_corpus(source)
    chunks = encoder.long_text in ("chunk", "late_chunk")
    refuse_clashes(corpus.partition_keys, config.input.columns(), chunks=chunks)
    refuse_overlap(corpus, source, target)
    return Job(config, protocol, tuple(views), records, corpus, open_store(target))


def _refuse_place(target: Location) -> None:
    """Refuse a path at which no dataset can be, or would not be for long."""
    if target.uri.startswith("s3://"):
        return
    path = Path(target.uri).resolve()
    if file := next((one for one in (path, *path.parents) if one.exists() and not one.is_dir()), None):
        raise ConfigurationError(
            f"the output {target.uri} cannot be a folder, for {file} is a file; give another path, or move the file"
        )
    if _UNPACKED in path.as_posix():
        raise ConfigurationError(
            f"the output {target.uri} is where Ray unpacks the files of this job, and goes with them; give an absolute "
            "path on a file system that all nodes share, or s3://bucket/prefix"
        )


def know_output(job: Job) -> Job:
    """The job, knowing what the output holds and that this run may go on with it."""
    config, holdings = job.config, take_stock(job.store)
    held = None if config.output.overwrite else holdings.manifest
    ranges: Mapping[str, RangesRecord] = {}
    if config.encoder.ranges_from is not None:
        place = Location(config.encoder.ranges_from, job.store.location.endpoint_url)
        ranges = ranges_from(place, job.views)
    elif held is not None:
        ranges = held_ranges(held, job.views)
    specs, records = with_ranges(job.views, job.records, ranges)
    if held is not None:
        refuse_other_dataset(held, folder_of(config.input.location().uri), records)
    return replace(job, views=specs, records=records, holdings=holdings, ranges=ranges)


def folder_of(uri: str) -> str:
    """A URI as the manifest names it: a folder is the same with and without a last "/"."""
    return uri.rstrip("/") or "/"
