"""Adapters that peft itself writes, and repositories that bring their own, in the real file layouts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from transformers import (
    AutoModel,
    EuroBertConfig,
    EuroBertModel,
    JinaEmbeddingsV3Config,
    JinaEmbeddingsV3Model,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
)

from tests.encoders.repositories import (
    MAX_TOKENS,
    MEAN,
    random_model,
    sizes_for,
    template,
    write_json,
    write_modules,
    write_tokenizer,
)

V5_TASKS = ("retrieval", "text-matching", "clustering", "classification")
V5_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
V3_FOLDERS = ("retrieval_query", "retrieval_passage", "text_matching", "classification", "separation")
V3_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "word_embeddings")


def write_adapter(folder: Path, backbone: PreTrainedModel, seed: int = 0, **settings: Any) -> Path:
    """An adapter as peft's save_pretrained writes it, with matrices large enough to show.

    Args:
        folder: Where to.
        backbone: What it is for; it stays as it is.
        seed: Of the matrices.
        settings: Of LoraConfig.
    """
    adapted = get_peft_model(deepcopy(backbone), LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            drawn = torch.randn(parameter.shape, generator=generator)
            # A magnitude scales each row of a weight; the others are narrow matrices.
            parameter.data = (1 + 0.2 * drawn).abs() if "magnitude" in name else 0.15 * drawn
    adapted.save_pretrained(str(folder))
    return folder


def unmerged(backbone: PreTrainedModel, folder: Path) -> torch.nn.Module:
    """Peft's own model with an adapter beside the weights; the backbone stays as it is."""
    return PeftModel.from_pretrained(deepcopy(backbone), str(folder)).eval()


def write_jina_v5(
    folder: Path,
    size: str,
    tasks: tuple[str, ...] = V5_TASKS,
    *,
    length: int = MAX_TOKENS,
    end_id: int = 0,
    **config: Any,
) -> Path:
    """A repository in the layout of jinaai/jina-embeddings-v5-text-{small,nano}, weights in bfloat16 as there.

    Args:
        folder: Where to.
        size: small or nano.
        tasks: That have an adapter.
        length: Tokens that it takes.
        end_id: The least id of nano's <|end_of_text|>; the real one's is 128001.
        config: What config.json says otherwise; "absent" leaves a key out.
    """
    tokenizer = write_tokenizer(folder, "bytes", eos=False, model_max_length=length)
    if size == "nano":
        tokenizer = _end_texts(folder, tokenizer, end_id)
    shared = {
        "architectures": ["JinaEmbeddingsV5Model"],
        "auto_map": {
            "AutoConfig": "configuration_jina_embeddings_v5.JinaEmbeddingsV5Config",
            "AutoModel": "modeling_jina_embeddings_v5.JinaEmbeddingsV5Model",
        },
        "model_type": "jina_embeddings_v5",
        "task_names": list(tasks),
        **sizes_for(tokenizer),
        "max_position_embeddings": length,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "rope_scaling": None,
        "eos_token_id": tokenizer.eos_token_id,
        "transformers_version": "4.57.0",
    }
    own: dict[str, Any] = {
        "small": {
            "head_dim": 8,
            "num_key_value_heads": 2,
            "rope_theta": 3500000,
            "rms_norm_eps": 1e-06,
            "max_window_layers": 2,
            "sliding_window": None,
            "use_sliding_window": False,
            "use_cache": True,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
        },
        "nano": {
            "is_decoder": False,
            "num_key_value_heads": 4,
            "rope_theta": 1000000,
            "rms_norm_eps": 1e-05,
            "bos_token_id": 1,
            "mask_token_id": 2,
            "hidden_dropout": 0.0,
            "pretraining_tp": 1,
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
        },
    }[size]
    backbone = random_model(native_backbone, shared | own)
    backbone.to(torch.bfloat16).save_pretrained(folder)
    content = {key: value for key, value in (shared | own | config).items() if value != "absent"}
    write_json(folder / "config.json", content)
    write_json(
        folder / "modules.json",
        [{"idx": 0, "name": "transformer", "path": "", "type": "custom_st.Transformer", "kwargs": ["task"]}],
    )
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": {"query": "Query: ", "document": "Document: "}, "default_prompt_name": "document"},
    )
    for seed, task in enumerate(tasks, start=1):
        write_adapter(
            folder / "adapters" / task,
            backbone,
            seed,
            r=4,
            lora_alpha=4,
            lora_dropout=0.1,
            init_lora_weights="gaussian",
            target_modules=list(V5_TARGETS),
            task_type="FEATURE_EXTRACTION",
        )
    return folder


def _end_texts(folder: Path, tokenizer: PreTrainedTokenizerFast, end_id: int) -> PreTrainedTokenizerFast:
    """The same tokenizer with <|end_of_text|> behind every text, at an id from `end_id` up."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    vocabulary |= {f"<unused {number}>": number for number in range(len(vocabulary), end_id)}
    backend = Tokenizer.from_str(json.dumps(content))
    backend.add_special_tokens(["<|end_of_text|>"])
    backend.post_processor = template(backend, "$A <|end_of_text|>")
    ending = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|end_of_text|>",
        pad_token="<|endoftext|>",
        model_max_length=tokenizer.model_max_length,
        model_input_names=["input_ids", "attention_mask"],
    )
    ending.save_pretrained(folder)
    return ending


def native_backbone(config: Mapping[str, Any]) -> PreTrainedModel:
    """The class that such a config.json means, spelled out anew, with random weights."""
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes = {
        key: config[key] for key in (*kept, "num_key_value_heads", "rms_norm_eps", "max_position_embeddings")
    }
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    special = {key: config[key] for key in ("pad_token_id", "eos_token_id")} | {"bos_token_id": None}
    if "head_dim" in config:
        return Qwen3Model(
            Qwen3Config(**sizes, **special, head_dim=config["head_dim"], rope_parameters=rope)
        ).eval()
    return EuroBertModel(EuroBertConfig(**sizes, **special, mask_token_id=2, rope_parameters=rope)).eval()


def write_jina_v3(folder: Path, *, length: int = MAX_TOKENS) -> Path:
    """A repository in the layout of jinaai/jina-embeddings-v3-hf: a folder for each adapter, embeddings adapted too."""
    tokenizer = write_tokenizer(folder, "unigram", model_max_length=length)
    config = JinaEmbeddingsV3Config(**sizes_for(tokenizer), max_position_embeddings=length)
    backbone = random_model(JinaEmbeddingsV3Model, config)
    backbone.save_pretrained(folder)
    write_modules(folder, [("Pooling", MEAN), ("Normalize", {})])
    prompts = {
        "retrieval.query": "Represent the query for retrieving evidence documents: ",
        "retrieval.passage": "Represent the document for retrieval: ",
        "separation": "",
        "classification": "",
        "text-matching": "",
    }
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts})
    for seed, name in enumerate(V3_FOLDERS, start=1):
        write_adapter(folder / name, backbone, seed, r=4, lora_alpha=1, target_modules=list(V3_TARGETS))
    return folder


def backbone_of(folder: Path) -> PreTrainedModel:
    """What transformers loads from an ordinary repository, in float32."""
    loaded: PreTrainedModel = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    return loaded
