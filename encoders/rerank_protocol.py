"""What a reranker's score is: how a pair is written down, and what of the model's output counts.

Two kinds of models score a (query, document) pair:

    sequence classification   reads the pair as its tokenizer joins the two; a head gives one logit (BGE reranker v2 m3,
                              ms-marco cross-encoders). All of it stands in the repository's files.
    yes/no language model     is asked in words, and the logits of one or two words at the last position are the answer
                              (Qwen3-Reranker, zerank). What it is asked stands in encoders/rerank_families.py.

Source: sentence-transformers 6.2, `cross_encoder/model.py`, for the meaning of each file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from encoders.errors import TaskError, UnsupportedModelError
from encoders.repository import Repository, open_repository
from encoders.rerank_families import FAMILIES, YesNoFamily, find_family

Activation = Literal["Sigmoid", "Identity"]
_ACTIVATIONS: tuple[Activation, ...] = ("Sigmoid", "Identity")
# What sentence-transformers writes for a cross-encoder that takes texts the plain way.
_PLAIN_SETTINGS = {
    "transformer_task": "sequence-classification",
    "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
    "module_output_name": "scores",
    "do_lower_case": False,
}
# `unpad_inputs` is about speed, the length is read.
_OTHER_SETTINGS = ("max_seq_length", "unpad_inputs")
# Tokenizers without a limit say 1e30 or so.
_NO_LIMIT = 10**9


@dataclass(frozen=True)
class RerankProtocol:
    """How one model turns a pair into a score.

    Attributes:
        repository: The model's files and revision.
        family: The prompt of a yes/no language model; None for a sequence-classification head.
        instruction: What the prompt asks for; None where it has no place for that.
        max_seq_length: Tokens of a pair that the model sees, prompt and special tokens included.
        activation: What is applied to the logit.
    """

    repository: Repository
    family: YesNoFamily | None
    instruction: str | None
    max_seq_length: int
    activation: Activation


def resolve_reranker(
    model: str,
    revision: str | None = None,
    *,
    family: str | None = None,
    instruction: str | None = None,
    max_seq_length: int | None = None,
) -> RerankProtocol:
    """Read a reranker's protocol from its repository and from the table of families.

    Args:
        model: A folder, or a Hub id.
        revision: Branch, tag or commit of a Hub repository.
        family: Name of a family of `FAMILIES`, for a yes/no language model under another id than its authors'.
        instruction: In place of the family's default.
        max_seq_length: Tokens of a pair; None leaves it to repository and family.

    Raises:
        ModelNotFoundError: There is no such model.
        TaskError: An instruction was given and the model has no place for one.
        UnsupportedModelError: The model is no reranker that is known, or asks for something that is not done.
    """
    repository = open_repository(model, revision=revision)
    config = repository.json_object("config.json")
    if repository.json("adapter_config.json") is not None:
        raise UnsupportedModelError(
            f"{repository.name} is an adapter (adapter_config.json) on top of another model, which is not done; "
            "merge the two (peft's merge_and_unload) and give the merged model"
        )
    row = find_family(repository.name, family)
    _check_kind(repository, config, row)
    if instruction is not None and (row is None or row.instruction is None):
        raise TaskError(
            f"{repository.name} has no place for an instruction, and {instruction!r} was given; leave it out "
            f"(with one: {', '.join(known.name for known in FAMILIES if known.instruction is not None)})"
        )
    if row is not None:
        _check_modules(repository, "Transformer", "LogitScore")
        _check_words(repository, row)
        return RerankProtocol(
            repository=repository,
            family=row,
            instruction=row.instruction if instruction is None else instruction,
            max_seq_length=_length(repository, config, row.max_seq_length, max_seq_length),
            activation="Sigmoid",
        )
    _check_modules(repository, "Transformer")
    return RerankProtocol(
        repository=repository,
        family=None,
        instruction=None,
        max_seq_length=_length(repository, config, _stated_length(repository), max_seq_length),
        activation=_read_activation(repository, config),
    )


def _check_kind(repository: Repository, config: dict[str, Any], row: YesNoFamily | None) -> None:
    """The architecture must be the family's, or have a head with one label."""
    [architecture, *_] = config.get("architectures") or ["no architecture"]
    if row is not None:
        # `auto_map` is no matter here: the family says all that the repository's own code does.
        if config.get("model_type") != row.model_type or not architecture.endswith("ForCausalLM"):
            raise UnsupportedModelError(
                f"{repository.name} is {architecture} ({config.get('model_type')}), and the family {row.name!r} is a "
                f"language model ({row.model_type}, ...ForCausalLM)"
            )
        return
    if not architecture.endswith("ForSequenceClassification"):
        raise UnsupportedModelError(
            f"{repository.name} is {architecture}, which is no sequence classification; if it is a yes/no language "
            f"model, name its family: {', '.join(known.name for known in FAMILIES)}"
        )
    if len(config.get("id2label") or ("two", "labels")) != 1:
        raise UnsupportedModelError(
            f"{repository.name}: its head has other than one label (config.json: id2label), so its output is no score "
            "of relevance; give a reranker with one label"
        )
    if config.get("auto_map"):
        raise UnsupportedModelError(
            f"{repository.name}: config.json asks for Python code of the repository's own (auto_map), which is not run "
            "for rerankers; give a repository that needs none"
        )


