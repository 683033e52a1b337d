r"""A family of models as a row of data: everything of its protocol that its repositories leave unsaid.

The rows are in `encoders.families`. A configuration can write a row of its own for any transformers backbone
(`encoder.protocol`), with the same fields:

    protocol:
      prompts: {retrieval: {query: "Instruct: {instruction}\nQuery: ", document: ""}, clustering: "cluster: "}
      instructions: {retrieval: Find what answers the question}
      pooling: lasttoken
      last_token: <|endoftext|>
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from encoders.errors import EncoderError
from encoders.tasks import Role, canonical_task

# Stands in a row's prompt where the instruction goes; never looked for in a text.
INSTRUCTION = "{instruction}"

_FORBID_UNKNOWN = {"extra": "forbid"}


@dataclass(frozen=True)
class Prompt:
    """What a model wants around a text: `prefix + text + suffix`, with nothing in between."""

    prefix: str = ""
    suffix: str = ""

    __pydantic_config__: ClassVar[Any] = _FORBID_UNKNOWN

    def around(self, text: str) -> str:
        """The whole that is tokenized."""
        return f"{self.prefix}{text}{self.suffix}"

    def __str__(self) -> str:
        return repr(self.prefix) + (f" ... {self.suffix!r}" if self.suffix else "")


@dataclass(frozen=True)
class Family:
    """How the models of one family are spoken to.

    Attributes:
        repositories: Hub ids, each with the full dimension of its vectors. A row is found by one of them, exactly.
        unreadable: Hub ids of the same models in files that cannot be read here; who gives one is told of these.
        prompts: What goes around a text, by task and role; `{instruction}` is the place of an instruction.
        instructions: What stands in that place by default, by task; a task without one must be given one.
        strip: Whitespace that is cut off: none, or that around the prompt and around the text.
        pooling: How token states become a vector: one of `encoders.modules.POOLING_MODES`.
        include_prompt: Whether pooling takes in the prompt's tokens.
        dense: Widths of the linear projections behind the pooling, without bias and activation, whose weights the
            repository has; none: nothing is known of any.
        steps: What is done to the pooled vector before slicing: `layer_norm` is one without weights.
        normalize: Whether the vector is divided by its L2 norm at the end.
        max_seq_length: Tokens of a text that the model was made for; None leaves it to the repository.
        truncate_dims: Smaller dimensions that the model was trained for; None: not known, so any.
        truncate_from: Every dimension from here up was trained for.
        never_sliced: Why a slice of the vector is no vector of the model's.
        adapters: Name of the adapter, by task and role.
        first_token: The special token that every text begins with.
        last_token: The special token that every text ends with; the one that `lasttoken` pools.
        last_token_id: Its id in the family's own vocabulary.
        ends: `asserted`: the repository's tokenizer puts these tokens there, or it is an error. `added`: put there
            where it does not. `none`: the tokenizer adds no token at all, or it is an error.
        attention: Whether a token sees those behind it (`both` ways) or not (`causal`); None: not known.
        forbidden_dtypes: Number formats in which the backbone overflows.
        own_code: Whether nothing but the repository's own code gives the model's vectors.
        own_modules: Classes of the repository's own code in modules.json that do no more than the row does without it.
        native: transformers' `model_type` whose class gives the same states as the repository's own code.
        native_of: The repository's `model_type`s for which that holds.
        native_if: Settings of `config.json` for which that holds, where they are given.
        licence: SPDX id, or the licence's name.
        source: Where these facts are from.
    """

    repositories: Mapping[str, int] = field(default_factory=dict)
    unreadable: tuple[str, ...] = ()
    prompts: Mapping[str, Mapping[Role, Prompt]] = field(default_factory=dict)
    instructions: Mapping[str, str] = field(default_factory=dict)
    strip: Literal["none", "both"] = "none"
    pooling: Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"] = "mean"
    include_prompt: bool = True
    dense: tuple[int, ...] = ()
    steps: tuple[Literal["layer_norm"], ...] = ()
    normalize: bool = True
    max_seq_length: int | None = None
    truncate_dims: tuple[int, ...] | None = None
    truncate_from: int | None = None
    never_sliced: str = ""
    adapters: Mapping[str, Mapping[Role, str]] = field(default_factory=dict)
    first_token: str | None = None
    last_token: str | None = None
    last_token_id: int | None = None
    ends: Literal["asserted", "added", "none"] = "asserted"
    attention: Literal["both", "causal"] | None = None
    forbidden_dtypes: tuple[str, ...] = ()
    own_code: bool = False
    own_modules: tuple[str, ...] = ()
    native: str | None = None
    native_of: tuple[str, ...] = ()
    native_if: Mapping[str, Any] = field(default_factory=dict)
    licence: str = ""
    source: str = ""

    __pydantic_config__: ClassVar[Any] = _FORBID_UNKNOWN

    @property
    def name(self) -> str:
        """How errors call the row: its first repository."""
        return next(iter(self.repositories), "encoder.protocol")

    @property
    def takes_instruction(self) -> bool:
        """Whether any of its prompts has a place for an instruction."""
        return any(
            INSTRUCTION in prompt.prefix for sides in self.prompts.values() for prompt in sides.values()
        )

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """Special tokens that its prompts are written with, such as `<|im_start|>`."""
        prompts = [prompt for sides in self.prompts.values() for prompt in sides.values()]
        written = "".join(prompt.prefix + prompt.suffix for prompt in prompts)
        return tuple(dict.fromkeys(re.findall(r"<\|[^<>|\s]+\|>", written)))

    def has_dim(self, dim: int, full: int) -> bool:
        """Whether the model was trained to be sliced to a dimension."""
        if dim == full or (self.truncate_dims is None and self.truncate_from is None):
            return True
        return dim in (self.truncate_dims or ()) or (
            self.truncate_from is not None and dim >= self.truncate_from
        )


def sides(query: str | Prompt, document: str | Prompt | None = None) -> dict[Role, Prompt]:
    """Prompts of a task's two sides; one prompt is for both."""
    document = query if document is None else document
    both = {Role.QUERY: query, Role.DOCUMENT: document}
    return {role: Prompt(prompt) if isinstance(prompt, str) else prompt for role, prompt in both.items()}


