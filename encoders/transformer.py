"""What a repository's files say of its transformer: how long a text may be, its case, and what is not done.

Some files make other libraries do something else than run the architecture that `config.json` names: code of the
repository's own, an adapter on top, a chat template around every text. To go on without it gives plausible vectors
that are not the model's, so each of these is refused here, before any weights are fetched.

Source: sentence-transformers 6.2, `base/modules/transformer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from encoders.errors import UnsupportedModelError
from encoders.native import native_architecture
from encoders.remote_code import FILES, check_code
from encoders.repository import Repository

# Older repositories name the file after the architecture.
_FILES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
# `unpad_inputs` is about speed.
_KNOWN = {
    "max_seq_length",
    "do_lower_case",
    "transformer_task",
    "modality_config",
    "module_output_name",
    "unpad_inputs",
}
# Tokenizers without a limit say 1e30 or so.
_NO_LIMIT = 10**9


@dataclass(frozen=True)
class Transformer:
    """What the files say.

    Attributes:
        folder: Where in the repository the backbone is; "" is its root.
        max_seq_length: Tokens of a text that the model sees.
        do_lower_case: Whether texts are lower-cased whatever the tokenizer does.
        hidden_size: Width of the token states; None where `config.json` does not say.
        stated_length: The length that the files name, which may not be what is asked of the model.
    """

    folder: str
    max_seq_length: int
    do_lower_case: bool
    hidden_size: int | None
    stated_length: int | None = field(default=None, compare=False)


def read_transformer(
    repository: Repository,
    folder: str,
    *,
    max_seq_length: int | None,
    trust_remote_code: Sequence[str],
    longest: int | None = None,
    native: bool = False,
) -> Transformer:
    """Read the transformer's own files.

    Args:
        repository: The model's files.
        folder: Where in the repository the backbone is.
        max_seq_length: What the configuration wants instead of the repository's length.
        trust_remote_code: Repositories whose code may run.
        longest: Tokens that the model was made for, where the files do not say.
        native: Whether a class of transformers stands in for the backbone's own code.

    Raises:
        UnsupportedModelError: They ask for something that is not done, or leave something open.
    """
    config = repository.json_object(folder, "config.json")
    tokenizer = repository.json_object(folder, "tokenizer_config.json")
    settings = _read_settings(repository, folder)
    if repository.json(folder, "adapter_config.json") is not None:
        raise UnsupportedModelError(
            f"{repository.name} is an adapter (adapter_config.json) on top of another model; give that model as "
            "encoder.model, and this adapter to the tasks that take it: encoder.adapters"
        )
    hides = native or (not trust_remote_code and native_architecture(repository.name, config) is not None)
    check_code(repository, folder, trust_remote_code, FILES[1:] if hides else FILES)
    widths = [config[key] for key in ("hidden_size", "d_model", "dim", "n_embd") if key in config]
    return Transformer(
        folder=folder,
        max_seq_length=_max_seq_length(repository, config, tokenizer, settings, max_seq_length, longest),
        do_lower_case=bool(settings.get("do_lower_case", False)),
        hidden_size=widths[0] if widths else None,
        stated_length=settings.get("max_seq_length"),
    )


def _read_settings(repository: Repository, folder: str) -> dict[str, Any]:
    for file in _FILES:
        settings = repository.json_object(folder, file)
        if not settings:
            continue
        # Hugging Face libraries write these when they say nothing.
        unknown = {
            key for key, value in settings.items() if key not in _KNOWN and value not in (None, {}, [])
        }
        if unknown:
            raise UnsupportedModelError(
                f"{repository.name}: {file} asks for {', '.join(sorted(unknown))}; known: "
                + ", ".join(sorted(_KNOWN))
            )
        if settings.get("transformer_task", "feature-extraction") != "feature-extraction":
            raise UnsupportedModelError(
                f"{repository.name}: {file} loads the model for {settings['transformer_task']!r}; "
                "only 'feature-extraction' gives embeddings"
            )
        _check_text_method(repository, file, settings)
        return settings
    return {}


def _check_text_method(repository: Repository, file: str, settings: Mapping[str, Any]) -> None:
    """Newer files say which method and output texts go through; only the plain way is done."""
    plain = {"method": "forward", "method_output_name": "last_hidden_state"}
    ways = settings.get("modality_config") or {"text": plain}
    output = settings.get("module_output_name", "token_embeddings")
    if "message" in ways:
        raise UnsupportedModelError(
            f"{repository.name}: {file} puts the tokenizer's chat template around every text (modality_config: "
            "message), which is not done"
        )
    if ways.get("text") != plain or output != "token_embeddings":
        raise UnsupportedModelError(
            f"{repository.name}: {file} takes texts through {ways.get('text')!r} to {output!r}; "
            f"only {plain!r} to 'token_embeddings' is done"
        )


def _max_seq_length(
    repository: Repository,
    config: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    settings: Mapping[str, Any],
    wanted: int | None,
    longest: int | None,
) -> int:
    """What the configuration wants, else what the repository states, else what tokenizer, backbone and row allow."""
    # Nomic's files have both, and the first is what its code goes by.
    positions = config.get("n_positions") or config.get("max_position_embeddings")
    limits = [tokenizer.get("model_max_length", tokenizer.get("max_len")), positions]
    allowed = min(
        (int(limit) for limit in limits if limit is not None and 0 < limit < _NO_LIMIT), default=None
    )
    if wanted is None:
        wanted = settings.get("max_seq_length")
    if wanted is None:
        wanted = min((limit for limit in (allowed, longest) if limit is not None), default=None)
    if wanted is None:
        raise UnsupportedModelError(
            f"{repository.name} does not say how many tokens it takes (max_seq_length, model_max_length, "
            "max_position_embeddings are all absent); give encoder.max_seq_length"
        )
    if wanted < 1 or (positions is not None and wanted > positions > 0):
        raise UnsupportedModelError(
            f"{repository.name} has {positions} positions, so a text cannot have {wanted} tokens; "
            f"give encoder.max_seq_length from 1 to {allowed}"
        )
    return int(wanted)
