"""Repositories that bring Python code for what transformers and peft do by themselves, known by their model type.

Their code builds a well-known backbone under another name, and chooses adapters by task. Both are done natively here
and none of that code runs; what their files leave unclear is refused, never guessed.

Source: jinaai/jina-embeddings-v5-text-nano at 8a7f00aac812071b69403df470f1038ec85f8925 (config.json, custom_st.py,
modeling_jina_embeddings_v5.py); the small one's configuration class is Qwen3's; `is_decoder` tells the two apart in
vLLM too. jinaai/jina-embeddings-v3-hf at d18862d9a48706220815554fac3ebb4dfa46fc28 (one folder for each adapter).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from encoders.errors import UnsupportedModelError

_JINA_V5 = "jina_embeddings_v5"
_JINA_V3 = "jina_embeddings_v3"

# Their own code pools within the transformer module, and divides by the norm.
_POOLING = {_JINA_V5: "lasttoken"}

# Only one of the two backbones has these settings.
_ONLY_QWEN3 = ("use_sliding_window", "max_window_layers")
_ONLY_EUROBERT = ("mask_token_id", "classifier_pooling")

# In which folder the adapter of a task, or of one side of it, is.
_JINA_V3_FOLDERS = {
    "retrieval/query": "retrieval_query",
    "retrieval/document": "retrieval_passage",
    "text-matching": "text_matching",
    "classification": "classification",
    "clustering": "separation",
}


def native_architecture(model: str, config: Mapping[str, Any]) -> str | None:
    """The name in transformers of the backbone that a repository hides behind code of its own; None where it does not.

    Raises:
        UnsupportedModelError: Its config.json does not say clearly which backbone it is.
    """
    if config.get("model_type") != _JINA_V5:
        return None
    # A decoder is Qwen3, causal; what says that it is none is EuroBERT, where each token sees all others.
    found = {key: config.get(key, "(absent)") for key in ("is_decoder", "head_dim")}
    if config.get("is_decoder") is False and not any(key in config for key in _ONLY_QWEN3):
        return "eurobert"
    if config.get("is_decoder", True) is True and "head_dim" in config:
        foreign = [key for key in _ONLY_EUROBERT if key in config]
        if not foreign:
            return "qwen3"
        found |= {key: config[key] for key in foreign}
    raise UnsupportedModelError(
        f"{model}: config.json ({_JINA_V5}) does not say which backbone it is: "
        + ", ".join(f"{key}={value!r}" for key, value in found.items())
        + "; known: is_decoder=false without Qwen3's own settings (EuroBERT), and head_dim without EuroBERT's (Qwen3); "
        "a repository of the same model with an adapter merged says it plainly"
    )


def own_pooling(config: Mapping[str, Any]) -> str | None:
    """How such a repository's own transformer module pools, before it normalises."""
    return _POOLING.get(str(config.get("model_type")))


def own_adapters(model: str, config: Mapping[str, Any]) -> dict[str, str]:
    """The folder of the adapter of each task, or of each `task/role`, that the repository itself brings.

    Raises:
        UnsupportedModelError: It should bring some, and does not say for which tasks.
    """
    if config.get("model_type") == _JINA_V3:
        return dict(_JINA_V3_FOLDERS)
    if config.get("model_type") != _JINA_V5:
        return {}
    tasks = config.get("task_names")
    if not isinstance(tasks, list) or not tasks or not all(isinstance(task, str) for task in tasks):
        raise UnsupportedModelError(
            f"{model}: config.json ({_JINA_V5}) names its adapters in task_names, and that is {tasks!r}; "
            "a list of tasks is needed"
        )
    return {task: f"adapters/{task}" for task in tasks}


def native_config(model: str, config: Mapping[str, Any]) -> Any:
    """The configuration of that backbone in transformers; None where the repository's own will do.

    Raises:
        UnsupportedModelError: Its config.json does not say clearly which backbone it is.
    """
    from transformers import AutoConfig

    architecture = native_architecture(model, config)
    if architecture is None:
        return None

    # What names the repository's code, and what transformers takes from the weights themselves.
    left_out = {"model_type", "auto_map", "architectures", "task_names", "torch_dtype", "dtype"}
    kept = {key: value for key, value in config.items() if key not in left_out}
    if "rope_theta" in kept:  # older files have it and rope_scaling where there is one object now
        scaling = kept.pop("rope_scaling", None) or {"rope_type": "default"}
        kept["rope_parameters"] = scaling | {"rope_theta": kept.pop("rope_theta")}
    return AutoConfig.for_model(architecture, **kept)
