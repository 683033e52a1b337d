"""What a run can be told: one frozen tree in four sections, which are also the sections of the YAML file.

A field's description is its only documentation: --help and the README's reference are generated from it, and
its first sentence is the help of its flag. A field that would be ignored as given is refused, never dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from encoders.tasks import canonical_task
from jobs.fields import AdapterId, Endpoint, ModelId, Name, Names, RayAddress, TaskName, Uri, as_tuple, shown
from jobs.footers import Columns
from jobs.storage import Location

OnBadShard = Literal["fail", "skip"]
OnChangedShard = Literal["fail", "replan"]
RoleName = Literal["query", "document"]
PromptUse = Literal["auto", "none"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Precision = Literal["float32", "float16", "int8", "binary"]
LongText = Literal["truncate", "reject", "chunk", "late_chunk"]
Device = Literal["auto", "cpu", "cuda"]

# Names that the output gives to its own columns and to its partition folders.
OUTPUT_COLUMNS = ("embedding", "num_tokens", "truncated", "text_hash", "task", "role")
# Further ones where texts are cut into chunks.
CHUNK_INDEX = "chunk_index"
CHUNK_COLUMNS = (CHUNK_INDEX, "char_start", "char_end")


class _Section(BaseModel):
    """Strict: text is not read as a number, nor a number as a flag."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )


class ViewConfig(_Section):
    """One (task, role) that a run produces; `task` or `task/role` is its short form."""

    task: TaskName = Field(description="What the vectors are for: retrieval, clustering, ...")
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


