"""The protocol: everything that decides how a model turns a text into a vector.

It is read from the repository's own small files (no weights, no torch), changed only by what the configuration
says by name, and never guessed from a model's name. What the files leave open is an error with the mend.

Source: sentence-transformers 6.2 for the meaning of each file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from encoders.adapters import Adapters, resolve_adapters
from encoders.errors import TaskError, UnsupportedModelError
from encoders.modules import Dense, Modules, Normalize, Pooling, Step, read_modules
from encoders.repository import Repository, open_repository
from encoders.space import Space, digest
from encoders.tasks import STANDARD_TASKS, Role, View, prompt_names
from encoders.transformer import read_transformer


@dataclass(frozen=True)
class EncoderOptions:
    """What a configuration may change in a repository's protocol; the defaults change nothing.

    Attributes:
        prompt: `auto` takes the repository's prompts; `none` embeds raw text, on purpose.
        prompts: {task: {role: prompt}}, instead of the repository's for these tasks; "" is no prompt, on purpose.
        adapters: {task: folder or Hub repository}, besides the repository's own; None is no adapter, on purpose.
        truncate_dim: Keep the first dimensions only (Matryoshka models).
        normalize: Divide by the L2 norm; None does as the repository does.
        max_seq_length: Tokens of a text that the model sees, prompt and special tokens included.
        trust_remote_code: Run the repository's own Python code, for a Hub model with a pinned revision.
    """

    prompt: Literal["auto", "none"] = "auto"
    prompts: Mapping[str, Mapping[Any, str]] = field(default_factory=dict)
    adapters: Mapping[str, str | None] = field(default_factory=dict)
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
    adapters: Adapters = field(default_factory=Adapters)

    def adapter(self, view: View) -> str | None:
        """The name of a view's adapter, None where the model wants none.

        Raises:
            TaskError: The model has adapters, but none for this view.
        """
        return self.adapters.name(self.repository.name, view)

    def prompt(self, view: View) -> str:
        """The prompt of a view, "" where the model wants none.

        Raises:
            TaskError: The model has no such task, or declares prompts but none for this view.
        """
        if view.task in self.options.prompts:
            return self._configured_prompt(view)
        declared = self.declared_prompts
        own = [declared[name] for name in prompt_names(view) if name in declared]
        if self.options.prompt == "none" and (own or view.task in STANDARD_TASKS):
            return ""  # on purpose; but not for a task that nobody knows, which is rather a slip
        if own:
            return own[0]
        if view.task in STANDARD_TASKS:
            if not any(declared.values()):
                return ""  # a model without any prompt: raw text is its protocol
            other_side = [name for name in prompt_names(view.opposite) if name in declared]
            if view.task == "retrieval" and other_side:
                # Only queries carry a prompt (BGE, Arctic): documents are bare, and a default is not for them.
                if view.role == Role.DOCUMENT:
                    return ""
            elif self.default_prompt_name is not None:
                return declared[self.default_prompt_name]
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
                f"but not its role '{view.role}'; give that too ('' for no prompt)"
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
            "adapter": self.adapters.ids(repository.name, task),
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
    repository = open_repository(model, revision=revision, remote_code=options.trust_remote_code)
    modules = read_modules(repository)
    transformer = read_transformer(
        repository,
        modules.transformer_folder,
        max_seq_length=options.max_seq_length,
        trust_remote_code=options.trust_remote_code,
    )
    settings = _read_settings(repository)
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
        max_seq_length=transformer.max_seq_length,
        do_lower_case=transformer.do_lower_case,
        dim=_output_dim(
            repository.name,
            modules,
            transformer.hidden_size,
            settings.get("truncate_dim") if options.truncate_dim is None else options.truncate_dim,
        ),
        adapters=resolve_adapters(
            repository,
            repository.json_object(modules.transformer_folder, "config.json"),
            options.adapters,
        ),
    )


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


def _output_dim(model: str, modules: Modules, hidden_size: int | None, truncate_dim: int | None) -> int:
    token_dim = modules.pooling.token_dim or hidden_size
    if token_dim is None:
        raise UnsupportedModelError(f"{model}: neither the pooling nor config.json says the hidden size")
    dim = int(token_dim) * len(modules.pooling.modes)
    for step in modules.steps:
        if isinstance(step, Normalize):
            continue
        taken = step.in_features if isinstance(step, Dense) else step.dimension
        if taken != dim:
            raise UnsupportedModelError(
                f"{model}: {step.folder} takes {taken} dimensions, but it is given {dim}"
            )
        if isinstance(step, Dense):
            dim = step.out_features
    if truncate_dim is not None and not 1 <= truncate_dim <= dim:
        raise UnsupportedModelError(
            f"{model} has {dim} dimensions; truncate_dim={truncate_dim} must be from 1 to {dim}"
        )
    return truncate_dim or dim
