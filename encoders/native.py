"""Repositories that bring Python code for what transformers and peft do by themselves, known by their model type.

Their code builds a well-known backbone under another name, and chooses adapters by task. Both are done natively here
and none of that code runs; what their files leave unclear is refused, never guessed.

Source: jinaai/jina-embeddings-v5-text-nano at 8a7f00aac812071b69403df470f1038ec85f8925 (config.json, custom_st.py,
modeling_jina_embeddings_v5.py); the small one's configuration class is Qwen3's; `is_decoder` tells the two apart in
vLLM too. jinaai/jina-embeddings-v3-hf at d18862d9a48706220815554fac3ebb4dfa46fc28 (one folder for each adapter).
Alibaba-NLP/new-impl, modeling.py, of the GTE models (transformers' GteModel takes its weights under their old names).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from encoders.errors import UnsupportedModelError

_JINA_V5 = "jina_embeddings_v5"
_JINA_V3 = "jina_embeddings_v3"
_NEW = "new"  # what the GTE models call themselves
_NOMIC = "nomic_bert"

# Their own code pools within the transformer module, and divides by the norm.
_POOLING = {_JINA_V5: "lasttoken"}

# Only one of the two backbones has these settings.
_ONLY_QWEN3 = ("use_sliding_window", "max_window_layers")
_ONLY_EUROBERT = ("mask_token_id", "classifier_pooling")

# Settings of the GTE models' own code for which GteModel computes the same; what is not given is the first of them.
_GTE_ALONE: Mapping[str, tuple[Any, ...]] = {
    "position_embedding_type": ("rope",),
    "layer_norm_type": ("layer_norm",),
    "logn_attention_scale": (False, None),
    "pack_qkv": (True,),
}

# GPT-2's names for sizes, which Nomic's older files have, and transformers' own.
_NOMIC_NAMES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
    "rotary_emb_base": "rope_theta",
}

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
    if config.get("model_type") in (_NEW, "gte"):
        _check_gte(model, config)
        return "gte" if config["model_type"] == _NEW else None
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


def native_config(model: str, config: Mapping[str, Any], *, own_code: bool = False) -> Any:
    """The configuration of that backbone in transformers; None where the repository's own will do.

    Args:
        model: Its name, for errors.
        config: Its config.json.
        own_code: Whether the repository's own code runs where there is a choice.

    Raises:
        UnsupportedModelError: Its config.json does not say clearly which backbone it is.
    """
    from transformers import AutoConfig

    kind = config.get("model_type")
    if own_code and kind != _JINA_V5:
        return None
    architecture = _NOMIC if kind == _NOMIC and "n_embd" in config else native_architecture(model, config)
    if architecture is None:
        return None

    # What names the repository's code, and what transformers takes from the weights themselves.
    left_out = {"model_type", "auto_map", "architectures", "task_names", "torch_dtype", "dtype"}
    kept = {key: value for key, value in config.items() if key not in left_out}
    if kind == _NOMIC:
        renamed = {_NOMIC_NAMES[key]: kept.pop(key) for key in _NOMIC_NAMES if key in kept}
        kept |= renamed | {"hidden_act": "silu"}  # its gate is always SwiGLU's
        kept.pop("rope_parameters", None)  # says no more than the base does
    if "rope_theta" in kept:  # older files have it and rope_scaling where there is one object now
        scaling = kept.pop("rope_scaling", None) or {"rope_type": "default"}
        theta = kept.pop("rope_theta")
        kept["rope_parameters"] = {"rope_theta": theta} | (
            _gte_scaling(kept, theta, scaling) if kind == _NEW else scaling
        )
    return AutoConfig.for_model(architecture, **kept)


def _check_gte(model: str, config: Mapping[str, Any]) -> None:
    wrong = {
        key: config[key] for key, allowed in _GTE_ALONE.items() if config.get(key, allowed[0]) not in allowed
    }
    scaling = (config.get("rope_scaling") or {}) if config["model_type"] == _NEW else {}
    if scaling and (scaling.get("type") != "ntk" or scaling.get("mixed_b") is not None):
        wrong["rope_scaling"] = scaling
    if wrong:
        asked = ", ".join(f"{key}={value!r}" for key, value in wrong.items())
        raise UnsupportedModelError(
            f"{model}: config.json asks for {asked}, for which transformers' GteModel is not known to give the same as "
            "the repository's own code; read that code and allow it for a pinned revision (encoder.trust_remote_code)"
        )


def _gte_scaling(config: Mapping[str, Any], theta: float, scaling: Mapping[str, Any]) -> dict[str, Any]:
    """Their fixed NTK scaling: a larger base, and every frequency divided by one number, as `linear` scaling does it.

    Source: Alibaba-NLP/new-impl, NTKScalingRotaryEmbedding without mixed_b.
    """
    if scaling.get("type") != "ntk":
        return dict(scaling)
    factor = float(scaling["factor"])
    head_dim = int(config["hidden_size"]) // int(config["num_attention_heads"])
    return {
        "rope_type": "linear",
        "factor": factor ** (2 / head_dim),
        "rope_theta": theta * factor,
    }
