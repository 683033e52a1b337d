"""The protocol: everything that decides how a model turns a text into a vector.

It is read from the repository's own small files (no weights, no torch). What these leave unsaid, the model's row in
`encoders.families` says; what a configuration changes, it changes by name. What is still open then is an error with
the mend.

Source: sentence-transformers 6.2 for the meaning of each file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from encoders.adapters import Adapters, resolve_adapters
from encoders.agreement import agreed_modules, check_length, check_suffix, find_family, native_type
from encoders.dimensions import output_dim
from encoders.errors import EncoderError, TaskError, UnsupportedModelError
from encoders.family import Family, Prompt
from encoders.modules import Dense, LayerNorm, Modules, Normalize, Pooling, Step
from encoders.options import EncoderOptions
from encoders.prompts import Prompts
from encoders.repository import Repository, open_repository
from encoders.space import Space, digest
from encoders.tasks import Role, View
from encoders.transformer import read_transformer


@dataclass(frozen=True)
class Protocol:
    """How one model turns texts into vectors.

    Attributes:
        repository: The model's files and revision.
        options: What the configuration changed.
        declared_prompts: The repository's own prompts by name.
        default_prompt_name: The prompt that applies where no other does.
        transformer_folder: Where in the repository the backbone is; "" is its root.
        pooling: How token states become a vector.
        steps: What follows the pooling, without a last normalisation.
        normalize: Whether the vector is divided by its L2 norm at the end, after slicing.
        max_seq_length: Tokens of a text that the model sees.
        do_lower_case: Whether texts are lower-cased whatever the tokenizer does.
        dim: Dimension of the vectors.
        family: The row that speaks where the repository is silent; None where the table has none.
        native: transformers' `model_type` whose class stands in for the repository's own code; None: none needs to.
        adapters: What each task adds to the backbone's weights.
    """

    repository: Repository
    options: EncoderOptions
    declared_prompts: Mapping[str, str]
    default_prompt_name: str | None
    transformer_folder: str
    pooling: Pooling
    steps: tuple[Step, ...]
    normalize: bool
    max_seq_length: int
    do_lower_case: bool
    dim: int
    family: Family | None = None
    native: str | None = None
    adapters: Adapters = field(default_factory=Adapters)

    def adapter(self, view: View) -> str | None:
        """The name of a view's adapter, None where the model wants none.

        Raises:
            TaskError: The model has adapters, but none for this view, or should have some and brings none.
        """
        wanted = self.family.adapters.get(view.task, {}).get(view.role) if self.family else None
        if wanted and not self.adapters.folders and view.task not in self.options.adapters:
            raise TaskError(
                f"{self.repository.name} wants its adapter {wanted!r} for {view}, and its files bring none; give it: "
                f"encoder.adapters={{{view.task}: a folder or a Hub repository}}"
            )
        return self.adapters.name(self.repository.name, view)

    @property
    def prompts(self) -> Prompts:
        """What is known of the model's prompts."""
        return Prompts(
            model=self.repository.name,
            use=self.options.prompt,
            configured=self.options.prompts,
            instruction=self.options.instruction,
            family=self.family,
            declared=self.declared_prompts,
            default_name=self.default_prompt_name,
        )

    def prompt(self, view: View) -> Prompt:
        """What goes around the texts of a view, nothing where the model wants none.

        Raises:
            TaskError: The model has no such task, or declares prompts but none for this view.
        """
        return self.prompts.of(view)

    def check_dtype(self, dtype: str) -> None:
        """Refuse a number format in which the model is known to overflow.

        Raises:
            EncoderError: It is one.
        """
        if self.family is not None and dtype in self.family.forbidden_dtypes:
            raise EncoderError(
                f"{self.repository.name} overflows in {dtype}; take encoder.dtype auto, bfloat16 or float32"
            )

    def check_weights(self) -> None:
        """Refuse a model without safetensors weights, before anything is started for them.

        Raises:
            ModelNotFoundError: The backbone or a projection has none.
        """
        projections = [step.folder for step in self.steps if isinstance(step, Dense | LayerNorm)]
        self.repository.check_weights([self.transformer_folder, *projections])

    def space(
        self, task: str, precision: str, *, late_chunk: bool = False, eight_bits: bool = False
    ) -> Space:
        """The space of the vectors of a task.

        Args:
            task: What they are for.
            precision: With which they are stored.
            late_chunk: Whether they are those of chunks cut late, and not of whole texts.
            eight_bits: Whether they are computed in integers, which is farther from the model's than rounding.

        Raises:
            TaskError: The model has no such task.
        """
        prompts = {role: self._prompt_or_none(View(task, role)) for role in Role}
        if set(prompts.values()) == {None}:
            self.prompt(View(task, Role.DOCUMENT))
        repository = self.repository
        content: dict[str, Any] = {
            # A folder's name says nothing about its content, a Hub id is part of what a commit means.
            "model": "" if repository.is_local else repository.name,
            "revision": repository.revision,
            "adapter": self.adapters.ids(repository.name, task),
            "task": task,
            "dim": self.dim,
            "precision": precision,
            "prompts": {str(role): prompt and prompt.prefix for role, prompt in prompts.items()},
            "pooling": asdict(self.pooling),
            "steps": [{"step": type(step).__name__, **asdict(step)} for step in self.steps],
            "normalize": self.normalize,
            "max_seq_length": self.max_seq_length,
            "do_lower_case": self.do_lower_case,
        }
        # Only where there is something to say, so that a row that changes no vector makes no other space.
        content |= {
            name: value
            for name, value in {
                "suffixes": {
                    str(role): prompt.suffix for role, prompt in prompts.items() if prompt and prompt.suffix
                },
                "strip": self.family is not None and self.family.strip != "none" and self.family.strip,
                "added_tokens": self.added_tokens,
                "native": self.native,
            }.items()
            if value
        }
        if late_chunk:  # pooled from a text's own tokens alone, whatever else stands around them
            content["late_chunk"] = True
        if eight_bits:
            content["eight_bits"] = True
        revision = repository.revision.removeprefix("sha256:")[:12]
        name = f"{repository.name}@{revision}/{task}/{self.dim}/{precision}"
        more = ["late_chunk"] * late_chunk + ["int8_linears"] * eight_bits
        return Space(digest(content), "/".join([name, *more]))

    @property
    def added_tokens(self) -> tuple[str | None, str | None] | None:
        """The special tokens that are put around every text even if the repository's tokenizer leaves them out."""
        if self.family is None or self.family.ends != "added":
            return None
        return self.family.first_token, self.family.last_token

    def _prompt_or_none(self, view: View) -> Prompt | None:
        try:
            return self.prompt(view)
        except TaskError:
            return None


