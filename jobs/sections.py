"""What a run can be told: one frozen tree in four sections, which are also the sections of the YAML file.

A field's description is its only documentation: --help and the README's reference are generated from it, and
its first sentence is the help of its flag. A field that would be ignored as given is refused, never dropped.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from jobs.encoder_section import EncoderConfig
from jobs.fields import (
    AnyTaskName,
    Endpoint,
    Name,
    Names,
    RayAddress,
    RoleName,
    Section,
    Uri,
    as_tuple,
    shown,
)
from jobs.footers import MAX_FRAGMENT_BYTES, Columns
from jobs.storage import Location

OnBadShard = Literal["fail", "skip"]
OnChangedShard = Literal["fail", "replan"]
OnDuplicateId = Literal["fail", "keep_first", "keep_all"]
Device = Literal["auto", "cpu", "cuda"]

# Names that the output gives to its own columns and to its partition folders.
OUTPUT_COLUMNS = ("embedding", "num_tokens", "truncated", "text_hash", "task", "role")
# Further ones where texts are cut into chunks.
CHUNK_INDEX = "chunk_index"
CHUNK_COLUMNS = (CHUNK_INDEX, "char_start", "char_end")


class ViewConfig(Section):
    """One (task, role) that a run produces; `task` or `task/role` is its short form."""

    task: AnyTaskName = Field(description="What the vectors are for: retrieval, clustering, ...")
    role: RoleName | None = Field(default=None, description="The side of an asymmetric task.")

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        task, slash, role = value.partition("/")
        # A URI by mistake stays in one piece, so that the error can hide it.
        return {"task": task, "role": role} if slash and ":" not in task else {"task": value}

    def __str__(self) -> str:
        return self.task if self.role is None else f"{self.task}/{self.role}"


class InputConfig(Section):
    """The corpus and what to read of it."""

    uri: Uri = Field(
        description="The corpus: a Parquet file, a directory (Hive-partitioned or not) or a glob, local or s3://."
    )
    id_column: Name = Field(default="id", description="Column that names a row; it is copied to the output.")
    text_columns: Names = Field(
        default=("text",),
        min_length=1,
        description="Column that holds the text. Several are joined by text_joiner, in this order.",
    )
    text_joiner: str = Field(default=" ", description="What stands between the texts of several columns.")
    keep_columns: Names = Field(default=(), description="Column to copy to the output beside the id.")
    fragment_rows: PositiveInt = Field(
        default=10_000,
        description="Rows per fragment, the unit of work and retry. A fragment is made of whole row groups, "
        "so larger row groups make larger fragments. Fragments cut otherwise are written anew, their vectors carried "
        "over (but not those of chunks).",
    )
    max_fragment_bytes: PositiveInt = Field(
        default=MAX_FRAGMENT_BYTES,
        description="Bytes that the columns of a fragment may take once they are decoded; a shard with a larger row "
        "group is a bad one. What is a small file may be gigabytes in memory, and reading needs several times as much.",
    )
    on_bad_shard: OnBadShard = Field(
        default="fail",
        description="What to do about a shard that is no readable Parquet file: fail the run, or skip the shard and "
        "record it. One whose columns are missing or of another type fails the run either way.",
    )
    on_changed_shard: OnChangedShard = Field(
        default="fail",
        description="What to do about a shard that is replaced or removed while the run reads: fail the run, "
        "or list the corpus anew and go on with what is embedded, a few times at most.",
    )
    on_duplicate_id: OnDuplicateId = Field(
        default="fail",
        description="What to do about an id that several rows have: fail before anything is embedded, keep the first "
        "by shard and row and reject the others, or keep them all and not look.",
    )
    endpoint_url: Endpoint | None = Field(
        default=None,
        description="Endpoint of an S3-compatible store. null: as the environment says, else AWS.",
    )
    anonymous: bool = Field(default=False, description="Read a public bucket without credentials.")

    @model_validator(mode="after")
    def _names_do_not_clash(self) -> Self:
        """Of the output's columns two that differ in case only are one in SQL, and readers take either."""
        _refuse_repeats("text_columns", self.text_columns)
        by_name: dict[str, str] = {}
        for name in self.keep_columns:
            other = by_name.setdefault(name.lower(), name)
            if other != name:
                raise ValueError(
                    f"keep_columns holds {shown(other)} and {shown(name)}, which are one column in SQL; keep one of "
                    "them, or rename it in the corpus"
                )
        _refuse_repeats("keep_columns", self.keep_columns)
        if (same := by_name.get(self.id_column.lower())) is not None:
            raise ValueError(
                f"keep_columns holds {shown(same)}, and the id column {shown(self.id_column)} is kept anyway (SQL "
                "tells no case); leave it out of keep_columns"
            )
        for name in (self.id_column, *self.keep_columns):
            if name.lower() in OUTPUT_COLUMNS:
                raise ValueError(
                    f"column {name!r} would clash with the output's own {name.lower()!r}; allowed: any name but "
                    f"{', '.join(OUTPUT_COLUMNS)}; rename it in the corpus or leave it out of keep_columns"
                )
        return self

    @model_validator(mode="after")
    def _store_options_need_s3(self) -> Self:
        if self.anonymous and not self.uri.startswith("s3://"):
            raise ValueError("anonymous is for s3:// only, and uri is none; leave it out")
        _refuse_endpoint_of_path(self.uri, self.endpoint_url)
        return self

    def location(self) -> Location:
        """Where the corpus lies."""
        return Location(self.uri, self.endpoint_url, self.anonymous)

    def columns(self) -> Columns:
        """What is read of a shard."""
        return Columns(self.id_column, self.text_columns, self.keep_columns)


