"""What a configuration may change in the way that a model is spoken to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from encoders.prompts import Instruction


@dataclass(frozen=True)
class EncoderOptions:
    """What a configuration may change in a repository's protocol; the defaults change nothing.

    Attributes:
        prompt: `auto` takes the repository's prompts; `none` embeds raw text, on purpose.
        prompts: {task: {role: prompt}}, instead of the repository's for these tasks; "" is no prompt, on purpose.
        adapters: {task: folder or Hub repository}, besides the repository's own; None is no adapter, on purpose.
        instruction: What a model that takes instructions is told, for all its views, by task, or by task and role.
        protocol: The row of `encoders.families` that speaks for a folder, or a row written out; see `Family`.
        truncate_dim: Keep the first dimensions only (Matryoshka models).
        force_truncate_dim: Keep them even if the model was not trained for that.
        normalize: Divide by the L2 norm; None does as the repository does.
        max_seq_length: Tokens of a text that the model sees, prompt and special tokens included.
        trust_remote_code: Repositories whose Python code may run, each `org/name@commit`; see `remote_code`.
    """

    prompt: Literal["auto", "none"] = "auto"
    prompts: Mapping[str, Mapping[Any, str]] = field(default_factory=dict)
    adapters: Mapping[str, str | None] = field(default_factory=dict)
    instruction: Instruction | None = None
    protocol: str | Mapping[str, Any] | None = None
    truncate_dim: int | None = None
    force_truncate_dim: bool = False
    normalize: bool | None = None
    max_seq_length: int | None = None
    trust_remote_code: tuple[str, ...] = ()
