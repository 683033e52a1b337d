"""Repositories as GTE's, Arctic's and Nomic's authors published them: their own names for weights and settings.

The reference is what their code computes, written out in plain torch over the file's tensors, a text at a time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, silu

from encoders.encoder import Encoder
from encoders.errors import UnsupportedModelError
from encoders.loading import load_backbone
from encoders.protocol import EncoderOptions, Protocol, resolve_protocol
from encoders.tasks import view_of
from encoders.tokenizer import Tokenizer
from tests.encoders.family_repositories import NORMALIZE, legacy
from tests.encoders.reference import Vectors, assert_same, cosines, unit
from tests.encoders.repositories import TEXTS, edit_json, write_json, write_modules, write_tokenizer

WIDTH, INNER, HEADS, LAYERS = 32, 64, 4, 2
CODE = {"auto_map": {"AutoConfig": "configuration.Config", "AutoModel": "modeling.Model"}}
NEW = {
    "architectures": ["NewModel"],
    "model_type": "new",
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "layer_norm_type": "layer_norm",
    "logn_attention_clip1": False,
    "logn_attention_scale": False,
    "max_position_embeddings": 8192,
    "pack_qkv": True,
    "position_embedding_type": "rope",
    "unpad_inputs": False,
    "use_memory_efficient_attention": False,
    **CODE,
}
NTK = {"rope_scaling": {"factor": 2.0, "type": "ntk"}, "rope_theta": 500000}
CONFIGS: dict[str, dict[str, Any]] = {
    "Alibaba-NLP/gte-base-en-v1.5": NEW | NTK | {"type_vocab_size": 0},
    "Alibaba-NLP/gte-multilingual-base": NEW
    | {"type_vocab_size": 1, "rope_scaling": {"factor": 8.0, "type": "ntk"}, "rope_theta": 20000},
    "Snowflake/snowflake-arctic-embed-m-v2.0": NEW
    | {"model_type": "gte", "architectures": ["GteModel"], "type_vocab_size": 1}
    | {"rope_scaling": None, "rope_theta": 160000, "unpad_inputs": "true"},
    "nomic-ai/nomic-embed-text-v1.5": {
        "architectures": ["NomicBertModel"],
        "model_type": "nomic_bert",
        "activation_function": "swiglu",
        "causal": False,
        "layer_norm_epsilon": 1e-12,
        "max_trained_positions": 2048,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "n_embd": WIDTH,
        "n_head": HEADS,
        "n_inner": INNER,
        "n_layer": LAYERS,
        "n_positions": 8192,
        "prenorm": False,
        "qkv_proj_bias": False,
        "rotary_emb_base": 1000,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "rotary_scaling_factor": None,
        "type_vocab_size": 2,
        **CODE,
    },
}
TOKENIZERS = {"Alibaba-NLP/gte-base-en-v1.5": "wordpiece", "nomic-ai/nomic-embed-text-v1.5": "wordpiece"}
NOMIC = "nomic-ai/nomic-embed-text-v1.5"
MULTILINGUAL = "Alibaba-NLP/gte-multilingual-base"


def write(folder: Path, row: str, **changes: Any) -> Path:
    tokenizer = write_tokenizer(folder, TOKENIZERS.get(row, "unigram"), model_max_length=8192)
    config = CONFIGS[row] | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id} | changes
    write_json(folder / "config.json", config)
    shapes = _nomic_shapes(config) if row == NOMIC else _gte_shapes(config)
    generator = torch.Generator().manual_seed(3)
    weights = {  # attention is sharp enough that the angles of positions show
        name: (0.9 if "qkv" in name else 0.3) * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }
    if row == MULTILINGUAL:  # published with the head that gives weights of words
        weights = {f"new.{name}": tensor for name, tensor in weights.items()}
        weights["classifier.weight"] = torch.randn(1, WIDTH, generator=generator)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    write_modules(folder, [legacy("mean")] if row == NOMIC else [legacy("cls"), NORMALIZE])
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 8192, "do_lower_case": False})
    return folder


def _norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}


def _gte_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    shapes = {"embeddings.word_embeddings.weight": (config["vocab_size"], WIDTH)}
    if config["type_vocab_size"]:
        shapes["embeddings.token_type_embeddings.weight"] = (config["type_vocab_size"], WIDTH)
    shapes |= _norm("embeddings.LayerNorm")
    for layer in (f"encoder.layer.{number}" for number in range(LAYERS)):
        shapes |= {
            f"{layer}.attention.qkv_proj.weight": (3 * WIDTH, WIDTH),
            f"{layer}.attention.qkv_proj.bias": (3 * WIDTH,),
            f"{layer}.attention.o_proj.weight": (WIDTH, WIDTH),
            f"{layer}.attention.o_proj.bias": (WIDTH,),
            f"{layer}.mlp.up_gate_proj.weight": (2 * INNER, WIDTH),
            f"{layer}.mlp.down_proj.weight": (WIDTH, INNER),
            f"{layer}.mlp.down_proj.bias": (WIDTH,),
            **_norm(f"{layer}.attn_ln"),
            **_norm(f"{layer}.mlp_ln"),
        }
    return shapes


def _nomic_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    shapes = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], WIDTH),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], WIDTH),
        **_norm("emb_ln"),
    }
    for layer in (f"encoder.layers.{number}" for number in range(LAYERS)):
        shapes |= {
            f"{layer}.attn.Wqkv.weight": (3 * WIDTH, WIDTH),
            f"{layer}.attn.out_proj.weight": (WIDTH, WIDTH),
            f"{layer}.mlp.fc11.weight": (INNER, WIDTH),
            f"{layer}.mlp.fc12.weight": (INNER, WIDTH),
            f"{layer}.mlp.fc2.weight": (WIDTH, INNER),
            **_norm(f"{layer}.norm1"),
            **_norm(f"{layer}.norm2"),
        }
    return shapes


def frequencies(config: Mapping[str, Any]) -> Tensor:
    """Angles per position, as the authors compute them."""
    dim = WIDTH // HEADS
    base = config.get("rope_theta", config.get("rotary_emb_base"))
    scaling = config.get("rope_scaling")
    powers = torch.arange(0, dim, 2).double() / dim
    if not scaling:
        return 1 / base**powers
    return 1 / (base * scaling["factor"]) ** powers / scaling["factor"] ** (2 / dim)


def attended(qkv: Tensor, frequencies: Tensor) -> Tensor:
    """Self-attention of one text `[tokens, 3 * WIDTH]`, each token seeing all, queries and keys rotated."""
    query, key, value = (part.view(len(qkv), HEADS, -1).transpose(0, 1) for part in qkv.split(WIDTH, dim=-1))
    angles = torch.arange(len(qkv)).double()[:, None] * frequencies.repeat(2)

    def rotated(states: Tensor) -> Tensor:
        one, two = states.chunk(2, dim=-1)
        return states * angles.cos() + torch.cat((-two, one), dim=-1) * angles.sin()

    scores = rotated(query) @ rotated(key).transpose(1, 2) / math.sqrt(query.shape[-1])
    return (scores.softmax(-1) @ value).transpose(0, 1).reshape(len(qkv), WIDTH)


def states(folder: Path, row: str, ids: list[int]) -> Tensor:
    """Token states of one text."""
    config = json.loads((folder / "config.json").read_text())
    weights = {
        name.removeprefix("new."): tensor.double()
        for name, tensor in load_file(folder / "model.safetensors").items()
    }

    def linear(name: str, inputs: Tensor) -> Tensor:
        return inputs @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", torch.zeros(()))

    def normed(name: str, inputs: Tensor) -> Tensor:
        return layer_norm(inputs, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-12)

    hidden = weights["embeddings.word_embeddings.weight"][ids]
    if config["type_vocab_size"]:
        hidden = hidden + weights["embeddings.token_type_embeddings.weight"][0]

    def nomic_layer(name: str, inputs: Tensor) -> Tensor:
        attention = attended(linear(f"{name}.attn.Wqkv", inputs), frequencies(config))
        inputs = normed(f"{name}.norm1", inputs + linear(f"{name}.attn.out_proj", attention))
        gated = linear(f"{name}.mlp.fc11", inputs) * silu(linear(f"{name}.mlp.fc12", inputs))
        return normed(f"{name}.norm2", inputs + linear(f"{name}.mlp.fc2", gated))

    def gte_layer(name: str, inputs: Tensor) -> Tensor:
        attention = attended(linear(f"{name}.attention.qkv_proj", inputs), frequencies(config))
        inputs = normed(f"{name}.attn_ln", inputs + linear(f"{name}.attention.o_proj", attention))
        up, gate = linear(f"{name}.mlp.up_gate_proj", inputs).split(INNER, dim=-1)
        return normed(f"{name}.mlp_ln", inputs + linear(f"{name}.mlp.down_proj", gelu(gate) * up))

    is_nomic = row == NOMIC
    hidden = normed("emb_ln" if is_nomic else "embeddings.LayerNorm", hidden)
    for number in range(LAYERS):
        if is_nomic:
            hidden = nomic_layer(f"encoder.layers.{number}", hidden)
        else:
            hidden = gte_layer(f"encoder.layer.{number}", hidden)
    return hidden


def theirs(folder: Path, row: str, prompt: str) -> Vectors:
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    vectors = []
    for text in TEXTS:
        hidden = states(folder, row, backend.encode(prompt + text).ids)
        pooled = layer_norm(hidden.mean(dim=0), (WIDTH,)) if row == NOMIC else hidden[0]
        vectors.append(pooled.numpy())
    return unit(np.stack(vectors))


def resolve(folder: Path, row: str | None = None) -> Protocol:
    return resolve_protocol(str(folder), options=EncoderOptions(protocol=row))


def ours(protocol: Protocol, prompt: str) -> Vectors:
    encoder = Encoder.load(protocol, device="cpu")
    return encoder.encode(Tokenizer(protocol).prepare(TEXTS, prompt)).vectors


@pytest.mark.parametrize("row", CONFIGS)
def test_published_files_give_the_vectors_of_their_own_code(row: str, tmp_path: Path) -> None:
    folder = write(tmp_path, row)
    protocol = resolve(folder, row)
    assert (protocol.max_seq_length, protocol.dim) == (8192, WIDTH)
    prompt = protocol.prompt(view_of("retrieval", "query")).prefix
    assert_same(ours(protocol, prompt), theirs(folder, row, prompt))


@pytest.mark.parametrize("row", ["Alibaba-NLP/gte-base-en-v1.5", MULTILINGUAL])
def test_the_reference_tells_the_scaling_of_positions_apart(row: str, tmp_path: Path) -> None:
    folder = write(tmp_path, row)
    right = theirs(folder, row, "")
    edit_json(folder / "config.json", rope_scaling=None)
    assert cosines(right, theirs(folder, row, "")).min() < 0.9999


def test_a_fine_tuned_gte_needs_no_row(tmp_path: Path) -> None:
    folder = write(tmp_path, "Alibaba-NLP/gte-base-en-v1.5")
    assert_same(ours(resolve(folder), ""), theirs(folder, "Alibaba-NLP/gte-base-en-v1.5", ""))


@pytest.mark.parametrize(
    "changes",
    [
        {"position_embedding_type": "absolute"},
        {"layer_norm_type": "rms_norm"},
        {"logn_attention_scale": True},
        {"pack_qkv": False},
        {"rope_scaling": {"type": "yarn", "factor": 2.0}},
        {"rope_scaling": {"type": "ntk", "factor": 2.0, "mixed_b": 0.6}},
    ],
    ids=str,
)
def test_settings_for_which_no_class_is_known_to_give_the_same_are_refused(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    row = "Alibaba-NLP/gte-base-en-v1.5"
    folder = write(tmp_path, row, **changes)
    for named in (None, row):
        with pytest.raises(UnsupportedModelError, match=rf"{next(iter(changes))}=.*GteModel is not known"):
            resolve(folder, named)


def test_settings_of_arctic_are_looked_at_too(tmp_path: Path) -> None:
    row = "Snowflake/snowflake-arctic-embed-m-v2.0"
    folder = write(tmp_path, row, layer_norm_type="rms_norm")
    with pytest.raises(UnsupportedModelError, match=r"layer_norm_type='rms_norm'"):
        resolve(folder, row)


@pytest.mark.parametrize(("row", "lost"), [(NOMIC, "fc12"), (MULTILINGUAL, "up_gate_proj")])
def test_a_tensor_under_an_old_name_that_is_not_there_is_an_error(
    row: str, lost: str, tmp_path: Path
) -> None:
    folder = write(tmp_path, row)
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if lost not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match="do not fill"):
        load_backbone(resolve(folder, row), torch.float32)
