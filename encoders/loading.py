"""A repository's weights into a transformers model, with every silent fallback of loading made loud.

transformers fills weights that it does not find with random numbers and goes on; here that is an error.
Weights are safetensors only. No code of the repository runs unless the configuration says so.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from encoders.errors import ModelNotFoundError, UnsupportedModelError
from encoders.protocol import Protocol

# Parts of an architecture that come after the last hidden state, so their absence changes no vector.
_UNUSED_PARTS = ("pooler.",)


def load_backbone(protocol: Protocol, dtype: torch.dtype) -> Any:
    """The backbone in evaluation mode, on the CPU.

    Raises:
        ModelNotFoundError: There are no safetensors weights.
        UnsupportedModelError: The architecture is unknown, or the weights do not fill it.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding
    from transformers.utils import logging

    logging.disable_progress_bar()  # one bar an actor would bury the job's own
    model = protocol.repository.name
    remote_code = protocol.options.trust_remote_code
    repository = protocol.repository.on_this_machine(weights=True, remote_code=remote_code)
    folder = repository.path / protocol.transformer_folder
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=remote_code)
        # An encoder-decoder's encoder is what gives embeddings (T5, mT5, UMT5).
        auto = AutoModelForTextEncoding if config.is_encoder_decoder else AutoModel
        backbone, report = auto.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=remote_code,
            output_loading_info=True,
        )
    except OSError as error:
        raise ModelNotFoundError(
            f"{model}: no safetensors weights in {folder}; weights in pickle files are never loaded ({error})"
        ) from error
    except (ValueError, ImportError, KeyError) as error:
        raise UnsupportedModelError(f"{model} cannot be loaded: {error}") from error
    missing = [key for key in report["missing_keys"] if not key.startswith(_UNUSED_PARTS)]
    if missing or report["mismatched_keys"]:
        wrong = [*missing, *(str(key) for key in report["mismatched_keys"])]
        raise UnsupportedModelError(
            f"{model}: its weights do not fill {type(backbone).__name__}: {len(wrong)} are missing or of another shape "
            f"({', '.join(sorted(wrong)[:3])}, ...), and random numbers would stand in for them"
        )
    _check_hidden_size(protocol, backbone)
    if hasattr(config, "use_cache"):
        backbone.config.use_cache = False  # keys and values of past tokens serve generation only
    return backbone.eval().requires_grad_(False)


def _check_hidden_size(protocol: Protocol, backbone: Any) -> None:
    stated, real = protocol.pooling.token_dim, getattr(backbone.config, "hidden_size", None)
    if stated is not None and real is not None and stated != real:
        raise UnsupportedModelError(
            f"{protocol.repository.name}: the pooling says {stated} dimensions, the backbone has {real}"
        )
    parameters = inspect.signature(backbone.forward).parameters
    if "attention_mask" not in parameters:
        raise UnsupportedModelError(
            f"{protocol.repository.name}: {type(backbone).__name__} takes no attention mask, so padding would show"
        )