def _check_modules(repository: Repository, *expected: str) -> None:
    """`modules.json` may say no more than what is done."""
    listed = repository.json("modules.json")
    if listed is None:
        return
    kinds = tuple(str(module.get("type")).rpartition(".")[2] for module in listed)
    if kinds != expected or listed[0].get("path"):
        raise UnsupportedModelError(
            f"{repository.name}: modules.json lists {', '.join(kinds) or 'nothing'}; only {', '.join(expected)} is "
            "done, with the transformer in the repository's root"
        )


def _check_words(repository: Repository, row: YesNoFamily) -> None:
    """Where the repository says itself which logits count, they must be the family's."""
    for module in repository.json("modules.json") or []:
        if not str(module.get("type")).endswith(".LogitScore"):
            continue
        config = repository.json_object(str(module.get("path")), "config.json")
        stated = (config.get("true_token_id"), config.get("false_token_id"))
        ours = (row.yes.token_id, row.no.token_id if row.no else None)
        if stated != ours:
            raise UnsupportedModelError(
                f"{repository.name}: its LogitScore takes the logits of the tokens {stated}, and the family "
                f"{row.name!r} those of {ours}; name the family that the model is of"
            )


def _stated_length(repository: Repository) -> int | None:
    """What sentence-transformers' settings and the tokenizer say of a pair's length."""
    settings = repository.json_object("sentence_bert_config.json")
    unknown = {
        key: value
        for key, value in settings.items()
        if key not in _OTHER_SETTINGS and value not in (None, {}, [], _PLAIN_SETTINGS.get(key))
    }
    if unknown:
        raise UnsupportedModelError(
            f"{repository.name}: sentence_bert_config.json asks for {unknown!r}; only {_PLAIN_SETTINGS!r} is done"
        )
    tokenizer = repository.json_object("tokenizer_config.json")
    if not settings and (
        tokenizer.get("chat_template") or (repository.path / "chat_template.jinja").is_file()
    ):
        raise UnsupportedModelError(
            f"{repository.name}: its tokenizer has a chat template, and nothing says whether pairs go through it; "
            "a sentence_bert_config.json with modality_config says so"
        )
    for length in (settings.get("max_seq_length"), tokenizer.get("model_max_length")):
        if length is not None and 0 < length < _NO_LIMIT:
            return int(length)
    return None


def _length(repository: Repository, config: dict[str, Any], stated: int | None, wanted: int | None) -> int:
    """What the caller wants, else the least of what is stated and what the model has positions for."""
    positions = config.get("max_position_embeddings")
    allowed = min((length for length in (stated, positions) if length is not None), default=None)
    length = allowed if wanted is None else wanted
    if length is None:
        raise UnsupportedModelError(
            f"{repository.name} does not say how many tokens it takes; give max_seq_length"
        )
    if length < 1 or (positions is not None and length > positions):
        raise UnsupportedModelError(
            f"{repository.name} has {positions} positions, so a pair cannot have {length} tokens; "
            f"give max_seq_length from 1 to {positions}"
        )
    return int(length)


def _read_activation(repository: Repository, config: dict[str, Any]) -> Activation:
    """Where sentence-transformers looks for it, in that order; one label without any word on it is a sigmoid."""
    settings = repository.json_object("config_sentence_transformers.json")
    prompts = settings.get("prompts") or {}
    if prompts.get(settings.get("default_prompt_name")):
        raise UnsupportedModelError(
            f"{repository.name}: config_sentence_transformers.json puts the prompt "
            f"{prompts[settings['default_prompt_name']]!r} before every query, which is not done"
        )
    path = str(
        settings.get("activation_fn")
        or (config.get("sentence_transformers") or {}).get("activation_fn")
        or config.get("sbert_ce_default_activation_function")
        or "torch.nn.modules.activation.Sigmoid"
    )
    for known in _ACTIVATIONS:
        if path.startswith("torch.nn.") and path.endswith(f".{known}"):
            return known
    raise UnsupportedModelError(
        f"{repository.name}: its scores go through {path}; only {', '.join(_ACTIVATIONS)} of torch.nn are done"
    )
