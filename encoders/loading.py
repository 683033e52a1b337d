"""A repository's weights into a transformers model, with every silent fallback of loading made loud.

transformers fills weights that it does not find with random numbers and goes on; here that is an error.
Weights are safetensors only. No code of the repository runs unless the configuration says so.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from encoders.allocator import keep_kernels
from encoders.dimensions import pooled_dim
from encoders.errors import ModelNotFoundError, UnsupportedModelError
from encoders.native import native_config
from encoders.protocol import Protocol
from encoders.remote_code import check_code
from encoders.repository import no_safetensors

# Parts of an architecture that come after the last hidden state, so their absence changes no vector.
_UNUSED_PARTS = ("pooler.",)
# Encoder-decoders whose encoder half gives embeddings; transformers would load both halves.
_ENCODER_HALVES = ("t5", "mt5", "umt5")
# What the states are taken before.
_HEADS = ("lm_head.", "pooler.", "classifier.")
# Of safetensors' number formats those that a backbone may be loaded in.
_STORED = {"BF16": torch.bfloat16, "F16": torch.float16}


def load_backbone(protocol: Protocol, dtype: torch.dtype) -> Any:
    """The backbone in evaluation mode, on the CPU.

    Raises:
        ModelNotFoundError: There are no safetensors weights.
        UnsupportedModelError: The architecture is unknown, or the weights do not fill it.
    """
    model = protocol.repository.name
    allowed = protocol.options.trust_remote_code
    remote_code = bool(allowed)
    repository = protocol.repository.on_this_machine(weights=True, remote_code=remote_code)
    folder = repository.path / protocol.transformer_folder
    code_revision = check_code(repository, protocol.transformer_folder, allowed) if allowed else None
    said = repository.json_object(protocol.transformer_folder, "config.json")
    try:
        native = native_config(model, said, own_code=remote_code)
    except (ValueError, KeyError) as error:
        raise UnsupportedModelError(f"{model} cannot be loaded: {error}") from error
    backbone, unexpected = load_model(
        model, folder, dtype, config=native, trust_remote_code=remote_code, code_revision=code_revision
    )
    if native is not None:
        _check_nothing_left(model, backbone, unexpected)
    _check_fit(protocol, backbone)
    if getattr(backbone.config, "is_causal", None) is False and not remote_code:
        look_both_ways(model, backbone)
    _check_attention(protocol, backbone)
    return backbone


def load_model(
    name: str,
    folder: Path,
    dtype: torch.dtype,
    auto: Any = None,
    *,
    config: Any = None,
    trust_remote_code: bool = False,
    code_revision: str | None = None,
) -> tuple[Any, Collection[str]]:
    """A model with all of its weights, in evaluation mode, on the CPU; and the weights that it has no use for.

    Args:
        name: Of its repository.
        folder: With its config.json and weights.
        dtype: To load them in.
        auto: The class of transformers that finds the architecture; None is the one for a backbone alone.
        config: In place of the folder's own.
        trust_remote_code: Whether the code may run that the folder asks for (see `remote_code`).
        code_revision: Commit of what is in another repository.

    Raises:
        ModelNotFoundError: There are no safetensors weights.
        UnsupportedModelError: The architecture is unknown, or the weights do not fill it.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding
    from transformers.utils import logging

    keep_kernels()
    logging.disable_progress_bar()  # one bar an actor would bury the job's own
    unused = _UNUSED_PARTS if auto is None else ()
    try:
        code = {"trust_remote_code": trust_remote_code, "code_revision": code_revision}
        config = config or AutoConfig.from_pretrained(folder, **code)
        if auto is None:
            auto = AutoModelForTextEncoding if config.model_type in _ENCODER_HALVES else AutoModel
        model, report = auto.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            **code,
            output_loading_info=True,
        )
    except OSError as error:
        raise ModelNotFoundError(f"{no_safetensors(name)} ({error})") from error
    except (ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        raise UnsupportedModelError(f"{name} cannot be loaded: {error}") from error
    missing = [key for key in report["missing_keys"] if not key.startswith(unused)]
    wrong = sorted(str(key) for key in (*missing, *report["mismatched_keys"]))
    if wrong:
        raise UnsupportedModelError(
            f"{name}: its weights do not fill {type(model).__name__}: {len(wrong)} are missing or of another shape "
            f"({', '.join(wrong[:3])}, ...), and random numbers would stand in for them"
        )
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # keys and values of past tokens serve generation only
    return model.eval().requires_grad_(False), report["unexpected_keys"]


def stored_dtype(protocol: Protocol) -> torch.dtype:
    """The narrowest format that holds a repository's weights as they are stored, once they are on this machine."""
    from safetensors import safe_open

    formats = set()
    for path in (protocol.repository.path / protocol.transformer_folder).glob("*.safetensors"):
        with safe_open(path, framework="pt") as weights:
            formats |= {weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118, it is no dict
    floats = {one for one in formats if one.startswith(("F", "BF"))}
    return _STORED.get(floats.pop(), torch.float32) if len(floats) == 1 else torch.float32


def _check_nothing_left(model: str, backbone: Any, unexpected: Collection[str]) -> None:
    """A class that was chosen here, rather than named by the repository, must be the one that all weights are for."""
    left = sorted(key for key in unexpected if not key.startswith(_HEADS))
    if left:
        raise UnsupportedModelError(
            f"{model}: {len(left)} of its weights are for none of {type(backbone).__name__}'s modules "
            f"({', '.join(left[:3])}, ...), so it is another backbone than its config.json says"
        )


def _check_fit(protocol: Protocol, backbone: Any) -> None:
    """What the small files said must hold for the real backbone."""
    model, kind, config = protocol.repository.name, type(backbone).__name__, backbone.config
    real = getattr(config, "hidden_size", None)
    stated = pooled_dim(protocol.pooling, protocol.steps, real)
    if stated is not None and real is not None and stated != real:
        raise UnsupportedModelError(f"{model}: the pooling says {stated} dimensions, the backbone has {real}")
    check_positions(model, backbone, protocol.max_seq_length)
    if "attention_mask" not in inspect.signature(backbone.forward).parameters:
        raise UnsupportedModelError(f"{model}: {kind} takes no attention mask, so padding would show")
    if getattr(config, "attention_type", None) == "block_sparse":
        raise UnsupportedModelError(
            f"{model}: {kind} attends in blocks until it meets its first short text, and to everything from then on, "
            "so a vector would depend on the texts before it; save it with attention_type=original_full"
        )
    if getattr(config, "is_encoder_decoder", False) and config.model_type not in _ENCODER_HALVES:
        raise UnsupportedModelError(
            f"{model}: {kind} is an encoder-decoder; of these only {', '.join(_ENCODER_HALVES)} are done"
        )


def look_both_ways(model: str, backbone: Any) -> None:
    """Make a causal class's tokens see all others, as `is_causal: false` in its config.json asks.

    transformers then leaves out the causal mask, but a batch without padding gets no mask at all, and its attention
    goes by the module's own `is_causal`, which stays true: the text alone and the padded one would differ.

    Raises:
        UnsupportedModelError: The class goes on looking one way.
    """
    for module in backbone.modules():
        if getattr(module, "is_causal", False) is True:
            module.is_causal = False
    if _directions(backbone) != {"both"}:
        raise UnsupportedModelError(
            f"{model}: config.json says is_causal=false, and {type(backbone).__name__} goes on with causal "
            "attention, so every vector would be a wrong one; give a repository of a bidirectional class, or "
            "read its own code and allow it for a pinned revision (encoder.trust_remote_code)"
        )


def _check_attention(protocol: Protocol, backbone: Any) -> None:
    """A backbone that sees more or less of a text than the model's does gives plausible vectors."""
    family, config = protocol.family, backbone.config
    says = f"the row of {family.name}" if family else ""
    wanted = family.attention if family else None
    if wanted is None and getattr(config, "use_bidirectional_attention", False):
        says, wanted = "config.json (use_bidirectional_attention)", "both"
    if wanted is None:
        return
    found = _directions(backbone)
    if found != {wanted}:
        raise UnsupportedModelError(
            f"{protocol.repository.name}: attention of {type(backbone).__name__} is {' or '.join(sorted(found))}, and "
            f"{says} says {wanted}; so it is another model, or config.json lacks what tells the class "
            "(is_causal, use_bidirectional_attention): fetch it anew, or name the model's own row (encoder.protocol)"
        )


@torch.no_grad()
def _directions(backbone: Any) -> set[str]:
    """How a first token sees those behind it, `both` ways or `causal`: in a text alone, and in one that is padded."""
    directions = set()
    own_code = not type(backbone).__module__.startswith("transformers.")
    for length, mask in ((4, torch.ones(1, 4) if own_code else None), (5, torch.tensor([[1, 1, 1, 1, 0]]))):
        one = torch.arange(1, length + 1)[None]
        other = one.clone()
        other[0, 3] = 0
        before, after = (
            backbone(input_ids=ids, attention_mask=mask).last_hidden_state[0, 0] for ids in (one, other)
        )
        directions.add("causal" if torch.equal(before, after) else "both")
    return directions


def check_positions(name: str, model: Any, max_seq_length: int) -> None:
    """Refuse a length for which a loaded model has no positions.

    Raises:
        UnsupportedModelError: It has fewer.
    """
    positions = _num_positions(model)
    if positions is not None and max_seq_length > positions:
        raise UnsupportedModelError(
            f"{name}: {type(model).__name__} takes {positions} tokens, and max_seq_length is {max_seq_length}; "
            f"give max_seq_length up to {positions}"
        )


def _num_positions(backbone: Any) -> int | None:
    """Tokens that a table of learned positions has room for; None where positions are computed.

    RoBERTa's family counts positions from behind the padding token's id, so its tables are that much longer.
    """
    for module in backbone.modules():
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, torch.nn.Embedding):
            offset = getattr(module, "padding_idx", None)
            return table.num_embeddings - (offset + 1 if isinstance(offset, int) else 0)
    return None