class ComputeConfig(Section):
    """Where the work runs. Nothing here changes the vectors beyond float rounding."""

    device: Device = Field(
        default="auto", description="Where to encode; auto: on GPUs if the cluster has any."
    )
    min_actors: PositiveInt = Field(
        default=1,
        description="Encoders to begin with and to keep running at least, if there are fragments for so many. On GPUs "
        "Ray adds the others one after the other, so give the number of GPUs that are there already.",
    )
    max_actors: PositiveInt | None = Field(
        default=None,
        description="Encoders at most, each with its own model. null: as many as there are GPUs, or cores for them.",
    )
    cpus_per_actor: PositiveInt | None = Field(
        default=None,
        description="Cores of one encoder that computes on CPUs. null: those of the smallest node, in equal shares of "
        "8 at most, fewer where min_actors must fit.",
    )
    gpus_per_actor: PositiveFloat = Field(
        default=1.0, description="GPUs for one encoder; below 1, several share a GPU."
    )
    max_batch_tokens: Literal["auto"] | PositiveInt = Field(
        default="auto",
        description="Tokens in one forward pass, padding included; auto: 2,048 on CPU, on CUDA what fits into half of "
        "the memory that is free.",
    )
    preflight: bool = Field(
        default=True,
        description="Before its first fragment, let each worker prove on a few rows that token ids are those of whole "
        "texts, and vectors those of the plain path (one text, no padding, float32, weights from the files), and stop "
        "the run if they are not.",
    )
    tokenize_concurrency: PositiveInt | None = Field(
        default=None,
        description="Actors that only read and tokenize. null: on CPUs none, the encoders do it and write too; beside "
        "GPUs as many as Ray finds cores for while fragments wait.",
    )
    ray_address: RayAddress | None = Field(
        default=None,
        description="Ray cluster to run on; local always starts one. null: the cluster that RAY_ADDRESS or "
        "`ray job submit` names, else a local one.",
    )
    num_cpus: PositiveInt | None = Field(
        default=None, description="Cores that a local Ray may use. null: all of them."
    )
    no_progress_timeout_seconds: PositiveInt = Field(
        default=1800,
        description="Fail after so long in which no worker was at work. Must exceed the loading of a model and the "
        "wait for machines; how long a fragment takes does not matter.",
    )

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.max_actors is not None and self.max_actors < self.min_actors:
            raise ValueError(
                f"max_actors is {self.max_actors}; allowed: at least min_actors, which is {self.min_actors}"
            )
        if self.gpus_per_actor > 1 and not self.gpus_per_actor.is_integer():
            raise ValueError(f"gpus_per_actor is {self.gpus_per_actor}; allowed: up to 1, or a whole number")
        if self.device == "cpu" and self.gpus_per_actor != 1:
            raise ValueError(
                f"gpus_per_actor is {self.gpus_per_actor:g}, and device: cpu uses no GPU; leave out one of the two"
            )
        if self.device == "cuda" and self.cpus_per_actor is not None:
            raise ValueError(
                f"cpus_per_actor is {self.cpus_per_actor}, and is for encoders that compute on CPUs, not for device: "
                "cuda; leave out one of the two"
            )
        if self.num_cpus is not None and self.ray_address not in (None, "local"):
            raise ValueError(
                "num_cpus is for a local Ray, and ray_address names a cluster; leave out one of the two"
            )
        return self