class InputConfig(_Section):
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
        "so larger row groups make larger fragments. A fragment cut otherwise is embedded anew.",
    )
    on_bad_shard: OnBadShard = Field(
        default="fail",
        description="What to do about a shard that is no readable Parquet file: fail the run, or skip the shard and "
        "record it.",
    )
    on_changed_shard: OnChangedShard = Field(
        default="fail",
        description="What to do about a shard that is replaced or removed while the run reads: fail the run, "
        "or list the corpus anew and go on with what is embedded, a few times at most.",
    )
    endpoint_url: Endpoint | None = Field(
        default=None,
        description="Endpoint of an S3-compatible store. null: as the environment says, else AWS.",
    )
    anonymous: bool = Field(default=False, description="Read a public bucket without credentials.")

    @model_validator(mode="after")
    def _names_do_not_clash(self) -> Self:
        _refuse_repeats("text_columns", self.text_columns)
        _refuse_repeats("keep_columns", self.keep_columns)
        if self.id_column in self.keep_columns:
            raise ValueError(
                f"keep_columns holds the id column {shown(self.id_column)}, which is kept anyway; "
                "leave it out of keep_columns"
            )
        for name in (self.id_column, *self.keep_columns):
            if name in OUTPUT_COLUMNS:
                raise ValueError(
                    f"column {name!r} would clash with the output's own {name!r}; allowed: any name but "
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


class EncoderConfig(_Section):
    """The model, and where a run departs from what its repository says."""

    model: ModelId = Field(description="Hub id or local folder of the model.")
    revision: Name | None = Field(
        default=None, description="Commit, tag or branch on the Hub; pin a commit. null: the default branch."
    )
    trust_remote_code: bool = Field(
        default=False,
        description="Run Python code from the model's repository. The revision must be a full commit hash.",
    )
    prompt: PromptUse = Field(
        default="auto",
        description="Prompt to put around the text. auto: the one that the model has for task and role; "
        "none: the raw text, on purpose.",
    )
    prompts: Mapping[TaskName, Mapping[RoleName, str]] = Field(
        default={},
        description="Prompts in place of the repository's, for these tasks. An empty text means no prompt, "
        "on purpose; the texts of a symmetric task are documents.",
        json_schema_extra={"kind": "{task: {role: text}}"},
    )
    instruction: str | Mapping[TaskName, str | Mapping[RoleName, str]] | None = Field(
        default=None,
        description="What a model that takes instructions is told, for all tasks, by task, or by task and role. "
        "null: the model's default, where it has one.",
        json_schema_extra={"kind": "text | {task: text} | {task: {role: text}} | null"},
    )
    protocol: Name | Mapping[str, Any] | None = Field(
        default=None,
        description="The model of README's table that a folder or a fine-tuned model is spoken to like, or a protocol "
        "written out with the fields of encoders/family.py. null: the model's own row, if it has one.",
        json_schema_extra={"kind": "model id | {field: value} | null"},
    )
    adapters: Mapping[TaskName, AdapterId] = Field(
        default={},
        description="LoRA adapters for these tasks, in place of the repository's own: a folder as peft writes it, or "
        "org/name[/folder][@revision] on the Hub. none: the backbone without adapter, on purpose.",
        json_schema_extra={"kind": "{task: folder, Hub repository or none}"},
    )
    truncate_dim: PositiveInt | None = Field(
        default=None, description="Keep the first N dimensions (Matryoshka). null: all of them."
    )
    force_truncate_dim: bool = Field(
        default=False,
        description="Keep the first truncate_dim dimensions even of a model that was not trained for that.",
    )
    normalize: bool | None = Field(
        default=None, description="Scale vectors to length 1. null: as the repository does."
    )
    max_seq_length: PositiveInt | None = Field(
        default=None,
        description="Tokens per text, prompt included; the rest is cut. null: as the repository does.",
    )
    long_text: LongText = Field(
        default="truncate",
        description="What to do with a text that the model cannot take whole. truncate: cut the rest; "
        "reject: no vector; chunk: a vector for each piece, as if it were a text; late_chunk: encode the text "
        "once, as far as the model takes it, and pool each piece's own tokens.",
    )
    chunk_tokens: PositiveInt | None = Field(
        default=None,
        description="Tokens of a piece, without prompt and special tokens; shorter texts are one piece. null: as "
        "many as the model takes; late_chunk needs a number.",
    )
    chunk_overlap: NonNegativeInt = Field(
        default=0, description="Tokens that a piece repeats of the one before; fewer than chunk_tokens."
    )
    dtype: Dtype = Field(
        default="auto",
        description="Number format of the computation; auto: bfloat16 on CUDA, float32 on CPU.",
    )
    precision: Precision = Field(
        default="float32",
        description="Number format of the stored vectors. int8: 256 steps between the ends of each dimension's range; "
        "binary: the sign of each dimension, 8 to a byte.",
    )
    ranges_from: Uri | None = Field(
        default=None,
        description="Another dataset of int8 vectors whose ranges to use, so that both may be compared: queries, "
        "another half of a corpus. An s3:// one is reached as the output is. null: those that the output has, else "
        "calibrated on a sample of the corpus.",
    )

    @model_validator(mode="after")
    def _remote_code_is_pinned(self) -> Self:
        if self.trust_remote_code and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise ValueError(
                f"trust_remote_code runs the repository's code, and revision is {shown(self.revision)}; "
                "allowed: a commit hash of 40 hexadecimal digits; read the code there, then set --revision"
            )
        return self

    @model_validator(mode="after")
    def _ranges_are_for_int8(self) -> Self:
        if self.ranges_from is not None and self.precision != "int8":
            raise ValueError(
                f"ranges_from is for precision int8, and precision is {self.precision}; leave out ranges_from"
            )
        return self

    @model_validator(mode="after")
    def _no_prompts_without_prompt(self) -> Self:
        if self.prompt == "none" and self.prompts:
            raise ValueError(
                "prompt: none embeds the raw text, but prompts are given; leave out one of the two"
            )
        if self.prompt == "none" and self.instruction is not None:
            raise ValueError(
                "prompt: none embeds the raw text, but an instruction is given; leave out one of the two"
            )
        return self

    @field_validator("prompts", "instruction", "adapters", mode="before")
    @classmethod
    def _each_task_once(cls, value: object) -> object:
        """A task has several names; under two of them one of its values would be lost."""
        tasks = (
            [canonical_task(name) for name in value if isinstance(name, str)]
            if isinstance(value, dict)
            else []
        )
        if repeated := next((task for task in tasks if tasks.count(task) > 1), None):
            raise ValueError(f"it gives two names of the task {shown(repeated)}; keep one of them")
        return value

    @model_validator(mode="after")
    def _nothing_is_forced_in_vain(self) -> Self:
        if self.force_truncate_dim and self.truncate_dim is None:
            raise ValueError(
                "force_truncate_dim is true, and truncate_dim is null; give it, or leave both out"
            )
        return self

    @model_validator(mode="after")
    def _chunk_settings_make_sense(self) -> Self:
        if self.long_text not in ("chunk", "late_chunk") and (self.chunk_tokens or self.chunk_overlap):
            raise ValueError(
                f"chunk_tokens and chunk_overlap are for long_text chunk and late_chunk, and long_text is "
                f"{self.long_text}; leave them out, or set long_text"
            )
        if self.long_text == "late_chunk" and self.chunk_tokens is None:
            raise ValueError(
                "long_text: late_chunk makes chunks of what the model takes whole, so chunk_tokens must say how long "
                "they are; give a number, 256 say"
            )
        if self.chunk_tokens is not None and self.chunk_overlap >= self.chunk_tokens:
            raise ValueError(
                f"chunk_overlap is {self.chunk_overlap}; allowed: fewer than chunk_tokens, which is "
                f"{self.chunk_tokens}"
            )
        return self


class ComputeConfig(_Section):
    """Where the work runs. Nothing here changes the vectors beyond float rounding."""

    device: Device = Field(
        default="auto", description="Where to encode; auto: on GPUs if the cluster has any."
    )
    min_actors: PositiveInt = Field(default=1, description="Encoders to keep running at least.")
    max_actors: PositiveInt | None = Field(
        default=None,
        description="Encoders at most, each with its own model. null: as many as there are GPUs, or cores for them.",
    )
    cpus_per_actor: PositiveInt | None = Field(
        default=None,
        description="Cores of one encoder that computes on CPUs. null: those of the smallest node, 8 at most.",
    )
    gpus_per_actor: PositiveFloat = Field(
        default=1.0, description="GPUs for one encoder; below 1, several share a GPU."
    )
    max_batch_tokens: Literal["auto"] | PositiveInt = Field(
        default="auto",
        description="Tokens in one forward pass, padding included; auto: chosen for the device.",
    )
    preflight: bool = Field(
        default=True,
        description="Before its first fragment, let each encoder prove on a few rows that it gives the vectors of the "
        "plain path (one text, no padding, float32), and stop the run if it does not.",
    )
    tokenize_concurrency: PositiveInt | None = Field(
        default=None,
        description="Actors that only read and tokenize. null: on CPUs none, the encoders do it and write too; beside "
        "GPUs as many as keep up.",
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
        description="Fail after so long without progress. Must exceed the loading of a model and the wait "
        "for machines.",
    )

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.max_actors is not None and self.max_actors < self.min_actors:
            raise ValueError(
                f"max_actors is {self.max_actors}; allowed: at least min_actors, which is {self.min_actors}"
            )
        if self.gpus_per_actor > 1 and not self.gpus_per_actor.is_integer():
            raise ValueError(f"gpus_per_actor is {self.gpus_per_actor}; allowed: up to 1, or a whole number")
        if self.num_cpus is not None and self.ray_address not in (None, "local"):
            raise ValueError(
                "num_cpus is for a local Ray, and ray_address names a cluster; leave out one of the two"
            )
        return self


class OutputConfig(_Section):
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
        description="Rows without a vector that are allowed, whatever the reason; a run with more is stopped, and "
        "nothing is published. null: any number.",
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
        "back. With 1 the folder holds no parts but the live ones once a run has ended.",
    )
    orphan_grace_hours: NonNegativeFloat = Field(
        default=24.0,
        description="Hours for which a file stays that no manifest has ever named: what an attempt that was given "
        "up had finished, or somebody writes still.",
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


class JobConfig(_Section):
    """Everything that decides what `jobs.embed` does, but for the environment's credentials."""

    input: InputConfig
    encoder: EncoderConfig
    compute: ComputeConfig = ComputeConfig()
    output: OutputConfig

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