def resolve_protocol(
    model: str, revision: str | None = None, options: EncoderOptions | None = None
) -> Protocol:
    """Read a model's protocol from its repository.

    Args:
        model: A folder, or a Hub id.
        revision: Branch, tag or commit of a Hub repository.
        options: What to change in what the repository says.

    Raises:
        ModelNotFoundError: There is no such model.
        UnsupportedModelError: The repository asks for something that is not done, or leaves something open.
    """
    options = options or EncoderOptions()
    repository = open_repository(model, revision=revision, remote_code=bool(options.trust_remote_code))
    family = find_family(repository, options.protocol)
    native = native_type(repository, family, trust_remote_code=bool(options.trust_remote_code))
    modules = agreed_modules(repository, family)
    transformer = read_transformer(
        repository,
        modules.transformer_folder,
        max_seq_length=options.max_seq_length,
        trust_remote_code=options.trust_remote_code,
        longest=family.max_seq_length if family else None,
        native=native is not None,
    )
    if options.max_seq_length is None:
        check_length(repository.name, family, transformer.stated_length)
    settings = _read_settings(repository)
    check_suffix(repository, family, settings.get("suffix"))
    prompts = _read_prompts(repository, settings)
    default_name = settings.get("default_prompt_name")
    if default_name is not None and default_name not in prompts:
        raise UnsupportedModelError(
            f"{repository.name}: the default prompt is {default_name!r}, but the prompts are {sorted(prompts)}"
        )
    steps, normalized = _split_last_normalize(modules)
    protocol = Protocol(
        repository=repository,
        options=options,
        declared_prompts=prompts,
        default_prompt_name=default_name,
        transformer_folder=modules.transformer_folder,
        pooling=modules.pooling,
        steps=steps,
        normalize=normalized if options.normalize is None else options.normalize,
        max_seq_length=transformer.max_seq_length,
        do_lower_case=transformer.do_lower_case,
        dim=output_dim(
            repository, modules, transformer.hidden_size, settings.get("truncate_dim"), options, family
        ),
        family=family,
        native=native,
        adapters=resolve_adapters(
            repository,
            repository.json_object(modules.transformer_folder, "config.json"),
            options.adapters,
        ),
    )
    protocol.prompts.check_instruction()
    protocol.prompts.check_declared()
    return protocol


def _read_settings(repository: Repository) -> dict[str, Any]:
    settings = repository.json_object("config_sentence_transformers.json")
    kind = settings.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise UnsupportedModelError(
            f"{repository.name} is a {kind} (config_sentence_transformers.json), which gives no single dense vector a "
            "text; give a SentenceTransformer"
        )
    return settings


def _read_prompts(repository: Repository, settings: Mapping[str, Any]) -> dict[str, str]:
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(
        isinstance(prompt, str | None) for prompt in prompts.values()
    ):
        raise UnsupportedModelError(
            f"{repository.name}: config_sentence_transformers.json: prompts are not texts by name"
        )
    return {name: prompt or "" for name, prompt in prompts.items()}


def _split_last_normalize(modules: Modules) -> tuple[tuple[Step, ...], bool]:
    """Slicing comes before the last normalisation, so that one is kept apart."""
    if modules.steps and isinstance(modules.steps[-1], Normalize):
        return modules.steps[:-1], True
    return modules.steps, False
