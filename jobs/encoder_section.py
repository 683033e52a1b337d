"""What a run can be told of the model: the section `encoder` of the configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from encoders.tasks import canonical_task
from jobs.fields import AdapterId, CodeIds, ModelId, Name, RoleName, Section, TaskName, Uri, shown

PromptUse = Literal["auto", "none"]
Dtype = Literal["auto", "float32", "bfloat16", "float16", "int8"]
Precision = Literal["float32", "float16", "int8", "binary"]
LongText = Literal["truncate", "reject", "chunk", "late_chunk"]


class EncoderConfig(Section):
    """The model, and where a run departs from what its repository says."""

    model: ModelId = Field(description="Hub id or local folder of the model.")
    revision: Name | None = Field(
        default=None, description="Commit, tag or branch on the Hub; pin a commit. null: the default branch."
    )
    trust_remote_code: CodeIds = Field(
        default=(),
        description="Python code that may run where the model asks for some: a list of org/name@commit, the model's "
        "own repository or another one that it takes code from. false or []: none. The revision must be a full commit "
        "hash.",
        json_schema_extra={"kind": "list of org/name@commit | false"},
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
        description="Number format of the computation; auto: bfloat16 on GPUs and CPUs that are faster in it (AMX; "
        "AVX512-BF16, but not on an Intel CPU whose AMX a virtual machine hides), else float32. int8: linear layers "
        "in integers, for CPUs without these, and a space of its own: all-MiniLM-L6-v2 at lowest cosines of 0.997 to "
        "its own vectors, 0.9955 on CPUs without VNNI.",
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
                f"trust_remote_code runs code that the repository names, and revision is {shown(self.revision)}; "
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