class OutputConfig(Section):
    """The dataset and what it holds."""

    uri: Uri = Field(description="Directory of the dataset of embeddings, local or s3://.")
    views: Annotated[tuple[ViewConfig, ...], BeforeValidator(as_tuple)] = Field(
        min_length=1,
        description="What the vectors are for: one pass over the corpus makes all of these views.",
        json_schema_extra={"kind": "list of task or task/role"},
    )
    endpoint_url: Endpoint | None = Field(
        default=None,
        description="Endpoint of an S3-compatible store. null: as the environment says, else AWS.",
    )
    compression_level: int = Field(default=3, ge=1, le=22, description="Level of zstd in the Parquet files.")
    row_group_rows: PositiveInt = Field(default=10_000, description="Rows per row group of a part, at most.")
    calibration_rows: PositiveInt | None = Field(
        default=None,
        description="Rows whose vectors the ranges of int8 are calibrated on, spread over the corpus. An output's "
        "ranges stay until it is overwritten. null: 1,000, whose ranges hold all but 2 in 1,000 of the corpus's "
        "values.",
    )
    max_rejected_rows: NonNegativeInt | None = Field(
        default=None,
        description="Rows without a vector that are allowed, whatever the reason but for repeated ids; a run with more "
        "is stopped, and nothing is published. null: any number.",
    )
    max_rejected_fraction: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="The same as a part of the corpus's rows; 1 allows all.",
    )
    keep_manifests: PositiveInt = Field(
        default=3,
        description="Datasets to keep readable, the live one included; python -m jobs.history lists them and goes "
        "back. With 1 the folder holds no parts but the live ones, once a run has ended and orphan_grace_hours are "
        "over.",
    )
    orphan_grace_hours: NonNegativeFloat = Field(
        default=24.0,
        description="Hours for which a file stays that no manifest has ever named: what an attempt that was given "
        "up had finished, or somebody writes still.",
    )
    lease_wait_seconds: NonNegativeInt = Field(
        default=0,
        description="How long to wait for another run that has the output, before this one is refused. What a run left "
        "that was killed elsewhere, in another pod say, is known to be dead after 120 seconds of waiting.",
    )
    retry_rejects: bool = Field(
        default=False,
        description="Embed fragments anew in which a text was too much for the machine (out_of_memory, not_finite, "
        "killed_worker), say on a larger one or with another dtype; for one run, since each that is told so does it "
        "again.",
    )
    carry_over: bool = Field(
        default=True,
        description="Take the vectors of texts that the dataset holds already, in parts whose shards changed, were "
        "moved or read otherwise, from those parts. Not for chunks.",
    )
    overwrite: bool = Field(
        default=False,
        description="Replace a dataset that was made from another corpus, or with other views or spaces.",
    )

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        _refuse_repeats("views", tuple(str(view) for view in self.views))
        _refuse_endpoint_of_path(self.uri, self.endpoint_url)
        return self

    def location(self) -> Location:
        """Where the dataset lies."""
        return Location(self.uri, self.endpoint_url)


class JobConfig(Section):
    """Everything that decides what `jobs.embed` does, but for the environment's credentials."""

    input: InputConfig
    encoder: EncoderConfig
    compute: ComputeConfig = ComputeConfig()
    output: OutputConfig

    @model_validator(mode="after")
    def _eight_bits_are_for_cpus(self) -> Self:
        if self.encoder.dtype == "int8" and self.compute.device != "cpu":
            raise ValueError(
                f"encoder.dtype=int8 is for CPUs, and compute.device is {self.compute.device}; set compute.device=cpu, "
                "or another encoder.dtype"
            )
        return self

    @model_validator(mode="after")
    def _calibration_is_possible(self) -> Self:
        calibrates = self.encoder.precision == "int8" and self.encoder.ranges_from is None
        if self.output.calibration_rows is not None and not calibrates:
            raise ValueError(
                "output.calibration_rows is for encoder.precision=int8 without encoder.ranges_from; leave it out"
            )
        return self


def _refuse_repeats(field: str, names: tuple[str, ...]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{field} holds {', '.join(map(shown, repeated))} more than once; keep one of each")


def _refuse_endpoint_of_path(uri: str, endpoint_url: str | None) -> None:
    if endpoint_url is not None and not uri.startswith("s3://"):
        raise ValueError("endpoint_url is for s3:// only, and uri is none; leave it out")
