"""The protocol: everything that decides how a model turns a text into a vector.

It is read from the repository's own small files (no weights, no torch), changed only by what the configuration
says by name, and never guessed from a model's name. What the files leave open is an error with the mend.

Source: sentence-transformers 6.2 for the meaning of each file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from encoders.errors import TaskError, UnsupportedModelError
from encoders.modules import Dense, Modules, Normalize, Pooling, Step, read_modules
from encoders.repository import Repository, open_repository
from encoders.space import Space, digest
from encoders.tasks import STANDARD_TASKS, Role, View, prompt_names

# Older repositories name the transformer's file after the architecture.
_TRANSFORMER_FILES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
_TRANSFORMER_KEYS = frozenset(
    {"max_seq_length", "do_lower_case", "transformer_task", "modality_config", "module_output_name", "unpad_inputs"}
)
# Tokenizers without a limit say 1e30 or so.
_NO_LIMIT = 10**9


@dataclass(frozen=True)
class EncoderOptions:
    """What a configuration may change in a repository's protocol; the defaults change nothing.

    Attributes:
        prompt: `auto` takes the repository's prompts; `none` embeds raw text, on purpose.
        prompts: {task: {role: prompt}}, instead of the repository's for these tasks; "" is no prompt, on purpose.
        truncate_dim: Keep the first dimensions only (Matryoshka models).
        normalize: Divide by the L2 norm; None does as the repository does.
        max_seq_length: Tokens of a text that the model sees, prompt and special tokens included.
        trust_remote_code: Run the repository's own Python code, for a Hub model with a pinned revision.
    """

    prompt: Literal["auto", "none"] = "auto"
    prompts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    truncate_dim: int | None = None
    normalize: bool | None = None
    max_seq_length: int | None = None
    trust_remote_code: bool = False


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

    def prompt(self, view: View) -> str:
        """The prompt of a view, "" where the model wants none.

        Raises:
            TaskError: The model has no such task, or declares prompts but none for this view.
        """
        if self.options.prompt == "none":
            return ""
        if view.task in self.options.prompts:
            return self._configured_prompt(view)
        declared = self.declared_prompts
        for name in prompt_names(view):
            if name in declared:
                return declared[name]
        if self.default_prompt_name is not None and view.task in STANDARD_TASKS:
            return declared[self.default_prompt_name]
        if not any(declared.values()) and view.task in STANDARD_TASKS:
            return ""  # a model without any prompt: raw text is its protocol
        if view == View("retrieval", Role.DOCUMENT) and any(
            name in declared for name in prompt_names(View("retrieval", Role.QUERY))
        ):
            return ""  # only queries carry a prompt (BGE, Arctic): documents are bare, as in encode_document
        names = ", ".join(repr(name) for name in declared) or "none"
        raise TaskError(
            f"{self.repository.name} has no prompt for {view}; it declares {names}. Choose a task that it has, or give "
            f"the prompt: encoder.prompts={{{view.task}: {{{view.role}: '...'}}}}, or embed raw text on purpose: "
            "encoder.prompt=none (standard tasks: " + ", ".join(STANDARD_TASKS) + ")"
        )

    def _configured_prompt(self, view: View) -> str:
        prompts = self.options.prompts[view.task]
        if view.role not in prompts:
            raise TaskError(
                f"encoder.prompts names the task {view.task!r} with {', '.join(prompts) or 'no role'}, "
                f"but not its role {view.role!r}; give that too ('' for no prompt)"
            )
        return prompts[view.role]

    def space(self, task: str, precision: str) -> Space:
        """The space of the vectors of a task, stored with a precision.

        Raises:
            TaskError: The model has no such task.
        """
        prompts = {str(role): self._prompt_or_none(View(task, role)) for role in Role}
        if set(prompts.values()) == {None}:
            self.prompt(View(task, Role.DOCUMENT))
        repository = self.repository
        content = {
            # A folder's name says nothing about its content, a Hub id is part of what a commit means.
            "model": "" if repository.is_local else repository.name,
            "revision": repository.revision,
            "adapter": None,
            "task": task,
            "dim": self.dim,
            "precision": precision,
            "prompts": prompts,
            "pooling": asdict(self.pooling),
            "steps": [{"step": type(step).__name__, **asdict(step)} for step in self.steps],
            "normalize": self.normalize,
            "max_seq_length": self.max_seq_length,
            "do_lower_case": self.do_lower_case,
        }
        revision = repository.revision.removeprefix("sha256:")[:12]
        return Space(digest(content), f"{repository.name}@{revision}/{task}/{self.dim}/{precision}")

    def _prompt_or_none(self, view: View) -> str | None:
        try:
            return self.prompt(view)
        except TaskError:
            return None


def resolve_protocol(model: str, revision: str | None = None, options: EncoderOptions | None = None) -> Protocol:
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
    repository = open_repository(model, revision=revision, remote_code=options.trust_remote_code)
    modules = read_modules(repository)
    transformer = _read_transformer(repository, modules.transformer_folder)
    settings = repository.json_object("config_sentence_transformers.json")
    prompts = _read_prompts(repository, settings)
    default_name = settings.get("default_prompt_name")
    if default_name is not None and default_name not in prompts:
        raise UnsupportedModelError(
            f"{repository.name}: the default prompt is {default_name!r}, but the prompts are {sorted(prompts)}"
        )
    steps, normalized = _split_last_normalize(modules)
    return Protocol(
        repository=repository,
        options=options,
        declared_prompts=prompts,
        default_prompt_name=default_name,
        transformer_folder=modules.transformer_folder,
        pooling=modules.pooling,
        steps=steps,
        normalize=normalized if options.normalize is None else options.normalize,
        max_seq_length=_max_seq_length(repository, modules.transformer_folder, transformer, options),
        do_lower_case=bool(transformer.get("do_lower_case", False)),
        dim=_output_dim(repository, modules, options.truncate_dim or settings.get("truncate_dim")),
    )


def _read_transformer(repository: Repository, folder: str) -> dict[str, Any]:
    for file in _TRANSFORMER_FILES:
        config = repository.json_object(_within(folder, file))
        if not config:
            continue
        # Hugging Face libraries write these when they say nothing.
        unknown = {key for key, value in config.items() if key not in _TRANSFORMER_KEYS and value not in (None, {}, [])}
        if unknown:
            raise UnsupportedModelError(
                f"{repository.name}: {file} asks for {', '.join(sorted(unknown))}; known: "
                + ", ".join(sorted(_TRANSFORMER_KEYS))
            )
        if config.get("transformer_task", "feature-extraction") != "feature-extraction":
            raise UnsupportedModelError(
                f"{repository.name}: {file} loads the model for {config['transformer_task']!r}; "
                "only 'feature-extraction' gives embeddings"
            )
        _check_text_method(repository, file, config)
        return config
    return {}


def _check_text_method(repository: Repository, file: str, config: Mapping[str, Any]) -> None:
    """Newer files say which method and output texts go through; only the plain way is done."""
    text = (config.get("modality_config") or {}).get("text")
    plain = {"method": "forward", "method_output_name": "last_hidden_state"}
    if (text is not None and text != plain) or config.get("module_output_name", "token_embeddings") != "token_embeddings":
        raise UnsupportedModelError(
            f"{repository.name}: {file} takes texts through {text!r} to {config.get('module_output_name')!r}; "
            f"only {plain!r} to 'token_embeddings' is done"
        )


def _read_prompts(repository: Repository, settings: Mapping[str, Any]) -> dict[str, str]:
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str) for prompt in prompts.values()):
        raise UnsupportedModelError(f"{repository.name}: config_sentence_transformers.json: prompts are not texts by name")
    return prompts


def _split_last_normalize(modules: Modules) -> tuple[tuple[Step, ...], bool]:
    """Slicing comes before the last normalisation, so that one is kept apart."""
    if modules.steps and isinstance(modules.steps[-1], Normalize):
        return modules.steps[:-1], True
    return modules.steps, False


def _max_seq_length(
    repository: Repository, folder: str, transformer: Mapping[str, Any], options: EncoderOptions
) -> int:
    tokenizer = repository.json_object(_within(folder, "tokenizer_config.json")).get("model_max_length")
    positions = repository.json_object(_within(folder, "config.json")).get("max_position_embeddings")
    limits = [int(limit) for limit in (tokenizer, positions) if limit is not None and 0 < limit < _NO_LIMIT]
    stated = transformer.get("max_seq_length")
    own = int(stated) if stated is not None else min(limits, default=None)
    if options.max_seq_length is None and own is None:
        raise UnsupportedModelError(
            f"{repository.name} does not say how many tokens it takes (max_seq_length, model_max_length, "
            "max_position_embeddings are all absent); give encoder.max_seq_length"
        )
    wanted = options.max_seq_length if options.max_seq_length is not None else own
    if wanted is None or (positions is not None and wanted > positions > 0):
        raise UnsupportedModelError(
            f"{repository.name} has {positions} positions, so it cannot take {wanted} tokens; "
            f"give encoder.max_seq_length up to {min(limits, default=positions)}"
        )
    return wanted


def _output_dim(repository: Repository, modules: Modules, truncate_dim: int | None) -> int:
    config = repository.json_object(_within(modules.transformer_folder, "config.json"))
    token_dim = modules.pooling.token_dim or config.get("hidden_size") or config.get("d_model") or config.get("dim")
    if token_dim is None:
        raise UnsupportedModelError(f"{repository.name}: neither the pooling nor config.json says the hidden size")
    dim = int(token_dim) * len(modules.pooling.modes)
    for step in modules.steps:
        if isinstance(step, Dense):
            if step.in_features != dim:
                raise UnsupportedModelError(
                    f"{repository.name}: {step.folder} takes {step.in_features} dimensions, but what precedes gives {dim}"
                )
            dim = step.out_features
    if truncate_dim is not None and truncate_dim > dim:
        raise UnsupportedModelError(
            f"{repository.name} has {dim} dimensions; truncate_dim={truncate_dim} must be from 1 to {dim}"
        )
    return truncate_dim or dim


def _within(folder: str, file: str) -> str:
    return f"{folder}/{file}" if folder else file