def read_family(given: Mapping[str, Any]) -> Family:
    """A row that a configuration gives.

    Short forms: a prompt may be a text, which is its prefix; a task may have one prompt or adapter for both roles.

    Raises:
        EncoderError: A field is unknown or has a value that it cannot have.
    """
    from pydantic import TypeAdapter, ValidationError

    spelt = dict(given)
    try:
        if "prompts" in spelt:
            spelt["prompts"] = {
                task: _of_roles(value, as_prompt=True) for task, value in _tasks(spelt["prompts"])
            }
        if "adapters" in spelt:
            spelt["adapters"] = {task: _of_roles(value) for task, value in _tasks(spelt["adapters"])}
        if "instructions" in spelt:
            spelt["instructions"] = dict(_tasks(spelt["instructions"]))
        return TypeAdapter(Family).validate_python(spelt)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False)
        )
    except AttributeError:
        wrong = "prompts, instructions and adapters are given by task"
    raise EncoderError(
        f"encoder.protocol: {wrong}; its fields are {', '.join(one.name for one in fields(Family))}"
    ) from None


def _tasks(given: Any) -> list[tuple[str, Any]]:
    return [(canonical_task(task), value) for task, value in given.items()]


def _of_roles(value: Any, *, as_prompt: bool = False) -> Any:
    """{role: value} from one value for both roles or from {role: value}."""
    is_one = isinstance(value, str) or (
        as_prompt and isinstance(value, dict) and not value.keys() & set(Role)
    )
    roles = dict.fromkeys(Role, value) if is_one else value
    if not (as_prompt and isinstance(roles, Mapping)):
        return roles
    return {role: {"prefix": one} if isinstance(one, str) else one for role, one in roles.items()}
